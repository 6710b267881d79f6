//! What every [`Discovery`] must do, as one test that each implementation runs.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::StreamExt as _;
use tokio::time::timeout;

use super::{Discovery, Found, Key};
use crate::{Kind, PeerId, ServiceHash, testing::eventually};

/// Longest a find may go on: its own deadline with a margin.
const FIND_ENDS: Duration = Duration::from_secs(15);

/// Checks three joined nodes of one network against the contract.
///
/// # Panics
/// If one of them breaks the contract, saying how.
pub async fn passes(nodes: [Arc<dyn Discovery>; 3]) {
    let [a, b, c] = &nodes;
    let key = Key::Service(ServiceHash::from_sha256(rand::random()));

    let (found, missed) = find(a, key).await;
    assert!(found.is_empty() && missed, "a find of what nobody has must say so");

    b.announce(key).await.expect("announcing");
    b.announce(key).await.expect("announcing again is no error");
    c.announce(key).await.expect("announcing");
    finds(a, key, &[b.local(), c.local()]).await;
    finds(b, key, &[c.local()]).await;

    let other = Key::Service(ServiceHash::from_sha256(rand::random()));
    assert!(find(a, other).await.0.is_empty(), "a find yields only what it was asked for");

    let endpoint = a.endpoint(b.local()).await.expect("a peer's endpoint is found");
    assert_eq!(endpoint.peer, b.local());
    a.forget(b.local());
    let again = a.endpoint(b.local()).await.expect("a forgotten endpoint is found again");
    assert_eq!(again.peer, b.local());
    assert!(
        a.known().iter().all(|endpoint| endpoint.peer != a.local()),
        "a node is not its own peer"
    );
    let nobody = PeerId::from_public_key([7; 32]);
    let error = a.endpoint(nobody).await.expect_err("nobody has this key");
    assert_eq!(error.kind(), Kind::NotFound);

    drop(a.find(key)); // ends early, and what follows still works
    b.withdraw(key).await.expect("withdrawing");
    b.withdraw(key).await.expect("withdrawing twice is no error");
    finds(a, key, &[c.local()]).await;
}

/// Waits until a find by `node` yields exactly `expected`.
async fn finds(node: &Arc<dyn Discovery>, key: Key, expected: &[PeerId]) {
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    eventually(&format!("{expected:?} to be found"), async || {
        let (found, _) = find(node, key).await;
        if found == expected { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Everything one find says: the peers, and whether it said [`Found::Miss`].
async fn find(node: &Arc<dyn Discovery>, key: Key) -> (BTreeSet<PeerId>, bool) {
    let mut finding = node.find(key);
    let mut found = BTreeSet::new();
    let mut missed = false;
    let end = timeout(FIND_ENDS, async {
        while let Some(next) = finding.next().await {
            match next {
                Found::Endpoint(endpoint) => {
                    assert_ne!(endpoint.peer, node.local(), "a node does not find itself");
                    assert!(found.insert(endpoint.peer), "a peer is yielded once");
                }
                Found::Miss => {
                    assert!(!missed && found.is_empty(), "a miss is said once, and first");
                    missed = true;
                }
            }
        }
    });
    end.await.expect("a find ends by itself");
    (found, missed)
}
