//! Addresses: between libp2p's form and sockets, and which of this node's are worth
//! telling others. Pure.

use std::net::{IpAddr, SocketAddr};

use lca::endpoint::MAX_ADDRESSES;
use libp2p::{Multiaddr, multiaddr::Protocol};

/// The socket a multiaddress names, if it is `/ip4|ip6/.../tcp/...` with or without a
/// peer at its end. Others are not for us.
pub(crate) fn to_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// The multiaddress of a socket.
pub(crate) fn to_multiaddr(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

/// Whether it names one TCP socket of one machine.
pub(crate) fn can_be_dialled(address: &Multiaddr) -> bool {
    to_socket(address).is_some_and(|socket| socket.port() != 0 && !socket.ip().is_unspecified())
}

/// Which addresses of a peer to believe: a loopback address is of use only if the peer
/// is on this machine, where `seen`, the address we know it by, is loopback too.
pub(crate) fn usable_from(seen: Option<SocketAddr>, address: &Multiaddr) -> bool {
    let near = seen.is_some_and(|seen| seen.ip().is_loopback());
    can_be_dialled(address) && to_socket(address).is_some_and(|a| near || !a.ip().is_loopback())
}

/// Where to tell others that a listener is: at the addresses a person chose, else where
/// it listens, else, for a listener on all interfaces, at those of the machine.
/// Loopback is named only if there is nothing else; never a link-local IPv6 address,
/// which means nothing elsewhere. At most eight.
pub(crate) fn told(
    listener: SocketAddr,
    advertise: &[IpAddr],
    machine: &[IpAddr],
) -> Vec<SocketAddr> {
    let at = |ip: &IpAddr| SocketAddr::new(*ip, listener.port());
    let mut told: Vec<_> = if !advertise.is_empty() {
        advertise.iter().map(at).collect()
    } else if !listener.ip().is_unspecified() {
        vec![listener]
    } else {
        let reaches = |ip: &&IpAddr| ip.is_ipv4() || listener.is_ipv6();
        let mut ips: Vec<_> = machine.iter().filter(reaches).filter(|ip| !link_local(ip)).collect();
        if ips.iter().any(|ip| !ip.is_loopback()) {
            ips.retain(|ip| !ip.is_loopback());
        }
        ips.into_iter().map(at).collect()
    };
    let mut seen = std::collections::HashSet::new();
    told.retain(|address| seen.insert(*address));
    told.truncate(MAX_ADDRESSES);
    told
}

fn link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_plain_tcp_is_ours() {
        for (text, ours) in [
            ("/ip4/1.2.3.4/tcp/5", true),
            ("/ip6/::1/tcp/5", true),
            ("/ip4/1.2.3.4/tcp/5/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", true),
            ("/ip4/1.2.3.4/tcp/0", false),
            ("/ip4/0.0.0.0/tcp/5", false),
            ("/ip4/1.2.3.4/udp/5", false),
            ("/dns4/example.org/tcp/5", false),
            ("/ip4/1.2.3.4/tcp/5/ws", false),
            ("/ip4/1.2.3.4", false),
        ] {
            assert_eq!(can_be_dialled(&text.parse().unwrap()), ours, "{text}");
        }
    }

    #[test]
    fn loopback_is_believed_only_of_a_peer_on_this_machine() {
        let loopback = to_multiaddr(socket("127.0.0.1:1"));
        assert!(usable_from(Some(socket("127.0.0.1:9")), &loopback));
        assert!(!usable_from(Some(socket("10.0.0.1:9")), &loopback));
        assert!(!usable_from(None, &loopback));
    }

    #[test]
    fn what_others_are_told() {
        let machine: Vec<IpAddr> = ["127.0.0.1", "10.0.0.7", "::1", "fe80::1", "fd00::7"]
            .map(|ip| ip.parse().unwrap())
            .into();
        let v4 = |text: &str| vec![socket(text)];
        assert_eq!(told(socket("127.0.0.1:5"), &[], &machine), v4("127.0.0.1:5"));
        assert_eq!(told(socket("0.0.0.0:5"), &[], &machine), v4("10.0.0.7:5"));
        assert_eq!(
            told(socket("[::]:5"), &[], &machine),
            [socket("10.0.0.7:5"), socket("[fd00::7]:5")]
        );
        assert_eq!(told(socket("0.0.0.0:5"), &[], &machine[..1]), v4("127.0.0.1:5"));
        let chosen = ["192.0.2.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
        assert_eq!(told(socket("0.0.0.0:5"), &chosen, &machine), v4("192.0.2.1:5"));
    }

    proptest! {
        #[test]
        fn a_socket_survives_libp2p(ip: IpAddr, port: u16) {
            let socket = SocketAddr::new(ip, port);
            prop_assert_eq!(to_socket(&to_multiaddr(socket)), Some(socket));
        }
    }
}
