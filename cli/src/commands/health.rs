//! `lcactl health`: every daemon of this user on this machine, or the one named.

use std::{
    io,
    path::{Path, PathBuf},
};

use lca::{Kind, api, local};
use serde::Serialize;
use tokio::{net::UnixStream, time::timeout};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    args::Global,
    connect,
    errors::{Failure, Result},
    output::Output,
    table::Table,
};

#[derive(Serialize)]
struct Document {
    daemons: Vec<Daemon>,
}

#[derive(Serialize)]
struct Daemon {
    address: String,
    /// A killed daemon left its socket behind. It does not count: nobody is there.
    gone: bool,
    /// As in `grpc.health.v1`, or null where nothing was answered.
    status: Option<&'static str>,
    error: Option<String>,
}

pub(super) async fn run(global: &Global, output: &mut Output) -> Result<()> {
    let asked = connect::sockets(global).into_iter().map(daemon);
    let daemons = futures::future::join_all(asked).await;
    let there: Vec<_> = daemons.iter().filter(|daemon| !daemon.gone).collect();
    if there.is_empty() {
        return Err(connect::none(global));
    }
    let serving = Some(ServingStatus::Serving.as_str_name());
    let (total, failing) =
        (there.len(), there.iter().filter(|daemon| daemon.status != serving).count());
    let document = Document { daemons };
    output.data(&document, || table(&document.daemons).to_string())?;
    let are = if failing == 1 { "is" } else { "are" };
    match failing {
        0 => Ok(()),
        _ => Err(Failure::new(
            Kind::Unavailable,
            format!("{failing} of {total} daemons {are} not serving"),
        )),
    }
}

async fn daemon(socket: PathBuf) -> Daemon {
    let address = format!("unix:{}", socket.display());
    if let Err(error) = UnixStream::connect(&socket).await
        && matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
    {
        let error = Some("nobody listens here: the daemon was killed, or never was".to_owned());
        return Daemon { address, gone: true, status: None, error };
    }
    let answer = timeout(connect::ANSWER, ask(&socket)).await.unwrap_or_else(|_| {
        Err(lca::Error::new(Kind::Timeout, format!("did not answer within {:?}", connect::ANSWER)))
    });
    match answer {
        Ok(status) => {
            Daemon { address, gone: false, status: Some(status.as_str_name()), error: None }
        }
        Err(error) => {
            Daemon { address, gone: false, status: None, error: Some(error.public().to_owned()) }
        }
    }
}

async fn ask(socket: &Path) -> lca::Result<ServingStatus> {
    let mut health = HealthClient::new(local::connect(socket).await?);
    let answer = health.check(api::within(connect::ANSWER, HealthCheckRequest::default())).await?;
    Ok(answer.into_inner().status())
}

fn table(daemons: &[Daemon]) -> Table {
    let mut table = Table::new(["DAEMON", "STATUS", "DETAIL"]);
    for Daemon { address, gone, status, error } in daemons {
        let otherwise = if *gone { "gone" } else { "silent" };
        let status = status.unwrap_or(otherwise).replace('_', " ").to_lowercase();
        table.row([address.clone(), status, error.clone().unwrap_or_default()]);
    }
    table
}
