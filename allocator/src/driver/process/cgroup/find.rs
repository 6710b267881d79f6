//! Which control groups this process may make groups in, and the folder for them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    files::{make, put},
    layout,
};

/// What groups below one are given to set, as `cgroup.subtree_control` wants it.
pub(super) const HANDED_DOWN: &str = "+cpu +memory +pids";
/// Where we move ourselves in version 2, whose groups hold either processes or groups.
const OURSELVES: &str = "lca-daemon";

/// The folder for groups in version 2, with the controllers handed down to it.
pub(super) fn unified(own: &Path, name: &str) -> Result<PathBuf, String> {
    const WANTED: [&str; 3] = ["cpu", "memory", "pids"];
    // Another driver of this process has moved us.
    let base = if own.ends_with(OURSELVES) { own.parent().unwrap_or(own) } else { own };
    let has = |file: &str| fs::read_to_string(base.join(file)).unwrap_or_default();
    let controllers = has("cgroup.controllers");
    let missing: Vec<_> = WANTED
        .into_iter()
        .filter(|name| !controllers.split_whitespace().any(|has| has == *name))
        .collect();
    if !missing.is_empty() {
        return Err(format!("{} has no controller {}", base.display(), missing.join(", ")));
    }
    let failed = |what: &str, error: io::Error| format!("{what} {}: {error}", base.display());
    let down = |dir: &Path| put(&dir.join("cgroup.subtree_control"), HANDED_DOWN);
    if let Err(error) = down(base) {
        // Only the root may have both processes and groups: make room by moving out,
        // unless somebody else's processes are here too.
        let only_us = has("cgroup.procs").split_whitespace().eq([std::process::id().to_string()]);
        if error.kind() != io::ErrorKind::ResourceBusy || !only_us {
            return Err(failed("cannot hand controllers down from", error));
        }
        let ours = base.join(OURSELVES);
        make(&ours).map_err(|error| failed("cannot make a group in", error))?;
        put(&ours.join("cgroup.procs"), "0")
            .map_err(|error| failed("cannot move out of", error))?;
        down(base).map_err(|error| failed("cannot hand controllers down from", error))?;
    }
    let parent = base.join(name);
    make(&parent).map_err(|error| failed("cannot make a group in", error))?;
    down(&parent).map_err(|error| failed("cannot hand controllers down in", error))?;
    Ok(parent)
}

/// The folders for groups in version 1.
pub(super) fn legacy(
    own: &[(&'static str, PathBuf)],
    name: &str,
) -> Result<Vec<(&'static str, PathBuf)>, String> {
    let missing: Vec<_> = layout::CONTROLLERS
        .into_iter()
        .filter(|controller| !own.iter().any(|(name, _)| name == controller))
        .collect();
    if !missing.is_empty() {
        return Err(format!("no controller {} is mounted", missing.join(", ")));
    }
    let mut parents = Vec::new();
    for (controller, dir) in own {
        let parent = dir.join(name);
        make(&parent)
            .map_err(|error| format!("cannot make a group in {}: {error}", dir.display()))?;
        parents.push((*controller, parent));
    }
    Ok(parents)
}
