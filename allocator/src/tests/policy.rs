//! What is started, joined, refused and stopped, on the fake driver.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all};
use lca::{
    Kind, Spec,
    api::proto::{InstanceState, allocate_request::Mode},
    discovery::{Discovery as _, Found, Key},
    headers::Load,
    metrics::Metrics,
    testing::{Log, counted, eventually},
};

use super::twins::{PATIENCE, World, config, id};
use crate::{
    Capacity, Config, Timing,
    driver::{
        Exit,
        fake::{Behaviour, Fake},
    },
    instance,
};

async fn world() -> (World, Fake) {
    world_with(config()).await
}

async fn world_with(config: Config) -> (World, Fake) {
    let fake = Fake::default();
    (World::new(Arc::new(fake.clone()), config).await, fake)
}

/// Whether another peer finds an instance of `spec`.
async fn is_announced(world: &World, spec: &Spec) -> bool {
    let mut found = world.other.find(Key::Service(spec.hash()));
    matches!(found.next().await, Some(Found::Endpoint(_)))
}

#[tokio::test]
async fn a_start_is_answered_when_it_takes_requests_and_is_announced() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |spec| {
        spec.arguments = vec!["--port=${SERVICE_PORT}".into()];
    });
    let answer = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let instance = answer.instance.clone().unwrap();
    assert_eq!(instance.state(), InstanceState::Ready);
    assert!(!answer.joined && instance.pid != 0);
    let names: Vec<_> = answer.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["spec", "admit", "fetch", "spawn", "ready", "announce"]);

    let launch = fake.launches().remove(0);
    assert_eq!(launch.arguments, [format!("--port={}", launch.port)]);
    assert_eq!(launch.environment["PROXY_PORT"], "4999");
    let way = world.ways.to(launch.id).unwrap();
    assert_eq!((way.local.address.port(), way.local.hash), (launch.port, spec.hash()));
    eventually("the announcement", async || is_announced(&world, &spec).await.then_some(())).await;
}

#[tokio::test]
async fn the_log_says_for_which_request_and_whom_an_instance_was_started() {
    let log = Log::capture();
    let (world, _) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let instance = world.allocate(&spec, Mode::Ensure, "req-7").await.unwrap().instance.unwrap();
    let ready = log.lines().into_iter().find(|line| line.contains("instance ready")).unwrap();
    for part in ["request=req-7", "caller=", &instance.id] {
        assert!(ready.contains(part), "{part} in {ready}");
    }
}

#[test]
fn an_instance_is_released_in_the_time_its_callers_wait() {
    let Timing { drain, grace, .. } = Timing::default();
    assert!(drain + grace + instance::STUCK < lca::api::MAX_RELEASE);
}

#[tokio::test]
async fn a_thousand_callers_at_once_get_one_instance() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    fake.behave(
        &spec.name,
        Behaviour { listens_after: Some(Duration::from_millis(20)), ..Behaviour::default() },
    );
    let calls = (0..1000u32).map(async |call| {
        let id = call.to_string();
        world.allocate_as((call % 7) as u8, &spec, Mode::Ensure, &id).await.unwrap()
    });
    let answers = join_all(calls).await;
    assert_eq!(fake.launches().len(), 1);
    assert!(answers.iter().all(|answer| id(answer) == id(&answers[0])));
    assert_eq!(answers.iter().filter(|answer| !answer.joined).count(), 1);
}

#[tokio::test]
async fn new_always_starts_another() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let first = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let second = world.allocate(&spec, Mode::New, "r2").await.unwrap();
    assert_ne!(id(&first), id(&second));
    assert_eq!(fake.running(), 2);
}

#[tokio::test]
async fn a_request_id_means_the_same_instance_to_the_peer_that_used_it() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let other = world.add("other", "/bin/other", |_| {});
    let (one, same) = tokio::join!(
        world.allocate(&spec, Mode::New, "r1"),
        world.allocate(&spec, Mode::New, "r1")
    );
    assert_eq!(id(&one.unwrap()), id(&same.unwrap()));
    assert_eq!(fake.launches().len(), 1);
    for (spec, mode) in [(&other, Mode::New), (&spec, Mode::Ensure)] {
        let error = world.allocate(spec, mode, "r1").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
    }
    world.allocate_as(2, &spec, Mode::New, "r1").await.unwrap();
    assert_eq!(fake.launches().len(), 2);
    // An instance that has ended is not started again by the same id.
    let ended = id(&world.allocate(&spec, Mode::New, "r1").await.unwrap());
    world.release(&ended).await.unwrap();
    let error = world.allocate(&spec, Mode::New, "r1").await.unwrap_err();
    assert!(error.public().contains("released"), "{error}");
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_starts() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let error = world.allocate(&spec, Mode::Ensure, "").await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let unknown = Spec { name: "unknown".parse().unwrap(), ..spec.clone() };
    let error = world.allocate(&unknown, Mode::Ensure, "r1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let external = world.add("external", "", |spec| spec.artifact.clear());
    let error = world.allocate(&external, Mode::Ensure, "r2").await.unwrap_err();
    assert!(error.kind() == Kind::FailedPrecondition && error.public().contains("external"));
    assert!(fake.launches().is_empty());
}

