//! Records that were broken off, altered, blown up, or written by somebody else.

use lca::{Spec, api::proto, testing::Log};

use super::*;
use crate::driver::Started;

fn record() -> Record {
    let spec = proto::ServiceSpec {
        name: "hello".into(),
        artifact: lca::Digest::of(b"x").to_string(),
        revision: 3,
        ..Default::default()
    };
    Record {
        instance: InstanceId::random(),
        spec: Spec::try_from(spec).unwrap(),
        phase: Phase::Live,
        admitted_ms: 1_700_000_000_000,
        ended_ms: 0,
        port: Some(4711),
        front: None,
        started: Started { pid: 42, start_time: 4242 },
        reason: String::new(),
        output: vec!["a line".into()],
    }
}

#[tokio::test]
async fn the_last_of_several_writes_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, left) = Ledger::open(dir.path()).unwrap();
    assert!(left.records.is_empty() && left.calls.is_empty());
    let first = record();
    let mut page = ledger.page();
    let early = page.write(first.clone());
    let last = Record { phase: Phase::Ending, reason: "released".into(), ..first.clone() };
    let late = page.write(last.clone());
    late.done().await;
    early.done().await;
    let (ledger, left) = Ledger::open(dir.path()).unwrap();
    assert_eq!(left.records, [last]);
    ledger.forget(first.instance).done().await;
    ledger.forget(first.instance).done().await;
    assert_eq!(Ledger::open(dir.path()).unwrap().1.records, []);
}

#[test]
fn a_record_that_cannot_be_used_is_named_and_removed_and_spoils_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = record();
    let path = |id: InstanceId| dir.path().join(id.to_string());
    fs::write(path(good.instance), good.encode()).unwrap();
    let other = record().encode();
    let bad: [(&[u8], &str); 6] = [
        (b"", "no record"),
        (&other[..20], "truncated"),
        (&other[..other.len() - 1], "damaged"),
        (b"lca instance 2\nwhatever", "another version"),
        (&[7; 3 << 20], "more than"),
        (&other, "about instance"),
    ];
    for (bytes, reason) in bad {
        let log = Log::capture();
        let id = InstanceId::random();
        fs::write(path(id), bytes).unwrap();
        let (_, left) = Ledger::open(dir.path()).unwrap();
        assert_eq!(left.records, std::slice::from_ref(&good));
        assert!(!path(id).exists());
        let named = log.lines().into_iter().find(|line| line.contains(&id.to_string()));
        assert!(named.as_ref().is_some_and(|line| line.contains(reason)), "{reason}: {named:?}");
    }
}

#[test]
fn every_altered_byte_of_a_record_is_noticed() {
    let good = record().encode();
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        assert!(Record::decode(&bad).is_err(), "byte {place}");
    }
}

#[test]
fn what_a_killed_run_was_writing_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let half = dir.path().join(format!("{}.new", InstanceId::random()));
    fs::write(&half, b"lca").unwrap();
    Ledger::open(dir.path()).unwrap();
    assert!(!half.exists());
}
