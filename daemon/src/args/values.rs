//! Reads what was typed into values, one at a time, with sentences that name the flag.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lca::{Error, Kind, Result, units};

/// The port of an external service whose address has none, as the original had it.
const EXTERNAL_PORT: u16 = 8080;
/// Longest a service's entry may be used unasked: a day later nobody remembers why the
/// old one is still there.
const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a value of `what` is none.
pub(crate) fn wrong(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidArgument, format!("{what}: {why}"))
}

/// `/ip4|ip6/ADDRESS/tcp/PORT`, where a daemon can listen; port 0 for any.
pub(crate) fn listen(flag: &str, text: &str) -> Result<SocketAddr> {
    let form = || {
        wrong(flag, format!("{text:?} is no address to listen on"))
            .hint("write it as /ip4/10.0.0.1/tcp/4001 or /ip6/::/tcp/4001")
    };
    let parts: Vec<_> = text.split('/').collect();
    let ["", family, ip, "tcp", port] = parts[..] else { return Err(form()) };
    let ip: IpAddr = match family {
        "ip4" => ip.parse::<Ipv4Addr>().map_err(|_| form())?.into(),
        "ip6" => ip.parse::<Ipv6Addr>().map_err(|_| form())?.into(),
        _ => return Err(form()),
    };
    Ok(SocketAddr::new(ip, port_number(port).ok_or_else(form)?))
}

/// `IP:PORT`, where a daemon can listen; port 0 for any.
pub(crate) fn socket(flag: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        wrong(flag, format!("{text:?} is not IP:PORT"))
            .hint("write it as 127.0.0.1:4210 or [::1]:4210")
    })
}

/// An address others can be told.
pub(crate) fn advertised(flag: &str, text: &str) -> Result<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            Err(wrong(flag, format!("nobody can be reached at {ip}")))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(wrong(flag, format!("{text:?} is no IP address"))),
    }
}

/// Refuses an address that other machines can reach, unless that was asked for.
pub(crate) fn only_loopback(flag: &str, address: SocketAddr, open: bool) -> Result<SocketAddr> {
    if open || address.ip().to_canonical().is_loopback() {
        return Ok(address);
    }
    let why = format!(
        "{address} can be reached from other machines, and a network has no members yet: whoever \
         connects may start and call everything"
    );
    Err(Error::new(Kind::PermissionDenied, format!("{flag}: {why}")).hint(
        "listen on 127.0.0.1 or [::1], or add --insecure-open-network where everybody who can \
         connect may",
    ))
}

/// Whether only one of two can listen. Port 0 is a port of its own each time.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let [ip, other_ip] = [one, other].map(|at| at.ip().to_canonical());
    let same = ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified();
    one.port() != 0 && one.port() == other.port() && same
}

/// Seconds, as the original had them, or a duration with a unit.
pub(crate) fn ttl(flag: &str, text: &str) -> Result<Duration> {
    let seconds = text.parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()));
    let ttl = match seconds {
        Some(ttl) => ttl,
        None => units::millis(text)
            .map_err(|_| wrong(flag, format!("{text:?} is no time; write seconds, or 500ms")))?,
    };
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(wrong(flag, "must be more than 0 and at most 24h"));
    }
    Ok(ttl)
}

/// A whole number, at least 1.
pub(crate) fn count(flag: &str, text: &str) -> Result<u32> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| wrong(flag, format!("{text:?} is not a number of at least 1")))
}

/// The port of a front.
pub(crate) fn front(text: &str) -> Result<u16> {
    port_number(text).ok_or_else(|| {
        wrong("PORT", format!("{text:?} is no port")).hint("a number from 0 to 65535, such as 4201")
    })
}

/// `IP[:PORT]` of an external service.
pub(crate) fn external(text: &str) -> Result<SocketAddr> {
    let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, EXTERNAL_PORT));
    let address = text.parse::<SocketAddr>().or_else(|_| bare());
    match address {
        Ok(address) if address.port() == 0 => {
            Err(wrong("ADDRESS", "a service cannot be reached at port 0"))
        }
        Ok(address) if address.ip().is_unspecified() || address.ip().is_multicast() => {
            Err(wrong("ADDRESS", format!("nothing can be reached at {}", address.ip())))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(wrong("ADDRESS", format!("{text:?} is not IP or IP:PORT"))
            .hint("write it as 127.0.0.1:8080, 127.0.0.1 or [::1]:8080")),
    }
}

