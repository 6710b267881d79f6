//! How much an instance has put into its working folder. There is no quota for a folder
//! that every file system has, so it is counted now and then.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// Entries that are looked at in one count, at most: some hundred milliseconds of a disk.
const MAX_ENTRIES: usize = 100_000;
/// What `st_blocks` counts in (stat(3type)).
const BLOCK: u64 = 512;

/// Bytes on the disk under `dir`; of more than [`MAX_ENTRIES`] entries, those of the first.
/// Links are counted, not followed; what cannot be read counts nothing. Blocks.
pub(super) fn size(dir: &Path) -> u64 {
    let (mut folders, mut entries, mut bytes) = (vec![dir.to_owned()], 0, 0_u64);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > MAX_ENTRIES {
                return bytes;
            }
            let Ok(found) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(found.blocks().saturating_mul(BLOCK));
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deep_counts_and_what_is_linked_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        let empty = size(dir.path());
        fs::write(deep.join("file"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", deep.join("link")).unwrap();
        let grown = size(dir.path()) - empty;
        assert!((1 << 20..2 << 20).contains(&grown), "{grown} bytes");
        assert_eq!(size(Path::new("/nowhere")), 0);
    }
}
