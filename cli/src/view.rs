//! What `-o json` prints: the messages of `proto/lca/v1`, field by field under their
//! own names, enums by their names there. 64-bit numbers are JSON numbers, and what is
//! unset is `null`.

use std::{collections::BTreeMap, time::Duration};

use lca::{Error, Kind, PeerId, api::proto};
use serde::{Deserialize, Serialize};

pub(crate) use image::Image;
pub(crate) use liveness::Liveness;
pub(crate) use usage::Usage;

use crate::units::show_duration;

mod image;
mod liveness;
mod usage;

#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    pub(crate) peer: String,
    pub(crate) roles: Vec<String>,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) rtt_us: Option<u64>,
    pub(crate) version: String,
    pub(crate) local: bool,
    pub(crate) reachable: bool,
    pub(crate) instances: u32,
    pub(crate) max_instances: u32,
    pub(crate) link: String,
    pub(crate) rtt_deviation_us: Option<u64>,
}

impl From<proto::Peer> for Peer {
    fn from(peer: proto::Peer) -> Self {
        let proto::Peer {
            peer,
            roles,
            mesh_addresses,
            rtt_us,
            version,
            local,
            reachable,
            instances,
            max_instances,
            link,
            rtt_deviation_us,
        } = peer;
        Self {
            peer,
            roles,
            mesh_addresses,
            rtt_us,
            version,
            local,
            reachable,
            instances,
            max_instances,
            link,
            rtt_deviation_us,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) service: String,
    pub(crate) service_hash: String,
    pub(crate) revision: u64,
    pub(crate) peer: String,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
    pub(crate) last_output: Vec<String>,
    pub(crate) driver: String,
    pub(crate) age_ms: u64,
    pub(crate) load: Option<Load>,
    pub(crate) rtt_us: Option<u64>,
    pub(crate) pid: u32,
    pub(crate) rtt_deviation_us: Option<u64>,
    pub(crate) usage: Option<Usage>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Load {
    pub(crate) in_flight: u32,
    pub(crate) limit: u32,
    pub(crate) queue_us: u64,
    pub(crate) app_us: u64,
}

impl From<proto::Instance> for Instance {
    fn from(instance: proto::Instance) -> Self {
        let state = instance.state();
        let load = instance.load.map(|load| {
            let proto::Load { in_flight, limit, queue_us, app_us } = load;
            Load { in_flight, limit, queue_us, app_us }
        });
        Self {
            id: instance.id,
            service: instance.service,
            service_hash: instance.service_hash,
            revision: instance.revision,
            peer: instance.peer,
            mesh_addresses: instance.mesh_addresses,
            state: state.as_str_name(),
            reason: instance.reason,
            last_output: instance.last_output,
            driver: instance.driver,
            age_ms: instance.age_ms,
            load,
            rtt_us: instance.rtt_us,
            pid: instance.pid,
            rtt_deviation_us: instance.rtt_deviation_us,
            usage: instance.usage.map(Usage::from),
            restarts: instance.restarts,
            last_exit: instance.last_exit,
        }
    }
}

impl Instance {
    /// The state as a word: `ready`.
    pub(crate) fn state_word(&self) -> String {
        self.state.trim_start_matches("INSTANCE_STATE_").to_ascii_lowercase()
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct PeerCapacity {
    pub(crate) peer: String,
    pub(crate) total: Option<Capacity>,
    pub(crate) used: Option<Capacity>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Capacity {
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) instances: u32,
}

impl From<proto::PeerCapacity> for PeerCapacity {
    fn from(capacity: proto::PeerCapacity) -> Self {
        let amount = |amount: proto::Capacity| {
            let proto::Capacity { cpu_millis, memory_bytes, instances } = amount;
            Capacity { cpu_millis, memory_bytes, instances }
        };
        let proto::PeerCapacity { peer, total, used } = capacity;
        Self { peer, total: total.map(amount), used: used.map(amount) }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) duration_us: u64,
    pub(crate) detail: String,
}

impl From<proto::Step> for Step {
    fn from(proto::Step { name, duration_us, detail }: proto::Step) -> Self {
        Self { name, duration_us, detail }
    }
}

/// Also read from files: what is printed can be given back.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) artifact: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<Image>,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) protocol: String,
    pub(crate) readiness: Readiness,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) liveness: Option<Liveness>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) socket_activation: bool,
    pub(crate) requirements: Requirements,
    pub(crate) resources: Resources,
    pub(crate) idle_timeout_ms: u64,
    pub(crate) concurrency_limit: u32,
    pub(crate) min_instances: u32,
    pub(crate) max_instances: u32,
    pub(crate) target_concurrency: u32,
    pub(crate) placement: String,
    pub(crate) limits: Limits,
    pub(crate) revision: u64,
    pub(crate) service_hash: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Readiness {
    pub(crate) http_path: String,
    pub(crate) start_timeout_ms: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Requirements {
    pub(crate) soft_rtt_ms: u32,
    pub(crate) hard_rtt_ms: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Resources {
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) processes: u32,
    pub(crate) open_files: u32,
    pub(crate) log_bytes: u64,
    pub(crate) disk_bytes: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) max_body_bytes: u64,
    pub(crate) answer_timeout_ms: u64,
    pub(crate) quiet_timeout_ms: u64,
    pub(crate) request_timeout_ms: u64,
}

impl From<proto::Limits> for Limits {
    fn from(limits: proto::Limits) -> Self {
        Self {
            max_body_bytes: limits.max_body_bytes,
            answer_timeout_ms: limits.answer_timeout_ms,
            quiet_timeout_ms: limits.quiet_timeout_ms,
            request_timeout_ms: limits.request_timeout_ms,
        }
    }
}

impl From<Limits> for proto::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            max_body_bytes: limits.max_body_bytes,
            answer_timeout_ms: limits.answer_timeout_ms,
            quiet_timeout_ms: limits.quiet_timeout_ms,
            request_timeout_ms: limits.request_timeout_ms,
        }
    }
}