/// Only what this version has.
pub(crate) fn key_kind(algo: Option<&str>, bits: Option<&str>) -> impl Iterator<Item = Error> {
    let why = "a peer's id is its Ed25519 public key, on every plane";
    let algo = algo.filter(|algo| !algo.eq_ignore_ascii_case("ed25519")).map(|algo| {
        wrong("--algo", format!("{algo:?} is not supported: {why}"))
            .hint("leave it out; an RSA key of the original cannot be used, a new one is made")
    });
    let bits = bits.filter(|bits| !matches!(*bits, "256" | "-1")).map(|bits| {
        wrong("--bits", format!("{bits:?} is not supported: Ed25519 keys have 256 bits"))
            .hint("leave it out")
    });
    algo.into_iter().chain(bits)
}

/// Refused until networks have members.
pub(crate) fn no_psk(what: &str) -> Error {
    Error::new(
        Kind::InvalidArgument,
        format!(
            "{what}: pre-shared keys are not supported yet, they come with membership on top of \
             the PeerId; going on without would open a network that you mean to be closed"
        ),
    )
    .hint("leave it out; without --insecure-open-network everything stays on loopback")
}

fn port_number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on_are_read_as_people_write_them() {
        let read = |text| listen("--listen", text).unwrap().to_string();
        assert_eq!(read("/ip4/10.0.0.1/tcp/4001"), "10.0.0.1:4001");
        assert_eq!(read("/ip6/::/tcp/0"), "[::]:0");
        for text in [
            "",
            "10.0.0.1:4001",
            "/ip4/::1/tcp/1",
            "/ip6/1.2.3.4/tcp/1",
            "/ip4/1.2.3.4/udp/1",
            "/ip4/1.2.3.4/tcp/65536",
            "/ip4/1.2.3.4/tcp/+1",
            "/ip4/1.2.3.4/tcp/1/p2p/x",
            "/dns/localhost/tcp/1",
        ] {
            assert!(listen("--listen", text).unwrap_err().hint_text().is_some(), "{text}");
        }
    }

    #[test]
    fn an_external_address_may_leave_its_port_out() {
        let read = |text| external(text).unwrap().to_string();
        assert_eq!(read("10.1.2.3"), "10.1.2.3:8080");
        assert_eq!(read("10.1.2.3:80"), "10.1.2.3:80");
        assert_eq!(read("::1"), "[::1]:8080");
        assert_eq!(read("[::1]:80"), "[::1]:80");
        for text in ["", "localhost", "localhost:80", "1.2.3.4:0", "0.0.0.0:80", "1.2.3.4:x"] {
            assert!(external(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_one_can_have_a_port_of_an_address() {
        for (one, other, overlaps) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.2:1", true),
            ("10.0.0.1:1", "[::]:1", true),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1:1", true),
        ] {
            assert_eq!(
                overlap(one.parse().unwrap(), other.parse().unwrap()),
                overlaps,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn a_ttl_is_seconds_or_has_a_unit() {
        assert_eq!(ttl("x", "60").unwrap(), Duration::from_secs(60));
        assert_eq!(ttl("x", "500ms").unwrap(), Duration::from_millis(500));
        for text in ["", "0", "0s", "-1", "1.5", "25h", "4294967296", "1e3"] {
            assert!(ttl("x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_on_this_machine_may_listen_unless_asked_for() {
        for (text, loopback) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
        ] {
            let address = text.parse().unwrap();
            let refused = only_loopback("--listen", address, false);
            assert_eq!(refused.is_ok(), loopback, "{text}");
            assert!(only_loopback("--listen", address, true).is_ok());
            if let Err(refused) = refused {
                assert!(refused.hint_text().unwrap().contains("--insecure-open-network"));
            }
        }
    }

    #[test]
    fn a_key_is_ed25519_or_refused_with_the_reason() {
        let problems = |algo, bits| key_kind(algo, bits).count();
        assert_eq!(problems(None, None), 0);
        assert_eq!(problems(Some("ed25519"), Some("256")), 0);
        assert_eq!(problems(Some("Ed25519"), Some("-1")), 0);
        assert_eq!(problems(Some("RSA"), Some("2048")), 2);
    }
}
