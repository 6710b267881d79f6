//! A holder of claims with a real table of instances, its own and those of others.

use std::{sync::Arc, time::Duration};

use lca::{
    Kind, PeerId, Result, Spec,
    api::{
        Caller,
        proto::{self, InstanceState, allocate_request::Mode, allocator_server::Allocator as _},
    },
    discovery::{Discovery as _, memory::Network},
    testing::eventually,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, service::Routes};

use super::twins::{PATIENCE, World, config, id};
use crate::driver::fake::{Behaviour, Fake};

async fn claim_as(
    world: &World,
    peer: u8,
    spec: &Spec,
    change: impl FnOnce(&mut proto::ClaimRequest),
) -> Result<proto::ClaimResponse> {
    let mut claim = proto::ClaimRequest {
        service_hash: spec.hash().to_string(),
        request_id: "r1".into(),
        limit: 1,
        ttl_ms: 10_000,
        ..Default::default()
    };
    change(&mut claim);
    let mut request = Request::new(claim);
    request.extensions_mut().insert(Caller::Peer(PeerId::from_public_key([peer; 32])));
    let answered = timeout(PATIENCE, world.allocator.claim(request)).await;
    Ok(answered.expect("an answer within its deadlines")?.into_inner())
}

#[tokio::test]
async fn what_an_allocator_runs_itself_counts_from_its_claim_to_its_end() {
    let world = World::new(Arc::new(Fake::default()), config()).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    assert!(claim_as(&world, 1, &spec, |_| {}).await.unwrap().granted);
    let refused = claim_as(&world, 2, &spec, |_| {}).await.unwrap();
    assert_eq!((refused.granted, refused.claims, refused.instances.len()), (false, 1, 0));
    let id = id(&world.allocate(&spec, Mode::Ensure, "r1").await.unwrap());
    let peer = world.own.local().to_string();
    let bound = |claim: &mut proto::ClaimRequest| {
        (claim.instance, claim.peer, claim.ttl_ms) = (id.clone(), peer.clone(), 0);
    };
    claim_as(&world, 1, &spec, bound).await.unwrap();
    let refused = claim_as(&world, 2, &spec, |_| {}).await.unwrap();
    assert_eq!((refused.claims, refused.instances.len()), (0, 1));
    assert_eq!((&refused.instances[0].instance, &refused.instances[0].peer), (&id, &peer));
    let two = claim_as(&world, 2, &spec, |claim| claim.limit = 2).await.unwrap();
    assert!(two.granted);
    claim_as(&world, 2, &spec, |claim| claim.ttl_ms = 0).await.unwrap();

    world.release(&id).await.unwrap();
    eventually("the place to be free", async || {
        claim_as(&world, 3, &spec, |_| {}).await.unwrap().granted.then_some(())
    })
    .await;
}

/// FAULTS 41: nothing that runs is forgotten with the claims.
#[tokio::test]
async fn a_holder_that_knows_of_no_claim_finds_what_starts_here_and_elsewhere() {
    let fake = Fake::default();
    let world = World::new(Arc::new(fake.clone()), config()).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    fake.behave(&spec.name, Behaviour { listens_after: None, ..Default::default() });
    let request = Request::new(proto::AllocateRequest {
        service: "hello".into(),
        service_hash: spec.hash().to_string(),
        request_id: "r9".into(),
        ..Default::default()
    });
    let allocator = world.allocator.clone();
    let starting = tokio::spawn(async move { allocator.allocate(request).await });
    eventually("it to be starting", async || {
        let listed = world.list(false).await;
        listed.iter().any(|one| one.state() == InstanceState::Starting).then_some(())
    })
    .await;
    let refused = claim_as(&world, 1, &spec, |_| {}).await.unwrap();
    assert_eq!((refused.granted, refused.instances.len()), (false, 1));
    starting.abort();
}

