//! `lcactl`, the operator's command line: a thin client of the local API.
//!
//! Everything it does is a call of `proto/lca/v1` that any program can make. Data goes
//! to standard output and everything else to standard error; exit codes are stable
//! (the table is in [`errors`]); every wait has a deadline.

pub mod args;
mod commands;
mod connect;
pub mod errors;
pub mod output;
mod specfile;
mod table;
pub use lca::units;
pub mod up;
mod upload;
mod usage;
mod view;
mod watch;

use std::{ffi::OsString, io, process::ExitCode, time::Duration};

use clap::Parser as _;
use hello_world_server::Options;
use lca::workers::Workers;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use args::Cli;
pub use output::Output;

use args::Command;
use errors::{Exit, Failure};

/// After Ctrl-C, how long the command may still take to say what remains. Longer, and
/// it hangs in a write to a pipe that nobody reads.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// After the end, how long a blocking read may still take before it is abandoned.
const ABANDON: Duration = Duration::from_millis(100);

/// Parses the command line. `Err` is the exit code once the help, the version or what
/// is wrong has been printed.
///
/// # Errors
/// If there is nothing to run.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let parsed = Cli::try_parse_from(&arguments).and_then(|mut cli| {
        if cli.global.address.is_none() {
            cli.global.address = args::address_of_the_environment()?;
        }
        Ok(cli)
    });
    let error = match parsed {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    if error.use_stderr() && usage::wants_json(&arguments) {
        let failure = usage::failure(&error);
        Output::standard(output::Format::Json).failure(&failure);
        return Err(failure.exit().into());
    }
    let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
    // clap colours only where there is a terminal, and swallows no error.
    let printed = error.print().and_then(|()| io::Write::flush(&mut io::stdout()));
    match printed.map_err(Failure::Output) {
        Ok(()) => Err(exit.into()),
        Err(failure) => {
            Output::standard(output::Format::Table).failure(&failure);
            Err(failure.exit().into())
        }
    }
}

/// Runs a command on a runtime of its own, Ctrl-C included. For a `main` that has no
/// runtime yet.
pub fn run_to_end(cli: Cli) -> ExitCode {
    if let Command::DemoHelloWorldServer { arguments } = cli.command {
        // Quick to start: on one thread, not on the runtime below.
        return demo_ended(Options::parse(arguments).and_then(hello_world_server::run_to_end));
    }
    let mut output = Output::standard(cli.global.output);
    let workers = match &cli.command {
        Command::Up(args) => up::workers(args),
        _ => Ok(None),
    };
    let workers = match workers {
        Ok(workers) => workers,
        Err(error) => return tell(&mut output, error.into()).into(),
    };
    let runtime = match Workers::runtime(workers) {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure =
                lca::Error::new(lca::Kind::Internal, "cannot start the runtime").because(error);
            output.failure(&failure.into());
            return Exit::Other.into();
        }
    };
    let exit = runtime.block_on(async move {
        // `up` stops politely at the same signal, by itself. The handler is there before
        // the work begins: Ctrl-C at any moment means 130.
        let watch = !matches!(cli.command, Command::Up(_));
        let mut signals = watch.then(|| signal(SignalKind::interrupt())).and_then(Result::ok);
        let interrupt = CancellationToken::new();
        let token = interrupt.clone();
        let running = tokio::spawn(async move { run(cli, &mut output, token).await });
        tokio::pin!(running);
        let interrupted = async {
            match &mut signals {
                Some(signals) => signals.recv().await,
                None => std::future::pending().await,
            };
            interrupt.cancel();
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            ended = &mut running => ended.unwrap_or(Exit::Other.into()),
            () = interrupted => Exit::Interrupted.into(),
        }
    });
    runtime.shutdown_timeout(ABANDON);
    exit
}

/// Runs a command, or says why it failed. Cancelling `interrupt` ends it with what is
/// to be said about work that goes on elsewhere.
pub async fn run(cli: Cli, output: &mut Output, interrupt: CancellationToken) -> ExitCode {
    let command = match cli.command {
        Command::Up(args) => {
            return up::run(args).await.unwrap_or_else(|error| tell(output, error.into()).into());
        }
        Command::DemoHelloWorldServer { arguments } => {
            return demo_ended(match Options::parse(arguments) {
                Ok(options) => hello_world_server::run(options).await,
                Err(error) => Err(error),
            });
        }
        command => command,
    };
    client(command, &cli.global, output, interrupt).await.into()
}

/// The commands that only ask a daemon.
async fn client(
    command: Command,
    global: &args::Global,
    output: &mut Output,
    interrupt: CancellationToken,
) -> Exit {
    let doctor = matches!(command, Command::Doctor(_));
    let ended = tokio::select! {
        ended = commands::run(command, global, output) => Some(ended),
        () = interrupt.cancelled() => None,
    };
    match ended {
        Some(Ok(())) => Exit::Success,
        Some(Err(failure)) => tell(output, advised(failure, doctor)),
        None => {
            let failure = output.interrupted();
            tell(output, failure)
        }
    }
}

/// Who was not answered, and was not told what to do about it, can have it looked into.
fn advised(failure: Failure, by_the_doctor: bool) -> Failure {
    const DOCTOR: &str = "`lcactl doctor` finds out what does not answer";
    if by_the_doctor {
        return failure;
    }
    failure.hint_for(lca::Kind::Timeout, DOCTOR).hint_for(lca::Kind::Unavailable, DOCTOR)
}

fn tell(output: &mut Output, failure: Failure) -> Exit {
    output.failure(&failure);
    failure.exit()
}

/// Not told through [`Output`]: this is the demo speaking, not lcactl.
fn demo_ended(ended: io::Result<u8>) -> ExitCode {
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("hello-world-server: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
