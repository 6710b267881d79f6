//! Which call was given which instance: lines that are appended, in two files of which
//! the older one is dropped, so that they stay bounded without ever being rewritten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use lca::{InstanceId, PeerId, RequestId, api::Caller};

use crate::requests::{Mode, REMEMBERED, Wanted};

/// How a line begins; a change of what follows changes it.
const VERSION: &str = "1";
/// Lines in a file before it becomes the older one: all that is remembered in memory is
/// in both together.
const LINES: usize = REMEMBERED.get();
/// Most bytes of a file that are read, from its end: more than so many lines have.
const MAX_FILE: u64 = (LINES as u64) * 512;

/// A call that was given an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) id: RequestId,
    pub(crate) wanted: Wanted,
    pub(crate) instance: InstanceId,
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// The files of calls. Methods block on the disk.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    lines: usize,
}

impl Journal {
    /// Goes on where an earlier run ended, and returns its calls, oldest first. Lines
    /// that are none are left out, and said to be.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Vec<Call>)> {
        let path = dir.join("calls");
        let mut calls = Vec::new();
        let mut damaged = 0;
        let mut lines = 0;
        for path in [older(&path), path.clone()] {
            let text = read(&path)?;
            lines = 0;
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                lines += 1;
                match std::str::from_utf8(line).ok().and_then(Call::parse) {
                    Some(call) => calls.push(call),
                    None => damaged += 1,
                }
            }
        }
        if damaged > 0 {
            tracing::warn!(
                file = %path.display(), damaged,
                "some calls are not remembered: their lines cannot be read"
            );
        }
        let mut file = append(&path)?;
        // A line that was broken off must not spoil the next one. Empty lines are none.
        file.write_all(b"\n")?;
        Ok((Self { path, current: Mutex::new(Current { file, lines }) }, calls))
    }

    /// Adds a line.
    pub(super) fn append(&self, call: &Call) -> io::Result<()> {
        // Nothing panics while holding it.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.lines >= LINES {
            fs::rename(&self.path, older(&self.path))?;
            *current = Current { file: append(&self.path)?, lines: 0 };
        }
        current.lines += 1;
        current.file.write_all(call.line().as_bytes())
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("old")
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The last [`MAX_FILE`] bytes of a file; nothing, if there is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_FILE)))?;
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

impl Call {
    /// Its line: nothing in it has blanks or line ends.
    fn line(&self) -> String {
        let caller = match self.caller {
            Caller::Peer(peer) => peer.to_string(),
            Caller::Local => "local".to_owned(),
        };
        let mode = match self.wanted.mode {
            Mode::Ensure => "ensure",
            Mode::New => "new",
        };
        let Self { id, wanted: Wanted { service, hash, .. }, instance, at_ms, .. } = self;
        format!("{VERSION} {at_ms} {caller} {id} {service} {hash} {mode} {instance}\n")
    }

    fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split(' ').collect();
        let [VERSION, at_ms, caller, id, service, hash, mode, instance] = parts[..] else {
            return None;
        };
        let caller = match caller {
            "local" => Caller::Local,
            peer => Caller::Peer(peer.parse::<PeerId>().ok()?),
        };
        let mode = match mode {
            "ensure" => Mode::Ensure,
            "new" => Mode::New,
            _ => return None,
        };
        Some(Self {
            caller,
            id: id.parse().ok()?,
            wanted: Wanted { service: service.parse().ok()?, hash: hash.parse().ok()?, mode },
            instance: instance.parse().ok()?,
            at_ms: at_ms.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use lca::ServiceHash;

    use super::*;

    fn call(number: u64) -> Call {
        Call {
            caller: match number % 2 {
                0 => Caller::Local,
                _ => Caller::Peer(PeerId::from_public_key([3; 32])),
            },
            id: format!("r{number}").parse().unwrap(),
            wanted: Wanted {
                service: "hello".parse().unwrap(),
                hash: ServiceHash::from_sha256([1; 32]),
                mode: if number < 3 { Mode::New } else { Mode::Ensure },
            },
            instance: InstanceId::random(),
            at_ms: number,
        }
    }

    #[test]
    fn calls_are_read_back_in_their_order_and_damaged_lines_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let calls: Vec<_> = (0..6).map(call).collect();
        let (journal, none) = Journal::open(dir.path()).unwrap();
        assert_eq!(none, []);
        calls[..3].iter().for_each(|call| journal.append(call).unwrap());
        drop(journal);
        // Broken off in the middle, and rubbish that is no text.
        let line = call(9).line();
        let mut file = append(&dir.path().join("calls")).unwrap();
        file.write_all(b"\xff\xfe\n2 newer version\n").unwrap();
        file.write_all(&line.as_bytes()[..line.len() - 5]).unwrap();
        let (journal, left) = Journal::open(dir.path()).unwrap();
        assert_eq!(left, calls[..3]);
        calls[3..].iter().for_each(|call| journal.append(call).unwrap());
        assert_eq!(Journal::open(dir.path()).unwrap().1, calls);
    }

    #[test]
    fn the_files_stay_bounded_and_hold_what_memory_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        let count = LINES * 5 / 2;
        (0..count as u64).for_each(|number| journal.append(&call(number)).unwrap());
        let lines = |name: &str| {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            text.lines().filter(|line| !line.is_empty()).count()
        };
        assert_eq!((lines("calls"), lines("calls.old")), (LINES / 2, LINES));
        let (_, left) = Journal::open(dir.path()).unwrap();
        assert_eq!(left.last().unwrap().at_ms, count as u64 - 1);
        assert!(left.len() >= LINES);
    }

    #[test]
    fn a_huge_file_costs_no_more_than_a_full_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("calls");
        append(&path).unwrap().set_len(MAX_FILE * 100).unwrap();
        let last = call(1);
        append(&path).unwrap().write_all(format!("\n{}", last.line()).as_bytes()).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, MAX_FILE);
        let (_, left) = Journal::open(dir.path()).unwrap();
        assert_eq!(left, [last]);
    }
}
