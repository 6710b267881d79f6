//! What runs under a name: nothing of ours, an executable, or a container of an image.
//!
//! Invariant: whatever is to be started is named by a digest, so that every machine starts
//! the same; what a person wrote (`web:latest`) is kept for people and for pulling only.

use std::{collections::BTreeSet, fmt, num::NonZeroU16, str::FromStr};

use crate::{Digest, Error, Kind, Result};

/// What runs under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    /// Nothing of ours: a service that is represented by a proxy and never allocated.
    External,
    /// An executable, by the digest of its bytes.
    Artifact(Digest),
    /// A container of an image.
    Image(Box<Image>),
}

impl Runs {
    /// What has to be there before it can be started; `None` if it is never started.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::External => None,
            Self::Artifact(digest) => Some(*digest),
            Self::Image(image) => Some(image.pin.digest()),
        }
    }

    /// Writes it in parts of which none is a beginning of what is written for another. What
    /// was written before there were images is what is written now.
    pub(super) fn hash_into(&self, part: &mut impl FnMut(&[u8])) {
        match self {
            Self::External => part(b""),
            Self::Artifact(digest) => part(digest.to_string().as_bytes()),
            Self::Image(image) => image.hash_into(part),
        }
    }

    /// The word for what starts it, as in `Describe` and `Instance.driver`; `None` if it is
    /// never started.
    pub const fn driver(&self) -> Option<&'static str> {
        match self {
            Self::External => None,
            Self::Artifact(_) => Some("process"),
            Self::Image(_) => Some("docker"),
        }
    }
}

/// An image of a container, and what its containers may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As a person named it, in canonical form: where a pull asks. At most
    /// [`MAX_REFERENCE`](Self::MAX_REFERENCE) printable characters.
    pub reference: String,
    /// Which image that is.
    pub pin: Pin,
    /// The port a container listens on; `None`: the only one its image exposes, else
    /// [`DEFAULT_PORT`](Self::DEFAULT_PORT).
    pub port: Option<NonZeroU16>,
    /// Its containers cannot write to their root file system.
    pub read_only_root: bool,
    /// What its containers may do beyond every program, where the allocator allows it.
    pub capabilities: BTreeSet<Capability>,
    /// Its containers use the network of their machine, where the allocator allows it.
    pub host_network: bool,
}

impl Image {
    /// Longest reference in bytes: a repository has at most 255, a tag 128, a digest 71.
    pub const MAX_REFERENCE: usize = 512;
    /// Where a container listens whose image exposes no port, or several.
    pub const DEFAULT_PORT: u16 = 8080;

    fn hash_into(&self, part: &mut impl FnMut(&[u8])) {
        // Neither empty nor a digest, so never taken for the other two.
        part(b"image");
        part(match self.pin {
            Pin::Digest(_) => b"digest",
            Pin::Id(_) => b"id",
        });
        part(self.pin.digest().as_bytes());
        part(&self.port.map_or(0, NonZeroU16::get).to_be_bytes());
        part(&[u8::from(self.read_only_root), u8::from(self.host_network)]);
        part(&(self.capabilities.len() as u64).to_be_bytes());
        self.capabilities.iter().for_each(|capability| part(capability.name().as_bytes()));
    }
}

/// Which image, whatever its tags say today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// By the digest of its manifest in a repository: it can be pulled.
    Digest(Digest),
    /// By its ID: it exists only where it was built or loaded, and runs only there.
    Id(Digest),
}

impl Pin {
    /// The digest itself, whichever it is.
    pub const fn digest(&self) -> Digest {
        match self {
            Self::Digest(digest) | Self::Id(digest) => *digest,
        }
    }
}

/// A capability of the kernel, written as in capabilities(7), without `CAP_`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability(&'static str);

impl Capability {
    /// Those of Linux 5.9 and since.
    const ALL: [&'static str; 41] = [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "SYSLOG",
        "WAKE_ALARM",
    ];

    /// Its name without `CAP_`.
    pub const fn name(&self) -> &'static str {
        self.0
    }
}

impl FromStr for Capability {
    type Err = Error;

    /// Takes it with `CAP_` or without, in either case.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if there is none of that name.
    fn from_str(text: &str) -> Result<Self> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let known = Self::ALL.into_iter().find(|known| *known == bare);
        known.map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
            let reason = format!("capability {shown} is none that Linux has");
            Error::new(Kind::InvalidArgument, reason).hint("one such as NET_BIND_SERVICE")
        })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_taken_however_it_is_written_and_printed_one_way() {
        for text in ["NET_RAW", "cap_net_raw", "CAP_NET_RAW"] {
            assert_eq!(text.parse::<Capability>().unwrap().to_string(), "NET_RAW");
        }
        for text in ["", "CAP_", "ALL", "NET_RAW ", "CAP_CAP_NET_RAW"] {
            let error = text.parse::<Capability>().unwrap_err();
            assert!(error.public().contains("none that Linux has"), "{error}");
        }
    }
}
