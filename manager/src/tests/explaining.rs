//! What a person is told of the policy: the same as what requests then do.

use std::time::Duration;

use lca::{
    Error, InstanceId, Kind, Requirements,
    api::proto::{
        self, ExplainRequest, ExplainResponse, InstanceState, considered_instance::Verdict,
        manager_client::ManagerClient, outlook::Action,
    },
    discovery::{Discovery as _, Key},
    endpoint::Role,
    mesh::Mesh as _,
    testing::eventually,
};
use tokio::time::Instant;

use super::world::{Behaviour, Client, HELLO, World, hash_of, spec, wish};
use crate::{Config, Wish};

async fn explain(world: &World, client: &Client, service: &str) -> Result<ExplainResponse, Error> {
    client.peer.serve(client.manager.local_routes());
    let channel = world.network.join(&[]).grpc(&client.peer.own()).await.unwrap();
    let request = ExplainRequest { service: service.to_owned() };
    Ok(ManagerClient::new(channel).explain(request).await?.into_inner())
}

fn limits(soft: u32, hard: u32) -> proto::ServiceSpec {
    let requirements = proto::Requirements { soft_rtt_ms: soft, hard_rtt_ms: hard };
    proto::ServiceSpec { requirements: Some(requirements), ..spec(HELLO) }
}

fn verdicts(told: &ExplainResponse) -> Vec<(String, Verdict)> {
    told.instances.iter().map(|one| (one.instance.clone().unwrap().id, one.verdict())).collect()
}

#[tokio::test]
async fn each_instance_has_its_verdict_and_a_request_does_what_was_told() {
    let hello = limits(0, 20);
    let world = World::with([hello.clone()]);
    let [near, middle, far] = [0, 1, 2].map(|_| world.allocator());
    let client = world.client();
    for (allocator, ms) in [(&near, 1), (&middle, 5), (&far, 30)] {
        world.distance(&client, allocator, ms);
    }
    let ids = [near.runs(&hello).await, middle.runs(&hello).await, far.runs(&hello).await];
    let starting = near.runs_quietly(&hello, InstanceId::random());
    near.set(starting, InstanceState::Starting);
    let old = proto::ServiceSpec { arguments: vec!["--old".into()], ..hello.clone() };
    let old = near.runs_quietly(&old, InstanceId::random());

    let told = explain(&world, &client, HELLO).await.unwrap();
    let expected = [
        (ids[0], Verdict::Chosen),
        (ids[1], Verdict::Usable),
        (ids[2], Verdict::BeyondHard),
        (starting, Verdict::NotReady),
        (old, Verdict::OtherVersion),
    ];
    assert_eq!(verdicts(&told), expected.map(|(id, verdict)| (id.to_string(), verdict)));
    assert!(told.instances[2].reason.contains("beyond the hard limit of 20.0 ms"), "{told:?}");
    let outlook = told.outlook.unwrap();
    assert_eq!((outlook.action(), outlook.instance), (Action::Use, ids[0].to_string()));
    assert!(told.instances.iter().all(|one| !one.known), "nobody has asked before");
    assert!(near.asked().is_empty() && middle.asked().is_empty(), "nothing was started");

    // The first request takes whichever answers first; from then on they are known.
    client.pick().await.unwrap();
    eventually("the chosen one to be used", async || {
        let told = explain(&world, &client, HELLO).await.unwrap();
        let used = client.pick().await.unwrap().instance.to_string();
        told.instances[0].known && told.outlook.unwrap().instance == used
    })
    .await;
}

#[tokio::test]
async fn an_instance_is_not_chosen_that_its_allocator_has_no_more() {
    let hello = limits(0, 20);
    let world = World::with([hello.clone()]);
    let near = world.allocator();
    let client = world.client();
    let gone = near.runs(&hello).await;
    assert_eq!(client.pick().await.unwrap().instance, gone);
    near.loses_all();
    near.peer.withdraw(Key::Service(hash_of(&hello))).await.unwrap();

    let told = explain(&world, &client, HELLO).await.unwrap();
    assert_eq!(verdicts(&told), [(gone.to_string(), Verdict::NotReady)]);
    assert_eq!(told.outlook.unwrap().action(), Action::Allocate);
}

