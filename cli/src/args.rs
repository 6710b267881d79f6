//! What people type. Everything is parsed into its type here, so that commands never
//! see a text that means nothing.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use lca::{InstancePrefix, RequestId, ServiceName};
use lca_daemon::args::LogFormat;

pub use image::Image as ImageArgs;
pub use liveness::Liveness as LivenessArgs;

use crate::{connect::Address, output::Format, units, up};

mod image;
mod liveness;

/// The table of [`lca::Exit`], for people.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 a defect, 2 the command line or a file is wrong, \
                          3 not found,\n4 nobody answered or not everything is serving, \
                          5 refused, 130 interrupted";

/// Find, start and stop services on this machine and beyond
///
/// Asks the daemon on this machine, which asks the others.
#[derive(Clone, Debug, Parser)]
#[command(name = "lcactl", version = lca_daemon::VERSION, after_help = EXIT_CODES)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The daemon to ask: unix:PATH, a path, or http://127.0.0.1:PORT [env: LCA_ADDRESS]
    /// [default: the first local one that answers]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub address: Option<Address>,
    /// The file with the token that http:// asks for [default: the token in LCA_TOKEN]
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// What standard output looks like; JSON has the field names of the API
    #[arg(short, long, global = true, default_value = "table", value_name = "table|json")]
    #[arg(value_enum, hide_possible_values = true)]
    pub output: Format,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    #[expect(missing_docs, reason = "documented at up::Args, which is its help")]
    Up(up::Args),
    /// List the peers this node knows, itself first
    Peers(Peers),
    /// List what runs where
    Instances(Instances),
    /// Say what a request for a service would come to now, and why
    Explain {
        /// The service
        service: ServiceName,
    },
    /// Start an instance, or join one that will do, and say where it is
    Allocate(Allocate),
    /// Stop an instance
    Release {
        /// Instance id, or the beginning of one
        instance: InstancePrefix,
    },
    /// Print what an instance has written
    Logs(Logs),
    /// The services that can be asked for
    #[command(subcommand)]
    Service(Service),
    /// Ask every daemon on this machine whether it is serving
    Health,
    /// Find the first thing that is broken between here and an instance, and how to mend it
    Doctor(Doctor),
    /// Print the script that makes a shell complete command lines
    ///
    /// bash: source <(lcactl completions bash). zsh: save it as _lcactl in a folder of
    /// $fpath. fish: lcactl completions fish | source.
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// The configuration file
    #[command(subcommand)]
    Config(Config),
    /// Run the demo service itself
    #[command(hide = true)]
    DemoHelloWorldServer {
        /// What the demo is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// The shells that can complete command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly interactive shell.
    Fish,
}

/// `peers`
#[derive(Clone, Debug, Args)]
pub struct Peers {
    /// Go on showing changes until Ctrl-C (exit code 130); the daemon is asked every
    /// second. With -o json one object a line: put, gone, synced
    #[arg(short, long)]
    pub watch: bool,
}

/// `instances`
#[derive(Clone, Debug, Args)]
pub struct Instances {
    /// Only instances of this service
    pub service: Option<ServiceName>,
    /// Also those that have stopped or failed, as far as they are remembered
    #[arg(long, conflicts_with = "watch")]
    pub all: bool,
    /// Go on showing changes until Ctrl-C (exit code 130). With -o json one object a line:
    /// put, gone, synced, capacity
    #[arg(short, long)]
    pub watch: bool,
}

/// `allocate`
#[derive(Clone, Debug, Args)]
pub struct Allocate {
    /// The service to start
    pub service: ServiceName,
    /// Start another even if there is one that will do
    #[arg(long)]
    pub new: bool,
    /// Makes the call idempotent for 10 minutes [default: a random one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<RequestId>,
}

/// `logs`
#[derive(Clone, Debug, Args)]
pub struct Logs {
    /// Instance id, or the beginning of one
    pub instance: InstancePrefix,
    /// Go on until the instance ends
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with so many of the last lines [default: all that is kept]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tail: Option<u32>,
}

/// `doctor`
#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// Also send a real request to this service, which may start an instance of it
    pub service: Option<ServiceName>,
}

