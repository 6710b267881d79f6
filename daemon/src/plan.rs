//! From what was typed, the configuration file and the environment to what a daemon
//! will be: everything is read, and everything that is wrong is said at once.

use std::{net::SocketAddr, path::PathBuf};

use lca::{
    Error, Kind, Requirements, Result, ServiceName,
    config::{self, BOOTSTRAPS_ENV, Bootstrap, Config, Timeouts},
    local,
    workers::{WORKERS_ENV, Workers},
};
use lca_allocator::driver::{docker, process::Grants};
use lca_engine::{Address, DOCKER_HOST, Terms};
use lca_node::Identity;
use serde_json::{Map, Value, json};

use crate::{
    Settings,
    allocator::{self, Containers},
    args::{self, Command, Common, Own, values},
    limits::{self, Descriptors},
    proxy,
};

/// The environment variable with a pre-shared key.
const PSK_ENV: &str = "P2P_PSK";

/// What daemons read of the environment, as values: tests have no environment of their
/// own.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Of [`BOOTSTRAPS_ENV`].
    pub bootstraps: Option<String>,
    /// Of [`WORKERS_ENV`].
    pub workers: Option<String>,
    /// Whether a pre-shared key is set. Its value is nobody's business.
    pub psk: bool,
    /// Where the Docker Engine is.
    pub docker_host: Option<String>,
    /// The user's data folder.
    pub data: Option<PathBuf>,
    /// What this process may have open.
    pub descriptors: Descriptors,
}

impl Environment {
    /// Of this process, whose limit of open files is raised as far as it goes.
    pub fn of_process() -> Self {
        let folder = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from).filter(|path| path.is_absolute())
        };
        Self {
            bootstraps: std::env::var(BOOTSTRAPS_ENV).ok(),
            workers: std::env::var(WORKERS_ENV).ok(),
            docker_host: std::env::var(DOCKER_HOST).ok(),
            psk: std::env::var_os(PSK_ENV).is_some_and(|key| !key.is_empty()),
            data: folder("XDG_DATA_HOME")
                .or_else(|| folder("HOME").map(|home| home.join(".local/share"))),
            descriptors: limits::raise(),
        }
    }
}

/// What a daemon will be.
#[derive(Clone, Debug)]
pub enum Plan {
    /// A registry.
    Registry(Box<Settings>),
    /// An allocator.
    Allocator(Box<allocator::Config>),
    /// A proxy.
    Proxy(Box<proxy::Config>),
}

/// What can be read again while a daemon runs: the file, under what was typed.
#[derive(Clone, Debug)]
pub struct Source {
    configfile: Option<PathBuf>,
    flags: Vec<Bootstrap>,
    environment: Option<String>,
    workers: (Option<Workers>, Option<String>),
}

/// What a configuration file and its rivals come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// Peers to join through.
    pub bootstraps: Vec<Bootstrap>,
    /// Of this machine's clients.
    pub requirements: Requirements,
    /// Threads to work with.
    pub workers: Option<Workers>,
    /// How long requests may take.
    pub timeouts: Timeouts,
}

impl Source {
    /// Reads the file as it is now.
    ///
    /// # Errors
    /// Everything that is wrong with it, in one.
    pub fn read(&self) -> Result<Read> {
        let file = config::find(self.configfile.as_deref());
        let config = file.as_deref().map(Config::load).transpose()?.unwrap_or_default();
        let environment = self.environment.as_deref();
        let bootstraps = config::bootstraps(&self.flags, &config.bootstraps, environment)?;
        let (flag, variable) = &self.workers;
        let workers = Workers::choose(*flag, config.workers, variable.as_deref())?;
        let Config { requirements, timeouts, .. } = config;
        Ok(Read { file, bootstraps, requirements, workers, timeouts })
    }

    /// Whether bootstraps were typed, so that those of the file are not used.
    pub fn has_flags(&self) -> bool {
        !self.flags.is_empty()
    }
}

/// What went wrong so far.
#[derive(Debug, Default)]
struct Problems(Vec<Error>);

impl Problems {
    fn take<T>(&mut self, read: Result<T>) -> Option<T> {
        read.map_err(|error| self.0.push(error)).ok()
    }
}

