//! The three binaries as an operator meets them: real processes, real signals, real
//! sockets, a folder of their own for each test.

mod check;
mod descriptors;
mod life;
mod machine;
mod refused;
mod signals;
