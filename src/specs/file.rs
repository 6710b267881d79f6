//! What is known, over a restart: a node that starts while no registry can be reached
//! serves what it knew.
//!
//! The file is a cache. It is replaced as a whole, off the request path, a while after
//! something has changed; one that cannot be read is as good as none.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prost::Message;
use tokio::time::sleep;

use super::{Cached, Specs};
use crate::{Digest, Error, Kind, PeerId, Result, Spec, api::proto};

/// How the file begins; a change of what follows changes it.
const MAGIC: &[u8] = b"lca specs 1\n";
/// Largest file read: as much as a registry holds, twice.
const MAX_FILE: u64 = 80 << 20;
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(500);

/// What follows the magic and the SHA-256 of this.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Remembered>,
}

#[derive(Clone, PartialEq, Message)]
struct Remembered {
    #[prost(message, optional, tag = "1")]
    spec: Option<proto::ServiceSpec>,
    /// The registry that said so.
    #[prost(string, tag = "2")]
    from: String,
}

/// Makes sure that there is a folder to write to.
pub(super) fn prepare(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        let what = format!("cannot create {}: {error}", folder.display());
        Error::new(Kind::FailedPrecondition, what).because(error)
    })
}

/// What was remembered; nothing if there is no file, or a damaged one.
pub(super) fn read(path: &Path) -> Vec<(Spec, PeerId)> {
    let bytes = match fs::metadata(path).map(|found| found.len()) {
        Ok(size) if size <= MAX_FILE => fs::read(path),
        Ok(_) => Err(io::Error::other("it is too large")),
        Err(error) => Err(error),
    };
    let decoded = match bytes {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error.to_string()),
        Ok(bytes) => decode(&bytes),
    };
    decoded.unwrap_or_else(|reason| {
        tracing::warn!(file = %path.display(), reason, "the remembered specs cannot be used");
        Vec::new()
    })
}

/// Writes what is known whenever it has changed, and once more when the daemon stops.
pub(super) async fn keep(specs: Specs, path: PathBuf, stopping: impl Future<Output = ()>) {
    let path = Arc::new(path);
    tokio::pin!(stopping);
    let mut stop = false;
    while !stop {
        let changed = async {
            specs.shared.changed.notified().await;
            sleep(GATHER).await;
        };
        // A write is never broken off: two at a time would spoil each other's file.
        stop = tokio::select! {
            () = &mut stopping => true,
            () = changed => false,
        };
        save(&specs, &path).await;
    }
}

async fn save(specs: &Specs, path: &Arc<PathBuf>) {
    let (mut all, target) = (specs.cache().all(), path.clone());
    all.retain(|(cached, _)| !cached.hearsay);
    let written = tokio::task::spawn_blocking(move || write(&target, &encode(&all))).await;
    let failed = match written {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(error) => io::Error::other(error),
    };
    tracing::warn!(file = %path.display(), error = %failed, "specs cannot be remembered");
}

/// Replaces the file as a whole. Not for the eyes of others: environments may be secret.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(aside, path)
}

fn encode(all: &[(Arc<Cached>, PeerId)]) -> Vec<u8> {
    let entries = all.iter().map(|(cached, from)| Remembered {
        spec: Some((&cached.spec).into()),
        from: from.to_string(),
    });
    let content = Content { entries: entries.collect() }.encode_to_vec();
    [MAGIC, Digest::of(&content).as_bytes(), &content].concat()
}

fn decode(bytes: &[u8]) -> std::result::Result<Vec<(Spec, PeerId)>, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is of another version")?;
    let (digest, content) = rest.split_at_checked(32).ok_or("it is truncated")?;
    if Digest::of(content).as_bytes() != digest {
        return Err("it is damaged".to_owned());
    }
    let content = Content::decode(content).map_err(|error| error.to_string())?;
    let read = content.entries.into_iter().map(|entry| {
        let spec = Spec::try_from(entry.spec.unwrap_or_default());
        Ok((spec.map_err(|error| error.to_string())?, entry.from.parse::<PeerId>()?))
    });
    read.collect::<std::result::Result<_, Box<dyn std::error::Error>>>()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Log;

    fn entry(name: &str) -> (Arc<Cached>, PeerId) {
        let spec = proto::ServiceSpec { name: name.into(), revision: 3, ..Default::default() };
        let spec = Spec::try_from(spec).unwrap();
        let from = PeerId::from_public_key([1; 32]);
        (Arc::new(Cached::new(spec, false)), from)
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/specs.cache");
        prepare(&path).unwrap();
        assert_eq!(read(&path), [], "no file is no error");
        let all = [entry("a"), entry("b")];
        write(&path, &encode(&all)).unwrap();
        let expected = all.map(|(cached, from)| (cached.spec.clone(), from));
        assert_eq!(read(&path), expected);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("specs.cache");
        let good = encode(&[entry("a")]);
        for cut in [0, 5, MAGIC.len() + 7, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(read(&path), []);
        }
        let log = Log::capture();
        fs::write(&path, "junk").unwrap();
        assert_eq!(read(&path), []);
        let told = log.lines().concat();
        assert!(told.contains("specs.cache") && told.contains("another version"), "{told}");
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert!(decode(&bad).is_err(), "byte {place}");
        }
    }
}
