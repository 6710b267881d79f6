//! Listening, the same for every port of ours: what is said when a port cannot be had,
//! and how connections are accepted when the system has none to give.
//!
//! A process that is out of descriptors is told so at every accept, at once, with the
//! connection still waiting. So an accept that fails waits, longer each time, and says
//! so once in a while: neither a core nor the log is filled, and it goes on by itself.

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{Error, Kind};

pub use subnet::Subnet;

mod subnet;

/// First wait after the system could not accept, doubled to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Short against the time-outs of those who wait in the backlog.
const LONGEST_PAUSE: Duration = Duration::from_millis(640);
/// Between two lines of the log about the same trouble.
pub const SAY_EVERY: Duration = Duration::from_secs(10);

/// Why nothing can listen on `address` for `what` ("peers"), and what to do about it:
/// [`Kind::Conflict`] naming the port and, where this user may know it, who holds it;
/// [`Kind::NoCapacity`] without a descriptor for it; [`Kind::FailedPrecondition`] for any
/// other reason. Reads `/proc` if it is taken.
pub fn cannot(what: &str, address: SocketAddr, hint: &str, error: io::Error) -> Error {
    let refused = |kind, why: &str| {
        Error::new(kind, format!("cannot listen on {address} for {what}: {why}")).hint(hint)
    };
    let failed = match error.kind() {
        io::ErrorKind::AddrInUse => match holder(address.port()) {
            Some(who) => refused(Kind::Conflict, &format!("{who} has port {}", address.port())),
            None => {
                let why = format!("another program has port {}", address.port());
                refused(Kind::Conflict, &why)
            }
        },
        io::ErrorKind::AddrNotAvailable => {
            refused(Kind::FailedPrecondition, "it is not an address of this machine")
        }
        io::ErrorKind::PermissionDenied => {
            refused(Kind::FailedPrecondition, "this user may not use that port")
        }
        _ if out_of_descriptors(&error) => refused(Kind::NoCapacity, "no file descriptor is left"),
        _ => refused(Kind::FailedPrecondition, "the system refused"),
    };
    failed.because(error)
}

/// Whether something could not be opened because this process, or the machine, has as
/// many files open as it may.
pub fn out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error
        .raw_os_error()
        .is_some_and(|raw| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&raw))
}

/// Who listens on a TCP port of this machine, as `name (pid 123)`, if it is a process
/// that this user may look into.
pub fn holder(port: u16) -> Option<String> {
    let mut sockets = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(table).unwrap_or_default();
        sockets.extend(table.lines().filter_map(|line| listening_on(line, port)));
    }
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let pid = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    for (process, pid) in processes.filter_map(|path| pid(&path).map(|pid| (path, pid))) {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let mut targets = open.filter_map(|fd| fs::read_link(fd.path()).ok());
        if targets.any(|to| to.to_str().is_some_and(|to| sockets.contains(to))) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// What the descriptor of the socket in this line of `/proc/net/tcp` is a link to, if it
/// listens on `port`.
fn listening_on(line: &str, port: u16) -> Option<String> {
    /// `TCP_LISTEN`.
    const LISTEN: &str = "0A";
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
    let inode = fields.get(9)?;
    (local == port && *fields.get(3)? == LISTEN).then(|| format!("socket:[{inode}]"))
}

/// Accepts connections one after the other, whatever the system can give.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    name: String,
    pause: Pause,
}

impl<L> Acceptor<L> {
    /// `name` says in the log what cannot be accepted: "peers on 127.0.0.1:4002".
    pub fn new(listener: L, name: impl Into<String>) -> Self {
        Self { listener, name: name.into(), pause: Pause::new() }
    }
}

impl Acceptor<TcpListener> {
    /// The next connection. Cancel safe.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            self.pause.over().await;
            match self.listener.accept().await {
                Ok(accepted) => {
                    self.pause.end();
                    return accepted;
                }
                Err(error) => self.pause.begin(&self.name, &error),
            }
        }
    }
}

impl Acceptor<UnixListener> {
    /// The next connection. Cancel safe.
    pub async fn accept(&mut self) -> UnixStream {
        loop {
            self.pause.over().await;
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.pause.end();
                    return stream;
                }
                Err(error) => self.pause.begin(&self.name, &error),
            }
        }
    }
}

/// The wait after accepts that failed, and what was said about them.
#[derive(Debug)]
struct Pause {
    next: Duration,
    until: Option<tokio::time::Instant>,
    said: Option<Instant>,
}

impl Pause {
    const fn new() -> Self {
        Self { next: FIRST_PAUSE, until: None, said: None }
    }

    /// Resolves when it may be tried again.
    async fn over(&mut self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
        }
    }

    /// An accept went well.
    const fn end(&mut self) {
        self.next = FIRST_PAUSE;
    }

    /// An accept failed.
    fn begin(&mut self, name: &str, error: &io::Error) {
        if is_of_one_connection(error) {
            return;
        }
        self.until = Some(tokio::time::Instant::now() + self.next);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        let now = Instant::now();
        if self.said.is_none_or(|said| now.duration_since(said) >= SAY_EVERY) {
            self.said = Some(now);
            tracing::warn!(%error, "cannot accept {name} now; going on trying");
        }
    }
}

/// As many connections as may be open at once; one more is closed, and the log says so once
/// until there was room again.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    was_full: bool,
}

impl Places {
    /// This many.
    pub fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), was_full: false }
    }

    /// A place for a connection of `name`, until it is dropped, if there is one.
    pub fn enter(&mut self, name: &str) -> Option<OwnedSemaphorePermit> {
        let place = self.free.clone().try_acquire_owned().ok();
        if place.is_none() && !self.was_full {
            tracing::warn!("too many connections of {name}; the next are closed");
        }
        self.was_full = place.is_none();
        place
    }
}

/// Whether accepting failed because of the connection it would have taken, so that the
/// next may be accepted at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Log;

    #[test]
    fn a_port_that_is_taken_is_named_with_its_holder() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = std::net::TcpListener::bind(address).unwrap_err();
        let told = cannot("tests", address, "choose another", error);
        assert_eq!(told.kind(), Kind::Conflict);
        let said = told.public();
        assert!(said.contains(&format!("has port {}", address.port())), "{said}");
        assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
        drop(taken);
        assert_eq!(holder(address.port()), None);
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        for line in ["", "x", "sl local_address rem", " 0: 0100007F:0050 0 0A", "0: : 0 0A"] {
            assert_eq!(listening_on(line, 80), None, "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_accept_that_fails_waits_longer_each_time_and_is_said_once() {
        let log = Log::capture();
        let mut pause = Pause::new();
        let start = tokio::time::Instant::now();
        let full = io::Error::from_raw_os_error(24);
        for _ in 0..10 {
            pause.begin("tests", &full);
            pause.over().await;
        }
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(10 + 20 + 40 + 80 + 160 + 320 + 4 * 640));
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
        pause.end();
        assert_eq!(pause.next, FIRST_PAUSE);
    }

    #[test]
    fn one_connection_too_many_has_no_place_and_is_said_once() {
        let log = Log::capture();
        let mut places = Places::new(1);
        let place = places.enter("tests");
        assert!(place.is_some());
        assert!(places.enter("tests").is_none() && places.enter("tests").is_none());
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
        drop(place);
        assert!(places.enter("tests").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_broke_delays_nobody() {
        let mut pause = Pause::new();
        pause.begin("tests", &io::ErrorKind::ConnectionAborted.into());
        assert_eq!(pause.until, None);
    }
}
