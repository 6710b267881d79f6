//! What peers say of themselves: signed endpoint records, the same as values of the DHT,
//! and as answers of the peer itself.

use std::{pin::Pin, sync::LazyLock, task, time::Duration};

use futures::{AsyncRead, FutureExt as _};
use lca::{
    PeerId,
    api::proto,
    endpoint::{Endpoint, MAX_ADDRESSES, Role},
};
use lca_node::{Identity, record};
use prost::Message as _;

use crate::Outcome;

/// A node that tells the truth, and its record.
static HONEST: LazyLock<(Identity, Endpoint, Vec<u8>)> = LazyLock::new(|| {
    let identity = Identity::ephemeral();
    let endpoint = Endpoint {
        peer: identity.peer_id(),
        roles: vec![Role::Allocator, Role::Proxy],
        mesh: vec![([127, 0, 0, 1], 4001).into()],
        boot: 3,
        sequence: 7,
        ttl: Duration::from_secs(600),
        version: "0.1.0".to_owned(),
    };
    let signed = record::sign(&identity, &endpoint).expect("an Ed25519 key signs");
    (identity, endpoint, signed)
});

/// The first byte says what the others are: a record as it is, edits of a good one, what a
/// node may sign of itself, or the stream in which a peer answers.
///
/// # Panics
/// If a record is believed that its peer did not sign, or means something else when it is
/// written and read again.
pub fn signed_records(input: &[u8]) -> Outcome {
    let Some((kind, rest)) = input.split_first() else { return Outcome::Refused };
    match kind % 4 {
        0 => junk(rest),
        1 => edited(rest),
        2 => signed(rest),
        _ => frame(rest),
    }
}

/// Nobody signed it, so nobody is believed to have said it.
fn junk(bytes: &[u8]) -> Outcome {
    let (identity, _, _) = &*HONEST;
    let peer = identity.peer_id();
    assert!(record::verify(peer, bytes).is_err(), "junk was believed");
    let (key, value) = bytes.split_at(bytes.len().min(38));
    assert!(record::of_value(key, value).is_err(), "junk was believed as a value");
    Outcome::Refused
}

/// Each three bytes are an edit: where, how, with what. What is left of a good record says
/// what was signed, or nothing; and only under the key of who signed it.
fn edited(edits: &[u8]) -> Outcome {
    let (identity, endpoint, signed) = &*HONEST;
    let key = identity.peer_id().to_bytes();
    let mut bytes = [&key[..], signed].concat();
    for edit in edits.chunks_exact(3).take(64) {
        let at = usize::from(edit[0]) % bytes.len().max(1);
        match edit[1] % 4 {
            0 if !bytes.is_empty() => bytes[at] ^= edit[2],
            1 => bytes.insert(at, edit[2]),
            2 if !bytes.is_empty() => drop(bytes.remove(at)),
            _ => bytes.truncate(bytes.len() - usize::from(edit[2]) % (bytes.len() + 1)),
        }
    }
    let (filed, value) = bytes.split_at(bytes.len().min(key.len()));
    let read = record::of_value(filed, value);
    if let Ok(read) = &read {
        assert_eq!(filed, key, "believed under another key");
        assert_eq!(read, endpoint, "believed to say what was not signed");
    }
    let other = PeerId::from_public_key([1; 32]);
    assert!(record::verify(other, value).is_err(), "believed of another peer");
    read.is_ok().into()
}

/// What a node may sign of itself: an endpoint that is within bounds, and survives.
fn signed(payload: &[u8]) -> Outcome {
    let (identity, endpoint, _) = &*HONEST;
    let Ok(message) = proto::EndpointRecord::decode(payload) else { return Outcome::Refused };
    let own = proto::EndpointRecord { peer: identity.peer_id().to_string(), ..message.clone() };
    // As it came, it is about whomever it names.
    if let Ok(foreign) = Endpoint::try_from(message)
        && foreign.peer != identity.peer_id()
        && let Ok(signed) = record::sign(identity, &foreign)
    {
        for peer in [foreign.peer, identity.peer_id()] {
            assert!(record::verify(peer, &signed).is_err(), "the word of another was believed");
        }
    }
    let Ok(read) = Endpoint::try_from(own) else { return Outcome::Refused };
    assert!((1..=MAX_ADDRESSES).contains(&read.mesh.len()));
    assert!(read.mesh.iter().all(|a| a.port() != 0 && !a.ip().is_unspecified()));
    assert!(!read.ttl.is_zero() && read.ttl <= Duration::from_secs(3600));
    assert!(!(read.supersedes(endpoint) && endpoint.supersedes(&read)), "both are the later");
    assert!(!read.supersedes(&read));
    let signed = record::sign(identity, &read).expect("an Ed25519 key signs");
    let again = record::verify(identity.peer_id(), &signed).expect("what a node says of itself");
    assert_eq!(again, read, "a record changes on its way");
    Outcome::Taken
}

/// A peer's answer, in pieces: the first byte says of what size.
fn frame(bytes: &[u8]) -> Outcome {
    let Some((piece, bytes)) = bytes.split_first() else { return Outcome::Refused };
    // The longest one is sixteen times what a fuzzer likes to make up.
    let sent = bytes.repeat(1 + usize::from(*piece) / 16);
    let mut stream = Pieces { left: &sent, size: usize::from(piece % 16) + 1 };
    let read = record::read(&mut stream).now_or_never().expect("nothing to wait for");
    assert_eq!(read.is_ok(), sent.len() <= record::MAX_LEN, "{} bytes", sent.len());
    if let Ok(read) = &read {
        assert_eq!(read, &sent);
    } else {
        assert!(sent.len() - stream.left.len() <= record::MAX_LEN + 1, "read on for nothing");
    }
    read.is_ok().into()
}

/// A stream that never gives more than `size` bytes at a time.
struct Pieces<'a> {
    left: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
        buffer: &mut [u8],
    ) -> task::Poll<std::io::Result<usize>> {
        let size = self.size.min(buffer.len()).min(self.left.len());
        let (now, later) = self.left.split_at(size);
        buffer[..size].copy_from_slice(now);
        self.left = later;
        task::Poll::Ready(Ok(size))
    }
}
