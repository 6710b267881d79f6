//! How far the fetch is that an allocation waits for, for whoever watches it.
//!
//! An image may take minutes to come, and `Allocate` says nothing until the instance is
//! ready. The allocator shows it on the instance it is for, so that is followed while the
//! call is under way. Nothing depends on it: who cannot be followed is waited for all
//! the same.

use std::{convert::Infallible, time::Duration};

use lca::{
    Runs,
    api::proto::{self, instance_event::Event, instances_client::InstancesClient},
    endpoint::Endpoint,
};
use tokio::time::{sleep, timeout};

use super::Order;
use crate::{flight::Teller, reach::Reach};

/// Until somebody who waits wants to know what for. Most starts are over by then.
const BEGIN: Duration = Duration::from_millis(500);
/// For the allocator to let itself be watched.
const WATCH: Duration = Duration::from_secs(5);

/// Tells what is fetched for `order` at `endpoint` until it is dropped. Never resolves.
pub(super) async fn follow(
    reach: &Reach,
    order: &Order,
    endpoint: &Endpoint,
    teller: &Teller,
) -> Infallible {
    if matches!(order.runs, Runs::Image(_)) {
        sleep(BEGIN).await;
        if watch(reach, order, endpoint, teller).await.is_none() {
            tracing::debug!(peer = %endpoint.peer.short(), "its fetch cannot be followed");
        }
    }
    std::future::pending().await
}

/// `None` when there is no more to be heard.
async fn watch(reach: &Reach, order: &Order, endpoint: &Endpoint, teller: &Teller) -> Option<()> {
    let which = proto::WatchInstancesRequest {
        service: order.name.to_string(),
        service_hash: order.service.to_string(),
    };
    let channel = reach.channel(endpoint, WATCH).await.ok()?;
    let mut client = InstancesClient::new(channel);
    let answer = timeout(WATCH, client.watch_instances(which)).await.ok()?;
    let mut events = answer.ok()?.into_inner();
    loop {
        // Its end is that of the call, which somebody else waits for with a deadline.
        let event = events.message().await.ok()??.event;
        let Some(Event::Put(instance)) = event else { continue };
        let ours = instance.service_hash == order.service.to_string()
            && instance.peer == endpoint.peer.to_string()
            && instance.state() == proto::InstanceState::Fetching;
        if let (true, Some(fetching)) = (ours, instance.fetching) {
            teller.fetching(fetching);
        }
    }
}
