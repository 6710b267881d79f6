//! What an owner does in each state, and the event it ends with. Whatever waits here
//! has a deadline, except for requests in Ready.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use lca::{Error, Kind, Result};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Owner;
use crate::{
    driver::Exit, lifecycle::Event, outside::Local, port::Port, readiness::Probe, table::Ask, told,
};

/// How one attempt to start went.
enum Attempt {
    Ready,
    Exited(Exit),
    /// And what stood in the way.
    Late(String),
}

impl Owner {
    /// Fetching: the artifact comes, or the deadline does.
    pub(super) async fn fetch(&mut self) -> Event {
        let since = Instant::now();
        let spec = &self.entry.spec;
        let Some(digest) = spec.artifact else {
            let name = &spec.name;
            return self.failed(Error::new(
                Kind::FailedPrecondition,
                format!("{name} is an external service"),
            ));
        };
        let within = self.supervisor.config.timing.fetch;
        let fetched = timeout_at(since + within, self.supervisor.catalog.fetch(digest)).await;
        self.timed("fetch", since, "");
        match fetched {
            Ok(Ok(program)) => {
                self.program = Some(program);
                Event::Fetched
            }
            Ok(Err(error)) => self.failed(error),
            Err(_) => self.failed(Error::new(
                Kind::Timeout,
                format!("artifact {digest} did not arrive within {within:?}"),
            )),
        }
    }

    /// Starting: the program answers, ends, or the deadline comes. A program that ended
    /// because a stranger took its port is started once more on another.
    pub(super) async fn start(&mut self) -> Event {
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
                self.failed(Error::new(Kind::StartFailed, reason))
            }
            Err(error) => self.failed(error),
        }
    }

    async fn attempt(&mut self, since: Instant, deadline: Instant) -> Result<Attempt> {
        let supervisor = self.supervisor.clone();
        let (id, spec) = (self.entry.id, self.entry.spec.clone());
        let late = |obstacle: &str| Ok(Attempt::Late(obstacle.to_owned()));
        if self.front.is_none()
            && let Some(fronts) = &supervisor.fronts
        {
            let Ok(front) = timeout_at(deadline, fronts.open(&spec.name, id)).await else {
                return late("no front could be opened for it");
            };
            self.front = Some(front?);
        }
        let port = self.port.insert(supervisor.ports.reserve()?);
        let program = self.program.clone().unwrap_or_default();
        let front = self.front.as_ref().map(|front| front.address);
        let launch =
            told::launch(&supervisor.config.told, &spec, id, program, port.number(), front);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, launch.port));
        port.let_go();
        let Ok(started) = timeout_at(deadline, supervisor.driver.start(launch)).await else {
            return late("it could not be executed in time");
        };
        let pid = started?.pid;
        self.entry.view.send_modify(|view| view.pid = pid);
        self.timed("spawn", since, "");

        let spawned = Instant::now();
        let mut probe = Probe::new(address, spec.readiness.http_path.clone());
        let attempt = tokio::select! {
            biased;
            exit = supervisor.driver.wait(id) => Attempt::Exited(exit?),
            () = probe.ready(|| supervisor.driver.is_running(id)) => Attempt::Ready,
            () = sleep_until(deadline) => return late(probe.obstacle()),
        };
        self.timed("ready", spawned, "");
        Ok(attempt)
    }

    /// After an early end: clears the program away and says whether somebody else has
    /// its port.
    async fn lost_port(&mut self) -> bool {
        // Whatever remains of it must not be taken for a stranger.
        self.stop(Duration::ZERO).await;
        let lost = self.port.as_ref().is_some_and(Port::is_taken);
        if lost {
            self.supervisor.driver.forget(self.entry.id).await;
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
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
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
        let idle_timeout = self.entry.spec.idle_timeout;
        tokio::select! {
            biased;
            exit = self.supervisor.driver.wait(self.entry.id) => self.died(exit),
            () = self.entry.asked(Ask::Release) => Event::Asked,
            () = door.idle_for(idle_timeout) => {
                self.reason = format!("idle for {idle_timeout:?}");
                Event::Idle
            }
        }
    }

    fn died(&mut self, exit: Result<Exit>) -> Event {
        self.reason = match exit {
            Ok(exit) => exit.to_string(),
            Err(error) => error.public().to_owned(),
        };
        let reason = format!(
            "instance {} of {} {}",
            self.entry.id.short(),
            self.entry.spec.name,
            self.reason
        );
        self.error = Some(Error::new(Kind::Unavailable, reason));
        Event::Exited
    }

    /// Draining: until nothing is open, or too long.
    pub(super) async fn drain(&mut self) -> Event {
        let Some(door) = self.door.clone() else {
            return Event::Drained; // it never took a request
        };
        let timing = &self.supervisor.config.timing;
        let stop = async {
            self.entry.asked(Ask::Stop).await;
            sleep(timing.stop_drain).await;
        };
        tokio::select! {
            biased;
            () = door.drained() => Event::Drained,
            _ = self.supervisor.driver.wait(self.entry.id) => Event::Exited,
            () = stop => Event::Drained,
            () = sleep(timing.drain) => Event::Drained,
        }
    }
}
