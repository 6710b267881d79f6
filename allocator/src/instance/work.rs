//! What an owner does in each state, and the event it ends with. Whatever waits here
//! has a deadline, except for requests in Ready.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use lca::{Error, Kind, Result, Runs, Spec};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{LAST_LINES, Owner, STEADY, alive};
use crate::{
    driver::{Bridge, Exit, Runnable, Started, last_lines},
    handed,
    ledger::Phase,
    lifecycle::Event,
    outside::Local,
    port::Port,
    readiness::{Obstacle, Probe},
    table::Ask,
    told,
};

/// Until a front whose port is held is tried again.
const FRONT_AGAIN: Duration = Duration::from_millis(100);

/// What programs of any language write of a port that is taken, whatever the case.
const IN_USE: &str = "address already in use";

/// How one attempt to start went.
enum Attempt {
    Ready,
    Exited(Exit),
    /// And what stood in the way.
    Late(Obstacle),
}

/// A start, or a take-over, that came to nothing for an obstacle: the machine's shortage
/// is not held against the service.
fn late(reason: String, obstacle: &Obstacle) -> Error {
    match obstacle {
        Obstacle::Program(_) => Error::new(Kind::StartFailed, reason),
        Obstacle::NoDescriptor => Error::new(Kind::NoCapacity, reason),
    }
}

impl Owner {
    /// Fetching: the artifact comes, or the deadline does.
    pub(super) async fn fetch(&mut self) -> Event {
        let since = Instant::now();
        let fetched = self.have(&self.entry.spec.runs).await;
        self.timed("fetch", since, "");
        match fetched {
            Ok(program) => {
                self.program = Some(program);
                Event::Fetched
            }
            Err(error) => self.failed(error),
        }
    }

    /// Has what runs where it can be started from.
    async fn have(&self, runs: &Runs) -> Result<Runnable> {
        match runs {
            Runs::Artifact(digest) => {
                let within = self.supervisor.config.timing.fetch;
                let fetching = self.supervisor.catalog.fetch(*digest);
                let fetched = timeout(within, fetching).await;
                fetched.map(|path| path.map(Runnable::File)).unwrap_or_else(|_| {
                    let late = format!("artifact {digest} did not arrive within {within:?}");
                    Err(Error::new(Kind::Timeout, late))
                })
            }
            // Its deadline is that something comes.
            Runs::Image(image) => {
                let mut told = |fetching| {
                    // Who watches instances looks by itself.
                    self.entry.view.send_if_modified(|view| {
                        view.fetching = Some(fetching);
                        false
                    });
                };
                Ok(Runnable::Image(self.driver.image(image, &mut told).await?))
            }
            Runs::External => {
                let what = format!("{} is an external service", self.entry.spec.name);
                Err(Error::new(Kind::FailedPrecondition, what))
            }
        }
    }

    /// Starting: the program is started, or was by an earlier run, and answers.
    pub(super) async fn begin(&mut self) -> Event {
        let runs = self.started != Started::default();
        if runs { self.take_up().await } else { self.start().await }
    }

    /// One that runs already: its front is where it was told, and it answers within the
    /// time a start has.
    async fn take_up(&mut self) -> Event {
        let since = Instant::now();
        let deadline = since + self.entry.spec.readiness.start_timeout;
        if let Err(error) = self.reopen_front(deadline).await {
            return self.failed(error);
        }
        let port = self.port.as_ref().map_or(0, Port::number);
        let name = self.entry.spec.name.clone();
        match self.ask_until(port, deadline).await {
            Ok(Attempt::Ready) => {
                self.timed("take over", since, "");
                Event::Answered
            }
            Ok(Attempt::Exited(exit)) => self.died(Ok(exit)),
            Ok(Attempt::Late(obstacle)) => {
                let within = self.entry.spec.readiness.start_timeout;
                let reason = format!(
                    "{name} did not answer within {within:?} of being taken over: {obstacle}"
                );
                self.failed(late(reason, &obstacle))
            }
            Err(error) => self.failed(error),
        }
    }

    /// Opens the front again that the instance was told of. The port may be held for
    /// moments by whoever used it last, but nobody else will do: the instance knows no
    /// other.
    async fn reopen_front(&mut self, deadline: Instant) -> Result<()> {
        let supervisor = self.supervisor.clone();
        let (Some(fronts), Some(port)) = (&supervisor.fronts, self.known_front) else {
            return Ok(());
        };
        let service = &self.entry.spec.name;
        let bridge = self.bridge().await?;
        loop {
            let opening = fronts.open(service, self.entry.id, Some(port), bridge);
            let error = match timeout_at(deadline, opening).await {
                Ok(Ok(front)) => {
                    self.front = Some(front);
                    return Ok(());
                }
                Ok(Err(error)) if Instant::now() + FRONT_AGAIN < deadline => error,
                Ok(Err(error)) => {
                    let reason = format!("{service} cannot have its front on port {port} again");
                    return Err(Error::new(Kind::Unavailable, reason).because(error));
                }
                Err(_) => continue, // never: opening takes microseconds
            };
            tracing::debug!(instance = %self.entry.id, error = error.chain(), "its front is tried again");
            sleep(FRONT_AGAIN).await;
        }
    }

