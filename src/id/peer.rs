//! The identity of a node, as libp2p writes it.

use std::{fmt, str::FromStr};

use super::ParseError;

/// The identity of a node on every plane: its Ed25519 public key, written as the
/// libp2p peer id that contains it (`12D3KooW...`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// Identity multihash of a protobuf-wrapped Ed25519 key of 32 bytes.
    /// Source: libp2p peer-id specification.
    const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

    /// The id of the holder of this public key.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The Ed25519 public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id in libp2p's binary form, 38 bytes.
    pub fn to_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&Self::PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads libp2p's binary form.
    ///
    /// # Errors
    /// If it is not the id of an Ed25519 key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let key = bytes.strip_prefix(&Self::PREFIX).and_then(|key| key.try_into().ok());
        key.map(Self).ok_or_else(|| {
            ParseError::new("peer id", "is not the id of an Ed25519 key (12D3Koo...)")
        })
    }

    /// The last eight characters: enough to tell a few hundred peers apart, for
    /// logs, tables and `Via`.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&bs58::encode(self.to_bytes()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl FromStr for PeerId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // 38 bytes are 52 characters; longer input is not worth decoding.
        if text.len() > 64 {
            return Err(ParseError::new("peer id", "is too long"));
        }
        let bytes = bs58::decode(text)
            .into_vec()
            .map_err(|_| ParseError::new("peer id", "is not base58"))?;
        Self::from_bytes(&bytes)
    }
}
