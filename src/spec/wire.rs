//! Specs as they are sent: read with every bound checked, and written.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use super::{
    Allowance, Limits, Liveness, MAX_RTT_MS, Placement, Protocol, Readiness, Requirements,
    Resources, Runs, Spec,
};
use crate::{Error, Kind, Result, api::proto, config::BOOTSTRAPS_ENV};

mod runs;

/// Most arguments, and most environment entries, of one program.
const MAX_ENTRIES: usize = 256;
/// Bytes of all arguments, and of all environment entries, together: well below
/// what execve takes (128 KiB a string, and a quarter of the stack limit in all).
const MAX_BYTES: usize = 64 << 10;
/// More than any machine has: a slip of the pen, not a requirement.
const MAX_CPU_MILLIS: u32 = 10_000_000;
/// A day: what is idle for longer may as well run for ever.
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// A day, as well: no client waits longer for one request.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// What an instance is told by the allocator, which a spec may not overrule.
const RESERVED: [&str; 6] =
    ["SERVICE_PORT", "PROXY_IP", "PROXY_PORT", BOOTSTRAPS_ENV, "LISTEN_FDS", "LISTEN_PID"];

impl TryFrom<proto::ServiceSpec> for Spec {
    type Error = Error;

    fn try_from(mut spec: proto::ServiceSpec) -> Result<Self> {
        let name = spec.name.parse()?;
        let runs = runs::read(&spec.artifact, spec.image.take())?;
        check_program(&spec.arguments, &spec.environment)?;
        let concurrency_limit = match spec.concurrency_limit {
            0 => Self::DEFAULT_CONCURRENCY_LIMIT,
            limit => limit,
        };
        let scale = Scale::of(&spec, runs == Runs::External, concurrency_limit)?;
        let protocol = match proto::Protocol::try_from(spec.protocol) {
            Ok(proto::Protocol::Unspecified | proto::Protocol::Http1) => Protocol::Http1,
            Ok(proto::Protocol::H2c) => Protocol::H2c,
            Err(_) => {
                return Err(invalid(
                    "protocol is not known here: is this node older than the client?",
                ));
            }
        };
        let readiness = spec.readiness.unwrap_or_default();
        let http_path = match readiness.http_path {
            path if path.is_empty() => None,
            path if is_path(&path) => Some(path),
            _ => return Err(invalid("readiness.http_path must be a path such as /healthz")),
        };
        let start_timeout = millis(
            "readiness.start_timeout_ms",
            readiness.start_timeout_ms,
            match runs {
                Runs::Image(_) => Self::DEFAULT_IMAGE_START_TIMEOUT,
                Runs::Artifact(_) | Runs::External => Self::DEFAULT_START_TIMEOUT,
            },
            Self::MAX_START_TIMEOUT,
        )?;
        let external = runs == Runs::External;
        let liveness = spec.liveness;
        let liveness =
            liveness.map(|sent| Liveness::read(sent, http_path.as_ref(), external)).transpose()?;
        if spec.socket_activation && !matches!(runs, Runs::Artifact(_)) {
            return Err(invalid("socket_activation: only an executable can be given a socket"));
        }
        let limit = |field: &str, ms: u32| match ms {
            0 => Ok(None),
            ms if ms > MAX_RTT_MS => Err(invalid(format!("{field} is more than an hour"))),
            ms => Ok(Some(Duration::from_millis(ms.into()))),
        };
        let requirements = spec.requirements.unwrap_or_default();
        let requirements = Requirements {
            soft: limit("requirements.soft_rtt_ms", requirements.soft_rtt_ms)?,
            hard: limit("requirements.hard_rtt_ms", requirements.hard_rtt_ms)?,
        };
        if let (Some(soft), Some(hard)) = (requirements.soft, requirements.hard)
            && soft > hard
        {
            return Err(invalid("requirements: soft_rtt_ms is above hard_rtt_ms"));
        }
        let (resources, allowance) = resources(&spec.resources.unwrap_or_default())?;
        let limits = limits(spec.limits.unwrap_or_default())?;
        Ok(Self {
            name,
            runs,
            arguments: spec.arguments,
            environment: spec.environment,
            protocol,
            readiness: Readiness { http_path, start_timeout },
            liveness,
            socket_activation: spec.socket_activation,
            requirements,
            resources,
            allowance,
            idle_timeout: millis(
                "idle_timeout_ms",
                spec.idle_timeout_ms,
                Self::DEFAULT_IDLE_TIMEOUT,
                MAX_IDLE_TIMEOUT,
            )?,
            concurrency_limit,
            min_instances: scale.min,
            max_instances: scale.max,
            target_concurrency: scale.target,
            placement: scale.placement,
            limits,
            revision: spec.revision,
        })
    }
}

