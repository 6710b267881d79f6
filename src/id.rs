//! Names and ids, parsed once at the edge and passed inward as types.
//!
//! Each type can only hold a well-formed value, so nothing behind the edge checks
//! again, and each prints exactly what it parses.

use std::{fmt, net::IpAddr, str::FromStr};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use crate::{Error, Kind};

pub use image::ImageRef;
pub use peer::PeerId;

mod image;
mod peer;
#[cfg(test)]
mod tests;

/// Why a text is not the id it should be. The message is fit for a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {reason}")]
pub struct ParseError {
    what: &'static str,
    reason: String,
}

impl ParseError {
    fn new(what: &'static str, reason: impl Into<String>) -> Self {
        Self { what, reason: reason.into() }
    }
}

/// The name clients ask for: `[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?`, but neither
/// `localhost`, nor an IP literal, nor a name with `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(std::sync::Arc<str>);

impl ServiceName {
    /// The longest name, in bytes: a DNS label's limit, so that every name also
    /// works as `{service}.lca.localhost`.
    pub const MAX_LEN: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = |reason: &str| Err(ParseError::new("service name", reason));
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        match bytes {
            [] => return bad("is empty"),
            _ if bytes.len() > Self::MAX_LEN => return bad("is longer than 63 characters"),
            [first, .., last] if !edge(*first) || !edge(*last) => {
                return bad("must begin and end with a-z or 0-9");
            }
            [only] if !edge(*only) => return bad("must be of a-z, 0-9, '.' and '-'"),
            _ => {}
        }
        if !bytes.iter().all(|&b| edge(b) || b == b'.' || b == b'-') {
            return bad("must be of a-z, 0-9, '.' and '-'");
        }
        if text.contains("..") {
            return bad("must not contain '..'");
        }
        if text == "localhost" || text.parse::<IpAddr>().is_ok() {
            return bad("must not be localhost or an IP address");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

fn hex_array<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], ParseError> {
    let wrong = || ParseError::new(what, format!("must be {} lower-case hex digits", N * 2));
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(wrong());
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| wrong())?;
    Ok(bytes)
}

/// The SHA-256 of an artifact, written `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Takes a finished SHA-256.
    pub const fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits alone, fit for a file name.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("sha256:{}", self.hex()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", &self.hex()[..12])
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = text
            .strip_prefix("sha256:")
            .ok_or_else(|| ParseError::new("digest", "must begin with 'sha256:'"))?;
        hex_array("digest", digits).map(Self)
    }
}

/// The DHT key under which instances of a service are found, and an implicit
/// version: see [`Spec::hash`](crate::Spec::hash).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceHash([u8; 32]);

impl ServiceHash {
    /// Takes a finished SHA-256.
    pub const fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// As it is sent in a header. Every request has one, so this is cheaper than its text.
    pub fn to_header(&self) -> HeaderValue {
        to_header(&self.0)
    }
}

impl fmt::Display for ServiceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for ServiceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceHash({})", hex::encode(&self.0[..6]))
    }
}

impl FromStr for ServiceHash {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex_array("service hash", text).map(Self)
    }
}

/// One running copy of a service: 128 random bits, 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId([u8; 16]);

impl InstanceId {
    /// A new one that no other machine will make up.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }

    /// As it is sent in a header; see [`ServiceHash::to_header`].
    pub fn to_header(&self) -> HeaderValue {
        to_header(&self.0)
    }
}

/// The digits of an id, made without a text of their own.
fn to_header<const N: usize>(bytes: &[u8; N]) -> HeaderValue {
    let mut digits = [0; 64];
    let digits = &mut digits[..2 * N];
    hex::encode_to_slice(bytes, digits).expect("two digits a byte, and at most 32 bytes");
    HeaderValue::from_bytes(digits).expect("digits are visible")
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({})", self.short())
    }
}

impl FromStr for InstanceId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex_array("instance id", text).map(Self)
    }
}

/// The beginning of an instance id, as people type it: 1 to 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePrefix(String);

impl InstancePrefix {
    /// Whether `id` begins like this.
    pub fn matches(&self, id: InstanceId) -> bool {
        id.to_string().starts_with(&self.0)
    }

    /// What to say when several ids begin like this: a person picks from a few.
    pub fn ambiguous(&self, ids: impl IntoIterator<Item = String>) -> Error {
        const NAMED: usize = 5;
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        let more = match ids.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        ids.truncate(NAMED);
        let sentence = format!("{self} could be {}{more}", ids.join(", "));
        Error::new(Kind::InvalidArgument, sentence).hint("type more of the id")
    }
}

impl fmt::Display for InstancePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for InstancePrefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fits = (1..=32).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new("instance id", "must be 1 to 32 lower-case hex digits"))
        }
    }
}

/// What makes a call idempotent: 1 to 128 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(std::sync::Arc<str>);

impl RequestId {
    /// A new one that nobody else will make up.
    pub fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 16]>()).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As it is sent in a header.
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("it is visible ASCII")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({})", self.0)
    }
}

impl FromStr for RequestId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fits = (1..=128).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(ParseError::new("request id", "must be 1 to 128 visible ASCII characters"))
        }
    }
}
