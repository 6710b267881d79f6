//! `lcactl service add`
//!
//! What is there is looked at before anything is uploaded, so that a name that is
//! taken costs nothing, and what would change is shown before it does. The registry
//! decides all the same: it is asked to replace the very revision that was seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lca::{
    Kind, ServiceName, Spec,
    api::{self, proto},
};
use lca_engine::Resolved;
use proto::registry_client::RegistryClient;
use serde::Serialize;
use tokio::time::{Instant, interval};

use super::image;
use crate::{
    args::{Add as Args, Global},
    connect,
    errors::{Failure, Result},
    output::Output,
    specfile::{self, Described},
    units,
    upload::Program,
    view::ServiceSpec,
};

/// How often the progress of an upload is drawn: smooth for people, nothing for a link.
const REDRAW: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Document {
    spec: ServiceSpec,
    changed: bool,
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let described = match args.file.clone() {
        Some(file) => Some(described(&file, output).await?),
        None => None,
    };
    let program = match &args.exec {
        Some(path) => Some(Program::read(path).await?),
        None => None,
    };
    let found = image::find(&args.container, output).await?;
    let replace = args.replace;
    let wanted = spec(args, described, program.as_ref(), found)?;
    let name = wanted.name.clone();
    let mut registry = RegistryClient::new(connect::daemon(global).await?);
    let present = match super::get(&mut registry, &name).await {
        Ok(answer) => answer.spec.map(Spec::try_from).transpose()?,
        Err(failure) if failure.kind() == Some(Kind::NotFound) => None,
        Err(failure) => return Err(failure),
    };
    let replaced = match present {
        Some(present) if !present.same_content(&wanted) => {
            agreed(&present, &wanted, replace, output).await?;
            Some(present.revision)
        }
        _ => None,
    };
    if let Some(program) = &program {
        output.if_interrupted(vec![format!("{name} was not registered")]);
        upload(program, &mut registry, output).await?;
        output.if_interrupted(Vec::new());
    }
    let request = proto::PutServiceRequest { spec: Some((&wanted).into()), if_revision: replaced };
    let put =
        api::call("the registry", connect::ANSWER, request, |r| registry.put_service(r)).await;
    let answer = put.map_err(|error| match error.kind() {
        Kind::Conflict => Failure::from(error).hint("somebody else has just changed it: try again"),
        _ => error.into(),
    })?;
    let document =
        Document { spec: answer.spec.unwrap_or_default().into(), changed: answer.changed };
    output.data(&document, || {
        let ServiceSpec { name, revision, .. } = &document.spec;
        let unchanged = if document.changed { "" } else { ", unchanged" };
        format!("{name} revision {revision}{unchanged}\n")
    })
}

async fn described(file: &Path, output: &mut Output) -> Result<Described> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || specfile::read(&path)).await;
    let described = read.map_err(|error| {
        lca::Error::new(Kind::Internal, "reading the file failed").because(error)
    })??;
    if let Some(unused) = described.unused {
        output.note(&format!("{}: {unused}", file.display()));
    }
    Ok(described)
}

/// Uploads with its progress in one line.
async fn upload(
    program: &Program,
    registry: &mut RegistryClient<connect::Api>,
    output: &mut Output,
) -> Result<()> {
    let sent = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let uploading = program.upload_counting(registry, sent.clone());
    tokio::pin!(uploading);
    let mut redraw = interval(REDRAW);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut uploading => break ended,
            _ = redraw.tick() => {
                output.progress_in_place(&uploaded(sent.load(Ordering::Relaxed), program.size));
            }
        }
    };
    output.progress_in_place("");
    ended?;
    match sent.load(Ordering::Relaxed) {
        0 => output.progress("the program is there already"),
        bytes => output.progress(&format!(
            "uploaded {} in {}",
            units::show_size(bytes),
            units::show_duration(begun.elapsed())
        )),
    }
    Ok(())
}

fn uploaded(sent: u64, size: u64) -> String {
    let percent = sent.saturating_mul(100) / size.max(1);
    format!("uploading {} of {} ({percent} %)", units::show_size(sent), units::show_size(size))
}

