//! What the engine enforces on containers, in sentences for people.

use lca_engine::About;

use crate::driver::Means;

/// Subjects begin with `container`, so that they are told from those of programs.
pub(super) fn of(about: &About) -> Means {
    let groups = match about.cgroup {
        0 => String::new(),
        version => format!(", cgroup v{version}"),
    };
    let engine = format!("Docker Engine {}{groups}", about.version);
    let limits = ["processor time", "memory without swap", "processes"];
    let limits = limits.map(|what| format!("container {what}: {engine}"));
    let rights = [
        "container open files, size of one file: rlimits",
        "container capabilities: all dropped but those listed and allowed",
        "container new privileges: none",
        "container system calls: the engine's seccomp list",
        "container output kept: json-file, two files of half the limit",
        "container network: a bridge of this allocator's, published on 127.0.0.1 alone",
    ];
    Means {
        enforced: limits.into_iter().chain(rights.map(str::to_owned)).collect(),
        not_enforced: vec![
            "container disk space: the engine counts none; `--read-only` leaves volumes alone"
                .to_owned(),
        ],
    }
}
