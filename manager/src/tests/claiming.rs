//! What a manager does about a limit on instances: leave first, then the start.

use lca::{
    InstanceId, Kind, PeerId,
    api::proto::{self, allocate_request::Mode},
    testing::eventually,
};

use super::world::{Client, FakeAllocator, HELLO, World, hash_of, spec, wish};
use crate::policy;

fn limited(max: u32) -> proto::ServiceSpec {
    proto::ServiceSpec { max_instances: max, ..spec(HELLO) }
}

/// Three allocators, those that hold the claims first.
fn holders(world: &World) -> [FakeAllocator; 3] {
    let all = [(); 3].map(|()| world.allocator());
    let peers: Vec<_> = all.iter().map(FakeAllocator::id).collect();
    let ordered = policy::by_rendezvous(hash_of(&spec(HELLO)), &peers);
    let find = |peer: PeerId| all.iter().find(|one| one.id() == peer).unwrap().clone();
    [find(ordered[0]), find(ordered[1]), find(ordered[2])]
}

async fn knows_all(client: &Client) {
    eventually("all allocators to be known", async || {
        let known = client.manager.inner.allocators.list().len();
        if known == 3 { Ok(()) } else { Err(known) }
    })
    .await;
}

fn taken(instances: &[(InstanceId, &FakeAllocator)], claims: u32) -> Option<proto::ClaimResponse> {
    let instances = instances.iter().map(|(id, at)| proto::ClaimedInstance {
        instance: id.to_string(),
        peer: at.id().to_string(),
    });
    Some(proto::ClaimResponse { granted: false, instances: instances.collect(), claims })
}

#[tokio::test]
async fn leave_is_asked_of_both_holders_and_bound_to_what_was_started_with_it() {
    let world = World::with([limited(2)]);
    let [first, second, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    let target = client.pick().await.unwrap();
    let started: Vec<_> =
        [&first, &second, &third].into_iter().flat_map(FakeAllocator::asked).collect();
    assert_eq!(started.len(), 1);
    for holder in [&first, &second] {
        let claimed = eventually("the claim to be bound", async || {
            let claimed = holder.claimed();
            if claimed.len() == 2 { Ok(claimed) } else { Err(claimed) }
        })
        .await;
        assert_eq!((claimed[0].limit, claimed[0].instance.as_str()), (2, ""));
        assert!(claimed[0].ttl_ms > 0);
        assert_eq!(claimed[0].request_id, started[0].request_id, "the claim of that call");
        assert_eq!(claimed[1].instance, target.instance.to_string());
        assert_eq!(claimed[1].peer, target.endpoint.peer.to_string());
    }
    assert!(third.claimed().is_empty());
    let steps: Vec<_> = target.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["spec", "find", "claim", "allocate", "spawn"]);
}

#[tokio::test]
async fn a_service_without_a_limit_is_not_claimed() {
    let world = World::new();
    let all = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    client.pick().await.unwrap();
    assert!(all.iter().all(|one| one.claimed().is_empty()));
}

#[tokio::test]
async fn what_is_there_is_used_where_no_more_may_be_and_the_half_won_is_given_back() {
    let world = World::with([limited(1)]);
    let [first, second, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    let id = third.runs_quietly(&limited(1), InstanceId::random());
    second.says_taken(taken(&[(id, &third)], 0));
    let target = client.pick().await.unwrap();
    assert_eq!((target.instance, target.endpoint.peer), (id, third.id()));
    assert!([&first, &second, &third].iter().all(|one| one.asked().is_empty()));
    let told = eventually("the first to be given its grant back", async || {
        let told = first.claimed();
        if told.len() == 2 { Ok(told) } else { Err(told) }
    })
    .await;
    assert_eq!((told[1].ttl_ms, told[1].instance.as_str()), (0, ""));
    assert_eq!(told[1].request_id, told[0].request_id);
    assert_eq!(second.claimed().len(), 1, "nothing was granted there");
}

#[tokio::test]
async fn one_that_somebody_else_starts_is_waited_for() {
    let world = World::with([limited(1)]);
    let [first, _, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    first.says_taken(taken(&[], 1));
    let picking = tokio::spawn(async move { client.pick().await });
    eventually("the holder to be asked again", async || {
        let asked = first.claimed().len();
        if asked > 2 { Ok(()) } else { Err(asked) }
    })
    .await;
    let id = third.runs_quietly(&limited(1), InstanceId::random());
    first.says_taken(taken(&[(id, &third)], 0));
    assert_eq!(picking.await.unwrap().unwrap().instance, id);
}

#[tokio::test]
async fn another_beyond_the_limit_is_refused_and_says_so() {
    let world = World::with([limited(1)]);
    let [first, _, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    let id = third.runs_quietly(&limited(1), InstanceId::random());
    first.says_taken(taken(&[(id, &third)], 0));
    let wish = wish(HELLO);
    let mut wait = client.manager.another(&wish, "mine".parse().unwrap()).await.unwrap();
    let error = wait.end(&wish).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    assert_eq!(error.public(), "hello may have 1 instances at most, and 1 run");
    assert!(third.asked().is_empty());
    first.says_taken(None);
    let mut wait = client.manager.another(&wish, "again".parse().unwrap()).await.unwrap();
    wait.end(&wish).await.unwrap();
    let asked = first.asked().into_iter().chain(third.asked());
    assert!(asked.into_iter().all(|one| one.mode() == Mode::New));
}

#[tokio::test]
async fn an_instance_beyond_hard_is_no_answer_and_the_reason_says_how_far() {
    let far = proto::ServiceSpec {
        requirements: Some(proto::Requirements { soft_rtt_ms: 0, hard_rtt_ms: 20 }),
        ..limited(1)
    };
    let world = World::with([far.clone()]);
    let [first, _, third] = holders(&world);
    let client = world.client();
    world.distance(&client, &third, 50);
    knows_all(&client).await;
    let id = third.runs_quietly(&far, InstanceId::random());
    first.says_taken(taken(&[(id, &third)], 0));
    let error = client.pick().await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    assert!(error.public().contains("50.0ms away, beyond the hard limit of 20ms"), "{error}");
}

#[tokio::test]
async fn holders_that_cannot_be_reached_do_not_keep_anybody_from_starting() {
    let world = World::with([limited(1)]);
    let [first, second, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    world.network.take_down(first.id());
    world.network.take_down(second.id());
    let target = client.pick().await.unwrap();
    assert_eq!(target.endpoint.peer, third.id());
    assert_eq!(third.claimed()[0].limit, 1, "the next in order is asked instead");
}
