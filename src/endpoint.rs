//! Where a node can be reached, once its signature has been checked.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use crate::{Error, Kind, PeerId, Result, api::proto};

/// Most addresses one node may name: a handful of interfaces, IPv4 and IPv6.
pub const MAX_ADDRESSES: usize = 8;
/// Longest life a record may claim, whatever it says.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// Longest version text taken from a peer.
const MAX_VERSION: usize = 64;

/// What a node does for others. Each is also a key under which it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Keeps specs and artifacts.
    Registry,
    /// Runs instances.
    Allocator,
    /// Has a front on localhost.
    Proxy,
    /// Represents an external service.
    External,
}

impl Role {
    /// The word for it, everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Allocator => "allocator",
            Self::Proxy => "proxy",
            Self::External => "external",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Registry, Self::Allocator, Self::Proxy, Self::External]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| Error::new(Kind::InvalidArgument, format!("{text:?} is not a role")))
    }
}

/// A node's own word on where it is, verified to come from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whose it is.
    pub peer: PeerId,
    /// What it does.
    pub roles: Vec<Role>,
    /// Where its mesh listener is, in the order to try.
    pub mesh: Vec<SocketAddr>,
    /// Counts its starts.
    pub boot: u64,
    /// Counts its records since the start.
    pub sequence: u64,
    /// How long to believe it, from receipt.
    pub ttl: Duration,
    /// What it runs.
    pub version: String,
}

impl Endpoint {
    /// Whether this is later word of the same node than `other`.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.boot, self.sequence) > (other.boot, other.sequence)
    }

    /// Whether the node says that it does this.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether instances may live there: those it runs, or an external service.
    pub fn holds_instances(&self) -> bool {
        self.has(Role::Allocator) || self.has(Role::External)
    }
}

impl TryFrom<proto::EndpointRecord> for Endpoint {
    type Error = Error;

    /// Reads a record whose signature the caller has checked, or will.
    fn try_from(record: proto::EndpointRecord) -> Result<Self> {
        let invalid =
            |reason: &str| Error::new(Kind::InvalidArgument, format!("endpoint record: {reason}"));
        if record.mesh_addresses.is_empty() || record.mesh_addresses.len() > MAX_ADDRESSES {
            return Err(invalid("must name 1 to 8 mesh addresses"));
        }
        let mesh = record.mesh_addresses.iter().map(|text| text.parse());
        let mesh: Vec<SocketAddr> = mesh
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| invalid("a mesh address is not IP:PORT"))?;
        if mesh.iter().any(|address| address.port() == 0 || address.ip().is_unspecified()) {
            return Err(invalid("a mesh address cannot be dialled"));
        }
        let ttl = Duration::from_secs(record.ttl_seconds.into());
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(invalid("ttl must be 1 s to 1 h"));
        }
        if record.version.len() > MAX_VERSION || record.roles.len() > 16 {
            return Err(invalid("is too large"));
        }
        Ok(Self {
            peer: record.peer.parse()?,
            roles: record.roles.iter().filter_map(|role| role.parse().ok()).collect(),
            mesh,
            boot: record.boot,
            sequence: record.sequence,
            ttl,
            version: record.version,
        })
    }
}

impl From<&Endpoint> for proto::EndpointRecord {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            peer: endpoint.peer.to_string(),
            roles: endpoint.roles.iter().map(Role::to_string).collect(),
            mesh_addresses: endpoint.mesh.iter().map(SocketAddr::to_string).collect(),
            boot: endpoint.boot,
            sequence: endpoint.sequence,
            ttl_seconds: endpoint.ttl.as_secs() as u32,
            version: endpoint.version.clone(),
        }
    }
}
