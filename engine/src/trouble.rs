//! Why an engine did not get an image, from the words in which it says so.
//!
//! Engines pass on what registries, proxies and disks said; there is no code to go by. Forged
//! bytes, a full disk, missing images, unknown callers and dead registries are met for real by
//! `tests/engine`, with Docker 20.10; the other rows are for the words of other versions.

use lca::{Error, ImageRef, Kind};

/// What is said of a failure that no row knows: its own words, and another attempt may help.
pub(crate) const OTHER: Kind = Kind::Internal;

/// A reason, as far as somebody would do something else about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The bytes are not those of the digest.
    Forged,
    /// There is one, but for other machines.
    Platform,
    /// No room on the engine's disk.
    Disk,
    /// The registry wants to know who asks.
    Denied,
    /// There is no such image.
    Missing,
    /// The registry asks to come later.
    TooMany,
    /// The registry does not answer, or not as one.
    Unreachable,
}

/// Words in small letters, the telling ones first: what is denied often says that it may
/// also be missing.
const WORDS: [(&str, Trouble); 30] = [
    ("verification failed", Trouble::Forged),
    ("unexpected commit digest", Trouble::Forged),
    ("failed size validation", Trouble::Forged),
    ("does not match content digest", Trouble::Forged),
    ("no matching manifest", Trouble::Platform),
    ("no match for platform", Trouble::Platform),
    ("does not match the specified platform", Trouble::Platform),
    ("cannot be used on this platform", Trouble::Platform),
    ("no space left on device", Trouble::Disk),
    ("disk quota exceeded", Trouble::Disk),
    ("toomanyrequests", Trouble::TooMany),
    ("too many requests", Trouble::TooMany),
    ("unauthorized", Trouble::Denied),
    ("authentication required", Trouble::Denied),
    ("no basic auth credentials", Trouble::Denied),
    ("access denied", Trouble::Denied),
    ("access to the resource is denied", Trouble::Denied),
    ("denied:", Trouble::Denied),
    ("manifest unknown", Trouble::Missing),
    ("name unknown", Trouble::Missing),
    ("blob unknown", Trouble::Missing),
    ("not found", Trouble::Missing),
    ("connection refused", Trouble::Unreachable),
    ("no such host", Trouble::Unreachable),
    ("timeout", Trouble::Unreachable),
    ("connection reset", Trouble::Unreachable),
    ("eof", Trouble::Unreachable),
    ("unexpected http status", Trouble::Unreachable),
    ("network is unreachable", Trouble::Unreachable),
    ("server misbehaving", Trouble::Unreachable),
];

impl Trouble {
    /// Which one it is, if it is known.
    pub(crate) fn of(said: &str) -> Option<Self> {
        let said = said.to_ascii_lowercase();
        WORDS.iter().find(|(words, _)| said.contains(words)).map(|(_, trouble)| *trouble)
    }

    /// What is said of it about an image of a registry.
    pub(crate) fn error(self, image: &ImageRef) -> Error {
        let registry = image.registry();
        let (kind, what) = match self {
            Self::Forged => (
                Kind::FailedPrecondition,
                format!(
                    "image {image} cannot be used: what {registry} sent is not what its digest says"
                ),
            ),
            Self::Platform => {
                (Kind::NotHere, format!("image {image} is not made for this machine"))
            }
            Self::Disk => (
                Kind::NoCapacity,
                format!("image {image} cannot be kept: the disk of the Docker Engine is full"),
            ),
            Self::Denied => (
                Kind::NotHere,
                format!("registry {registry} does not give image {image} to this user"),
            ),
            Self::Missing => (
                Kind::FailedPrecondition,
                format!("registry {registry} does not have image {image}"),
            ),
            Self::TooMany => (
                Kind::Unavailable,
                format!("registry {registry} has had too many requests for now"),
            ),
            Self::Unreachable => (
                Kind::Unavailable,
                format!("registry {registry} cannot be reached for image {image}"),
            ),
        };
        let error = Error::new(kind, what);
        match self {
            Self::Denied => error.hint(format!(
                "if the image exists, `docker login {registry}` as the user this runs as"
            )),
            Self::Forged => error.hint(
                "ask again later; if it stays so, the registry or something before it is broken",
            ),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_several_troubles_mean_the_first() {
        for (said, trouble) in [
            (
                "pull access denied for x, repository does not exist or may require 'docker login': \
                 denied: requested access to the resource is denied",
                Some(Trouble::Denied),
            ),
            ("Get https://r/v2/: dial tcp: lookup r: no such host", Some(Trouble::Unreachable)),
            ("manifest for r/a@sha256:1 not found: manifest unknown", Some(Trouble::Missing)),
            (
                "failed to register layer: ApplyLayer write /x: no space left on device",
                Some(Trouble::Disk),
            ),
            ("cannot allocate memory", None),
        ] {
            assert_eq!(Trouble::of(said), trouble, "{said}");
        }
    }
}
