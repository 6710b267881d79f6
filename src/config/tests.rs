//! What is taken, what is refused, and how a refusal reads.

use std::{fs, io::Write as _};

use proptest::prelude::*;

use super::{json::MAX_FILE, *};
use crate::PeerId;

const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

fn problems(text: &str) -> Vec<String> {
    let invalid = Config::parse("f", text).expect_err(text);
    invalid.to_string().lines().map(str::to_owned).collect()
}

/// The one problem of `text`, which must contain `expected`.
#[track_caller]
fn refused(text: &str, expected: &str) {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    assert!(found[0].contains(expected), "{text}: {found:?}");
}

#[test]
fn the_originals_form_is_read_in_milliseconds() {
    let text = format!(
        r#"{{ "Perf": {{ "SoftReq": {{ "RTT": 100 }}, "HardReq": {{ "RTT": 1000 }} }},
             "Bootstraps": ["/ip4/10.11.17.15/tcp/4001/ipfs/{PEER}"] }}"#
    );
    let config = Config::parse("f", &text).unwrap();
    assert_eq!(config.requirements.soft, Some(Duration::from_millis(100)));
    assert_eq!(config.requirements.hard, Some(Duration::from_secs(1)));
    assert_eq!(config.bootstraps[0].to_string(), format!("/ip4/10.11.17.15/tcp/4001/p2p/{PEER}"));
    assert_eq!(Config::parse("f", "{}").unwrap(), Config::default());
    assert_eq!(Config::parse("f", r#"{"Perf":{"SoftReq":{}}}"#).unwrap(), Config::default());
}

#[test]
fn numbers_that_are_no_limits_are_refused() {
    for rtt in [
        "-5",
        "0",
        "-0",
        "1e400",
        "1e3",
        "100.5",
        "NaN",
        "Infinity",
        "\"100\"",
        "null",
        "true",
        "[1]",
        "{}",
        "3600001",
        "99999999999999999999999",
    ] {
        let text = format!(r#"{{"Perf":{{"HardReq":{{"RTT":{rtt}}}}}}}"#);
        let found = problems(&text);
        assert!(
            found.iter().any(|line| line.contains("Perf.HardReq.RTT: must be")),
            "{rtt}: {found:?}"
        );
        assert!(found[0].starts_with("f:1:27: "), "{rtt}: {found:?}");
    }
}

#[test]
fn each_defect_is_named_with_its_place() {
    refused("", "f:1:1: the file is empty");
    refused("[]", "f:1:1: must be an object, not a list");
    refused("\u{feff}{}", "f:1:1: the file begins with a byte order mark");
    refused(
        "{\n  \"Pref\": {}\n}",
        "f:2:3: Pref: is not known here; known are Perf, Bootstraps, WorkerThreads, Timeouts",
    );
    refused(r#"{"perf":{}}"#, "f:1:2: perf: is not known; did you mean Perf?");
    refused(r#"{"Perf":{},"Perf":{}}"#, "f:1:12: Perf: is there twice");
    refused(
        r#"{"Perf":{"SoftReq":{"RTT":1,"RTT":2}}}"#,
        "f:1:29: Perf.SoftReq.RTT: is there twice",
    );
    refused(
        r#"{"WorkerThreads":0}"#,
        "f:1:18: WorkerThreads: must be a whole number from 1 to 1024, not 0",
    );
    refused(r#"{"WorkerThreads":"2"}"#, "WorkerThreads: must be a whole number");
    refused(
        r#"{"Timeouts":{"Answer":0}}"#,
        "f:1:23: Timeouts.Answer: must be a whole number of milliseconds from 1 to 86400000, not 0",
    );
    refused(r#"{"Timeouts":{"Request":86400001}}"#, "Timeouts.Request: must be");
    refused(r#"{"Timeouts":{"Idle":1}}"#, "known are Header, Connect, Answer, Quiet, Request");
    refused(r#"{"Bootstraps":"x"}"#, "f:1:15: Bootstraps: must be a list");
    refused(r#"{"Bootstraps":[7]}"#, "f:1:16: Bootstraps[0]: must be a string, not a number");
    refused(
        r#"{"Perf":{"SoftReq":{"RTT":2},"HardReq":{"RTT":1}}}"#,
        "f:1:27: Perf.SoftReq.RTT: is above Perf.HardReq.RTT (1 ms)",
    );
    refused(r#"{"Bootstraps":[],}"#, "f:1:17: is not JSON: trailing commas are not allowed");
    refused("{} // x", "f:1:4: is not JSON: comments are not allowed");
    refused("{", "f:1:1: is not JSON: unterminated object");
    refused("{}{}", "f:1:3: is not JSON");
    refused("{\u{a0}}", "f:1:2: is not JSON");
}

#[test]
fn all_problems_are_told_at_once_and_in_order() {
    let text = "{\n \"X\": 1,\n \"Bootstraps\": [\"/ip4/1\", 2],\n \"Perf\": {\"SoftReq\": {\"RTT\": -5}},\n}";
    let found = problems(text);
    let places: Vec<_> = found.iter().map(|line| &line[..6]).collect();
    assert_eq!(places, ["f:2:2:", "f:3:17", "f:3:27", "f:4:30", "f:4:34"], "{found:#?}");
}

#[test]
fn a_flood_of_problems_is_bounded() {
    let text = format!("{{\"Bootstraps\": [{}1]}}", "1,".repeat(1000));
    let found = problems(&text);
    assert_eq!(found.len(), MAX_PROBLEMS + 1);
    assert_eq!(found.last().unwrap(), "and 971 more");
    let deep = "[".repeat(MAX_FILE as usize);
    assert!(problems(&deep)[0].contains("nesting"));
    let long_key = format!("{{\"{}\": 1}}", "k".repeat(100_000));
    assert!(problems(&long_key)[0].len() < 200);
}

#[test]
fn files_that_are_no_configuration_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let large = fs::File::create(path("large.json")).unwrap();
    large.set_len(100 << 20).unwrap();
    fs::File::create(path("latin1.json")).unwrap().write_all(b"{\n\"caf\xe9\": 1}").unwrap();
    let error = |name: &str| Config::load(&path(name)).unwrap_err();
    assert!(
        error("large.json").public().ends_with("large.json:1:1: the file is larger than 1 MiB")
    );
    assert!(error("latin1.json").public().ends_with("latin1.json:2:5: is not UTF-8"));
    assert_eq!(error("none.json").kind(), Kind::NotFound);
    assert_eq!(Config::load(dir.path()).unwrap_err().kind(), Kind::FailedPrecondition);
}

#[test]
fn flags_win_over_the_file_and_the_file_over_the_environment() {
    let bootstrap = |port: u16| -> Bootstrap {
        format!("/ip4/10.0.0.1/tcp/{port}/p2p/{PEER}").parse().unwrap()
    };
    let (flag, file) = ([bootstrap(1)], [bootstrap(2)]);
    let env = format!(" {},{}\n{} ", bootstrap(3), bootstrap(4), bootstrap(5));
    let ports = |flags: &[Bootstrap], file: &[Bootstrap], env: Option<&str>| -> Vec<u16> {
        bootstraps(flags, file, env).unwrap().iter().map(|b| b.port).collect()
    };
    assert_eq!(ports(&flag, &file, Some(&env)), [1]);
    assert_eq!(ports(&[], &file, Some("junk that is not looked at")), [2]);
    assert_eq!(ports(&[], &[], Some(&env)), [3, 4, 5]);
    assert_eq!(ports(&[], &[], None), [0u16; 0]);
    let error = bootstraps(&[], &[], Some("/ip4/x")).unwrap_err();
    assert!(error.public().starts_with("P2P_BOOTSTRAPS: "), "{error}");
}

/// The files with this ending in a folder of `conf/`, at least one.
fn shipped(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    assert!(!files.is_empty(), "nothing in {}", folder.display());
    files
}

#[test]
fn every_shipped_configuration_is_taken() {
    for path in shipped("conf") {
        let config = Config::load(&path).unwrap();
        if path.ends_with("conf.json") {
            assert_eq!(config.bootstraps, []);
            assert_eq!(config.requirements.soft, Some(Duration::from_millis(100)));
        }
    }
}

#[test]
fn every_shipped_invalid_configuration_is_refused_with_its_place() {
    for path in shipped("conf/invalid") {
        let error = Config::load(&path).expect_err(&path.display().to_string());
        assert_eq!(error.kind(), Kind::InvalidArgument);
        for line in error.public().lines() {
            let rest = line.strip_prefix(&format!("{}:", path.display())).unwrap();
            let mut place = rest.split(": ").next().unwrap().split(':');
            let number = |text: Option<&str>| text.unwrap().parse::<usize>().unwrap() > 0;
            assert!(
                number(place.next()) && number(place.next()) && place.next().is_none(),
                "{line}"
            );
        }
    }
}

proptest! {
    #[test]
    fn junk_never_panics(text in "(\\PC|[\\[\\]{}:,\"0-9eE.+\\-\n]){0,60}") {
        let _refused_or_not = Config::parse("f", &text);
    }

    #[test]
    fn a_damaged_file_never_panics(at in 0usize..200, with in "\\PC{0,3}") {
        let mut text = format!(
            r#"{{"Perf":{{"SoftReq":{{"RTT":1}},"HardReq":{{"RTT":2}}}},"Bootstraps":["/ip4/1.2.3.4/tcp/1/p2p/{PEER}"]}}"#
        );
        let at = at.min(text.len() - 1);
        text.replace_range(at..=at, &with);
        let _refused_or_not = Config::parse("f", &text);
    }

    #[test]
    fn what_is_printed_is_read_back(
        limits in proptest::option::of((1u64..1000, 0u64..1000)), which in 0..4, keys: Vec<[u8; 32]>,
        workers in 0u16..1100, time in proptest::option::of(1u64..86_400_001),
    ) {
        let ms = |limit| Some(Duration::from_millis(limit));
        let mut requirements = Requirements::default();
        if let Some((soft, more)) = limits {
            if which & 1 == 0 { requirements.soft = ms(soft); }
            if which & 2 == 0 { requirements.hard = ms(soft + more); }
        }
        let bootstraps = keys.into_iter().map(|key| Bootstrap {
            host: Host::Dns("seed.example".into()), port: 4001, peer: PeerId::from_public_key(key),
        }).collect();
        let time = time.map(Duration::from_millis);
        let timeouts = Timeouts { answer: time, request: time, ..Timeouts::default() };
        let config = Config { requirements, bootstraps, workers: Workers::new(workers), timeouts };
        prop_assert_eq!(Config::parse("f", &config.to_json()).unwrap(), config);
    }
}
