//! Who is asked to start an instance, how often, and what is said when nobody will.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, future::join_all, stream};
use lca::{
    Error, InstanceId, Kind, PeerId, Result,
    api::proto::{self, InstanceState, allocate_request::Mode},
    discovery::{Discovery, Finding, Found, Key, memory::Peer},
    endpoint::{Endpoint, Role},
    testing::{self, eventually},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::world::{Behaviour, FakeAllocator, HELLO, World, hash_of, spec, wish};
use crate::{Config, Wish};

#[tokio::test]
async fn a_thousand_first_requests_are_one_allocation() {
    let world = World::new();
    let (a, b, client) = (world.allocator(), world.allocator(), world.client());
    let targets = join_all((0..1000).map(|_| client.pick())).await;
    let first = targets[0].as_ref().unwrap().instance;
    assert!(targets.iter().all(|target| target.as_ref().unwrap().instance == first));
    assert_eq!(a.asked().len() + b.asked().len(), 1);
    assert_eq!(client.manager.inner.flights.open(), 0);
}

#[tokio::test]
async fn the_allocators_answer_is_used_without_a_find() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let target = client.pick().await.unwrap(); // the fake announces nothing
    assert_eq!(target.endpoint.peer, allocator.id());
    let steps: Vec<_> = target.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["spec", "find", "allocate", "spawn"]);
    assert_eq!(target.steps[2].detail, allocator.id().short());
    assert_eq!(client.pick().await.unwrap().instance, target.instance);
    let asked = allocator.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].mode(), Mode::Ensure);
    assert_eq!(asked[0].service_hash, target.hash.to_string());
}

#[tokio::test]
async fn managers_of_one_place_agree_on_the_allocator() {
    let world = World::new();
    let allocators: Vec<_> = (0..5).map(|_| world.allocator()).collect();
    let clients: Vec<_> = (0..5).map(|_| world.client()).collect();
    for client in &clients {
        let near = allocators.iter().enumerate();
        // They measure almost the same, never quite.
        near.for_each(|(n, allocator)| world.distance(client, allocator, 6 + n as u64 % 4));
    }
    let targets = join_all(clients.iter().map(|client| client.pick())).await;
    let first = targets[0].as_ref().unwrap().endpoint.peer;
    assert!(targets.iter().all(|target| target.as_ref().unwrap().endpoint.peer == first));
}

