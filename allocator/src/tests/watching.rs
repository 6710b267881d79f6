//! What watchers of instances are told.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
use lca::{
    Error, Kind, Spec,
    api::proto::{
        Instance, InstanceEvent, InstanceState, WatchInstancesRequest, allocate_request::Mode,
        instance_event::Event, instances_server::Instances as _,
    },
};
use tokio::time::timeout;
use tonic::{Request, Status};

use super::twins::{PATIENCE, World, config, id};
use crate::driver::fake::Fake;

struct Watcher(BoxStream<'static, Result<InstanceEvent, Status>>);

impl Watcher {
    async fn of(world: &World, which: WatchInstancesRequest) -> Result<Self, Status> {
        let answer = world.allocator.watch_instances(Request::new(which)).await?;
        Ok(Self(answer.into_inner()))
    }

    async fn all(world: &World) -> Self {
        Self::of(world, WatchInstancesRequest::default()).await.unwrap()
    }

    /// The next event, if the watch goes on.
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        let next = timeout(PATIENCE, self.0.next()).await.expect("an event in time")?;
        Some(next.map(|event| event.event.unwrap()).map_err(Error::from))
    }

    async fn event(&mut self) -> Event {
        self.next().await.unwrap().unwrap()
    }

    /// What comes before `synced`.
    async fn synced(&mut self) -> Vec<Event> {
        let mut before = Vec::new();
        loop {
            match self.event().await {
                Event::Synced(true) => return before,
                event => before.push(event),
            }
        }
    }

    /// The next change of an instance, capacity left out.
    async fn put(&mut self) -> Instance {
        loop {
            match self.event().await {
                Event::Put(instance) => return instance,
                Event::Capacity(_) => {}
                other => panic!("{other:?} instead of an instance"),
            }
        }
    }
}

async fn world() -> World {
    World::new(Arc::new(Fake::default()), config()).await
}

fn hello(world: &World) -> Spec {
    world.add("hello", "/bin/hello", |_| {})
}

#[tokio::test]
async fn a_watcher_hears_what_is_there_and_then_a_whole_life() {
    let world = world().await;
    let spec = hello(&world);
    let there = id(&world.allocate(&spec, Mode::New, "r1").await.unwrap());
    let mut watcher = Watcher::all(&world).await;
    let before = watcher.synced().await;
    let [Event::Put(first), Event::Capacity(capacity)] = before.as_slice() else {
        panic!("{before:?}")
    };
    assert_eq!((first.id.as_str(), first.state()), (there.as_str(), InstanceState::Ready));
    assert_eq!(capacity.used.unwrap().instances, 1);
    assert_eq!(capacity.peer, first.peer);

    let new = id(&world.allocate(&spec, Mode::New, "r2").await.unwrap());
    let (mut states, mut used) = (Vec::new(), 1);
    while states.last() != Some(&InstanceState::Ready) || used != 2 {
        match watcher.event().await {
            Event::Put(instance) => {
                assert_eq!(instance.id, new, "nothing is said again that has not changed");
                states.push(instance.state());
            }
            Event::Capacity(capacity) => used = capacity.used.unwrap().instances,
            other => panic!("{other:?}"),
        }
    }
    assert!(states.is_sorted(), "{states:?}");

    world.release(&new).await.unwrap();
    let mut last = watcher.put().await;
    let gone = loop {
        match watcher.event().await {
            Event::Put(instance) => last = instance,
            Event::Gone(id) => break id,
            _ => {}
        }
    };
    assert_eq!((gone.as_str(), last.state()), (new.as_str(), InstanceState::Stopped));
    assert_eq!(last.reason, "released");
}

#[tokio::test]
async fn one_that_failed_at_once_is_told_with_its_reason() {
    let world = world().await;
    let mut watcher = Watcher::all(&world).await;
    watcher.synced().await;
    let spec = world.add("broken", "/bin/broken", |_| {});
    world.shelf.programs.lock().unwrap().clear();
    world.allocate(&spec, Mode::Ensure, "r1").await.unwrap_err();
    let failed = loop {
        let instance = watcher.put().await;
        if instance.state() == InstanceState::Failed {
            break instance;
        }
    };
    assert!(failed.reason.contains("nobody has"), "{}", failed.reason);
    assert_eq!(watcher.event().await, Event::Gone(failed.id));
}

