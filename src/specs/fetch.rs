//! Getting an artifact from whichever registry has it.

use std::{path::PathBuf, time::Duration};

use tokio::time::timeout;

use super::registries::Registries;
use crate::{
    Digest, Error, Kind, Result, api::proto, artifact, endpoint::Endpoint, metrics::Metrics,
};

/// Longest wait for the next chunk before the next registry is tried.
const NO_PROGRESS: Duration = Duration::from_secs(10);
/// Longest for the whole: 2 GiB at 5 Mbit/s.
const WHOLE: Duration = Duration::from_secs(60 * 60);

/// Fetches an artifact into `store`, from the nearest registry that has it.
pub(super) async fn fetch(
    registries: &Registries,
    metrics: &Metrics,
    digest: Digest,
    store: &artifact::Store,
) -> Result<PathBuf> {
    let late = |_| Err(Error::new(Kind::Timeout, format!("{digest} took longer than {WHOLE:?}")));
    timeout(WHOLE, fetch_from_any(registries, metrics, digest, store)).await.unwrap_or_else(late)
}

async fn fetch_from_any(
    registries: &Registries,
    metrics: &Metrics,
    digest: Digest,
    store: &artifact::Store,
) -> Result<PathBuf> {
    let mut worst: Option<Error> = None;
    let mut candidates = registries.candidates();
    while let Some(registry) = candidates.next().await {
        let error = match fetch_one(registries, metrics, &registry, digest, store).await {
            Ok(path) => return Ok(path),
            // Our own disk: another registry does not help.
            Err(Failure::Ours(error)) => return Err(error),
            Err(Failure::Theirs(error)) => error,
        };
        if error.kind() != Kind::NotFound {
            registries.failed(registry.peer, &error);
        }
        tracing::warn!(registry = registry.peer.short(), error = error.chain(), "fetch failed");
        // What is said in the end is the worst of it: a forgery before a silence before
        // a plain lack.
        if worst.as_ref().is_none_or(|worst| weight(error.kind()) > weight(worst.kind())) {
            worst = Some(error);
        }
        if candidates.is_exhausted() {
            candidates.search();
        }
    }
    Err(worst.unwrap_or_else(|| {
        Error::new(Kind::Unavailable, format!("no registry can be reached to fetch {digest} from"))
            .retry_after(super::RETRY_AFTER)
    }))
}

fn weight(kind: Kind) -> u8 {
    match kind {
        Kind::NotFound => 0,
        Kind::StartFailed => 2,
        _ => 1,
    }
}

enum Failure {
    Ours(Error),
    Theirs(Error),
}

async fn fetch_one(
    registries: &Registries,
    metrics: &Metrics,
    registry: &Endpoint,
    digest: Digest,
    store: &artifact::Store,
) -> Result<PathBuf, Failure> {
    let who = format!("registry {}", registry.peer.short());
    let stalled = || {
        let what = format!("{who} sent nothing of {digest} for {NO_PROGRESS:?}");
        Failure::Theirs(Error::new(Kind::Timeout, what))
    };
    let theirs = |status: tonic::Status| Failure::Theirs(status.into());
    let mut client = registries.client(registry).await.map_err(Failure::Theirs)?;
    let request = proto::GetArtifactRequest { digest: digest.to_string() };
    let opened = timeout(NO_PROGRESS, client.get_artifact(request)).await;
    let mut chunks = opened.map_err(|_| stalled())?.map_err(theirs)?.into_inner();
    let mut incoming = None;
    loop {
        let next = timeout(NO_PROGRESS, chunks.message()).await.map_err(|_| stalled())?;
        let Some(chunk) = next.map_err(theirs)? else { break };
        let receiving = match &mut incoming {
            Some(receiving) => receiving,
            empty @ None => {
                let begun = store.begin(digest, chunk.size).await;
                empty.insert(begun.map_err(|error| blame(error, digest, &who))?)
            }
        };
        metrics.artifacts.received.inc_by(chunk.data.len() as u64);
        receiving.write(&chunk.data).await.map_err(|error| blame(error, digest, &who))?;
    }
    let Some(incoming) = incoming else {
        let what = format!("{who} sent nothing of {digest}");
        return Err(Failure::Theirs(Error::new(Kind::Internal, what)));
    };
    incoming.finish().await.map_err(|error| blame(error, digest, &who))
}

/// Whose fault it is that bytes could not be kept.
fn blame(error: Error, digest: Digest, who: &str) -> Failure {
    if error.kind() == Kind::InvalidArgument {
        let what = format!("artifact {digest} cannot be used: {who} sent something else: {error}");
        // What it means to whoever wanted the program: it does not start.
        Failure::Theirs(Error::new(Kind::StartFailed, what).because(error))
    } else {
        Failure::Ours(error)
    }
}
