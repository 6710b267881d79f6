//! `WatchInstances` of the local API: one stream over all allocators.

use std::time::Duration;

use lca::{
    Error, InstanceId, Kind,
    api::proto::{
        InstanceEvent, InstanceState, WatchInstancesRequest, instance_event::Event,
        instances_client::InstancesClient,
    },
    discovery::Discovery as _,
    mesh::Mesh as _,
    testing::eventually,
};
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use super::world::{Behaviour, Client, FakeAllocator, HELLO, PATIENCE, World, spec};

struct Watcher(Streaming<InstanceEvent>);

impl Watcher {
    async fn of(
        world: &World,
        client: &Client,
        which: WatchInstancesRequest,
    ) -> Result<Self, Error> {
        let channel = world.network.join(&[]).grpc(&client.peer.own()).await?;
        let answer = InstancesClient::new(channel).watch_instances(which).await?;
        Ok(Self(answer.into_inner()))
    }

    async fn all(world: &World, client: &Client) -> Self {
        Self::of(world, client, WatchInstancesRequest::default()).await.unwrap()
    }

    async fn event(&mut self) -> Event {
        let next = timeout(PATIENCE, self.0.message()).await.expect("an event in time");
        next.unwrap().expect("the watch to go on").event.unwrap()
    }

    /// The ids of what comes before `synced`, in order, and how many capacities.
    async fn synced(&mut self) -> (Vec<String>, usize) {
        let (mut ids, mut capacities) = (Vec::new(), 0);
        loop {
            match self.event().await {
                Event::Put(instance) => ids.push(instance.id),
                Event::Capacity(_) => capacities += 1,
                Event::Synced(_) => break,
                Event::Gone(id) => panic!("{id} is gone"),
            }
        }
        ids.sort_unstable();
        (ids, capacities)
    }

    /// The next event that is not about capacity.
    async fn change(&mut self) -> Event {
        loop {
            match self.event().await {
                Event::Capacity(_) => {}
                event => return event,
            }
        }
    }
}

/// A client whose local API is served.
fn client(world: &World) -> Client {
    let client = world.client();
    client.peer.serve(client.manager.local_routes());
    client
}

fn runs(allocator: &FakeAllocator) -> String {
    allocator.runs_quietly(&spec(HELLO), InstanceId::random()).to_string()
}

fn sorted<const N: usize>(mut ids: [String; N]) -> Vec<String> {
    ids.sort_unstable();
    ids.into()
}

#[tokio::test]
async fn one_stream_tells_of_all_allocators_and_their_changes() {
    let world = World::new();
    let [a, b] = [0, 1].map(|_| world.allocator());
    let client = client(&world);
    world.distance(&client, &a, 7);
    let ids = sorted([runs(&a), runs(&a), runs(&b)]);
    let mut watcher = Watcher::all(&world, &client).await;
    assert_eq!(watcher.synced().await, (ids, 2));

    let mut changed = a.instances().remove(0);
    changed.state = InstanceState::Draining.into();
    a.tell(Some(Event::Put(changed.clone())));
    let Event::Put(told) = watcher.change().await else { panic!("not a change") };
    assert_eq!((told.id, told.rtt_us), (changed.id.clone(), Some(7000)));
    a.tell(Some(Event::Gone(changed.id.clone())));
    assert_eq!(watcher.change().await, Event::Gone(changed.id));
}

#[tokio::test]
async fn a_peer_speaks_for_itself_alone() {
    let world = World::new();
    let [honest, liar] = [0, 1].map(|_| world.allocator());
    let client = client(&world);
    let id = runs(&honest);
    let mut watcher = Watcher::all(&world, &client).await;
    watcher.synced().await;
    let mut stolen = honest.instances().remove(0);
    liar.tell(Some(Event::Put(stolen.clone())));
    liar.tell(Some(Event::Gone(id.clone())));
    stolen.peer = liar.id().to_string();
    liar.tell(Some(Event::Put(stolen.clone())));
    stolen.id = "junk".into();
    liar.tell(Some(Event::Put(stolen.clone())));
    stolen.id = InstanceId::random().to_string();
    liar.tell(Some(Event::Put(stolen.clone())));
    let Event::Put(told) = watcher.change().await else { panic!("a lie was believed") };
    assert_eq!(told.id, stolen.id);
}

#[tokio::test]
async fn an_allocator_that_comes_later_is_followed() {
    let world = World::new();
    let client = client(&world);
    let first = world.allocator();
    let mut watcher = Watcher::all(&world, &client).await;
    watcher.synced().await;
    let second = world.allocator();
    let ids = [runs(&first), runs(&second)];
    first.tell(Some(Event::Put(first.instances().remove(0))));
    let mut told = Vec::new();
    while told.len() < 2 {
        if let Event::Put(instance) = watcher.change().await {
            told.push(instance.id);
        }
    }
    told.sort_unstable();
    assert_eq!(told, sorted(ids));
}

