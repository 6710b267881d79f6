//! Finds processes by the instance and the node that their environment names.
//!
//! Every process an instance starts inherits `LCA_INSTANCE_ID` and `LCA_NODE` unless it
//! takes care not to, so one look through `/proc` finds what a double fork with a session
//! of its own hid from `kill(-group)`, and what an earlier run of ours has forgotten. Only
//! a cgroup is complete. What runs in a container is left to the driver of containers.

use std::{fs, io};

use lca::{InstanceId, PeerId};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::driver::{INSTANCE_ENV, NODE_ENV};

/// What a process says it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Belongs {
    pub(super) instance: InstanceId,
    /// Who started the instance; `None` where it was not told.
    pub(super) node: Option<PeerId>,
}

/// Kills every process that belongs to what `ours` is true of. Returns how many. Blocks
/// for the milliseconds a look through `/proc` takes.
pub(super) fn kill_strays(ours: impl Fn(Belongs) -> bool) -> usize {
    processes().filter(|pid| kill_if(*pid, &ours)).count()
}

/// Every process that says it belongs to an instance. Blocks as [`kill_strays`] does.
pub(super) fn all() -> Vec<(i32, Belongs)> {
    processes().filter_map(|pid| Some((pid, belongs(pid).ok()??))).collect()
}

/// What process `pid` says it belongs to, if to an instance of this driver. Blocks on `/proc`.
pub(super) fn belongs(pid: i32) -> io::Result<Option<Belongs>> {
    let belongs = parse(&fs::read(format!("/proc/{pid}/environ"))?);
    Ok(belongs.filter(|_| !is_in_a_container(pid)))
}

/// Whether it has process numbers of its own, as in a container, which is told the same but
/// is somebody else's to end. Instances of ours cannot make such a namespace.
fn is_in_a_container(pid: i32) -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/pid"));
    match (namespace(&pid.to_string()), namespace("self")) {
        (Ok(its), Ok(ours)) => its != ours,
        _ => false, // not ours to look at, so not ours to kill either
    }
}

fn processes() -> impl Iterator<Item = i32> {
    // No /proc, no strays to be found.
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Kills the process if it is one of `ours`. It is looked at again once a descriptor of
/// it is held, so the signal cannot reach another process that got the same number in
/// between.
fn kill_if(pid: i32, ours: &impl Fn(Belongs) -> bool) -> bool {
    let killed = || -> io::Result<bool> {
        let process = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        if !belongs(pid)?.is_some_and(ours) {
            return Ok(false);
        }
        let handle = pidfd_open(process, PidfdFlags::empty())?;
        let still = belongs(pid)?.is_some_and(ours);
        if still {
            pidfd_send_signal(handle, Signal::KILL)?;
        }
        Ok(still)
    };
    killed().unwrap_or(false) // gone, or somebody else's
}

fn parse(environment: &[u8]) -> Option<Belongs> {
    let value = |name: &str| {
        let mut entries = environment.split(|byte| *byte == 0);
        let value =
            entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        std::str::from_utf8(value).ok()
    };
    let instance = value(INSTANCE_ENV)?.parse().ok()?;
    Some(Belongs { instance, node: value(NODE_ENV).and_then(|node| node.parse().ok()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_belongs_to_is_read_from_its_environment() {
        let (instance, node) = (InstanceId::random(), PeerId::from_public_key([7; 32]));
        let environment = format!("A=1\0XLCA_INSTANCE_ID=2\0LCA_INSTANCE_ID={instance}\0");
        assert_eq!(parse(environment.as_bytes()), Some(Belongs { instance, node: None }));
        let environment = format!("LCA_NODE={node}\0LCA_INSTANCE_ID={instance}\0");
        assert_eq!(parse(environment.as_bytes()), Some(Belongs { instance, node: Some(node) }));
        let environment = format!("LCA_NODE=nonsense\0LCA_INSTANCE_ID={instance}\0");
        assert_eq!(parse(environment.as_bytes()), Some(Belongs { instance, node: None }));
        assert_eq!(parse(b"LCA_INSTANCE_ID=nonsense\0"), None);
        assert_eq!(parse(b""), None);
    }
}
