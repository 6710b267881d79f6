//! What every [`Store`] must do, as one test that each implementation runs.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use lca::{Kind, ServiceName, Spec, api::proto};
use tokio::time::timeout;

use super::{Change, Store, Watch};

/// Longest an event may take to be told; they are told at once.
const SOON: Duration = Duration::from_secs(10);

/// A spec for tests: what differs between two of a name is `content`.
///
/// # Panics
/// If `name` is none.
pub(crate) fn spec(name: &str, content: &str) -> Spec {
    let spec = proto::ServiceSpec {
        name: name.to_owned(),
        arguments: vec![content.to_owned()],
        ..Default::default()
    };
    Spec::try_from(spec).expect("a valid spec")
}

fn name(text: &str) -> ServiceName {
    text.parse().expect("a valid name")
}

/// Checks an empty store against the contract.
///
/// # Panics
/// If it breaks the contract, saying how.
pub(crate) async fn passes(store: Arc<dyn Store>) {
    keeps_what_it_is_given(&*store).await;
    revisions_grow_across_deletion(&*store).await;
    only_one_of_two_writers_wins(&store).await;
    changes_are_told_in_order(&store).await;
    a_watcher_that_does_not_read_is_cut_off(&*store).await;
}

async fn keeps_what_it_is_given(store: &dyn Store) {
    assert_eq!(store.list().await.expect("listing"), [], "the suite wants an empty store");
    let put = store.put(spec("b", "1"), None).await.expect("a new name");
    assert_eq!((put.spec.revision, put.changed), (1, true));
    let again = store.put(spec("b", "1"), None).await.expect("the same again");
    assert_eq!((again.spec.revision, again.changed), (1, false), "putting is idempotent");
    let error = store.put(spec("b", "2"), None).await.expect_err("another content");
    assert_eq!(error.kind(), Kind::Conflict);
    let error = store.put(spec("b", "2"), Some(7)).await.expect_err("a wrong revision");
    assert_eq!(error.kind(), Kind::Conflict);
    let error = store.put(spec("a", "1"), Some(1)).await.expect_err("a name that is not there");
    assert_eq!(error.kind(), Kind::Conflict);
    let put = store.put(spec("b", "2"), Some(1)).await.expect("the right revision");
    assert_eq!(put.spec.revision, 2);
    let again = store.put(spec("b", "2"), Some(1)).await.expect("the answer got lost");
    assert_eq!((again.spec.revision, again.changed), (2, false));
    store.put(spec("a", "1"), Some(0)).await.expect("revision 0 means that it must be new");

    let names: Vec<_> =
        store.list().await.expect("listing").iter().map(|spec| spec.name.to_string()).collect();
    assert_eq!(names, ["a", "b"], "a list is ordered by name");
    let found = store.get(&name("b")).await.expect("reading").expect("it is there");
    assert!(found.same_content(&spec("b", "2")), "what is read is what was put");
    assert_eq!(store.get(&name("c")).await.expect("reading"), None);
}

async fn revisions_grow_across_deletion(store: &dyn Store) {
    let error = store.delete(&name("b"), Some(1)).await.expect_err("an old revision");
    assert_eq!(error.kind(), Kind::Conflict);
    store.delete(&name("b"), Some(2)).await.expect("deleting");
    assert_eq!(store.get(&name("b")).await.expect("reading"), None);
    let error = store.delete(&name("b"), None).await.expect_err("deleting what is not there");
    assert_eq!(error.kind(), Kind::NotFound);
    let put = store.put(spec("b", "2"), None).await.expect("putting it again");
    assert_eq!((put.spec.revision, put.changed), (3, true));
}

async fn only_one_of_two_writers_wins(store: &Arc<dyn Store>) {
    store.put(spec("race", "start"), None).await.expect("a new name");
    let writers = (0..16).map(|n| {
        let store = store.clone();
        async move { store.put(spec("race", &n.to_string()), Some(1)).await.map(|_| n) }
    });
    let outcomes = join_all(writers).await;
    let winners: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1, "one writer wins");
    assert!(outcomes.iter().flatten().count() == 1);
    let found = store.get(&name("race")).await.expect("reading").expect("it is there");
    assert!(found.same_content(&spec("race", &winners[0].to_string())), "and its spec is there");
    let lost = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    assert!(lost.into_iter().all(|error| error.kind() == Kind::Conflict));
}

async fn changes_are_told_in_order(store: &Arc<dyn Store>) {
    let mut watch = store.watch().await.expect("watching");
    assert_eq!(watch.snapshot(), store.list().await.expect("listing"));
    // Writers that all lose and try again, so that there is an order to be told.
    let writers = (0..8).map(|n| {
        let store = store.clone();
        async move {
            loop {
                let current = store.get(&name("race")).await.expect("reading").expect("there");
                let next = spec("race", &format!("ordered {n}"));
                if store.put(next, Some(current.revision)).await.is_ok() {
                    return;
                }
            }
        }
    });
    join_all(writers).await;
    store.delete(&name("race"), None).await.expect("deleting");
    for revision in 3..=10 {
        let Change::Put(told) = next(&mut watch).await else { panic!("deleted too early") };
        assert_eq!(told.revision, revision, "changes come in the order they were made");
    }
    assert_eq!(next(&mut watch).await, Change::Deleted { name: name("race"), revision: 10 });
}

async fn a_watcher_that_does_not_read_is_cut_off(store: &dyn Store) {
    let mut watch = store.watch().await.expect("watching");
    let mut revision = store.put(spec("busy", "0"), None).await.expect("putting").spec.revision;
    for n in 1..3000 {
        let put = store.put(spec("busy", &n.to_string()), Some(revision)).await;
        revision = put.expect("putting").spec.revision;
    }
    let first = timeout(SOON, watch.next()).await.expect("an answer").expect("a live store");
    assert_eq!(first.expect_err("it has missed changes").kind(), Kind::NoCapacity);
}

async fn next(watch: &mut Watch) -> Change {
    let next = timeout(SOON, watch.next()).await.expect("a change is told soon");
    next.expect("the store lives").expect("the watcher reads")
}
