//! The seam between policy (what to start, how long to wait, when to give up) and
//! mechanism (a process, a container engine).
//!
//! The supervisor calls this. Whether an instance is *ready* is the supervisor's to
//! find out; a driver only knows whether it runs. Policy is tested against
//! `fake`; every driver passes the same `suite`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lca::{
    Allowance, Capability, Digest, Error, Image, InstanceId, Kind, PeerId, Resources, Result,
    ServiceHash, ServiceName, api::proto::Fetching, listen::Subnet,
};

use crate::handed::Listener;

pub mod docker;
mod drivers;
#[cfg(test)]
pub(crate) mod fake;
pub mod process;
#[cfg(test)]
pub(crate) mod suite;

pub use drivers::Drivers;

/// What is started, with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Under which the instance is known from now on.
    pub id: InstanceId,
    /// What it is a copy of.
    pub service: ServiceName,
    /// And in which version.
    pub hash: ServiceHash,
    /// What is executed.
    pub program: Runnable,
    /// Its arguments, after the program's name.
    pub arguments: Vec<String>,
    /// Its whole environment, apart from `PATH` and `LANG`, which the driver adds.
    pub environment: BTreeMap<String, String>,
    /// The port on 127.0.0.1 that is its own: where a program listens, and where the port
    /// of a container is published.
    pub port: u16,
    /// The socket of that port, listening, where the program is to inherit it.
    pub listener: Option<Listener>,
    /// What it was admitted with: its share where processor time is short.
    pub resources: Resources,
    /// What it may use at most.
    pub allowance: Allowance,
}

/// What is executed: there, whole and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runnable {
    /// An immutable file.
    File(PathBuf),
    /// An image that the engine has.
    Image(Container),
}

impl Runnable {
    /// The file that is executed.
    ///
    /// # Errors
    /// If it is an image: a defect of ours.
    pub fn file(&self) -> io::Result<&Path> {
        match self {
            Self::File(path) => Ok(path),
            Self::Image(_) => Err(io::Error::other("an image is no program")),
        }
    }

    /// The image of which a container is made.
    ///
    /// # Errors
    /// If it is a file: a defect of ours.
    pub fn image(&self) -> io::Result<&Container> {
        match self {
            Self::Image(container) => Ok(container),
            Self::File(_) => Err(io::Error::other("a program is no image")),
        }
    }

    /// Where it listens if its allocator gives it `port` on 127.0.0.1: what it is told.
    pub fn listens_on(&self, port: u16) -> u16 {
        match self {
            Self::Image(container) if !container.host_network => container.port,
            Self::Image(_) | Self::File(_) => port,
        }
    }
}

/// What a container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The ID of its image.
    pub image: Digest,
    /// The port it listens on, in its own network.
    pub port: u16,
    /// It cannot write to its root file system.
    pub read_only_root: bool,
    /// What it keeps of the capabilities that all others lose.
    pub capabilities: BTreeSet<Capability>,
    /// It has no network of its own.
    pub host_network: bool,
}

/// A network of instances that have none of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Where the machine is on it.
    pub gateway: IpAddr,
    /// Who else may be on it.
    pub range: Subnet,
}

/// What a driver says of an instance that has just been started, and needs to know to
/// take it over after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Its process id on this machine; 0 where the driver has none.
    pub pid: u32,
    /// When the process began, in the kernel's own count since boot: with it a number
    /// that was given out again is not taken for the same process.
    pub start_time: u64,
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Killed by the kernel, since it had this many bytes of memory and wanted more.
    OutOfMemory(u64),
    /// Killed by us, since its working folder held more than this many bytes.
    OutOfDisk(u64),
    /// With its container, which somebody else removed.
    Removed,
    /// While nobody watched, or not as our child: how is not known.
    Unwatched,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "killed by signal {signal} ({name})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::OutOfMemory(limit) => {
                write!(f, "ran out of memory: its limit is {}", size(*limit))
            }
            Self::OutOfDisk(limit) => {
                write!(f, "filled its working folder: its limit is {}", size(*limit))
            }
            Self::Removed => f.write_str("ended: somebody removed its container"),
            Self::Unwatched => f.write_str("ended, its exit status is unknown"),
        }
    }
}

/// A limit as people write it, to the megabyte where it has some.
fn size(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{bytes} B") } else { format!("{} MiB", bytes >> 20) }
}

/// The signals programs die of, by the numbers Linux gives them everywhere we run.
const fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// What a running instance uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// Processor time since its start.
    pub cpu: Duration,
}

/// What a driver can and cannot enforce on this machine, in sentences for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Means {
    /// A subject and by what means: `memory: cgroup v2`.
    pub enforced: Vec<String>,
    /// A subject and why not.
    pub not_enforced: Vec<String>,
}

/// Where reading an instance's output begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At the oldest byte that is kept.
    Oldest,
    /// So many lines before the end.
    LastLines(u32),
    /// At most so many bytes before the end.
    LastBytes(u64),
}

/// What an instance wrote, standard output and error in order, in pieces of at most
/// [`MAX_CHUNK`] bytes. Dropping it ends the reading.
pub type Output = BoxStream<'static, Result<Bytes>>;

/// The variable of an instance's environment that holds its id. By it a driver knows what
/// an instance has left behind.
pub(crate) const INSTANCE_ENV: &str = "LCA_INSTANCE_ID";

/// The variable that holds the id of the node that started an instance. By it a node knows
/// its own after a crash, whatever it has forgotten.
pub(crate) const NODE_ENV: &str = "LCA_NODE";

/// Largest piece of an [`Output`]: what `LogChunk` may carry.
pub const MAX_CHUNK: usize = 64 << 10;

