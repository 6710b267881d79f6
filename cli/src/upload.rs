//! Uploads a program to a registry, never holding more of it than a few chunks.
//!
//! The digest is computed first, in a pass of its own, because an upload says up front
//! what it will be; a program that changes between the passes is refused by the
//! registry.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lca::{
    Digest, Error, Kind, Result,
    api::{
        self,
        proto::{
            ArtifactHeader, PutArtifactRequest, put_artifact_request::Part,
            registry_client::RegistryClient,
        },
    },
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::Api;

/// Bytes of one message: a quarter of what is allowed, and enough to keep a link busy.
const CHUNK: usize = 256 << 10;
/// Chunks read ahead of the registry.
const AHEAD: usize = 4;

/// A program on this machine, as it was when it was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// What it is called from now on.
    pub(crate) digest: Digest,
    /// Its length in bytes.
    pub(crate) size: u64,
}

impl Program {
    /// Reads the file through to learn its digest.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if there is none, or if it cannot be
    /// read, or is not an executable file.
    pub(crate) async fn read(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || digest(&path)).await
    }

    /// Has the registry keep it. One that it has already is not sent.
    ///
    /// # Errors
    /// What the registry answered; [`Kind::Timeout`] after five minutes;
    /// [`Kind::InvalidArgument`] if the file cannot be read any more.
    pub(crate) async fn upload(&self, registry: &mut RegistryClient<Api>) -> Result<()> {
        self.upload_counting(registry, Arc::default()).await
    }

    /// As [`upload`](Self::upload), adding what the connection has taken to `sent`, bytes.
    pub(crate) async fn upload_counting(
        &self,
        registry: &mut RegistryClient<Api>,
        sent: Arc<AtomicU64>,
    ) -> Result<()> {
        let (chunks, stream) = mpsc::channel(AHEAD);
        let header = ArtifactHeader { digest: self.digest.to_string(), size: self.size };
        let path = self.path.clone();
        // Ends by itself when the registry has answered and the stream is dropped.
        let reading = blocking(move || send(&path, header, &chunks, &sent));
        let what = "the registry";
        let putting = api::call(what, api::MAX_CALL, ReceiverStream::new(stream), |r| {
            registry.put_artifact(r)
        });
        let (read, put) = tokio::join!(reading, putting);
        // A file that cannot be read is why the registry saw too little.
        read?;
        put.map(drop)
    }
}

/// Uploads the program at `path` and says what it is called.
///
/// # Errors
/// As [`Program::read`] and [`Program::upload`].
pub(crate) async fn artifact(registry: &mut RegistryClient<Api>, path: &Path) -> Result<Digest> {
    let program = Program::read(path).await?;
    program.upload(registry).await?;
    Ok(program.digest)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Internal, "reading the program failed").because(error))?
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::new(Kind::InvalidArgument, format!("cannot read {}: {error}", path.display()))
}

fn digest(path: &Path) -> Result<Program> {
    let refused =
        |what: &str| Error::new(Kind::InvalidArgument, format!("{} {what}", path.display()));
    let about = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if !about.is_file() {
        return Err(refused("is not a file"));
    }
    if about.permissions().mode() & 0o111 == 0 {
        return Err(refused("is not executable").hint(format!("chmod +x {}", path.display())));
    }
    let mut hasher = Sha256::new();
    let mut size = 0;
    each_chunk(path, |chunk| {
        hasher.update(&chunk);
        size += chunk.len() as u64;
        true
    })?;
    match size {
        0 => Err(refused("is empty")),
        size => Ok(Program {
            path: path.to_owned(),
            digest: Digest::from_sha256(hasher.finalize().into()),
            size,
        }),
    }
}

fn send(
    path: &Path,
    header: ArtifactHeader,
    chunks: &mpsc::Sender<PutArtifactRequest>,
    sent: &AtomicU64,
) -> Result<()> {
    let give = |part| chunks.blocking_send(PutArtifactRequest { part: Some(part) }).is_ok();
    if !give(Part::Header(header)) {
        return Ok(()); // the answer says why nothing more is wanted
    }
    each_chunk(path, |chunk| {
        let size = chunk.len() as u64;
        let taken = give(Part::Data(chunk));
        sent.fetch_add(size, Ordering::Relaxed);
        taken
    })
}

/// Reads the file in chunks for as long as `wanted` says so.
fn each_chunk(path: &Path, mut wanted: impl FnMut(Vec<u8>) -> bool) -> Result<()> {
    let mut file = File::open(path).map_err(|error| unreadable(path, error))?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let limited = (&mut file).take(CHUNK as u64);
        let read = { limited }.read_to_end(&mut chunk).map_err(|error| unreadable(path, error))?;
        if read == 0 || !wanted(chunk) {
            return Ok(());
        }
    }
}
