//! Artifacts coming in and going out, a chunk at a time, as fast as the slower side.

use std::time::Duration;

use bytes::BytesMut;
use futures::{Stream, stream};
use lca::{
    Digest, Error, Kind, Result,
    api::proto::{self, put_artifact_request::Part},
    artifact,
    metrics::{Counter, Metrics},
};
use tokio::{fs::File, io::AsyncReadExt as _, sync::OwnedSemaphorePermit, time::timeout};
use tonic::{Status, Streaming};

use super::invalid;

/// Most bytes of a chunk that is taken.
const MAX_CHUNK: usize = 1 << 20;
/// Bytes of a chunk that is sent: enough to keep a 1 Gbit/s link busy, and small beside
/// the windows of a connection that has other calls.
const CHUNK: usize = 256 << 10;
/// Longest wait for the next chunk of an upload: a link that is worse carries nothing.
const NO_PROGRESS: Duration = Duration::from_secs(30);

/// Takes an upload. Nothing of it is kept unless all of it is right.
pub(super) async fn receive(
    store: &artifact::Store,
    metrics: &Metrics,
    mut parts: Streaming<proto::PutArtifactRequest>,
) -> Result<proto::PutArtifactResponse> {
    let Some(Part::Header(header)) = next(&mut parts).await? else {
        return Err(invalid("an upload begins with its header"));
    };
    let digest: Digest = header.digest.parse()?;
    if let Some(path) = store.get(digest) {
        let size = tokio::fs::metadata(path).await.map(|found| found.len());
        let size = size.map_err(|error| unreadable(digest, error))?;
        let digest = digest.to_string();
        return Ok(proto::PutArtifactResponse { digest, size, existed: true });
    }
    let mut incoming = store.begin(digest, header.size).await?;
    while let Some(part) = next(&mut parts).await? {
        match part {
            Part::Data(data) if data.len() <= MAX_CHUNK => {
                metrics.artifacts.received.inc_by(data.len() as u64);
                incoming.write(&data).await?;
            }
            Part::Data(_) => return Err(invalid("a chunk has at most 1 MiB")),
            Part::Header(_) => return Err(invalid("an upload has one header")),
        }
    }
    incoming.finish().await?;
    tracing::info!(%digest, bytes = header.size, "artifact stored");
    let digest = digest.to_string();
    Ok(proto::PutArtifactResponse { digest, size: header.size, existed: false })
}

async fn next(parts: &mut Streaming<proto::PutArtifactRequest>) -> Result<Option<Part>> {
    let message = timeout(NO_PROGRESS, parts.message()).await.map_err(|_| {
        Error::new(Kind::Timeout, format!("no chunk came within {NO_PROGRESS:?}"))
    })??;
    match message {
        Some(message) => {
            message.part.map(Some).ok_or_else(|| invalid("a message of an upload is empty"))
        }
        None => Ok(None),
    }
}

/// Reads an artifact as its client takes it.
pub(super) async fn send(
    store: &artifact::Store,
    metrics: &Metrics,
    digest: Digest,
    permit: OwnedSemaphorePermit,
) -> Result<impl Stream<Item = Result<proto::ArtifactChunk, Status>> + Send + use<>> {
    let path = store.get(digest).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("artifact {digest} is not in this registry"))
    })?;
    let file = File::open(path).await.map_err(|error| unreadable(digest, error))?;
    let size = file.metadata().await.map_err(|error| unreadable(digest, error))?.len();
    let sent = metrics.artifacts.sent.clone();
    let begin = Reading { file, size, first: true, sent, permit };
    Ok(stream::unfold(Some(begin), move |reading| async move {
        let mut reading = reading?;
        match reading.chunk().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(unreadable(digest, error).into()), None)),
        }
    }))
}

struct Reading {
    file: File,
    size: u64,
    first: bool,
    sent: Counter,
    #[expect(dead_code, reason = "held for as long as the client reads")]
    permit: OwnedSemaphorePermit,
}

impl Reading {
    /// The next chunk; the first comes even if there are no bytes.
    async fn chunk(&mut self) -> std::io::Result<Option<proto::ArtifactChunk>> {
        let mut data = BytesMut::with_capacity(CHUNK);
        // Reads into what room there is, so never more than a chunk.
        while data.len() < CHUNK && self.file.read_buf(&mut data).await? > 0 {}
        let first = std::mem::take(&mut self.first);
        if data.is_empty() && !first {
            return Ok(None);
        }
        self.sent.inc_by(data.len() as u64);
        let size = if first { self.size } else { 0 };
        Ok(Some(proto::ArtifactChunk { data: data.freeze(), size }))
    }
}

fn unreadable(digest: Digest, error: std::io::Error) -> Error {
    Error::new(Kind::Internal, format!("cannot read artifact {digest}: {error}")).because(error)
}
