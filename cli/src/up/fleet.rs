//! All the daemons of `lcactl up`, started in order and stopped together.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::{join_all, select_all};
use lca::{
    Result,
    config::Config,
    listen,
    local::{self, Token},
    shutdown::Tasks,
};
use lca_allocator::driver::process::Grants;
use lca_daemon::{
    Addresses, Settings, allocator,
    limits::{self, Room},
    proxy, registry,
};
use lca_engine::{Address, Terms};

use lca_node::link::{Links, course};

use super::{
    Args,
    link::{self, Span},
};

/// The folder of the proxy's daemon.
const PROXY: &str = "proxy";
/// Loopback joins in milliseconds; a machine that swaps gets a few seconds.
const JOIN_WITHIN: Duration = Duration::from_secs(5);

/// A network on one machine.
#[derive(Debug)]
pub(super) struct Fleet {
    registry: registry::App,
    allocators: Vec<allocator::App>,
    proxy: proxy::App,
    /// The file of the token for gRPC.
    token: PathBuf,
    /// What lies between the nodes, and what makes it so.
    spans: Vec<Span>,
    links: Tasks,
}

impl Fleet {
    /// Starts a registry, allocators and a proxy under `data_dir`, joined to each other and
    /// to the bootstraps of `config`, with `spans` between them.
    pub(super) async fn start(
        data_dir: &Path,
        args: &Args,
        config: &Config,
        spans: Vec<Span>,
    ) -> Result<Self> {
        let links = Links::default();
        let descriptors = limits::raise();
        let &Args { nodes, port, grpc_port, .. } = args;
        // The ports people choose: said to be taken before anything starts.
        let front = SocketAddr::from(([127, 0, 0, 1], port));
        let grpc = SocketAddr::from(([127, 0, 0, 1], grpc_port));
        for (what, address, hint) in [
            ("the front", front, "choose another with --port"),
            ("gRPC", grpc, "choose another with --grpc-port"),
        ] {
            let free = std::net::TcpListener::bind(address);
            drop(free.map_err(|error| listen::cannot(what, address, hint, error))?);
        }
        // The registry, the proxy and the allocators have one process's descriptors.
        let fits = Room::of(descriptors.count, usize::from(nodes) + 2);
        let http = lca_proxy::Config { max_connections: fits.connections, ..Default::default() };
        let settings = |name: String| Settings {
            max_connections: fits.connections,
            max_programs: fits.programs,
            bootstraps: config.bootstraps.clone(),
            requirements: config.requirements,
            timeouts: config.timeouts,
            links: links.clone(),
            ..Settings::loopback(data_dir.join(name), local::default_dir())
        };
        let registry = registry::App::build(settings("registry".into())).await?;
        let joining = |name: String| {
            let mut settings = settings(name);
            settings.bootstraps.extend(registry.addresses().bootstraps.iter().cloned());
            settings
        };
        let engine = Address::of_the_environment()?;
        let mut allocators = Vec::new();
        for n in 1..=nodes {
            let settings = joining(format!("allocator-{n}"));
            let mut offer = lca_allocator::Config::new(settings.data_dir.join("allocator"));
            // One machine's room, divided among the allocators that share it.
            offer.capacity = offer.capacity.share(nodes.into());
            offer.capacity.instances = offer.capacity.instances.min(fits.instances);
            let config = allocator::Config {
                settings,
                allocator: offer,
                http,
                keep_instances: false,
                grants: Grants {
                    open_files: descriptors.given,
                    read: allocator::absolute(&args.allow_read),
                    write: allocator::absolute(&args.allow_write),
                },
                containers: Some(allocator::Containers {
                    engine: engine.clone(),
                    grants: Default::default(),
                    image_room: Terms::DEFAULT_ROOM,
                }),
            };
            allocators.push(allocator::App::open(config).await?);
        }
        let mut settings = joining(PROXY.into());
        settings.grpc_listen = Some(grpc);
        let proxy = proxy::Config { settings, front, http, external: None };
        let proxy = proxy::App::build(proxy).await?;
        let token = Token::file(&data_dir.join(PROXY));
        let tasks = Tasks::default();
        let fleet = Self { registry, allocators, proxy, token, spans, links: tasks };
        fleet.link(links);
        let nodes = [fleet.registry.node(), fleet.proxy.node()].into_iter();
        let joining =
            nodes.chain(fleet.allocators.iter().map(|app| app.node())).map(|node| node.joined());
        if tokio::time::timeout(JOIN_WITHIN, join_all(joining)).await.is_err() {
            tracing::warn!("the nodes have not all joined each other yet; they go on trying");
        }
        Ok(fleet)
    }

