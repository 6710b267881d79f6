//! The part of the actor that hears libp2p: connections, what peers send for the DHT,
//! and the progress of queries.

use std::{io, net::SocketAddr, time::Instant};

use lca::{endpoint::MAX_ADDRESSES, listen, metrics::Dropped};
use libp2p::{
    Multiaddr, PeerId as Libp2pId, identify, kad, ping, request_response,
    swarm::{DialError, SwarmEvent},
};

use super::{
    actor::{Actor, Places, Purpose},
    addresses,
    behaviour::{self, BehaviourEvent},
    keys,
    tell::Told,
};
use crate::{book::Source, identity::from_libp2p};

impl Actor {
    /// Takes whatever libp2p has to say.
    pub(crate) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kademlia(event)) => self.on_kademlia(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Endpoint(event)) => self.on_endpoint(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.on_identify(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => match event.result {
                Ok(rtt) => self.peers.measured(&event.peer, rtt),
                Err(ping::Failure::Unsupported) => {}
                // A connection on which nothing comes back would hold up every query.
                // After a time-out the next failure says that no stream could be opened.
                Err(_) => drop(self.swarm.close_connection(event.connection)),
            },
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                let seen_at = addresses::to_socket(endpoint.get_remote_address());
                let Some(peer) = from_libp2p(&peer_id) else { return };
                self.bootstraps.connected(peer);
                if let Some(at) = seen_at.filter(|_| endpoint.is_dialer()) {
                    self.contacts.dialled(peer, at);
                }
                if self.peers.connected(peer_id, seen_at) {
                    // It may have started anew since we last heard where it is.
                    self.ask(peer);
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.peers.disconnected(&peer_id);
                if let Some(peer) = from_libp2p(&peer_id) {
                    self.bootstraps.disconnected(peer, now, rand::random());
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                self.on_dial_failed(peer, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.on_listening(&address, true);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => self.on_listening(&address, false),
            SwarmEvent::ListenerClosed { reason, .. } => {
                tracing::error!(?reason, "the libp2p listener is gone");
                self.broken = true;
            }
            // libp2p's TCP pauses for 100 ms by itself, and says so each time.
            SwarmEvent::ListenerError { error, .. }
                if self.said_unaccepted.is_none_or(|said| now >= said + listen::SAY_EVERY) =>
            {
                self.said_unaccepted = Some(now);
                tracing::warn!(%error, "cannot accept peers over libp2p now; going on trying");
            }
            _ => {}
        }
    }

    fn on_kademlia(&mut self, event: kad::Event, now: Instant) {
        use kad::{GetProvidersOk, GetRecordOk, InboundRequest, QueryResult};
        match event {
            kad::Event::RoutingUpdated { is_new_peer: true, peer, .. } => {
                self.table_changed = true;
                // What was told before, this one has not heard; and if the table was
                // empty, nobody has.
                let first = self.table == 0;
                self.renewals.hurry(|told| first || *told != Told::Record, now);
                tracing::debug!(%peer, "a peer appeared");
            }
            kad::Event::InboundRequest {
                request: InboundRequest::PutRecord { source, record, .. },
            } => {
                let Some(record) = record else { return };
                if let Err(error) =
                    self.swarm.behaviour_mut().kademlia.store_mut().keep(record, now)
                {
                    self.refuse(Dropped::Value, source, &error);
                }
            }
            kad::Event::InboundRequest {
                request: InboundRequest::AddProvider { record: Some(record) },
            } => {
                let publisher = record.provider;
                let kept = keys::is_announcement(&record.key) && {
                    use kad::store::RecordStore as _;
                    self.swarm.behaviour_mut().kademlia.store_mut().add_provider(record).is_ok()
                };
                if !kept {
                    self.refuse(Dropped::Announcement, publisher, &"the announcement is malformed");
                }
            }
            kad::Event::OutboundQueryProgressed { id, result, stats, step } => {
                let Some(purpose) = self.queries.get(&id).copied() else { return };
                if step.last {
                    self.queries.remove(&id);
                    self.counters.count(purpose, &stats);
                }
                match (purpose, result) {
                    (
                        Purpose::Find(find),
                        QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders {
                            providers,
                            ..
                        })),
                    ) => {
                        let by_peer = stats.num_requests() > 0;
                        self.on_providers(find, providers, by_peer, now);
                    }
                    (
                        Purpose::Value(peer),
                        QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))),
                    ) => match found.record.expires {
                        Some(expires) if expires > now => {
                            let source = Source::Value { expires };
                            self.on_record(peer, &found.record.value, source, now);
                        }
                        _ => self.refuse(
                            Dropped::Expired,
                            peer,
                            &"a value of the DHT has expired, or never would",
                        ),
                    },
                    _ => {}
                }
                match purpose {
                    Purpose::Find(find) if step.last => self.on_find_ended(find),
                    Purpose::Value(peer) if step.last => self.on_value_ended(peer, id),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn on_endpoint(&mut self, event: request_response::Event<(), Vec<u8>>, now: Instant) {
        use request_response::{Event, Message, OutboundFailure};
        match event {
            Event::Message { message: Message::Request { channel, .. }, .. } => {
                if let Some(record) = self.own.signed() {
                    let record = record.to_vec();
                    let endpoint = &mut self.swarm.behaviour_mut().endpoint;
                    // Who asked is gone: nothing to do.
                    let _gone = endpoint.send_response(channel, record);
                }
            }
            Event::Message {
                peer, message: Message::Response { request_id, response }, ..
            } => {
                self.on_answer(&peer, request_id, Some(response), now);
            }
            Event::OutboundFailure { peer, connection_id, request_id, error } => {
                match error {
                    OutboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                        self.refuse(Dropped::Answer, peer, &error);
                    }
                    // Whoever is alive answers this at once, so the connection is dead:
                    // without it the next query dials anew.
                    OutboundFailure::Timeout => {
                        self.swarm.close_connection(connection_id);
                    }
                    _ => {}
                }
                self.on_answer(&peer, request_id, None, now);
            }
            Event::InboundFailure { .. } | Event::ResponseSent { .. } => {}
        }
    }

    fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received { peer_id, info, .. } = event else { return };
        if !info.protocols.contains(&behaviour::KADEMLIA) {
            return;
        }
        let seen_at = self.peers.seen_at(&peer_id);
        let kademlia = &mut self.swarm.behaviour_mut().kademlia;
        let held = kademlia.kbucket(peer_id).map_or(0, |bucket| {
            let entry = bucket.iter().find(|entry| *entry.node.key.preimage() == peer_id);
            entry.map_or(0, |entry| entry.node.value.len())
        });
        let usable = info.listen_addrs.into_iter();
        let usable = usable.filter(|address| addresses::usable_from(seen_at, address));
        let usable: Vec<_> = usable.take(MAX_ADDRESSES).collect();
        let told: Vec<_> = usable.iter().filter_map(addresses::to_socket).collect();
        for address in usable.into_iter().take(MAX_ADDRESSES.saturating_sub(held)) {
            kademlia.add_address(&peer_id, address);
        }
        let Some(peer) = from_libp2p(&peer_id) else { return };
        // From here on it is in the routing table, as everybody else.
        self.remembered.remove(peer);
        if let Some(seen) = seen_at {
            self.contacts.told(peer, seen, &told);
        }
    }

    fn on_dial_failed(&mut self, peer: Libp2pId, error: &DialError) {
        // Another dial decides, or it was this node that would not.
        let undecided = |error: &_| {
            use DialError::*;
            matches!(error, DialPeerConditionFalse(_) | Aborted | Denied { .. })
        };
        if undecided(error) {
            return;
        }
        let bootstrap = from_libp2p(&peer).filter(|peer| self.bootstraps.contains(*peer));
        if let Some(bootstrap) = bootstrap {
            self.bootstraps.failed(bootstrap, &why(error));
        }
        let ours = bootstrap.is_some();
        match error {
            DialError::WrongPeerId { obtained, address } if ours => {
                tracing::warn!(expected = %peer, %obtained, %address, "another peer answers here");
            }
            _ => tracing::debug!(%peer, %error, "a peer cannot be reached"),
        }
        if self.peers.failed(peer) {
            self.table_changed = true;
            self.swarm.behaviour_mut().kademlia.remove_peer(&peer);
        }
    }

    fn on_listening(&mut self, address: &Multiaddr, up: bool) {
        let Some(socket) = addresses::to_socket(address) else { return };
        self.machine.retain(|ip| *ip != socket.ip());
        if up {
            self.machine.push(socket.ip());
        }
        let Places { swarm, mesh, advertise } = &self.setup;
        let swarm = SocketAddr::new(swarm.ip(), socket.port());
        let told = addresses::told(swarm, advertise, &self.machine);
        let mesh = addresses::told(*mesh, advertise, &self.machine);
        let old: Vec<_> = self.swarm.external_addresses().cloned().collect();
        let new: Vec<_> = told.iter().copied().map(addresses::to_multiaddr).collect();
        old.iter().filter(|a| !new.contains(a)).for_each(|a| self.swarm.remove_external_address(a));
        new.into_iter()
            .filter(|a| !old.contains(a))
            .for_each(|a| self.swarm.add_external_address(a));
        self.counters.set_addresses(told);
        if self.own.moved(mesh) {
            self.renewals.hurry(|told| *told == Told::Record, Instant::now());
        }
    }
}

/// What people can act on: the innermost cause, without the transport's layers.
fn why(error: &DialError) -> String {
    fn innermost(error: &dyn std::error::Error) -> String {
        std::iter::successors(Some(error), |error| error.source())
            .last()
            .map(ToString::to_string)
            .unwrap_or_default()
    }
    match error {
        DialError::WrongPeerId { obtained, .. } => {
            format!("another peer answers there: {obtained}")
        }
        DialError::NoAddresses => "it has no address: the name cannot be resolved".to_owned(),
        DialError::Transport(failed) => match failed.first() {
            Some((_, error)) => innermost(error),
            None => innermost(error),
        },
        _ => innermost(error),
    }
}
