//! Which peers represent external services: asked for when somebody wants to see all
//! instances. Requests do not need them, they find a service by its hash.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use lca::{
    discovery::{Found, Key},
    endpoint::{Endpoint, Role},
};
use tokio::time::{Instant, timeout_at};

use crate::reach::Reach;

/// Longest a look may take: a person waits for the answer, and most networks have none.
const FIND: Duration = Duration::from_millis(500);
/// Representatives a node asks; more are not shown.
const MAX: usize = 256;

/// Those that are known without asking anybody, this node included if it is one.
pub(crate) fn known(reach: &Reach) -> impl Iterator<Item = Arc<Endpoint>> {
    let known = reach.discovery.known().into_iter().chain([reach.discovery.own()]);
    known.filter(|peer| peer.has(Role::External)).take(MAX)
}

/// Those that are known or found within half a second, this node included if it is one.
pub(crate) async fn find(reach: &Reach) -> Vec<Arc<Endpoint>> {
    let mut all: HashMap<_, _> = known(reach).map(|peer| (peer.peer, peer)).collect();
    let deadline = Instant::now() + FIND;
    let mut finding = reach.discovery.find(Key::Role(Role::External));
    // A miss is said before anything was found: nobody else is near.
    while let Ok(Some(Found::Endpoint(peer))) = timeout_at(deadline, finding.next()).await {
        all.insert(peer.peer, peer);
    }
    all.into_values().take(MAX).collect()
}
