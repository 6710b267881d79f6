//! Endpoint records: a node's own word on where it is, signed by the key that is its
//! PeerId.
//!
//! A record is believed for what it says, never for how it came: a value of the DHT
//! may come from anyone, so every reader verifies. Its life is counted from receipt by
//! the reader's own clock, because the clocks of two nodes may be hours apart.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _};
use lca::{Error, Kind, PeerId, Result, api::proto, endpoint::Endpoint};
use libp2p::core::SignedEnvelope;
use prost::Message as _;

use crate::identity::{Identity, from_libp2p};

/// Longest record taken: 8 addresses and a version are below 1 KiB.
pub const MAX_LEN: usize = 4096;
/// What the signature is about, so that no signature for another purpose passes.
/// `endpoint.proto` names both.
const DOMAIN: &str = "lca-endpoint-record";
const PAYLOAD_TYPE: &[u8] = b"/lca/endpoint/1";

/// Signs what `endpoint` says, as the node it is about.
///
/// # Errors
/// [`Kind::Internal`] if the key cannot sign, which an Ed25519 key always can.
pub fn sign(identity: &Identity, endpoint: &Endpoint) -> Result<Vec<u8>> {
    let payload = proto::EndpointRecord::from(endpoint).encode_to_vec();
    let signed =
        SignedEnvelope::new(identity.keypair(), DOMAIN.to_owned(), PAYLOAD_TYPE.to_vec(), payload);
    let signed = signed.map_err(|error| {
        Error::new(Kind::Internal, "the endpoint record cannot be signed").because(error)
    })?;
    Ok(signed.into_protobuf_encoding())
}

/// Reads a record that must be the word of `peer`.
///
/// # Errors
/// [`Kind::InvalidArgument`] if it is too long, does not parse, or is not signed by
/// `peer` about itself.
pub fn verify(peer: PeerId, bytes: &[u8]) -> Result<Endpoint> {
    let invalid =
        |reason: &str| Error::new(Kind::InvalidArgument, format!("endpoint record: {reason}"));
    if bytes.len() > MAX_LEN {
        return Err(invalid("is longer than 4096 bytes"));
    }
    let envelope = SignedEnvelope::from_protobuf_encoding(bytes)
        .map_err(|error| invalid("is no signed envelope").because(error))?;
    let (payload, key) = envelope
        .payload_and_signing_key(DOMAIN.to_owned(), PAYLOAD_TYPE)
        .map_err(|error| invalid("is not signed as one").because(error))?;
    if from_libp2p(&key.to_peer_id()) != Some(peer) {
        return Err(invalid("is signed by somebody else"));
    }
    let record = proto::EndpointRecord::decode(payload)
        .map_err(|error| invalid("does not parse").because(error))?;
    let endpoint = Endpoint::try_from(record)?;
    if endpoint.peer != peer {
        return Err(invalid("is about somebody else"));
    }
    Ok(endpoint)
}

/// Reads a value of the DHT, which must be the word of the peer whose id is its key.
///
/// # Errors
/// As [`verify`]; also if the key is no peer's id.
pub fn of_value(key: &[u8], value: &[u8]) -> Result<Endpoint> {
    verify(PeerId::from_bytes(key)?, value)
}

/// Takes a record, not verified yet, from a peer that ends its stream after it. Holds no
/// more than the longest one. Not cancel safe.
///
/// # Errors
/// If the stream fails, or does not end in time.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut record = Vec::new();
    stream.take(MAX_LEN as u64 + 1).read_to_end(&mut record).await?;
    if record.len() > MAX_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is too long"));
    }
    Ok(record)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use lca::endpoint::Role;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn endpoint_of(peer: PeerId, sequence: u64) -> Endpoint {
        Endpoint {
            peer,
            roles: vec![Role::Allocator],
            mesh: vec!["127.0.0.1:4001".parse().unwrap(), "[::1]:4001".parse().unwrap()],
            boot: 3,
            sequence,
            ttl: Duration::from_secs(600),
            version: lca::VERSION.to_owned(),
        }
    }

    #[test]
    fn a_record_says_what_was_signed() {
        let identity = Identity::ephemeral();
        let endpoint = endpoint_of(identity.peer_id(), 7);
        let bytes = sign(&identity, &endpoint).unwrap();
        assert!(bytes.len() < MAX_LEN / 4);
        assert_eq!(verify(identity.peer_id(), &bytes).unwrap(), endpoint);
    }

    #[test]
    fn only_the_word_of_the_node_itself_counts() {
        let (honest, liar) = (Identity::ephemeral(), Identity::ephemeral());
        let about_honest = sign(&liar, &endpoint_of(honest.peer_id(), 1)).unwrap();
        for peer in [honest.peer_id(), liar.peer_id()] {
            assert!(verify(peer, &about_honest).is_err(), "signed by one about the other");
        }
        let own = sign(&honest, &endpoint_of(honest.peer_id(), 1)).unwrap();
        assert!(verify(liar.peer_id(), &own).is_err(), "filed under another peer");
    }

    #[test]
    fn a_signature_made_for_another_purpose_does_not_count() {
        let identity = Identity::ephemeral();
        let endpoint = endpoint_of(identity.peer_id(), 1);
        let payload = proto::EndpointRecord::from(&endpoint).encode_to_vec();
        for (domain, payload_type) in [("other", PAYLOAD_TYPE), (DOMAIN, b"/other/1".as_slice())] {
            let forged = SignedEnvelope::new(
                identity.keypair(),
                domain.to_owned(),
                payload_type.to_vec(),
                payload.clone(),
            );
            let bytes = forged.unwrap().into_protobuf_encoding();
            assert!(verify(identity.peer_id(), &bytes).is_err());
        }
    }

    #[test]
    fn a_record_that_is_too_long_is_not_even_parsed() {
        let identity = Identity::ephemeral();
        let mut endpoint = endpoint_of(identity.peer_id(), 1);
        endpoint.version = "v".repeat(MAX_LEN);
        let bytes = sign(&identity, &endpoint).unwrap();
        let error = verify(identity.peer_id(), &bytes).unwrap_err();
        assert!(error.public().contains("4096"));
    }

    proptest! {
        #[test]
        fn junk_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(verify(PeerId::from_public_key([1; 32]), &bytes).is_err());
        }

        #[test]
        fn a_record_with_a_byte_changed_is_refused(at: prop::sample::Index, by in 1_u8..=255) {
            let identity = Identity::ephemeral();
            let endpoint = endpoint_of(identity.peer_id(), 1);
            let mut bytes = sign(&identity, &endpoint).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = bytes[at].wrapping_add(by);
            prop_assert!(verify(identity.peer_id(), &bytes).is_err());
        }
    }
}
