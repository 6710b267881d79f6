//! A peer that speaks our protocols and lies.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use lca::{discovery::Discovery as _, testing::eventually};
use lca_node::{Identity, Timing, record};
use libp2p::{
    Multiaddr, StreamProtocol, Swarm, SwarmBuilder, identify,
    kad::{
        self, Quorum, Record, RecordKey,
        store::{MemoryStore, RecordStore as _},
    },
    noise,
    swarm::NetworkBehaviour,
    tcp, yamux,
};
use tokio::task::JoinSet;

use crate::net::{Running, config, finds, network, some_service, started};

/// What it takes to be in the table of others, and be asked.
#[derive(NetworkBehaviour)]
struct Liar {
    kademlia: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
}

/// A libp2p peer in our network whose store takes anything.
async fn liar(victim: &Running) -> Swarm<Liar> {
    liar_as(kad::Mode::Server, victim).await
}

/// The same; one that is a client is asked nothing, and tells its lies all the same.
async fn liar_as(mode: kad::Mode, victim: &Running) -> Swarm<Liar> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|key| {
            let id = key.public().to_peer_id();
            let config = kad::Config::new(StreamProtocol::new("/lca/kad/1"));
            let mut kademlia = kad::Behaviour::with_config(id, MemoryStore::new(id), config);
            kademlia.set_mode(Some(mode));
            let identify = identify::Config::new("lca/1".to_owned(), key.public());
            Liar { kademlia, identify: identify::Behaviour::new(identify) }
        })
        .expect("a behaviour")
        .build();
    let any = "/ip4/127.0.0.1/tcp/0".parse().expect("an address");
    swarm.listen_on(any).expect("listening");
    let at: Multiaddr = victim.address().to_string().parse().expect("an address");
    swarm.behaviour_mut().kademlia.add_address(&libp2p_id(victim.peer()), at.clone());
    swarm.dial(at).expect("dialling");
    swarm
}

fn libp2p_id(peer: lca::PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_bytes()).expect("an id")
}

fn value(peer: lca::PeerId, bytes: Vec<u8>) -> Record {
    Record::new(peer.to_bytes().to_vec(), bytes)
}

/// Tells one lie again and again until the victim has counted it.
async fn is_counted(
    victim: &Running,
    liar: &mut Swarm<Liar>,
    lie: &str,
    mut tell: impl FnMut(&mut kad::Behaviour<MemoryStore>),
) {
    // What was told before may still be on its way.
    let mut before = refused(victim);
    eventually("what was told before to be counted", async || {
        drive(liar).await;
        let seen = std::mem::replace(&mut before, refused(victim));
        (before == seen).then_some(()).ok_or(before)
    })
    .await;
    eventually(lie, async || {
        tell(&mut liar.behaviour_mut().kademlia);
        drive(liar).await;
        let status = victim.node.status().borrow().clone();
        (status.refused > before).then_some(()).ok_or(status)
    })
    .await;
}

fn refused(victim: &Running) -> u64 {
    victim.node.status().borrow().refused
}

/// Lets a swarm work for a while: longer than its answers take, and than a status is old.
async fn drive(swarm: &mut Swarm<Liar>) {
    let events = async {
        loop {
            swarm.select_next_some().await;
        }
    };
    let _over = tokio::time::timeout(Duration::from_millis(300), events).await;
}

#[tokio::test]
async fn forged_and_malformed_records_are_dropped_and_counted_and_the_node_lives() {
    let nodes = network(3, &Default::default()).await;
    let victim = &nodes[0];
    let honest = &nodes[1];
    let mut liar = liar(victim).await;
    let (forger, victim_id) = (Identity::ephemeral(), libp2p_id(victim.peer()));

    let about = |peer, boot| {
        let endpoint = lca::endpoint::Endpoint { peer, boot, ..(*honest.node.own()).clone() };
        record::sign(&forger, &endpoint).unwrap()
    };
    let stolen = about(forger.peer_id(), 1);
    let values = [
        ("signed by somebody else", value(honest.peer(), about(honest.peer(), 1_000))),
        ("of another peer", value(honest.peer(), stolen)),
        ("junk", value(honest.peer(), b"junk".to_vec())),
        ("too long", value(honest.peer(), vec![0; 60_000])),
        ("of no peer", Record::new(b"/not/a/peer".to_vec(), about(forger.peer_id(), 1))),
    ];
    for (lie, value) in values {
        is_counted(victim, &mut liar, lie, |kademlia| {
            let expires = Some(Instant::now() + Duration::from_secs(500));
            let value = Record { expires, ..value.clone() };
            kademlia.put_record_to(value, [victim_id].into_iter(), Quorum::One);
        })
        .await;
    }
    liar.add_external_address("/ip4/127.0.0.1/tcp/9".parse().unwrap());
    is_counted(victim, &mut liar, "an announcement of junk", |kademlia| {
        let junk = RecordKey::from(b"/lca/service/junk".to_vec());
        let _announced = kademlia.start_providing(junk);
    })
    .await;
    // A record of a peer that is long gone: true once, and kept here for ever.
    let gone = Identity::ephemeral();
    let endpoint = lca::endpoint::Endpoint { peer: gone.peer_id(), ..(*honest.node.own()).clone() };
    let expired = value(gone.peer_id(), record::sign(&gone, &endpoint).unwrap());
    liar.behaviour_mut().kademlia.store_mut().put(expired).expect("its store takes anything");
    let (node, peer) = (victim.node.clone(), gone.peer_id());
    let mut asking = None;
    is_counted(victim, &mut liar, "an expired record", |_| {
        let node = node.clone();
        asking.get_or_insert_with(|| tokio::spawn(async move { node.endpoint(peer).await }));
    })
    .await;
    let driven = tokio::spawn(async move {
        loop {
            liar.select_next_some().await;
        }
    });
    let believed = asking.expect("it was asked for").await.unwrap();
    assert!(believed.is_err(), "an expired record was believed: {believed:?}");
    driven.abort();

    let key = some_service();
    honest.node.announce(key).await.unwrap();
    let endpoint = finds(&victim.node, key, honest.peer()).await;
    assert_eq!(endpoint.mesh, honest.node.mesh_addresses());
    assert!(victim.node.endpoint(forger.peer_id()).await.is_err(), "never a peer of its own");
}

