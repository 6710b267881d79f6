//! The families, part by part. Names end in their unit; every help is a sentence that
//! an operator understands without this code.

use super::{
    Counter, Counters, Gauge, Gauges, Histogram, Histograms,
    exchange::{Exchanges, Names},
    family::Families,
};

/// Seconds: from loopback to the other side of the world.
const RTT: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0,
];
/// Seconds: from a look into memory to a large artifact.
const STEP: [f64; 14] =
    [0.000_1, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Everything one daemon counts, by part.
#[derive(Debug)]
pub struct Parts {
    /// What runs, and since when.
    pub build: Build,
    /// The HTTP side on localhost.
    pub front: Front,
    /// The side that takes requests of peers.
    pub ingress: Ingress,
    /// What finds and allocates.
    pub manager: Manager,
    /// What starts and stops.
    pub allocator: Allocator,
    /// The network.
    pub node: Node,
    /// Programs on their way.
    pub artifacts: Artifacts,
}

/// What runs, and since when.
#[derive(Debug)]
pub struct Build {
    /// By version and role; always 1.
    pub info: Gauges,
    /// Seconds since 1970.
    pub started: Gauge,
}

/// What a front counts.
#[derive(Debug)]
pub struct Front {
    pub(super) exchanges: Exchanges,
    /// By service and why the attempt before was in vain.
    pub retries: Counters,
    /// By service.
    pub retries_denied: Counters,
    /// By reason.
    pub refusals: Counters,
    /// Open ones.
    pub connections: Gauge,
}

/// What an ingress counts.
#[derive(Debug)]
pub struct Ingress {
    pub(super) exchanges: Exchanges,
    /// By reason.
    pub refusals: Counters,
    /// Open ones.
    pub connections: Gauge,
}

/// What a manager counts.
#[derive(Debug)]
pub struct Manager {
    /// Of what a request waits for that finds no instance known, by step.
    pub steps: Histograms,
    /// By outcome.
    pub flights: Counters,
    /// Of services to other instances, by reason.
    pub moves: Counters,
    /// Searches for something nearer, by outcome.
    pub looks: Counters,
    /// Starts of further instances for load, by outcome.
    pub scale_out: Counters,
    /// Starts because no instance answered, by outcome.
    pub replacements: Counters,
    /// Starts for which a second allocator was asked, by who was used.
    pub hedges: Counters,
    /// Instances that came second, by what became of them.
    pub surplus: Counters,
}

/// What an allocator counts.
#[derive(Debug)]
pub struct Allocator {
    /// By service and outcome.
    pub allocations: Counters,
    /// By reason.
    pub refusals: Counters,
    /// Of starts, by step.
    pub steps: Histograms,
    /// There now, by state.
    pub instances: Gauges,
    /// By how they ended.
    pub ended: Counters,
    /// Of instances here, by service.
    pub failures: Counters,
    /// Thousandths of a core that instances use, by service.
    pub cpu: Gauges,
    /// Bytes that they use, by service.
    pub memory: Gauges,
    /// Bytes that they may use, by service.
    pub memory_limit: Gauges,
}

/// What a node counts.
#[derive(Debug)]
pub struct Node {
    /// By how well they are known.
    pub peers: Gauges,
    /// Configured ones and those reached.
    pub bootstraps: Gauges,
    /// By reason.
    pub dropped: Counters,
    /// Finds that are over.
    pub finds: Counter,
    /// Finds that told a miss.
    pub misses: Counter,
    /// From the question to the first verified endpoint.
    pub first_endpoint: Histogram,
    /// Requests sent for finds, by outcome.
    pub find_requests: Counters,
    /// Round trips of probes.
    pub probe_rtt: Histogram,
    /// Probes lost, and connections for them that failed.
    pub probe_failures: Counter,
    /// Of libp2p, by direction.
    pub bytes: Counters,
    /// Accepted on the mesh and open.
    pub connections: Gauge,
    /// Connections closed at the mesh's door, by reason.
    pub refusals: Counters,
}

/// Bytes of artifacts.
#[derive(Debug)]
pub struct Artifacts {
    /// Taken, from whoever has them.
    pub received: Counter,
    /// Given to others.
    pub sent: Counter,
}

impl Parts {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            build: Build::new(families),
            front: Front::new(families),
            ingress: Ingress::new(families),
            manager: Manager::new(families),
            allocator: Allocator::new(families),
            node: Node::new(families),
            artifacts: Artifacts::new(families),
        }
    }
}