/// `service ...`
#[derive(Clone, Debug, Subcommand)]
pub enum Service {
    /// Register a service, uploading its program
    Add(Box<Add>),
    /// List all services
    List,
    /// Show one service
    Get {
        /// Its name
        name: ServiceName,
    },
    /// Remove a service; instances that run idle out
    Remove {
        /// Its name
        name: ServiceName,
    },
}

/// `service add`
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["file", "exec", "external", "image"])))]
pub struct Add {
    /// The name clients will ask for
    #[arg(required_unless_present = "file")]
    pub name: Option<ServiceName>,
    /// A spec in JSON, as `service get -o json` prints it, or the original's
    /// service-conf.json; what else is given here counts more
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The executable to upload and run
    #[arg(long, value_name = "PATH")]
    pub exec: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its fields, which are flags")]
    pub container: ImageArgs,
    /// Nothing to run: a proxy represents it
    #[arg(long, conflicts_with_all = ["exec", "cpu", "memory", "idle_timeout", "ready_path", "start_timeout", "env", "arguments",
        "min_instances", "max_instances", "target_concurrency", "placement"])]
    pub external: bool,
    /// Above this round-trip time, look for a nearer instance
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub soft_rtt: Option<Duration>,
    /// Above this round-trip time, do not use an instance
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub hard_rtt: Option<Duration>,
    /// What one instance takes of a core, such as 0.1 or 100m [default: 100m]
    #[arg(long, value_name = "CORES", value_parser = units::cpu)]
    pub cpu: Option<u32>,
    /// What one instance takes of memory [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub memory: Option<u64>,
    /// An instance without open requests for so long is stopped [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub idle_timeout: Option<Duration>,
    /// Ready once GET of this path answers 2xx [default: once the port accepts]
    #[arg(long, value_name = "PATH")]
    pub ready_path: Option<String>,
    /// An instance that is not ready within this time has failed, at most 60s [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub start_timeout: Option<Duration>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its fields, which are flags")]
    pub liveness: LivenessArgs,
    /// So many instances are kept, used or not [default: 0]
    #[arg(long, value_name = "N")]
    pub min_instances: Option<u32>,
    /// So many instances there are at most; 0 is no limit [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_instances: Option<u32>,
    /// Requests in flight per instance above which another is started; 0 is never
    /// [default: never]
    #[arg(long, value_name = "N")]
    pub target_concurrency: Option<u32>,
    /// Which machine near enough gets the next instance: the nearest, the one with the
    /// fewest of them, or the one most used that has room [default: nearest]
    #[arg(long, value_enum, value_name = "nearest|spread|pack", hide_possible_values = true)]
    pub placement: Option<Placement>,
    /// What it speaks on its port: HTTP/1.1, or HTTP/2 in cleartext as gRPC programs do
    /// [default: http1]
    #[arg(long, value_enum, value_name = "http1|h2c", hide_possible_values = true)]
    pub protocol: Option<Protocol>,
    /// Longest body of a request [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub max_body: Option<u64>,
    /// From a request to the head of its answer [default: 5m, the front's]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub answer_timeout: Option<Duration>,
    /// Until the next part of a body, either way [default: 5m, the front's]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub quiet_timeout: Option<Duration>,
    /// From the head of a request to the end of its answer, a start included [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub request_timeout: Option<Duration>,
    /// Environment of the program; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Replace a different service of this name without asking
    #[arg(long, visible_alias = "yes")]
    pub replace: bool,
    /// Arguments of the program; ${SERVICE_PORT} and the others are filled in at start
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<String>,
}

/// Which machine gets the next instance, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// The nearest.
    Nearest,
    /// The one with the fewest instances of the service.
    Spread,
    /// The one most used that still has room.
    Pack,
}

impl From<Placement> for lca::Placement {
    fn from(placement: Placement) -> Self {
        match placement {
            Placement::Nearest => Self::Nearest,
            Placement::Spread => Self::Spread,
            Placement::Pack => Self::Pack,
        }
    }
}

/// What an instance speaks, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in cleartext, with prior knowledge.
    H2c,
}

impl From<Protocol> for lca::api::proto::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1,
            Protocol::H2c => Self::H2c,
        }
    }
}

