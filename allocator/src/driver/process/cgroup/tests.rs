//! Version 2 on a folder that looks like the kernel's: what is written where. What the kernel
//! makes of it, only the kernel can say.

use std::num::NonZeroU32;

use super::*;

/// Empty files, as a new group has them.
fn looks_like_a_group(dir: &Path, files: &[&str]) {
    fs::create_dir_all(dir).unwrap();
    files.iter().for_each(|file| fs::write(dir.join(file), "").unwrap());
}

#[test]
fn a_field_is_found_by_its_whole_name() {
    let text = "low 1\noom 2\noom_kill 3\noom_kill_disable 4\n";
    assert_eq!(field(text, "oom_kill"), Some(3));
    assert_eq!(field(text, "oom_group_kill"), None);
}

#[test]
fn of_version_2_controllers_are_handed_down_or_the_missing_ones_are_named() {
    let base = tempfile::tempdir().unwrap();
    let own = base.path();
    looks_like_a_group(own, &["cgroup.controllers", "cgroup.subtree_control", "cgroup.procs"]);
    looks_like_a_group(&own.join("lca-x"), &["cgroup.subtree_control"]);
    let missing = unified(own, "lca-x").unwrap_err();
    assert!(missing.ends_with("has no controller cpu, memory, pids"), "{missing}");
    fs::write(own.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    // One that moved itself out of the way for an earlier driver begins above that.
    for own in [own.to_owned(), own.join("lca-daemon")] {
        assert_eq!(unified(&own, "lca-x").unwrap(), base.path().join("lca-x"));
    }
    for dir in [own.to_owned(), own.join("lca-x")] {
        let handed = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
        assert_eq!(handed, "+cpu +memory +pids");
    }
}

#[test]
fn of_version_2_limits_are_written_and_use_is_read() {
    let base = tempfile::tempdir().unwrap();
    let parents = Arc::new(Parents(vec![("unified", base.path().to_owned())]));
    let cgroups = Cgroups { version: Version::V2, parents };
    let group = cgroups.group(InstanceId::random());
    let dir = group.dir("").to_owned();
    let files = ["cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "memory.oom.group"];
    looks_like_a_group(&dir, &files);
    let limits = Allowance {
        cpu_millis: NonZeroU32::new(250),
        memory_bytes: 16 << 20,
        processes: 7,
        ..Allowance::default()
    };
    let without = group.limit(&limits, 100).unwrap_err();
    assert!(without.to_string().contains("pids.max"), "a limit that cannot be set: {without}");
    looks_like_a_group(&dir, &["pids.max", "cgroup.procs", "cgroup.kill"]);
    group.limit(&limits, 100).unwrap();
    let written = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
    assert_eq!((written("cpu.weight"), written("cpu.max")), ("10".into(), "25000 100000".into()));
    assert_eq!((written("memory.max"), written("pids.max")), ("16777216".into(), "7".into()));
    assert_eq!((written("memory.swap.max"), written("memory.oom.group")), ("0".into(), "1".into()));

    fs::write(dir.join("cpu.stat"), "usage_usec 1500\nuser_usec 1000\n").unwrap();
    fs::write(dir.join("memory.current"), "5000\n").unwrap();
    fs::write(dir.join("memory.stat"), "anon 1\ninactive_file 2000\n").unwrap();
    let expected = Stats { memory_bytes: 3000, cpu: Duration::from_micros(1500) };
    assert_eq!(group.stats().unwrap(), expected);
    assert_eq!(group.killed_for_memory(), 0, "nothing is said of it");
    fs::write(dir.join("memory.events"), "oom 2\noom_kill 1\n").unwrap();
    assert_eq!(group.killed_for_memory(), 1);
    assert!(group.open().unwrap().is_some(), "a child begins in it");
    assert_eq!(group.doors().unwrap().len(), 1, "or enters by its one file");
    group.kill();
    assert_eq!(written("cgroup.kill"), "1");
    assert_eq!(cgroups.all().len(), 1, "the next run finds it");
}
