//! The keys of the DHT. Pure.
//!
//! Announcements stand under words of ours, so that nothing else is ever kept; an
//! endpoint record stands under the bare id of its peer, so that the peers nearest to
//! the key are those nearest to the peer, itself among them.

use lca::{PeerId, discovery::Key, endpoint::Role};
use libp2p::kad::RecordKey;

const SERVICE: &[u8] = b"/lca/service/";
const ROLE: &[u8] = b"/lca/role/";
/// Bytes of a service hash.
const HASH: usize = 32;

/// Where an announcement of `key` stands.
pub(crate) fn to_kad(key: Key) -> RecordKey {
    match key {
        Key::Service(hash) => RecordKey::from([SERVICE, hash.as_bytes()].concat()),
        Key::Role(role) => RecordKey::from([ROLE, role.as_str().as_bytes()].concat()),
    }
}

/// Whether announcements may stand there.
pub(crate) fn is_announcement(key: &RecordKey) -> bool {
    let bytes = key.as_ref();
    let role = bytes.strip_prefix(ROLE).and_then(|word| std::str::from_utf8(word).ok());
    bytes.strip_prefix(SERVICE).is_some_and(|hash| hash.len() == HASH)
        || role.is_some_and(|word| word.parse::<Role>().is_ok())
}

/// Where the endpoint record of `peer` stands.
pub(crate) fn of_value(peer: PeerId) -> RecordKey {
    RecordKey::from(peer.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use lca::ServiceHash;

    use super::*;

    #[test]
    fn announcements_stand_only_where_they_should() {
        let service = Key::Service(ServiceHash::from_sha256([0xff; 32]));
        for key in [service, Key::Role(Role::Registry), Key::Role(Role::Proxy)] {
            assert!(is_announcement(&to_kad(key)));
        }
        for key in [b"".as_slice(), b"/lca/service/short", b"/lca/role/king", &[0xff; 32]] {
            assert!(!is_announcement(&RecordKey::from(key.to_vec())));
        }
        assert!(!is_announcement(&of_value(PeerId::from_public_key([1; 32]))));
    }
}