#[tokio::test]
async fn an_image_is_nothing_for_an_allocator_without_an_engine() {
    let (world, fake) = world().await;
    let image = lca::api::proto::Image {
        reference: "docker.io/library/web:1".into(),
        digest: lca::Digest::of(b"web").to_string(),
        ..Default::default()
    };
    let spec = world.add("web", "", |spec| {
        spec.artifact.clear();
        spec.image = Some(image);
    });
    let error = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap_err();
    assert!(
        error.kind() == Kind::NotHere && error.public().contains("no Docker Engine"),
        "{error}"
    );
    assert!(fake.launches().is_empty() && world.list(true).await.is_empty());
}

#[tokio::test]
async fn an_older_spec_is_refreshed_and_a_wish_for_another_is_refused() {
    let (world, _fake) = world().await;
    let old = world.add("hello", "/bin/old", |_| {});
    let new = world.add("hello", "/bin/new", |_| {});
    world.shelf.stale.lock().unwrap().insert(old.name.clone(), old.clone());
    world.allocate(&new, Mode::Ensure, "r1").await.unwrap();
    world.shelf.stale.lock().unwrap().clear();
    let error = world.allocate(&old, Mode::Ensure, "r2").await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    for hash in [old.hash(), new.hash()] {
        assert!(error.public().contains(&hash.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_take_the_start_with_it() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    *world.shelf.fetch_takes.lock().unwrap() = Duration::from_millis(50);
    let call = world.allocate(&spec, Mode::Ensure, "r1");
    assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
    let answer = world.allocate(&spec, Mode::Ensure, "r2").await.unwrap();
    assert!(answer.joined);
    assert_eq!(fake.launches().len(), 1);
}

#[tokio::test]
async fn a_program_that_ends_at_once_fails_at_once_with_what_it_wrote() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    fake.behave(
        &spec.name,
        Behaviour {
            listens_after: None,
            ends_after: Some((Duration::ZERO, Exit::Code(3))),
            output: "no database\n".into(),
            ..Behaviour::default()
        },
    );
    let error = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::StartFailed);
    assert_eq!(error.public(), "hello exited with code 3 before it was ready");
    assert_eq!(error.output_lines(), ["no database"]);
    assert_eq!(error.retry_delay(), Some(Duration::from_secs(1)));

    // Within the back-off nothing is started, and the reason is the same.
    for mode in [Mode::Ensure, Mode::New] {
        let again = world.allocate(&spec, mode, &format!("{mode:?}")).await.unwrap_err();
        assert_eq!(again.public(), error.public());
        assert_eq!(again.output_lines(), ["no database"]);
        assert!(again.retry_delay().unwrap() <= Duration::from_secs(1));
    }
    assert_eq!(fake.launches().len(), 1);
    let listed = world.list(true).await;
    assert_eq!(listed[0].state(), InstanceState::Failed);
    assert_eq!(listed[0].last_output, ["no database"]);
    assert!(!is_announced(&world, &spec).await);
    assert!(world.list(false).await.is_empty());
}

#[tokio::test]
async fn a_program_that_never_gets_ready_is_stopped_at_its_deadline() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |spec| {
        spec.readiness =
            Some(lca::api::proto::Readiness { start_timeout_ms: 50, ..Default::default() });
    });
    let deaf = Behaviour { listens_after: None, ignores_term: true, ..Behaviour::default() };
    fake.behave(&spec.name, deaf);
    let error = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::StartFailed);
    assert!(error.public().starts_with("hello was not ready within 50ms: nothing listens"));
    assert_eq!(fake.running(), 0);
    assert_eq!(Arc::strong_count(&world.fronts.open), 1, "its front is closed");
    assert!(!is_announced(&world, &spec).await);
    let port = fake.launches()[0].port;
    std::net::TcpListener::bind(("127.0.0.1", port)).expect("its port is free again");
}

