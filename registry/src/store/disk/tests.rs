//! The file through restarts, copies taken at any moment, and damage.

use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::*;
use crate::store::suite::{self, spec};

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    (dir, path)
}

async fn filled(path: &Path, count: usize) {
    let store = Disk::open(path).unwrap();
    for n in 0..count {
        store.put(spec(&format!("n{n:03}"), "x"), None).await.unwrap();
    }
}

#[tokio::test]
async fn the_file_passes_the_suite() {
    let (_dir, path) = folder();
    suite::passes(Arc::new(Disk::open(&path).unwrap())).await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_so_are_last_revisions() {
    let (_dir, path) = folder();
    filled(&path, 3).await;
    let store = Disk::open(&path).unwrap();
    store.delete(&"n001".parse().unwrap(), None).await.unwrap();
    let before = store.list().await.unwrap();
    drop(store);
    let store = Disk::open(&path).unwrap();
    assert_eq!(store.list().await.unwrap(), before);
    let put = store.put(spec("n001", "again"), None).await.unwrap();
    assert_eq!(put.spec.revision, 2);
}

#[tokio::test]
async fn a_copy_taken_at_any_moment_holds_all_that_was_answered_until_then() {
    let (dir, path) = folder();
    let store = Disk::open(&path).unwrap();
    for n in 0..20 {
        store.put(spec(&format!("n{n:03}"), "x"), None).await.unwrap();
        // Not closed: this is what kill -9 leaves.
        let copy = dir.path().join(format!("copy-{n}"));
        fs::copy(&path, &copy).unwrap();
        let opened = Disk::open(&copy).unwrap();
        assert_eq!(opened.list().await.unwrap(), store.list().await.unwrap());
    }
}

#[tokio::test]
async fn a_second_opener_is_told_that_it_is_in_use() {
    let (_dir, path) = folder();
    let _store = Disk::open(&path).unwrap();
    let error = Disk::open(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.public().contains("registry.redb"), "{error}");
}

#[tokio::test]
async fn files_that_are_not_a_whole_store_are_refused_by_name_and_left_alone() {
    let (_dir, path) = folder();
    filled(&path, 50).await;
    let whole = fs::read(&path).unwrap();
    let junk: Vec<u8> = (0..100_000u32).map(|n| (n * 31 % 251) as u8).collect();
    let broken = [
        Vec::new(),
        b"not a database".to_vec(),
        junk,
        vec![0; whole.len()],
        whole[..100].to_vec(),
        whole[..4096].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        whole[..whole.len() - 4096].to_vec(),
    ];
    for bytes in broken {
        fs::write(&path, &bytes).unwrap();
        let error = Disk::open(&path).expect_err("it is damaged");
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(error.public().contains("registry.redb"), "{error}");
        assert!(error.hint_text().unwrap().contains("backup"), "{error}");
        assert_eq!(fs::read(&path).unwrap().len(), bytes.len(), "the evidence was changed");
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless_but_never_loses_a_spec() {
    let (_dir, path) = folder();
    filled(&path, 40).await;
    let whole = fs::read(&path).unwrap();
    let intact = Disk::open(&path).unwrap().list().await.unwrap();
    // The header closely, the rest by samples, none of them twice at the same place of
    // a page.
    let places = (0..320).step_by(3).chain((320..whole.len()).step_by(8191));
    let (mut refused, mut harmless) = (0, 0);
    for place in places {
        fs::write(&path, &whole).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[whole[place] ^ 0x10], place as u64).unwrap();
        drop(file);
        match Disk::open(&path) {
            Ok(store) => {
                let found = store.list().await.unwrap();
                assert!(found == intact, "byte {place}: specs were lost without a word");
                harmless += 1;
            }
            Err(error) => {
                assert!(error.public().contains("registry.redb"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && harmless > 0, "{refused} refused, {harmless} harmless");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_by_name() {
    let (_dir, path) = folder();
    filled(&path, 1).await;
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Disk::open(&path).unwrap_err();
    assert!(error.public().contains("has format 2"), "{error}");
    assert!(error.hint_text().unwrap().contains("version that wrote it"));
}

#[tokio::test]
async fn a_first_start_that_was_killed_is_no_damage() {
    let (dir, path) = folder();
    let aside = path.with_extension(format!("redb-{}.new", std::process::id()));
    fs::write(&aside, "half").unwrap();
    filled(&path, 1).await;
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["registry.begun", "registry.redb"], "nothing else is left");
}

#[tokio::test]
async fn a_file_that_is_gone_is_no_first_start() {
    let (_dir, path) = folder();
    filled(&path, 1).await;
    fs::remove_file(&path).unwrap();
    let error = Disk::open(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.public().contains("registry.redb is missing"), "{error}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("backup") && hint.contains("registry.begun"), "{hint}");
    assert!(!path.exists());
    // What the hint says.
    fs::remove_file(begun(&path)).unwrap();
    assert_eq!(Disk::open(&path).unwrap().list().await.unwrap(), []);
}

#[tokio::test]
async fn after_a_failed_write_the_file_is_read_again_and_writes_go_on() {
    let (_dir, path) = folder();
    let store = Disk::open(&path).unwrap();
    store.put(spec("a", "1"), None).await.unwrap();
    store.file.lock().await.database = None; // what a failed write leaves behind
    let away = path.with_extension("away");
    fs::rename(&path, &away).unwrap();
    let error = store.put(spec("b", "1"), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(store.list().await.unwrap().len(), 1, "reads go on");
    fs::rename(&away, &path).unwrap();
    store.put(spec("b", "1"), None).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 2);
}
