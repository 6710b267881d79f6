//! A whole fleet in one process, on ports the kernel picked: the harness of the system
//! tests and the benchmarks.
//!
//! Each node has its own runtime, so a crash is real: shutting the runtime down drops
//! every task the node or its libraries spawned, mid-await, with no goodbye. The
//! instances are real processes; whatever a test leaves running is killed with it.

pub mod api_docs;
mod cluster;
mod eventually;
pub mod http;
pub mod mobility;
mod outside;
pub mod processes;
mod service;
mod slot;

pub use cluster::{Builder, Cluster};
pub use eventually::eventually_within;
pub use lca::testing::eventually;
pub use outside::Outside;
pub use service::{Service, demo_program, program};