impl From<&Spec> for proto::ServiceSpec {
    fn from(spec: &Spec) -> Self {
        let ms = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u32);
        let (artifact, image) = runs::write(&spec.runs);
        Self {
            name: spec.name.to_string(),
            artifact,
            arguments: spec.arguments.clone(),
            environment: spec.environment.clone(),
            protocol: match spec.protocol {
                Protocol::Http1 => proto::Protocol::Http1.into(),
                Protocol::H2c => proto::Protocol::H2c.into(),
            },
            readiness: Some(proto::Readiness {
                http_path: spec.readiness.http_path.clone().unwrap_or_default(),
                start_timeout_ms: spec.readiness.start_timeout.as_millis() as u64,
            }),
            liveness: spec.liveness.as_ref().map(Into::into),
            socket_activation: spec.socket_activation,
            requirements: Some(proto::Requirements {
                soft_rtt_ms: ms(spec.requirements.soft),
                hard_rtt_ms: ms(spec.requirements.hard),
            }),
            resources: Some(proto::Resources {
                cpu_millis: spec.allowance.cpu_millis.map_or(0, NonZeroU32::get),
                memory_bytes: spec.resources.memory_bytes,
                processes: spec.allowance.processes,
                open_files: spec.allowance.open_files.map_or(0, NonZeroU32::get),
                log_bytes: spec.allowance.log_bytes,
                disk_bytes: spec.allowance.disk_bytes,
            }),
            idle_timeout_ms: spec.idle_timeout.as_millis() as u64,
            concurrency_limit: spec.concurrency_limit,
            min_instances: spec.min_instances,
            max_instances: spec.max_instances.map_or(0, NonZeroU32::get),
            target_concurrency: spec.target_concurrency.map_or(0, NonZeroU32::get),
            placement: proto::Placement::from(spec.placement).into(),
            limits: Some(spec.limits.into()),
            image,
            revision: spec.revision,
            service_hash: spec.hash().to_string(),
        }
    }
}

impl From<Placement> for proto::Placement {
    fn from(placement: Placement) -> Self {
        match placement {
            Placement::Nearest => Self::Nearest,
            Placement::Spread => Self::Spread,
            Placement::Pack => Self::Pack,
        }
    }
}

impl From<Limits> for proto::Limits {
    fn from(limits: Limits) -> Self {
        let ms = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u64);
        Self {
            max_body_bytes: limits.max_body.unwrap_or_default(),
            answer_timeout_ms: ms(limits.answer),
            quiet_timeout_ms: ms(limits.quiet),
            request_timeout_ms: ms(limits.request),
        }
    }
}

fn limits(limits: proto::Limits) -> Result<Limits> {
    let time = |field: &str, value: u64| {
        let time = millis(field, value, Duration::ZERO, MAX_REQUEST_TIME)?;
        Ok::<_, Error>((!time.is_zero()).then_some(time))
    };
    Ok(Limits {
        max_body: (limits.max_body_bytes > 0).then_some(limits.max_body_bytes),
        answer: time("limits.answer_timeout_ms", limits.answer_timeout_ms)?,
        quiet: time("limits.quiet_timeout_ms", limits.quiet_timeout_ms)?,
        request: time("limits.request_timeout_ms", limits.request_timeout_ms)?,
    })
}