    /// The network it is on, if that is not the machine's.
    async fn bridge(&self) -> Result<Option<Bridge>> {
        match &self.entry.spec.runs {
            Runs::Image(image) if !image.host_network => self.driver.bridge().await,
            _ => Ok(None),
        }
    }

    /// A program that ended because a stranger took its port is started once more on
    /// another.
    async fn start(&mut self) -> Event {
        let since = Instant::now();
        let deadline = since + self.entry.spec.readiness.start_timeout;
        let first = self.attempt(since, deadline).await;
        let attempt = match first {
            Ok(Attempt::Exited(_)) if self.lost_port().await => {
                tracing::info!(instance = %self.entry.id, "its port was taken; trying another");
                self.attempt(Instant::now(), deadline).await
            }
            first => first,
        };
        let name = &self.entry.spec.name;
        match attempt {
            Ok(Attempt::Ready) => Event::Answered,
            Ok(Attempt::Exited(exit)) => {
                let reason = format!("{name} {exit} before it was ready");
                self.failed(Error::new(Kind::StartFailed, reason));
                Event::Exited
            }
            Ok(Attempt::Late(obstacle)) => {
                let within = self.entry.spec.readiness.start_timeout;
                let reason = format!("{name} was not ready within {within:?}: {obstacle}");
                self.failed(late(reason, &obstacle))
            }
            Err(error) => self.failed(error),
        }
    }

    async fn attempt(&mut self, since: Instant, deadline: Instant) -> Result<Attempt> {
        let supervisor = self.supervisor.clone();
        let (id, spec) = (self.entry.id, self.entry.spec.clone());
        let late = |obstacle: &str| Ok(Attempt::Late(Obstacle::Program(obstacle.to_owned())));
        if self.front.is_none()
            && let Some(fronts) = &supervisor.fronts
        {
            let opening = async {
                let bridge = self.bridge().await?;
                fronts.open(&spec.name, id, None, bridge).await
            };
            let Ok(front) = timeout_at(deadline, opening).await else {
                return late("no front could be opened for it");
            };
            self.front = Some(front?);
        }
        self.port = Some(supervisor.ports.reserve()?);
        // From here on a crash finds out by its environment what was started, and by this
        // where it listens.
        let page = self.remember(Phase::Live);
        self.unwritten.push(page);
        for unwritten in self.unwritten.drain(..) {
            unwritten.done().await;
        }
        let Some(port) = &mut self.port else { return late("it has no port") };
        let Some(program) = self.program.clone() else { return late("it was not fetched") };
        let front = self.front.as_ref().map(|front| front.address);
        let node = supervisor.discovery.own().peer;
        let mut launch =
            told::launch(&supervisor.config.told, node, &spec, id, program, port.number(), front);
        let number = launch.port;
        if spec.socket_activation {
            launch.listener = Some(port.hand_over()?);
        } else {
            port.let_go().await;
        }
        let Ok(started) = timeout_at(deadline, self.driver.start(launch)).await else {
            return late("it could not be executed in time");
        };
        self.started = started?;
        let pid = self.started.pid;
        self.entry.view.send_modify(|view| view.pid = pid);
        self.timed("spawn", since, "");

        let spawned = Instant::now();
        // Before anybody is told of it, and while it gets ready.
        let written = self.remember(Phase::Live).done();
        let (attempt, ()) = tokio::join!(self.ask_until(number, deadline), written);
        // Connections to a program that has died must not wait at our copy of its socket.
        self.port.iter_mut().for_each(Port::close);
        self.timed("ready", spawned, "");
        attempt
    }

    /// Asks the program that was told this port for readiness.
    async fn ask_until(&self, port: u16, deadline: Instant) -> Result<Attempt> {
        let (id, driver) = (self.entry.id, &self.driver);
        let address = self.address(port);
        let spec = &self.entry.spec;
        let mut probe = Probe::new(address, spec.protocol, spec.readiness.http_path.clone());
        let handed = self.port.as_ref().and_then(Port::handed);
        let handed = handed.filter(|_| spec.readiness.http_path.is_none());
        let ready = async {
            match handed {
                Some(socket) => handed::accepts(socket, address).await,
                None => probe.ready(|| driver.is_running(id)).await,
            }
        };
        Ok(tokio::select! {
            biased;
            exit = driver.wait(id) => Attempt::Exited(exit?),
            () = ready => Attempt::Ready,
            () = sleep_until(deadline) => Attempt::Late(match handed {
                Some(_) => Obstacle::Program("it has not accepted a connection".into()),
                None => probe.obstacle().clone(),
            }),
        })
    }

