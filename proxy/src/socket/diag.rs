//! Asks the kernel about one socket (sock_diag(7)): the same as `/proc/net/tcp` says, without
//! the thousands of others that are listed there.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

/// `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg` of linux/netlink.h
/// and linux/inet_diag.h: their sizes, and where in the last the inode is.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
const ANSWER: usize = HEADER + 72;
const INODE: usize = HEADER + 68;
/// Where the state of a socket is in an answer, and that of one that listens.
const STATE: usize = HEADER + 1;
const LISTENS: u8 = 10;
/// Types of messages, and the only flag that is wanted.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// Families and the protocol, as the kernel numbers them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// `-ENOENT`: there is no such socket, or no kernel that could tell.
const NONE: i32 = -2;

/// Whether some process holds the socket of `client` that is connected to `own`, which is this
/// process's. Takes some microseconds and never waits.
///
/// # Errors
/// If this kernel does not tell.
pub(super) fn is_held(client: SocketAddr, own: SocketAddr) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kernel =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
    // A kernel that cannot tell says what it says of a socket that is not there. Ours is.
    if !holds(&kernel, own, client)? {
        return Err(io::ErrorKind::Unsupported.into());
    }
    holds(&kernel, client, own)
}

fn holds(kernel: &OwnedFd, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let request = request(local, remote);
    sendto(kernel.as_fd(), &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    // The kernel has answered within the call before.
    let mut answer = [0; 512];
    let (_, length) = recv(kernel.as_fd(), &mut answer[..], RecvFlags::empty())?;
    read(answer.get(..length).unwrap_or_default())
}

/// The question for exactly one TCP socket.
fn request(local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    let ends = [local, remote].map(|end| (end.ip().to_canonical(), end.port()));
    let family = if ends[0].0.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = [0; REQUEST];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        request[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(REQUEST as u32).to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&NLM_F_REQUEST.to_ne_bytes());
    put(&[0; 8]); // sequence and port, of no use with one question at a time
    put(&[family, IPPROTO_TCP, 0, 0]);
    put(&u32::MAX.to_ne_bytes()); // in any state
    for (_, port) in ends {
        put(&port.to_be_bytes());
    }
    for (ip, _) in ends {
        let mut bytes = [0; 16];
        match ip {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes = ip.octets(),
        }
        put(&bytes);
    }
    put(&[0; 4]); // on any interface
    put(&[0xff; 8]); // whatever its cookie
    request
}

/// Whether the socket that was asked for is there and somebody holds it.
///
/// # Errors
/// If that is not what the answer is about.
fn read(answer: &[u8]) -> io::Result<bool> {
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(NLMSG_ERROR) if word(HEADER).map(i32::from_ne_bytes) == Some(NONE) => Ok(false),
        Some(SOCK_DIAG_BY_FAMILY) if answer.len() >= ANSWER => {
            // Without the one that was asked for, the kernel looks for who listens there.
            let itself = answer[STATE] != LISTENS;
            Ok(itself && word(INODE).map(u32::from_ne_bytes).is_some_and(|inode| inode != 0))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use lca::testing::eventually;
    use proptest::prelude::*;

    use super::*;

    /// Whether this machine can tell at all; a container's may not.
    fn tells() -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _held = listener.accept().unwrap();
        is_held(client.local_addr().unwrap(), client.peer_addr().unwrap()).is_ok()
    }

    #[tokio::test]
    async fn a_socket_is_held_until_it_is_closed() {
        if !tells() {
            return eprintln!("skipped: this kernel does not tell of single sockets");
        }
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let _server = listener.accept().unwrap();
            let (there, own) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert!(is_held(there, own).unwrap(), "{listen}");
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(is_held(there, own).unwrap(), "{listen}: it only stopped sending");
            drop(client);
            eventually("it to be missed", async || !is_held(there, own).unwrap()).await;
        }
    }

    #[test]
    fn a_client_of_the_other_family_is_found_and_a_listener_is_not_taken_for_one() {
        if !tells() {
            return eprintln!("skipped: this kernel does not tell of single sockets");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("::ffff:127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (there, own) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        assert!(there.is_ipv6() && own.is_ipv4());
        assert!(is_held(there, own).unwrap());

        let waits = TcpListener::bind("127.0.0.1:0").unwrap();
        let kernel = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        );
        let answer = holds(&kernel.unwrap(), waits.local_addr().unwrap(), own);
        assert!(!answer.unwrap());
        assert!(is_held(own, waits.local_addr().unwrap()).is_err(), "that is not ours");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(answer: Vec<u8>) {
            let _ = read(&answer);
        }
    }
}
