//! `lcactl doctor`: walks the chain from this machine's socket to an instance and names
//! the first link that is broken, with the fix.
//!
//! It works with any part down: what cannot be looked at is said not to have been, every
//! question has a deadline, and all together take less than 10 s.

mod chain;
mod request;

use std::time::Duration;

use lca::{
    Kind,
    api::{
        self,
        proto::{DiagnoseRequest, DiagnoseResponse, node_client::NodeClient},
    },
    local,
};
use serde::Serialize;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::{
    args::{Doctor as Args, Global},
    connect::{self, Address, Api},
    errors::{Failure, Result},
    output::Output,
    table::Table,
};

/// Longest a connection to a socket may take: it is on this machine.
const CONNECT: Duration = Duration::from_millis(500);
/// Longest the daemon may take to look around: it gives its peers 4 s.
const DIAGNOSE: Duration = Duration::from_millis(4500);

/// How one link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// It holds, but something that belongs to it is missing.
    Warning,
    /// Nothing works beyond it.
    Broken,
    /// It was not looked at, because something before it is broken.
    Skipped,
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Link {
    name: &'static str,
    state: State,
    detail: String,
    /// What to do about it; empty where nothing is to be done.
    fix: String,
}

impl Link {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), fix: String::new() }
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Warning, detail: detail.into(), fix: fix.into() }
    }

    fn broken(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Broken, detail: detail.into(), fix: fix.into() }
    }

    fn skipped(name: &'static str) -> Self {
        Self { name, state: State::Skipped, detail: String::new(), fix: String::new() }
    }
}

#[derive(Serialize)]
struct Document {
    links: Vec<Link>,
    /// The name of the first that is broken, or null.
    first_broken: Option<&'static str>,
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let (socket, channel) = socket(global).await;
    let (daemon, told) = match channel {
        Some(channel) => daemon(channel).await,
        None => (Link::skipped("daemon"), None),
    };
    let mut links = vec![socket, daemon];
    links.extend(chain::links(told.as_ref()));
    let whole = links.iter().all(|link| matches!(link.state, State::Ok | State::Warning));
    links.push(match (told, args.service) {
        (Some(told), Some(service)) if whole => request::link(&told, &service).await,
        (Some(told), None) if whole => chain::nearest(&told),
        _ => Link::skipped("round trip"),
    });
    let first = links.iter().find(|link| link.state == State::Broken).cloned();
    let document = Document { links, first_broken: first.as_ref().map(|link| link.name) };
    output.data(&document, || table(&document.links))?;
    for Link { name, fix, .. } in document.links.iter().filter(|l| l.state == State::Warning) {
        output.note(&format!("warning: {name}: {fix}"));
    }
    match first {
        None => Ok(()),
        Some(Link { name, detail, fix, .. }) => {
            let sentence = format!("the first broken link is the {name}: {detail}");
            Err(Failure::new(Kind::Unavailable, sentence).hint(fix))
        }
    }
}

/// Whether there is a socket that somebody listens on: the one named, or the first.
async fn socket(global: &Global) -> (Link, Option<Api>) {
    const NAME: &str = "socket";
    const START: &str = "start a daemon, such as `lcactl up`, or name its socket with --address";
    let mut why = format!("there is none in {}", local::default_dir().display());
    for address in connect::addresses(global) {
        let path = address.plain();
        let connected = async {
            match &address {
                Address::Socket(socket) => UnixStream::connect(socket).await.map(drop),
                Address::Tcp(address) => TcpStream::connect(address).await.map(drop),
            }
        };
        match timeout(CONNECT, connected).await {
            Ok(Ok(())) => match timeout(CONNECT, connect::to(&address, global)).await {
                Ok(Ok(channel)) => return (Link::ok(NAME, path), Some(channel)),
                Ok(Err(error)) if error.kind() == Kind::FailedPrecondition => {
                    why = error.public().to_owned();
                }
                _ => why = format!("{path} does not speak gRPC"),
            },
            Ok(Err(error)) => why = format!("{path}: {error}"),
            Err(_) => why = format!("{path} takes no connection within {CONNECT:?}"),
        }
    }
    (Link::broken(NAME, why, START), None)
}

/// Whether the daemon answers, and what it says.
async fn daemon(channel: Api) -> (Link, Option<DiagnoseResponse>) {
    const NAME: &str = "daemon";
    let mut node = NodeClient::new(channel).max_decoding_message_size(api::MAX_ANSWER);
    match api::call("it", DIAGNOSE, DiagnoseRequest {}, |r| node.diagnose(r)).await {
        Ok(told) => {
            let up = crate::view::age(told.uptime_ms);
            let what = format!(
                "{} {}, version {}, up for {up}, data in {}",
                told.roles.join(","),
                crate::view::short_peer(&told.peer),
                told.version,
                told.data_dir,
            );
            (Link::ok(NAME, what), Some(told))
        }
        Err(error) if error.kind() == Kind::NotAllowed => {
            let fix = "stop it and start one of this version";
            (Link::broken(NAME, "it is older than this lcactl", fix), None)
        }
        Err(error) => {
            // A daemon that answers knows best what is amiss, such as a missing token.
            let stuck = "it is stopped or stuck: end it and start it again";
            let fix = error.hint_text().unwrap_or(stuck).to_owned();
            (Link::broken(NAME, error.public(), fix), None)
        }
    }
}

fn table(links: &[Link]) -> Table {
    let mut table = Table::new(["LINK", "STATE", "DETAIL"]);
    for Link { name, state, detail, .. } in links {
        let state = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Broken => "broken",
            State::Skipped => "not looked at",
        };
        table.row([(*name).to_owned(), state.to_owned(), detail.clone()]);
    }
    table
}
