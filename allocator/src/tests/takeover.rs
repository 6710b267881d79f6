//! Crashes and stops of the allocator, on the fake driver: what the next run makes of what
//! is left.

use std::{path::Path, sync::Arc, time::Duration};

use lca::{
    Kind, Spec,
    api::proto::{self, InstanceState, allocate_request::Mode},
    testing::eventually,
};
use tempfile::TempDir;

use super::twins::{World, config, id};
use crate::{
    Capacity, Config,
    driver::fake::{Behaviour, Fake},
};

/// An allocator that remembers, and a driver whose instances outlive it.
struct Machine {
    dir: TempDir,
    world: World,
    fake: Fake,
}

impl Machine {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let world = World::new(Arc::new(fake.clone()), remembering(dir.path())).await;
        Self { dir, world, fake }
    }

    /// Takes the allocator away without a goodbye and starts it again; `meanwhile`
    /// happens between.
    async fn crash(self, meanwhile: impl FnOnce(&Fake)) -> Self {
        let config = remembering(self.dir.path());
        self.crash_into(config, meanwhile).await
    }

    async fn crash_into(self, config: Config, meanwhile: impl FnOnce(&Fake)) -> Self {
        let Self { dir, world, fake } = self;
        fake.lose_memory();
        meanwhile(&fake);
        let world = world.again(Arc::new(fake.clone()), config).await;
        Self { dir, world, fake }
    }

    fn hello(&self) -> Spec {
        self.world.add("hello", "/bin/hello", |_| {})
    }
}

fn remembering(dir: &Path) -> Config {
    Config { data_dir: dir.to_owned(), ..config() }
}

#[tokio::test]
async fn an_instance_outlives_a_crash_with_its_id_its_port_and_its_front() {
    let machine = Machine::new().await;
    let spec = machine.hello();
    let before = machine.world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let before = before.instance.unwrap();
    let port = machine.world.ways.to(before.id.parse().unwrap()).unwrap().local.address.port();

    let machine = machine.crash(|_| ()).await;
    let after = machine.world.is(&before.id, InstanceState::Ready).await;
    assert_eq!((after.pid, &after.service), (before.pid, &before.service));
    assert_eq!(after.service_hash, before.service_hash);
    let way = machine.world.ways.to(before.id.parse().unwrap()).unwrap();
    assert_eq!(way.local.address.port(), port);
    assert_eq!(*machine.world.fronts.asked.lock().unwrap(), [Some(4999)]);
    let joined = machine.world.allocate(&spec, Mode::Ensure, "r2").await.unwrap();
    assert!(joined.joined && id(&joined) == before.id);
    // It is an instance like any other: released, it ends.
    machine.world.release(&before.id).await.unwrap();
    assert_eq!((machine.fake.launches().len(), machine.fake.running()), (1, 0));
}

#[tokio::test]
async fn request_ids_mean_the_same_after_a_crash() {
    let machine = Machine::new().await;
    let (spec, other) = (machine.hello(), machine.world.add("other", "/bin/other", |_| {}));
    let first = id(&machine.world.allocate(&spec, Mode::New, "new").await.unwrap());
    let joined = id(&machine.world.allocate(&spec, Mode::Ensure, "joined").await.unwrap());
    let gone = id(&machine.world.allocate(&other, Mode::New, "gone").await.unwrap());
    machine.world.release(&gone).await.unwrap();
    assert_eq!(first, joined);

    let mut machine = machine;
    for _ in 0..2 {
        machine = machine.crash(|_| ()).await;
        let world = &machine.world;
        assert_eq!(id(&world.allocate(&spec, Mode::New, "new").await.unwrap()), first);
        assert_eq!(id(&world.allocate(&spec, Mode::Ensure, "joined").await.unwrap()), first);
        // Of one that has ended, they answer that it has.
        let error = world.allocate(&other, Mode::New, "gone").await.unwrap_err();
        assert!(error.public().contains(&gone[..8]) && error.public().contains("released"));
        // With other arguments it is a mistake.
        let error = world.allocate(&spec, Mode::Ensure, "new").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(machine.fake.launches().len(), 2, "something was started twice");
    }
    // Another peer's id is another id.
    let theirs = machine.world.allocate_as(2, &spec, Mode::New, "new").await.unwrap();
    assert_ne!(id(&theirs), first);
}

