//! The file that says which images an allocator has pulled. Those alone are ever removed:
//! what people pulled, built or loaded is theirs.
//!
//! A name is written down before its pull begins, so a crash in between leaves nothing that
//! nobody owns. The file is replaced whole. One that cannot be read is put aside: then nothing is
//! removed any more of what it named, which costs disk and breaks nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use lca::Digest;
use serde::{Deserialize, Serialize};

use super::surplus::Kept;

/// More images than an engine is good for.
const MAX: usize = 10_000;
/// Largest file that is read: that many names.
const MAX_FILE: u64 = 8 << 20;

/// What is known of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// The image ID; empty while it is being pulled.
    id: String,
    size: u64,
    used_ms: u64,
}

/// The names, each `NAME@DIGEST`, and where they are written down.
#[derive(Debug)]
pub(crate) struct Book {
    file: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Book {
    /// Opens the file, or begins one. Blocks.
    pub(crate) fn open(file: PathBuf) -> Self {
        let entries = match read(&file) {
            Ok(entries) => entries,
            Err(error) => {
                let aside = file.with_extension("damaged");
                let moved = fs::rename(&file, &aside).is_ok();
                tracing::warn!(
                    file = %file.display(), %error, moved,
                    "the list of pulled images cannot be read; those it named are kept for ever"
                );
                BTreeMap::new()
            }
        };
        Self { file, entries }
    }

    /// Has it written down that this name is about to be pulled.
    pub(crate) fn begin(&mut self, name: &str, now_ms: u64) -> io::Result<()> {
        if self.entries.len() >= MAX {
            return Err(io::Error::other("too many images"));
        }
        let entry = Entry { used_ms: now_ms, ..Entry::default() };
        self.entries.entry(name.to_owned()).or_insert(entry);
        self.write()
    }

    /// It is here, and needed now. Nothing happens if it is none of ours.
    pub(crate) fn used(
        &mut self,
        name: &str,
        id: Digest,
        size: u64,
        now_ms: u64,
    ) -> io::Result<()> {
        match self.entries.get_mut(name) {
            Some(entry) => {
                *entry = Entry { id: id.to_string(), size, used_ms: now_ms };
                self.write()
            }
            None => Ok(()),
        }
    }

    /// It is here no more.
    pub(crate) fn forget(&mut self, name: &str) -> io::Result<()> {
        match self.entries.remove(name) {
            Some(_) => self.write(),
            None => Ok(()),
        }
    }

    /// Those whose pull has come to its end.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let kept = |(name, entry): (&String, &Entry)| {
            let (size, used_ms) = (entry.size, entry.used_ms);
            Some(Kept { name: name.clone(), id: entry.id.parse().ok()?, size, used_ms })
        };
        self.entries.iter().filter_map(kept).collect()
    }

    /// Those whose pull was not heard to end, and since when.
    pub(crate) fn unsettled(&self) -> Vec<(String, u64)> {
        let open = self.entries.iter().filter(|(_, entry)| entry.id.is_empty());
        open.map(|(name, entry)| (name.clone(), entry.used_ms)).collect()
    }

    fn write(&self) -> io::Result<()> {
        let new = self.file.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&self.entries).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.file)
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<String, Entry>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is larger than 8 MiB"));
    }
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_known_after_a_crash_at_any_moment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images.json");
        let id = Digest::of(b"image");
        let mut book = Book::open(file.clone());
        book.used("theirs@x", id, 7, 1).unwrap();
        book.begin("ours@x", 5).unwrap();
        let book = Book::open(file.clone());
        assert_eq!(book.unsettled(), [("ours@x".to_owned(), 5)]);
        assert_eq!(book.kept(), []);
        let mut book = book;
        book.used("ours@x", id, 7, 9).unwrap();
        let mut book = Book::open(file.clone());
        let ours = Kept { name: "ours@x".into(), id, size: 7, used_ms: 9 };
        assert_eq!((book.kept(), book.unsettled()), (vec![ours], vec![]));
        book.forget("ours@x").unwrap();
        assert_eq!(Book::open(file).kept(), []);
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_nothing_is_removed_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images.json");
        fs::write(&file, "{\"a\":").unwrap();
        assert_eq!(Book::open(file.clone()).kept(), []);
        assert!(dir.path().join("images.damaged").exists() && !file.exists());
    }
}
