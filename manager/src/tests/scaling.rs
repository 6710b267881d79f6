//! More instances for more requests, and none to spare, over the in-memory network and a
//! clock that only goes on when everybody waits.

use std::{collections::HashSet, time::Duration};

use lca::{
    Error, InstanceId, Kind,
    api::proto::{self, allocate_request::Mode},
    testing::counted,
};
use tokio::time::{Instant, sleep};

use super::world::{Behaviour, Client, FakeAllocator, HELLO, World, spec};
use crate::{Outcome, Target};

/// Between two rounds of requests.
const PAUSE: Duration = Duration::from_millis(100);

fn with_target(target: u32, max: u32) -> proto::ServiceSpec {
    proto::ServiceSpec { target_concurrency: target, max_instances: max, ..spec(HELLO) }
}

/// Keeps so many requests under way for so long, each for a while; where the last went.
async fn load(client: &Client, at_once: usize, seconds: f64) -> HashSet<InstanceId> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut under_way: Vec<Target> = Vec::new();
    let mut went = HashSet::new();
    while Instant::now() < end {
        under_way.drain(..under_way.len().min(at_once / 2 + 1)).for_each(|target| {
            let answered = Outcome::Answered { load: Default::default(), way: None };
            client.manager.report(&target, answered);
        });
        went.clear();
        while under_way.len() < at_once {
            under_way.push(client.pick().await.expect("no request fails"));
        }
        went.extend(under_way.iter().map(|target| target.instance));
        sleep(PAUSE).await;
    }
    went
}

fn scaled_out(client: &Client, outcome: &str) -> f64 {
    let series = format!(r#"lca_scale_out_total{{outcome="{outcome}"}}"#);
    counted(client.manager.metrics(), &series)
}

fn new_ones(allocator: &FakeAllocator) -> usize {
    allocator.asked().iter().filter(|asked| asked.mode() == Mode::New).count()
}

#[tokio::test(start_paused = true)]
async fn more_requests_than_the_target_for_long_enough_get_a_second_instance() {
    let world = World::with([with_target(4, 0)]);
    let (allocator, client) = (world.allocator(), world.client());
    load(&client, 4, 10.0).await;
    assert_eq!(allocator.instances().len(), 1, "as many as it shall have");
    load(&client, 7, 2.0).await;
    assert_eq!(allocator.instances().len(), 1, "not long enough");
    load(&client, 7, 3.0).await;
    assert_eq!((allocator.instances().len(), new_ones(&allocator)), (2, 1));
    assert_eq!(load(&client, 7, 30.0).await.len(), 2, "both are used");
    assert_eq!(allocator.instances().len(), 2, "and two are enough");
    assert_eq!(scaled_out(&client, "started"), 1.0);
    // Less, and one of them gets no request any more: it idles out.
    load(&client, 2, 12.0).await;
    let one = load(&client, 2, 1.0).await;
    assert_eq!(one.len(), 1);
    for _ in 0..20 {
        assert_eq!(load(&client, 3, 0.3).await, one, "always the same");
    }
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn without_a_target_nothing_is_started_and_all_there_are_are_used() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    allocator.runs(&spec(HELLO)).await;
    allocator.runs(&spec(HELLO)).await;
    assert_eq!(load(&client, 40, 20.0).await.len(), 2);
    assert_eq!(allocator.instances().len(), 2);
    assert!(allocator.asked().is_empty());
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn never_more_than_there_may_be_and_what_is_too_many_is_left_alone() {
    let spec = with_target(1, 2);
    let world = World::with([spec.clone()]);
    let (allocator, other, client) = (world.allocator(), world.allocator(), world.client());
    load(&client, 20, 30.0).await;
    assert_eq!(allocator.instances().len() + other.instances().len(), 2);
    // While it was cut off, somebody else has started two.
    other.runs(&spec).await;
    other.runs(&spec).await;
    load(&client, 20, 60.0).await;
    assert_eq!(load(&client, 20, 5.0).await.len(), 2, "two of the four are used");
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn one_that_somebody_else_has_started_is_used_and_none_is_added() {
    let spec = with_target(4, 0);
    let world = World::with([spec.clone()]);
    let (allocator, other, client) = (world.allocator(), world.allocator(), world.client());
    load(&client, 2, 1.0).await;
    other.runs(&spec).await;
    assert_eq!(load(&client, 7, 8.0).await.len(), 2);
    assert_eq!(new_ones(&allocator) + new_ones(&other), 0);
    assert_eq!(scaled_out(&client, "taken"), 1.0);
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_has_room_requests_go_on_and_tries_get_rare() {
    let world = World::with([with_target(1, 0)]);
    let full = world.allocator_that(Behaviour::Refuses(Error::new(Kind::NoCapacity, "full")));
    let client = world.client();
    full.runs(&with_target(1, 0)).await;
    load(&client, 9, 70.0).await;
    let asked = full.asked().len();
    assert!((4..=7).contains(&asked), "asked {asked} times");
    assert_eq!(scaled_out(&client, "refused"), asked as f64);
    assert!(world.drain().await);
}

#[tokio::test(start_paused = true)]
async fn leave_is_asked_for_as_many_as_there_are_and_one_more() {
    let world = World::with([with_target(4, 0)]);
    let (allocator, client) = (world.allocator(), world.client());
    load(&client, 1, 1.0).await;
    // Another manager has seen the same and was first.
    let taken = proto::ClaimResponse { granted: false, claims: 1, ..Default::default() };
    allocator.says_taken(Some(taken));
    load(&client, 7, 10.0).await;
    assert_eq!((new_ones(&allocator), scaled_out(&client, "taken")), (0, 1.0));
    assert_eq!(allocator.claimed()[0].limit, 2);
    // It did not come to anything.
    allocator.says_taken(None);
    load(&client, 7, 20.0).await;
    assert_eq!((new_ones(&allocator), scaled_out(&client, "started")), (1, 1.0));
    assert!(allocator.claimed().iter().any(|claim| !claim.instance.is_empty()), "it is counted");
    assert!(world.drain().await);
}
