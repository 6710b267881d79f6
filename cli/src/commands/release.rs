//! `lcactl release`

use lca::{
    InstancePrefix, Kind,
    api::{self, proto},
};
use serde::Serialize;

use super::instances;
use crate::{
    args::Global,
    connect,
    errors::{Failure, Result},
    output::Output,
    view::Instance,
};

const UNKNOWN: &str = "`lcactl instances` lists what runs";

#[derive(Serialize)]
struct Document {
    instance: Instance,
}

pub(super) async fn run(
    instance: &InstancePrefix,
    global: &Global,
    output: &mut Output,
) -> Result<()> {
    let mut allocator =
        proto::allocator_client::AllocatorClient::new(connect::daemon(global).await?);
    let request = proto::ReleaseRequest { instance: instance.to_string() };
    output.if_interrupted(vec![format!("{instance} stops all the same")]);
    let answer = api::call("the daemon", api::MAX_RELEASE, request, |r| allocator.release(r))
        .await
        .map_err(|error| Failure::from(error).hint_for(Kind::NotFound, UNKNOWN))?;
    let instance = answer.instance.ok_or_else(|| {
        Failure::new(Kind::BadGateway, "the daemon did not say which instance it stopped")
    })?;
    let document = Document { instance: instance.into() };
    output.data(&document, || instances::table(std::slice::from_ref(&document.instance)))
}