#[tokio::test]
async fn an_artifact_nobody_has_fails_the_start_without_blame() {
    let (world, _fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let kept = std::mem::take(&mut *world.shelf.programs.lock().unwrap());
    let error = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    *world.shelf.programs.lock().unwrap() = kept;
    world.allocate(&spec, Mode::Ensure, "r2").await.unwrap();
}

#[tokio::test]
async fn a_full_machine_says_of_what_and_has_room_again_after_a_release() {
    let capacity = Capacity { instances: 1, ..config().capacity };
    let (world, _fake) = world_with(Config { capacity, ..config() }).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let answer = world.allocate(&spec, Mode::New, "r1").await.unwrap();
    let error = world.allocate(&spec, Mode::New, "r2").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    assert!(error.public().contains("all 1 places for instances are taken"), "{error}");
    world.release(&id(&answer)[..8]).await.unwrap();
    world.allocate(&spec, Mode::New, "r2").await.unwrap();
}

#[tokio::test]
async fn starts_refusals_and_ends_are_counted() {
    let metrics = Metrics::default();
    let capacity = Capacity { instances: 1, ..config().capacity };
    let config = Config { capacity, metrics: metrics.clone(), ..config() };
    let (world, _fake) = world_with(config).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let answer = world.allocate(&spec, Mode::New, "r1").await.unwrap();
    world.allocate(&spec, Mode::Ensure, "r2").await.unwrap();
    world.allocate(&spec, Mode::New, "r3").await.unwrap_err();
    let calls = |outcome| {
        let labels = format!(r#"outcome="{outcome}",service="hello""#);
        counted(&metrics, &format!("lca_allocations_total{{{labels}}}"))
    };
    assert_eq!((calls("started"), calls("joined"), calls("no-capacity")), (1.0, 1.0, 1.0));
    let refused = r#"lca_allocator_refusals_total{reason="instances"}"#;
    assert_eq!(counted(&metrics, refused), 1.0);
    for step in ["fetch", "spawn", "ready", "announce"] {
        let step = format!(r#"lca_instance_start_step_duration_seconds_count{{step="{step}"}}"#);
        assert_eq!(counted(&metrics, &step), 1.0, "{step}");
    }
    let ready = || {
        world.allocator.count_instances();
        counted(&metrics, r#"lca_instances{state="ready"}"#)
    };
    assert_eq!(ready(), 1.0);
    world.release(&id(&answer)).await.unwrap();
    assert_eq!(ready(), 0.0);
    assert_eq!(counted(&metrics, r#"lca_instances_ended_total{outcome="stopped"}"#), 1.0);
    world.allocator.shutdown().await;
    world.allocate(&spec, Mode::New, "r4").await.unwrap_err();
    let stopping = r#"lca_allocator_refusals_total{reason="stopping"}"#;
    assert_eq!(counted(&metrics, stopping), 1.0);
}

#[tokio::test]
async fn too_many_starts_at_once_are_refused_and_not_queued() {
    let (world, _fake) = world_with(Config { max_starting: 2, ..config() }).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    *world.shelf.fetch_takes.lock().unwrap() = Duration::from_millis(50);
    let ids = ["r1", "r2", "r3"];
    let answers = join_all(ids.map(|id| world.allocate(&spec, Mode::New, id))).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].kind(), Kind::NoCapacity);
    assert!(refused[0].retry_delay().is_some());
}

#[tokio::test]
async fn an_idle_instance_is_stopped_but_never_while_a_request_runs() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |spec| spec.idle_timeout_ms = 100);
    *world.shelf.fetch_takes.lock().unwrap() = Duration::ZERO;
    let answer = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let instance = id(&answer);
    let way = world.ways.to(instance.parse().unwrap()).unwrap();
    way.open.send_replace(1);
    // Three idle time-outs long it stays, and shows what it does.
    let stays = world.is(&instance, InstanceState::Stopped);
    assert!(tokio::time::timeout(Duration::from_millis(300), stays).await.is_err());
    let listed = world.list(false).await;
    assert_eq!(listed[0].load, Some(Load { in_flight: 1, limit: 1024, ..Load::default() }.into()));
    assert_eq!(fake.running(), 1);
    way.open.send_replace(0);
    drop(way);
    let ended = world.is(&instance, InstanceState::Stopped).await;
    assert_eq!(ended.reason, "idle for 100ms");
    assert_eq!(fake.running(), 0);
    assert!(world.ways.to(instance.parse().unwrap()).is_none(), "the way in is closed");
    eventually("the withdrawal", async || (!is_announced(&world, &spec).await).then_some(())).await;
}

#[tokio::test]
async fn one_that_is_about_to_idle_out_is_withdrawn_and_brought_back_by_who_comes() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |spec| spec.idle_timeout_ms = 4000);
    let first = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let way = world.ways.to(id(&first).parse().unwrap()).unwrap();
    let announced = async |wanted: bool| {
        let what = if wanted { "the announcement" } else { "the withdrawal" };
        let is = async || (is_announced(&world, &spec).await == wanted).then_some(());
        eventually(what, is).await;
    };
    announced(true).await;
    announced(false).await;
    assert!(!*way.draining.borrow(), "whoever comes is served");
    way.open.send_replace(1);
    announced(true).await;
    way.open.send_replace(0);
    announced(false).await;
    // So does somebody who only asks for one, who is given it and not another.
    let second = world.allocate(&spec, Mode::Ensure, "r2").await.unwrap();
    assert_eq!((id(&second), second.joined), (id(&first), true));
    announced(true).await;
    assert_eq!(fake.running(), 1);
    drop(way);
    world.is(&id(&first), InstanceState::Stopped).await;
}