    /// Where it takes requests, on the machine's `port` or elsewhere.
    fn address(&self, port: u16) -> SocketAddr {
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.driver.address(self.entry.id).unwrap_or(own)
    }

    /// After an early end: clears the program away and says whether somebody else had
    /// its port. Who held it for a moment, as a connection's own end, may be gone again;
    /// then the program itself has said so.
    async fn lost_port(&mut self) -> bool {
        if self.entry.spec.socket_activation {
            return false; // it had its socket from us
        }
        // Whatever remains of it must not be taken for a stranger.
        self.stop(Duration::ZERO).await;
        let taken = self.port.as_ref().is_some_and(Port::is_taken);
        let lines = last_lines(&*self.driver, self.entry.id, LAST_LINES).await;
        let lost = taken || lines.iter().any(|line| line.to_ascii_lowercase().contains(IN_USE));
        if lost {
            self.driver.forget(self.entry.id).await;
            self.started = Started::default();
            self.steps.retain(|step| step.name == "fetch");
        }
        lost
    }

    /// Lets requests in and has it announced, which goes on by itself.
    pub(super) fn open(&mut self) {
        let since = Instant::now();
        let port = self.port.as_ref().map_or(0, Port::number);
        let door = self.supervisor.gate.open(Local {
            instance: self.entry.id,
            hash: self.entry.hash,
            service: self.entry.spec.name.clone(),
            address: self.address(port),
            protocol: self.entry.spec.protocol,
            limit: self.entry.spec.concurrency_limit,
        });
        self.entry.set_door(&door);
        self.door = Some(door);
        self.timed("announce", since, "goes on in the background");
    }

    /// Ready: until it ends, idles out, or is asked to end.
    pub(super) async fn serve(&mut self) -> Event {
        let Some(door) = self.door.clone() else {
            return Event::Asked; // never: `open` comes before Ready
        };
        let (supervisor, entry) = (self.supervisor.clone(), self.entry.clone());
        let driver = self.driver.clone();
        let steady = async {
            sleep(STEADY).await;
            supervisor.lock().failures.clear(entry.hash);
            std::future::pending().await
        };
        let port = self.port.as_ref().map_or(0, Port::number);
        let Spec { liveness, protocol, .. } = &entry.spec;
        let hangs = alive::hangs(liveness.clone(), self.address(port), *protocol);
        tokio::select! {
            biased;
            exit = driver.wait(entry.id) => self.died(exit),
            reason = hangs => self.lost(reason, Event::Failed),
            () = entry.asked(Ask::Leave) => Event::Asked,
            () = steady => Event::Asked, // never
            () = self.idle(&*door) => Event::Idle,
        }
    }

    fn died(&mut self, exit: Result<Exit>) -> Event {
        let reason = match exit {
            Ok(exit) => exit.to_string(),
            Err(error) => error.public().to_owned(),
        };
        self.lost(reason, Event::Exited)
    }

    /// It cannot be used any more, for this reason.
    fn lost(&mut self, reason: String, event: Event) -> Event {
        self.reason = reason;
        let reason = format!(
            "instance {} of {} {}",
            self.entry.id.short(),
            self.entry.spec.name,
            self.reason
        );
        // One that dies young is a failed start, and answered as one.
        let steady = self.ready.is_some_and(|ready| ready.elapsed() >= STEADY);
        let kind =
            if steady || self.ready.is_none() { Kind::Unavailable } else { Kind::StartFailed };
        self.error = Some(Error::new(kind, reason));
        event
    }

    /// Draining: until nothing is open, or too long.
    pub(super) async fn drain(&mut self) -> Event {
        let Some(door) = self.door.clone() else {
            return Event::Drained; // it never took a request
        };
        let timing = &self.supervisor.config.timing;
        let stop = async {
            self.entry.hurried().await;
            sleep(timing.stop_drain).await;
        };
        let limit = async {
            if *self.entry.ask.borrow() == Ask::Drain {
                self.entry.asked(Ask::Release).await;
            }
            sleep(timing.drain).await;
        };
        tokio::select! {
            biased;
            () = door.drained() => {}
            _ = self.driver.wait(self.entry.id) => return Event::Exited,
            () = stop => {}
            () = limit => {}
        }
        self.left = *self.entry.ask.borrow() == Ask::Leave;
        if self.left { Event::Left } else { Event::Drained }
    }
}
