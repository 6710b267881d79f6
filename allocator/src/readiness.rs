//! Finds out when a program takes requests, by asking it often and early.
//!
//! A start is on somebody's request path, so the first looks are 100 microseconds
//! apart; they get rarer (by half as much again each time) until they cost a slow
//! starter nothing. A port that answers proves nothing while our own program is dead:
//! a stranger may sit on it, so the program's life is checked after each success.
//!
//! What is not ours, an external service, is looked at one [`Probe::look`] at a time, by
//! whoever represents it.

use std::{fmt, io, net::SocketAddr, time::Duration};

use http::Request;
use lca::{Protocol, listen::out_of_descriptors};
use lca_ingress::h2c_status;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

/// The first pause: a program that is ready at once costs its first request no more.
const FIRST: Duration = Duration::from_micros(100);
/// The longest: what a program that needs a second loses at most (2 %).
const LONGEST: Duration = Duration::from_millis(20);
/// The runtime's timers are no finer than this; shorter pauses are slept on a thread.
const TIMER: Duration = Duration::from_millis(2);
/// A program that accepts and does not answer is asked anew after this long.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// As what it asks.
const AGENT: &str = "lca-readiness";

/// Asks one program until it is ready.
#[derive(Debug)]
pub struct Probe {
    address: SocketAddr,
    /// The address as people know it.
    place: String,
    protocol: Protocol,
    http_path: Option<String>,
    within: Duration,
    /// What stood in the way at the last look.
    obstacle: Obstacle,
}

/// Why a program is not ready, or why nobody can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The program's own, as the end of a sentence.
    Program(String),
    /// There was no descriptor to look with: nothing is known of the program.
    NoDescriptor,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(sentence) => f.write_str(sentence),
            Self::NoDescriptor => f.write_str("no file descriptor is left to ask it with"),
        }
    }
}

impl Probe {
    /// Looks at `address`: until it accepts or, with a path, until GET answers 2xx in the
    /// `protocol` that it is to speak.
    pub fn new(address: SocketAddr, protocol: Protocol, http_path: Option<String>) -> Self {
        let place = match address.ip().is_loopback() {
            true => format!("port {}", address.port()),
            false => address.to_string(),
        };
        let obstacle = Obstacle::Program(format!("nothing listens on {place}"));
        Self { address, place, protocol, http_path, within: ANSWER_WITHIN, obstacle }
    }

    /// The same that waits so long for a connection, and as long for an answer.
    pub(crate) fn answered_within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// What stood in the way at the last look.
    pub fn obstacle(&self) -> &Obstacle {
        &self.obstacle
    }

    /// Resolves once the program is ready and `alive`. Has no deadline of its own.
    /// Cancel safe.
    pub async fn ready(&mut self, alive: impl Fn() -> bool) {
        let mut pause = FIRST;
        loop {
            match self.look().await {
                Ok(()) if alive() => return,
                Ok(()) => {
                    self.obstacle = Obstacle::Program("somebody else answers on its port".into());
                }
                Err(obstacle) => self.obstacle = obstacle,
            }
            rest(pause).await;
            pause = next(pause);
        }
    }

    /// Looks once, for at most two seconds unless told otherwise. Cancel safe.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn look(&self) -> Result<(), Obstacle> {
        let (place, within) = (&self.place, self.within);
        let Ok(connected) = timeout(within, TcpStream::connect(self.address)).await else {
            return Err(Obstacle::Program(format!("{place} does not accept")));
        };
        let nothing = || Obstacle::Program(format!("nothing listens on {place}"));
        let stream = connected.map_err(|error| match out_of_descriptors(&error) {
            true => Obstacle::NoDescriptor,
            false => nothing(),
        })?;
        if is_self(&stream) {
            return Err(nothing());
        }
        let Some(path) = &self.http_path else {
            return Ok(());
        };
        Err(Obstacle::Program(match timeout(within, self.get(stream, path)).await {
            Ok(Ok(status)) if status.starts_with('2') => return Ok(()),
            Ok(Ok(status)) => format!("GET {path} answers {status}"),
            Ok(Err(_)) => format!("GET {path} is not answered in {}", self.language()),
            Err(_) => format!("GET {path} is not answered within {within:?}"),
        }))
    }

    fn language(&self) -> &'static str {
        match self.protocol {
            Protocol::Http1 => "HTTP",
            Protocol::H2c => "HTTP/2",
        }
    }

    /// The three digits of the status of a GET.
    async fn get(&self, stream: TcpStream, path: &str) -> io::Result<String> {
        match self.protocol {
            Protocol::Http1 => get(stream, path, self.address).await,
            Protocol::H2c => {
                let uri = format!("http://{}{path}", self.address);
                let request = Request::get(uri).header("user-agent", AGENT).body(());
                let status = h2c_status(stream, request.map_err(io::Error::other)?).await;
                status.map(|status| status.as_str().to_owned()).map_err(io::Error::other)
            }
        }
    }
}

