//! The owner of one instance: a task that takes it through [`crate::lifecycle`] from
//! admission to its end and is the only one who acts on it.
//!
//! The start belongs to this task, not to the call that asked for it: a caller that
//! goes away drops only its own wait. However the task ends, what it held (port, front,
//! way in) goes with it, and nobody waits for the instance any longer.

mod alive;
mod idle;
mod work;

use std::{sync::Arc, time::Duration};

use lca::{
    Error, Kind,
    api::{self, proto},
};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::{
    OpenFront,
    driver::{Driver, Runnable, Started, last_lines},
    ledger::{Page, Phase, Record, Written, wall_ms},
    lifecycle::{Action, Event, State, step},
    outside::Door,
    port::Port,
    supervisor::Supervisor,
    table::{Ask, Entry},
};

/// Output lines kept of an instance that failed.
pub(crate) const LAST_LINES: usize = 10;
/// Ready for so long, an instance that dies was no failed start: a program that crashes at
/// its first request would else be started at the speed of requests.
pub(crate) const STEADY: Duration = Duration::from_secs(10);
/// What got SIGKILL and is still there after this is stuck in the kernel.
pub(crate) const STUCK: Duration = Duration::from_secs(10);

/// Runs an admitted instance in a task of its own. Nothing is executed before `noted`, the
/// call that asked for it, is on its way to the disk.
pub(crate) fn run(
    supervisor: Arc<Supervisor>,
    entry: Arc<Entry>,
    driver: Arc<dyn Driver>,
    noted: Written,
) {
    let spawner = supervisor.spawner.clone();
    let mut owner = Owner::new(supervisor, entry, driver);
    // Written while the artifact is looked for: a start that a crash cuts off is known.
    let page = owner.remember(Phase::Live);
    owner.unwritten = vec![noted, page];
    // Its lines say which request it was started for, and by whom, to its end.
    spawner.spawn_short(async move { owner.live(Event::Begun).await }.in_current_span());
}

/// Goes on with an instance that runs already, as `record` has it.
pub(crate) fn resume(
    supervisor: Arc<Supervisor>,
    entry: Arc<Entry>,
    driver: Arc<dyn Driver>,
    record: Record,
) {
    let spawner = supervisor.spawner.clone();
    let mut owner = Owner::new(supervisor, entry, driver);
    owner.started = record.started;
    owner.taken_over = true;
    owner.port = record.port.map(|port| owner.supervisor.ports.claim(port));
    owner.known_front = record.front;
    if record.phase == Phase::Ending {
        owner.reason = record.reason;
    }
    spawner.spawn_short(async move { owner.live(Event::TakenOver).await }.in_current_span());
}

/// An instance, with everything that is undone when it ends.
struct Owner {
    supervisor: Arc<Supervisor>,
    entry: Arc<Entry>,
    /// What runs it.
    driver: Arc<dyn Driver>,
    state: State,
    reason: String,
    error: Option<Error>,
    steps: Vec<proto::Step>,
    program: Option<Runnable>,
    port: Option<Port>,
    front: Option<OpenFront>,
    /// The port of the front that an instance was told of which was taken over.
    known_front: Option<u16>,
    door: Option<Arc<dyn Door>>,
    /// The process; its default before it was started.
    started: Started,
    page: Page,
    /// What must be on its way to the disk before anything is executed.
    unwritten: Vec<Written>,
    /// Since when it takes requests.
    ready: Option<Instant>,
    /// It runs on, for the next run of this allocator to take over.
    left: bool,
    /// Not announced any more.
    withdrawn: bool,
    /// It was running when this allocator started.
    taken_over: bool,
}

impl Owner {
    fn new(supervisor: Arc<Supervisor>, entry: Arc<Entry>, driver: Arc<dyn Driver>) -> Self {
        let page = supervisor.ledger.page();
        Self {
            supervisor,
            entry,
            driver,
            state: State::Pending,
            reason: String::new(),
            error: None,
            steps: Vec::new(),
            program: None,
            port: None,
            front: None,
            known_front: None,
            door: None,
            started: Started::default(),
            page,
            unwritten: Vec::new(),
            ready: None,
            left: false,
            withdrawn: false,
            taken_over: false,
        }
    }

    async fn live(&mut self, first: Event) {
        let mut event = first;
        loop {
            let (next, actions) = step(self.state, event);
            for action in actions {
                self.act(*action).await;
            }
            if next.is_ended() {
                return self.end(next).await;
            }
            self.enter(next);
            event = self.next_event().await;
        }
    }

