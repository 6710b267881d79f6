//! Starting one container: made, then started, and removed again if either fails or nobody
//! waits for it any more.

use std::sync::Arc;

use lca::{Error, InstanceId, Kind, Result, ServiceName};
use lca_engine::{
    Engine,
    bollard::query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, StartContainerOptions,
    },
};
use tokio::sync::oneshot;

use super::{Inner, body, found::Found, held::Held, network};
use crate::driver::{Container, Exit, Launch, Started, killed};

/// Starts `launch` and says how that went. Whoever does not wait for it any more gets
/// nothing, and nothing of it is left.
pub(super) async fn run(
    inner: Arc<Inner>,
    launch: Launch,
    answer: oneshot::Sender<Result<Started>>,
) {
    let id = launch.id;
    let started = begin(&inner, &launch).await;
    if started.is_err() {
        // Before it is said: another attempt may follow at once, under the same name.
        undo(&inner, id).await;
        inner.doubt_bridge().await;
    }
    if answer.send(started).is_err() {
        undo(&inner, id).await;
    }
}

async fn undo(inner: &Inner, id: InstanceId) {
    let held = inner.lock().held.remove(&id);
    if let Some(held) = held {
        // For those that have got hold of it meanwhile.
        held.end(Exit::Unwatched);
        inner.remove(&held).await;
    }
}

async fn begin(inner: &Inner, launch: &Launch) -> Result<Started> {
    let engine = inner.link.engine()?;
    let container = launch.program.image().map_err(|error| {
        Error::new(Kind::Internal, "what is to be started is no image").because(error)
    })?;
    inner.grants.check(container)?;
    let held = {
        let mut books = inner.lock();
        if books.killed {
            return Err(killed());
        }
        let held = Arc::new(Held::starting(launch.id, launch.allowance));
        books.held.insert(launch.id, held.clone());
        held
    };
    tokio::select! {
        biased;
        started = make(inner, &engine, launch, container, &held) => started,
        reason = inner.link.lost() => {
            let what = format!("{} was not started: {}", launch.service, reason.public());
            Err(Error::new(Kind::Unavailable, what))
        }
    }
}

async fn make(
    inner: &Inner,
    engine: &Engine,
    launch: &Launch,
    container: &Container,
    held: &Held,
) -> Result<Started> {
    let service = &launch.service;
    let (docker, name) = (engine.docker(), held.container());
    if !container.host_network {
        inner.bridge(engine).await?;
    }
    let body = body::of(launch, container, inner.node, &network::name(inner.node));
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let created = docker.create_container(Some(options), body);
    let created = inner.patiently(engine, "make its container", created).await;
    let created = created.map_err(|error| blame(service, error))?;
    for warning in created.warnings {
        tracing::debug!(%service, instance = %launch.id.short(), warning, "the engine warns");
    }
    let started = docker.start_container(&name, None::<StartContainerOptions>);
    let started = inner.patiently(engine, "start its container", started).await;
    started.map_err(|error| blame(service, error))?;
    let said = docker.inspect_container(&name, None::<InspectContainerOptions>);
    let found = match engine.call("look at its container", said).await {
        Ok(said) => Found::new(&said, &launch.allowance),
        // Removed by somebody while it was being started.
        Err(error) if error.kind() == Kind::NotFound => {
            Found { pid: 0, ip: None, exit: Some(Exit::Removed) }
        }
        Err(error) => return Err(error),
    };
    let address = (!container.host_network).then(|| found.address(container.port)).flatten();
    let books = inner.lock();
    if books.killed {
        return Err(killed());
    }
    held.is_there(&found, address);
    Ok(Started { pid: found.pid, start_time: 0 })
}

/// Why it did not start, in the words of the service.
fn blame(service: &ServiceName, error: Error) -> Error {
    let said = error.public().to_owned();
    let lower = said.to_ascii_lowercase();
    let kind = match error.kind() {
        Kind::Unavailable => return error,
        // The image has gone since it was looked for: another start fetches it again.
        Kind::NotFound if lower.contains("no such image") => Kind::Unavailable,
        _ => Kind::StartFailed,
    };
    Error::new(kind, format!("{service} was not started: {said}")).because(error)
}
