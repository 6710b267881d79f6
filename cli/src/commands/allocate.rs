//! `lcactl allocate`

use std::mem::take;

use lca::{
    Kind, RequestId,
    api::{self, proto},
};
use proto::{allocate_progress::Progress, allocate_request::Mode};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::instances;
use crate::{
    args::{Allocate as Args, Global},
    connect,
    errors::{Failure, Result},
    output::Output,
    table::Table,
    units,
    view::{Instance, Step, micros},
};

#[derive(Serialize)]
struct Document {
    instance: Instance,
    joined: bool,
    steps: Vec<Step>,
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let Args { service, new, request_id } = args;
    // Made up here and not by the daemon, so that an interrupted call can be resumed.
    let request_id = request_id.unwrap_or_else(RequestId::random);
    let channel = connect::daemon(global).await?;
    let request = proto::AllocateServiceRequest {
        service: service.to_string(),
        mode: if new { Mode::New } else { Mode::Ensure }.into(),
        request_id: request_id.to_string(),
    };
    let again = format!(
        "lcactl allocate {service}{} --request-id {request_id}",
        if new { " --new" } else { "" }
    );
    output.if_interrupted(vec![format!("the start goes on; `{again}` waits for it again")]);
    let done =
        match timeout_at(Instant::now() + api::MAX_CALL, follow(channel, request, output)).await {
            Ok(done) => done?,
            Err(_) => {
                let waited = api::MAX_CALL.as_secs();
                return Err(Failure::new(
                    Kind::Timeout,
                    format!("{service} did not start within {waited} s"),
                )
                .hint(format!("`{again}` waits for it again")));
            }
        };
    output.if_interrupted(Vec::new());
    let instance = done.instance.ok_or_else(|| broken("did not say which instance"))?;
    let document = Document {
        instance: instance.into(),
        joined: done.joined,
        steps: done.steps.into_iter().map(Step::from).collect(),
    };
    output.data(&document, || show(&document))?;
    if document.joined {
        output.note("it was there already; --new starts another");
    }
    Ok(())
}

/// Reads the progress to its end. The caller sets the deadline.
async fn follow(
    channel: connect::Api,
    request: proto::AllocateServiceRequest,
    output: &mut Output,
) -> Result<proto::AllocateResponse> {
    let mut manager = proto::manager_client::ManagerClient::new(channel);
    let mut progress = manager.allocate(api::within(api::MAX_CALL, request)).await?.into_inner();
    let mut drawn = false;
    loop {
        let next = progress.message().await;
        // Whatever else comes next, if it comes, does not stand behind what was drawn.
        let redrawn = matches!(
            &next,
            Ok(Some(proto::AllocateProgress { progress: Some(Progress::Fetching(_)) }))
        );
        if take(&mut drawn) && !redrawn {
            output.progress_in_place("");
        }
        let Some(message) = next? else {
            return Err(broken("broke off before the start was over"));
        };
        match message.progress {
            Some(Progress::Fetching(fetching)) => {
                drawn = true;
                output.progress_in_place(&fetched(&fetching));
            }
            Some(Progress::Step(step)) => {
                let detail = if step.detail.is_empty() {
                    String::new()
                } else {
                    format!("  {}", step.detail)
                };
                let line =
                    format!("{:<8}  {:>8}{detail}", step.name, micros(Some(step.duration_us)));
                output.progress(&line);
            }
            Some(Progress::Done(done)) => return Ok(done),
            None => {} // something newer than we are
        }
    }
}

/// How much of an image is there, in a line.
fn fetched(fetching: &proto::Fetching) -> String {
    let proto::Fetching { bytes, total_bytes, layers, total_layers } = *fetching;
    let layers = format!("{layers} of {total_layers} layers");
    if total_bytes == 0 {
        return format!("pulling its image: {layers}");
    }
    let percent = bytes.saturating_mul(100) / total_bytes;
    let (bytes, total) = (units::show_size(bytes), units::show_size(total_bytes));
    format!("pulling its image: {bytes} of {total} ({percent} %), {layers}")
}

fn broken(what: &str) -> Failure {
    Failure::new(Kind::BadGateway, format!("the daemon {what}"))
}

fn show(document: &Document) -> Vec<Table> {
    let Document { instance, steps, .. } = document;
    let mut tables = vec![instances::table(std::slice::from_ref(instance))];
    if !steps.is_empty() {
        let mut table = Table::new(["STEP", "TIME", "DETAIL"]);
        for step in steps {
            table.row([step.name.clone(), micros(Some(step.duration_us)), step.detail.clone()]);
        }
        tables.push(table);
    }
    tables
}