#[tokio::test]
async fn what_ended_while_the_stream_was_broken_is_gone_and_nothing_else() {
    let world = World::new();
    let [a, b] = [0, 1].map(|_| world.allocator());
    let client = client(&world);
    let lost = runs(&a);
    let kept = runs(&b);
    let mut watcher = Watcher::all(&world, &client).await;
    watcher.synced().await;
    a.loses_all();
    let new = runs(&a);
    a.tell(None);
    let mut changes = Vec::new();
    while !changes.contains(&Event::Gone(lost.clone())) {
        changes.push(watcher.change().await);
    }
    assert!(matches!(&changes[0], Event::Put(instance) if instance.id == new), "{changes:?}");
    assert!(!changes.contains(&Event::Gone(kept)), "{changes:?}");
}

#[tokio::test]
async fn the_instances_of_a_dead_allocator_are_gone_and_come_back_with_it() {
    let world = World::new();
    let [a, b] = [0, 1].map(|_| world.allocator());
    let client = client(&world);
    let (id, _other) = (runs(&a), runs(&b));
    let mut watcher = Watcher::all(&world, &client).await;
    watcher.synced().await;
    // Its connection stays open and silent.
    world.network.take_down(a.id());
    assert_eq!(watcher.change().await, Event::Gone(id.clone()));
    let Event::Capacity(none) = watcher.event().await else { panic!("its capacity is no more") };
    assert_eq!((none.peer, none.total), (a.id().to_string(), None));
    world.network.bring_up(a.id());
    let Event::Put(back) = watcher.change().await else { panic!("it does not come back") };
    assert_eq!(back.id, id);
}

#[tokio::test]
async fn a_hung_allocator_holds_nobody_up() {
    let world = World::new();
    let well = world.allocator();
    // It accepts connections and never answers; another one is not even there.
    let _hung = world.allocator_that(Behaviour::Hangs);
    let dead = world.allocator();
    world.network.take_down(dead.id());
    let client = client(&world);
    let id = runs(&well);
    let since = Instant::now();
    let mut watcher = Watcher::all(&world, &client).await;
    let Event::Put(first) = watcher.change().await else { panic!("not an instance") };
    assert_eq!(first.id, id);
    assert_eq!(watcher.change().await, Event::Synced(true));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_does_not_read_is_cut_off() {
    let world = World::new();
    let allocator = world.allocator();
    let client = client(&world);
    runs(&allocator);
    let mut watcher = Watcher::all(&world, &client).await;
    watcher.synced().await;
    let instance = allocator.instances().remove(0);
    let large = lca::api::proto::Instance { reason: "x".repeat(10_000), ..instance };
    let full = async {
        // More than all that lies between: windows, queues and pipes.
        for _ in 0..20_000 {
            allocator.tell(Some(Event::Put(large.clone())));
            tokio::task::yield_now().await;
        }
        // The allocator itself would cut off as well; here it is patient.
        tokio::time::sleep(Duration::from_secs(60)).await;
    };
    full.await;
    let end = loop {
        match watcher.0.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it is not told why"),
            Err(status) => break Error::from(status),
        }
    };
    assert_eq!(end.kind(), Kind::NoCapacity);
    assert!(end.public().contains("did not read for 5s"), "{}", end.public());
}

#[tokio::test]
async fn a_watch_ends_with_the_daemon_and_without_its_watcher() {
    let world = World::new();
    let client = client(&world);
    let watcher = Watcher::all(&world, &client).await;
    let free = || client.manager.inner.watchers.available_permits();
    assert_eq!(free(), 63);
    drop(watcher);
    eventually("the place to be free", async || free() == 64).await;
    let mut watcher = Watcher::all(&world, &client).await;
    assert!(world.drain().await, "nothing had to be forced");
    while let Ok(Some(_)) = watcher.0.message().await {}
}

#[tokio::test]
async fn only_what_was_asked_for_is_told_and_nonsense_is_refused() {
    let world = World::with([spec(HELLO), spec("other")]);
    let allocator = world.allocator();
    let client = client(&world);
    let id = runs(&allocator);
    allocator.runs_quietly(&spec("other"), InstanceId::random());
    let which = WatchInstancesRequest { service: HELLO.into(), ..Default::default() };
    let mut watcher = Watcher::of(&world, &client, which).await.unwrap();
    assert_eq!(watcher.synced().await.0, [id]);
    let which = WatchInstancesRequest { service_hash: "no hash".into(), ..Default::default() };
    let refused = Watcher::of(&world, &client, which).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::InvalidArgument);
}
