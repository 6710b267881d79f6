//! gRPC by TCP as programs in other languages meet it: a registry's daemon, and frames made
//! by hand, so that nothing a well-behaved client would refuse to send stays untried.

#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not see their helpers")]

mod deadlines;
mod messages;
mod raw;
mod token;
mod watchers;
