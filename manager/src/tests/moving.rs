//! Services that move to nearer instances, over the in-memory network and a clock that
//! only goes on when everybody waits.

use std::{sync::Arc, time::Duration};

use lca::{
    Requirements,
    api::proto::{self, allocate_request::Mode},
    discovery::{Discovery as _, Key},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::world::{Behaviour, Client, FakeAllocator, HELLO, World, hash_of, spec, wish};
use crate::{Outcome, Target, Wish, moving::Reason};

/// Between two requests of a client that uses a service.
const PAUSE: Duration = Duration::from_millis(100);

fn limits(soft: u32, hard: u32) -> proto::ServiceSpec {
    let requirements = proto::Requirements { soft_rtt_ms: soft, hard_rtt_ms: hard };
    proto::ServiceSpec { requirements: Some(requirements), ..spec(HELLO) }
}

/// One request after the other for so long, each answered at once; where they went.
async fn requests(client: &Client, seconds: f64) -> Vec<Target> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut targets = Vec::new();
    while Instant::now() < end {
        let target = client.pick().await.expect("no request fails");
        let answered = Outcome::Answered { load: Default::default(), way: None };
        client.manager.report(&target, answered);
        targets.push(target);
        sleep(PAUSE).await;
    }
    targets
}

fn reasons(client: &Client) -> Vec<Reason> {
    client.manager.moves(&HELLO.parse().unwrap()).iter().map(|one| one.reason).collect()
}

fn go_to(targets: &[Target], allocator: &FakeAllocator) -> usize {
    targets.iter().filter(|target| target.endpoint.peer == allocator.id()).count()
}