    /// Does what a state is for, and says how it went.
    async fn next_event(&mut self) -> Event {
        let entry = self.entry.clone();
        let event = match self.state {
            State::Fetching => tokio::select! {
                biased;
                () = entry.asked(Ask::Drain) => Event::Asked,
                event = self.fetch() => event,
            },
            State::Starting => tokio::select! {
                biased;
                () = entry.asked(Ask::Drain) => Event::Asked,
                event = self.begin() => event,
            },
            State::Ready => self.serve().await,
            State::Draining => self.drain().await,
            // Left by `Begun`, or never left.
            State::Pending | State::Stopped | State::Failed => Event::Begun,
        };
        if event == Event::Asked && self.reason.is_empty() {
            let asked = *entry.ask.borrow();
            self.reason = match asked {
                Ask::Stop => "the allocator stops",
                Ask::Leave => "left running by an allocator that stops",
                Ask::Drain => "the allocator is being drained",
                Ask::Live | Ask::Release => "released",
            }
            .to_owned();
        }
        event
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Open => self.open(),
            Action::Refuse => self.door.iter().for_each(|door| door.drain()),
            Action::Close => {
                self.door = None;
                // Seen at once: nobody joins it while it is cleared away.
                self.publish();
            }
            Action::Terminate => {
                let entry = self.entry.clone();
                let timing = &self.supervisor.config.timing;
                tokio::select! {
                    () = self.stop(timing.grace) => {}
                    () = async {
                        entry.asked(Ask::Stop).await;
                        self.stop(timing.stop_grace).await;
                    } => {}
                }
            }
            Action::Kill => self.stop(Duration::ZERO).await,
        }
    }

    /// Ends the program. Nothing to do if it never ran.
    async fn stop(&self, grace: Duration) {
        let stopping = self.driver.stop(self.entry.id, grace);
        match timeout(grace + STUCK, stopping).await {
            Ok(Err(error)) if error.kind() != Kind::NotFound => {
                tracing::warn!(instance = %self.entry.id, error = error.chain(), "cannot stop it");
            }
            Ok(_) => {}
            Err(_) => tracing::error!(instance = %self.entry.id, "it does not even end by SIGKILL"),
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.publish();
        if state == State::Draining && *self.entry.ask.borrow() != Ask::Leave {
            // A crash while it drains must not bring it back to life.
            drop(self.remember(Phase::Ending));
        }
        let Entry { id, spec, .. } = &*self.entry;
        match state {
            State::Ready => {
                self.ready = Some(Instant::now());
                let since = self.entry.admitted.elapsed();
                if self.taken_over {
                    tracing::info!(
                        service = %spec.name, instance = %id, age = ?since, "instance taken over"
                    );
                } else {
                    tracing::info!(service = %spec.name, instance = %id, took = ?since, "instance ready");
                }
            }
            _ => tracing::debug!(service = %spec.name, instance = %id, ?state, "instance"),
        }
    }

    /// The end: what it wrote last, what those who wait are told, and its place for
    /// somebody else.
    async fn end(&mut self, state: State) {
        let Self { supervisor, entry, driver, .. } = self;
        let mut output = Vec::new();
        if state == State::Failed {
            output = last_lines(&**driver, entry.id, LAST_LINES).await;
            if let Some(error) = self.error.take() {
                let error = error.output(output.iter().cloned());
                let now = Instant::now();
                self.error = Some(match self.ready {
                    Some(ready) if now >= ready + STEADY => error,
                    _ => supervisor.lock().failures.record(entry.hash, error, now),
                });
            }
        }
        let (name, id, reason) = (&entry.spec.name, entry.id, &self.reason);
        match state {
            State::Failed => {
                tracing::warn!(service = %name, instance = %id, reason, "instance failed")
            }
            _ if self.left => {
                tracing::info!(service = %name, instance = %id, "instance kept, it runs on");
            }
            _ => tracing::info!(service = %name, instance = %id, reason, "instance stopped"),
        }
        let outcome = if state == State::Failed { "failed" } else { "stopped" };
        if state == State::Failed {
            supervisor.lock().history.record(name, reason);
            let failures = &supervisor.config.metrics.allocator.failures;
            let service = supervisor.config.metrics.service(name);
            failures.with_label_values(&[service.label()]).inc();
        }
        if !self.left {
            supervisor.config.metrics.allocator.ended.with_label_values(&[outcome]).inc();
        }
        entry.view.send_modify(|view| view.output = output);
        self.state = state;
        if !self.left {
            let phase = if state == State::Failed { Phase::Failed } else { Phase::Stopped };
            self.remember(phase).done().await;
        }
        self.let_go();
        let forgotten = self.supervisor.lock().table.end(self.entry.id);
        self.publish();
        if let Some(forgotten) = forgotten {
            self.supervisor.forget(forgotten).await;
        }
    }

    /// Has written down where it stands; a restart finds it so.
    fn remember(&mut self, phase: Phase) -> Written {
        let ended = matches!(phase, Phase::Stopped | Phase::Failed);
        let record = Record {
            instance: self.entry.id,
            spec: self.entry.spec.clone(),
            phase,
            admitted_ms: wall_ms(self.entry.admitted),
            ended_ms: if ended { wall_ms(Instant::now()) } else { 0 },
            port: self.port.as_ref().map(Port::number),
            front: self.front.as_ref().map(|front| front.address.port()).or(self.known_front),
            started: self.started,
            reason: self.reason.clone(),
            output: self.entry.view.borrow().output.clone(),
        };
        self.page.write(record)
    }

    fn let_go(&mut self) {
        self.door = None;
        self.front = None;
        self.port = None;
    }

    /// Shows others where it stands.
    fn publish(&self) {
        self.entry.view.send_modify(|view| {
            view.state = self.state;
            view.reason.clone_from(&self.reason);
            view.error.clone_from(&self.error);
            view.steps.clone_from(&self.steps);
            view.withdrawn = self.withdrawn;
        });
        self.supervisor.changed.notify_one();
        self.supervisor.feed.poke();
    }

    fn timed(&mut self, name: &'static str, since: Instant, detail: &str) {
        let steps = self.supervisor.config.metrics.allocator.steps.with_label_values(&[name]);
        steps.observe(since.elapsed().as_secs_f64());
        self.steps.push(api::step(name, since, detail));
    }

    /// Remembers why it cannot go on.
    fn failed(&mut self, error: Error) -> Event {
        self.reason = error.public().to_owned();
        self.error = Some(error);
        Event::Failed
    }
}

impl Drop for Owner {
    /// The task was killed, or panicked: nobody may wait for it for ever.
    fn drop(&mut self) {
        if !self.state.is_ended() {
            self.let_go();
            self.state = State::Failed;
            self.reason = "the allocator lost it".to_owned();
            self.supervisor.lock().table.end(self.entry.id);
            self.publish();
        }
    }
}
