//! The processes that belong to a test: those whose working folder is below its own.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// Processes whose working folder is `dir` or below, also if that has been removed.
pub fn below(dir: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inside =
        |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    pids.filter(inside).filter(|pid| *pid != std::process::id() as i32).collect()
}

/// Kills them.
pub fn kill_below(dir: &Path) {
    for pid in below(dir).into_iter().filter_map(Pid::from_raw) {
        let _gone_already = kill_process(pid, Signal::KILL);
    }
}
