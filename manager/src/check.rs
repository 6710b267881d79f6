//! Whether those that everything depends on answer at this moment: every registry and
//! every allocator this node knows, asked at the same time, each with a deadline of its
//! own. For a person who wants to know why nothing works.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all};
use lca::{
    Error, Kind, Result,
    api::{
        self,
        proto::{self, registry_client::RegistryClient},
    },
    discovery::{Found, Key},
    endpoint::{Endpoint, Role},
};
use tokio::time::{Instant, timeout_at};

use crate::{Manager, manager::Inner};

/// Longest one peer may take, connecting included.
const ASK: Duration = Duration::from_secs(2);
/// Longest to look for a registry or an allocator where none is known.
const FIND: Duration = Duration::from_secs(1);
/// The most registries, and the most allocators, that are asked, all at the same time.
const MAX: usize = 64;
/// A name that nobody registers: asking for it is answered by whatever is a registry.
const NO_SERVICE: &str = "no-such-service.lca-doctor";

/// What [`Manager::check`] found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Every registry that is known, this node included if it is one.
    pub registries: Vec<proto::PeerCheck>,
    /// Every allocator that is known, this node included if it is one.
    pub allocators: Vec<proto::PeerCheck>,
    /// Peers whose endpoint is known.
    pub known_peers: usize,
}

impl Manager {
    /// Asks the registries and the allocators whether they are there. Takes less than
    /// four seconds whatever they do. Cancel safe.
    pub async fn check(&self) -> Checked {
        let inner = &self.inner;
        let (registries, allocators) = tokio::join!(registries(inner), allocators(inner));
        Checked { registries, allocators, known_peers: inner.reach.discovery.known().len() }
    }
}

async fn registries(inner: &Inner) -> Vec<proto::PeerCheck> {
    let mut known = inner.specs.registries();
    if known.is_empty() {
        known = find(inner, Role::Registry).await;
    }
    let asked = in_order(known).into_iter().map(|endpoint| async move {
        let mut check = unasked(&endpoint);
        let answer = tokio::time::timeout(ASK, ask_registry(inner, &endpoint)).await;
        told(&mut check, answer.unwrap_or_else(|_| Err(silent())));
        check.rtt_us = inner.reach.rtt_us(endpoint.peer);
        check
    });
    join_all(asked).await
}

async fn allocators(inner: &Inner) -> Vec<proto::PeerCheck> {
    let listed = inner.allocators.list().into_iter().map(|allocator| allocator.endpoint);
    let mut known: Vec<_> = listed.collect();
    if known.is_empty() {
        known = find(inner, Role::Allocator).await;
    }
    let asked = in_order(known).into_iter().map(|endpoint| async move {
        let mut check = unasked(&endpoint);
        match inner.reach.describe(&endpoint, ASK).await {
            Ok(described) => {
                (check.total, check.used) = (described.total, described.used);
                check.stopping = described.stopping;
                told(&mut check, Ok(()));
            }
            Err(error) => told(&mut check, Err(error)),
        }
        check.rtt_us = inner.reach.rtt_us(endpoint.peer);
        check
    });
    join_all(asked).await
}

fn in_order(mut peers: Vec<Arc<Endpoint>>) -> Vec<Arc<Endpoint>> {
    peers.sort_unstable_by_key(|endpoint| endpoint.peer);
    peers.truncate(MAX);
    peers
}

async fn find(inner: &Inner, role: Role) -> Vec<Arc<Endpoint>> {
    let deadline = Instant::now() + FIND;
    let mut finding = inner.reach.discovery.find(Key::Role(role));
    let mut found = Vec::new();
    while let Ok(Some(next)) = timeout_at(deadline, finding.next()).await {
        if let Found::Endpoint(endpoint) = next {
            found.push(endpoint);
        }
    }
    found
}

/// Success is any answer of its own, such as that there is no such service.
async fn ask_registry(inner: &Inner, endpoint: &Endpoint) -> Result<()> {
    let mut registry = RegistryClient::new(inner.reach.channel(endpoint, ASK).await?);
    let request = proto::GetServiceRequest { name: NO_SERVICE.into() };
    match api::call("the registry", ASK, request, |r| registry.get_service(r)).await {
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn silent() -> Error {
    Error::new(Kind::Timeout, format!("did not answer within {ASK:?}"))
}

fn unasked(endpoint: &Endpoint) -> proto::PeerCheck {
    proto::PeerCheck {
        peer: endpoint.peer.to_string(),
        mesh_addresses: endpoint.mesh.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn told(check: &mut proto::PeerCheck, answer: Result<()>) {
    check.answered = answer.is_ok();
    check.error = answer.err().map(|error| error.public().to_owned()).unwrap_or_default();
}
