//! Which instance a request is sent to, and what is learnt from the outcome.

use std::time::Duration;

use futures::FutureExt as _;
use lca::{
    Kind, Requirements,
    api::proto::{self, InstanceState},
    discovery::Discovery as _,
    headers::{Load, Refusal},
    testing::eventually,
};

use super::world::{Behaviour, HELLO, World, spec, wish};
use crate::{Config, Outcome, Wish};

fn limits(soft: u32, hard: u32) -> proto::ServiceSpec {
    let requirements = proto::Requirements { soft_rtt_ms: soft, hard_rtt_ms: hard };
    proto::ServiceSpec { requirements: Some(requirements), ..spec(HELLO) }
}

fn hard(ms: u64) -> Requirements {
    Requirements { soft: None, hard: Some(Duration::from_millis(ms)) }
}

#[tokio::test]
async fn what_is_found_is_used_and_nothing_is_allocated() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let running = allocator.runs(&spec(HELLO)).await;
    let target = client.pick().await.unwrap();
    assert_eq!((target.instance, target.endpoint.peer), (running, allocator.id()));
    let steps: Vec<_> = target.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["spec", "find"]);
    assert!(allocator.asked().is_empty());
}

#[tokio::test]
async fn what_is_known_is_answered_at_once() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    allocator.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    let warm = client.pick().now_or_never().expect("a warm pick waits for nothing").unwrap();
    assert!(warm.steps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_nearest_known_instance_is_used() {
    let world = World::new();
    let (far, near, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 30);
    world.distance(&client, &near, 3);
    far.runs(&spec(HELLO)).await;
    let nearest = near.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    eventually("the nearest to be used", async || client.pick().await.unwrap().instance == nearest)
        .await;
    world.distance(&client, &near, 50);
    eventually("the other to be the nearest", async || {
        client.pick().await.unwrap().instance != nearest
    })
    .await;
}

#[tokio::test]
async fn an_instance_beyond_the_hard_limit_is_not_used() {
    let world = World::with([limits(0, 20)]);
    let (far, near, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 21);
    far.runs(&spec(HELLO)).await;
    let target = client.pick().await.unwrap();
    assert_eq!(target.endpoint.peer, near.id());
    assert!(far.asked().is_empty(), "an allocator beyond the hard limit was asked");
    // It moves away: the known instance is as bad as an unknown one.
    world.distance(&client, &near, 22);
    let error = client.pick().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.public().contains("hard limit of 20ms"), "{error}");
}

#[tokio::test]
async fn requests_and_configuration_tighten_and_never_loosen() {
    let world = World::with([limits(0, 20)]);
    let config = Config { requirements: hard(10), ..Config::default() };
    let (allocator, client) = (world.allocator(), world.client_with(config));
    allocator.runs(&spec(HELLO)).await;
    let tightened = |ms| Wish { tighten: hard(ms), ..wish(HELLO) };
    world.distance(&client, &allocator, 8);
    assert!(client.manager.pick(wish(HELLO)).await.is_ok());
    assert!(client.manager.pick(tightened(7)).await.is_err());
    world.distance(&client, &allocator, 15);
    assert!(client.manager.pick(wish(HELLO)).await.is_err());
    assert!(client.manager.pick(tightened(1000)).await.is_err());
}

#[tokio::test]
async fn a_dead_hint_is_skipped_and_the_next_one_used() {
    let world = World::new();
    let (dead, alive, client) = (world.allocator(), world.allocator(), world.client());
    dead.runs(&spec(HELLO)).await;
    let running = alive.runs(&spec(HELLO)).await;
    world.network.take_down(dead.id());
    assert_eq!(client.pick().await.unwrap().instance, running);
    assert!(alive.asked().is_empty());
}

#[tokio::test]
async fn when_all_hints_are_dead_an_instance_is_allocated() {
    let world = World::new();
    let (dead, alive, client) = (world.allocator(), world.allocator(), world.client());
    dead.runs(&spec(HELLO)).await;
    world.network.take_down(dead.id());
    assert_eq!(client.pick().await.unwrap().endpoint.peer, alive.id());
    assert_eq!(alive.asked().len(), 1);
}

#[tokio::test]
async fn an_announced_peer_whose_instance_drains_is_no_hit() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let draining = allocator.runs(&spec(HELLO)).await;
    allocator.set(draining, InstanceState::Draining);
    assert_ne!(client.pick().await.unwrap().instance, draining);
    assert_eq!(allocator.asked().len(), 1);
}

#[tokio::test]
async fn a_refusal_leads_elsewhere() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let first = client.pick().await.unwrap();
    allocator.set(first.instance, InstanceState::Draining);
    client.manager.report(&first, Outcome::Refused(Refusal::Draining));
    let again = Wish { tried: vec![first.instance], ..wish(HELLO) };
    let second = client.manager.pick(again).await.unwrap();
    assert_ne!(second.instance, first.instance);
    assert_eq!(client.pick().await.unwrap().instance, second.instance);
}

