//! The protocols this node speaks over libp2p, and their settings.

use std::num::NonZeroUsize;

use libp2p::{
    PeerId as Libp2pId, StreamProtocol,
    connection_limits::{self, ConnectionLimits},
    identify,
    identity::Keypair,
    kad, ping, request_response,
    swarm::NetworkBehaviour,
};

use super::codec::{self, EndpointCodec};
use crate::{Timing, store::Store};

/// A network of our own: nothing of the public IPFS network answers to it.
pub(crate) const KADEMLIA: StreamProtocol = StreamProtocol::new("/lca/kad/1");
/// What identify says the protocols belong to.
const FAMILY: &str = "lca/1";
/// Longest Kademlia message. 16 KiB, the default, is less than twenty providers with
/// twenty nearer peers may need. Must be equal on all nodes.
const MAX_PACKET: usize = 64 << 10;
/// Peers asked at once by a query: with a few dead ones among the nearest, three would
/// often all wait.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(5).expect("five is not zero");
/// Connections of one node: each peer of a network of a thousand, and descriptors left.
const MAX_CONNECTIONS: u32 = 2048;
/// Those of them that others made: however many come, this node can still dial.
const MAX_INCOMING: u32 = 1536;
/// Two who dial each other at the same moment have two; more are of no use.
const MAX_CONNECTIONS_PER_PEER: u32 = 3;
/// Handshakes under way, either way.
const MAX_PENDING: u32 = 256;
/// Requests for our record that one connection may have open.
const MAX_REQUESTS: usize = 16;

/// All protocols. `endpoint` stands before `kademlia` so that a provider found in the
/// last answer of a query is dialled while the query still knows its addresses.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(crate) endpoint: request_response::Behaviour<EndpointCodec>,
    pub(crate) kademlia: kad::Behaviour<Store>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

impl Behaviour {
    pub(crate) fn new(
        keypair: &Keypair,
        store: Store,
        timing: &Timing,
        max_connections: usize,
    ) -> Self {
        // In the same proportion where there are descriptors for less.
        let most = u32::try_from(max_connections).unwrap_or(u32::MAX).min(MAX_CONNECTIONS);
        let incoming = (most - most / 4).min(MAX_INCOMING);
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_PENDING))
            .with_max_established(Some(most))
            .with_max_established_incoming(Some(incoming))
            .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER));
        // Hidden: the listener's own form may be 0.0.0.0; what others shall dial is
        // given as external addresses.
        let identify = identify::Config::new(FAMILY.to_owned(), keypair.public())
            .with_agent_version(format!("lca/{}", lca::VERSION))
            .with_hide_listen_addrs(true)
            .with_push_listen_addr_updates(true);
        let ping = ping::Config::new().with_interval(timing.ping).with_timeout(timing.ping_timeout);
        let requests = request_response::Config::default()
            .with_request_timeout(timing.request)
            .with_max_concurrent_streams(MAX_REQUESTS);
        let endpoint = request_response::Behaviour::new(
            [(codec::PROTOCOL, request_response::ProtocolSupport::Full)],
            requests,
        );
        Self {
            limits: connection_limits::Behaviour::new(limits),
            endpoint,
            kademlia: kademlia(keypair.public().to_peer_id(), store, timing),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
        }
    }
}

/// Kademlia as a table of hints: short lives, nothing republished or written back by
/// itself, everything that comes in looked at before it is stored.
fn kademlia(local: Libp2pId, store: Store, timing: &Timing) -> kad::Behaviour<Store> {
    let mut config = kad::Config::new(KADEMLIA);
    config
        .set_query_timeout(timing.query)
        .set_substreams_timeout(timing.request)
        .set_parallelism(PARALLELISM)
        .set_max_packet_size(MAX_PACKET)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_record_ttl(Some(timing.value_life))
        .set_provider_record_ttl(Some(timing.announcement_life))
        // Renewed by the actor: libp2p's own jobs demand twenty answers, and spread
        // other peers' records too.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(kad::Caching::Disabled);
    let mut kademlia = kad::Behaviour::with_config(local, store, config);
    // Left to itself it would not answer before somebody confirmed an address.
    kademlia.set_mode(Some(kad::Mode::Server));
    kademlia
}
