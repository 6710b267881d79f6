//! A peer that writes whatever bytes it likes where Kademlia is expected, and one that
//! speaks another network's Kademlia.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use lca::{
    discovery::{Discovery as _, Found, Key},
    testing::eventually,
};
use lca_node::Joined;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise,
    request_response::{self, Codec, Event, Message, ProtocolSupport},
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use prost::Message as _;
use tokio::time::timeout;

use crate::net::{PATIENCE, Running, config, finds, found, network, some_service};

/// What is written on one stream: these bytes, then so many chunks of zeros.
#[derive(Clone, Debug)]
struct Bytes(Vec<u8>, usize);

const CHUNK: usize = 64 << 10;

#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = ();

    async fn read_request<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<()>
    where
        T: AsyncRead + Unpin + Send,
    {
        io.read_to_end(&mut Vec::new()).await.map(drop)
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes.0).await?;
        for _ in 0..bytes.1 {
            io.write_all(&[0; CHUNK]).await?;
        }
        io.flush().await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, _: &mut T, (): ()) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        Ok(())
    }
}

#[derive(NetworkBehaviour)]
struct Writer {
    raw: request_response::Behaviour<Raw>,
    identify: identify::Behaviour,
}

/// A peer that says it speaks `protocol`, connected to `victim`.
async fn writer(victim: &Running, protocol: &'static str) -> Swarm<Writer> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|key| {
            let config = request_response::Config::default().with_request_timeout(PATIENCE);
            let protocols = [(StreamProtocol::new(protocol), ProtocolSupport::Full)];
            let identify = identify::Config::new("lca/1".to_owned(), key.public());
            Writer {
                raw: request_response::Behaviour::new(protocols, config),
                identify: identify::Behaviour::new(identify),
            }
        })
        .expect("a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("listening");
    while !matches!(swarm.select_next_some().await, SwarmEvent::NewListenAddr { .. }) {}
    let at: Multiaddr = victim.address().to_string().parse().expect("an address");
    swarm.dial(at).expect("dialling");
    let told = async {
        loop {
            if let SwarmEvent::Behaviour(WriterEvent::Identify(identify::Event::Sent { .. })) =
                swarm.select_next_some().await
            {
                break;
            }
        }
    };
    timeout(PATIENCE, told).await.expect("the victim is told what this peer speaks");
    swarm
}

/// Writes on a stream of its own. True if the victim ended it without complaint.
async fn write(swarm: &mut Swarm<Writer>, victim: &Running, bytes: Bytes) -> bool {
    let to = PeerId::from_bytes(&victim.peer().to_bytes()).expect("an id");
    swarm.behaviour_mut().raw.send_request(&to, bytes);
    let ended = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(WriterEvent::Raw(Event::Message {
                    message: Message::Response { .. },
                    ..
                })) => return true,
                SwarmEvent::Behaviour(WriterEvent::Raw(Event::OutboundFailure { .. })) => {
                    return false;
                }
                _ => {}
            }
        }
    };
    timeout(PATIENCE, ended).await.expect("the stream was left open")
}

/// As much of a Kademlia message as an announcement needs.
#[derive(Clone, PartialEq, prost::Message)]
struct Announcement {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    providers: Vec<Provider>,
    /// Nothing that anybody reads.
    #[prost(bytes = "vec", tag = "99")]
    padding: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Provider {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addresses: Vec<Vec<u8>>,
}

fn announcement(key: Key, provider: &[u8]) -> Bytes {
    padded(key, provider, 0)
}

/// The same, so many bytes longer.
fn padded(key: Key, provider: &[u8], padding: usize) -> Bytes {
    let Key::Service(hash) = key else { unreachable!() };
    let address: Multiaddr = "/ip4/127.0.0.1/tcp/9".parse().expect("an address");
    let provider = Provider { id: provider.to_vec(), addresses: vec![address.to_vec()] };
    let key = [b"/lca/service/".as_slice(), hash.as_bytes()].concat();
    const ADD_PROVIDER: i32 = 2;
    let (providers, padding) = (vec![provider], vec![7; padding]);
    let message = Announcement { kind: ADD_PROVIDER, key, providers, padding };
    Bytes(message.encode_length_delimited_to_vec(), 0)
}

async fn holds(victim: &Running, announcements: usize) {
    eventually(&format!("{announcements} announcements to be kept"), async || {
        let status = victim.node.status().borrow().clone();
        (status.announcements_held == announcements).then_some(()).ok_or(status)
    })
    .await;
}

#[tokio::test]
async fn nobody_can_announce_in_the_name_of_another() {
    let nodes = network(2, &Default::default()).await;
    let (victim, honest) = (&nodes[0], &nodes[1]);
    let mut forger = writer(victim, "/lca/kad/1").await;
    let own = forger.local_peer_id().to_bytes();
    let (first, forged, last) = (some_service(), some_service(), some_service());
    write(&mut forger, victim, announcement(first, &own)).await;
    holds(victim, 1).await;
    for _ in 0..5 {
        write(&mut forger, victim, announcement(forged, &honest.peer().to_bytes())).await;
    }
    // What was written later is kept, so what was written before has been looked at.
    write(&mut forger, victim, announcement(last, &own)).await;
    holds(victim, 2).await;
    assert!(found(&victim.node, forged).await.is_empty(), "the forged one was believed");
}

#[tokio::test]
async fn messages_too_long_without_end_or_without_sense_are_reset_and_hurt_nobody() {
    let nodes = network(2, &Default::default()).await;
    let (victim, honest) = (&nodes[0], &nodes[1]);
    let mut noise = writer(victim, "/lca/kad/1").await;
    let length = |of: usize| {
        let mut prefix = Vec::new();
        prost::encode_length_delimiter(of, &mut prefix).expect("room");
        prefix
    };
    let own = noise.local_peer_id().to_bytes();
    // A message has 64 KiB at most, and this one would be good but for that.
    write(&mut noise, victim, padded(some_service(), &own, 66_000)).await;
    let endless = Bytes(length(1 << 30), 1024);
    assert!(!write(&mut noise, victim, endless).await, "64 MiB of a message of 1 GiB");
    write(&mut noise, victim, Bytes(vec![0xff; 64], 0)).await;
    write(&mut noise, victim, Bytes([length(64), vec![0xff; 64]].concat(), 0)).await;
    write(&mut noise, victim, padded(some_service(), &own, 60_000)).await;
    holds(victim, 1).await;
    let key = some_service();
    honest.node.announce(key).await.unwrap();
    finds(&victim.node, key, honest.peer()).await;
}

#[tokio::test]
async fn a_peer_of_another_network_is_none_of_ours() {
    let node = Running::start(config(vec![])).await.unwrap();
    assert_eq!(timeout(PATIENCE, node.node.joined()).await, Ok(Joined::Alone));
    let mut foreign = writer(&node, "/ipfs/kad/1.0.0").await;
    assert!(!write(&mut foreign, &node, Bytes(vec![0], 0)).await, "it was understood");
    let said: Vec<_> = node.node.find(some_service()).collect().await;
    assert_eq!(said, [Found::Miss]);
    let status = node.node.status().borrow().clone();
    assert_eq!(status.joined, Some(Joined::Alone), "{status:?}");
    // The same peer, had it spoken ours, would have been joined.
    let mut ours = writer(&node, "/lca/kad/1").await;
    let driven = tokio::spawn(async move {
        loop {
            ours.select_next_some().await;
        }
    });
    let mut status = node.node.status();
    let joined = status.wait_for(|status| status.joined == Some(Joined::Joined));
    timeout(PATIENCE, joined).await.expect("joins").expect("runs");
    driven.abort();
}