    /// Makes the links what they shall be, now and while time passes.
    fn link(&self, links: Links) {
        let peers = |node: u8| match node.checked_sub(1) {
            None => vec![self.registry.addresses().peer, self.proxy.addresses().peer],
            Some(n) => vec![self.allocators[usize::from(n)].addresses().peer],
        };
        let mut courses = Vec::new();
        for Span { name, between: [a, b], course } in &self.spans {
            for (a, b) in
                peers(*a).into_iter().flat_map(|a| peers(*b).into_iter().map(move |b| (a, b)))
            {
                links.call(a, b, name);
                courses.push((a, b, course.clone()));
            }
        }
        let spawner = self.links.spawner();
        let stopping = spawner.stopping();
        spawner.spawn("links", async move {
            tokio::select! {
                () = course::drive(links, courses) => {}
                () = stopping => {}
            }
        });
    }

    /// The registry's local API.
    pub(super) fn registry_socket(&self) -> &Path {
        &self.registry.addresses().socket
    }

    /// Resolves when a task of some daemon has ended that should not.
    pub(super) async fn failed(&self) {
        let allocators = self.allocators.iter().map(|app| Box::pin(app.failed()) as _);
        let others: [std::pin::Pin<Box<dyn Future<Output = ()> + Send>>; 2] =
            [Box::pin(self.registry.failed()), Box::pin(self.proxy.failed())];
        select_all(others.into_iter().chain(allocators)).await;
    }

    /// Stops all daemons at once. True if nothing had to be forced.
    pub(super) async fn drain(self) -> bool {
        let allocators = join_all(self.allocators.into_iter().map(allocator::App::drain));
        // The proxy first lets its requests finish; the registry is nobody's client.
        let (proxy, allocators, registry) =
            tokio::join!(self.proxy.drain(), allocators, self.registry.drain());
        proxy && registry && allocators.into_iter().all(|in_time| in_time)
    }

    /// What listens where, and what to type next.
    pub(super) fn report(&self) -> String {
        let mut text = format!("service-manager {}\n\n", lca_daemon::VERSION);
        let mut row = |role: &str, addresses: &Addresses| {
            let mesh = addresses.mesh.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let libp2p = addresses.bootstraps.first().map(ToString::to_string).unwrap_or_default();
            let _infallible = writeln!(text, "{role:<10} mesh {mesh:<16} libp2p {libp2p}");
        };
        row("registry", self.registry.addresses());
        self.allocators.iter().for_each(|app| row("allocator", app.addresses()));
        row("proxy", self.proxy.addresses());
        text.push_str(&self.distances());
        let front =
            self.proxy.addresses().front.map(|address| address.to_string()).unwrap_or_default();
        let grpc =
            self.proxy.addresses().grpc.map(|address| address.to_string()).unwrap_or_default();
        let token = self.token.display();
        let socket = self.proxy.addresses().socket.display();
        let name = super::demo::NAME;
        let _infallible = write!(
            text,
            "\nfront      http://{front}\nlocal API  {socket}\ngRPC       {grpc}, token in {token}\nservice    {name}, started by its first request\n\n    \
             curl http://{front}/{name}/hello\n\nWaiting for requests. Ctrl-C stops everything.\n"
        );
        text
    }

    /// What lies between the front and each node, if anything was asked for.
    fn distances(&self) -> String {
        let mut text = String::new();
        if self.spans.is_empty() {
            return text;
        }
        let _infallible = writeln!(text, "\nnode 0     registry and proxy, the front");
        for (n, app) in (1..).zip(&self.allocators) {
            let peer = app.addresses().peer.short();
            let of_front = |span: &&Span| span.between == [0, n];
            let far = match self.spans.iter().find(of_front) {
                Some(Span { name, course, .. }) => {
                    let moving = if course.is_steady() { "" } else { " now, changing" };
                    format!("{name}, {}{moving}", link::show(&course.at(Duration::ZERO)))
                }
                None => "beside the front".to_owned(),
            };
            let _infallible = writeln!(text, "node {n:<5} allocator {peer}: {far}");
        }
        text
    }
}
