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
use lca::{Error, InstanceId, Kind, Result, ServiceName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::{Begin, Driver, Exit, Launch, MAX_CHUNK, Output, Started, Stats};

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
    launches: Vec<Launch>,
    /// Nothing is started any more.
    killed: bool,
}

#[derive(Clone, Debug)]
struct Held {
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
        self.lock().held.values().filter(|held| held.exit.borrow().is_none()).count()
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

    async fn start(&self, launch: Launch) -> Result<Started> {
        let mut state = self.lock();
        if state.killed {
            return Err(super::killed());
        }
        let behaviour = state.behaviours.get(&launch.service).cloned().unwrap_or_default();
        if let Some(reason) = behaviour.refuses {
            return Err(Error::new(Kind::StartFailed, reason));
        }
        let held = Held { behaviour, exit: Arc::new(watch::Sender::new(None)) };
        state.held.insert(launch.id, held.clone());
        state.launches.push(launch.clone());
        let pid = FIRST_PID + state.launches.len() as u32;
        tokio::spawn(live(held, SocketAddr::from((Ipv4Addr::LOCALHOST, launch.port))));
        Ok(Started { pid })
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
    use crate::driver::suite::{self, Program};

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
                program: "/dev/null".into(),
                arguments: Vec::new(),
                environment: [("LCA_INSTANCE_ID".into(), id.to_string())].into(),
                port: 1,
            }
        })
        .await;
    }
}
