//! The order of peers that all nodes share for a service, whatever else each of them knows:
//! highest random weight hashing. Who holds a service's claims, who keeps its
//! `min_instances` and which of equally near allocators starts an instance follow from it,
//! so every node must have the same; it never changes.

use std::cmp::Reverse;

use sha2::{Digest as _, Sha256};

use crate::{PeerId, ServiceHash};

/// The weight of a peer for a service: the higher, the earlier.
pub fn weight(service: ServiceHash, peer: PeerId) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"lca/rendezvous/1")
        .chain_update(service.as_bytes())
        .chain_update(peer.public_key())
        .finalize()
        .into()
}

/// Peers in their order for a service, each once.
pub fn order(service: ServiceHash, peers: impl IntoIterator<Item = PeerId>) -> Vec<PeerId> {
    let mut peers: Vec<_> = peers.into_iter().collect();
    peers.sort_by_cached_key(|peer| (Reverse(weight(service, *peer)), *peer));
    peers.dedup();
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    #[test]
    fn the_order_does_not_depend_on_who_is_known_first_and_differs_by_service() {
        let peers: Vec<_> = (0..9).map(peer).collect();
        let [a, b] = [1, 2].map(|n| ServiceHash::from_sha256([n; 32]));
        let ordered = order(a, peers.iter().copied());
        assert_eq!(order(a, peers.iter().rev().chain(&peers).copied()), ordered);
        assert_ne!(order(b, peers), ordered);
    }

    #[test]
    fn the_weight_is_what_it_has_always_been() {
        let weight = weight(ServiceHash::from_sha256([1; 32]), peer(2));
        assert_eq!(weight[..8], [0x5a, 0x3d, 0x90, 0x8d, 0x97, 0xd5, 0x8a, 0xe7]);
    }
}
