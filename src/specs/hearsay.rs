//! What other nodes know of a name, for when no registry can be reached and this node has
//! never heard of it. They answer `GetService` with what a registry told them.
//!
//! It is hearsay: enough to look for the service and to ask for it, never to run
//! something for it, not remembered over a restart, and not passed on.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    Error, Kind, PeerId, Result, ServiceName, Spec,
    api::{
        self,
        proto::{self, registry_client::RegistryClient},
    },
    discovery::{Discovery, Found, Key},
    endpoint::{Endpoint, Role},
    mesh::Mesh,
};

/// Longest one node may take to be connected to and to answer.
const ANSWER: Duration = Duration::from_millis(1500);
/// Longest all of them may take.
const ALL_ANSWERS: Duration = Duration::from_secs(3);
/// How long after the first answer others may come with a later revision.
const LATER_WORD: Duration = Duration::from_millis(100);
/// Nodes asked for one name, the nearest first.
const MAX_ASKED: usize = 32;
/// Of those, so many at the same time.
const AT_ONCE: usize = 8;
/// Names asked for at the same time: a flood of made-up ones is not to become a flood of
/// calls to everybody.
const MAX_NAMES: usize = 16;

/// The way to what others know.
#[derive(Debug)]
pub(super) struct Hearsay {
    discovery: Arc<dyn Discovery>,
    mesh: Arc<dyn Mesh>,
    places: Semaphore,
}

impl Hearsay {
    pub(super) fn new(discovery: Arc<dyn Discovery>, mesh: Arc<dyn Mesh>) -> Self {
        Self { discovery, mesh, places: Semaphore::new(MAX_NAMES) }
    }

    /// The latest word of those in reach that know `name`, and who said it. Cancel safe,
    /// within three seconds.
    pub(super) async fn ask(&self, name: &ServiceName) -> Option<(Spec, PeerId)> {
        let _place = self.places.try_acquire().ok()?;
        let answers = self.nodes().take(MAX_ASKED).map(|node| self.ask_one(node, name));
        let mut answers = std::pin::pin!(answers.buffer_unordered(AT_ONCE));
        let mut latest: Option<(Spec, PeerId)> = None;
        let mut deadline = Instant::now() + ALL_ANSWERS;
        while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
            let (spec, from) = match answer {
                Ok(told) => told,
                Err(error) => {
                    tracing::debug!(%name, error = error.chain(), "a node knows nothing of it");
                    continue;
                }
            };
            if latest.is_none() {
                deadline = deadline.min(Instant::now() + LATER_WORD);
            }
            if latest.as_ref().is_none_or(|(before, _)| before.revision < spec.revision) {
                latest = Some((spec, from));
            }
        }
        latest
    }

    /// Those that are known, the nearest first, then allocators that a find yields. No
    /// registries: they have been asked.
    fn nodes(&self) -> impl Stream<Item = Arc<Endpoint>> {
        let mut known = self.discovery.known();
        known.retain(|node| !node.has(Role::Registry));
        known.sort_by_cached_key(|node| self.mesh.rtt(node.peer).unwrap_or(Duration::MAX));
        let seen: Vec<_> = known.iter().map(|node| node.peer).collect();
        let found = self.discovery.find(Key::Role(Role::Allocator)).filter_map(move |found| {
            let new = match found {
                Found::Endpoint(node) if !seen.contains(&node.peer) => Some(node),
                Found::Endpoint(_) | Found::Miss => None,
            };
            async { new }
        });
        stream::iter(known).chain(found)
    }

    async fn ask_one(&self, node: Arc<Endpoint>, name: &ServiceName) -> Result<(Spec, PeerId)> {
        let who = format!("node {}", node.peer.short());
        let answer = async {
            let channel = self.mesh.grpc(&node).await?;
            let mut client =
                RegistryClient::new(channel).max_decoding_message_size(api::MAX_ANSWER);
            let request = proto::GetServiceRequest { name: name.to_string() };
            api::call(&who, ANSWER, request, |request| client.get_service(request)).await
        };
        let late = |_| Err(Error::new(Kind::Timeout, format!("{who} did not answer")));
        let answer = timeout(ANSWER, answer).await.unwrap_or_else(late)?;
        let spec = Spec::try_from(answer.spec.unwrap_or_default())?;
        if spec.name != *name {
            return Err(Error::new(Kind::Internal, format!("{who} answered something else")));
        }
        Ok((spec, node.peer))
    }
}