#[tokio::test]
async fn what_would_be_allocated_where_is_what_is_then_allocated() {
    let world = World::with([limits(10, 50)]);
    let [near, full, far] = [0, 1, 2].map(|_| world.allocator());
    let client = world.client();
    for (allocator, ms) in [(&near, 8), (&full, 1), (&far, 60)] {
        world.distance(&client, allocator, ms);
    }
    for _ in 0..8 {
        full.runs_quietly(&spec("other"), InstanceId::random());
    }
    let told = explain(&world, &client, HELLO).await.unwrap();
    let order: Vec<_> = told
        .allocators
        .iter()
        .map(|one| (one.peer.clone(), one.rank, one.has_room, one.bucket_us / 1000))
        .collect();
    let expected = [(full.id(), 1, false, 2), (near.id(), 2, true, 10), (far.id(), 0, true, 100)];
    assert_eq!(order, expected.map(|(id, rank, room, end)| (id.to_string(), rank, room, end)));
    assert!(told.allocators[0].reason.contains("all 8 places are taken"), "{told:?}");
    assert!(told.allocators[2].reason.contains("beyond the hard limit of 50.0 ms"), "{told:?}");
    let outlook = told.outlook.unwrap();
    assert_eq!((outlook.action(), outlook.peer), (Action::Allocate, near.id().to_string()));
    let asked = [&near, &full, &far].map(|allocator| allocator.asked().len());
    assert_eq!(asked, [0; 3], "nothing was started");
}

#[tokio::test]
async fn the_limits_in_force_say_where_they_come_from() {
    let world = World::with([limits(100, 200)]);
    let node = Requirements { soft: None, hard: Some(Duration::from_millis(20)) };
    let client = world.client_with(Config { requirements: node, ..Config::default() });
    let told = explain(&world, &client, HELLO).await.unwrap();
    let told = told.requirements.unwrap();
    let ms = |soft_rtt_ms, hard_rtt_ms| Some(proto::Requirements { soft_rtt_ms, hard_rtt_ms });
    assert_eq!((told.service, told.node, told.in_force), (ms(100, 200), ms(0, 20), ms(20, 20)));
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let external = proto::ServiceSpec { artifact: String::new(), ..spec("external") };
    let world = World::with([limits(0, 20), external]);
    let client = world.client();
    let refusal = async |service| {
        let outlook = explain(&world, &client, service).await.unwrap().outlook.unwrap();
        assert_eq!(outlook.action(), Action::Refuse);
        outlook.reason
    };
    assert!(refusal(HELLO).await.contains("no allocator is known"));
    let far = world.allocator();
    world.distance(&client, &far, 30);
    assert!(refusal(HELLO).await.contains("within the hard limit of 20.0 ms"));
    world.distance(&client, &far, 3);
    for _ in 0..8 {
        far.runs_quietly(&spec("other"), InstanceId::random());
    }
    assert!(refusal(HELLO).await.contains("has room"));
    assert!(refusal("external").await.contains("external service"));
    let unknown = explain(&world, &client, "unknown").await.unwrap_err();
    assert_eq!(unknown.kind(), Kind::NotFound);
}

#[tokio::test]
async fn one_that_represents_an_external_service_is_found_and_used() {
    let external = proto::ServiceSpec { artifact: String::new(), ..spec("external") };
    let world = World::with([external.clone()]);
    let (proxy, client) = (world.allocator(), world.client());
    let id = proxy.runs(&external).await;
    let told = explain(&world, &client, "external").await.unwrap();
    assert_eq!(verdicts(&told), [(id.to_string(), Verdict::Chosen)]);
    assert!(told.allocators.is_empty());
}

