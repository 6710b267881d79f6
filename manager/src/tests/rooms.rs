//! What allocators say they have left, and when anybody listens.

use std::time::Duration;

use lca::{
    api::proto::{self, instance_event::Event},
    testing::eventually,
};
use tokio::time::sleep;

use super::world::{Client, FakeAllocator, HELLO, World, spec, wish};

/// All of it is taken.
fn nothing_left() -> Event {
    let all = Some(proto::Capacity { cpu_millis: 8000, memory_bytes: 8 << 30, instances: 1 });
    Event::Capacity(proto::PeerCapacity { total: all, used: all, ..Default::default() })
}

/// Two allocators, at 1 ms and 40 ms, and a client that has had something started on
/// the near one, which is followed since then.
async fn followed() -> (World, Client, [FakeAllocator; 2]) {
    let world = World::with([spec(HELLO), spec("other")]);
    let (near, far, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 40);
    sleep(Duration::from_secs(1)).await;
    assert!(!near.is_watched(), "nobody has needed it yet");
    assert_eq!(client.pick().await.unwrap().endpoint.peer, near.id());
    eventually("it to be followed", async || near.is_watched()).await;
    (world, client, [near, far])
}

#[tokio::test(start_paused = true)]
async fn one_that_says_it_has_nothing_left_is_not_asked_first() {
    let (world, client, [near, far]) = followed().await;
    near.tell(Some(nothing_left()));
    // Before that, what took the last place may be what is wanted.
    sleep(Duration::from_secs(11)).await;
    let target = client.manager.pick(wish("other")).await.unwrap();
    assert_eq!(target.endpoint.peer, far.id());
    assert_eq!(near.asked().len(), 1, "only for what it has started");
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn what_has_just_been_admitted_may_be_joined() {
    let (world, client, [near, _]) = followed().await;
    near.tell(Some(nothing_left()));
    sleep(Duration::from_secs(5)).await;
    let target = client.manager.pick(wish("other")).await.unwrap();
    assert_eq!(target.endpoint.peer, near.id(), "it is asked, and speaks for itself");
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_followed_who_is_not_needed_any_more() {
    let (world, client, [near, far]) = followed().await;
    sleep(Duration::from_secs(55)).await;
    assert!(near.is_watched());
    sleep(Duration::from_secs(10)).await;
    eventually("it to be left alone", async || !near.is_watched() && !far.is_watched()).await;
    drop(client);
    assert!(world.drain().await);
}