#[tokio::test]
async fn one_that_ended_meanwhile_is_said_to_have() {
    let machine = Machine::new().await;
    let spec = machine.hello();
    let output = "last words\n".to_owned();
    machine.fake.behave(&spec.name, Behaviour { output, ..Behaviour::default() });
    let instance = id(&machine.world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let machine = machine.crash(|fake| fake.crash_unwatched(instance.parse().unwrap())).await;
    let ended = machine.world.is(&instance, InstanceState::Failed).await;
    assert_eq!(ended.reason, "ended while nobody watched");
    assert_eq!(ended.last_output, ["last words"]);
    let error = machine.world.allocate(&spec, Mode::New, "r1").await.unwrap_err();
    assert!(error.public().contains("ended while nobody watched"), "{error}");
    assert_eq!(machine.fake.launches().len(), 1);
    // The run after that still knows.
    let machine = machine.crash(|_| ()).await;
    let ended = machine.world.is(&instance, InstanceState::Failed).await;
    assert_eq!(ended.last_output, ["last words"]);
}

#[tokio::test]
async fn one_that_does_not_answer_has_the_time_of_a_start() {
    let machine = Machine::new().await;
    let spec = machine.world.add("mute", "/bin/mute", |spec| {
        spec.readiness = Some(proto::Readiness { start_timeout_ms: 200, ..Default::default() });
    });
    let never = Behaviour { listens_after: None, ..Behaviour::default() };
    machine.fake.behave(&spec.name, never);
    let call = machine.world.allocate(&spec, Mode::New, "r1");
    let crash = async {
        let pid = async || machine.world.list(false).await.first().map_or(0, |one| one.pid);
        eventually("it to be started", async || pid().await != 0).await;
        // Until the process is remembered, the crash leaves a stray.
        let state = machine.dir.path().join("state");
        let known = async || crate::ledger::Ledger::open(&state).unwrap().1.records;
        eventually("its record", async || known().await.iter().any(|it| it.started.pid != 0)).await;
    };
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        () = crash => {}
    }
    let instance = machine.world.list(false).await.remove(0).id;
    let machine = machine.crash(|_| ()).await;
    let failed = machine.world.is(&instance, InstanceState::Failed).await;
    let expected = "mute did not answer within 200ms of being taken over: nothing listens";
    assert!(failed.reason.starts_with(expected), "{}", failed.reason);
    assert_eq!((machine.fake.launches().len(), machine.fake.running()), (1, 0));
}

#[tokio::test]
async fn a_start_that_a_crash_cut_off_is_known_and_leaves_nothing() {
    let machine = Machine::new().await;
    let spec = machine.hello();
    *machine.world.shelf.fetch_takes.lock().unwrap() = Duration::from_secs(60);
    let call = machine.world.allocate(&spec, Mode::New, "r1");
    let state = machine.dir.path().join("state");
    let remembered = eventually("its record", async || {
        let left = crate::ledger::Ledger::open(&state).unwrap().1;
        (left.records.len() == 1 && left.calls.len() == 1).then_some(())
    });
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        () = remembered => {}
    }
    let machine = machine.crash(|_| ()).await;
    *machine.world.shelf.fetch_takes.lock().unwrap() = Duration::ZERO;
    let error = machine.world.allocate(&spec, Mode::New, "r1").await.unwrap_err();
    assert!(error.public().contains("killed while it was being started"), "{error}");
    assert!(machine.fake.launches().is_empty());
    machine.world.allocate(&spec, Mode::New, "r2").await.unwrap();
}

