//! Whom requests are sent to after some have failed, when distances change, and when the
//! registry is gone.

use std::time::Duration;

use futures::FutureExt as _;
use lca::{
    InstanceId, Kind,
    api::proto::{self, allocate_request::Mode},
    discovery::Discovery as _,
    headers::{Load, Refusal},
    testing::{counted, eventually},
};
use tokio::time::{advance, sleep};

use super::world::{Behaviour, Client, FakeAllocator, HELLO, World, spec, wish};
use crate::{Outcome, Target, Wish};

const SECOND: Duration = Duration::from_secs(1);

fn answered_after(ms: u64) -> Outcome {
    Outcome::Answered { load: Load::default(), way: Some(Duration::from_millis(ms)) }
}

impl Client {
    /// Where a request goes at once.
    fn warm(&self) -> Target {
        self.warm_with(wish(HELLO))
    }

    fn warm_with(&self, wish: Wish) -> Target {
        self.manager.pick(wish).now_or_never().expect("a warm pick waits for nothing").unwrap()
    }
}

/// A client that uses an instance near by and knows one 9 ms away.
async fn near_and_far(world: &World) -> (Client, [FakeAllocator; 2], [InstanceId; 2]) {
    let (near, far, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 9);
    let home = near.runs(&spec(HELLO)).await;
    assert_eq!(client.pick().await.unwrap().instance, home);
    let other = far.runs(&spec(HELLO)).await;
    let elsewhere = Wish { tried: vec![home], ..wish(HELLO) };
    assert_eq!(client.manager.pick(elsewhere).await.unwrap().instance, other);
    (client, [near, far], [home, other])
}

#[tokio::test(start_paused = true)]
async fn one_request_at_a_time_finds_out_whether_one_that_failed_works_again() {
    let world = World::new();
    let (client, _peers, [near, far]) = near_and_far(&world).await;
    let failing = client.warm();
    (0..3).for_each(|_| client.manager.report(&failing, Outcome::Broken));
    for _ in 0..10 {
        assert_eq!(client.warm().instance, far, "it is ejected");
    }
    advance(SECOND).await;
    let unrepeatable = Wish { repeatable: false, ..wish(HELLO) };
    assert_eq!(client.warm_with(unrepeatable).instance, far, "it might be lost there");
    let trial = client.warm();
    assert_eq!(trial.instance, near, "its second is over");
    for _ in 0..10 {
        assert_eq!(client.warm().instance, far, "one is under way");
    }
    client.manager.report(&trial, Outcome::Broken);
    advance(SECOND).await;
    assert_eq!(client.warm().instance, far, "two seconds this time");
    advance(SECOND).await;
    for _ in 0..3 {
        let trial = client.warm();
        assert_eq!((trial.instance, client.warm().instance), (near, far));
        client.manager.report(&trial, answered_after(1));
    }
    advance(SECOND * 2).await;
    for _ in 0..10 {
        assert_eq!(client.warm().instance, near, "it is reliable again, and worth a move");
    }
}

#[tokio::test(start_paused = true)]
async fn the_one_let_through_may_be_refused_or_vanish_without_shutting_the_gate() {
    let world = World::new();
    let (client, _peers, [near, far]) = near_and_far(&world).await;
    let failing = client.warm();
    client.manager.report(&failing, Outcome::Broken);
    let trial = client.warm();
    assert_eq!((trial.instance, client.warm().instance), (near, far));
    client.manager.report(&trial, Outcome::Refused(Refusal::Overloaded));
    assert_eq!((client.warm().instance, client.warm().instance), (near, far));
    advance(SECOND * 10).await;
    assert_eq!(client.warm().instance, near, "its client never said what became of it");
}

#[tokio::test(start_paused = true)]
async fn an_ejected_instance_is_used_while_there_is_no_other_and_another_is_looked_for() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let only = allocator.runs(&spec(HELLO)).await;
    allocator.becomes(Behaviour::full("out of memory"));
    let target = client.pick().await.unwrap();
    (0..3).for_each(|_| client.manager.report(&target, Outcome::Broken));
    assert_eq!(client.warm().instance, only);
    let other = world.allocator().runs(&spec(HELLO)).await;
    advance(SECOND).await;
    client.manager.report(&target, Outcome::Broken);
    eventually("the other to be found", async || client.warm().instance == other).await;
}

