//! What the three binaries do: read what was typed, start, say so, run until asked to
//! stop, stop.
//!
//! ```text
//! start ──► bound ──► joined or alone: report, READY ──► running ──► draining ──► exit 0
//!   │ error: nothing runs, exit 2, 4 or 5                   │ a task ended   │ second signal,
//!   ▼                                                       ▼ exit 1         ▼ or too slow: exit 1
//! ```
//!
//! One that is asked to stop while it starts finishes what it is about and drains: an
//! allocator that gave up half way would leave running what it was taking over.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use lca::{Error, Exit, Kind, Result, endpoint::Role, workers::Workers};
use lca_node::Node;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    STOP_WITHIN, allocator,
    args::{Command, Own},
    base::Running,
    drain,
    notify::Notify,
    plan::{self, Environment, Plan, Read, Source},
    proxy, registry,
    report::Report,
    settle::settle,
};

/// What a daemon logs: its own news, and of libp2p only what is wrong.
const LOG_LEVEL: &str = "info,libp2p_swarm=warn,libp2p_kad=error";
/// What a service manager shows.
const READY: &str = "waiting for requests";
/// How long a start may still take that is asked to stop: binding and taking over are a
/// matter of milliseconds, and what runs needs the rest of [`STOP_WITHIN`] for its end.
const BOUND_WITHIN: Duration = Duration::from_secs(2);
/// After the end, how long a blocking call may still take before it is abandoned.
const ABANDON: Duration = Duration::from_millis(100);

/// All of a daemon's `main`.
pub fn main<C: Command>() -> ExitCode {
    let command = match C::try_parse() {
        Ok(command) => command,
        Err(said) => {
            let exit = if said.use_stderr() { Exit::Usage } else { Exit::Success };
            let printed = said.print().and_then(|()| io::stdout().flush());
            return if printed.is_ok() { exit.into() } else { Exit::Other.into() };
        }
    };
    let common = command.common();
    lca::logs::init(common.log_format.into(), LOG_LEVEL);
    let (plan, source, read) = match plan::plan(&command, &Environment::of_process()) {
        Ok(planned) => planned,
        Err(problems) => {
            problems.iter().for_each(tell);
            return Exit::Usage.into();
        }
    };
    if common.check {
        return match writeln!(io::stdout(), "{}", plan.to_json(&read)) {
            Ok(()) => Exit::Success.into(),
            Err(_) => Exit::Other.into(),
        };
    }
    let runtime = match Workers::runtime(read.workers) {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&Error::new(Kind::Internal, "cannot start the runtime").because(error));
            return Exit::Other.into();
        }
    };
    let running = async {
        match command.own() {
            Own::Allocator(own) if own.drain => {
                drain::run(&plan.settings().data_dir, own.drain_within).await
            }
            _ => run(plan, source, read).await,
        }
    };
    let exit = runtime.block_on(running).unwrap_or_else(|error| {
        tell(&error);
        Exit::of(error.kind())
    });
    runtime.shutdown_timeout(ABANDON);
    exit.into()
}

/// A failure as people are told it, on standard error.
fn tell(error: &Error) {
    let hint = error.hint_text().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    // What reads several things at once says one a line.
    let said = error.chain().lines().collect::<Vec<_>>().join("\nerror: ");
    // With nobody to read it there is nobody to tell.
    let _unread = writeln!(io::stderr(), "error: {said}{hint}");
}

/// Runs until asked to stop.
///
/// # Errors
/// If it cannot be started; nothing is running then.
async fn run(plan: Plan, source: Source, read: Read) -> Result<Exit> {
    let mut signals = Signals::install()?;
    let notify = Notify::from_environment();
    let mut building = std::pin::pin!(Daemon::build(plan.clone()));
    let daemon = tokio::select! {
        daemon = &mut building => daemon?,
        () = signals.stop() => {
            let asked = Instant::now();
            let built = tokio::select! {
                built = timeout(BOUND_WITHIN, building) => built,
                () = signals.stop() => return Ok(at_once()),
            };
            return match built {
                Ok(daemon) => Ok(finish(daemon?, &mut signals, &notify, asked).await),
                Err(_) => {
                    tracing::warn!("stopping in the middle of a start that takes too long");
                    Ok(Exit::Other)
                }
            };
        }
    };
    tokio::select! {
        _ = daemon.node().joined() => {}
        () = signals.stop() => {
            return Ok(finish(daemon, &mut signals, &notify, Instant::now()).await);
        }
    }
    // A reader that went away is no reason to stop.
    let _reader_gone = daemon.report(&plan).and_then(|()| io::stdout().flush());
    notify.ready(READY);
    let Signals { interrupt, terminate, hangup } = &mut signals;
    let asked = tokio::select! {
        () = stop(interrupt, terminate) => true,
        () = daemon.drained() => true,
        () = daemon.failed() => false,
        () = keep_alive(&notify) => false,
        () = settle() => false,
        () = reload(hangup, &daemon, &source, read, &notify) => false,
    };
    let exit = finish(daemon, &mut signals, &notify, Instant::now()).await;
    Ok(if asked { exit } else { Exit::Other })
}

