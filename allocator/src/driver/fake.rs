//! A driver without processes: the twin of [`process`](super::process) for tests of
//! policy.
//!
//! Its instances are tasks that listen on the port they were told and answer everything
//! with 200, unless [`Behaviour`] says otherwise. They end with the runtime.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use lca::{Allowance, Error, InstanceId, Kind, PeerId, Resources, Result, ServiceName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::{Begin, Driver, Exit, Launch, MAX_CHUNK, Means, Output, Started, Stats};

/// Numbers its instances have in place of process ids: above what Linux gives out, so
/// that no test signals a stranger.
const FIRST_PID: u32 = 1 << 30;
/// The answer to every request.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n";

/// What instances of a service do.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// Cannot be executed, for this reason.
    pub(crate) refuses: Option<String>,
    /// Listens so long after its start; never, if `None`.
    pub(crate) listens_after: Option<Duration>,
    /// Ends by itself so long after its start.
    pub(crate) ends_after: Option<(Duration, Exit)>,
    /// Goes on when asked to end.
    pub(crate) ignores_term: bool,
    /// Writes this at its start.
    pub(crate) output: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            refuses: None,
            listens_after: Some(Duration::ZERO),
            ends_after: None,
            ignores_term: false,
            output: String::new(),
        }
    }
}

/// The fake driver. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    behaviours: HashMap<ServiceName, Behaviour>,
    held: HashMap<InstanceId, Held>,
    /// What there was when the allocator crashed.
    left: HashMap<InstanceId, Held>,
    launches: Vec<Launch>,
    /// Nothing is started any more.
    killed: bool,
}

#[derive(Clone, Debug)]
struct Held {
    started: Started,
    behaviour: Behaviour,
    /// `None` while it runs.
    exit: Arc<watch::Sender<Option<Exit>>>,
}

impl Held {
    fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(exit);
            first
        });
    }

    async fn ended(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(Exit::Unwatched)
    }
}

impl Fake {
    /// Says what instances of `service` do that are started from now on.
    pub(crate) fn behave(&self, service: &ServiceName, behaviour: Behaviour) {
        self.lock().behaviours.insert(service.clone(), behaviour);
    }

    /// Everything that was started so far, in order.
    pub(crate) fn launches(&self) -> Vec<Launch> {
        self.lock().launches.clone()
    }

    /// How many instances run.
    pub(crate) fn running(&self) -> usize {
        let state = self.lock();
        state
            .held
            .values()
            .chain(state.left.values())
            .filter(|held| held.exit.borrow().is_none())
            .count()
    }

    /// Forgets everything, as a crash of the allocator does. What runs goes on.
    pub(crate) fn lose_memory(&self) {
        let mut state = self.lock();
        let held: Vec<_> = state.held.drain().collect();
        state.left.extend(held);
    }

    /// Ends an instance that nobody watches.
    pub(crate) fn crash_unwatched(&self, id: InstanceId) {
        if let Some(held) = self.lock().left.get(&id) {
            held.end(Exit::Unwatched);
        }
    }

    /// Ends an instance as if by itself.
    pub(crate) fn crash(&self, id: InstanceId, exit: Exit) {
        if let Ok(held) = self.held(id) {
            held.end(exit);
        }
    }