#[tokio::test(start_paused = true)]
async fn load_comes_a_few_times_a_second_and_the_last_one_is_true() {
    let world = world().await;
    let spec = hello(&world);
    let instance = world.allocate(&spec, Mode::New, "r1").await.unwrap().instance.unwrap();
    let mut watcher = Watcher::all(&world).await;
    watcher.synced().await;
    let way = world.ways.to(instance.id.parse().unwrap()).unwrap();
    let busy = async {
        for n in 1..=1000 {
            way.open.send_replace(n);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let told = async {
        let mut told = vec![0];
        while told.last() != Some(&1000) {
            told.push(watcher.put().await.load.unwrap().in_flight);
        }
        told
    };
    let ((), told) = tokio::join!(busy, told);
    assert!(told.is_sorted() && (3..=8).contains(&told.len()), "{told:?}");
}

#[tokio::test]
async fn a_watcher_hears_of_nothing_it_did_not_ask_for() {
    let world = world().await;
    let (a, b) = (world.add("a", "/bin/a", |_| {}), world.add("b", "/bin/b", |_| {}));
    world.allocate(&a, Mode::New, "r1").await.unwrap();
    let by_name = WatchInstancesRequest { service: "b".into(), ..Default::default() };
    let by_hash =
        WatchInstancesRequest { service_hash: b.hash().to_string(), ..Default::default() };
    for (which, request) in [(by_name, "r3"), (by_hash, "r4")] {
        let mut watcher = Watcher::of(&world, which).await.unwrap();
        assert!(matches!(watcher.synced().await.as_slice(), [Event::Capacity(_)]));
        world.allocate(&a, Mode::Ensure, "r2").await.unwrap();
        let one = id(&world.allocate(&b, Mode::New, request).await.unwrap());
        assert_eq!(watcher.put().await.id, one);
        world.release(&one).await.unwrap();
        loop {
            match watcher.event().await {
                Event::Gone(id) => break assert_eq!(id, one),
                Event::Put(instance) => assert_eq!(instance.id, one),
                _ => {}
            }
        }
    }
    let junk = WatchInstancesRequest { service: "no name".into(), ..Default::default() };
    let refused = Watcher::of(&world, junk).await.err().map(Error::from).unwrap();
    assert_eq!(refused.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off_and_others_are_not() {
    let world = world().await;
    let spec = hello(&world);
    let mut asleep = Watcher::all(&world).await;
    let mut awake = Watcher::all(&world).await;
    let mut gone = 0;
    for n in 0.. {
        let one = id(&world.allocate(&spec, Mode::New, &format!("r{n}")).await.unwrap());
        world.release(&one).await.unwrap();
        loop {
            if let Event::Gone(_) = awake.event().await {
                gone += 1;
                break;
            }
        }
        // Each life is two events at least: how it ended, and that it is gone.
        if gone * 2 > 1100 {
            break;
        }
    }
    let mut read = 0;
    let end = loop {
        match asleep.next().await.expect("it is told why") {
            Ok(_) => read += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((end.kind(), read), (Kind::NoCapacity, 2), "{}", end.public());
    assert!(asleep.next().await.is_none());
}

#[tokio::test]
async fn those_that_ended_while_nobody_watched_are_forgotten() {
    let world = world().await;
    let spec = hello(&world);
    let first = id(&world.allocate(&spec, Mode::New, "first").await.unwrap());
    Watcher::all(&world).await.synced().await;
    world.release(&first).await.unwrap();
    for n in 0..=100 {
        let one = id(&world.allocate(&spec, Mode::New, &format!("r{n}")).await.unwrap());
        world.release(&one).await.unwrap();
    }
    let before = Watcher::all(&world).await.synced().await;
    assert!(matches!(before.as_slice(), [Event::Capacity(_)]), "{before:?}");
}

#[tokio::test]
async fn one_watcher_too_many_is_refused_until_another_goes() {
    let world = world().await;
    let mut watchers = Vec::new();
    let refused = loop {
        match Watcher::of(&world, WatchInstancesRequest::default()).await {
            Ok(watcher) => watchers.push(watcher),
            Err(status) => break Error::from(status),
        }
    };
    assert_eq!((refused.kind(), watchers.len()), (Kind::NoCapacity, 256));
    watchers.pop();
    Watcher::all(&world).await;
}
