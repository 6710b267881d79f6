//! An allocator that does not answer within its own promise: the next is asked, and what
//! comes second is released.

use std::time::Duration;

use lca::{
    Kind, RequestId, Result,
    api::{self, proto::InstanceState},
    testing::{counted, eventually},
};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::world::{Behaviour, Client, FakeAllocator, HELLO, World, spec, wish};
use crate::{Target, Wish, manager::Wait};

/// The start time-out of a spec that says nothing, and what is allowed besides.
const PROMISE: Duration = Duration::from_secs(13);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Allocators that have the program and take so many seconds, the first to be asked first.
fn allocators(world: &World, client: &Client, takes: &[u64]) -> Vec<FakeAllocator> {
    let takes = takes.iter().enumerate();
    let all = takes.map(|(n, takes)| {
        let one = world.allocator_that(Behaviour::Takes(secs(*takes)));
        one.has(&spec(HELLO));
        world.distance(client, &one, 1 + 10 * n as u64);
        one
    });
    all.collect()
}

async fn pick(client: &Client) -> Result<Target> {
    let deadline = Instant::now() + api::MAX_CALL * 2;
    client.manager.pick(Wish { deadline, ..wish(HELLO) }).await
}

fn states(one: &FakeAllocator) -> Vec<InstanceState> {
    one.instances().iter().map(|instance| instance.state()).collect()
}