#[tokio::test]
async fn a_release_lets_open_requests_finish_first() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let instance = id(&world.allocate(&spec, Mode::Ensure, "r1").await.unwrap());
    let way = world.ways.to(instance.parse().unwrap()).unwrap();
    way.open.send_replace(1);
    let released = world.release(&instance[..4]);
    let finish = async {
        let mut draining = way.draining.subscribe();
        drop(draining.wait_for(|draining| *draining).await);
        assert_eq!(fake.running(), 1, "the program serves what it has");
        // Nobody is sent there meanwhile.
        let other = world.allocate(&spec, Mode::Ensure, "r2").await.unwrap();
        assert_ne!(id(&other), instance);
        way.open.send_replace(0);
    };
    let (released, ()) = tokio::join!(released, finish);
    let released = released.unwrap();
    assert_eq!((released.state(), released.reason.as_str()), (InstanceState::Stopped, "released"));
    world.release(&instance).await.expect("releasing what has ended succeeds");
    assert_eq!(world.release("ffffffffffffffffffff").await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn an_instance_that_dies_is_unregistered_and_withdrawn_at_once() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let instance = id(&world.allocate(&spec, Mode::Ensure, "r1").await.unwrap());
    fake.crash(instance.parse().unwrap(), Exit::Signal(9));
    let ended = world.is(&instance, InstanceState::Failed).await;
    assert_eq!(ended.reason, "killed by signal 9 (SIGKILL)");
    assert!(world.ways.to(instance.parse().unwrap()).is_none());
    eventually("the withdrawal", async || (!is_announced(&world, &spec).await).then_some(())).await;
    // It died young, so the next start waits, and says why.
    let error = world.allocate(&spec, Mode::Ensure, "r2").await.unwrap_err();
    assert_eq!(error.kind(), Kind::StartFailed);
    assert!(error.public().contains("killed by signal 9"), "{error}");
    assert!(error.retry_delay().unwrap() <= Duration::from_secs(1));
}

#[tokio::test]
async fn a_program_that_dies_young_again_and_again_is_started_ever_more_rarely() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let dies_after = async |call: u32, age: Duration| {
        let answer = world.allocate(&spec, Mode::Ensure, &call.to_string()).await.unwrap();
        tokio::time::pause();
        tokio::time::advance(age).await;
        tokio::time::resume();
        fake.crash(id(&answer).parse().unwrap(), Exit::Code(1));
        world.is(&id(&answer), InstanceState::Failed).await;
        let wait = world.allocate(&spec, Mode::Ensure, "again").await.err();
        let wait = wait.map_or(Duration::ZERO, |error| error.retry_delay().unwrap());
        tokio::time::pause();
        tokio::time::advance(wait).await;
        tokio::time::resume();
        wait.as_secs_f64().ceil() as u64
    };
    assert_eq!(dies_after(1, Duration::ZERO).await, 1);
    assert_eq!(dies_after(2, instance::STEADY / 2).await, 2);
    assert_eq!(dies_after(3, Duration::ZERO).await, 4);
    // One that lived has done nothing wrong, and clears the name of the service.
    assert_eq!(dies_after(4, instance::STEADY * 2).await, 0);
}