#[tokio::test]
async fn dead_and_hung_peers_are_named_and_hold_nobody_up() {
    let world = World::new();
    let well = world.allocator();
    let dead = world.allocator();
    world.network.take_down(dead.id());
    // Announced, connected, and silent.
    let silent = world.network.join(&[Role::Allocator]);
    silent.announce(Key::Service(hash_of(&spec(HELLO)))).await.unwrap();
    let hung = world.allocator_that(Behaviour::Hangs);
    well.runs(&spec(HELLO)).await;
    let client = world.client();
    let since = Instant::now();
    let told = explain(&world, &client, HELLO).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    assert!(told.unreachable_peers.contains(&dead.id().to_string()), "{told:?}");
    assert!(told.unreachable_peers.contains(&hung.id().to_string()), "{told:?}");
    let asked = |peer: String| {
        let one = told.allocators.iter().find(|one| one.peer == peer).unwrap();
        (one.rank > 0, one.reason.clone())
    };
    assert_eq!(asked(dead.id().to_string()), (false, "does not answer".to_owned()));
    assert!(asked(well.id().to_string()).0);
}

#[tokio::test]
async fn what_is_surplus_is_said_to_be_and_requests_go_where_it_is_told() {
    let hello = proto::ServiceSpec { max_instances: 1, ..spec(HELLO) };
    let world = World::with([hello.clone()]);
    let (near, far, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 9);
    // The one that is nearer is one too many for everybody, by its id.
    let mut ids = [InstanceId::random(), InstanceId::random()];
    ids.sort();
    near.runs_quietly(&hello, ids[1]);
    far.runs_quietly(&hello, ids[0]);
    near.peer.announce(Key::Service(hash_of(&hello))).await.unwrap();
    for _ in 0..2 {
        assert_eq!(client.pick().await.unwrap().instance, ids[1], "it is all that is known");
    }
    far.peer.announce(Key::Service(hash_of(&hello))).await.unwrap();
    let elsewhere = Wish { tried: vec![ids[1]], ..wish(HELLO) };
    assert_eq!(client.manager.pick(elsewhere).await.unwrap().instance, ids[0]);
    for _ in 0..10 {
        assert_eq!(client.pick().await.unwrap().instance, ids[0]);
    }
    let told = explain(&world, &client, HELLO).await.unwrap();
    let expected = [(ids[0], Verdict::Chosen), (ids[1], Verdict::Usable)];
    assert_eq!(verdicts(&told), expected.map(|(id, verdict)| (id.to_string(), verdict)));
    assert!(told.instances[1].reason.starts_with("fewer will do"), "{}", told.instances[1].reason);
    assert_eq!(told.outlook.unwrap().instance, ids[0].to_string());
    assert_eq!(told.moves.len(), 1);
    assert_eq!(told.moves[0].reason, "fewer will do, and the old one is to idle out");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_slow_to_confirm_an_instance_keeps_it_and_one_that_is_gone_does_not() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let running = allocator.runs(&spec(HELLO)).await;
    client.pick().await.unwrap();
    client.peer.serve(client.manager.local_routes());
    let channel = world.network.join(&[]).grpc(&client.peer.own()).await.unwrap();
    let mut manager = ManagerClient::new(channel);
    let ask = proto::ResolveRequest { service: HELLO.to_owned(), allocate: false };
    let hash = hash_of(&spec(HELLO));
    let known = || client.manager.inner.cache().peek(hash, Instant::now());
    allocator.becomes(Behaviour::Hangs);
    manager.resolve(ask.clone()).await.unwrap_err();
    assert_eq!(known().iter().map(|one| one.instance).collect::<Vec<_>>(), [running]);
    world.network.take_down(allocator.id());
    // Others of its clients may be connected to it yet; this one is not.
    manager.resolve(ask).await.unwrap_err();
    assert!(known().is_empty());
}
