//! What a service name means: specs and artifacts, kept crash-safe and served over gRPC.
//!
//! [`Registry`] is the gRPC service; every node that has the registry's role mounts
//! [`Registry::server`]. Behind it are a `Store` of specs, which survives `kill -9` in
//! the middle of a write, and a folder of artifacts ([`lca::artifact::Store`]). What a
//! client was told to be stored is on disk.

pub use service::Registry;

mod service;
mod store;
mod table;
