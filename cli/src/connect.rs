//! Which daemon is asked, and how it is reached.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use lca::{
    Kind,
    local::{self, Token},
};
use tokio::time::timeout;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    args::Global,
    errors::{Failure, Result},
};

/// How long a call may take that only looks something up: longer than a daemon waits
/// for the peers it relays to, and over with whatever comes before it within 5 s.
pub(crate) const ANSWER: Duration = Duration::from_millis(4800);
/// How long all sockets together may take to be tried.
const CONNECT: Duration = Duration::from_secs(4);
/// How long one daemon of several may take to say anything: it is on this machine.
const STUCK: Duration = Duration::from_millis(1500);

/// Where a daemon's local API is: `unix:PATH`, a path alone, or `http://127.0.0.1:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Socket(PathBuf),
    /// A port on this machine, which asks for the daemon's token.
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(authority) = text.strip_prefix("http://") {
            return tcp(authority.strip_suffix('/').unwrap_or(authority)).map(Self::Tcp);
        }
        let path = match text.strip_prefix("unix:") {
            Some(path) => path.strip_prefix("//").unwrap_or(path),
            None => {
                let host_and_port = !text.contains('/')
                    && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                if text.contains("://") || host_and_port || text.parse::<SocketAddr>().is_ok() {
                    return Err(FORMS.into());
                }
                text
            }
        };
        match path {
            "" => Err(FORMS.into()),
            path => Ok(Self::Socket(path.into())),
        }
    }
}

impl Address {
    /// As people are told it: a socket by its path alone.
    pub(crate) fn plain(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Tcp(_) => self.to_string(),
        }
    }
}

const FORMS: &str = "write it as unix:PATH or http://127.0.0.1:PORT";

/// The port of this machine behind `http://`. Others are refused: the token would travel in
/// the clear, and no daemon of ours listens there.
fn tcp(authority: &str) -> Result<SocketAddr, String> {
    let named = authority.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address: SocketAddr =
        named.as_deref().unwrap_or(authority).parse().map_err(|_| FORMS.to_owned())?;
    match address.ip().to_canonical().is_loopback() {
        true => Ok(address),
        false => Err("a daemon answers on its own machine only; use `ssh -L` to get there".into()),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

/// A daemon that can be called.
pub(crate) type Api = InterceptedService<Channel, Bearer>;

/// Adds the token to every call where one is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

/// The daemon behind a unix socket, which asks for no token.
pub(crate) async fn socket(path: &Path) -> lca::Result<Api> {
    Ok(InterceptedService::new(local::connect(path).await?, Bearer::default()))
}

/// The daemon at `address`, with the token that was given.
pub(crate) async fn to(address: &Address, global: &Global) -> lca::Result<Api> {
    match address {
        Address::Socket(path) => socket(path).await,
        Address::Tcp(address) => {
            let bearer = Bearer(token(global)?.map(|token| token.bearer()));
            Ok(InterceptedService::new(local::tcp::connect(*address).await?, bearer))
        }
    }
}

/// From `--token-file`, else from `LCA_TOKEN`, which no process list shows.
fn token(global: &Global) -> lca::Result<Option<Token>> {
    match (&global.token_file, std::env::var("LCA_TOKEN")) {
        (Some(file), _) => Token::load(file).map(Some),
        (None, Ok(text)) if !text.is_empty() => Token::parse(&text).map(Some),
        _ => Ok(None),
    }
}

/// The addresses to try, in order.
pub(crate) fn addresses(global: &Global) -> Vec<Address> {
    match &global.address {
        Some(address) => vec![address.clone()],
        None => local::sockets(&local::default_dir()).into_iter().map(Address::Socket).collect(),
    }
}

/// The daemon that was named, or the first on this machine that answers.
///
/// All are tried at the same time, so that one that takes connections and is stuck
/// delays the others by [`STUCK`] at most.
///
/// # Errors
/// [`Kind::Unavailable`] if there is none; [`Kind::Timeout`] if one is there that does
/// not answer; what is wrong with the token.
pub(crate) async fn daemon(global: &Global) -> Result<Api> {
    let addresses = addresses(global);
    // With nobody else to ask, almost all the time there is.
    let patience = if addresses.len() > 1 { STUCK } else { CONNECT - STUCK / 3 };
    let asked = addresses.iter().map(|address| async move {
        let channel = match to(address, global).await {
            Err(error) if error.kind() == Kind::Unavailable => return None,
            Err(error) => return Some(Err(error.into())),
            Ok(channel) => channel,
        };
        Some(match timeout(patience, answers(channel.clone())).await {
            Ok(true) => Ok(channel),
            Ok(false) => Err(stranger(address)),
            Err(_) => Err(silent(address)),
        })
    });
    let connected = timeout(CONNECT, futures::future::join_all(asked)).await.unwrap_or_default();
    let mut failed = None;
    for answer in connected.into_iter().flatten() {
        match answer {
            Ok(channel) => return Ok(channel),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    Err(failed.unwrap_or_else(|| none(global)))
}

/// Resolves when whoever listens has said anything at all; false if it was no gRPC.
async fn answers(channel: Api) -> bool {
    let request = HealthCheckRequest::default();
    let said = HealthClient::new(channel).check(request).await;
    // What a server says has no cause on this side of the connection.
    said.err().is_none_or(|status| std::error::Error::source(&status).is_none())
}

/// Something else listens, such as the port for peers, which speaks TLS.
fn stranger(address: &Address) -> Failure {
    let what = format!("what listens on {} does not speak gRPC without TLS", address.plain());
    Failure::new(Kind::Unavailable, what).hint(
        "the address for programs is the line `gRPC` of a daemon's report; others are for peers",
    )
}

/// A daemon takes connections and does not answer.
fn silent(address: &Address) -> Failure {
    let what = format!("the daemon on {} takes connections and does not answer", address.plain());
    Failure::new(Kind::Timeout, what).hint("it is stopped or stuck: end it and start it again")
}

/// No daemon answers.
pub(crate) fn none(global: &Global) -> Failure {
    match &global.address {
        Some(address) => Failure::new(
            Kind::Unavailable,
            format!("no daemon answers on {}", address.plain()),
        )
        .hint(
            "without --address and LCA_ADDRESS, the daemons of this user are found by themselves",
        ),
        None => {
            let dir = local::default_dir();
            Failure::new(Kind::Unavailable, format!("no daemon answers in {}", dir.display()))
                .hint("start one with `lcactl up`, or name its socket with --address")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_with_or_without_its_scheme() {
        for (text, path) in [
            ("unix:/run/x.sock", "/run/x.sock"),
            ("unix:///run/x.sock", "/run/x.sock"),
            ("/run/x:80", "/run/x:80"),
            ("./proxy.sock", "./proxy.sock"),
            ("unix:a:1", "a:1"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), Address::Socket(path.into()));
        }
    }

    #[test]
    fn a_port_is_named_by_its_url() {
        for (text, address) in [
            ("http://127.0.0.1:4210", "127.0.0.1:4210"),
            ("http://localhost:4210/", "127.0.0.1:4210"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), Address::Tcp(address.parse().unwrap()));
        }
    }

    #[test]
    fn an_address_of_another_kind_or_of_another_machine_is_refused() {
        for text in [
            "",
            "unix:",
            "127.0.0.1:1",
            "[::1]:1",
            "host:80",
            "http://x",
            "http://host:80",
            "http://localhost",
            "http://10.0.0.1:4210",
            "http://127.0.0.1:4210/x",
            "https://127.0.0.1:4210",
            "tcp://1.2.3.4:5",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
