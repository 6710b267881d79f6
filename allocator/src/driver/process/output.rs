//! What one instance writes: one file it appends to by descriptor, and one older file.
//!
//! No pipe and no copier stand between the program and the disk, so neither a crash
//! of the allocator nor a slow reader of its logs can stall the program. The price is
//! rotation by copying and truncating: what is written between the copy and the cut
//! (microseconds) is lost.
//!
//! A position counts the bytes since the start of the instance, whatever was rotated
//! away since, so a reader that follows neither repeats nor skips what is kept.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::driver::{Begin, MAX_CHUNK};

/// The output of one instance. Every method blocks on the disk.
#[derive(Debug)]
pub(super) struct Output {
    current: PathBuf,
    older: PathBuf,
    /// Bytes rotated out of the current file so far. The lock also keeps readers and
    /// rotation apart; programs go on writing.
    base: Mutex<u64>,
}

impl Output {
    /// Makes the file in `dir`; a descriptor that appends to it comes with it.
    pub(super) fn create(dir: &Path) -> io::Result<(Self, File)> {
        let current = dir.join("output.log");
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&current)?;
        Ok((Self { current, older: dir.join("output.log.1"), base: Mutex::new(0) }, file))
    }

    /// The file that is written now.
    pub(super) fn path(&self) -> &Path {
        &self.current
    }

    /// The files that an earlier run made in `dir`. Positions count from the oldest byte
    /// that is kept: how much was rotated away before is not known any more.
    pub(super) fn reopen(dir: &Path) -> Self {
        let older = dir.join("output.log.1");
        let kept = std::fs::metadata(&older).map_or(0, |found| found.len());
        Self { current: dir.join("output.log"), older, base: Mutex::new(kept) }
    }

    /// Moves what was written to the older file once it is more than `limit` bytes, so
    /// that about twice the limit is kept. Returns the size of the current file, `None`
    /// if it was rotated.
    pub(super) fn rotate(&self, limit: u64) -> io::Result<Option<u64>> {
        let mut base = self.lock();
        let mut current = OpenOptions::new().read(true).write(true).open(&self.current)?;
        let size = current.metadata()?.len();
        if size <= limit {
            return Ok(Some(size));
        }
        // A flood may have outrun us: the end of it is what anyone will want, from the
        // beginning of a line.
        let kept = line_start(&current, size - limit, size)?;
        current.seek(SeekFrom::Start(kept))?;
        let mut older = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.older)?;
        io::copy(&mut (&mut current).take(size - kept), &mut older)?;
        current.set_len(0)?;
        *base += size;
        Ok(None)
    }

    /// Reads at most [`MAX_CHUNK`] bytes at `position`, or at the oldest kept byte
    /// after it. Returns the bytes, none at the end, and the position behind them.
    pub(super) fn read(&self, position: u64) -> io::Result<(Vec<u8>, u64)> {
        let base = self.lock();
        let (file, start) = if position >= *base {
            (File::open(&self.current)?, *base)
        } else {
            let older = File::open(&self.older)?;
            let kept = older.metadata()?.len();
            (older, *base - kept)
        };
        let position = position.max(start);
        let mut bytes = vec![0; MAX_CHUNK];
        let filled = file.read_at(&mut bytes, position - start)?;
        bytes.truncate(filled);
        Ok((bytes, position + filled as u64))
    }

    /// The position where reading `from` begins, and the end as it was then.
    pub(super) fn span(&self, from: Begin) -> io::Result<(u64, u64)> {
        let (oldest, end) = self.bounds()?;
        let begin = match from {
            Begin::Oldest => oldest,
            Begin::LastBytes(bytes) => end.saturating_sub(bytes).max(oldest),
            Begin::LastLines(lines) => self.last_lines(lines, oldest, end)?,
        };
        Ok((begin, end))
    }

    /// Where the line ends that reaches `position`: there, if one does just before it,
    /// else behind the next line end. `None` while it is unfinished.
    pub(super) fn line_end(&self, position: u64) -> io::Result<Option<u64>> {
        let before = self.read_between(position.saturating_sub(1), position)?;
        if before.last().is_none_or(|byte| *byte == b'\n') {
            return Ok(Some(position));
        }
        let (bytes, next) = self.read(position)?;
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        Ok(newline.map(|newline| next - (bytes.len() - newline - 1) as u64))
    }

    /// Searches backwards for the beginning of the last `lines` lines.
    fn last_lines(&self, lines: u32, oldest: u64, end: u64) -> io::Result<u64> {
        if lines == 0 {
            return Ok(end);
        }
        let mut left = lines;
        // A line end at the very end closes the last line, it begins none.
        let mut to = end.saturating_sub(1);
        while to > oldest {
            let from = to.saturating_sub(MAX_CHUNK as u64).max(oldest);
            let block = self.read_between(from, to)?;
            for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                left -= 1;
                if left == 0 {
                    return Ok(from + index as u64 + 1);
                }
            }
            to = from;
        }
        Ok(oldest)
    }

    fn read_between(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        let mut position = from;
        while position < to {
            let (mut bytes, next) = self.read(position)?;
            if next == position {
                break;
            }
            bytes.truncate((to - position) as usize);
            block.append(&mut bytes);
            position = next;
        }
        Ok(block)
    }

    fn bounds(&self) -> io::Result<(u64, u64)> {
        let base = self.lock();
        let older = std::fs::metadata(&self.older).map_or(0, |found| found.len());
        Ok((*base - older, *base + std::fs::metadata(&self.current)?.len()))
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        // Nothing panics while holding it.
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the first line begins at or after `from`, if one does soon; else `from`.
fn line_start(file: &File, from: u64, end: u64) -> io::Result<u64> {
    if from == 0 {
        return Ok(0);
    }
    // One byte before: a line may begin at `from` itself.
    let mut block = vec![0; MAX_CHUNK.min((end - from) as usize + 1)];
    let filled = file.read_at(&mut block, from - 1)?;
    let newline = block[..filled].iter().position(|byte| *byte == b'\n');
    Ok(newline.map_or(from, |newline| from + newline as u64))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn all_from(output: &Output, from: Begin) -> Vec<u8> {
        let (begin, end) = output.span(from).unwrap();
        output.read_between(begin, end).unwrap()
    }

    #[test]
    fn a_reader_that_follows_sees_through_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (output, mut file) = Output::create(dir.path()).unwrap();
        file.write_all(b"one\n").unwrap();
        let (_, position) = output.read(0).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(output.rotate(4).unwrap(), None);
        file.write_all(b"three\n").unwrap();
        let (bytes, position) = output.read(position).unwrap();
        assert_eq!(bytes, b"two\n");
        let (bytes, _) = output.read(position).unwrap();
        assert_eq!(bytes, b"three\n");
    }

    #[test]
    fn what_is_kept_begins_with_a_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let (output, mut file) = Output::create(dir.path()).unwrap();
        file.write_all(b"torn line\nsecond\nthird\n").unwrap();
        output.rotate(18).unwrap();
        assert_eq!(all_from(&output, Begin::Oldest), b"second\nthird\n");
        // A cut just between two lines loses neither.
        file.write_all(b"one\ntwo\nthree\n").unwrap();
        output.rotate(10).unwrap();
        assert_eq!(all_from(&output, Begin::Oldest), b"two\nthree\n");
    }

    #[test]
    fn an_unfinished_line_ends_where_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let (output, mut file) = Output::create(dir.path()).unwrap();
        assert_eq!(output.line_end(0).unwrap(), Some(0));
        file.write_all(b"one\ntw").unwrap();
        assert_eq!([4, 6].map(|at| output.line_end(at).unwrap()), [Some(4), None]);
        file.write_all(b"o\nthree").unwrap();
        assert_eq!(output.line_end(6).unwrap(), Some(8));
    }

    #[test]
    fn a_flood_keeps_no_more_than_twice_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (output, mut file) = Output::create(dir.path()).unwrap();
        for _ in 0..10 {
            file.write_all(&[b'x'; 1000]).unwrap();
            output.rotate(500).unwrap();
        }
        assert_eq!(all_from(&output, Begin::Oldest).len(), 500);
    }

    proptest! {
        #[test]
        fn the_last_lines_are_the_last_lines(
            lines in proptest::collection::vec("[a-z]{0,30}", 1..20), ended: bool, wanted in 0u32..30, limit in 1u64..400,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (output, mut file) = Output::create(dir.path()).unwrap();
            let mut text = lines.join("\n");
            if ended { text.push('\n'); }
            file.write_all(text.as_bytes()).unwrap();
            output.rotate(limit).unwrap();
            let kept = String::from_utf8(all_from(&output, Begin::Oldest)).unwrap();
            prop_assert!(text.ends_with(&kept));
            let torn = !kept.is_empty() && !text[..text.len() - kept.len()].ends_with('\n');
            let cut = &text[text.len().saturating_sub(limit as usize)..];
            // Only where no line begins in what may be kept is the middle of one kept.
            prop_assert!(!torn || kept.len() == text.len() || !cut.contains('\n'), "{kept:?} of {text:?}");
            let last = String::from_utf8(all_from(&output, Begin::LastLines(wanted))).unwrap();
            prop_assert!(kept.ends_with(&last));
            let whole = kept.split_inclusive('\n').count();
            prop_assert_eq!(last.split_inclusive('\n').count(), whole.min(wanted as usize));
        }
    }
}