#[tokio::test]
async fn the_announcement_stays_until_the_last_instance_goes() {
    let (world, _fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let first = id(&world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let second = id(&world.allocate(&spec, Mode::New, "r2").await.unwrap());
    eventually("the announcement", async || is_announced(&world, &spec).await.then_some(())).await;
    world.release(&first).await.unwrap();
    assert!(is_announced(&world, &spec).await);
    world.release(&second).await.unwrap();
    eventually("the withdrawal", async || (!is_announced(&world, &spec).await).then_some(())).await;
}

#[tokio::test]
async fn a_program_whose_port_was_taken_is_started_on_another() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    // A stranger that takes the first port before the program binds it.
    let late = Behaviour { listens_after: Some(Duration::from_millis(50)), ..Behaviour::default() };
    fake.behave(&spec.name, late);
    let steal = async {
        let port = eventually("a launch", async || fake.launches().first().map(|l| l.port)).await;
        // Not listening: only the program's bind fails, no probe is fooled.
        let thief = tokio::net::TcpSocket::new_v4().unwrap();
        thief.bind(([127, 0, 0, 1], port).into()).unwrap();
        eventually("the second launch", async || fake.launches().get(1).map(drop)).await;
        thief
    };
    let (answer, _thief) = tokio::join!(world.allocate(&spec, Mode::Ensure, "r1"), steal);
    answer.unwrap();
    let launches = fake.launches();
    assert_eq!(launches.len(), 2);
    assert_eq!(launches[0].id, launches[1].id);
    assert_ne!(launches[0].port, launches[1].port);
}

#[tokio::test]
async fn a_stop_ends_deaf_instances_and_hung_requests_within_its_time() {
    let (world, fake) = world().await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    fake.behave(&spec.name, Behaviour { ignores_term: true, ..Behaviour::default() });
    let mut ways = Vec::new();
    for call in 0..5 {
        let answer = world.allocate(&spec, Mode::New, &call.to_string()).await.unwrap();
        let way = world.ways.to(id(&answer).parse().unwrap()).unwrap();
        way.open.send_replace(1); // never ends
        ways.push(way);
    }
    let since = tokio::time::Instant::now();
    world.allocator.shutdown().await;
    assert!(since.elapsed() < Duration::from_secs(4), "took {:?}", since.elapsed());
    assert_eq!(fake.running(), 0);
    let error = world.allocate(&spec, Mode::New, "late").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.retry_delay().is_some(), "{error}");
    assert!(world.tasks.drain(PATIENCE).await, "a task had to be forced");
}

#[tokio::test]
async fn what_is_to_be_kept_is_started_unasked_comes_back_and_does_not_idle_out() {
    let (world, fake) = world().await;
    let spec = world.add("kept", "/bin/kept", |spec| {
        (spec.min_instances, spec.idle_timeout_ms) = (2, 100);
    });
    let ready = async |n: usize| {
        eventually("the instances to be ready", async || {
            let listed = world.list(false).await;
            let ready = listed.iter().filter(|one| one.state() == InstanceState::Ready);
            let ready: Vec<_> = ready.map(|one| one.id.clone()).collect();
            if ready.len() == n { Ok(ready) } else { Err(listed) }
        })
        .await
    };
    let first = ready(2).await;
    assert_eq!(fake.launches().len(), 2);
    world.release(&first[0]).await.unwrap();
    let second = ready(2).await;
    assert!(second.contains(&first[1]) && !second.contains(&first[0]), "the other was kept");
    // A number that is changed holds for what runs.
    let zero = Spec { min_instances: 0, ..spec };
    world.shelf.specs.lock().unwrap().insert(zero.name.clone(), zero);
    ready(0).await;
}

#[tokio::test]
async fn the_first_in_the_order_keeps_and_when_it_is_silent_the_next() {
    let network = lca::discovery::memory::Network::default();
    let drivers = [Fake::default(), Fake::default()];
    let (a, b) =
        World::pair(&network, Arc::new(drivers[0].clone()), Arc::new(drivers[1].clone())).await;
    for world in [&a, &b] {
        world.add("kept", "/bin/kept", |spec| spec.min_instances = 1);
    }
    let running = || drivers.each_ref().map(Fake::running);
    let first = eventually("one of them to keep one", async || match running() {
        [1, 0] => Ok(0),
        [0, 1] => Ok(1),
        other => Err(other),
    })
    .await;
    network.take_down([&a, &b][first].own.local());
    eventually("the other to take over", async || match running()[1 - first] {
        1 => Ok(()),
        _ => Err(running()),
    })
    .await;
}