/// A client whose service runs where it was near, 1 ms away; the other allocator is at
/// 5 ms. Soft is 20 ms, hard 100 ms.
async fn settled() -> (World, Client, FakeAllocator, FakeAllocator) {
    let world = World::with([limits(20, 100)]);
    let (old, new, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &new, 5);
    let targets = requests(&client, 1.0).await;
    assert_eq!(go_to(&targets, &old), targets.len());
    (world, client, old, new)
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_too_far_moves_and_the_better_instance_is_kept() {
    let (world, client, old, new) = settled().await;
    world.distance(&client, &old, 30);
    let dwell = requests(&client, 1.9).await;
    assert_eq!(go_to(&dwell, &old), dwell.len(), "nobody leaves before the dwell time is over");
    assert!(new.asked().is_empty());
    requests(&client, 1.0).await;
    let later = requests(&client, 60.0).await;
    assert_eq!(go_to(&later, &new), later.len(), "all go to the one that was allocated");
    assert_eq!(new.asked().len(), 1, "one was enough");
    assert_eq!(new.asked()[0].mode(), Mode::Ensure);
    assert_eq!(old.asked().len(), 1, "only for the first request");
    assert_eq!(reasons(&client), [Reason::Soft]);
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn while_the_better_one_starts_the_old_one_answers() {
    let (world, client, old, _) = settled().await;
    let permits = Arc::new(Semaphore::new(0));
    let slow = world.allocator_that(Behaviour::Waits(permits.clone()));
    world.distance(&client, &slow, 2);
    world.distance(&client, &old, 30);
    let starting = requests(&client, 20.0).await;
    assert_eq!(go_to(&starting, &old), starting.len(), "make before break");
    assert_eq!(slow.asked().len(), 1, "asked once, however long it takes");
    permits.add_permits(1);
    requests(&client, 1.0).await;
    let later = requests(&client, 5.0).await;
    assert_eq!(go_to(&later, &slow), later.len());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn one_that_runs_within_soft_is_found_and_nothing_is_allocated() {
    let (world, client, old, new) = settled().await;
    let running = new.runs(&limits(20, 100)).await;
    world.distance(&client, &old, 30);
    requests(&client, 3.0).await;
    let later = requests(&client, 2.0).await;
    assert!(later.iter().all(|target| target.instance == running));
    assert!(new.asked().is_empty());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_allocated_beyond_soft_and_looks_get_rarer() {
    let (world, client, old, new) = settled().await;
    world.distance(&client, &old, 30);
    world.distance(&client, &new, 25);
    let looks = || world.network.finds(Key::Service(hash_of(&limits(20, 100))));
    let before = looks();
    let targets = requests(&client, 60.0).await;
    assert_eq!(go_to(&targets, &old), targets.len());
    assert!(new.asked().is_empty(), "an allocator beyond soft was asked only to move");
    // 2, 4, 8, 16 and 32 s apart, and the refreshes of what is known.
    assert!((4..=8).contains(&(looks() - before)), "{} looks", looks() - before);
    // It comes near: nobody waits for the rest of the back-off.
    world.distance(&client, &new, 3);
    requests(&client, 3.0).await;
    let later = requests(&client, 1.0).await;
    assert_eq!(go_to(&later, &new), later.len());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn an_allocator_that_refuses_is_asked_again_by_the_back_off_and_no_request_fails() {
    let (world, client, old, new) = settled().await;
    world.network.take_down(new.id());
    let full = world.allocator_that(Behaviour::full("8 of 8 instances"));
    world.distance(&client, &full, 2);
    world.distance(&client, &old, 30);
    let targets = requests(&client, 60.0).await;
    assert_eq!(go_to(&targets, &old), targets.len());
    assert!((3..=6).contains(&full.asked().len()), "{} calls", full.asked().len());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn a_home_that_is_too_slow_to_say_what_it_runs_still_serves() {
    let (world, client, old, new) = settled().await;
    old.peer.announce(Key::Service(hash_of(&limits(20, 100)))).await.unwrap();
    old.becomes(Behaviour::Hangs);
    world.distance(&client, &old, 30);
    world.distance(&client, &new, 25);
    let targets = requests(&client, 15.0).await;
    assert_eq!(go_to(&targets, &old), targets.len());
    assert!(new.asked().is_empty() && reasons(&client).is_empty());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn beyond_hard_the_next_request_goes_elsewhere() {
    let (world, client, old, new) = settled().await;
    let other = new.runs(&limits(20, 100)).await;
    // Both are known after a refresh.
    requests(&client, 35.0).await;
    world.distance(&client, &old, 101);
    assert_eq!(client.pick().await.unwrap().instance, other);
    assert_eq!(reasons(&client), [Reason::Hard]);
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn for_a_service_that_nobody_uses_nothing_is_looked_for() {
    let (world, client, old, new) = settled().await;
    sleep(Duration::from_secs(15)).await;
    world.distance(&client, &old, 30);
    let before = world.network.finds(Key::Service(hash_of(&limits(20, 100))));
    sleep(Duration::from_secs(300)).await;
    assert_eq!(world.network.finds(Key::Service(hash_of(&limits(20, 100)))), before);
    assert!(new.asked().is_empty());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_demands_more_moves_alone() {
    let (world, client, old, new) = settled().await;
    world.distance(&client, &old, 15);
    let soft = Some(Duration::from_millis(10));
    let demanding = || Wish { tighten: Requirements { soft, hard: None }, ..wish(HELLO) };
    for _ in 0..50 {
        client.manager.pick(demanding()).await.unwrap();
        sleep(PAUSE).await;
    }
    assert_eq!(client.manager.pick(demanding()).await.unwrap().endpoint.peer, new.id());
    assert_eq!(reasons(&client), [Reason::Soft]);
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn the_old_instance_is_left_alone() {
    let (world, client, old, new) = settled().await;
    world.distance(&client, &old, 30);
    requests(&client, 10.0).await;
    assert_eq!((old.instances().len(), new.instances().len()), (1, 1));
    // It comes back, and nobody runs back and forth.
    world.distance(&client, &old, 4);
    let later = requests(&client, 30.0).await;
    assert_eq!(go_to(&later, &new), later.len());
    assert_eq!(reasons(&client), [Reason::Soft]);
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn requests_under_way_spread_over_those_within_soft_and_not_beyond() {
    let world = World::with([limits(20, 100)]);
    let client = world.client();
    let mut near = Vec::new();
    for _ in 0..4 {
        let allocator = world.allocator();
        allocator.runs(&limits(20, 100)).await;
        world.distance(&client, &allocator, 4);
        near.push(allocator);
    }
    let far = world.allocator();
    far.runs(&limits(20, 100)).await;
    world.distance(&client, &far, 50);
    drop(client.pick().await.unwrap());
    sleep(Duration::from_secs(5)).await;
    let mut open = Vec::new();
    for _ in 0..400 {
        open.push(client.pick().await.unwrap());
    }
    assert_eq!(go_to(&open, &far), 0);
    for allocator in &near {
        let taken = go_to(&open, allocator);
        assert!((80..=120).contains(&taken), "one of four took {taken} of 400");
    }
    // What is dropped unreported is over all the same: a quiet client goes home.
    drop(open);
    let targets = requests(&client, 5.0).await;
    let home = targets[0].instance;
    assert!(targets.iter().all(|target| target.instance == home));
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn a_home_that_only_requests_find_too_far_is_left_by_allocating_elsewhere() {
    let (_world, client, old, new) = settled().await;
    let slow = Outcome::Answered { load: Default::default(), way: Some(Duration::from_millis(60)) };
    let mut moved = None;
    for n in 0..100 {
        let target = client.pick().await.unwrap();
        let is_old = target.endpoint.peer == old.id();
        let fast = Outcome::Answered { load: Default::default(), way: None };
        client.manager.report(&target, if is_old { slow } else { fast });
        moved = moved.or((!is_old).then_some(n));
        sleep(PAUSE).await;
    }
    // Three seconds to believe it, two to dwell on it, and a start.
    assert!(moved.is_some_and(|n| n < 70), "{moved:?}");
    assert_eq!((old.asked().len(), new.asked().len()), (1, 1), "the old one is not asked again");
    assert_eq!(reasons(&client), [Reason::Soft]);
}