/// `config ...`
#[derive(Clone, Debug, Subcommand)]
pub enum Config {
    /// Print the configuration that would be used, or everything that is wrong with it
    Check {
        /// The file [default: conf/conf.json, or lca/conf.json in the user's
        /// configuration folder]
        file: Option<PathBuf>,
    },
}

impl Cli {
    /// What the log on standard error looks like.
    pub fn log_format(&self) -> lca::logs::Format {
        match &self.command {
            Command::Up(args) => args.log_format.into(),
            _ => lca::logs::Format::default(),
        }
    }

    /// What is logged where `RUST_LOG` says nothing: a client only tells what it prints.
    /// The report of `up` says to people what its nodes would say at their start.
    pub fn log_level(&self) -> &'static str {
        match &self.command {
            Command::Up(args) if args.log_format == LogFormat::Json => "info,libp2p_swarm=warn",
            Command::Up(_) => "warn",
            _ => "error",
        }
    }
}

/// What `LCA_ADDRESS` says; empty is the same as unset, as in shell scripts that pass
/// on what may not be there.
///
/// # Errors
/// If it is set to something that is no address.
pub(crate) fn address_of_the_environment() -> Result<Option<Address>, clap::Error> {
    const NAME: &str = "LCA_ADDRESS";
    let value = std::env::var_os(NAME).unwrap_or_default();
    if value.is_empty() {
        return Ok(None);
    }
    let text = value.to_str().ok_or_else(|| "it is not UTF-8".to_owned());
    text.and_then(|text| text.parse().map(Some)).map_err(|reason: String| {
        let what = format!("invalid value {value:?} for {NAME}: {reason}");
        Cli::command().error(clap::error::ErrorKind::ValueValidation, what)
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        let words = std::iter::once("lcactl").chain(line.split(' '));
        Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_service_is_described_in_words_people_use() {
        let line = "service add hello --exec ./hello --soft-rtt 100ms --hard-rtt 1s --cpu 0.25 \
                    --memory 64MiB --idle-timeout 1m --env A=B=C --env D= -- --port ${SERVICE_PORT}";
        let Ok(Command::Service(Service::Add(add))) = parse(line) else { panic!("not taken") };
        assert_eq!(
            (add.soft_rtt, add.hard_rtt),
            (Some(Duration::from_millis(100)), Some(Duration::from_secs(1)))
        );
        assert_eq!((add.cpu, add.memory), (Some(250), Some(64 << 20)));
        assert_eq!(add.env, [("A".into(), "B=C".into()), ("D".into(), String::new())]);
        assert_eq!(add.arguments, ["--port", "${SERVICE_PORT}"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (line, reason) in [
            ("service add hello", "--exec"),
            ("service add --external", "NAME"),
            ("service add hello --exec x --image y", "cannot be used with"),
            ("service add hello --exec x --external", "cannot be used with"),
            ("service add hello --external --cpu 1", "cannot be used with"),
            ("service add hello --exec x --cap-add KILL", "cannot be used with"),
            ("service add hello --image x --cap-add FLY", "none that Linux has"),
            ("service add hello --image x --image-port 0", "invalid value"),
            ("service add hello --host-network", "--image"),
            ("service add hello --external --max-instances 1", "cannot be used with"),
            ("service add hello --exec x --placement far", "nearest, spread, pack"),
            ("service add hello --exec x --min-instances -1", "unexpected argument"),
            ("service add Hello --external", "service name"),
            ("service add hello --exec x --soft-rtt 100", "with a unit"),
            ("service add hello --exec x --env A", "NAME=VALUE"),
            ("release XYZ", "hex digits"),
            ("logs 1a --tail 0", "0 is not in"),
            ("peers --address 127.0.0.1:4210", "unix"),
            ("peers --address http://10.0.0.1:4210", "ssh"),
            ("up --nodes 33", "33 is not in"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn the_demo_gets_its_arguments_as_they_are() {
        let Ok(Command::DemoHelloWorldServer { arguments }) =
            parse("demo-hello-world-server --port 1 -o x")
        else {
            panic!("not taken")
        };
        assert_eq!(arguments, ["--port", "1", "-o", "x"]);
    }
}