impl Build {
    fn new(families: &mut Families) -> Self {
        Self {
            info: families.gauges(
                "lca_build_info",
                &["version", "role"],
                &[],
                "Always 1; the labels say what runs.",
            ),
            started: families
                .gauge("lca_start_time_seconds", "When the daemon started, in seconds since 1970."),
        }
    }
}

impl Front {
    fn new(families: &mut Families) -> Self {
        let exchanges = Names {
            requests: [
                "lca_front_requests_total",
                "Requests of this machine's programs, by service and outcome.",
            ],
            duration: [
                "lca_front_request_duration_seconds",
                "From the head of a request to the head of its answer.",
            ],
            upload: ["lca_front_upload_bytes_total", "Bytes of request bodies taken from clients."],
            download: [
                "lca_front_download_bytes_total",
                "Bytes of answers' bodies passed to clients.",
            ],
        };
        Self {
            exchanges: Exchanges::new(families, exchanges),
            retries: families.counters(
                "lca_front_retries_total",
                &["service", "reason"],
                &[],
                "Attempts after the first, by why the one before was in vain.",
            ),
            retries_denied: families.counters(
                "lca_front_retries_denied_total",
                &["service"],
                &[],
                "Requests not sent again because too many of the service had been.",
            ),
            refusals: families.counters(
                "lca_front_refusals_total",
                &["reason"],
                &["connections"],
                "Connections of clients closed at once because there were too many.",
            ),
            connections: families
                .gauge("lca_front_connections", "Connections of clients that are open."),
        }
    }
}

impl Ingress {
    fn new(families: &mut Families) -> Self {
        let exchanges = Names {
            requests: [
                "lca_ingress_requests_total",
                "Requests given to instances here, by service and outcome.",
            ],
            duration: [
                "lca_ingress_application_duration_seconds",
                "How long the application took to the head of its answer.",
            ],
            upload: [
                "lca_ingress_upload_bytes_total",
                "Bytes of request bodies given to instances.",
            ],
            download: [
                "lca_ingress_download_bytes_total",
                "Bytes of answers' bodies taken from instances.",
            ],
        };
        Self {
            exchanges: Exchanges::new(families, exchanges),
            refusals: families.counters(
                "lca_ingress_refusals_total",
                &["reason"],
                &["draining", "unknown", "overloaded"],
                "Requests refused before any application saw them.",
            ),
            connections: families
                .gauge("lca_ingress_connections", "Connections of fronts that are open."),
        }
    }
}

impl Manager {
    fn new(families: &mut Families) -> Self {
        Self {
            steps: families.histograms(
                "lca_cold_start_step_duration_seconds",
                &["step"],
                &STEP,
                "What a request waits for when no instance is known, as its own machine sees it.",
            ),
            flights: families.counters(
                "lca_cold_starts_total",
                &["outcome"],
                &["found", "allocated", "failed"],
                "Searches for an instance, with what they ended in.",
            ),
            moves: families.counters(
                "lca_moves_total",
                &["reason"],
                &["soft", "hard", "gone", "silent", "failing", "better", "surplus"],
                "Times that requests for a service went to another instance, by why.",
            ),
            looks: families.counters(
                "lca_nearer_searches_total",
                &["outcome"],
                &["found", "allocated", "failed"],
                "Searches behind the requests for an instance within the soft limit.",
            ),
            scale_out: families.counters(
                "lca_scale_out_total",
                &["outcome"],
                &["started", "taken", "refused"],
                "Times that one more instance was wanted for load, by what came of it.",
            ),
            replacements: families.counters(
                "lca_replacements_total",
                &["outcome"],
                &["started", "taken", "refused"],
                "Times that one more instance was wanted as none that runs answers, by what came of it.",
            ),
            hedges: families.counters(
                "lca_hedged_starts_total",
                &["outcome"],
                &["first", "second", "neither"],
                "Starts for which a second allocator was asked, by whose instance was used.",
            ),
            surplus: families.counters(
                "lca_surplus_instances_total",
                &["outcome"],
                &["released", "used", "kept", "none", "lost"],
                "What became of instances of hedged starts that came second.",
            ),
        }
    }
}

