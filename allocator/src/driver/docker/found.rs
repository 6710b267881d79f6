//! What the engine says of a container, as far as it matters: whether it runs, where it takes
//! requests, and how it ended. Pure.

use std::net::{IpAddr, SocketAddr};

use lca::Allowance;
use lca_engine::bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status,
};

use crate::driver::Exit;

/// A container as it was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its first process on this machine; 0 if it does not run.
    pub(super) pid: u32,
    /// Its own address, on the bridge.
    pub(super) ip: Option<IpAddr>,
    /// How it ended; `None` while it runs or is about to.
    pub(super) exit: Option<Exit>,
}

impl Found {
    pub(super) fn new(said: &ContainerInspectResponse, allowance: &Allowance) -> Self {
        let state = said.state.clone().unwrap_or_default();
        let networks = said.network_settings.as_ref().and_then(|all| all.networks.as_ref());
        let mut addresses = networks
            .into_iter()
            .flatten()
            .filter_map(|(_, endpoint)| endpoint.ip_address.as_deref()?.parse::<IpAddr>().ok());
        Self {
            pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            ip: addresses.next(),
            exit: exit(&state, allowance),
        }
    }

    /// Where it takes requests, if it listens on `port` of a network of its own.
    pub(super) fn address(&self, port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip?, port))
    }
}

fn exit(state: &ContainerState, allowance: &Allowance) -> Option<Exit> {
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok());
    match state.status {
        Some(Status::EXITED) => Some(match (code, state.oom_killed) {
            // One of its processes may have been killed long before it ended well.
            (Some(code), Some(true)) if code != 0 && code != of_signal(15) => {
                Exit::OutOfMemory(allowance.memory_bytes)
            }
            (Some(code), _) => of_code(code),
            (None, _) => Exit::Unwatched,
        }),
        // It runs no more, and what is left of it is on its way out.
        Some(Status::REMOVING | Status::DEAD) => Some(Exit::Removed),
        _ => None,
    }
}

/// What the code of a container means: of a program that a signal ended it is 128 and the
/// signal, as shells have it.
pub(super) fn of_code(code: i32) -> Exit {
    match code.checked_sub(128) {
        Some(signal @ 1..=64) => Exit::Signal(signal),
        _ => Exit::Code(code),
    }
}

const fn of_signal(signal: i32) -> i32 {
    128 + signal
}

#[cfg(test)]
mod tests {
    use lca_engine::bollard::models::{EndpointSettings, NetworkSettings};

    use super::*;

    fn ended(status: Status, code: i64, oom: bool) -> Option<Exit> {
        let state = ContainerState {
            status: Some(status),
            exit_code: Some(code),
            oom_killed: Some(oom),
            ..Default::default()
        };
        exit(&state, &Allowance::default())
    }

    #[test]
    fn each_end_is_told_apart() {
        let limit = Allowance::default().memory_bytes;
        for (status, code, oom, expected) in [
            (Status::RUNNING, 0, false, None),
            (Status::CREATED, 0, false, None),
            (Status::EXITED, 0, false, Some(Exit::Code(0))),
            (Status::EXITED, 3, false, Some(Exit::Code(3))),
            (Status::EXITED, 143, false, Some(Exit::Signal(15))),
            (Status::EXITED, 137, false, Some(Exit::Signal(9))),
            (Status::EXITED, 137, true, Some(Exit::OutOfMemory(limit))),
            (Status::EXITED, 1, true, Some(Exit::OutOfMemory(limit))),
            (Status::EXITED, 0, true, Some(Exit::Code(0))),
            (Status::EXITED, 255, false, Some(Exit::Code(255))),
            (Status::REMOVING, 137, false, Some(Exit::Removed)),
            (Status::DEAD, 137, false, Some(Exit::Removed)),
        ] {
            assert_eq!(ended(status, code, oom), expected, "{status:?} {code} {oom}");
        }
    }

    #[test]
    fn its_address_is_that_of_the_bridge() {
        let endpoint =
            |ip: &str| EndpointSettings { ip_address: Some(ip.to_owned()), ..Default::default() };
        let said = |ip| ContainerInspectResponse {
            network_settings: Some(NetworkSettings {
                networks: Some([("lca-1".to_owned(), endpoint(ip))].into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let found = Found::new(&said("172.20.0.2"), &Allowance::default());
        assert_eq!(found.address(80), Some("172.20.0.2:80".parse().unwrap()));
        // On the network of the machine it has none.
        assert_eq!(Found::new(&said(""), &Allowance::default()).address(80), None);
    }
}
