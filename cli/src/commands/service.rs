//! `lcactl service list | get | remove`, and the client they share with `add`.

mod add;
mod image;

use lca::{
    Kind, ServiceName,
    api::{self, proto},
};
use proto::registry_client::RegistryClient;
use serde::Serialize;

use crate::{
    args::{Global, Service as Command},
    connect,
    errors::{Failure, Result},
    output::Output,
    table::Table,
    units::{setting_millis, setting_size},
    view::{Limits, ServiceSpec},
};

#[derive(Serialize)]
struct List {
    services: Vec<ServiceSpec>,
}

#[derive(Serialize)]
struct Got {
    spec: ServiceSpec,
    stale: bool,
}

#[derive(Serialize)]
struct Removed {
    name: String,
}

pub(super) async fn run(command: Command, global: &Global, output: &mut Output) -> Result<()> {
    if let Command::Add(args) = command {
        return add::run(*args, global, output).await;
    }
    let mut registry = RegistryClient::new(connect::daemon(global).await?)
        .max_decoding_message_size(api::MAX_ANSWER);
    match command {
        Command::Add(_) => unreachable!("taken out above"),
        Command::List => {
            let request = proto::ListServicesRequest {};
            let answer =
                api::call("the registry", connect::ANSWER, request, |r| registry.list_services(r))
                    .await?;
            let list =
                List { services: answer.services.into_iter().map(ServiceSpec::from).collect() };
            let empty = list.services.is_empty().then_some("no services");
            output.list(&list, empty, || table(&list.services))
        }
        Command::Get { name } => {
            let answer = get(&mut registry, &name).await.map_err(missing)?;
            let spec = answer.spec.unwrap_or_default().into();
            let got = Got { spec, stale: answer.stale };
            output.data(&got, || fields(&got.spec))?;
            if got.stale {
                output.note("warning: no registry was reached; this is what was last known");
            }
            Ok(())
        }
        Command::Remove { name } => {
            let request = proto::DeleteServiceRequest { name: name.to_string(), if_revision: None };
            api::call("the registry", connect::ANSWER, request, |r| registry.delete_service(r))
                .await
                .map_err(|error| missing(error.into()))?;
            output.data(&Removed { name: name.to_string() }, || format!("removed {name}\n"))
        }
    }
}

/// Asks for one spec.
async fn get(
    registry: &mut RegistryClient<connect::Api>,
    name: &ServiceName,
) -> Result<proto::GetServiceResponse> {
    let request = proto::GetServiceRequest { name: name.to_string() };
    Ok(api::call("the registry", connect::ANSWER, request, |r| registry.get_service(r)).await?)
}

fn missing(failure: Failure) -> Failure {
    failure.hint_for(Kind::NotFound, "`lcactl service list` lists what there is")
}

fn table(services: &[ServiceSpec]) -> Table {
    let mut table = Table::new([
        "NAME", "REVISION", "ARTIFACT", "SOFT RTT", "HARD RTT", "CPU", "MEMORY", "IDLE",
    ]);
    for spec in services {
        table.row([
            spec.name.clone(),
            spec.revision.to_string(),
            image::what(spec),
            setting_millis(spec.requirements.soft_rtt_ms.into()),
            setting_millis(spec.requirements.hard_rtt_ms.into()),
            cpu(spec.resources.cpu_millis),
            setting_size(spec.resources.memory_bytes),
            setting_millis(spec.idle_timeout_ms),
        ]);
    }
    table
}

/// Processor time as it is typed; nothing where it is not limited.
fn cpu(millis: u32) -> String {
    if millis == 0 { String::new() } else { format!("{millis}m") }
}

/// One line a field, in the words of `service add`.
fn fields(spec: &ServiceSpec) -> Table {
    let mut table = Table::new(["FIELD", "VALUE"]);
    let mut field = |name: &str, value: String| table.row([name.to_owned(), value]);
    field("name", spec.name.clone());
    field("revision", spec.revision.to_string());
    field("service hash", spec.service_hash.clone());
    match &spec.image {
        Some(image) => {
            image::fields(image).into_iter().for_each(|(name, value)| field(name, value));
        }
        None if spec.artifact.is_empty() => field("artifact", image::what(spec)),
        None => field("artifact", spec.artifact.clone()),
    }
    for argument in &spec.arguments {
        field("argument", argument.clone());
    }
    for (name, value) in &spec.environment {
        field("environment", format!("{name}={value}"));
    }
    field("protocol", protocol(spec));
    field("ready path", spec.readiness.http_path.clone());
    field("start timeout", setting_millis(spec.readiness.start_timeout_ms));
    if let Some(liveness) = &spec.liveness {
        field("liveness", liveness.words());
    }
    if spec.socket_activation {
        field("socket", "passed as descriptor 3".into());
    }
    field("soft rtt", setting_millis(spec.requirements.soft_rtt_ms.into()));
    field("hard rtt", setting_millis(spec.requirements.hard_rtt_ms.into()));
    field("cpu", cpu(spec.resources.cpu_millis));
    field("memory", setting_size(spec.resources.memory_bytes));
    field("processes", setting(spec.resources.processes));
    field("open files", setting(spec.resources.open_files));
    field("log", setting_size(spec.resources.log_bytes));
    field("disk", setting_size(spec.resources.disk_bytes));
    field("idle timeout", setting_millis(spec.idle_timeout_ms));
    field("concurrency limit", spec.concurrency_limit.to_string());
    field("min instances", setting(spec.min_instances));
    field("max instances", setting(spec.max_instances));
    field("target concurrency", setting(spec.target_concurrency));
    field("placement", placement(spec));
    for (name, value) in limits(&spec.limits) {
        field(name, value);
    }
    table
}

/// What a request may be and take, in the words of `service add`.
fn limits(limits: &Limits) -> [(&'static str, String); 4] {
    let none_if_zero = |zero: bool, text: String| if zero { String::new() } else { text };
    let ms = |ms: u64| none_if_zero(ms == 0, setting_millis(ms));
    let body = limits.max_body_bytes;
    [
        ("max body", none_if_zero(body == 0, setting_size(body))),
        ("answer timeout", ms(limits.answer_timeout_ms)),
        ("quiet timeout", ms(limits.quiet_timeout_ms)),
        ("request timeout", ms(limits.request_timeout_ms)),
    ]
}

/// A number of which 0 means that there is none.
fn setting(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

/// The protocol as it is typed.
fn protocol(spec: &ServiceSpec) -> String {
    match spec.protocol.strip_prefix("PROTOCOL_") {
        None | Some("UNSPECIFIED") => "http1".into(),
        Some(name) => name.to_lowercase(),
    }
}

/// The placement as it is typed.
fn placement(spec: &ServiceSpec) -> String {
    match spec.placement.strip_prefix("PLACEMENT_") {
        None | Some("UNSPECIFIED") => "nearest".into(),
        Some(name) => name.to_lowercase(),
    }
}
