//! What the supervisor needs of the rest of the node: specs with their artifacts, and
//! the ingress that lets requests in. Thin, so that policy is tested with twins that
//! fail, stall and idle on command.

pub(crate) mod real;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use lca::{Digest, Result, ServiceHash, ServiceName, Spec, headers::Load};
pub(crate) use lca_ingress::Local;

/// A spec as the registry has it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) spec: Spec,
    pub(crate) hash: ServiceHash,
}

/// Specs, and the artifacts they name.
#[async_trait]
pub(crate) trait Catalog: fmt::Debug + Send + Sync {
    /// The spec, from memory if fresh.
    async fn get(&self, name: &ServiceName) -> Result<Known>;
    /// The spec, asked of a registry now.
    async fn refresh(&self, name: &ServiceName) -> Result<Known>;
    /// The artifact, verified and executable, fetched if missing. Cancel safe.
    async fn fetch(&self, digest: Digest) -> Result<PathBuf>;
    /// The specs with `min_instances`, as far as they are known, without I/O.
    fn kept(&self) -> Vec<Known>;
    /// Artifacts that need no fetching.
    fn cached(&self) -> Vec<Digest>;
}

/// Where requests come in.
pub(crate) trait Gate: fmt::Debug + Send + Sync {
    /// Lets requests for an instance in until what is returned is dropped, which
    /// resets those that are open.
    fn open(&self, local: Local) -> Arc<dyn Door>;
}

/// The way in to one instance.
#[async_trait]
pub(crate) trait Door: fmt::Debug + Send + Sync {
    /// Refuses new requests.
    fn drain(&self);
    /// As `drain`, if it has been idle for `time`, which it says.
    fn drain_if_idle(&self, time: Duration) -> bool;
    /// Somebody is sent there: it is not idle.
    fn touch(&self);
    /// How busy it is.
    fn load(&self) -> Load;
    /// Resolves once it has been idle for `time` without a break.
    async fn idle_for(&self, time: Duration);
    /// Resolves once it has not.
    async fn used_within(&self, time: Duration);
    /// Resolves when no request is open.
    async fn drained(&self);
}