/// Reads all of it.
///
/// # Errors
/// Everything that is wrong, in the order of the flags.
pub fn plan<C: Command>(
    command: &C,
    environment: &Environment,
) -> Result<(Plan, Source, Read), Vec<Error>> {
    let mut problems = Problems::default();
    let common = command.common();
    let flags = common.bootstrap.iter().filter_map(|text| {
        let read: Result<Bootstrap> = text.parse();
        problems.take(read.map_err(|error| named("--bootstrap", error)))
    });
    let flags: Vec<_> = flags.collect();
    let workers = common.worker_threads.as_deref().and_then(|text| {
        let read: Result<Workers> = text.parse();
        problems.take(read.map_err(|error| named("--worker-threads", error)))
    });
    let source = Source {
        flags,
        configfile: common.configfile.clone(),
        environment: environment.bootstraps.clone(),
        workers: (workers, environment.workers.clone()),
    };
    let read = problems.take(source.read()).unwrap_or_default();
    if common.psk.is_some() {
        problems.0.push(values::no_psk("--psk"));
    }
    if environment.psk {
        problems.0.push(values::no_psk(PSK_ENV));
    }
    problems.0.extend(values::key_kind(common.algo.as_deref(), common.bits.as_deref()));
    let data_dir = problems.take(data_dir(command, environment)).unwrap_or_default();
    let mut settings = settings(common, data_dir, &read, &mut problems);
    let fits = limits::Room::of(environment.descriptors.count, 1);
    settings.max_connections = fits.connections;
    settings.max_programs = fits.programs;
    settings.timeouts = read.timeouts;
    let http = lca_proxy::Config { max_connections: fits.connections, ..Default::default() };
    let plan = match command.own() {
        Own::Registry => Plan::Registry(Box::new(settings)),
        Own::Allocator(flags) => {
            let mut offer = lca_allocator::Config::new(settings.data_dir.join("allocator"));
            let room = &mut offer.capacity;
            let cpu = flags
                .cpu
                .as_deref()
                .map(|text| lca::units::cpu(text).map_err(|why| values::wrong("--cpu", why)));
            let memory = flags
                .memory
                .as_deref()
                .map(|text| lca::units::size(text).map_err(|why| values::wrong("--memory", why)));
            let count = flags.instances.as_deref().map(|text| values::count("--instances", text));
            if let Some(cpu) = cpu.and_then(|read| problems.take(read)) {
                room.cpu_millis = cpu;
            }
            if let Some(memory) = memory.and_then(|read| problems.take(read)) {
                room.memory_bytes = memory;
            }
            if let Some(count) = count.and_then(|read| problems.take(read)) {
                room.instances = count;
            }
            let most = fits.instances;
            if room.instances > most {
                tracing::warn!(
                    instances = most,
                    "descriptors are left for no more; raise `ulimit -n`"
                );
                room.instances = most;
            }
            let containers = problems.take(containers(flags, environment.docker_host.as_deref()));
            Plan::Allocator(Box::new(allocator::Config {
                settings,
                allocator: offer,
                http,
                keep_instances: flags.keep_instances,
                grants: Grants {
                    open_files: environment.descriptors.given,
                    read: allocator::absolute(&flags.allow_read),
                    write: allocator::absolute(&flags.allow_write),
                },
                containers: containers.flatten(),
            }))
        }
        Own::Proxy(flags) => {
            let port = problems.take(values::front(&flags.port)).unwrap_or_default();
            let service = flags.service.as_deref().and_then(|text| {
                let read = text.parse::<ServiceName>();
                problems.take(read.map_err(|error| values::wrong("SERVICE", error)))
            });
            let address =
                flags.address.as_deref().and_then(|text| problems.take(values::external(text)));
            let external = service.zip(address);
            Plan::Proxy(Box::new(proxy::Config {
                settings,
                front: SocketAddr::from(([127, 0, 0, 1], port)),
                http,
                external: external.map(|(service, address)| proxy::External { service, address }),
            }))
        }
    };
    problems.0.extend(same_ports(&plan));
    if problems.0.is_empty() { Ok((plan, source, read)) } else { Err(problems.0) }
}