/// How many instances there are to be, and where.
struct Scale {
    min: u32,
    max: Option<NonZeroU32>,
    target: Option<NonZeroU32>,
    placement: Placement,
}

impl Scale {
    fn of(spec: &proto::ServiceSpec, external: bool, concurrency_limit: u32) -> Result<Self> {
        let placement = match proto::Placement::try_from(spec.placement) {
            Ok(proto::Placement::Unspecified | proto::Placement::Nearest) => Placement::Nearest,
            Ok(proto::Placement::Spread) => Placement::Spread,
            Ok(proto::Placement::Pack) => Placement::Pack,
            Err(_) => {
                return Err(invalid(
                    "placement is not known here: is this node older than the client?",
                ));
            }
        };
        let scale = Self {
            min: spec.min_instances,
            max: NonZeroU32::new(spec.max_instances),
            target: NonZeroU32::new(spec.target_concurrency),
            placement,
        };
        for (field, value) in
            [("min_instances", spec.min_instances), ("max_instances", spec.max_instances)]
        {
            if value > Spec::MAX_INSTANCES {
                return Err(invalid(format!("{field} is more than {}", Spec::MAX_INSTANCES)));
            }
        }
        if scale.max.is_some_and(|max| max.get() < scale.min) {
            return Err(invalid("min_instances is above max_instances"));
        }
        if scale.target.is_some_and(|target| target.get() > concurrency_limit) {
            return Err(invalid("target_concurrency is above concurrency_limit"));
        }
        let set = [
            ("min_instances", scale.min != 0),
            ("max_instances", scale.max.is_some()),
            ("target_concurrency", scale.target.is_some()),
            ("placement", placement != Placement::Nearest),
        ];
        match set.into_iter().find(|(_, set)| external && *set) {
            Some((field, _)) => {
                Err(invalid(format!("{field}: an external service is never allocated")))
            }
            None => Ok(scale),
        }
    }
}

/// What an instance is admitted with, and what it may use. Whoever names processor time
/// gets that much and no more; memory is a limit always, since what is not there cannot be
/// shared.
fn resources(asked: &proto::Resources) -> Result<(Resources, Allowance)> {
    let (default, unnamed) = (Resources::default(), Allowance::default());
    let bounded = |field: &str, value: u64, default: u64, bound: (u64, &str)| match value {
        0 => Ok(default),
        value if value > bound.0 => {
            Err(invalid(format!("resources.{field} is more than {}", bound.1)))
        }
        value => Ok(value),
    };
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let cores = (u64::from(MAX_CPU_MILLIS), "10 000 cores");
    let cpu = bounded("cpu_millis", asked.cpu_millis.into(), default.cpu_millis.into(), cores)?;
    let pebibyte = (1 << 50, "1 PiB");
    let memory = bounded("memory_bytes", asked.memory_bytes, default.memory_bytes, pebibyte)?;
    let million = (1_000_000, "1 000 000");
    let processes =
        bounded("processes", asked.processes.into(), unnamed.processes.into(), million)?;
    let open_files = bounded("open_files", asked.open_files.into(), 0, million)?;
    let log_bytes = bounded("log_bytes", asked.log_bytes, unnamed.log_bytes, (1 << 30, "1 GiB"))?;
    let disk_bytes = bounded("disk_bytes", asked.disk_bytes, unnamed.disk_bytes, pebibyte)?;
    let resources = Resources { cpu_millis: narrow(cpu), memory_bytes: memory };
    let allowance = Allowance {
        cpu_millis: NonZeroU32::new(asked.cpu_millis),
        memory_bytes: memory,
        processes: narrow(processes),
        open_files: NonZeroU32::new(narrow(open_files)),
        log_bytes,
        disk_bytes,
    };
    Ok((resources, allowance))
}

