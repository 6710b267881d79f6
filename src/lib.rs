//! What every part of service-manager agrees on: the words, the errors, the
//! configuration, the ports to the network, and the API generated from `proto/`.
//!
//! Nothing here knows libp2p, a container engine or a database, so policy built on
//! this crate is tested without any of them. Dependencies point here and never out.

pub mod api;
pub mod artifact;
pub mod config;
pub mod discovery;
pub mod endpoint;
mod error;
mod exit;
pub mod headers;
mod id;
pub mod listen;
pub mod local;
pub mod logs;
pub mod mesh;
pub mod metrics;
pub mod rendezvous;
pub mod sequence;
pub mod shutdown;
mod spec;
pub mod specs;
pub mod testing;
pub mod units;
pub mod workers;

pub use error::{Error, Kind, Result};
pub use exit::Exit;
pub use id::{
    Digest, ImageRef, InstanceId, InstancePrefix, ParseError, PeerId, RequestId, ServiceHash,
    ServiceName,
};
pub use spec::{
    Allowance, Capability, Image, Limits, Liveness, Pin, Placement, Protocol, Readiness,
    Requirements, Resources, Runs, Spec,
};

/// What this build calls itself towards peers; people are also told the commit, by
/// `--version`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
