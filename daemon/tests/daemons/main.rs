//! The three binaries as an operator meets them: real processes, real signals, real
//! sockets, a folder of their own for each test.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

mod check;
mod descriptors;
mod idle;
mod life;
mod machine;
mod net;
mod refused;
mod signals;
mod stopping;
mod times;