#[tokio::test]
async fn one_that_was_to_end_is_not_brought_back_to_life() {
    let machine = Machine::new().await;
    let spec = machine.hello();
    let instance = id(&machine.world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let way = machine.world.ways.to(instance.parse().unwrap()).unwrap();
    way.open.send_replace(1);
    let state = machine.dir.path().join("state");
    let ending = eventually("the wish to be remembered", async || {
        let left = crate::ledger::Ledger::open(&state).unwrap().1;
        left.records.iter().any(|record| record.phase == crate::ledger::Phase::Ending)
    });
    tokio::select! {
        released = machine.world.release(&instance) => panic!("{released:?}"),
        () = ending => {}
    }
    let machine = machine.crash(|_| ()).await;
    let ended = machine.world.is(&instance, InstanceState::Stopped).await;
    assert_eq!(ended.reason, "released");
    assert_eq!(machine.fake.running(), 0);
}

#[tokio::test]
async fn a_stop_that_keeps_instances_lets_requests_finish_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let keeping = Config { keep_instances: true, ..remembering(dir.path()) };
    let world = World::new(Arc::new(fake.clone()), keeping).await;
    let mut machine = Machine { dir, world, fake };
    let spec = machine.hello();
    let instance = id(&machine.world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let way = machine.world.ways.to(instance.parse().unwrap()).unwrap();
    way.open.send_replace(1);
    let stop = machine.world.allocator.shutdown();
    let finish = async {
        let mut draining = way.draining.subscribe();
        drop(draining.wait_for(|draining| *draining).await);
        assert!(machine.world.ways.to(instance.parse().unwrap()).is_some(), "it was cut off");
        way.open.send_replace(0);
    };
    tokio::join!(stop, finish);
    drop(way);
    assert!(machine.world.ways.to(instance.parse().unwrap()).is_none(), "the way in is closed");
    assert_eq!(machine.fake.running(), 1);
    machine = machine.crash(|_| ()).await;
    machine.world.is(&instance, InstanceState::Ready).await;
    assert_eq!(id(&machine.world.allocate(&spec, Mode::New, "r1").await.unwrap()), instance);
    // Without the wish, a stop ends it.
    machine.world.allocator.shutdown().await;
    assert_eq!(machine.fake.running(), 0);
}

#[tokio::test]
async fn what_was_taken_over_counts_and_idles_out() {
    let machine = Machine::new().await;
    let spec = machine.world.add("hello", "/bin/hello", |spec| spec.idle_timeout_ms = 400);
    let instance = id(&machine.world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let capacity = Capacity { instances: 1, ..config().capacity };
    let small = Config { capacity, ..remembering(machine.dir.path()) };
    let machine = machine.crash_into(small, |_| ()).await;
    let error = machine.world.allocate(&spec, Mode::New, "r2").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    let ended = machine.world.is(&instance, InstanceState::Stopped).await;
    assert_eq!(ended.reason, "idle for 400ms");
    machine.world.allocate(&spec, Mode::New, "r2").await.unwrap();
}

#[tokio::test]
async fn one_without_a_usable_record_is_ended_and_the_rest_goes_on() {
    let machine = Machine::new().await;
    let spec = machine.hello();
    let good = id(&machine.world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let bad = id(&machine.world.allocate(&spec, Mode::New, "r2").await.unwrap());
    let path = machine.dir.path().join("state").join(&bad);
    let whole = std::fs::read(&path).unwrap();
    let machine =
        machine.crash(|_| std::fs::write(&path, &whole[..whole.len() / 2]).unwrap()).await;
    machine.world.is(&good, InstanceState::Ready).await;
    assert_eq!(machine.fake.running(), 1);
    // Its call is known, and starts nothing again.
    let error = machine.world.allocate(&spec, Mode::New, "r2").await.unwrap_err();
    assert!(error.public().contains("is forgotten"), "{error}");
}
