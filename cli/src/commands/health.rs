//! `lcactl health`: every daemon of this user on this machine, or the one named.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    time::Duration,
};

use lca::{Kind, api};
use serde::Serialize;
use tokio::{net::UnixStream, time::timeout};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    args::Global,
    connect::{self, Address},
    errors::{Failure, Result},
    output::Output,
    table::Table,
};

/// Younger than this, a socket that refuses may be about to be listened on.
const JUST_MADE: Duration = Duration::from_secs(1);
/// How long a daemon may take to say how it is. It asks nobody for that, and on a busy machine
/// too this is over within 5 s.
const ANSWER: Duration = Duration::from_secs(4);

#[derive(Serialize)]
struct Document {
    daemons: Vec<Daemon>,
}

#[derive(Serialize)]
struct Daemon {
    address: String,
    /// A killed daemon left its socket behind. It does not count: nobody is there.
    gone: bool,
    /// The socket that was left behind has been removed.
    removed: bool,
    /// As in `grpc.health.v1`, or null where nothing was answered.
    status: Option<&'static str>,
    error: Option<String>,
}

pub(super) async fn run(global: &Global, output: &mut Output) -> Result<()> {
    let asked = connect::addresses(global).into_iter().map(|address| daemon(address, global));
    let daemons = futures::future::join_all(asked).await;
    let there: Vec<_> = daemons.iter().filter(|daemon| !daemon.gone).collect();
    if there.is_empty() {
        return Err(connect::none(global));
    }
    let serving = Some(ServingStatus::Serving.as_str_name());
    let (total, failing) =
        (there.len(), there.iter().filter(|daemon| daemon.status != serving).count());
    let document = Document { daemons };
    output.data(&document, || table(&document.daemons))?;
    let are = if failing == 1 { "is" } else { "are" };
    match failing {
        0 => Ok(()),
        _ => Err(Failure::new(
            Kind::Unavailable,
            format!("{failing} of {total} daemons {are} not serving"),
        )),
    }
}

async fn daemon(at: Address, global: &Global) -> Daemon {
    let address = at.to_string();
    if let Address::Socket(socket) = &at
        && let Err(error) = UnixStream::connect(socket).await
        && matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
    {
        let removed = error.kind() == io::ErrorKind::ConnectionRefused && remove(socket).is_ok();
        let what = if removed { "its socket is removed" } else { "or never was" };
        let error = Some(format!("nobody listens here: the daemon was killed, {what}"));
        return Daemon { address, gone: true, removed, status: None, error };
    }
    let answer = timeout(ANSWER, ask(&at, global)).await.unwrap_or_else(|_| {
        Err(lca::Error::new(Kind::Timeout, format!("did not answer within {ANSWER:?}")))
    });
    let there = Daemon { address, gone: false, removed: false, status: None, error: None };
    match answer {
        Ok(status) => Daemon { status: Some(status.as_str_name()), ..there },
        Err(error) => Daemon { error: Some(error.public().to_owned()), ..there },
    }
}

/// Removes what a killed daemon left behind: a socket of this user's, and not one that
/// is just being made, which refuses connections for a moment.
fn remove(path: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    let ours = found.uid() == rustix::process::geteuid().as_raw();
    let age = found.modified()?.elapsed().unwrap_or_default();
    if !found.file_type().is_socket() || !ours || age < JUST_MADE {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    std::fs::remove_file(path)
}

async fn ask(address: &Address, global: &Global) -> lca::Result<ServingStatus> {
    let mut health = HealthClient::new(connect::to(address, global).await?);
    let answer = health.check(api::within(ANSWER, HealthCheckRequest::default())).await?;
    Ok(answer.into_inner().status())
}

fn table(daemons: &[Daemon]) -> Table {
    let mut table = Table::new(["DAEMON", "STATUS", "DETAIL"]);
    for Daemon { address, gone, status, error, .. } in daemons {
        let otherwise = if *gone { "gone" } else { "silent" };
        let status = status.unwrap_or(otherwise).replace('_', " ").to_lowercase();
        table.row([address.clone(), status, error.clone().unwrap_or_default()]);
    }
    table
}
