//! `lcactl instances`, and the table of instances that other commands print, too.

use lca::api::{self, proto};
use serde::Serialize;

use crate::{
    args::{Global, Instances as Args},
    connect,
    errors::Result,
    output::Output,
    table::Table,
    view::{Instance, Usage, age, distance, short_id, short_peer},
};

#[derive(Serialize)]
struct Document {
    instances: Vec<Instance>,
    unreachable_peers: Vec<String>,
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let mut instances =
        proto::instances_client::InstancesClient::new(connect::daemon(global).await?)
            .max_decoding_message_size(api::MAX_ANSWER);
    let request = proto::ListInstancesRequest {
        service: args.service.as_ref().map(ToString::to_string).unwrap_or_default(),
        service_hash: String::new(),
        include_ended: args.all,
    };
    let answer =
        api::call("the daemon", connect::ANSWER, request, |r| instances.list_instances(r)).await?;
    let document = Document {
        instances: answer.instances.into_iter().map(Instance::from).collect(),
        unreachable_peers: answer.unreachable_peers,
    };
    let nothing = match args.service {
        Some(service) => format!("no instances of {service}"),
        None => "no instances".to_owned(),
    };
    let empty = document.instances.is_empty().then_some(nothing.as_str());
    output.list(&document, empty, || table(&document.instances))?;
    for peer in &document.unreachable_peers {
        output.note(&format!(
            "warning: peer {} did not answer; its instances are missing",
            short_peer(peer)
        ));
    }
    Ok(())
}

/// One row an instance.
pub(super) fn table(instances: &[Instance]) -> Table {
    let mut table = Table::new([
        "INSTANCE",
        "SERVICE",
        "STATE",
        "PEER",
        "RTT",
        "REQUESTS",
        "CPU",
        "MEMORY",
        "AGE",
        "DRIVER",
        "RESTARTS",
        "LAST EXIT",
        "ADDRESS",
        "REASON",
    ])
    .spare(&[
        "ADDRESS",
        "DRIVER",
        "LAST EXIT",
        "AGE",
        "RESTARTS",
        "REQUESTS",
        "RTT",
        "CPU",
        "MEMORY",
    ]);
    for instance in instances {
        let usage = instance.usage.as_ref();
        table.row([
            short_id(&instance.id),
            instance.service.clone(),
            instance.state_word(),
            short_peer(&instance.peer),
            distance(instance.rtt_us, instance.rtt_deviation_us),
            requests(instance),
            usage.map(Usage::cpu).unwrap_or_default(),
            usage.map(Usage::memory).unwrap_or_default(),
            age(instance.age_ms),
            instance.driver.clone(),
            instance.restarts.to_string(),
            instance.last_exit.clone(),
            instance.mesh_addresses.first().cloned().unwrap_or_default(),
            instance.reason.clone(),
        ]);
    }
    table
}

/// How busy it is, as people read it.
pub(super) fn requests(instance: &Instance) -> String {
    let load = instance.load.as_ref();
    load.map(|load| format!("{} of {}", load.in_flight, load.limit)).unwrap_or_default()
}