#[tokio::test]
async fn a_provider_that_has_no_verified_endpoint_is_never_yielded() {
    let nodes = network(3, &Default::default()).await;
    let mut liar = liar(&nodes[0]).await;
    let key = some_service();
    let lca::discovery::Key::Service(hash) = key else { unreachable!() };
    let in_dht = RecordKey::from([b"/lca/service/".as_slice(), hash.as_bytes()].concat());
    let driven = tokio::spawn(async move {
        let mut again = tokio::time::interval(Duration::from_millis(300));
        liar.add_external_address("/ip4/127.0.0.1/tcp/9".parse().unwrap());
        loop {
            tokio::select! {
                _ = liar.select_next_some() => {}
                _ = again.tick() => drop(liar.behaviour_mut().kademlia.start_providing(in_dht.clone())),
            }
        }
    });
    eventually("the false announcement to be kept", async || {
        let status = nodes[0].node.status().borrow().clone();
        (status.announcements_held > 0).then_some(()).ok_or(status)
    })
    .await;
    nodes[1].node.announce(key).await.unwrap();
    let endpoint = finds(&nodes[2].node, key, nodes[1].peer()).await;
    assert_eq!(endpoint.peer, nodes[1].peer());
    let found = crate::net::found(&nodes[2].node, key).await;
    assert_eq!(found.len(), 1, "one dead record hides no live one, and is not told: {found:?}");
    driven.abort();
}

/// More than one answer names, so that an answer may well name nobody else.
const SYBILS: usize = 40;

// FAULTS 50.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_announces_after_a_crowd_of_liars_is_found_all_the_same() {
    let nodes = started(4, &Default::default(), Timing::default()).await;
    let key = some_service();
    let lca::discovery::Key::Service(hash) = key else { unreachable!() };
    let in_dht = RecordKey::from([b"/lca/service/".as_slice(), hash.as_bytes()].concat());
    let mut lying = JoinSet::new();
    for _ in 0..SYBILS {
        let mut liar = liar_as(kad::Mode::Client, &nodes[0]).await;
        liar.add_external_address("/ip4/127.0.0.1/tcp/9".parse().unwrap());
        let in_dht = in_dht.clone();
        lying.spawn(async move {
            let mut again = tokio::time::interval(Duration::from_secs(2));
            loop {
                tokio::select! {
                    _ = liar.select_next_some() => {}
                    _ = again.tick() => {
                        drop(liar.behaviour_mut().kademlia.start_providing(in_dht.clone()));
                    }
                }
            }
        });
    }
    for node in &nodes {
        eventually("every liar to be kept", async || {
            let held = node.node.status().borrow().announcements_held;
            if held >= SYBILS { Ok(()) } else { Err(held) }
        })
        .await;
    }
    for honest in &nodes[1..3] {
        honest.node.announce(key).await.unwrap();
    }
    for honest in &nodes[1..3] {
        finds(&nodes[3].node, key, honest.peer()).await;
    }
    let found = crate::net::found(&nodes[0].node, key).await;
    assert!(found.iter().all(|one| nodes.iter().any(|node| node.peer() == one.peer)), "{found:?}");
    lying.shutdown().await;
}

#[tokio::test]
async fn announcements_beyond_the_bound_are_refused_with_a_reason() {
    let one = Running::start(config(vec![])).await.unwrap();
    let mut refused = None;
    for _ in 0..300 {
        if let Err(error) = one.node.announce(some_service()).await {
            refused = Some(error);
            break;
        }
    }
    assert_eq!(refused.expect("there is a bound").kind(), lca::Kind::NoCapacity);
}

#[tokio::test]
async fn a_node_with_only_hostile_neighbours_says_so_and_finds_its_way_back() {
    let bootstrap = Running::start(config(vec![])).await.unwrap();
    let node = Running::start(config(vec![bootstrap.address()])).await.unwrap();
    let down = bootstrap.crash();
    let mut driven = Vec::new();
    for _ in 0..8 {
        let mut liar = liar(&node).await;
        driven.push(tokio::spawn(async move {
            loop {
                liar.select_next_some().await;
            }
        }));
    }
    eventually("only liars to be connected, and that to be seen", async || {
        let status = node.node.status().borrow().clone();
        // Liars that are found out are dropped, so not all eight may be left by now.
        let alone_among_liars = status.peers > 0 && status.bootstraps_reached == 0;
        (alone_among_liars && status.bootstraps == 1).then_some(()).ok_or(status)
    })
    .await;
    let back = eventually("its port to be free", async || Running::start(down.clone()).await).await;
    let key = some_service();
    back.node.announce(key).await.unwrap();
    eventually("the bootstrap to be dialled again", async || {
        let status = node.node.status().borrow().clone();
        (status.bootstraps_reached == 1).then_some(()).ok_or(status)
    })
    .await;
    finds(&node.node, key, back.peer()).await;
    driven.iter().for_each(tokio::task::JoinHandle::abort);
}