#[tokio::test]
async fn another_allocator_is_asked_what_it_runs() {
    let (here, there) =
        World::pair(&Network::default(), Arc::new(Fake::default()), Arc::new(Fake::default()))
            .await;
    let routes = Routes::new(there.allocator.allocator_server());
    there.own.serve(routes.add_service(there.allocator.instances_server()));
    let spec = here.add("hello", "/bin/hello", |_| {});
    there.add("hello", "/bin/hello", |_| {});
    let id = id(&there.allocate(&spec, Mode::Ensure, "r1").await.unwrap());
    let refused = claim_as(&here, 1, &spec, |_| {}).await.unwrap();
    assert_eq!(refused.instances[0].instance, id);
    assert_eq!(refused.instances[0].peer, there.own.local().to_string());
    there.release(&id).await.unwrap();
    eventually("the place to be free", async || {
        claim_as(&here, 1, &spec, |_| {}).await.unwrap().granted.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_means_nothing_is_refused() {
    let world = World::new(Arc::new(Fake::default()), config()).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    let changes: [fn(&mut proto::ClaimRequest); 4] = [
        |claim| claim.service_hash = "x".into(),
        |claim| claim.request_id = String::new(),
        |claim| claim.limit = 0,
        |claim| (claim.instance, claim.peer) = ("zz".into(), "zz".into()),
    ];
    for change in changes {
        let error = claim_as(&world, 1, &spec, change).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
}

/// Of a service that is kept, where there may be as many as are kept and no more.
#[tokio::test(start_paused = true)]
async fn an_instance_that_is_kept_counts_as_one_at_both_holders_and_comes_back_when_it_ends() {
    let fake = Fake::default();
    let worlds = World::peers(Arc::new(fake.clone()), config()).await;
    let kept = |spec: &mut proto::ServiceSpec| (spec.min_instances, spec.max_instances) = (1, 1);
    let [spec, _] = worlds.each_ref().map(|world| world.add("kept", "/bin/kept", kept));
    let ready = async || {
        eventually("one to be kept", async || {
            for world in &worlds {
                let listed = world.list(false).await;
                if let Some(one) = listed.iter().find(|one| one.state() == InstanceState::Ready) {
                    return Some((world, one.id.clone()));
                }
            }
            None
        })
        .await
    };
    let (world, first) = ready().await;
    // The other holder is told behind the start.
    sleep(Duration::from_secs(1)).await;
    for holder in &worlds {
        let refused = claim_as(holder, 9, &spec, |_| {}).await.unwrap();
        assert_eq!((refused.granted, refused.claims, refused.instances.len()), (false, 0, 1));
    }
    world.release(&first).await.unwrap();
    let ended = Instant::now();
    assert_ne!(ready().await.1, first);
    assert!(ended.elapsed() < Duration::from_secs(5), "after {:?}", ended.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_keeper_without_room_takes_no_place_from_others() {
    let mut full = config();
    full.capacity.instances = 0;
    let worlds = World::peers(Arc::new(Fake::default()), full).await;
    let kept = |spec: &mut proto::ServiceSpec| (spec.min_instances, spec.max_instances) = (1, 2);
    let [spec, _] = worlds.each_ref().map(|world| world.add("kept", "/bin/kept", kept));
    for _ in 0..60 {
        sleep(Duration::from_millis(1_050)).await;
        for holder in &worlds {
            let two = |claim: &mut proto::ClaimRequest| claim.limit = 2;
            let answer = claim_as(holder, 9, &spec, two).await.unwrap();
            assert!(answer.granted, "{answer:?}");
            claim_as(holder, 9, &spec, |claim| claim.ttl_ms = 0).await.unwrap();
        }
    }
}

/// One whose connections are accepted and whose answers do not come.
#[tokio::test(start_paused = true)]
async fn what_a_slow_allocator_runs_counts_until_it_is_silent_and_the_answer_comes_in_time() {
    let network = Network::default();
    let (here, there) =
        World::pair(&network, Arc::new(Fake::default()), Arc::new(Fake::default())).await;
    let spec = here.add("hello", "/bin/hello", |_| {});
    let peer = there.own.local().to_string();
    assert!(claim_as(&here, 1, &spec, |_| {}).await.unwrap().granted);
    let bound = |claim: &mut proto::ClaimRequest| {
        (claim.instance, claim.peer) = (lca::InstanceId::random().to_string(), peer.clone());
    };
    claim_as(&here, 1, &spec, bound).await.unwrap();
    there.own.stall();
    for _ in 0..10 {
        let asked = Instant::now();
        let refused = claim_as(&here, 2, &spec, |_| {}).await.unwrap();
        assert_eq!((refused.granted, refused.instances.len()), (false, 1));
        assert!(asked.elapsed() < Duration::from_millis(2_600), "took {:?}", asked.elapsed());
        sleep(Duration::from_secs(2)).await;
    }
    network.take_down(there.own.local());
    assert!(claim_as(&here, 2, &spec, |_| {}).await.unwrap().granted);
}

/// What managers that do not know of each other say before they choose.
#[tokio::test]
async fn whoever_asks_second_hears_where_the_first_goes_and_then_what_was_begun() {
    let fake = Fake::default();
    let world = World::new(Arc::new(fake.clone()), config()).await;
    let spec = world.add("hello", "/bin/hello", |_| {});
    fake.behave(&spec.name, Behaviour { listens_after: None, ..Default::default() });
    let peer = |n: u8| PeerId::from_public_key([n; 32]);
    let intend = async |by: u8, at: u8| {
        let said = proto::IntendRequest {
            service_hash: spec.hash().to_string(),
            peer: peer(at).to_string(),
        };
        let mut request = Request::new(said);
        request.extensions_mut().insert(Caller::Peer(peer(by)));
        world.allocator.intend(request).await.unwrap().into_inner()
    };
    let meant = |at: u8| proto::IntendResponse { peer: peer(at).to_string(), instances: vec![] };
    assert_eq!(intend(1, 11).await, meant(11));
    assert_eq!(intend(2, 12).await, meant(11));
    let allocator = world.allocator.clone();
    let request = Request::new(proto::AllocateRequest {
        service: "hello".into(),
        service_hash: spec.hash().to_string(),
        request_id: "r1".into(),
        ..Default::default()
    });
    let starting = tokio::spawn(async move { allocator.allocate(request).await });
    let id = eventually("an instance that is on its way to be told", async || {
        intend(2, 12).await.instances.pop()
    })
    .await;
    world.release(&id).await.unwrap();
    assert_eq!(intend(2, 12).await.instances, Vec::<String>::new(), "what has ended is not told");
    starting.await.unwrap().unwrap_err();
    for (service_hash, peer) in
        [("x", peer(1).to_string()), (&*spec.hash().to_string(), "x".into())]
    {
        let said = proto::IntendRequest { service_hash: service_hash.into(), peer };
        let mut request = Request::new(said);
        request.extensions_mut().insert(Caller::Local);
        let refused = world.allocator.intend(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
