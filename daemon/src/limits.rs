//! Descriptors: as many as the system gives, and connections within them, so that a
//! daemon refuses work before it cannot even open a file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For libp2p, the local API, files and instances' output: half of few, and never more
/// than this of many.
const RESERVE: usize = 1024;
/// Of those that remain, what one connection costs: itself, and the one beyond it.
const EACH: usize = 2;
/// Of the reserve, what a daemon that runs nothing has open: its listeners, its files,
/// a few peers.
const OWN: usize = 24;
/// What one instance costs of it: its front, and its output or a look at it.
const INSTANCE: usize = 2;
/// Never more, however many descriptors there are: memory is bounded too.
pub(crate) const MOST: usize = 4096;
/// Never fewer: with less nothing works, and the limit is not ours.
const LEAST: usize = 4;
/// What we count on where there is no limit.
const UNLIMITED: usize = 1 << 20;

/// What this process may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// How many there are.
    pub count: usize,
    /// The soft limit we were started with, which is what our instances start with; `None`
    /// if there was none.
    pub given: Option<u64>,
}

/// Raises the soft limit to the hard one.
pub fn raise() -> Descriptors {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let now = getrlimit(Resource::Nofile).current;
    let count = now.map_or(UNLIMITED, |now| usize::try_from(now).unwrap_or(UNLIMITED));
    Descriptors { count, given: current }
}

/// What fits into a daemon's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Connections at once, for each of its listeners.
    pub connections: usize,
    /// Programs of this machine that have the local API open, by each of its listeners.
    pub programs: usize,
    /// Instances, if it is an allocator.
    pub instances: u32,
}

impl Room {
    /// Of each where `daemons` in one process share `descriptors`.
    pub fn of(descriptors: usize, daemons: usize) -> Self {
        let each = descriptors / daemons.max(1);
        // Peers over the mesh, libp2p, and this machine's programs at the front.
        let connections = connections(each, 3);
        Self { connections, programs: programs(connections), instances: instances(each) }
    }
}

/// Connections that a listener may have at once where `listeners` share `descriptors`.
fn connections(descriptors: usize, listeners: usize) -> usize {
    let left = descriptors - reserve(descriptors);
    (left / (EACH * listeners.max(1))).clamp(LEAST, MOST)
}

/// Programs of this machine that may have the local API open at once, by each of its two
/// listeners, beside `connections` of libp2p: those cost one descriptor each where two were
/// counted, and the others are for programs.
fn programs(connections: usize) -> usize {
    (connections / 2).clamp(LEAST, lca::local::CONNECTIONS)
}

/// Instances that can run within `descriptors`; one, however few there are.
fn instances(descriptors: usize) -> u32 {
    let most = reserve(descriptors).saturating_sub(OWN) / INSTANCE;
    u32::try_from(most).unwrap_or(u32::MAX).max(1)
}

fn reserve(descriptors: usize) -> usize {
    RESERVE.min(descriptors / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_descriptors() {
        assert_eq!(connections(1 << 20, 2), MOST);
        assert_eq!(connections(64, 2), 8);
        assert_eq!(connections(0, 2), LEAST);
        for descriptors in [64, 256, 1024, 4096, 65_536] {
            assert!(connections(descriptors, 2) * EACH * 2 <= descriptors);
            // Peers, this machine's requests, libp2p, and programs by socket and by TCP.
            let each = connections(descriptors, 3);
            assert!(each * (EACH + EACH + 1) + programs(each) * 2 <= descriptors, "{descriptors}");
        }
        assert_eq!((programs(MOST), programs(85), programs(5)), (1024, 42, LEAST));
    }

    #[test]
    fn instances_fit_into_what_connections_leave() {
        assert_eq!((instances(0), instances(64), instances(1 << 20)), (1, 4, 500));
        for descriptors in [64, 256, 1024, 4096, 65_536] {
            let left = descriptors - connections(descriptors, 3) * EACH * 3;
            assert!(instances(descriptors) as usize * INSTANCE + OWN <= left, "{descriptors}");
        }
    }

    #[test]
    fn daemons_of_one_process_share_its_descriptors() {
        assert_eq!(Room::of(256, 1), Room { connections: 21, programs: 10, instances: 52 });
        assert_eq!(Room::of(1024, 4), Room::of(256, 1));
        assert_eq!(Room::of(64, 34), Room { connections: LEAST, programs: LEAST, instances: 1 });
    }
}
