//! A client's connection that two can look at: hyper, which reads and writes, and whoever
//! wants to know whether the client is still there.
//!
//! A client that closes its sending side after a request still reads its answer; one that
//! is gone sends the same packet. On this machine the kernel knows which it was: a socket
//! that nobody holds any more has no inode. So a client that only stopped sending gets its
//! answer, and one that left stops costing the application anything. For clients on other
//! machines it cannot be told, and they are taken to be there until a write fails.

mod diag;

use std::{
    collections::HashSet,
    fs,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// First and longest wait between two looks at a client that has stopped sending. Within
/// the first, a connection without a request has ended by itself, and cost no look.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Bytes that were looked at make a socket readable until they are read.
const BETWEEN_PEEKS: Duration = Duration::from_millis(1);

/// A connection of a client. Cheap to clone; one clone reads and writes.
#[derive(Clone, Debug)]
pub(crate) struct Socket(Arc<TcpStream>);

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Resolves with whether the client begins with `preface`, as soon as that can be told;
    /// what it sends can still be read. Cancel safe.
    pub(crate) async fn begins_with(&self, preface: &[u8]) -> io::Result<bool> {
        let mut seen = [0; 32];
        loop {
            let count = self.0.peek(&mut seen[..preface.len().min(32)]).await?;
            if count == 0 || seen[..count] != preface[..count] {
                return Ok(false);
            }
            if count == preface.len() {
                return Ok(true);
            }
            // Rare: a preface in pieces, or a method that begins like it.
            sleep(BETWEEN_PEEKS).await;
        }
    }

    /// Resolves once the client has gone for good. Cancel safe.
    pub(crate) async fn left(&self, clients: &Clients) {
        // Of all readiness, these two tell of an end, and never of bytes to be read.
        let Ok(ready) = self.0.ready(Interest::PRIORITY | Interest::ERROR).await else { return };
        let (Ok(client), Ok(own)) = (self.0.peer_addr(), self.0.local_addr()) else { return };
        if ready.is_error() {
            return;
        }
        let mut wait = FIRST_LOOK;
        loop {
            sleep(wait).await;
            if !clients.has(client, own).await {
                return;
            }
            wait = (wait * 2).min(LAST_LOOK);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let (room, mut read) = (buf.remaining(), Err(io::ErrorKind::WouldBlock.into()));
            // A read that did not fill the buffer has emptied the socket: said to the
            // runtime, as its own streams do, it saves a read in vain after each.
            let _said = self.0.try_io(Interest::READABLE, || {
                read = self.0.try_read_buf(buf);
                match read {
                    Ok(some) if some == 0 || some == room => Ok(()),
                    _ => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write)?))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// What the kernel knows of the clients of one front.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    // The last look, shared by all who asked before it began.
    seen: Mutex<Option<(Instant, HashSet<SocketAddr>)>>,
}

impl Clients {
    /// Whether somebody on this machine still holds the connection from `client` to `own`.
    /// Of other machines nothing is known, and the answer is yes.
    async fn has(&self, client: SocketAddr, own: SocketAddr) -> bool {
        if !client.ip().to_canonical().is_loopback() && client.ip() != own.ip() {
            return true;
        }
        match diag::is_held(client, own) {
            Ok(held) => held,
            // This kernel does not tell of single sockets.
            Err(_) => self.is_listed(client, own).await,
        }
    }

    /// The same, from the list of all connections.
    async fn is_listed(&self, client: SocketAddr, own: SocketAddr) -> bool {
        let asked = Instant::now();
        let mut seen = self.seen.lock().await;
        if seen.as_ref().is_none_or(|(began, _)| *began < asked) {
            let began = Instant::now();
            let held = spawn_blocking(move || held(own.port())).await.unwrap_or_default();
            *seen = Some((began, held));
        }
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        seen.as_ref().is_some_and(|(_, held)| held.contains(&client))
    }
}

/// The local addresses of all connections to `port` that somebody holds.
fn held(port: u16) -> HashSet<SocketAddr> {
    // A client of either family may have connected to an IPv4 address.
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let lines = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
    lines.filter_map(|line| row(line, port)).collect()
}

/// The local address of one line of the table, if its socket is connected to `port` and
/// somebody holds it.
fn row(line: &str, port: u16) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (fields.next()?, fields.next()?);
    let inode = fields.nth(6)?;
    (inode != "0" && address(remote)?.port() == port).then(|| address(local)).flatten()
}

/// `0100007F:1F90`: 32 bits at a time, as this machine has them in memory.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            IpAddr::from(<[u8; 16]>::try_from(words.as_flattened()).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use lca::testing::eventually;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    #[test]
    fn a_line_of_the_kernels_table_is_read_and_junk_is_none() {
        let line = "   1: 0100007F:9C40 0100007F:1069 01 00000000:00000000 00:00000000 00000000  0        0 4711 1 0 20 4 30 10 -1";
        assert_eq!(row(line, 0x1069), Some("127.0.0.1:40000".parse().unwrap()));
        assert_eq!(row(line, 0x106a), None, "another's");
        assert_eq!(row(&line.replace("4711", "0"), 0x1069), None, "nobody holds it");
        let mapped = "0000000000000000FFFF00000100007F:9C40";
        assert_eq!(address(mapped), Some("127.0.0.1:40000".parse().unwrap()));
        let six = "00000000000000000000000001000000:0050";
        assert_eq!(address(six), Some("[::1]:80".parse().unwrap()));
        for junk in ["", "1:", "0100007F", "0100007F:G", "xx00007F:1069", "\u{20ac}000000:1"] {
            assert_eq!(address(junk), None, "{junk}");
            assert_eq!(row(junk, 1), None, "{junk}");
        }
    }

    #[tokio::test]
    async fn a_client_that_stopped_sending_is_there_until_it_closes() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listen).await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let socket = Socket::new(listener.accept().await.unwrap().0);
            let clients = Clients::default();
            client.shutdown().await.unwrap();
            let (there, own) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert!(clients.has(there, own).await, "{listen}");
            assert!(clients.is_listed(there, own).await, "{listen}");
            drop(client);
            eventually("it to be missed", async || !clients.has(there, own).await).await;
            let listed = async || !clients.is_listed(there, own).await;
            eventually("it to be off the list", listed).await;
            socket.left(&clients).await;
        }
    }
}