/// Stops it, within [`STOP_WITHIN`] of `asked`, or at once at the next signal.
async fn finish(daemon: Daemon, signals: &mut Signals, notify: &Notify, asked: Instant) -> Exit {
    tracing::info!("stopping");
    notify.stopping();
    tokio::select! {
        in_time = timeout_at(asked + STOP_WITHIN, daemon.drain()) => {
            if in_time.unwrap_or(false) { Exit::Success } else { Exit::Other }
        }
        () = signals.stop() => at_once(),
    }
}

fn at_once() -> Exit {
    tracing::warn!("asked to stop again; stopping at once");
    Exit::Other
}

/// Tells a service manager that asked for it that the runtime still runs. Never ends.
async fn keep_alive(notify: &Notify) {
    let Some(every) = notify.watchdog else { return std::future::pending().await };
    let mut due = tokio::time::interval(every);
    loop {
        due.tick().await;
        notify.alive();
    }
}

/// Takes up a changed configuration at each hangup. Never ends.
async fn reload(
    hangup: &mut Signal,
    daemon: &Daemon,
    source: &Source,
    mut now: Read,
    notify: &Notify,
) {
    while hangup.recv().await.is_some() {
        notify.reloading();
        match source.read() {
            Ok(read) => match daemon.running().reload(&read).await {
                Ok(()) => {
                    say_what_changed(&now, &read, source);
                    now = read;
                }
                Err(error) => tracing::error!(%error, "the configuration is not changed"),
            },
            // One a line, as at the start.
            Err(error) => {
                for problem in error.public().lines() {
                    tracing::error!(%problem, "the configuration is not changed");
                }
            }
        }
        notify.ready(READY);
    }
    std::future::pending().await
}

fn say_what_changed(before: &Read, after: &Read, source: &Source) {
    let file = after.file.as_deref().map(|file| file.display().to_string()).unwrap_or_default();
    if before.requirements != after.requirements {
        let lca::Requirements { soft, hard } = after.requirements;
        tracing::info!(file, ?soft, ?hard, "changed: the RTT limits, from the next request on");
    }
    if before.bootstraps != after.bootstraps {
        let bootstraps: Vec<_> = after.bootstraps.iter().map(ToString::to_string).collect();
        tracing::info!(file, ?bootstraps, "changed: the bootstraps; connections to others stay");
        tracing::info!("not changed before a restart: the bootstraps that instances are told");
    }
    if before.workers != after.workers {
        tracing::info!("not changed before a restart: the worker threads");
    }
    if before.timeouts != after.timeouts {
        tracing::info!("not changed before a restart: the time-outs of requests");
    }
    if source.has_flags() {
        tracing::info!("not changed: the bootstraps, which were given by --bootstrap");
    }
    tracing::info!(file, "configuration read again; not changed before a restart: what flags say");
}

/// What a service manager and a terminal send.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> Result<Self> {
        let install = |kind| {
            signal(kind).map_err(|error| {
                Error::new(Kind::Internal, "cannot install signal handlers").because(error)
            })
        };
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            hangup: install(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next one that asks to stop.
    async fn stop(&mut self) {
        let Self { interrupt, terminate, .. } = self;
        stop(interrupt, terminate).await;
    }
}

async fn stop(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// A daemon that runs, whatever it is.
#[derive(Debug)]
enum Daemon {
    Registry(registry::App),
    Allocator(allocator::App),
    Proxy(proxy::App),
}

impl Daemon {
    async fn build(plan: Plan) -> Result<Self> {
        Ok(match plan {
            Plan::Registry(settings) => Self::Registry(registry::App::build(*settings).await?),
            Plan::Allocator(config) => Self::Allocator(allocator::App::open(*config).await?),
            Plan::Proxy(config) => Self::Proxy(proxy::App::build(*config).await?),
        })
    }

    fn running(&self) -> &Running {
        match self {
            Self::Registry(app) => app.running(),
            Self::Allocator(app) => app.running(),
            Self::Proxy(app) => app.running(),
        }
    }

    fn node(&self) -> &Node {
        &self.running().node
    }

    /// Resolves once an allocator has been drained; never for others.
    async fn drained(&self) {
        match self {
            Self::Allocator(app) => app.drained().await,
            Self::Registry(_) | Self::Proxy(_) => std::future::pending().await,
        }
    }

    async fn failed(&self) {
        self.running().failed().await;
    }

    async fn drain(self) -> bool {
        match self {
            Self::Registry(app) => app.drain().await,
            Self::Allocator(app) => app.drain().await,
            Self::Proxy(app) => app.drain().await,
        }
    }

    fn report(&self, plan: &Plan) -> io::Result<()> {
        let (role, external) = match plan {
            Plan::Registry(_) => (Role::Registry, None),
            Plan::Allocator(_) => (Role::Allocator, None),
            Plan::Proxy(config) => (Role::Proxy, config.external.as_ref()),
        };
        let status = self.node().status().borrow().clone();
        let report = Report {
            role,
            addresses: &self.running().addresses,
            data_dir: &plan.settings().data_dir,
            peers_known: lca::discovery::Discovery::known(self.node()).len(),
            status: &status,
            external,
        };
        write!(io::stdout(), "{report}")
    }
}
