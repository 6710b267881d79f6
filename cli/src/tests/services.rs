//! `lcactl service`: what is uploaded, what is refused, what a conflict says.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use clap::Parser as _;
use insta::assert_snapshot;
use lca::{Digest, Kind};

use super::{Daemon, fake::State};
use crate::{Cli, errors::Exit, upload};

/// A program of more than one chunk in a folder of its own.
struct Program {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Program {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, path }
    }

    fn add(&self, rest: &str) -> String {
        format!("service add hello --exec {}{rest}", self.path.display())
    }
}

#[tokio::test]
async fn a_service_is_uploaded_in_chunks_listed_shown_and_removed() {
    let daemon = Daemon::start().await;
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let program = Program::new(&bytes);
    let add = program
        .add(" --soft-rtt 100ms --hard-rtt 1s --env A=B --cpu 0.5 -- --port ${SERVICE_PORT}");
    let ended = daemon.run(&add).await;
    assert_eq!(
        (ended.exit, ended.out.as_str(), ended.err.as_str()),
        (Exit::Success, "hello revision 1\n", "")
    );
    assert!(daemon.state(|state| state.artifacts[&Digest::of(&bytes).to_string()] == bytes));

    let list = daemon.run("service list").await;
    assert_snapshot!(list.out, @r"
    NAME   REVISION  ARTIFACT      SOFT RTT  HARD RTT  CPU   MEMORY  IDLE
    hello  1         67870dfc9c64  100ms     1s        500m  64MiB   60s
    ");
    let got = daemon.run("service get hello").await;
    assert_snapshot!(got.out, @r"
    FIELD               VALUE
    name                hello
    revision            1
    service hash        02d47b5cfd0a0e97cbb1158b5629d536b174f19d4057ce3282b9bea45246e52a
    artifact            sha256:67870dfc9c64e7aa270a3f7e8051ae65d207f93fc3df04d7572e6365af69cd0d
    argument            --port
    argument            ${SERVICE_PORT}
    environment         A=B
    protocol            http1
    ready path          -
    start timeout       10s
    soft rtt            100ms
    hard rtt            1s
    cpu                 500m
    memory              64MiB
    processes           512
    open files          -
    log                 16MiB
    disk                1GiB
    idle timeout        60s
    concurrency limit   1024
    min instances       -
    max instances       -
    target concurrency  -
    placement           nearest
    max body            -
    answer timeout      -
    quiet timeout       -
    request timeout     -
    ");
    let json = daemon.run("service get hello -o json").await.json();
    assert_eq!(json["spec"]["requirements"]["soft_rtt_ms"], 100);
    assert_eq!(json["spec"]["environment"]["A"], "B");
    assert_eq!(json["stale"], false);

    assert_eq!(daemon.run("service remove hello").await.out, "removed hello\n");
    let gone = daemon.run("service get hello").await;
    assert_eq!(gone.exit, Exit::NotFound);
    assert_eq!(
        gone.err,
        "error: no service hello\nhint: `lcactl service list` lists what there is\n"
    );
    assert_eq!(daemon.run("service list").await.err, "no services\n");
}

#[tokio::test]
async fn adding_the_same_again_changes_nothing_and_sends_nothing() {
    let daemon = Daemon::start().await;
    let program = Program::new(b"#!/bin/sh\n");
    daemon.run(&program.add("")).await;
    let again = daemon.run(&program.add("")).await;
    assert_eq!((again.exit, again.out.as_str()), (Exit::Success, "hello revision 1, unchanged\n"));
    assert_eq!(daemon.state(|state: &mut State| state.received), 10);
}

#[tokio::test]
async fn a_different_service_of_that_name_is_replaced_only_when_told() {
    let daemon = Daemon::start().await;
    let old = Program::new(b"old");
    daemon.run(&old.add(" --memory 64MiB --env SECRET=hush --env OLD=1")).await;
    let new = Program::new(b"new");
    let add = new.add(" --memory 65MiB --env SECRET=loud --env NEW=1 --ready-path /healthz");
    let refused = daemon.run(&add).await;
    assert_eq!((refused.exit, refused.out.as_str()), (Exit::Refused, ""));
    assert_snapshot!(refused.err, @r"
    error: hello exists with another spec, revision 1
      artifact: cba06b5736fa -> 11507a0e2f5e
      ready path: none -> /healthz
      memory: 64MiB -> 65MiB
      environment: NEW added
      environment: OLD removed
      environment: SECRET changed
    hint: --replace stores this one as a new revision
    ");
    assert_eq!(daemon.state(|state| state.artifacts.len()), 1, "it was uploaded for nothing");
    let replaced = daemon.run(&add.replace(" --ready-path", " --replace --ready-path")).await;
    assert_eq!((replaced.exit, replaced.out.as_str()), (Exit::Success, "hello revision 2\n"));
    assert_snapshot!(replaced.err, @r"
    hello revision 1 is replaced:
      artifact: cba06b5736fa -> 11507a0e2f5e
      ready path: none -> /healthz
      memory: 64MiB -> 65MiB
      environment: NEW added
      environment: OLD removed
      environment: SECRET changed
    ");
}

#[tokio::test]
async fn how_many_and_where_is_set_shown_and_changed_under_what_runs() {
    let daemon = Daemon::start().await;
    let program = Program::new(b"x");
    let first = " --min-instances 1 --max-instances 3 --target-concurrency 8 --placement spread";
    let added = daemon.run(&program.add(first)).await;
    assert_eq!(added.exit, Exit::Success, "{}", added.err);
    let before = daemon.run("service get hello -o json").await.json();
    assert_eq!(before["spec"]["max_instances"], 3);
    assert_eq!(before["spec"]["placement"], "PLACEMENT_SPREAD");
    let changed = daemon.run(&program.add(" --replace --max-instances 2 --placement pack")).await;
    assert_eq!((changed.exit, changed.out.as_str()), (Exit::Success, "hello revision 2\n"));
    assert_snapshot!(changed.err, @r"
    hello revision 1 is replaced:
      min instances: 1 -> none
      max instances: 3 -> 2
      target concurrency: 8 -> none
      placement: spread -> pack
    ");
    // No new generation of instances.
    let after = daemon.run("service get hello -o json").await.json();
    assert_eq!(after["spec"]["service_hash"], before["spec"]["service_hash"]);
    let table = daemon.run("service get hello").await.out;
    assert!(table.contains("max instances       2\n"), "{table}");
    assert!(table.contains("placement           pack\n"), "{table}");

    let none = daemon.run(&program.add(" --replace --min-instances 3 --max-instances 2")).await;
    assert_eq!(none.exit, Exit::Usage);
    assert_eq!(none.err, "error: min_instances is above max_instances\n");
}

#[tokio::test]
async fn what_a_request_may_be_and_take_is_set_shown_and_changed_under_what_runs() {
    let daemon = Daemon::start().await;
    let first = "service add db --external --max-body 1MiB --answer-timeout 2s \
                 --quiet-timeout 30s --request-timeout 1m";
    let added = daemon.run(first).await;
    assert_eq!(added.exit, Exit::Success, "{}", added.err);
    let before = daemon.run("service get db -o json").await.json();
    let limits = serde_json::json!({ "max_body_bytes": 1 << 20, "answer_timeout_ms": 2000,
        "quiet_timeout_ms": 30_000, "request_timeout_ms": 60_000 });
    assert_eq!(before["spec"]["limits"], limits);
    let changed = daemon.run("service add db --external --replace --request-timeout 5s").await;
    assert_snapshot!(changed.err, @r"
    db revision 1 is replaced:
      max body: 1MiB -> none
      answer timeout: 2s -> none
      quiet timeout: 30s -> none
      request timeout: 60s -> 5s
    ");
    let after = daemon.run("service get db -o json").await.json();
    assert_eq!(after["spec"]["service_hash"], before["spec"]["service_hash"]);
    let none = daemon.run("service add db --external --replace --request-timeout 25h").await;
    assert_eq!((none.exit, none.out.as_str()), (Exit::Usage, ""));
    assert!(
        none.err.contains("limits.request_timeout_ms is more than 86400000 ms"),
        "{}",
        none.err
    );
}

#[tokio::test]
async fn on_a_terminal_the_change_is_shown_and_asked_about_before_anything_is_sent() {
    let daemon = Daemon::start().await;
    daemon.run(&Program::new(b"old").add("")).await;
    let new = Program::new(b"new");
    for typed in ["n\n", "\n", ""] {
        let declined = daemon.typing(&new.add(""), typed).await;
        assert_eq!((declined.exit, declined.out.as_str()), (Exit::Refused, ""), "{typed:?}");
        assert_eq!(
            declined.err,
            "hello exists with another spec, revision 1:\n  artifact: cba06b5736fa -> 11507a0e2f5e\n\
             Replace it? [y/N] error: hello was left as it is\n"
        );
    }
    assert_eq!(daemon.state(|state| state.artifacts.len()), 1);
    let agreed = daemon.typing(&new.add(""), "yes\n").await;
    assert_eq!((agreed.exit, agreed.out.as_str()), (Exit::Success, "hello revision 2\n"));
    assert!(agreed.err.contains("\r\x1b[K"), "{:?}", agreed.err);
    assert!(agreed.err.lines().last().unwrap().contains("uploaded 3 B in "), "{:?}", agreed.err);
    // Told beforehand, nobody is asked.
    let yes = daemon.typing(&Program::new(b"third").add(" --yes"), "").await;
    assert_eq!((yes.exit, yes.out.as_str()), (Exit::Success, "hello revision 3\n"));
}

#[tokio::test]
async fn what_get_prints_can_be_added_again() {
    let daemon = Daemon::start().await;
    let program = Program::new(b"x");
    daemon.run(&program.add(" --soft-rtt 5ms --env A=B --idle-timeout 2m -- --a b")).await;
    let file = program.dir.path().join("spec.json");
    fs::write(&file, daemon.run("service get hello -o json").await.out).unwrap();
    let file = file.display();
    let same = daemon.run(&format!("service add -f {file}")).await;
    assert_eq!(
        (same.exit, same.out.as_str()),
        (Exit::Success, "hello revision 1, unchanged\n"),
        "{}",
        same.err
    );
    daemon.run("service remove hello").await;
    let back = daemon.run(&format!("service add hello -f {file} --hard-rtt 1s -o json")).await;
    assert_eq!(back.exit, Exit::Success, "{}", back.err);
    let spec = &back.json()["spec"];
    assert_eq!(spec["requirements"], serde_json::json!({ "soft_rtt_ms": 5, "hard_rtt_ms": 1000 }));
    assert_eq!((&spec["environment"]["A"], &spec["arguments"][1]), (&"B".into(), &"b".into()));
    let other = daemon.run(&format!("service add other -f {file}")).await;
    assert_eq!(
        (other.exit, other.err.as_str()),
        (Exit::Usage, "error: the file describes \"hello\", not other\n")
    );
}

#[tokio::test]
async fn the_originals_file_is_taken_with_a_program() {
    let daemon = Daemon::start().await;
    let program = Program::new(b"x");
    let file = program.dir.path().join("service-conf.json");
    fs::write(&file, r#"{ "NetworkSoftReq": { "RTT": 10 }, "NetworkHardReq": { "RTT": 50 }, "CpuReq": 250, "MemoryReq": 65, "DockerConf": {} }"#).unwrap();
    let file = file.display();
    let ended = daemon.run(&program.add(&format!(" -f {file}"))).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(ended.err.contains("DockerConf is not used"), "{}", ended.err);
    let list = daemon.run("service list").await.out;
    assert!(list.contains("10ms      50ms      250m  65MiB"), "{list}");
    let nothing = daemon.run(&format!("service add hello -f {file}")).await;
    assert_eq!(nothing.exit, Exit::Usage);
    assert!(nothing.err.contains("--exec PATH, --image REF, or --external"), "{}", nothing.err);
    let nameless = daemon.run(&format!("service add -f {file} --external")).await;
    assert!(nameless.err.contains("has no name"), "{}", nameless.err);
}

#[tokio::test]
async fn an_image_is_registered_by_its_digest_and_shown_by_its_name() {
    let daemon = Daemon::start().await;
    let digest = Digest::of(b"manifest");
    let add = format!("service add web --image web:1@{digest}");
    let ended = daemon.run(&format!("{add} --image-port 80 --read-only --cap-add cap_kill")).await;
    assert_eq!((ended.exit, ended.out.as_str()), (Exit::Success, "web revision 1\n"));
    let list = daemon.run("service list").await;
    assert_snapshot!(list.out, @r"
    NAME  REVISION  ARTIFACT  SOFT RTT  HARD RTT  CPU  MEMORY  IDLE
    web   1         web:1     -         -         -    64MiB   60s
    ");
    let got = daemon.run("service get web").await;
    let rows: Vec<_> = got.out.lines().skip(4).take(7).collect();
    assert_snapshot!(rows.join("\n"), @r"
    image               docker.io/library/web:1@sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f
    image digest        sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f
    image id            -
    image port          80
    read only           yes
    capabilities        KILL
    host network        -
    ");
    // What was printed registers the same again, and flags alone change an image.
    let json = daemon.run("service get web -o json").await.out;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.json");
    fs::write(&file, json).unwrap();
    let again = format!("service add -f {}", file.display());
    assert_eq!(daemon.run(&again).await.out, "web revision 1, unchanged\n");
    let ended = daemon.run(&format!("{again} --host-network --replace")).await;
    assert_eq!(ended.exit, Exit::Success);
    assert_eq!(ended.err, "web revision 1 is replaced:\n  host network: none -> yes\n");
}

#[tokio::test]
async fn flags_of_containers_need_an_image_and_a_misspelt_key_of_one_is_named() {
    let daemon = Daemon::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.json");
    fs::write(&file, r#"{"name":"x","artifact":"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}"#).unwrap();
    let ended = daemon.run(&format!("service add -f {} --read-only", file.display())).await;
    assert_eq!(ended.exit, Exit::Usage);
    assert!(ended.err.contains("--read-only is about containers"), "{}", ended.err);
    fs::write(&file, r#"{"name":"x","image":{"readonly_root":true}}"#).unwrap();
    let ended = daemon.run(&format!("service add -f {}", file.display())).await;
    assert!(ended.err.contains("image.readonly_root: is not known here"), "{}", ended.err);
    let ended = daemon.run("service add x --image App").await;
    assert!(ended.err.contains("capital letters"), "{}", ended.err);
}

// FAULTS 62.

#[tokio::test]
async fn names_that_are_none_are_refused_before_anybody_is_asked() {
    let daemon = Daemon::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spec.json");
    let long = "a".repeat(256);
    for name in
        ["", &long, "../x", "h\u{435}llo", "a/b", "localhost", "10.0.0.1", "a..b", "A", "-a"]
    {
        let words = ["lcactl", "service", "add", name, "--external"];
        assert!(Cli::try_parse_from(words).is_err(), "{name:?}");
        let spec = serde_json::json!({ "name": name });
        fs::write(&file, spec.to_string()).unwrap();
        let ended = daemon.run(&format!("service add --external -f {}", file.display())).await;
        assert_eq!((ended.exit, ended.out.as_str()), (Exit::Usage, ""), "{name:?}: {}", ended.err);
    }
    assert!(daemon.state(|state| state.specs.is_empty()));
}

#[tokio::test]
async fn an_external_service_needs_no_program() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("service add printer --external -o json").await;
    assert_eq!(ended.exit, Exit::Success);
    assert_eq!(
        (&ended.json()["spec"]["artifact"], &ended.json()["changed"]),
        (&"".into(), &true.into())
    );
    assert!(daemon.run("service list").await.out.contains("external"));
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_anything_is_sent() {
    let daemon = Daemon::start().await;
    let program = Program::new(b"x");
    let dir = program.dir.path().display();
    let refused = async |line: String, reason: &str| {
        let ended = daemon.run(&line).await;
        assert_eq!((ended.exit, ended.out.as_str()), (Exit::Usage, ""), "{line}");
        assert!(ended.err.contains(reason), "{line}: {}", ended.err);
    };
    refused(format!("service add x --exec {dir}/none"), "cannot read").await;
    refused(format!("service add x --exec {dir}"), "is not a file").await;
    refused(Program::new(b"").add(""), "is empty").await;
    fs::write(program.dir.path().join("plain"), b"x").unwrap();
    refused(format!("service add x --exec {dir}/plain"), "hint: chmod +x").await;
    refused(program.add(" --soft-rtt 2s --hard-rtt 1s"), "above").await;
    refused(program.add(" --soft-rtt 1200h"), "more than an hour").await;
    refused(program.add(" --env SERVICE_PORT=1"), "set by the allocator").await;
    refused(program.add(" --env A=1 --env A=2"), "twice").await;
    assert_eq!(daemon.state(|state| state.received), 0);
}

#[tokio::test]
async fn a_program_that_changed_since_it_was_looked_at_is_refused() {
    let daemon = Daemon::start().await;
    let program = Program::new(b"before");
    let seen = upload::Program::read(&program.path).await.unwrap();
    fs::write(&program.path, b"after!").unwrap();
    let error = seen.upload(&mut daemon.registry().await).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    fs::remove_file(&program.path).unwrap();
    let error = seen.upload(&mut daemon.registry().await).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
}