/// Says what replacing `present` changes, and goes on only if that is wanted: by the
/// command line, or by whoever is there to be asked.
async fn agreed(present: &Spec, wanted: &Spec, replace: bool, output: &mut Output) -> Result<()> {
    let (name, revision) = (&present.name, present.revision);
    let differences = differences(present, wanted);
    if replace {
        output.note(&format!("{name} revision {revision} is replaced:"));
        differences.iter().for_each(|line| output.note(&format!("  {line}")));
        return Ok(());
    }
    if output.can_ask() {
        output.note(&format!("{name} exists with another spec, revision {revision}:"));
        differences.iter().for_each(|line| output.note(&format!("  {line}")));
    }
    match output.ask("Replace it?").await {
        Some(true) => Ok(()),
        Some(false) => Err(Failure::new(Kind::Conflict, format!("{name} was left as it is"))),
        None => {
            let sentence = format!("{name} exists with another spec, revision {revision}");
            Err(Failure::new(Kind::Conflict, sentence)
                .details(differences)
                .hint("--replace stores this one as a new revision"))
        }
    }
}

/// What the file and the arguments ask for, within bounds and with the defaults filled
/// in. An argument counts more than the file.
fn spec(
    args: Args,
    described: Option<Described>,
    program: Option<&Program>,
    found: Option<Resolved>,
) -> Result<Spec> {
    let usage = |sentence: String| Failure::new(Kind::InvalidArgument, sentence);
    let mut spec: proto::ServiceSpec = match described {
        Some(described) => described.spec.try_into()?,
        None => proto::ServiceSpec::default(),
    };
    (spec.revision, spec.service_hash) = (0, String::new());
    spec.name = name(args.name, &spec.name)?;
    if args.external {
        (spec.artifact, spec.image) = (String::new(), None);
    } else if let Some(program) = program {
        (spec.artifact, spec.image) = (program.digest.to_string(), None);
    } else if spec.artifact.is_empty() && spec.image.is_none() && found.is_none() {
        let sentence = "the file names neither artifact nor image: say what runs with --exec PATH, \
                        --image REF, or --external";
        return Err(usage(sentence.into()));
    }
    image::apply(&args.container, found, &mut spec)?;
    if !args.arguments.is_empty() {
        spec.arguments = args.arguments;
    }
    let mut given = BTreeMap::new();
    for (name, value) in args.env {
        if let Some(_first) = given.insert(name.clone(), value) {
            return Err(usage(format!("--env sets {name} twice")));
        }
    }
    spec.environment.extend(given);
    let rtt = |flag: &str, time: Duration| {
        u32::try_from(time.as_millis()).map_err(|_| usage(format!("--{flag} is more than an hour")))
    };
    let requirements = spec.requirements.get_or_insert_default();
    if let Some(time) = args.soft_rtt {
        requirements.soft_rtt_ms = rtt("soft-rtt", time)?;
    }
    if let Some(time) = args.hard_rtt {
        requirements.hard_rtt_ms = rtt("hard-rtt", time)?;
    }
    let resources = spec.resources.get_or_insert_default();
    resources.cpu_millis = args.cpu.unwrap_or(resources.cpu_millis);
    resources.memory_bytes = args.memory.unwrap_or(resources.memory_bytes);
    let millis = |time: Duration| time.as_millis() as u64;
    let readiness = spec.readiness.get_or_insert_default();
    readiness.start_timeout_ms = args.start_timeout.map_or(readiness.start_timeout_ms, millis);
    if let Some(path) = args.ready_path {
        readiness.http_path = path;
    }
    args.liveness.apply(&mut spec);
    spec.idle_timeout_ms = args.idle_timeout.map_or(spec.idle_timeout_ms, millis);
    spec.min_instances = args.min_instances.unwrap_or(spec.min_instances);
    spec.max_instances = args.max_instances.unwrap_or(spec.max_instances);
    spec.target_concurrency = args.target_concurrency.unwrap_or(spec.target_concurrency);
    let limits = spec.limits.get_or_insert_default();
    limits.max_body_bytes = args.max_body.unwrap_or(limits.max_body_bytes);
    limits.answer_timeout_ms = args.answer_timeout.map_or(limits.answer_timeout_ms, millis);
    limits.quiet_timeout_ms = args.quiet_timeout.map_or(limits.quiet_timeout_ms, millis);
    limits.request_timeout_ms = args.request_timeout.map_or(limits.request_timeout_ms, millis);
    if let Some(placement) = args.placement {
        spec.set_placement(lca::Placement::from(placement).into());
    }
    if let Some(protocol) = args.protocol {
        spec.set_protocol(protocol.into());
    }
    Ok(Spec::try_from(spec)?)
}

