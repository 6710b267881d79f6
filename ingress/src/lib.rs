//! The side of the data plane where instances are: takes requests from other peers
//! and hands each to the instance it names, here on this machine.
//!
//! Whoever runs instances [`register`](Ingress::register)s them; the mesh listener
//! gives every `lca-mux` and `lca-h1` connection to [`ServeHttp`]. One invariant, on which culling
//! and scaling stand: all traffic of an instance passes here, and a request counts as
//! open until its answer's body has ended or been dropped.

mod forward;
mod instance;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use lca::{Error, InstanceId, Kind, PeerId, Result, config::Timeouts, metrics::Metrics};
use lca_node::{
    h1, h2c,
    mesh::{Alpn, ServeHttp, Stream},
    mux,
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use instance::Instance;
pub use instance::{Local, Registration};
/// What an instance that speaks HTTP/2 is asked with before there are requests for it.
pub use lca_node::h2c::status as h2c_status;

/// How long ingress waits.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// For an unused connection of a peer, and for the head of a request on it. Longer
    /// than fronts keep unused connections, so that they are the ones to close.
    pub keep_alive: Duration,
    /// Towards the instances.
    pub instances: h1::Config,
}

impl Config {
    /// The default, with what a configuration file says of times. A front that is told the
    /// same strikes first: it is the one that can tell its client.
    pub fn keeping_to(timeouts: &Timeouts) -> Self {
        let Timeouts { connect, answer, quiet, .. } = *timeouts;
        let mut config = Self::default();
        let longer = |time: Option<Duration>| time.map(|time| time + time / 10);
        let h1::Config { head, quiet: silence, .. } = config.instances;
        config.instances.connect = connect.unwrap_or(config.instances.connect);
        config.instances.head = longer(answer).unwrap_or(head);
        config.instances.quiet = longer(quiet).unwrap_or(silence);
        config
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(90),
            instances: h1::Config {
                // It is on this machine: it accepts at once or its queue is full.
                connect: Duration::from_secs(3),
                // The front's own limits are those people feel, and a little shorter. These
                // end requests of a front that vanished without a word.
                head: Duration::from_secs(330),
                quiet: Duration::from_secs(330),
                stall: Duration::from_secs(60),
                // Less than the 5 s of Node.js, the shortest default in common use.
                keep: Duration::from_secs(4),
                // As many as one connection between peers has requests: with fewer, those of
                // a client with more at a time are closed and opened again and again.
                max_idle: mux::STREAMS,
            },
        }
    }
}

/// The ingress of one node. Cheap to clone.
#[derive(Clone)]
pub struct Ingress {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    instances: Mutex<HashMap<InstanceId, Arc<Instance>>>,
    pool: h1::Pool<Loopback>,
    streams: h2c::Pool<Loopback>,
    metrics: Metrics,
    /// Requests that were cut off because their instance went, since the beginning.
    cut: AtomicU64,
}

impl Ingress {
    /// One that knows no instance yet, and counts in `metrics`.
    pub fn new(config: Config, metrics: Metrics) -> Self {
        let pool = h1::Pool::new(Loopback, config.instances);
        let streams = h2c::Pool::new(Loopback, config.instances);
        let (instances, cut) = (Mutex::default(), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { config, instances, pool, streams, metrics, cut }) }
    }

    /// Requests cut off so far because their instance was given up with them open. Whoever
    /// stops looks before and after, to say whether all could end.
    pub fn cut(&self) -> u64 {
        self.shared.cut.load(Ordering::Relaxed)
    }

    /// Makes an instance reachable for as long as the registration is held.
    pub fn register(&self, local: Local) -> Registration {
        let (id, counted) = (local.instance, self.shared.metrics.service(&local.service));
        let instance = Arc::new(Instance::new(local, counted));
        self.shared.lock().insert(id, instance.clone());
        Registration::new(self.shared.clone(), instance)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Arc<Instance>>> {
        // Nothing panics while holding it.
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn instance(&self, id: InstanceId) -> Option<Arc<Instance>> {
        self.lock().get(&id).cloned()
    }

    fn forget(&self, id: InstanceId) {
        self.lock().remove(&id);
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress")
            .field("config", &self.shared.config)
            .field("instances", &self.shared.lock().len())
            .finish()
    }
}

impl ServeHttp for Ingress {
    fn serve(
        self: Arc<Self>,
        stream: Stream,
        from: PeerId,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        match stream.alpn() {
            Alpn::Mux => Box::pin(forward::serve_many(self.shared.clone(), stream, from, stop)),
            _ => Box::pin(forward::serve(self.shared.clone(), stream, from)),
        }
    }
}

/// Connects to instances on this machine.
#[derive(Debug)]
struct Loopback;

impl h1::Dial for Loopback {
    type To = Local;
    // Not the address alone: its port may be another instance's tomorrow.
    type Key = (InstanceId, SocketAddr);
    type Io = TcpStream;

    fn key(&self, to: &Local) -> Self::Key {
        (to.instance, to.address)
    }

    async fn dial(&self, to: &Local) -> Result<TcpStream> {
        let connected = async {
            let stream = TcpStream::connect(to.address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        };
        connected.await.map_err(|error| {
            Error::new(Kind::Unavailable, "the instance does not accept connections").because(error)
        })
    }
}
