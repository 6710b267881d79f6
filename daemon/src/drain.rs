//! `allocator --drain`: tells the daemon that uses the same data folder to accept nothing
//! more, and waits until it has stopped.
//!
//! The daemon goes on with it whatever becomes of this command, which only watches.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use lca::{
    Error, Exit, Kind, Result,
    api::proto::{DrainProgress, DrainRequest, operation_client::OperationClient},
    local,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::transport::Channel;

/// Where a daemon notes in its data folder which socket it serves.
const NOTE: &str = "local-api";

/// Notes the socket of the daemon that uses `dir`. Without the note only this command does
/// not find it, so a failure is logged.
pub(crate) fn note(dir: &Path, socket: &Path) {
    let write = || {
        let new = dir.join("local-api.new");
        fs::write(&new, socket.as_os_str().as_encoded_bytes())?;
        fs::rename(new, dir.join(NOTE))
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "`allocator --drain` will not find this daemon");
    }
}

/// Drains the allocator of `dir`, for at most `within`.
///
/// # Errors
/// If none runs there.
pub(crate) async fn run(dir: &Path, within: Option<Duration>) -> Result<Exit> {
    let none = || {
        Error::new(Kind::Unavailable, format!("no allocator runs in {}", dir.display()))
            .hint("name its data folder with --data-dir")
    };
    let socket = fs::read(dir.join(NOTE)).map_err(|error| none().because(error))?;
    let socket = PathBuf::from(String::from_utf8(socket).map_err(|error| none().because(error))?);
    let channel = local::connect(&socket).await.map_err(|error| none().because(error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| {
        Error::new(Kind::Internal, "cannot install a signal handler").because(error)
    })?;
    let forever = Duration::MAX;
    tokio::select! {
        drained = timeout(within.unwrap_or(forever), watch(OperationClient::new(channel))) => {
            match drained {
                Ok(drained) => drained.map(|()| {
                    say("drained, and stopped");
                    Exit::Success
                }),
                Err(_) => {
                    say("not drained within that time; the allocator goes on draining");
                    Ok(Exit::Unavailable)
                }
            }
        }
        _ = interrupt.recv() => {
            say("the allocator goes on draining");
            Ok(Exit::Interrupted)
        }
    }
}

/// Says what is left until nothing is.
async fn watch(mut client: OperationClient<Channel>) -> Result<()> {
    let mut progress = client.drain(DrainRequest {}).await?.into_inner();
    while let Some(DrainProgress { instances, requests, done }) = progress.message().await? {
        if done {
            return Ok(());
        }
        say(&format!("{instances} instances left, {requests} requests open"));
    }
    Err(Error::new(Kind::Unavailable, "the allocator stopped before it was drained"))
}

fn say(what: &str) {
    // With nobody to read it there is nobody to tell.
    let _unread = writeln!(io::stderr(), "{what}");
}