fn count(client: &Client, family: &str, outcome: &str) -> f64 {
    let series = format!(r#"{family}{{outcome="{outcome}"}}"#);
    counted(client.manager.metrics(), &series)
}

async fn comes_to(client: &Client, outcome: &str) {
    eventually(outcome, async || count(client, "lca_surplus_instances_total", outcome) == 1.0)
        .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_broken_promise_the_next_is_asked_and_what_comes_second_is_released() {
    let world = World::new();
    let client = world.client();
    let all = allocators(&world, &client, &[40, 1, 1]);
    let begun = Instant::now();
    let target = pick(&client).await.unwrap();
    assert!((PROMISE..PROMISE + secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(target.endpoint.peer, all[1].id());
    let steps: Vec<_> = target.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["spec", "find", "allocate", "allocate"]);
    let late = format!("{}: not within its promise of 13", all[0].id().short());
    assert!(target.steps[2].detail.starts_with(&late), "{}", target.steps[2].detail);
    assert_eq!(states(&all[0]), [InstanceState::Starting], "it is heard out");
    sleep(secs(25)).await;
    comes_to(&client, "released").await;
    assert_eq!(states(&all[0]), [InstanceState::Stopped]);
    assert_eq!(states(&all[1]), [InstanceState::Ready]);
    assert!(all[2].asked().is_empty());
    assert_eq!(count(&client, "lca_hedged_starts_total", "second"), 1.0);
    assert_eq!(client.manager.inner.flights.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_late_one_is_used_if_it_is_ready_first_all_the_same() {
    let world = World::new();
    let client = world.client();
    let all = allocators(&world, &client, &[16, 9]);
    let id: RequestId = "mine".parse().unwrap();
    let another = async || {
        let wish = Wish { deadline: Instant::now() + api::MAX_CALL, ..wish(HELLO) };
        let mut wait: Wait = client.manager.another(&wish, id.clone()).await.unwrap();
        wait.end(&wish).await.unwrap()
    };
    assert_eq!(another().await.endpoint.peer, all[0].id());
    assert_eq!(all[1].asked().len(), 1);
    comes_to(&client, "released").await;
    assert_eq!(states(&all[1]), [InstanceState::Stopped]);
    assert_eq!(count(&client, "lca_hedged_starts_total", "first"), 1.0);
    // The same call again goes to who has started it, not to whom was asked last.
    another().await;
    assert_eq!((all[0].asked().len(), all[1].asked().len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_has_to_fetch_is_given_the_time_and_one_that_says_nothing_is_not() {
    let world = World::new();
    let client = world.client();
    let fetches = world.allocator_that(Behaviour::Takes(PROMISE * 3));
    let other = world.allocator();
    world.distance(&client, &other, 40);
    assert_eq!(pick(&client).await.unwrap().endpoint.peer, fetches.id());
    assert!(other.asked().is_empty());

    let world = World::new();
    let client = world.client();
    let hangs = world.allocator_that(Behaviour::Hangs);
    let other = world.allocator();
    world.distance(&client, &other, 40);
    let begun = Instant::now();
    assert_eq!(pick(&client).await.unwrap().endpoint.peer, other.id());
    assert_eq!(hangs.asked().len(), 1);
    // Before it is asked, who may have begun one is: this one does not say that either.
    assert!(begun.elapsed() < PROMISE + secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn with_leave_for_one_nobody_else_is_asked() {
    let limited = lca::api::proto::ServiceSpec { max_instances: 1, ..spec(HELLO) };
    let world = World::with([limited]);
    let client = world.client();
    let all = allocators(&world, &client, &[100, 1]);
    assert_eq!(pick(&client).await.unwrap().endpoint.peer, all[0].id());
    assert!(all[1].asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn never_are_three_at_it_and_in_the_end_it_is_said_that_nobody_answered() {
    let world = World::new();
    let client = world.client();
    let all = allocators(&world, &client, &[1000, 1000, 1]);
    let begun = Instant::now();
    let error = pick(&client).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    assert!(error.public().contains("did not answer within"), "{error}");
    assert!(error.retry_delay().is_some());
    assert!(begun.elapsed() > api::MAX_FETCH + secs(10), "{:?}", begun.elapsed());
    assert_eq!(all.iter().map(|one| one.asked().len()).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(count(&client, "lca_hedged_starts_total", "neither"), 1.0);
    // Of what they may start yet one is kept.
    comes_to(&client, "kept").await;
    comes_to(&client, "released").await;
    let left = all.iter().flat_map(states).filter(|state| *state == InstanceState::Starting);
    assert_eq!(left.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_fails_at_the_second_is_waited_for_at_the_first() {
    let world = World::new();
    let client = world.client();
    let all = allocators(&world, &client, &[20, 1, 1]);
    let failed = lca::Error::new(Kind::StartFailed, "hello exited with status 3");
    all[1].becomes(Behaviour::Refuses(failed));
    assert_eq!(pick(&client).await.unwrap().endpoint.peer, all[0].id());
    assert!(all[2].asked().is_empty(), "it would fail there, too");
}

#[tokio::test(start_paused = true)]
async fn what_comes_second_and_is_used_by_then_is_left_to_idle_out() {
    let world = World::new();
    let client = world.client();
    let all = allocators(&world, &client, &[40, 1]);
    pick(&client).await.unwrap();
    all[0].is_used(1);
    sleep(secs(30)).await;
    comes_to(&client, "used").await;
    assert_eq!(states(&all[0]), [InstanceState::Ready]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_second_is_released_though_its_allocator_cannot_be_reached_for_a_while() {
    let world = World::new();
    let client = world.client();
    let all = allocators(&world, &client, &[40, 1]);
    pick(&client).await.unwrap();
    world.network.take_down(all[0].id());
    sleep(secs(60)).await;
    assert_eq!(states(&all[0]), [InstanceState::Ready]);
    world.network.bring_up(all[0].id());
    comes_to(&client, "released").await;
    assert_eq!(states(&all[0]), [InstanceState::Stopped]);
}

/// The first of two falls silent while it starts one: the other is asked at once, and what the
/// first has ready by the time it is heard of again is released.
async fn the_first_falls_silent(world: World) {
    let client = world.client();
    let all = allocators(&world, &client, &[40, 1, 1]);
    let manager = client.manager.clone();
    let wish = Wish { deadline: Instant::now() + api::MAX_CALL, ..wish(HELLO) };
    let picked = tokio::spawn(async move { manager.pick(wish).await });
    eventually("the first to be asked", async || all[0].asked().len() == 1).await;
    world.network.take_down(all[0].id());
    let silent = Instant::now();
    let target = picked.await.unwrap().unwrap();
    assert_eq!(target.endpoint.peer, all[1].id());
    assert!(silent.elapsed() < secs(8), "{:?}", silent.elapsed());
    sleep(secs(60)).await;
    assert_eq!(states(&all[0]), [InstanceState::Ready]);
    world.network.bring_up(all[0].id());
    comes_to(&client, "released").await;
    assert_eq!(states(&all[0]), [InstanceState::Stopped]);
    assert_eq!(states(&all[1]), [InstanceState::Ready]);
    assert!(all[2].asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_one_that_fell_silent_has_started_is_released_when_it_is_back() {
    the_first_falls_silent(World::new()).await;
    // With leave for one it is one more than there may be.
    let limited = lca::api::proto::ServiceSpec { max_instances: 1, ..spec(HELLO) };
    the_first_falls_silent(World::with([limited])).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn never_more_than_two_run_for_one_flight_and_exactly_one_remains(
        takes in proptest::collection::vec(1u64..120, 1..5), refuses in proptest::collection::vec(any::<bool>(), 4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let client = world.client();
            let all = allocators(&world, &client, &takes);
            for (one, _) in all.iter().zip(&refuses).filter(|(_, refuses)| **refuses) {
                one.becomes(Behaviour::full("out of memory"));
            }
            let live = |state: &InstanceState| *state != InstanceState::Stopped;
            let running = || all.iter().flat_map(states).filter(live).count();
            let watching = async {
                let mut most = 0;
                for _ in 0..3000 {
                    most = most.max(running());
                    sleep(Duration::from_millis(100)).await;
                }
                most
            };
            let (picked, most) = tokio::join!(pick(&client), watching);
            assert!(most <= 2, "{most} ran");
            assert_eq!(running(), usize::from(picked.is_ok()));
            let somebody_would = refuses.iter().zip(&all).any(|(refuses, _)| !refuses);
            assert_eq!(picked.is_ok(), somebody_would);
            if let Ok(target) = picked {
                let at = all.iter().find(|one| one.id() == target.endpoint.peer).unwrap();
                assert_eq!(states(at), [InstanceState::Ready]);
            }
        });
    }
}
