//! `lcactl service add`
//!
//! What is there is looked at before anything is uploaded, so that a name that is
//! taken costs nothing. The registry decides all the same: it is asked to replace the
//! very revision that was seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lca::{
    Kind, Spec,
    api::{self, proto},
};
use proto::registry_client::RegistryClient;
use serde::Serialize;

use crate::{
    args::{Add as Args, Global},
    connect,
    errors::{Failure, Result},
    output::Output,
    units,
    upload::Program,
    view::ServiceSpec,
};

#[derive(Serialize)]
struct Document {
    spec: ServiceSpec,
    changed: bool,
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let (name, replace) = (args.name.clone(), args.replace);
    let program = match &args.exec {
        Some(path) => Some(Program::read(path).await?),
        None => None,
    };
    let wanted = spec(args, program.as_ref())?;
    let mut registry = RegistryClient::new(connect::daemon(global).await?);
    let present = match super::get(&mut registry, &name).await {
        Ok(answer) => answer.spec.map(Spec::try_from).transpose()?,
        Err(failure) if failure.kind() == Some(Kind::NotFound) => None,
        Err(failure) => return Err(failure),
    };
    if let Some(present) = &present
        && !replace
        && !present.same_content(&wanted)
    {
        return Err(conflict(present, &wanted));
    }
    if let Some(program) = &program {
        output.progress(&format!("uploading {}", units::show_size(program.size)));
        program.upload(&mut registry).await?;
    }
    let request = proto::PutServiceRequest {
        spec: Some((&wanted).into()),
        if_revision: present.filter(|_| replace).map(|present| present.revision),
    };
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

/// What the arguments ask for, within bounds and with the defaults filled in.
fn spec(args: Args, program: Option<&Program>) -> Result<Spec> {
    let millis = |time: Option<Duration>| time.map_or(0, |time| time.as_millis());
    let rtt = |flag: &str, time| {
        u32::try_from(millis(time)).map_err(|_| {
            Failure::new(Kind::InvalidArgument, format!("--{flag} is more than an hour"))
        })
    };
    let mut environment = BTreeMap::new();
    for (name, value) in args.env {
        if let Some(_first) = environment.insert(name.clone(), value) {
            return Err(Failure::new(Kind::InvalidArgument, format!("--env sets {name} twice")));
        }
    }
    let spec = proto::ServiceSpec {
        name: args.name.to_string(),
        artifact: program.map(|program| program.digest.to_string()).unwrap_or_default(),
        arguments: args.arguments,
        environment,
        readiness: Some(proto::Readiness {
            http_path: args.ready_path.unwrap_or_default(),
            start_timeout_ms: millis(args.start_timeout) as u64,
        }),
        requirements: Some(proto::Requirements {
            soft_rtt_ms: rtt("soft-rtt", args.soft_rtt)?,
            hard_rtt_ms: rtt("hard-rtt", args.hard_rtt)?,
        }),
        resources: Some(proto::Resources {
            cpu_millis: args.cpu.unwrap_or(0),
            memory_bytes: args.memory.unwrap_or(0),
        }),
        idle_timeout_ms: millis(args.idle_timeout) as u64,
        ..Default::default()
    };
    Ok(Spec::try_from(spec)?)
}

fn conflict(present: &Spec, wanted: &Spec) -> Failure {
    let sentence =
        format!("{} exists with another spec, revision {}", present.name, present.revision);
    Failure::new(Kind::Conflict, sentence)
        .details(differences(present, wanted))
        .hint("--replace stores this one as a new revision")
}

/// One line for each field that differs. What an environment variable is set to is not
/// shown: it may be a secret.
fn differences(present: &Spec, wanted: &Spec) -> Vec<String> {
    let (present, wanted) = (view(present), view(wanted));
    let mut lines = Vec::new();
    let mut field = |name: &str, was: String, is: String| {
        if was != is {
            let show = |value: String| if value.is_empty() { "none".to_owned() } else { value };
            lines.push(format!("{name}: {} -> {}", show(was), show(is)));
        }
    };
    let ms = units::setting_millis;
    field("artifact", super::artifact(&present), super::artifact(&wanted));
    field("arguments", present.arguments.join(" "), wanted.arguments.join(" "));
    field("ready path", present.readiness.http_path, wanted.readiness.http_path);
    field(
        "start timeout",
        ms(present.readiness.start_timeout_ms),
        ms(wanted.readiness.start_timeout_ms),
    );
    let (was, is) = (present.requirements, wanted.requirements);
    field("soft rtt", ms(was.soft_rtt_ms.into()), ms(is.soft_rtt_ms.into()));
    field("hard rtt", ms(was.hard_rtt_ms.into()), ms(is.hard_rtt_ms.into()));
    let (was, is) = (present.resources, wanted.resources);
    field("cpu", super::cpu(was.cpu_millis), super::cpu(is.cpu_millis));
    field("memory", units::setting_size(was.memory_bytes), units::setting_size(is.memory_bytes));
    field("idle timeout", ms(present.idle_timeout_ms), ms(wanted.idle_timeout_ms));
    field(
        "concurrency limit",
        present.concurrency_limit.to_string(),
        wanted.concurrency_limit.to_string(),
    );
    let names: BTreeSet<_> = present.environment.keys().chain(wanted.environment.keys()).collect();
    for name in names {
        if present.environment.get(name) != wanted.environment.get(name) {
            lines.push(format!("environment: {name}"));
        }
    }
    lines
}

fn view(spec: &Spec) -> ServiceSpec {
    proto::ServiceSpec::from(spec).into()
}