#[tokio::test]
async fn an_overloaded_instance_is_kept_for_others_and_never_tried_twice() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let only = client.pick().await.unwrap();
    client.manager.report(&only, Outcome::Refused(Refusal::Overloaded));
    let again = Wish { tried: vec![only.instance], ..wish(HELLO) };
    let error = client.manager.pick(again).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.retry_delay().is_some());
    assert_eq!(allocator.instances().len(), 1, "this manager does not scale out");
    assert_eq!(client.pick().await.unwrap().instance, only.instance);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_peer_of_which_nothing_comes_any_more() {
    let world = World::new();
    let (gone, alive, client) = (world.allocator(), world.allocator(), world.client());
    gone.runs(&spec(HELLO)).await;
    world.network.cut_off(gone.id());
    let begun = tokio::time::Instant::now();
    assert_eq!(client.pick().await.unwrap().endpoint.peer, alive.id());
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_too_busy_to_be_asked_again_still_serves() {
    let world = World::new();
    let (busy, other, client) = (world.allocator(), world.allocator(), world.client());
    let running = busy.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    busy.becomes(Behaviour::Hangs);
    for _ in 0..90 {
        assert_eq!(client.pick().await.unwrap().instance, running);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(other.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_peer_too_busy_to_say_what_it_runs_of_one_service_still_serves_another() {
    let world = World::with([spec(HELLO), spec("more")]);
    let (busy, other, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &busy, 9);
    let running = busy.runs(&spec(HELLO)).await;
    busy.runs(&spec("more")).await;
    client.pick().await.unwrap();
    busy.becomes(Behaviour::Hangs);
    let more = client.manager.pick(wish("more")).await.unwrap();
    assert_eq!(more.endpoint.peer, other.id());
    let warm = client.pick().now_or_never().expect("a warm pick waits for nothing").unwrap();
    assert_eq!(warm.instance, running);
}

#[tokio::test]
async fn an_unreachable_peer_loses_its_instances_and_another_one_is_used() {
    let world = World::new();
    let (a, b, client) = (world.allocator(), world.allocator(), world.client());
    let target = client.pick().await.unwrap();
    world.network.take_down(target.endpoint.peer);
    client.manager.report(&target, Outcome::Unreachable);
    let other = if target.endpoint.peer == a.id() { b } else { a };
    assert_eq!(client.pick().await.unwrap().endpoint.peer, other.id());
}

#[tokio::test]
async fn a_known_instance_on_a_peer_that_fell_silent_is_not_waited_on() {
    let world = World::new();
    let (a, b, client) = (world.allocator(), world.allocator(), world.client());
    let first = client.pick().await.unwrap();
    world.network.take_down(first.endpoint.peer);
    let other = if first.endpoint.peer == a.id() { b } else { a };
    let second = client.pick().await.unwrap();
    assert_eq!(second.endpoint.peer, other.id());
    let warm = client.pick().now_or_never().expect("a warm pick waits for nothing").unwrap();
    assert_eq!(warm.instance, second.instance);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_keeps_breaking_off_comes_last() {
    let world = World::new();
    let (near, far, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 9);
    near.runs(&spec(HELLO)).await;
    let second = far.runs(&spec(HELLO)).await;
    eventually("both to be known", async || {
        let tried = vec![client.pick().await.unwrap().instance];
        let other = client.manager.pick(Wish { tried, ..wish(HELLO) }).await.is_ok();
        other && client.pick().await.unwrap().endpoint.peer == near.id()
    })
    .await;
    let first = client.pick().await.unwrap();
    (0..3).for_each(|_| client.manager.report(&first, Outcome::Broken));
    assert_eq!(client.pick().await.unwrap().instance, second);
    client.manager.report(&first, Outcome::Answered { load: Load::default(), way: None });
    eventually("it to be trusted again", async || {
        client.pick().await.unwrap().instance == first.instance
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn old_hints_are_refreshed_behind_the_request_that_uses_them() {
    let world = World::new();
    let (old, new, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &new, 5);
    let gone = old.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    old.set(gone, InstanceState::Stopped);
    let running = new.runs(&spec(HELLO)).await;
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(client.pick().await.unwrap().instance, gone, "nobody waits for a refresh");
    eventually("the refresh", async || client.pick().await.unwrap().instance == running).await;
    assert!(new.asked().is_empty());
}

#[tokio::test]
async fn without_leave_to_allocate_nothing_is_started() {
    let world = World::with([limits(0, 20)]);
    let (allocator, client) = (world.allocator(), world.client());
    let only_look = || Wish { allocate: false, ..wish(HELLO) };
    let error = client.manager.pick(only_look()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    allocator.runs(&spec(HELLO)).await;
    world.distance(&client, &allocator, 33);
    let error = client.manager.pick(only_look()).await.unwrap_err();
    assert!(error.public().contains("33.0ms away"), "{error}");
    world.distance(&client, &allocator, 3);
    client.manager.pick(only_look()).await.unwrap();
    assert!(allocator.asked().is_empty());
}

#[tokio::test]
async fn an_external_service_is_never_allocated() {
    let external = proto::ServiceSpec { artifact: String::new(), ..spec("printer") };
    let world = World::with([external.clone()]);
    let (allocator, client) = (world.allocator(), world.client());
    let error = client.manager.pick(wish("printer")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.public().contains("nobody represents printer"), "{error}");
    assert!(allocator.asked().is_empty());
    let represented = allocator.runs(&external).await;
    assert_eq!(client.manager.pick(wish("printer")).await.unwrap().instance, represented);
}

#[tokio::test]
async fn a_service_that_does_not_exist_is_not_found() {
    let world = World::new();
    let client = world.client();
    let error = client.manager.pick(wish("no-such-thing")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn an_allocators_own_manager_finds_its_own_instances() {
    let world = World::new();
    let allocator = world.allocator();
    let running = allocator.runs_quietly(&spec(HELLO), lca::InstanceId::random());
    let own = std::sync::Arc::new(allocator.peer.clone());
    let client = world.client_at(allocator.peer.clone(), own, Config::default());
    let target = client.pick().await.unwrap();
    assert_eq!((target.instance, target.endpoint.peer), (running, client.peer.local()));
    assert!(allocator.asked().is_empty());
}
