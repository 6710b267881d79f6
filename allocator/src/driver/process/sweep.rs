//! Finds processes of an instance that left its process group.
//!
//! Every process an instance starts inherits `LCA_INSTANCE_ID` in its environment
//! unless it takes care not to, so one look through `/proc` finds what a double fork
//! with a session of its own hid from `kill(-group)`. Only a cgroup is complete.

use std::{fs, io};

use lca::InstanceId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::driver::INSTANCE_ENV;

/// Kills every process whose environment names an instance for which `ours` is true.
/// Returns how many. Blocks for the milliseconds a look through `/proc` takes.
pub(super) fn kill_strays(ours: impl Fn(InstanceId) -> bool) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0; // no /proc, no strays to be found
    };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| kill_if(*pid, &ours)).count()
}

/// Kills the process if its environment names one of `ours`. It is looked at again once
/// a descriptor of it is held, so the signal cannot reach another process that got the
/// same number in between.
fn kill_if(pid: i32, ours: &impl Fn(InstanceId) -> bool) -> bool {
    let killed = || -> io::Result<bool> {
        let process = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let environment = fs::read(format!("/proc/{pid}/environ"))?;
        if !instance_of(&environment).is_some_and(ours) {
            return Ok(false);
        }
        let handle = pidfd_open(process, PidfdFlags::empty())?;
        let again = fs::read(format!("/proc/{pid}/environ"))?;
        let still = instance_of(&again).is_some_and(ours);
        if still {
            pidfd_send_signal(handle, Signal::KILL)?;
        }
        Ok(still)
    };
    killed().unwrap_or(false) // gone, or somebody else's
}

fn instance_of(environment: &[u8]) -> Option<InstanceId> {
    let mut entries = environment.split(|byte| *byte == 0);
    let id = entries
        .find_map(|entry| entry.strip_prefix(INSTANCE_ENV.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_read_from_an_environment() {
        let id = InstanceId::random();
        let environment = format!("A=1\0XLCA_INSTANCE_ID=2\0LCA_INSTANCE_ID={id}\0");
        assert_eq!(instance_of(environment.as_bytes()), Some(id));
        assert_eq!(instance_of(b"LCA_INSTANCE_ID=nonsense\0"), None);
        assert_eq!(instance_of(b""), None);
    }
}
