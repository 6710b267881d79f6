//! Which daemon is asked, and how it is reached.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use lca::{Kind, local};
use tokio::time::timeout;
use tonic::transport::Channel;
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

/// Where a daemon's local API is: `unix:PATH`, or a path alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

impl Address {
    /// The socket.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = match text.strip_prefix("unix:") {
            Some(path) => path.strip_prefix("//").unwrap_or(path),
            None => {
                let host_and_port = !text.contains('/')
                    && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                if text.contains("://") || host_and_port || text.parse::<SocketAddr>().is_ok() {
                    return Err("a daemon is reached through its socket: unix:PATH".into());
                }
                text
            }
        };
        match path {
            "" => Err("write it as unix:PATH".into()),
            path => Ok(Self(path.into())),
        }
    }
}

/// The sockets to try, in order.
pub(crate) fn sockets(global: &Global) -> Vec<PathBuf> {
    match &global.address {
        Some(address) => vec![address.0.clone()],
        None => local::sockets(&local::default_dir()),
    }
}

/// The daemon that was named, or the first on this machine that answers.
///
/// All are tried at the same time, so that one that takes connections and is stuck
/// delays the others by [`STUCK`] at most.
///
/// # Errors
/// [`Kind::Unavailable`] if there is none; [`Kind::Timeout`] if one is there that does
/// not answer.
pub(crate) async fn daemon(global: &Global) -> Result<Channel> {
    let sockets = sockets(global);
    // With nobody else to ask, almost all the time there is.
    let patience = if sockets.len() > 1 { STUCK } else { CONNECT - STUCK / 3 };
    let asked = sockets.iter().map(|socket| async move {
        let channel = local::connect(socket).await.ok()?;
        let alive = timeout(patience, answers(channel.clone())).await.is_ok();
        Some(if alive { Ok(channel) } else { Err(socket) })
    });
    let connected = timeout(CONNECT, futures::future::join_all(asked)).await.unwrap_or_default();
    let mut stuck = None;
    for answer in connected.into_iter().flatten() {
        match answer {
            Ok(channel) => return Ok(channel),
            Err(socket) => stuck = stuck.or(Some(socket)),
        }
    }
    Err(stuck.map_or_else(|| none(global), |socket| silent(socket)))
}

/// Resolves when the daemon has said anything at all.
async fn answers(channel: Channel) {
    let request = HealthCheckRequest::default();
    let _whatever_it_says = HealthClient::new(channel).check(request).await;
}

/// A daemon takes connections and does not answer.
fn silent(socket: &Path) -> Failure {
    let socket = socket.display();
    Failure::new(
        Kind::Timeout,
        format!("the daemon on {socket} takes connections and does not answer"),
    )
    .hint("it is stopped or stuck: end it and start it again")
}

/// No daemon answers.
pub(crate) fn none(global: &Global) -> Failure {
    match &global.address {
        Some(address) => {
            let socket = address.path().display();
            Failure::new(Kind::Unavailable, format!("no daemon answers on {socket}"))
                .hint("without --address and LCA_ADDRESS, the daemons of this user are found by themselves")
        }
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
            assert_eq!(text.parse::<Address>().unwrap().path(), Path::new(path));
        }
    }

    #[test]
    fn an_address_of_another_kind_is_refused() {
        for text in
            ["", "unix:", "127.0.0.1:1", "[::1]:1", "host:80", "http://x", "tcp://1.2.3.4:5"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