impl Allocator {
    fn new(families: &mut Families) -> Self {
        Self {
            allocations: families.counters(
                "lca_allocations_total",
                &["service", "outcome"],
                &[],
                "Calls to allocate, by service and outcome.",
            ),
            refusals: families.counters(
                "lca_allocator_refusals_total",
                &["reason"],
                &[
                    "cpu",
                    "memory",
                    "instances",
                    "starting",
                    "stopping",
                    "draining",
                    "failed-before",
                ],
                "Starts refused, by what was in the way.",
            ),
            steps: families.histograms(
                "lca_instance_start_step_duration_seconds",
                &["step"],
                &STEP,
                "What starting an instance consists of, as the allocator sees it.",
            ),
            instances: families.gauges(
                "lca_instances",
                &["state"],
                &["pending", "fetching", "starting", "ready", "draining"],
                "Instances here, by state.",
            ),
            ended: families.counters(
                "lca_instances_ended_total",
                &["outcome"],
                &["stopped", "failed"],
                "Instances that have ended, by how.",
            ),
            failures: families.counters(
                "lca_service_failures_total",
                &["service"],
                &[],
                "Instances here that have failed, by service.",
            ),
            cpu: families.gauges(
                "lca_service_cpu_millicores",
                &["service"],
                &[],
                "Processor time that instances here use, in thousandths of a core.",
            ),
            memory: families.gauges(
                "lca_service_memory_bytes",
                &["service"],
                &[],
                "Memory that instances here use.",
            ),
            memory_limit: families.gauges(
                "lca_service_memory_limit_bytes",
                &["service"],
                &[],
                "Memory that instances here may use together.",
            ),
        }
    }
}

impl Node {
    fn new(families: &mut Families) -> Self {
        Self {
            peers: families.gauges(
                "lca_peers",
                &["state"],
                &["known", "connected"],
                "Peers whose verified endpoint is known, and peers connected over libp2p.",
            ),
            bootstraps: families.gauges(
                "lca_bootstraps",
                &["state"],
                &["configured", "reached"],
                "Bootstraps configured, and those of them connected now.",
            ),
            dropped: families.counters(
                "lca_dropped_records_total",
                &["reason"],
                &Dropped::ALL.map(Dropped::as_str),
                "Records and messages of peers that were not as they must be.",
            ),
            finds: families.counter("lca_finds_total", "Finds in the DHT that are over."),
            misses: families
                .counter("lca_find_misses_total", "Finds that said so when they had nothing."),
            first_endpoint: families.histogram(
                "lca_find_first_endpoint_duration_seconds",
                &STEP,
                "From the beginning of a find to its first verified endpoint.",
            ),
            find_requests: families.counters(
                "lca_find_requests_total",
                &["outcome"],
                &["answered", "failed", "unfinished"],
                "Requests sent to peers for finds.",
            ),
            probe_rtt: families.histogram(
                "lca_probe_rtt_seconds",
                &RTT,
                "Round trips to peers of interest.",
            ),
            probe_failures: families.counter(
                "lca_probe_failures_total",
                "Probes lost, and connections for probes that failed.",
            ),
            bytes: families.counters(
                "lca_libp2p_bytes_total",
                &["direction"],
                &["received", "sent"],
                "Bytes of libp2p connections on the wire.",
            ),
            connections: families.gauge(
                "lca_mesh_connections",
                "Connections accepted from peers on the mesh that are open.",
            ),
            refusals: families.counters(
                "lca_mesh_refusals_total",
                &["reason"],
                &["handshakes", "connections", "handshake"],
                "Connections closed at the mesh's door.",
            ),
        }
    }
}

impl Artifacts {
    fn new(families: &mut Families) -> Self {
        Self {
            received: families
                .counter("lca_artifact_received_bytes_total", "Bytes of artifacts taken."),
            sent: families.counter("lca_artifact_sent_bytes_total", "Bytes of artifacts given."),
        }
    }
}

/// Why something of a peer was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// An endpoint record that is forged, expired or malformed.
    Record,
    /// A value of the DHT that has expired, or never would.
    Expired,
    /// A value that a peer wanted kept here: no record, too many, or too large.
    Value,
    /// An announcement that is malformed, or one too many.
    Announcement,
    /// An answer that cannot be read.
    Answer,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Record, Self::Expired, Self::Value, Self::Announcement, Self::Answer];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Expired => "expired",
            Self::Value => "value",
            Self::Announcement => "announcement",
            Self::Answer => "answer",
        }
    }
}