/// Runs instances. Never blocks the runtime.
///
/// Calls about an instance that is not held fail with
/// [`Kind::NotFound`]. An instance is held from a successful
/// [`start`](Self::start) to [`forget`](Self::forget).
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// The word for it in `Describe` and `Instance.driver`.
    fn name(&self) -> &'static str;

    /// Whether it could start something now.
    ///
    /// # Errors
    /// [`Kind::NotHere`] with the reason why it cannot.
    fn ready(&self) -> Result<()> {
        Ok(())
    }

    /// Where a running instance takes requests, where that is not the port on 127.0.0.1
    /// that is its own.
    fn address(&self, _: InstanceId) -> Option<SocketAddr> {
        None
    }

    /// The network that instances are on which have not the machine's; made if it is
    /// missing. `None`: they have the machine's. Cancel safe.
    ///
    /// # Errors
    /// If there is one, and it cannot be made.
    async fn bridge(&self) -> Result<Option<Bridge>> {
        Ok(None)
    }

    /// Has an image where containers can be made of it, in its own time: it ends when
    /// nothing comes any more. `told` hears how far it is. Cancel safe.
    ///
    /// # Errors
    /// [`Kind::NotHere`] if this machine cannot have it, or may not run it as it asks; else
    /// why nobody can have it, or not now.
    async fn image(
        &self,
        image: &Image,
        _told: &mut (dyn FnMut(Fetching) + Send),
    ) -> Result<Container> {
        let what = format!("this allocator has no Docker Engine for {}", image.reference);
        Err(Error::new(Kind::NotHere, what))
    }

    /// What it enforces on instances of a spec's limits and beyond, and what it does not.
    fn means(&self) -> Means;

    /// Starts one instance and returns as soon as it runs, ready or not.
    ///
    /// Cancel safe: if the future is dropped, no instance is left behind.
    ///
    /// # Errors
    /// [`Kind::StartFailed`] with the reason if it cannot be
    /// executed; nothing of it is left then. Where a process of an engine's comes before the
    /// program, that ends with code 127 instead and writes the reason.
    async fn start(&self, launch: Launch) -> Result<Started>;

    /// Takes over an instance that an earlier run started. True if it runs: it is held
    /// from now on as if it had been started here, except that how it ends may stay
    /// unknown. False if it has ended: it is held as an ended one, with what is left of
    /// its output. `allowance` is what it was started with. Cancel safe.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if nothing of it is left here; [`Kind::Conflict`] if it is held.
    async fn adopt(&self, id: InstanceId, started: Started, allowance: Allowance) -> Result<bool>;

    /// Ends by force what says that `node` started it and does not run as a held
    /// instance, and removes what is left of instances that are not held. What other
    /// nodes started is named in the log and left alone. To be called after
    /// [`adopt`](Self::adopt) and before [`start`](Self::start): one that is just being
    /// started is not held yet.
    async fn sweep(&self, node: PeerId);

    /// Resolves when the instance has ended, for whatever reason, with everything that
    /// belongs to it. Resolves at once if it had ended before. Cancel safe.
    ///
    /// # Errors
    /// If the instance is not held.
    async fn wait(&self, id: InstanceId) -> Result<Exit>;

    /// Whether it runs at this very moment. False for what is not held.
    fn is_running(&self, id: InstanceId) -> bool;

    /// Asks the instance to end, forces it after `grace`, and returns how it ended.
    /// Stopping one that has ended is no error. Cancel safe: what has been sent stays
    /// sent, and a second call with a shorter grace shortens the first.
    ///
    /// # Errors
    /// If the instance is not held.
    async fn stop(&self, id: InstanceId, grace: Duration) -> Result<Exit>;

    /// What it uses now; zeros once it has ended.
    ///
    /// # Errors
    /// If the instance is not held.
    async fn stats(&self, id: InstanceId) -> Result<Stats>;

    /// Its output. With `follow` the stream goes on until the instance has ended and
    /// everything it wrote has been read; else it ends at the present end.
    ///
    /// # Errors
    /// If the instance is not held.
    async fn logs(&self, id: InstanceId, from: Begin, follow: bool) -> Result<Output>;

    /// Removes everything an ended instance left, its output included. Unknown and
    /// running ones are left alone.
    async fn forget(&self, id: InstanceId);

    /// Gives back what instances shared: nothing is started any more, and what runs on is
    /// left. Bounded.
    async fn close(&self) {}

    /// Ends everything that runs by force, and starts nothing any more: for whoever
    /// drops a driver without having waited for its instances. Needs no runtime; blocks
    /// for milliseconds if something runs.
    fn kill_all(&self);
}

/// What a driver answers that was told to kill all.
fn killed() -> Error {
    Error::new(Kind::Unavailable, "this allocator was stopped by force")
}

/// The last lines an instance wrote, at most `lines` of them and 4 KiB in all; fewer
/// where they cannot be read.
pub(crate) async fn last_lines(driver: &dyn Driver, id: InstanceId, lines: usize) -> Vec<String> {
    use futures::TryStreamExt as _;
    /// What ten lines of a stack trace need, and what fits an error's details.
    const LAST: u64 = 4 << 10;
    let Ok(output) = driver.logs(id, Begin::LastBytes(LAST), false).await else {
        return Vec::new();
    };
    let bytes: Vec<Bytes> = output.try_collect().await.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes.concat()).into_owned();
    let all: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_reads_as_a_sentence() {
        assert_eq!(Exit::Code(3).to_string(), "exited with code 3");
        assert_eq!(Exit::Signal(9).to_string(), "killed by signal 9 (SIGKILL)");
        assert_eq!(Exit::Signal(63).to_string(), "killed by signal 63");
    }
}
