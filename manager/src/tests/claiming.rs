//! What a manager does about a limit on instances: leave first, then the start.

use std::time::Duration;

use lca::{
    Error, InstanceId, Kind, PeerId,
    api::proto::{self, allocate_request::Mode},
    rendezvous,
    testing::eventually,
};

use tokio::time::Instant;

use super::world::{Behaviour, Client, FakeAllocator, HELLO, World, hash_of, spec, wish};

fn limited(max: u32) -> proto::ServiceSpec {
    proto::ServiceSpec { max_instances: max, ..spec(HELLO) }
}

/// Three allocators, those that hold the claims first.
fn holders(world: &World) -> [FakeAllocator; 3] {
    let all = [(); 3].map(|()| world.allocator());
    let peers: Vec<_> = all.iter().map(FakeAllocator::id).collect();
    let ordered = rendezvous::order(hash_of(&spec(HELLO)), peers);
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

#[tokio::test(start_paused = true)]
async fn leave_is_renewed_while_the_start_goes_on() {
    let world = World::with([limited(1)]);
    let all = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    all.iter().for_each(|one| one.becomes(Behaviour::Takes(Duration::from_secs(10))));
    let target = client.pick().await.unwrap();
    for holder in &all[..2] {
        let told = eventually("the claim to be bound", async || {
            let told = holder.claimed();
            let bound = told.last().is_some_and(|last| !last.instance.is_empty());
            if bound { Ok(told) } else { Err(told) }
        })
        .await;
        // Asked, renewed after 3, 6 and 9 seconds, and bound.
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[..4].iter().all(|one| one.ttl_ms > 0 && one.limit == 1));
        assert!(told.iter().all(|one| one.request_id == told[0].request_id));
        assert_eq!(told[4].instance, target.instance.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_holder_that_falls_silent_may_have_granted_is_given_back_and_the_next_is_asked() {
    let world = World::with([limited(1)]);
    let [first, second, third] = holders(&world);
    let client = world.client();
    world.distance(&client, &first, 40);
    knows_all(&client).await;
    first.becomes(Behaviour::Hangs);
    let target = client.pick().await.unwrap();
    assert_ne!(target.endpoint.peer, first.id());
    let told = eventually("the first to be given back what it never said", async || {
        let told = first.claimed();
        if told.len() > 1 { Ok(told) } else { Err(told) }
    })
    .await;
    assert!(told[0].ttl_ms > 0 && told[1].ttl_ms == 0, "{told:?}");
    assert_eq!(told[1].request_id, told[0].request_id);
    assert!([second, third].iter().all(|one| one.claimed()[0].ttl_ms > 0));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_falls_silent_during_the_start_does_not_end_it() {
    let world = World::with([limited(1)]);
    let [first, second, third] = holders(&world);
    let client = world.client();
    world.distance(&client, &first, 40);
    knows_all(&client).await;
    for one in [&second, &third] {
        one.becomes(Behaviour::Takes(Duration::from_secs(10)));
    }
    let picking = tokio::spawn(async move { client.pick().await });
    eventually("the start to begin", async || second.asked().len() + third.asked().len() == 1)
        .await;
    world.network.take_down(first.id());
    let instance = picking.await.unwrap().unwrap().instance;
    eventually("the other holder to be told what it became", async || {
        second.claimed().last().is_some_and(|last| last.instance == instance.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_holder_that_holds_all_it_can_says_no_and_is_not_passed_over() {
    let world = World::with([limited(1)]);
    let [first, second, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    first.refuses_claims(Some(Error::new(Kind::NoCapacity, "too many claims are held for it")));
    let picking = tokio::spawn(async move { client.pick().await });
    eventually("the holder to be asked again", async || first.claimed().len() > 2).await;
    assert!([&second, &third].iter().all(|one| one.claimed().is_empty()));
    first.refuses_claims(None);
    picking.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_only_holders_can_reach_is_waited_for_three_seconds_and_named() {
    let world = World::with([limited(1)]);
    let [first, _, third] = holders(&world);
    let client = world.client();
    knows_all(&client).await;
    let id = third.runs_quietly(&limited(1), InstanceId::random());
    first.says_taken(taken(&[(id, &third)], 0));
    world.network.take_down(third.id());
    let begun = Instant::now();
    let error = client.pick().await.unwrap_err();
    assert_eq!((error.kind(), error.to_problem("").status().as_u16()), (Kind::NoCapacity, 503));
    assert!(error.retry_delay().is_some());
    let named = format!("peer {}, where one runs, cannot be reached from here", third.id().short());
    assert!(error.public().contains(&named), "{error}");
    let took = begun.elapsed();
    assert!((2500..4000).contains(&took.as_millis()), "{took:?}");
    // A link that comes back in that time costs nobody an answer, ...
    let (world_network, back) = (world.network.clone(), third.id());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        world_network.bring_up(back);
    });
    assert_eq!(client.pick().await.unwrap().instance, id);
    // ... and what its holder has not reached, either, is waited for until it knows more.
    client.manager.inner.cache().forget(third.id());
    world.network.take_down(third.id());
    first.says_taken(taken(&[(id, &third)], 1));
    let free = first.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(6)).await;
        free.says_taken(None);
    });
    assert_ne!(client.pick().await.unwrap().instance, id, "it was found dead");
}