/// Of what is to listen, each pair that cannot do so at once: the second would find the first
/// in its place and blame this very daemon.
fn same_ports(plan: &Plan) -> Vec<Error> {
    let settings = plan.settings();
    let front = match plan {
        Plan::Proxy(config) => Some(config.front),
        _ => None,
    };
    let asked = [
        ("PORT", front),
        ("--listen", Some(settings.listen)),
        ("--mesh-listen", Some(settings.mesh_listen)),
        ("--grpc-listen", settings.grpc_listen),
        ("--metrics-listen", settings.metrics_listen),
    ];
    let asked: Vec<_> = asked.iter().filter_map(|(flag, at)| Some((flag, (*at)?))).collect();
    let mut problems = Vec::new();
    for (n, (flag, at)) in asked.iter().enumerate() {
        for (other, _) in asked[..n].iter().filter(|(_, earlier)| values::overlap(*earlier, *at)) {
            let why = format!("{other} and {flag} name the same port, {}", at.port());
            problems.push(Error::new(Kind::InvalidArgument, why).hint("give each its own"));
        }
    }
    problems
}

/// What runs containers, and what they may do; `None` if nothing does.
fn containers(flags: &args::Allocator, host: Option<&str>) -> Result<Option<Containers>> {
    if flags.no_docker {
        return Ok(None);
    }
    let capabilities = flags.allow_capability.iter();
    let capabilities = capabilities.map(|name| name.parse()).collect::<Result<_>>();
    let capabilities = capabilities.map_err(|error| values::wrong("--allow-capability", error))?;
    let grants = docker::Grants { host_network: flags.allow_host_network, capabilities };
    let image_room = flags.image_room.as_deref().map(lca::units::size);
    let image_room = image_room.transpose().map_err(|why| values::wrong("--image-room", why))?;
    let image_room = image_room.unwrap_or(Terms::DEFAULT_ROOM);
    Ok(Some(Containers { engine: Address::choose(host)?, grants, image_room }))
}

/// The folder to use: absolute, since programs run in folders of their own.
fn data_dir<C: Command>(command: &C, environment: &Environment) -> Result<PathBuf> {
    let dir = match (&command.common().data_dir, &environment.data) {
        (Some(dir), _) => dir.clone(),
        (None, Some(data)) => data.join("lca").join(command.folder()),
        (None, None) => {
            let why = "neither XDG_DATA_HOME nor HOME says where this user's data is";
            return Err(values::wrong("--data-dir", why).hint("name a folder with --data-dir"));
        }
    };
    std::path::absolute(&dir).map_err(|error| {
        values::wrong("--data-dir", format!("{} cannot be used: {error}", dir.display()))
    })
}

fn settings(common: &Common, data_dir: PathBuf, read: &Read, problems: &mut Problems) -> Settings {
    let mut settings = Settings {
        bootstraps: read.bootstraps.clone(),
        requirements: read.requirements,
        keyfile: common.keyfile.clone(),
        ephemeral: common.ephemeral,
        insecure_open_network: common.insecure_open_network,
        ..Settings::loopback(data_dir, local::default_dir())
    };
    let open = common.insecure_open_network;
    let mut listener = |flag: &str, text: Option<&str>, read: ReadAddress, open: bool| {
        let checked = |address| values::only_loopback(flag, address, open);
        text.and_then(|text| problems.take(read(flag, text).and_then(checked)))
    };
    if let Some(address) = listener("--listen", common.listen.as_deref(), values::listen, open) {
        settings.listen = address;
    }
    let mesh = common.mesh_listen.as_deref();
    if let Some(address) = listener("--mesh-listen", mesh, values::socket, open) {
        settings.mesh_listen = address;
    }
    let metrics = common.metrics_listen.as_deref();
    settings.metrics_listen = listener("--metrics-listen", metrics, values::socket, open);
    let grpc = common.grpc_listen.as_deref();
    settings.grpc_listen = grpc.and_then(|text| {
        let address = values::socket("--grpc-listen", text);
        problems.take(address.and_then(grpc_on_loopback))
    });
    let advertise = common.advertise.iter();
    settings.advertise = advertise
        .filter_map(|text| problems.take(values::advertised("--advertise", text)))
        .collect();
    if let Some(text) = &common.rcache_ttl
        && let Some(ttl) = problems.take(values::ttl("--rcache-ttl", text))
    {
        settings.spec_ttl = ttl;
    }
    if !settings.ephemeral {
        // One that is absent is made when the daemon starts.
        problems.take(Identity::load(&settings.key()));
    }
    settings
}

