//! An allocator that is drained, on the fake driver.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use lca::{
    Kind,
    api::proto::{
        DescribeRequest, DrainRequest, InstanceState, allocate_request::Mode,
        allocator_server::Allocator as _, operation_server::Operation as _,
    },
};
use tokio::time::timeout;
use tonic::Request;

use super::twins::{PATIENCE, World, config, id};
use crate::driver::fake::Fake;

#[tokio::test]
async fn what_is_open_is_finished_nothing_more_is_accepted_and_the_end_is_told() {
    let fake = Fake::default();
    let mut config = config();
    // What a release would wait for.
    config.timing.drain = Duration::from_millis(20);
    let world = World::new(Arc::new(fake.clone()), config).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let busy = id(&world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let idle = id(&world.allocate(&spec, Mode::New, "r2").await.unwrap());
    let way = world.ways.to(busy.parse().unwrap()).unwrap();
    way.open.send_replace(1);
    let drained = world.allocator.drained();
    let mut drained = std::pin::pin!(drained);
    let mut progress =
        world.allocator.drain(Request::new(DrainRequest {})).await.unwrap().into_inner();
    assert_eq!(progress.next().await.unwrap().unwrap().instances, 2);
    world.is(&idle, InstanceState::Stopped).await;
    assert_eq!(world.list(false).await[0].state(), InstanceState::Draining, "it has a request");
    for (mode, request) in [(Mode::Ensure, "r3"), (Mode::New, "r4")] {
        let refused = world.allocate(&spec, mode, request).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(refused.public().contains("drained"), "{refused}");
    }
    let described = world.allocator.describe(Request::new(DescribeRequest {})).await.unwrap();
    assert!(described.into_inner().stopping);
    let early = timeout(Duration::from_millis(300), &mut drained).await;
    assert!(early.is_err(), "a request is open, however long it takes");
    // A watcher that goes away ends nothing, and the next one is told the same.
    drop(progress);
    let mut again =
        world.allocator.drain(Request::new(DrainRequest {})).await.unwrap().into_inner();
    let first = again.next().await.unwrap().unwrap();
    assert_eq!((first.instances, first.requests, first.done), (1, 1, false));
    way.open.send_replace(0);
    drop(way);
    timeout(PATIENCE, drained).await.unwrap();
    let rest: Vec<_> = timeout(PATIENCE, again.collect()).await.unwrap();
    assert!(rest.last().unwrap().as_ref().unwrap().done);
    let ended = world.is(&busy, InstanceState::Stopped).await;
    assert_eq!((ended.reason.as_str(), fake.running()), ("the allocator is being drained", 0));
}