pub(super) fn invalid(reason: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, reason)
}

pub(super) fn millis(
    field: &str,
    value: u64,
    default: Duration,
    max: Duration,
) -> Result<Duration> {
    match Duration::from_millis(value) {
        Duration::ZERO => Ok(default),
        time if time > max => Err(invalid(format!("{field} is more than {} ms", max.as_millis()))),
        time => Ok(time),
    }
}

/// Whether this can be asked for with GET.
pub(super) fn is_path(path: &str) -> bool {
    path.len() <= 1024
        && path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn check_program(arguments: &[String], environment: &BTreeMap<String, String>) -> Result<()> {
    if arguments.len() > MAX_ENTRIES || environment.len() > MAX_ENTRIES {
        return Err(invalid(format!(
            "arguments and environment have at most {MAX_ENTRIES} entries each"
        )));
    }
    let argument_bytes: usize = arguments.iter().map(String::len).sum();
    let environment_bytes: usize =
        environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    if argument_bytes.max(environment_bytes) > MAX_BYTES {
        return Err(invalid("arguments and environment have at most 64 KiB each"));
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(invalid("arguments: a NUL character cannot be passed to a program"));
    }
    for (name, value) in environment {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!("environment: {name:?} cannot be passed to a program")));
        }
        if RESERVED.contains(&name.as_str()) || name.starts_with("LCA_") {
            return Err(invalid(format!("environment: {name} is set by the allocator")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::tests::least, *};

    fn refused(change: impl FnOnce(&mut proto::ServiceSpec)) -> String {
        let mut spec = least();
        change(&mut spec);
        Spec::try_from(spec).unwrap_err().public().to_owned()
    }

    #[test]
    fn defaults_are_filled_in_and_a_spec_survives_the_wire() {
        let spec = Spec::try_from(least()).unwrap();
        assert_eq!(spec.readiness.start_timeout, Spec::DEFAULT_START_TIMEOUT);
        assert_eq!(Spec::try_from(proto::ServiceSpec::from(&spec)).unwrap(), spec);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_field() {
        assert!(refused(|s| s.name = "../x".into()).contains("service name"));
        assert!(refused(|s| s.artifact = "md5:1".into()).contains("digest"));
        assert!(refused(|s| s.arguments = vec!["a\0b".into()]).contains("NUL"));
        assert!(refused(|s| s.arguments = vec!["a".repeat(MAX_BYTES + 1)]).contains("64 KiB"));
        assert!(refused(|s| drop(s.environment.insert("A=B".into(), "x".into()))).contains("A=B"));
        assert!(
            refused(|s| drop(s.environment.insert("SERVICE_PORT".into(), "1".into())))
                .contains("set by")
        );
        assert!(
            refused(|s| drop(s.environment.insert("LCA_X".into(), "1".into()))).contains("set by")
        );
        assert!(refused(|s| s.protocol = 99).contains("protocol"));
        assert!(refused(|s| s.idle_timeout_ms = u64::MAX).contains("idle_timeout_ms"));
        let start_timeout_ms =
            |ms| Some(proto::Readiness { start_timeout_ms: ms, ..Default::default() });
        let late = refused(|s| s.readiness = start_timeout_ms(60_001));
        assert!(late.contains("readiness.start_timeout_ms is more than 60000 ms"), "{late}");
        assert!(
            Spec::try_from(proto::ServiceSpec { readiness: start_timeout_ms(60_000), ..least() })
                .is_ok()
        );
        let soft_above_hard = proto::Requirements { soft_rtt_ms: 10, hard_rtt_ms: 5 };
        assert!(refused(|s| s.requirements = Some(soft_above_hard)).contains("above"));
        assert!(refused(|s| s.min_instances = 1001).contains("min_instances is more than 1000"));
        assert!(refused(|s| s.max_instances = 1001).contains("max_instances is more than 1000"));
        let min_above_max = refused(|s| (s.min_instances, s.max_instances) = (3, 2));
        assert!(min_above_max.contains("min_instances is above max_instances"));
        assert!(refused(|s| s.target_concurrency = 1025).contains("above concurrency_limit"));
        assert!(refused(|s| s.placement = 99).contains("placement"));
        type Time = fn(&mut proto::Limits) -> &mut u64;
        let times: [(&str, Time); 3] = [
            ("limits.answer_timeout_ms", |limits| &mut limits.answer_timeout_ms),
            ("limits.quiet_timeout_ms", |limits| &mut limits.quiet_timeout_ms),
            ("limits.request_timeout_ms", |limits| &mut limits.request_timeout_ms),
        ];
        for (field, time) in times {
            let said = refused(|s| *time(s.limits.get_or_insert_default()) = 86_400_001);
            assert!(said.contains(&format!("{field} is more than 86400000 ms")), "{said}");
        }
    }

    #[test]
    fn a_socket_is_passed_to_an_executable_and_to_nothing_else() {
        let sent = proto::ServiceSpec {
            socket_activation: true,
            liveness: Some(proto::Liveness { http_path: "/live".into(), ..Default::default() }),
            ..least()
        };
        let spec = Spec::try_from(sent).unwrap();
        assert_eq!(Spec::try_from(proto::ServiceSpec::from(&spec)).unwrap(), spec);
        let external = refused(|s| {
            s.artifact.clear();
            s.socket_activation = true;
        });
        assert!(external.contains("socket_activation"), "{external}");
    }

    #[test]
    fn what_a_request_may_be_and_take_survives_the_wire() {
        let limits = proto::Limits {
            max_body_bytes: 1,
            answer_timeout_ms: 2,
            quiet_timeout_ms: 3,
            request_timeout_ms: 86_400_000,
        };
        let spec = Spec::try_from(proto::ServiceSpec { limits: Some(limits), ..least() }).unwrap();
        assert_eq!(spec.limits.request, Some(MAX_REQUEST_TIME));
        assert_eq!(Spec::try_from(proto::ServiceSpec::from(&spec)).unwrap(), spec);
    }

    #[test]
    fn how_many_and_where_survives_the_wire() {
        let sent = proto::ServiceSpec {
            min_instances: 2,
            max_instances: 2,
            target_concurrency: 7,
            concurrency_limit: 7,
            placement: proto::Placement::Spread.into(),
            ..least()
        };
        let spec = Spec::try_from(sent).unwrap();
        assert_eq!((spec.min_instances, spec.placement), (2, Placement::Spread));
        assert_eq!(spec.max_instances, NonZeroU32::new(2));
        assert_eq!(spec.target_concurrency, NonZeroU32::new(7));
        assert_eq!(Spec::try_from(proto::ServiceSpec::from(&spec)).unwrap(), spec);
    }

    #[test]
    fn of_an_external_service_nothing_is_allocated_so_nothing_is_limited() {
        type Change = fn(&mut proto::ServiceSpec);
        let changes: [(&str, Change); 4] = [
            ("min_instances", |s| s.min_instances = 1),
            ("max_instances", |s| s.max_instances = 1),
            ("target_concurrency", |s| s.target_concurrency = 1),
            ("placement", |s| s.placement = proto::Placement::Pack.into()),
        ];
        for (field, change) in changes {
            let said = refused(|s| {
                s.artifact.clear();
                change(s);
            });
            assert!(said.contains(field) && said.contains("external"), "{said}");
        }
        // What is written for a spec that says nothing is no such thing.
        let external = proto::ServiceSpec { artifact: String::new(), ..least() };
        let spec = Spec::try_from(external).unwrap();
        assert_eq!(Spec::try_from(proto::ServiceSpec::from(&spec)).unwrap(), spec);
    }
}
