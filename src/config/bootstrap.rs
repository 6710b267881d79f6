//! A peer to join the network through, as people write it: a multiaddr of the few
//! forms that mean something here.
//!
//! `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEERID`. `/ipfs/` is taken for `/p2p/` on
//! the way in, as the original's files have it; what is printed always says `/p2p/`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{Error, Kind, PeerId, Result};

/// Longest text taken: a DNS name is at most 253, the rest less than 100.
const MAX_LEN: usize = 512;

/// Where a peer is, and who it must prove to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bootstrap {
    /// The machine.
    pub host: Host,
    /// The TCP port of its libp2p listener; never 0.
    pub port: u16,
    /// Who must answer there.
    pub peer: PeerId,
}

/// A machine, by address or by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// Never unspecified: it can be dialled.
    Ip(IpAddr),
    /// A name, resolved when dialling to whatever addresses it has. `dns4` and `dns6`
    /// are read as this.
    Dns(String),
}

fn invalid(text: &str, reason: impl fmt::Display) -> Error {
    Error::new(Kind::InvalidArgument, format!("bootstrap {text:?} {reason}"))
        .hint("write it as /ip4/10.11.17.15/tcp/4001/p2p/12D3Koo...")
}

fn dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A name of digits and dots alone is a mistyped address.
    let numeric = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    name.len() <= 253 && !numeric && name.strip_suffix('.').unwrap_or(name).split('.').all(label)
}

impl FromStr for Bootstrap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() > MAX_LEN {
            return Err(invalid(&text.chars().take(64).collect::<String>(), "is too long"));
        }
        let refused = |reason: &str| invalid(text, reason);
        let mut parts = text.split('/');
        if parts.next() != Some("") {
            return Err(refused("does not begin with '/'"));
        }
        let mut next = || parts.next().unwrap_or_default();
        let host = match (next(), next()) {
            ("ip4", host) => {
                let address: Ipv4Addr =
                    host.parse().map_err(|_| refused("has no IPv4 address after /ip4/"))?;
                Host::Ip(address.into())
            }
            ("ip6", host) => {
                let address: Ipv6Addr =
                    host.parse().map_err(|_| refused("has no IPv6 address after /ip6/"))?;
                Host::Ip(address.into())
            }
            ("dns" | "dns4" | "dns6", host) if dns_name(host) => {
                Host::Dns(host.to_ascii_lowercase())
            }
            ("dns" | "dns4" | "dns6", _) => return Err(refused("has no host name after /dns/")),
            _ => return Err(refused("does not begin with /ip4/, /ip6/ or /dns/")),
        };
        if matches!(&host, Host::Ip(address) if address.is_unspecified()) {
            return Err(refused("names an address that nobody can be reached at"));
        }
        if next() != "tcp" {
            return Err(refused("has no /tcp/ after the host"));
        }
        let port = match next() {
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().unwrap_or(0),
            _ => 0,
        };
        if port == 0 {
            return Err(refused("has no port from 1 to 65535 after /tcp/"));
        }
        if !matches!(next(), "p2p" | "ipfs") {
            return Err(refused("has no /p2p/ with a peer id after the port"));
        }
        let peer =
            next().parse().map_err(|error| invalid(text, format!("names no peer: {error}")))?;
        match parts.next() {
            None => Ok(Self { host, port, peer }),
            Some(_) => Err(refused("goes on after the peer id")),
        }
    }
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/tcp/{}/p2p/{}", self.host, self.port, self.peer)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(address)) => write!(f, "/ip4/{address}"),
            Self::Ip(IpAddr::V6(address)) => write!(f, "/ip6/{address}"),
            Self::Dns(name) => write!(f, "/dns/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

    fn refused(text: &str) -> String {
        text.parse::<Bootstrap>().unwrap_err().public().to_owned()
    }

    #[test]
    fn the_forms_people_write_are_read_and_printed_in_one() {
        for (text, printed) in [
            ("/ip4/10.11.17.15/tcp/4001/p2p/", "/ip4/10.11.17.15/tcp/4001/p2p/"),
            ("/ip4/10.11.17.15/tcp/4001/ipfs/", "/ip4/10.11.17.15/tcp/4001/p2p/"),
            ("/ip6/fe80::1/tcp/1/p2p/", "/ip6/fe80::1/tcp/1/p2p/"),
            ("/dns/Seed.Example.org/tcp/65535/p2p/", "/dns/seed.example.org/tcp/65535/p2p/"),
            ("/dns4/seed/tcp/1/p2p/", "/dns/seed/tcp/1/p2p/"),
            ("/dns6/seed/tcp/1/p2p/", "/dns/seed/tcp/1/p2p/"),
        ] {
            let bootstrap: Bootstrap = format!("{text}{PEER}").parse().unwrap();
            assert_eq!(bootstrap.to_string(), format!("{printed}{PEER}"));
        }
    }

    #[test]
    fn what_cannot_be_dialled_is_refused_with_the_reason() {
        let with = |before: &str| refused(&format!("{before}{PEER}"));
        assert!(with("ip4/1.2.3.4/tcp/1/p2p/").contains("begin with '/'"));
        assert!(with("/ip4/1.2.3/tcp/1/p2p/").contains("IPv4"));
        assert!(with("/ip4/0.0.0.0/tcp/1/p2p/").contains("reached"));
        assert!(with("/ip6/::/tcp/1/p2p/").contains("reached"));
        assert!(with("/dns/1.2.3/tcp/1/p2p/").contains("host name"));
        assert!(with("/dns/a..b/tcp/1/p2p/").contains("host name"));
        assert!(with("/ip4/1.2.3.4/udp/1/quic-v1/p2p/").contains("/tcp/"));
        for port in ["0", "65536", "+1", "", "x"] {
            assert!(with(&format!("/ip4/1.2.3.4/tcp/{port}/p2p/")).contains("port"), "{port}");
        }
        assert!(refused("/ip4/1.2.3.4/tcp/1").contains("/p2p/"));
        assert!(refused("/ip4/1.2.3.4/tcp/1/p2p/Qm").contains("peer"));
        assert!(refused(&format!("/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit")).contains("goes on"));
        assert!(refused(&"/".repeat(10_000)).contains("too long"));
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in "\\PC{0,80}") {
            if let Ok(bootstrap) = text.parse::<Bootstrap>() {
                prop_assert_eq!(bootstrap.to_string().parse::<Bootstrap>().unwrap(), bootstrap);
            }
        }

        #[test]
        fn whatever_is_one_survives_print_and_parse(
            ip: IpAddr, port in 1u16.., key: [u8; 32], name in "[a-z]([a-z0-9-]{0,9}[a-z0-9])?(\\.[a-z]{1,9}){0,3}",
        ) {
            prop_assume!(!ip.is_unspecified());
            let peer = PeerId::from_public_key(key);
            for host in [Host::Ip(ip), Host::Dns(name)] {
                let bootstrap = Bootstrap { host, port, peer };
                prop_assert_eq!(bootstrap.to_string().parse::<Bootstrap>().unwrap(), bootstrap);
            }
        }
    }
}
