//! A disk that fails below a store: what is refused, what goes on, and how it recovers.

use std::{os::unix::fs::FileExt as _, sync::Mutex as StdMutex};

use redb::StorageBackend;
use rustix::io::Errno;

use super::*;
use crate::store::suite::spec;

/// What the disk fails at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Sync,
}

/// The file, through a disk that fails at will. Not locked: only one store uses it.
#[derive(Clone, Debug)]
struct Faulty {
    file: Arc<File>,
    fault: Arc<StdMutex<Option<(Step, Errno)>>>,
}

impl Faulty {
    fn at(&self, step: Step) -> io::Result<()> {
        match *self.fault.lock().unwrap() {
            Some((fails, errno)) if fails == step => Err(errno.into()),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.at(Step::Write).and_then(|()| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.at(Step::Sync).and_then(|()| self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.at(Step::Write).and_then(|()| self.file.write_all_at(data, offset))
    }
}

/// Puts a faulty disk under a store that is open; it works until told not to.
async fn under(store: &Disk) -> Faulty {
    let mut opened = store.file.lock().await;
    opened.database = None;
    let file = OpenOptions::new().read(true).write(true).open(&opened.path).unwrap();
    let faulty = Faulty { file: Arc::new(file), fault: Arc::default() };
    let database = redb::Builder::new().create_with_backend(faulty.clone()).unwrap();
    opened.database = Some(database);
    faulty
}

async fn names(store: &Disk) -> Vec<String> {
    store.list().await.unwrap().iter().map(|spec| spec.name.to_string()).collect()
}

// FAULTS 65.
#[tokio::test]
async fn whatever_the_disk_fails_at_is_the_reason_and_reads_go_on_until_it_recovers() {
    for (step, errno, kind, reason) in [
        (Step::Sync, Errno::IO, Kind::Unavailable, "Input/output error"),
        (Step::Sync, Errno::NOSPC, Kind::NoCapacity, "No space left"),
        (Step::Write, Errno::IO, Kind::Unavailable, "Input/output error"),
        (Step::Write, Errno::NOSPC, Kind::NoCapacity, "No space left"),
        (Step::Write, Errno::DQUOT, Kind::NoCapacity, "quota"),
        (Step::Write, Errno::ROFS, Kind::Unavailable, "Read-only"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        let store = Disk::open(&path).unwrap();
        let kept = store.put(spec("kept", "1"), None).await.unwrap();
        let mut watch = store.watch().await.unwrap();

        // Also a disk that fails, works for once, and fails again.
        for _ in 0..2 {
            let disk = under(&store).await;
            *disk.fault.lock().unwrap() = Some((step, errno));
            let put = store.put(spec("lost", "1"), None).await;
            let error = put.expect_err("it is not on disk");
            assert_eq!(error.kind(), kind, "{step:?} {errno:?}: {error}");
            assert!(error.public().contains(reason), "{step:?} {errno:?}: {error}");
            assert_eq!(names(&store).await, ["kept"], "{step:?} {errno:?}: reads go on");
            let read = store.get(&"kept".parse().unwrap()).await.unwrap();
            assert_eq!(read, Some(kept.spec.clone()));
        }

        // The disk works again: nobody has to do anything.
        store.put(spec("next", "1"), None).await.unwrap();
        let seen = names(&store).await;
        assert!(seen.contains(&"kept".to_owned()) && seen.contains(&"next".to_owned()), "{seen:?}");
        store.put(spec("lost", "1"), None).await.unwrap();
        assert_eq!(names(&store).await, ["kept", "lost", "next"]);
        drop(store);
        let store = Disk::open(&path).unwrap();
        assert_eq!(names(&store).await, ["kept", "lost", "next"], "{step:?} {errno:?}");

        // Watchers were told of what was stored, and of nothing that was refused before.
        watch.snapshot();
        let mut told = Vec::new();
        while let Some(Ok(crate::store::Change::Put(spec))) = watch.next().await {
            told.push(spec.name.to_string());
        }
        told.sort();
        assert_eq!(told, ["lost", "next"], "{step:?} {errno:?}");
    }
}
