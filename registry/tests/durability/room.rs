//! No room, or no right to write: writes are refused with the reason, reads go on, and
//! nothing has to be restarted when it is over.

use std::{fs, io, io::Write as _, path::Path};

use lca::{Error, Kind};

use crate::process::{Server, can_mount, list, put, refused, spec, upload};

#[tokio::test]
async fn a_write_that_fails_is_refused_with_the_reason_and_the_next_one_may_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let mut client = server.client().await;
    put(&mut client, spec("a", "1"), None).await.unwrap();

    server.limit_files(Some(0));
    // The first fails in the middle of writing, the second before.
    for name in ["b", "c"] {
        let error = put(&mut client, spec(name, "1"), None).await.unwrap_err();
        assert_full(&error, "File too large");
        assert_eq!(list(&mut client).await.len(), 1, "reads go on");
    }
    let error = upload(&mut client, b"some program").await.unwrap_err();
    assert_full(&error, "File too large");

    server.limit_files(None);
    assert_eq!(put(&mut client, spec("b", "1"), None).await.unwrap(), 1);
    upload(&mut client, b"some program").await.unwrap();
    server.kill().await;
    let server = Server::start(dir.path()).await;
    let names: Vec<_> =
        list(&mut server.client().await).await.into_iter().map(|spec| spec.name).collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    if !can_mount().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let mount = format!("mount -t tmpfs -o size=8m,mode=700 none '{}'", data.display());
    let server = Server::start_after(dir.path(), Some(&mount)).await;
    let mut client = server.client().await;
    put(&mut client, spec("first", "1"), None).await.unwrap();

    let filler = server.inside(&data).join("filler");
    fill(&filler);
    let large = "x".repeat(60 << 10);
    let mut stored = 1;
    // What the file has room for inside is taken; its growing is not.
    let error = loop {
        match put(&mut client, spec(&format!("n{stored}"), &large), None).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 200, "more was stored than there is room for");
    };
    assert_full(&error, "No space left");
    assert_eq!(list(&mut client).await.len(), stored, "reads go on");
    let error = upload(&mut client, b"some program").await.unwrap_err();
    assert_full(&error, "No space left");

    fs::remove_file(filler).unwrap();
    put(&mut client, spec("last", &large), None).await.unwrap();
    upload(&mut client, b"some program").await.unwrap();
    assert_eq!(list(&mut client).await.len(), stored + 1);
}

#[tokio::test]
async fn a_folder_that_is_read_only_is_refused_by_name() {
    if !can_mount().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    Server::start(dir.path()).await.kill().await;
    let data = dir.path().join("data");
    let data = data.display();
    let mount = format!("mount --bind '{data}' '{data}'\nmount -o remount,bind,ro '{data}'");
    let said = refused(dir.path(), Some(&mount)).await;
    assert!(said.contains("registry.redb") && said.contains("Read-only"), "{said}");
}

fn assert_full(error: &Error, reason: &str) {
    assert_eq!(error.kind(), Kind::NoCapacity, "{error}");
    assert!(error.public().contains(reason), "{error}");
}

/// Leaves no byte free.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [64 << 10, 4096, 1] {
        let block = vec![0; size];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
