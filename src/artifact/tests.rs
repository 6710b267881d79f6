//! The folder of artifacts: what is kept, what is refused, and what a crash leaves.

use std::{os::unix::fs::MetadataExt as _, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Every file below the folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

async fn put(store: &Store, digest: Digest, size: u64, chunks: &[&[u8]]) -> Result<PathBuf> {
    let mut incoming = store.begin(digest, size).await?;
    for chunk in chunks {
        incoming.write(chunk).await?;
    }
    incoming.finish().await
}

#[tokio::test]
async fn what_was_stored_is_whole_executable_and_immutable() {
    let (dir, store) = store();
    let digest = Digest::of(b"#!/bin/sh\n");
    assert_eq!(store.get(digest), None);
    let path = put(&store, digest, 10, &[b"#!/bin", b"/sh\n"]).await.unwrap();
    assert_eq!(store.get(digest), Some(path.clone()));
    assert_eq!(fs::read(&path).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o555);
    assert_eq!(store.list(), [digest]);
    assert_eq!(Store::open(dir.path()).unwrap().list(), [digest], "after a restart too");
}

#[tokio::test]
async fn bytes_that_are_not_what_was_announced_leave_nothing_and_are_named() {
    let (dir, store) = store();
    let digest = Digest::of(b"right");
    let wrong: [(u64, &[&[u8]]); 4] =
        [(5, &[b"wrong"]), (4, &[b"right"]), (6, &[b"right"]), (5, &[b"right", b"er"])];
    for (size, chunks) in wrong {
        let error = put(&store, digest, size, chunks).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.public().contains(&digest.to_string()), "{error}");
    }
    assert_eq!(files(dir.path()), [] as [PathBuf; 0]);
    assert_eq!(store.list(), []);
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_nothing() {
    let (dir, store) = store();
    let mut incoming = store.begin(Digest::of(b"x"), 1 << 20).await.unwrap();
    incoming.write(&[0; 300 << 10]).await.unwrap();
    assert_eq!(files(dir.path()).len(), 1);
    drop(incoming);
    assert_eq!(files(dir.path()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn an_artifact_above_the_limit_is_refused_before_its_bytes() {
    let (_dir, store) = store();
    let error = Store { limit: 10, ..store }.begin(Digest::of(b"x"), 11).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.public().contains("limit of 10"), "{error}");
}

#[tokio::test]
async fn artifacts_together_stay_within_their_room() {
    let (dir, store) = store();
    let store = store.at_most(10);
    let kept = put(&store, Digest::of(b"kept"), 4, &[b"kept"]).await.unwrap();
    put(&store, Digest::of(b"kept"), 4, &[b"kept"]).await.expect("the same takes no more");
    let arriving = store.begin(Digest::of(b"arrives"), 6).await.unwrap();
    let error = store.begin(Digest::of(b"x"), 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    assert!(error.public().contains("10 of the 10 bytes"), "{error}");
    drop(arriving);
    put(&store, Digest::of(b"wrong"), 6, &[b"right!"]).await.unwrap_err();
    put(&store, Digest::of(b"fits!!"), 6, &[b"fits!!"]).await.expect("what was dropped is free");

    // After a restart, too, and a person who deletes is believed at once.
    let store = Store::open(dir.path()).unwrap().at_most(10);
    assert_eq!(store.begin(Digest::of(b"x"), 1).await.unwrap_err().kind(), Kind::NoCapacity);
    fs::remove_file(kept).unwrap();
    store.begin(Digest::of(b"x"), 4).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_replaced_takes_its_room_once() {
    let (_dir, store) = store();
    let store = store.at_most(10);
    let digest = Digest::of(b"right");
    let path = put(&store, digest, 5, &[b"right"]).await.unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "wrong").unwrap();
    put(&store, digest, 5, &[b"right"]).await.unwrap();
    assert_eq!(store.room.kept(), 5);
}

#[tokio::test]
async fn a_start_sweeps_what_a_crash_left_and_not_what_still_arrives() {
    let (dir, store) = store();
    fs::write(dir.path().join("incoming/left-by-a-crash"), "half").unwrap();
    let mut arriving = store.begin(Digest::of(b"whole"), 5).await.unwrap();
    let other = Store::open(dir.path()).unwrap();
    assert!(!dir.path().join("incoming/left-by-a-crash").exists());
    arriving.write(b"whole").await.unwrap();
    arriving.finish().await.unwrap();
    assert_eq!(other.list(), [Digest::of(b"whole")]);
}

#[tokio::test]
async fn a_file_that_was_changed_is_not_handed_out_and_can_be_stored_again() {
    let (dir, store) = store();
    let digest = Digest::of(b"right");
    let path = put(&store, digest, 5, &[b"right"]).await.unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&path, "wrong").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(store.get(digest), None);
    assert_eq!(store.list(), []);
    put(&store, digest, 5, &[b"right"]).await.unwrap();
    assert_eq!(fs::read(store.get(digest).unwrap()).unwrap(), b"right");

    fs::remove_file(&path).unwrap();
    fs::write(&path, "wrong").unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().list(), []);
    assert!(!path.exists(), "a start removes what is not what it is called");
}

#[tokio::test]
async fn a_restored_copy_is_checked_and_taken_at_the_start() {
    let (dir, _store) = store();
    let digest = Digest::of(b"from a backup");
    fs::write(dir.path().join("sha256").join(digest.hex()), "from a backup").unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(fs::read(store.get(digest).unwrap()).unwrap(), b"from a backup");
}

#[tokio::test]
async fn many_writers_of_one_digest_all_succeed() {
    let (dir, store) = store();
    let bytes = vec![7; 700 << 10];
    let digest = Digest::of(&bytes);
    let writers = (0..8).map(|_| async {
        let mut incoming = store.begin(digest, bytes.len() as u64).await?;
        for chunk in bytes.chunks(100_000) {
            incoming.write(chunk).await?;
            tokio::task::yield_now().await;
        }
        incoming.finish().await
    });
    let paths = futures::future::try_join_all(writers);
    let paths = tokio::time::timeout(Duration::from_secs(30), paths).await.unwrap().unwrap();
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert_eq!(files(dir.path()), [paths[0].clone()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn however_the_bytes_are_cut_they_arrive(
        bytes in proptest::collection::vec(any::<u8>(), 0..600_000),
        cut in 1usize..400_000,
        flip in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (dir, store) = store();
        let digest = Digest::of(&bytes);
        let mut sent = bytes.clone();
        if let (Some(flip), false) = (flip, sent.is_empty()) {
            sent[flip.index(bytes.len())] ^= 1;
        }
        let chunks: Vec<_> = sent.chunks(cut).collect();
        let stored = runtime.block_on(put(&store, digest, bytes.len() as u64, &chunks));
        if sent == bytes {
            prop_assert_eq!(fs::read(stored.unwrap()).unwrap(), bytes);
        } else {
            prop_assert!(stored.is_err());
            prop_assert!(files(dir.path()).is_empty());
        }
    }
}