/// The name given, or that of the file; not two different ones.
fn name(given: Option<ServiceName>, of_the_file: &str) -> Result<String> {
    let usage = |sentence: String| Err(Failure::new(Kind::InvalidArgument, sentence));
    match given {
        Some(given) if of_the_file.is_empty() || of_the_file == given.as_str() => {
            Ok(given.to_string())
        }
        Some(given) => usage(format!("the file describes {of_the_file:?}, not {given}")),
        None if of_the_file.is_empty() => usage("the file has no name: give one".into()),
        None => Ok(of_the_file.to_owned()),
    }
}

/// One line for each field that differs. What an environment variable is set to is not
/// shown: it may be a secret.
fn differences(present: &Spec, wanted: &Spec) -> Vec<String> {
    let (present, wanted) = (view(present), view(wanted));
    let (spoke, speaks) = (super::protocol(&present), super::protocol(&wanted));
    let (placed, place) = (super::placement(&present), super::placement(&wanted));
    let mut lines = Vec::new();
    let mut field = |name: &str, was: String, is: String| {
        if was != is {
            let show = |value: String| if value.is_empty() { "none".to_owned() } else { value };
            lines.push(format!("{name}: {} -> {}", show(was), show(is)));
        }
    };
    let ms = units::setting_millis;
    let artifact = |spec: &ServiceSpec| match spec.image {
        Some(_) => String::new(),
        None => image::what(spec),
    };
    field("artifact", artifact(&present), artifact(&wanted));
    let (was, is) = (image_fields(&present), image_fields(&wanted));
    for ((name, was), (_, is)) in was.into_iter().zip(is) {
        field(name, was, is);
    }
    field("arguments", present.arguments.join(" "), wanted.arguments.join(" "));
    field("protocol", spoke, speaks);
    field("ready path", present.readiness.http_path, wanted.readiness.http_path);
    field(
        "start timeout",
        ms(present.readiness.start_timeout_ms),
        ms(wanted.readiness.start_timeout_ms),
    );
    let words = |spec: &Option<crate::view::Liveness>| {
        spec.as_ref().map(crate::view::Liveness::words).unwrap_or_default()
    };
    field("liveness", words(&present.liveness), words(&wanted.liveness));
    let socket =
        |passed: bool| if passed { "passed as descriptor 3".into() } else { String::new() };
    field("socket", socket(present.socket_activation), socket(wanted.socket_activation));
    let (was, is) = (present.requirements, wanted.requirements);
    field("soft rtt", ms(was.soft_rtt_ms.into()), ms(is.soft_rtt_ms.into()));
    field("hard rtt", ms(was.hard_rtt_ms.into()), ms(is.hard_rtt_ms.into()));
    let (was, is) = (present.resources, wanted.resources);
    field("cpu", super::cpu(was.cpu_millis), super::cpu(is.cpu_millis));
    let size = units::setting_size;
    field("memory", size(was.memory_bytes), size(is.memory_bytes));
    field("processes", super::setting(was.processes), super::setting(is.processes));
    field("open files", super::setting(was.open_files), super::setting(is.open_files));
    field("log", size(was.log_bytes), size(is.log_bytes));
    field("disk", size(was.disk_bytes), size(is.disk_bytes));
    field("idle timeout", ms(present.idle_timeout_ms), ms(wanted.idle_timeout_ms));
    field(
        "concurrency limit",
        present.concurrency_limit.to_string(),
        wanted.concurrency_limit.to_string(),
    );
    let setting = super::setting;
    field("min instances", setting(present.min_instances), setting(wanted.min_instances));
    field("max instances", setting(present.max_instances), setting(wanted.max_instances));
    field(
        "target concurrency",
        setting(present.target_concurrency),
        setting(wanted.target_concurrency),
    );
    field("placement", placed, place);
    let (was, is) = (super::limits(&present.limits), super::limits(&wanted.limits));
    for ((name, was), (_, is)) in was.into_iter().zip(is) {
        field(name, was, is);
    }
    let names: BTreeSet<_> = present.environment.keys().chain(wanted.environment.keys()).collect();
    for name in names {
        let change = match (present.environment.get(name), wanted.environment.get(name)) {
            (None, Some(_)) => "added",
            (Some(_), None) => "removed",
            (was, is) if was != is => "changed",
            _ => continue,
        };
        lines.push(format!("environment: {name} {change}"));
    }
    lines
}

/// The lines on an image, empty ones where there is none.
fn image_fields(spec: &ServiceSpec) -> Vec<(&'static str, String)> {
    image::fields(&spec.image.clone().unwrap_or_default())
}

fn view(spec: &Spec) -> ServiceSpec {
    proto::ServiceSpec::from(spec).into()
}