/// What is told of one counter.
fn replaced(client: &Client, outcome: &str) -> f64 {
    let series = format!(r#"lca_replacements_total{{outcome="{outcome}"}}"#);
    counted(client.manager.metrics(), &series)
}

#[tokio::test(start_paused = true)]
async fn a_sole_instance_that_hangs_is_replaced_behind_the_requests() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let hangs = allocator.runs(&spec(HELLO)).await;
    let target = client.pick().await.unwrap();
    (0..2).for_each(|_| client.manager.report(&target, Outcome::Broken));
    assert_eq!(client.warm().instance, hangs);
    sleep(SECOND * 5).await;
    assert!(allocator.asked().is_empty(), "it is on probation, no more");
    client.manager.report(&target, Outcome::Broken);
    sleep(SECOND * 5).await;
    assert!(allocator.asked().is_empty(), "nobody wants it");
    for _ in 0..10 {
        assert_eq!(client.warm().instance, hangs, "nobody waits, and there is no other yet");
    }
    eventually("another one", async || {
        let target = client.warm();
        let outcome = if target.instance == hangs { Outcome::Broken } else { answered_after(1) };
        client.manager.report(&target, outcome);
        target.instance != hangs
    })
    .await;
    let asked = allocator.asked();
    assert_eq!((asked.len(), asked[0].mode()), (1, Mode::New));
    assert!(!allocator.claimed().is_empty(), "so that one of many managers starts it");
    assert_eq!(replaced(&client, "started"), 1.0);
    for _ in 0..100 {
        let target = client.warm();
        let outcome = if target.instance == hangs { Outcome::Broken } else { answered_after(1) };
        client.manager.report(&target, outcome);
        sleep(SECOND).await;
    }
    assert_eq!(allocator.asked().len(), 1, "the new one answers");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_always_hangs_is_started_ever_more_rarely() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    allocator.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    for _ in 0..600 {
        (0..3).for_each(|_| client.manager.report(&client.warm(), Outcome::Broken));
        sleep(SECOND).await;
    }
    let starts = allocator.asked().len();
    assert!((8..20).contains(&starts), "{starts} in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn where_there_are_as_many_as_there_may_be_what_hangs_is_not_replaced() {
    let limited = proto::ServiceSpec { max_instances: 1, ..spec(HELLO) };
    let world = World::with([limited.clone()]);
    let (allocator, client) = (world.allocator(), world.client());
    let hangs = allocator.runs(&limited).await;
    let there =
        proto::ClaimedInstance { instance: hangs.to_string(), peer: allocator.id().to_string() };
    let taken = proto::ClaimResponse { instances: vec![there], ..Default::default() };
    allocator.says_taken(Some(taken));
    let target = client.pick().await.unwrap();
    for _ in 0..30 {
        (0..3).for_each(|_| client.manager.report(&target, Outcome::Broken));
        assert_eq!(client.warm().instance, hangs);
        sleep(SECOND).await;
    }
    assert!(allocator.asked().is_empty());
    assert!(replaced(&client, "taken") >= 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_gone_changes_nothing_for_peers_that_work() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let running = allocator.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    world.network.take_down(world.registry_peer.local());
    for second in 0..600 {
        advance(SECOND).await;
        let target = client.pick().await.unwrap();
        assert_eq!(target.instance, running, "after {second} s");
        client.manager.report(&target, answered_after(1));
        assert!(!client.warm().endpoint.mesh.is_empty());
    }
    assert!(allocator.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_probes_better_than_requests_is_ranked_by_the_requests() {
    let world = World::new();
    let (client, [liar, _], [near, far]) = near_and_far(&world).await;
    let target = client.warm();
    for second in 0..3 {
        assert_eq!(client.warm().instance, near, "after {second} s");
        client.manager.report(&target, answered_after(80));
        client.manager.report(&target, answered_after(60));
        advance(SECOND).await;
    }
    assert_eq!(client.warm().instance, far, "its requests take 60 ms and more");
    // Nobody is cut off for it: where nothing else is within reach, it is used.
    let tried = vec![far];
    assert_eq!(client.warm_with(Wish { tried, ..wish(HELLO) }).endpoint.peer, liar.id());
    advance(SECOND * 30).await;
    assert_eq!(client.warm().instance, near, "it is given another chance");
}

#[tokio::test(start_paused = true)]
async fn requests_leave_a_peer_that_lies_about_its_distance_for_one_started_within_soft() {
    let requirements = proto::Requirements { soft_rtt_ms: 20, hard_rtt_ms: 0 };
    let spec = proto::ServiceSpec { requirements: Some(requirements), ..spec(HELLO) };
    let world = World::with([spec.clone()]);
    let (liar, honest, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &liar, 1);
    world.distance(&client, &honest, 5);
    let first = liar.runs(&spec).await;
    assert_eq!(client.pick().await.unwrap().instance, first);
    let mut seconds = 0;
    let left = loop {
        let target = client.warm();
        if target.instance != first {
            break target;
        }
        assert!(seconds < 20, "requests stay with the liar");
        client.manager.report(&target, answered_after(80));
        advance(SECOND).await;
        seconds += 1;
    };
    assert_eq!(left.endpoint.peer, honest.id());
    assert_eq!((liar.asked().len(), honest.asked().len()), (0, 1), "after {seconds} s");
    // What it says counts again after a while; then it is found out again.
    let mut with_the_liar = 0;
    for _ in 0..180 {
        let target = client.warm();
        let lied_to = target.instance == first;
        with_the_liar += usize::from(lied_to);
        client.manager.report(&target, answered_after(if lied_to { 80 } else { 6 }));
        advance(SECOND).await;
    }
    assert!(with_the_liar <= 30, "{with_the_liar} of 180 requests");
    assert_eq!((liar.asked().len(), honest.asked().len()), (0, 1), "one was enough");
}

#[tokio::test]
async fn beyond_hard_the_next_request_goes_elsewhere_and_with_nobody_near_the_nearest_is_named() {
    let requirements = proto::Requirements { soft_rtt_ms: 0, hard_rtt_ms: 20 };
    let world =
        World::with([proto::ServiceSpec { requirements: Some(requirements), ..spec(HELLO) }]);
    let (a, b, client) = (world.allocator(), world.allocator(), world.client());
    let first = client.pick().await.unwrap();
    let (used, other) = if first.endpoint.peer == a.id() { (&a, &b) } else { (&b, &a) };
    world.distance(&client, used, 35);
    let second = client.pick().await.unwrap();
    assert_eq!(second.endpoint.peer, other.id());
    world.distance(&client, other, 41);
    let error = client.pick().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(error.to_problem("").status().as_u16(), 503);
    let nearest = format!("{}: 35.0ms away, the nearest beyond", used.id().short());
    assert!(error.public().contains(&nearest), "{error}");
    assert!(error.public().contains("hard limit of 20ms"), "{error}");
    assert_eq!((a.asked().len(), b.asked().len()), (1, 1), "nobody too far was asked");
    world.distance(&client, other, 19);
    assert_eq!(client.warm().instance, second.instance, "within it, it is used at once");
}