impl From<proto::Requirements> for Requirements {
    fn from(proto::Requirements { soft_rtt_ms, hard_rtt_ms }: proto::Requirements) -> Self {
        Self { soft_rtt_ms, hard_rtt_ms }
    }
}

impl From<proto::ServiceSpec> for ServiceSpec {
    fn from(spec: proto::ServiceSpec) -> Self {
        let protocol = spec.protocol().as_str_name().to_owned();
        let placement = spec.placement().as_str_name().to_owned();
        let readiness = spec.readiness.unwrap_or_default();
        let requirements = spec.requirements.unwrap_or_default();
        let resources = spec.resources.unwrap_or_default();
        Self {
            name: spec.name,
            artifact: spec.artifact,
            image: spec.image.map(Into::into),
            arguments: spec.arguments,
            environment: spec.environment,
            protocol,
            readiness: Readiness {
                http_path: readiness.http_path,
                start_timeout_ms: readiness.start_timeout_ms,
            },
            liveness: spec.liveness.map(Into::into),
            socket_activation: spec.socket_activation,
            requirements: requirements.into(),
            resources: Resources {
                cpu_millis: resources.cpu_millis,
                memory_bytes: resources.memory_bytes,
                processes: resources.processes,
                open_files: resources.open_files,
                log_bytes: resources.log_bytes,
                disk_bytes: resources.disk_bytes,
            },
            idle_timeout_ms: spec.idle_timeout_ms,
            concurrency_limit: spec.concurrency_limit,
            min_instances: spec.min_instances,
            max_instances: spec.max_instances,
            target_concurrency: spec.target_concurrency,
            placement,
            limits: spec.limits.unwrap_or_default().into(),
            revision: spec.revision,
            service_hash: spec.service_hash,
        }
    }
}

impl TryFrom<ServiceSpec> for proto::ServiceSpec {
    type Error = Error;

    fn try_from(spec: ServiceSpec) -> Result<Self, Error> {
        let protocol = match spec.protocol.as_str() {
            "" => proto::Protocol::Unspecified,
            // As it is typed.
            "http1" => proto::Protocol::Http1,
            "h2c" => proto::Protocol::H2c,
            name => proto::Protocol::from_str_name(name).ok_or_else(|| {
                Error::new(Kind::InvalidArgument, format!("protocol: {name:?} is not known here"))
            })?,
        };
        let placement = match spec.placement.as_str() {
            "" => proto::Placement::Unspecified,
            name => proto::Placement::from_str_name(name).ok_or_else(|| {
                Error::new(Kind::InvalidArgument, format!("placement: {name:?} is not known here"))
            })?,
        };
        Ok(Self {
            name: spec.name,
            artifact: spec.artifact,
            image: spec.image.map(Into::into),
            arguments: spec.arguments,
            environment: spec.environment,
            protocol: protocol.into(),
            readiness: Some(proto::Readiness {
                http_path: spec.readiness.http_path,
                start_timeout_ms: spec.readiness.start_timeout_ms,
            }),
            liveness: spec.liveness.map(Into::into),
            socket_activation: spec.socket_activation,
            requirements: Some(proto::Requirements {
                soft_rtt_ms: spec.requirements.soft_rtt_ms,
                hard_rtt_ms: spec.requirements.hard_rtt_ms,
            }),
            resources: Some(proto::Resources {
                cpu_millis: spec.resources.cpu_millis,
                memory_bytes: spec.resources.memory_bytes,
                processes: spec.resources.processes,
                open_files: spec.resources.open_files,
                log_bytes: spec.resources.log_bytes,
                disk_bytes: spec.resources.disk_bytes,
            }),
            idle_timeout_ms: spec.idle_timeout_ms,
            concurrency_limit: spec.concurrency_limit,
            min_instances: spec.min_instances,
            max_instances: spec.max_instances,
            target_concurrency: spec.target_concurrency,
            placement: placement.into(),
            limits: Some(spec.limits.into()),
            revision: spec.revision,
            service_hash: spec.service_hash,
        })
    }
}

/// The first eight characters, enough for people to copy.
pub(crate) fn short_id(id: &str) -> String {
    id.chars().take(8).collect()
}

/// The last eight characters of a peer id: the first ones are the same for all.
pub(crate) fn short_peer(peer: &str) -> String {
    match peer.parse::<PeerId>() {
        Ok(peer) => peer.short(),
        Err(_) => peer.chars().take(8).collect(),
    }
}

/// A digest without its algorithm, shortened.
pub(crate) fn short_digest(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

/// Microseconds, or unknown.
pub(crate) fn micros(micros: Option<u64>) -> String {
    micros.map(|micros| show_duration(Duration::from_micros(micros))).unwrap_or_default()
}

/// A round trip of microseconds and how far it strays, both in the unit of the larger, or
/// unknown: `15.2 ± 0.4 ms`.
pub(crate) fn distance(rtt: Option<u64>, deviation: Option<u64>) -> String {
    match (rtt, deviation) {
        (Some(rtt @ 0..1_000), Some(by @ 0..1_000)) => format!("{rtt} ± {by} us"),
        (Some(rtt), Some(by)) => format!("{:.1} ± {:.1} ms", rtt as f64 / 1e3, by as f64 / 1e3),
        (rtt, _) => micros(rtt),
    }
}

/// An age of milliseconds.
pub(crate) fn age(millis: u64) -> String {
    show_duration(Duration::from_millis(millis))
}