/// Whether the kernel gave the socket the very port it dialled and so connected it to
/// itself, as may happen when nobody listens on a port of the range for clients.
fn is_self(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(other)) if own == other)
}

/// The same in HTTP/1.1.
async fn get(mut stream: TcpStream, path: &str, host: SocketAddr) -> io::Result<String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200": nothing more is of interest.
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..));
    match status {
        Some(digits) if digits.iter().all(u8::is_ascii_digit) => {
            Ok(String::from_utf8_lossy(digits).into_owned())
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The pause after `pause`.
fn next(pause: Duration) -> Duration {
    (pause * 3 / 2).min(LONGEST)
}

async fn rest(pause: Duration) {
    if pause >= TIMER {
        return sleep(pause).await;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "on a thread for blocking work; the runtime's timers have steps of 1 ms"
    )]
    let slept = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
    if slept.is_err() {
        sleep(pause).await; // the runtime is ending
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn pauses_grow_from_100_microseconds_to_20_milliseconds() {
        let pauses: Vec<_> =
            std::iter::successors(Some(FIRST), |pause| Some(next(*pause))).take(20).collect();
        assert_eq!(pauses[0], Duration::from_micros(100));
        assert_eq!(pauses[1], Duration::from_micros(150));
        assert_eq!(pauses[19], LONGEST);
        assert!(pauses.is_sorted());
    }

    #[tokio::test]
    async fn a_port_is_ready_once_it_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut probe = Probe::new(address, Protocol::Http1, None);
        assert!(timeout(Duration::from_millis(20), probe.ready(|| true)).await.is_err());
        assert!(
            probe.obstacle().to_string().starts_with("nothing listens"),
            "{}",
            probe.obstacle()
        );
        let _listener = TcpListener::bind(address).await.unwrap();
        timeout(PATIENCE, probe.ready(|| true)).await.unwrap();
    }

    #[tokio::test]
    async fn a_stranger_on_the_port_of_a_dead_program_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut probe = Probe::new(listener.local_addr().unwrap(), Protocol::Http1, None);
        assert!(timeout(Duration::from_millis(50), probe.ready(|| false)).await.is_err());
        assert!(probe.obstacle().to_string().contains("somebody else"), "{}", probe.obstacle());
    }

    #[tokio::test]
    async fn a_socket_that_met_itself_is_nobody() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        let stream = timeout(PATIENCE, socket.connect(own)).await.unwrap().unwrap();
        assert!(is_self(&stream));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert!(!is_self(&TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()));
    }

    #[tokio::test]
    async fn with_a_path_only_a_2xx_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers =
            ["HTTP/1.1 503 Busy\r\n\r\n", "SSH-2.0-OpenSSH_9\r\n", "HTTP/1.0 204 X\r\n\r\n"];
        let server = async {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                request.truncate(read);
                requests.push(String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        };
        let mut probe = Probe::new(address, Protocol::Http1, Some("/healthz".into()));
        let (requests, ready) = tokio::join!(server, timeout(PATIENCE, probe.ready(|| true)));
        ready.unwrap();
        assert!(requests.iter().all(|request| request.starts_with("GET /healthz HTTP/1.1\r\n")));
        assert!(
            probe.obstacle().to_string().contains("not answered in HTTP"),
            "{}",
            probe.obstacle()
        );
    }

    #[tokio::test]
    async fn a_program_of_http2_is_asked_in_http2() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut probe = Probe::new(address, Protocol::H2c, Some("/healthz".into()));
        let server = async {
            // One that speaks HTTP/1.1 is not ready, nor is one that says so.
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            drop(stream);
            for status in [503, 200] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut answer))) = connection.accept().await {
                    assert_eq!(
                        (request.method().as_str(), request.uri().path()),
                        ("GET", "/healthz")
                    );
                    let head = http::Response::builder().status(status).body(()).unwrap();
                    answer.send_response(head, true).unwrap();
                }
            }
        };
        let looks = async {
            let said = [probe.look().await, probe.look().await].map(|look| match look {
                Err(Obstacle::Program(said)) => said,
                other => panic!("{other:?}"),
            });
            assert_eq!(said[0], "GET /healthz is not answered in HTTP/2");
            assert_eq!(said[1], "GET /healthz answers 503");
            probe.ready(|| true).await;
        };
        let (looked, ()) = tokio::join!(timeout(PATIENCE, looks), async {
            // It ends with the connection of the last look.
            let _served = timeout(PATIENCE, server).await;
        });
        looked.unwrap();
    }
}
