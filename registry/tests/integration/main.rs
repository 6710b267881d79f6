//! A real registry service on the in-memory network, and the nodes that use it.

#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not see their helpers")]

mod artifacts;
mod fetch;
mod harness;
mod hostile;
mod service;
mod specs;