    fn held(&self, id: InstanceId) -> Result<Held> {
        self.lock().held.get(&id).cloned().ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no instance {}", id.short()))
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Driver for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn means(&self) -> Means {
        Means::default()
    }

    async fn start(&self, launch: Launch) -> Result<Started> {
        let mut state = self.lock();
        if state.killed {
            return Err(super::killed());
        }
        let behaviour = state.behaviours.get(&launch.service).cloned().unwrap_or_default();
        if let Some(reason) = behaviour.refuses {
            return Err(Error::new(Kind::StartFailed, reason));
        }
        let count = state.launches.len() as u32 + 1;
        let started = Started { pid: FIRST_PID + count, start_time: count.into() };
        let held = Held { started, behaviour, exit: Arc::new(watch::Sender::new(None)) };
        state.held.insert(launch.id, held.clone());
        state.launches.push(launch.clone());
        tokio::spawn(live(held, SocketAddr::from((Ipv4Addr::LOCALHOST, launch.port))));
        Ok(started)
    }

    async fn adopt(&self, id: InstanceId, started: Started, _: Allowance) -> Result<bool> {
        let mut state = self.lock();
        if state.held.contains_key(&id) {
            return Err(Error::new(Kind::Conflict, "it is held"));
        }
        let left = state.left.get(&id).filter(|held| held.started == started).cloned();
        let Some(held) = left else {
            return Err(Error::new(Kind::NotFound, "nothing is left of it"));
        };
        state.left.remove(&id);
        let runs = held.exit.borrow().is_none();
        state.held.insert(id, held);
        Ok(runs)
    }

    async fn sweep(&self, _: PeerId) {
        let left: Vec<_> = self.lock().left.drain().collect();
        left.iter().for_each(|(_, held)| held.end(Exit::Signal(9)));
    }

    async fn wait(&self, id: InstanceId) -> Result<Exit> {
        let held = self.held(id)?;
        Ok(held.ended().await)
    }

    fn is_running(&self, id: InstanceId) -> bool {
        self.held(id).is_ok_and(|held| held.exit.borrow().is_none())
    }

    async fn stop(&self, id: InstanceId, grace: Duration) -> Result<Exit> {
        let held = self.held(id)?;
        if !held.behaviour.ignores_term {
            held.end(Exit::Signal(15));
        }
        if timeout(grace, held.ended()).await.is_err() {
            held.end(Exit::Signal(9));
        }
        Ok(held.ended().await)
    }

    async fn stats(&self, id: InstanceId) -> Result<Stats> {
        self.held(id).map(|_| Stats::default())
    }

    async fn logs(&self, id: InstanceId, from: Begin, follow: bool) -> Result<Output> {
        let held = self.held(id)?;
        let text = Bytes::from(held.behaviour.output.clone());
        let begin = match from {
            Begin::Oldest => 0,
            Begin::LastBytes(bytes) => text.len().saturating_sub(bytes as usize),
            Begin::LastLines(lines) => {
                let ends: Vec<_> = held.behaviour.output.split_inclusive('\n').collect();
                let last = ends.iter().rev().take(lines as usize);
                text.len() - last.map(|line| line.len()).sum::<usize>()
            }
        };
        let text = text.slice(begin..);
        let pieces: Vec<_> =
            text.chunks(MAX_CHUNK).map(|piece| Ok(text.slice_ref(piece))).collect();
        let end = async move {
            if follow {
                held.ended().await;
            }
            None
        };
        Ok(stream::iter(pieces).chain(stream::once(end).filter_map(async |end| end)).boxed())
    }

    async fn forget(&self, id: InstanceId) {
        self.lock().held.retain(|held, state| *held != id || state.exit.borrow().is_none());
    }

    fn kill_all(&self) {
        let mut state = self.lock();
        state.killed = true;
        state.held.values().for_each(|held| held.end(Exit::Signal(9)));
    }
}

async fn live(held: Held, address: SocketAddr) {
    let Behaviour { listens_after, ends_after, .. } = held.behaviour.clone();
    let serves = async {
        let Some(after) = listens_after else { return std::future::pending().await };
        sleep(after).await;
        if serve(address).await.is_err() {
            held.end(Exit::Code(1)); // as programs do when their port is taken
        }
    };
    let ends = async {
        let Some((after, exit)) = ends_after else { return std::future::pending().await };
        sleep(after).await;
        held.end(exit);
    };
    tokio::select! {
        _ = held.ended() => {}
        () = serves.then(|()| std::future::pending::<()>()) => {}
        () = ends => {}
    }
}

async fn serve(address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let _request = stream.read(&mut [0; 4096]).await?;
    stream.write_all(ANSWER).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{
        Runnable,
        suite::{self, Program},
    };

    #[tokio::test]
    async fn the_fake_takes_over() {
        let fake = Fake::default();
        let launch = || {
            let id = InstanceId::random();
            let service: ServiceName = format!("fake-{}", id.short()).parse().unwrap();
            let output = suite::OUTPUT.into();
            fake.behave(
                &service,
                Behaviour { output, listens_after: None, ..Behaviour::default() },
            );
            Launch {
                id,
                service,
                hash: lca::ServiceHash::from_sha256([1; 32]),
                program: Runnable::File("/dev/null".into()),
                arguments: Vec::new(),
                environment: [("LCA_INSTANCE_ID".into(), id.to_string())].into(),
                port: 1,
                listener: None,
                resources: Resources::default(),
                allowance: Allowance::default(),
            }
        };
        let crash = || {
            fake.lose_memory();
            fake.clone()
        };
        suite::takes_over(&fake, crash, [launch(), launch()]).await;
        assert_eq!(fake.running(), 1, "one was not taken over");
        fake.sweep(PeerId::from_public_key([1; 32])).await;
        assert_eq!(fake.running(), 0);
    }

    #[tokio::test]
    async fn the_fake_passes_the_suite() {
        let fake = Fake::default();
        suite::passes(&fake, |program| {
            let id = InstanceId::random();
            let service: ServiceName = format!("fake-{}", id.short()).parse().unwrap();
            let behaviour = match program {
                Program::Runs => Behaviour::default(),
                Program::IgnoresTerm => Behaviour { ignores_term: true, ..Behaviour::default() },
                Program::Ends(exit) => {
                    Behaviour { ends_after: Some((Duration::ZERO, exit)), ..Behaviour::default() }
                }
                Program::CannotRun => {
                    Behaviour { refuses: Some("cannot be executed".into()), ..Behaviour::default() }
                }
            };
            let listens_after = None; // the suite is not about ports
            fake.behave(
                &service,
                Behaviour { output: suite::OUTPUT.into(), listens_after, ..behaviour },
            );
            Launch {
                id,
                service,
                hash: lca::ServiceHash::from_sha256([1; 32]),
                program: Runnable::File("/dev/null".into()),
                arguments: Vec::new(),
                environment: [("LCA_INSTANCE_ID".into(), id.to_string())].into(),
                port: 1,
                listener: None,
                resources: Resources::default(),
                allowance: Allowance::default(),
            }
        })
        .await;
    }
}