#[tokio::test]
async fn what_somebody_else_has_begun_is_joined_though_another_allocator_seems_nearer() {
    let world = World::with([spec(HELLO)]);
    let (nearer, begun, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &nearer, 1);
    world.distance(&client, &begun, 9); // it is as near, but this manager is out of breath
    let id = begun.runs_quietly(&spec(HELLO), InstanceId::random());
    begun.set(id, InstanceState::Starting);
    client.pick().await.unwrap();
    assert_eq!((nearer.asked().len(), begun.asked().len()), (0, 1));
    // What has ended, or is beyond what its noise explains, is nobody's.
    let other = world.client();
    world.distance(&other, &nearer, 1);
    world.distance(&other, &begun, 11);
    begun.instances().iter().for_each(|one| {
        begun.set(one.id.parse().unwrap(), InstanceState::Stopped);
    });
    other.pick().await.unwrap();
    assert_eq!((nearer.asked().len(), begun.asked().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn managers_that_measure_differently_and_choose_in_the_same_instant_choose_the_same() {
    let names: Vec<_> = (0..20).map(|n| format!("{HELLO}-{n}")).collect();
    let world = World::with(names.iter().map(|name| spec(name)));
    // Nothing of a start is to be seen until it is over, as while a spec is looked up.
    let gate = Arc::new(Semaphore::new(0));
    let all = [(); 3].map(|()| world.allocator_that(Behaviour::Waits(gate.clone())));
    let clients = [(); 3].map(|()| world.client());
    for (n, client) in clients.iter().enumerate() {
        for (m, allocator) in all.iter().enumerate() {
            world.distance(client, allocator, if n == m { 1 } else { 9 });
        }
    }
    let asked = |name: &str| {
        let of = |one: &FakeAllocator| one.asked().iter().filter(|it| it.service == name).count();
        [of(&all[0]), of(&all[1]), of(&all[2])]
    };
    for name in &names {
        let picks = clients.iter().map(|client| client.manager.pick(wish(name)));
        let seen = async {
            eventually("all to have asked", async || asked(name).iter().sum::<usize>() == 3).await;
            gate.add_permits(3);
        };
        let (picked, ()) = tokio::join!(join_all(picks), seen);
        assert!(asked(name).contains(&3), "{name}: {:?}", asked(name));
        assert!(picked.iter().all(Result::is_ok), "{picked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_means_to_use_is_not_followed_beyond_what_is_near() {
    let world = World::with([spec(HELLO)]);
    let gate = Arc::new(Semaphore::new(0));
    let waits = || world.allocator_that(Behaviour::Waits(gate.clone()));
    let (near, other, far) = (waits(), waits(), waits());
    let (here, there) = (world.client(), world.client());
    for (client, [a, b, c]) in [(&here, [1, 2, 50]), (&there, [9, 9, 1])] {
        world.distance(client, &near, a);
        world.distance(client, &other, b);
        world.distance(client, &far, c);
    }
    let (manager, of) = (there.manager.clone(), wish(HELLO));
    let first = tokio::spawn(async move { manager.pick(of).await });
    eventually("the far one to be asked", async || far.asked().len() == 1).await;
    let (manager, of) = (here.manager.clone(), wish(HELLO));
    let second = tokio::spawn(async move { manager.pick(of).await });
    let asked = || near.asked().len() + other.asked().len();
    eventually("one of the near ones to be asked", async || asked() == 1).await;
    gate.add_permits(2);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(far.asked().len(), 1);
}

#[tokio::test]
async fn what_a_doubtful_allocator_has_begun_is_joined_if_it_answers_again() {
    let world = World::with([spec(HELLO)]);
    let (nearer, begun, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &nearer, 1);
    world.distance(&client, &begun, 2);
    let id = begun.runs_quietly(&spec(HELLO), InstanceId::random());
    begun.set(id, InstanceState::Starting);
    let allocators = &client.manager.inner.allocators;
    allocators.list();
    allocators.failed(begun.id());
    // The first round from behind is over once it has found that it answers.
    let is_doubtful = || {
        let mut all = allocators.list().into_iter();
        all.any(|one| one.failed && one.endpoint.peer == begun.id())
    };
    eventually("the first round to be over", async || !is_doubtful()).await;
    allocators.failed(begun.id()); // it was busy for a moment
    client.pick().await.unwrap();
    assert_eq!((nearer.asked().len(), begun.asked().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_to_be_measured_is_a_last_resort_and_waited_for_only_then() {
    let world = World::new();
    let (slow, client) = (world.allocator(), world.client());
    world.network.slow_down(slow.id(), Duration::from_secs(2));
    let begun = Instant::now();
    let target = client.pick().await.unwrap();
    assert_eq!(target.endpoint.peer, slow.id());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    let world = World::new();
    let (slow, quick, client) = (world.allocator(), world.allocator(), world.client());
    world.network.slow_down(slow.id(), Duration::from_secs(2));
    let begun = Instant::now();
    assert_eq!(client.pick().await.unwrap().endpoint.peer, quick.id());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_is_out_of_breath_is_heard_out_before_another_one_is_begun() {
    let world = World::with([spec(HELLO)]);
    let (nearer, begun, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &nearer, 1);
    world.distance(&client, &begun, 9);
    let id = begun.runs_quietly(&spec(HELLO), InstanceId::random());
    begun.set(id, InstanceState::Starting);
    begun.lists_after(Duration::from_secs(3));
    client.pick().await.unwrap();
    assert_eq!((nearer.asked().len(), begun.asked().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_what_it_has_begun_is_waited_for_once_and_for_so_long() {
    let world = World::with([spec(HELLO), spec("other")]);
    let (nearer, mute, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &nearer, 1);
    world.distance(&client, &mute, 9);
    mute.lists_after(Duration::from_secs(60));
    let begun = Instant::now();
    assert_eq!(client.pick().await.unwrap().endpoint.peer, nearer.id());
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(4500), "{took:?}");
    let begun = Instant::now();
    let other = client.manager.pick(wish("other")).await.unwrap();
    assert_eq!(other.endpoint.peer, nearer.id());
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_coming_is_joined_before_what_the_request_has_tried() {
    let world = World::with([spec(HELLO)]);
    let (tried, coming, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &tried, 1);
    world.distance(&client, &coming, 2);
    let old = tried.runs_quietly(&spec(HELLO), InstanceId::random());
    let new = coming.runs_quietly(&spec(HELLO), InstanceId::random());
    coming.set(new, InstanceState::Starting);
    coming.lists_after(Duration::from_millis(300));
    let again = Wish { tried: vec![old], ..wish(HELLO) };
    let target = client.manager.pick(again).await.unwrap();
    assert_eq!(target.endpoint.peer, coming.id());
    assert!(tried.asked().is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_takes_nobody_along() {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let allocator = world.allocator_that(Behaviour::Waits(gate.clone()));
    let client = world.client();
    let manager = client.manager.clone();
    let impatient = tokio::spawn(async move { manager.pick(wish(HELLO)).await });
    eventually("the allocator to be asked", async || allocator.asked().len() == 1).await;
    let manager = client.manager.clone();
    let patient = tokio::spawn(async move { manager.pick(wish(HELLO)).await });
    impatient.abort();
    assert!(impatient.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    patient.await.unwrap().unwrap();
    assert_eq!(allocator.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_request_has_its_own_deadline_and_the_flight_goes_on() {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let allocator = world.allocator_that(Behaviour::Waits(gate.clone()));
    let client = world.client();
    let deadline = Instant::now() + Duration::from_secs(1);
    let error = client.manager.pick(Wish { deadline, ..wish(HELLO) }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    gate.add_permits(1);
    eventually("the instance", async || allocator.instances().len() == 1).await;
    client.pick().await.unwrap();
    assert_eq!(allocator.asked().len(), 1);
}

#[tokio::test]
async fn an_allocator_without_room_is_passed_over() {
    let world = World::new();
    let full = world.allocator_that(Behaviour::full("out of memory"));
    let (roomy, client) = (world.allocator(), world.client());
    world.distance(&client, &roomy, 40);
    let target = client.pick().await.unwrap();
    assert_eq!(target.endpoint.peer, roomy.id());
    assert_eq!(full.asked().len(), 1);
    let refused = target.steps.iter().find(|step| step.detail.contains("out of memory"));
    assert!(refused.unwrap().detail.starts_with(&full.id().short()));
    // For a while it is asked only after those that have room.
    client.manager.inner.cache().forget(roomy.id());
    client.pick().await.unwrap();
    assert_eq!(full.asked().len(), 1);
}

#[tokio::test]
async fn what_one_machine_has_not_got_is_asked_of_the_next() {
    let world = World::new();
    let lacks = Error::new(Kind::NotHere, "this allocator has no Docker Engine");
    let poor = world.allocator_that(Behaviour::Refuses(lacks));
    let (rich, client) = (world.allocator(), world.client());
    world.distance(&client, &rich, 40);
    let target = client.pick().await.unwrap();
    assert_eq!((target.endpoint.peer, poor.asked().len()), (rich.id(), 1));
}

#[tokio::test]
async fn an_image_is_not_asked_of_who_has_no_engine() {
    let image = proto::Image {
        reference: "docker.io/library/web:1".into(),
        digest: lca::Digest::of(b"web").to_string(),
        ..Default::default()
    };
    let web = proto::ServiceSpec { artifact: String::new(), image: Some(image), ..spec(HELLO) };
    let world = World::with([web.clone()]);
    let (near, far, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 40);
    far.runs_images();
    assert_eq!(client.pick().await.unwrap().endpoint.peer, far.id());
    assert!(near.asked().is_empty());
    // With nobody else the answer says why.
    let world = World::with([web]);
    let (near, client) = (world.allocator(), world.client());
    let error = client.pick().await.unwrap_err();
    assert!(error.public().contains("has no driver `docker`"), "{error}");
    assert!(near.asked().is_empty());
}

#[tokio::test]
async fn when_nobody_has_room_each_reason_is_named() {
    let world = World::new();
    let one = world.allocator_that(Behaviour::full("out of memory"));
    let two = world.allocator_that(Behaviour::Refuses(
        Error::new(Kind::Unavailable, "stopping").retry_after(Duration::from_secs(7)),
    ));
    let error = world.client().pick().await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    assert!(error.public().contains(&format!("{}: out of memory", one.id().short())), "{error}");
    assert!(error.public().contains(&format!("{}: stopping", two.id().short())), "{error}");
    assert_eq!(error.retry_delay(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn many_refusals_make_a_short_answer() {
    let world = World::new();
    for _ in 0..30 {
        world.allocator_that(Behaviour::full(&"no room ".repeat(100)));
    }
    let error = world.client().pick().await.unwrap_err();
    assert!(error.public().contains("and 22 more"), "{error}");
    assert!(error.public().len() < 2000);
}

#[tokio::test]
async fn a_program_that_does_not_start_is_told_with_its_output_and_not_tried_elsewhere() {
    let world = World::new();
    let failed = Error::new(Kind::StartFailed, "hello exited with status 3")
        .output(["no such file".to_owned()])
        .retry_after(Duration::from_secs(4));
    let allocators = [0, 1, 2].map(|_| world.allocator_that(Behaviour::Refuses(failed.clone())));
    let client = world.client();
    let errors = join_all((0..10).map(|_| client.pick())).await;
    for error in errors {
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::StartFailed);
        assert_eq!(error.public(), "hello exited with status 3");
        assert_eq!(error.output_lines(), ["no such file"]);
        assert_eq!(error.retry_delay(), Some(Duration::from_secs(4)));
    }
    assert_eq!(allocators.iter().map(|one| one.asked().len()).sum::<usize>(), 1);
    // Failures are not kept here: the next request asks, and the allocator answers.
    client.pick().await.unwrap_err();
    assert_eq!(allocators.iter().map(|one| one.asked().len()).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_service_that_changes_during_a_cold_request_is_started_as_it_is_by_then() {
    let world = World::new();
    let changed = proto::ServiceSpec { arguments: vec!["new".into()], ..spec(HELLO) };
    let allocator = world.allocator_that(Behaviour::StartsOnly(hash_of(&changed)));
    let client = world.client();
    client.manager.inner.specs.get(&HELLO.parse().unwrap()).await.unwrap();
    world.registry.put(changed.clone());
    let targets = join_all((0..10).map(|_| client.pick())).await;
    for target in targets {
        assert_eq!(target.unwrap().hash, hash_of(&changed));
    }
    assert_eq!(allocator.asked().len(), 2, "once for each version");
}

#[tokio::test]
async fn whatever_an_allocator_objects_to_is_no_fault_of_the_client() {
    for kind in [Kind::FailedPrecondition, Kind::InvalidArgument, Kind::Conflict] {
        let world = World::new();
        let objects = Error::new(kind, "I object").hint("look there");
        world.allocator_that(Behaviour::Refuses(objects));
        let error = world.client().pick().await.unwrap_err();
        assert_eq!(error.kind(), Kind::StartFailed, "{kind:?}");
        assert_eq!((error.public(), error.hint_text()), ("I object", Some("look there")));
        assert!(error.retry_delay().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn without_allocators_the_answer_says_so() {
    let world = World::new();
    let error = world.client().pick().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.public().contains("no allocator is known"), "{error}");
    assert!(error.retry_delay().is_some());
}

#[tokio::test]
async fn when_all_allocators_are_too_far_the_nearest_is_named() {
    let requirements = Some(proto::Requirements { soft_rtt_ms: 0, hard_rtt_ms: 10 });
    let world = World::with([proto::ServiceSpec { requirements, ..spec(HELLO) }]);
    let (far, farther, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &far, 12);
    world.distance(&client, &farther, 80);
    let error = client.pick().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let nearest = format!("{}: 12.0ms away", far.id().short());
    assert!(error.public().contains(&nearest), "{error}");
    assert!(far.asked().is_empty() && farther.asked().is_empty());
}

#[tokio::test]
async fn an_allocator_that_is_gone_is_passed_over() {
    let world = World::new();
    let (dead, alive, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &alive, 40);
    world.network.take_down(dead.id());
    assert_eq!(client.pick().await.unwrap().endpoint.peer, alive.id());
    let all = client.manager.inner.allocators.list();
    assert!(all.iter().any(|one| one.failed && one.endpoint.peer == dead.id()));
}

#[tokio::test(start_paused = true)]
async fn an_allocator_that_dies_at_work_is_given_up_in_seconds() {
    let world = World::new();
    let stuck = world.allocator_that(Behaviour::Waits(Arc::new(Semaphore::new(0))));
    let (other, client) = (world.allocator(), world.client());
    world.distance(&client, &other, 40);
    let manager = client.manager.clone();
    let picked = tokio::spawn(async move { manager.pick(wish(HELLO)).await });
    eventually("the first to be asked", async || stuck.asked().len() == 1).await;
    world.network.take_down(stuck.id());
    let target = timeout(Duration::from_secs(6), picked).await.unwrap().unwrap().unwrap();
    assert_eq!(target.endpoint.peer, other.id());
}

#[tokio::test]
async fn a_time_out_that_an_allocator_tells_is_no_reason_to_stop() {
    let world = World::new();
    let late = Error::new(Kind::Timeout, "the artifact did not arrive");
    let slow = world.allocator_that(Behaviour::Refuses(late));
    let (other, client) = (world.allocator(), world.client());
    world.distance(&client, &other, 40);
    assert_eq!(client.pick().await.unwrap().endpoint.peer, other.id());
    assert_eq!(slow.asked().len(), 1);
}

#[tokio::test]
async fn a_call_that_failed_goes_to_the_same_allocator_when_it_is_sent_again() {
    let world = World::new();
    let failed = Error::new(Kind::StartFailed, "hello exited with status 3");
    let (a, client) = (world.allocator_that(Behaviour::Refuses(failed)), world.client());
    let id: lca::RequestId = "again".parse().unwrap();
    let another = async || {
        let mut wait = client.manager.another(&wish(HELLO), id.clone()).await.unwrap();
        wait.end(&wish(HELLO)).await
    };
    world.distance(&client, &a, 40);
    another().await.unwrap_err();
    let nearer = world.allocator();
    eventually("the nearer one to be known", async || {
        client.manager.inner.allocators.list().iter().any(|one| one.endpoint.peer == nearer.id())
    })
    .await;
    another().await.unwrap_err();
    assert_eq!(a.asked().len(), 2);
    assert!(nearer.asked().is_empty(), "it may have started one where it went first");
}

#[tokio::test]
async fn a_request_can_be_followed_to_the_allocator_in_the_log() {
    let log = testing::Log::capture();
    let world = World::new();
    let (full, client) = (world.allocator_that(Behaviour::full("out of memory")), world.client());
    let request = Some("req-7".parse().unwrap());
    client.manager.pick(Wish { request, ..wish(HELLO) }).await.unwrap_err();
    let flight = full.asked()[0].request_id.clone();
    let line = |of: &str| log.lines().into_iter().find(|line| line.contains(of));
    let boarded = line("waiting for a flight").unwrap();
    assert!(boarded.contains("req-7") && boarded.contains(&flight), "{boarded}");
    let refused = line("did not start an instance").unwrap();
    assert!(refused.contains(&flight) && refused.contains(&full.id().short()), "{refused}");
}

#[tokio::test]
async fn another_is_started_when_a_person_asks_and_only_once_an_id() {
    let world = World::new();
    let (a, b, client) = (world.allocator(), world.allocator(), world.client());
    client.pick().await.unwrap();
    let asked = || {
        let mut all = a.asked();
        all.extend(b.asked());
        all
    };
    let id: lca::RequestId = "again".parse().unwrap();
    let new = async |id: &lca::RequestId| {
        let mut wait = client.manager.another(&wish(HELLO), id.clone()).await.unwrap();
        wait.end(&wish(HELLO)).await.unwrap()
    };
    let first = new(&id).await;
    assert_eq!(asked().last().map(|request| request.mode()), Some(Mode::New));
    // Whatever has changed in the order since, the same id goes to the same allocator.
    let other = if first.endpoint.peer == a.id() { &b } else { &a };
    world.distance(&client, if other.id() == a.id() { &b } else { &a }, 90);
    assert_eq!(new(&id).await.endpoint.peer, first.endpoint.peer);
    assert_eq!(new(&lca::RequestId::random()).await.endpoint.peer, other.id());
}

/// Discovery where a service is found only when told, and something is said before.
#[derive(Debug)]
struct Late {
    peer: Peer,
    before: Found,
    now: Arc<Semaphore>,
}

#[async_trait]
impl Discovery for Late {
    fn local(&self) -> PeerId {
        self.peer.local()
    }

    fn own(&self) -> Arc<Endpoint> {
        self.peer.own()
    }

    async fn announce(&self, key: Key) -> Result<()> {
        self.peer.announce(key).await
    }

    async fn withdraw(&self, key: Key) -> Result<()> {
        self.peer.withdraw(key).await
    }

    fn find(&self, key: Key) -> Finding {
        if matches!(key, Key::Role(_)) {
            return self.peer.find(key);
        }
        let (peer, now, before) = (self.peer.clone(), self.now.clone(), self.before.clone());
        let late = stream::once(async move {
            now.acquire().await.unwrap().forget();
            peer.find(key)
        });
        let late = late.flatten().filter(|found| std::future::ready(*found != Found::Miss));
        Box::pin(stream::once(async { before }).chain(late))
    }

    async fn endpoint(&self, peer: PeerId) -> Result<Arc<Endpoint>> {
        self.peer.endpoint(peer).await
    }

    fn known(&self) -> Vec<Arc<Endpoint>> {
        self.peer.known()
    }

    fn forget(&self, peer: PeerId) {
        self.peer.forget(peer);
    }
}

#[tokio::test]
async fn an_instance_found_while_one_is_started_is_used_and_the_other_is_kept_in_mind() {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let slow = world.allocator_that(Behaviour::Waits(gate.clone()));
    let (found, now) = (world.allocator(), Arc::new(Semaphore::new(0)));
    let peer = world.network.join(&[Role::Proxy]);
    let late = Arc::new(Late { peer: peer.clone(), before: Found::Miss, now: now.clone() });
    let client = world.client_at(peer, late, Config::default());
    world.distance(&client, &found, 40);
    let manager = client.manager.clone();
    let picked = tokio::spawn(async move { manager.pick(wish(HELLO)).await });
    eventually("an allocation", async || slow.asked().len() == 1).await;

    let running = found.runs(&spec(HELLO)).await;
    now.add_permits(1);
    assert_eq!(picked.await.unwrap().unwrap().instance, running);
    gate.add_permits(1);
    eventually("what was started to be used as well", async || {
        client.pick().await.unwrap().endpoint.peer == slow.id()
    })
    .await;
    assert_eq!(slow.asked().len(), 1);
    assert!(found.asked().is_empty());
}

#[tokio::test]
async fn a_dead_hint_does_not_make_anyone_wait_for_a_slow_find() {
    let world = World::new();
    let (dead, alive) = (world.allocator(), world.allocator());
    world.network.take_down(dead.id());
    let peer = world.network.join(&[Role::Proxy]);
    let before = Found::Endpoint(dead.peer.own());
    let never = Arc::new(Semaphore::new(0));
    let late = Arc::new(Late { peer: peer.clone(), before, now: never });
    let client = world.client_at(peer, late, Config::default());
    let picked = timeout(Duration::from_secs(5), client.pick()).await.unwrap().unwrap();
    assert_eq!(picked.endpoint.peer, alive.id());
    let only_look = Wish { allocate: false, ..wish(HELLO) };
    client.manager.inner.cache().forget(alive.id());
    let looked = timeout(Duration::from_secs(5), client.manager.pick(only_look)).await.unwrap();
    assert_eq!(looked.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_late_find_saves_a_request_that_all_allocators_have_refused() {
    let world = World::new();
    let full = world.allocator_that(Behaviour::full("out of memory"));
    let now = Arc::new(Semaphore::new(0));
    let peer = world.network.join(&[Role::Proxy]);
    let late = Arc::new(Late { peer: peer.clone(), before: Found::Miss, now: now.clone() });
    let client = world.client_at(peer, late, Config::default());
    let running = full.runs(&spec(HELLO)).await;
    let manager = client.manager.clone();
    let picked = tokio::spawn(async move { manager.pick(wish(HELLO)).await });
    eventually("a refusal", async || full.asked().len() == 1).await;
    now.add_permits(1);
    assert_eq!(picked.await.unwrap().unwrap().instance, running);
}

#[tokio::test]
async fn a_daemon_that_stops_leaves_nobody_waiting() {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let allocator = world.allocator_that(Behaviour::Waits(gate));
    let client = world.client();
    let manager = client.manager.clone();
    let picked = tokio::spawn(async move { manager.pick(wish(HELLO)).await });
    eventually("the allocator to be asked", async || allocator.asked().len() == 1).await;
    assert!(world.drain().await, "a task of the manager had to be forced");
    assert_eq!(picked.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(client.pick().await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn an_answer_about_something_else_is_refused() {
    let world = World::new();
    let liar = world.allocator();
    let client = world.client();
    // It says that its instance is somebody else's.
    let claimed = liar.runs_quietly(&spec(HELLO), lca::InstanceId::random());
    liar.set_peer(claimed, world.registry_peer.local());
    let error = client.pick().await.unwrap_err();
    assert!(error.public().contains("not asked for"), "{error}");
}