type ReadAddress = fn(&str, &str) -> Result<SocketAddr>;

/// A token in plaintext does not belong on a network, however open that is.
fn grpc_on_loopback(address: SocketAddr) -> Result<SocketAddr> {
    if address.ip().to_canonical().is_loopback() {
        return Ok(address);
    }
    let why = format!("--grpc-listen: {address} can be reached from other machines");
    Err(Error::new(Kind::PermissionDenied, why)
        .hint("listen on 127.0.0.1 or [::1]; for other machines forward it with ssh -L"))
}

fn named(flag: &str, error: Error) -> Error {
    let named = Error::new(error.kind(), format!("{flag}: {error}"));
    match error.hint_text() {
        Some(hint) => named.hint(hint),
        None => named,
    }
}

impl Plan {
    /// What all daemons can be told.
    pub fn settings(&self) -> &Settings {
        match self {
            Self::Registry(settings) => settings,
            Self::Allocator(config) => &config.settings,
            Self::Proxy(config) => &config.settings,
        }
    }

    /// For `--check`: all that is settled, the configuration file's part in its own form.
    pub fn to_json(&self, read: &Read) -> String {
        let settings = self.settings();
        let text = |value: &dyn ToString| Value::from(value.to_string());
        let path = |path: &std::path::Path| Value::from(path.display().to_string());
        let config = Config {
            requirements: settings.requirements,
            bootstraps: settings.bootstraps.clone(),
            workers: read.workers,
            timeouts: read.timeouts,
        };
        let config = serde_json::from_str(&config.to_json()).unwrap_or(Value::Null);
        let identity = if settings.ephemeral { "ephemeral".into() } else { path(&settings.key()) };
        let mut shown = Map::new();
        let mut show = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
        match self {
            Self::Registry(_) => show("daemon", "registry".into()),
            Self::Allocator(config) => {
                let room = config.allocator.capacity;
                show("daemon", "allocator".into());
                show("cpu_millis", room.cpu_millis.into());
                show("memory_bytes", room.memory_bytes.into());
                show("instances", room.instances.into());
                show("keep_instances", config.keep_instances.into());
                let paths = |paths: &[PathBuf]| Value::from_iter(paths.iter().map(|it| path(it)));
                show("allow_read", paths(&config.grants.read));
                show("allow_write", paths(&config.grants.write));
                let containers = config.containers.as_ref().map(|containers| {
                    let capabilities = containers.grants.capabilities.iter();
                    json!({ "engine": containers.engine.to_string(),
                            "image_room_bytes": containers.image_room,
                            "allow_host_network": containers.grants.host_network,
                            "allow_capability": capabilities.map(ToString::to_string).collect::<Vec<_>>() })
                });
                show("containers", containers.unwrap_or(Value::Null));
            }
            Self::Proxy(config) => {
                show("daemon", "proxy".into());
                show("front", text(&config.front));
                let external = config.external.as_ref().map(|external| {
                    json!({ "service": external.service.to_string(),
                            "address": external.address.to_string() })
                });
                show("external", external.into());
            }
        }
        show("configfile", read.file.as_deref().map(path).into());
        show("configuration", config);
        show("data_dir", path(&settings.data_dir));
        show("identity", identity);
        show("listen", text(&settings.listen));
        show("mesh_listen", text(&settings.mesh_listen));
        show("advertise", settings.advertise.iter().map(|ip| ip.to_string()).collect());
        show("grpc_listen", settings.grpc_listen.as_ref().map(|at| text(at)).into());
        show("metrics_listen", settings.metrics_listen.as_ref().map(|at| text(at)).into());
        show("insecure_open_network", settings.insecure_open_network.into());
        show("spec_ttl_ms", (settings.spec_ttl.as_millis() as u64).into());
        show("socket_dir", path(&settings.socket_dir));
        serde_json::to_string_pretty(&shown).expect("names and plain values always serialise")
    }
}
