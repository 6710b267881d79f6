//! A watch as its client sees it: everything, `synced`, then each change.

use futures::{Stream, StreamExt as _, stream};
use lca::api::proto::{self, service_event::Event};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use crate::store::{Change, Watch};

/// The events of one watcher, made as it takes them: what it does not read waits in the
/// store's feed, which is shared and bounded. Ends after the first error.
pub(super) fn events(
    mut watch: Watch,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<proto::ServiceEvent, Status>> + Send {
    let snapshot = stream::iter(watch.snapshot()).map(|spec| Event::Put((&*spec).into()));
    let synced = stream::iter([Event::Synced(true)]);
    let changes = stream::unfold(Some((watch, permit)), |state| async {
        let (mut watch, permit) = state?;
        match watch.next().await? {
            Ok(Change::Put(spec)) => Some((Ok(Event::Put((&*spec).into())), Some((watch, permit)))),
            Ok(Change::Deleted { name, .. }) => {
                Some((Ok(Event::Deleted(name.to_string())), Some((watch, permit))))
            }
            Err(error) => Some((Err(Status::from(error)), None)),
        }
    });
    let events = snapshot.chain(synced).map(Ok).chain(changes);
    events.map(|event| Ok(proto::ServiceEvent { event: Some(event?) }))
}
