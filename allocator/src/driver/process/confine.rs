//! What a program may not do: prepared by us, put on by the child between fork and exec,
//! so from its first instruction on.
//!
//! ```text
//! parent                         child, forked
//! open the doors of its group    enter it
//! read our limits                lower them
//! build the Landlock rules       close what is not its own at exec
//! compile the seccomp filters    drop capabilities, no new privileges, rules, filters
//! ```
//!
//! The invariant: in the child nothing is allocated, locked or logged, since the fork of a
//! program with threads may have caught another thread holding any lock (signal-safety(7)).
//! It makes system calls over what was prepared, and says which of them failed by one byte
//! through a pipe.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::Command,
};

use lca::Allowance;
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{self, CapabilitySet, CapabilitySets},
};
use seccompiler::BpfProgram;

use super::cgroup::Group;

mod calls;
mod paths;

pub(super) use self::paths::Allowed;

/// The first descriptor that is not a program's standard ones.
const FIRST_OWN: u32 = 3;
/// Capabilities have numbers below this: the width of their set.
const CAPABILITIES: u32 = 64;

/// What this machine can keep programs from, found out once.
#[derive(Clone, Debug)]
pub(super) struct Means {
    /// The kernel's Landlock, 0 where it has none.
    pub(super) landlock: i32,
    /// Filters of system calls, compiled; none where this processor is not known to them.
    filters: Vec<BpfProgram>,
    /// Whether there are capabilities to drop.
    pub(super) privileged: bool,
}

impl Means {
    /// Asks the kernel.
    pub(super) fn of_this_machine() -> Self {
        let filters = calls::filters().unwrap_or_else(|error| {
            tracing::warn!(%error, "system calls of instances are not filtered");
            Vec::new()
        });
        let privileged = thread::capabilities(None).is_ok_and(|sets| !sets.permitted.is_empty());
        Self { landlock: paths::abi(), filters, privileged }
    }

    /// Whether system calls are filtered.
    pub(super) fn filters_calls(&self) -> bool {
        !self.filters.is_empty()
    }
}

/// What failed, of what the child does to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Group = 1,
    Limits,
    Descriptors,
    Capabilities,
    Privileges,
    Files,
    Calls,
}

impl Step {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Group, "its control group could not be entered"),
        (Self::Limits, "its limits could not be lowered"),
        (Self::Descriptors, "descriptors of others could not be closed"),
        (Self::Capabilities, "capabilities could not be dropped"),
        (Self::Privileges, "new privileges could not be ruled out"),
        (Self::Files, "files of others could not be closed to it"),
        (Self::Calls, "its system calls could not be filtered"),
    ];
}

/// What one child puts on.
#[derive(Debug)]
pub(super) struct Confinement {
    doors: Vec<File>,
    limits: Vec<(Resource, u64)>,
    landlock: Option<OwnedFd>,
    filters: Vec<BpfProgram>,
    privileged: bool,
    failed: OwnedFd,
    program: Program,
}

/// Where the child says what failed.
#[derive(Debug)]
pub(super) struct Report(File);

impl Report {
    /// What failed in the child, in words; `None` if it came to executing the program.
    pub(super) fn failure(&mut self) -> Option<&'static str> {
        let mut byte = [0];
        let read = self.0.read(&mut byte).unwrap_or(0);
        let found = Step::ALL.iter().find(|(step, _)| read == 1 && *step as u8 == byte[0]);
        found.map(|(_, words)| *words)
    }
}

impl Confinement {
    /// Prepares it for a program that gets `group` and `limits`, and may touch `allowed`.
    /// `open_files`: its soft limit, if lower than ours. Blocks.
    pub(super) fn prepare(
        means: &Means,
        group: Option<&Group>,
        limits: &Allowance,
        open_files: Option<u64>,
        allowed: &Allowed<'_>,
        program: Program,
    ) -> io::Result<(Self, Report)> {
        let (read, failed) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let soft = [limits.open_files.map(|files| files.get().into()), open_files]
            .into_iter()
            .flatten()
            .min();
        let mut bounds = vec![(Resource::Core, 0), (Resource::Fsize, limits.disk_bytes)];
        bounds.extend(soft.map(|soft| (Resource::Nofile, soft)));
        if group.is_none() {
            // The best there is without a group: of each process, what it can write to.
            bounds.push((Resource::Data, limits.memory_bytes));
        }
        let confinement = Self {
            doors: group.map(Group::doors).transpose()?.unwrap_or_default(),
            limits: bounds,
            landlock: if means.landlock > 0 { paths::ruleset(allowed)? } else { None },
            filters: means.filters.clone(),
            privileged: means.privileged,
            failed,
            program,
        };
        Ok((confinement, Report(File::from(read))))
    }

    /// Has the child of `command` put it on and become the program: of the command's own
    /// program nothing is used. (The standard library would hand a file that is no program
    /// to a shell, as execvp(3) does.)
    #[allow(unsafe_code, reason = "code between fork and exec; see the module's invariant")]
    pub(super) fn put_on(self, command: &mut Command) {
        // SAFETY: `apply` only makes system calls over memory that was prepared before the
        // fork: it takes no lock and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                self.apply()?;
                Err(self.program.execute())
            });
        }
    }

    /// In the child. Async-signal-safe.
    fn apply(&self) -> io::Result<()> {
        self.try_apply().map_err(|(step, error)| {
            let _the_errno_is_said_anyway = rustix::io::write(&self.failed, &[step as u8]);
            error
        })
    }

    fn try_apply(&self) -> Result<(), (Step, io::Error)> {
        let at = |step| move |error: rustix::io::Errno| (step, io::Error::from(error));
        for door in &self.doors {
            (&mut &*door).write_all(b"0").map_err(|error| (Step::Group, error))?;
        }
        for (resource, soft) in &self.limits {
            lower(*resource, *soft).map_err(at(Step::Limits))?;
        }
        close_at_exec().map_err(|error| (Step::Descriptors, error))?;
        if self.privileged {
            drop_capabilities().map_err(at(Step::Capabilities))?;
        }
        thread::set_no_new_privs(true).map_err(at(Step::Privileges))?;
        if let Some(ruleset) = &self.landlock {
            restrict(ruleset).map_err(|error| (Step::Files, error))?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter(filter)
                .map_err(|_| (Step::Calls, io::Error::last_os_error()))?;
        }
        Ok(())
    }
}

/// What is executed, in the form the kernel wants it.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// The program at `path` with these arguments after its name and this environment.
    ///
    /// # Errors
    /// If a NUL is in one of them.
    pub(super) fn new(
        path: &Path,
        arguments: &[String],
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut all = vec![path.clone()];
        for argument in arguments {
            all.push(CString::new(argument.as_bytes())?);
        }
        let mut entries = Vec::new();
        for (name, value) in environment {
            entries.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
        Ok(Self { path, arguments: all, environment: entries })
    }

    /// Becomes the program; returns only why not. Async-signal-safe but for the two lists
    /// of pointers, which is why they are on the stack and bounded.
    #[allow(unsafe_code, reason = "no safe wrapper of execve(2) takes what was prepared")]
    fn execute(&self) -> io::Error {
        let (mut arguments, mut environment) = (Pointers::default(), Pointers::default());
        if !arguments.fill(&self.arguments) || !environment.fill(&self.environment) {
            return io::ErrorKind::ArgumentListTooLong.into();
        }
        // SAFETY: both lists end with a null pointer and point to strings that end with a
        // NUL, all of which live until the call returns.
        unsafe { libc::execve(self.path.as_ptr(), arguments.0.as_ptr(), environment.0.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Most arguments, and most variables: what a spec may have, and what we add to it.
const MAX_POINTERS: usize = 320;

/// A list of strings as C has it, ended by a null pointer.
struct Pointers([*const libc::c_char; MAX_POINTERS + 1]);

impl Default for Pointers {
    fn default() -> Self {
        Self([std::ptr::null(); MAX_POINTERS + 1])
    }
}

impl Pointers {
    fn fill(&mut self, strings: &[CString]) -> bool {
        for (place, string) in self.0[..MAX_POINTERS].iter_mut().zip(strings) {
            *place = string.as_ptr();
        }
        strings.len() <= MAX_POINTERS
    }
}

/// Lowers a limit, soft and hard, never above what we have.
fn lower(resource: Resource, to: u64) -> rustix::io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let least = |ours: Option<u64>| Some(ours.map_or(to, |ours| ours.min(to)));
    // What a program may open it may know as its soft limit and raise as far as we can.
    let maximum = if resource == Resource::Nofile { maximum } else { least(maximum) };
    setrlimit(resource, Rlimit { current: least(current), maximum })
}

/// Whatever we inherited without its being meant for children, a program does not get:
/// only its standard three. They stay open until exec, which needs some of them.
#[allow(unsafe_code, reason = "no safe wrapper of close_range(2)")]
fn close_at_exec() -> io::Result<()> {
    // SAFETY: it marks descriptors and closes none.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST_OWN, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives up every capability, also those that executing as root would give back.
fn drop_capabilities() -> rustix::io::Result<()> {
    for number in 0..CAPABILITIES {
        let Some(capability) = CapabilitySet::from_bits(1 << number) else { continue };
        // Needs a capability itself: what runs without it has nothing to give back.
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    let none = CapabilitySet::empty();
    thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
}

#[allow(
    unsafe_code,
    reason = "no safe wrapper of landlock_restrict_self(2) for a prepared ruleset"
)]
fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: it takes a descriptor and flags, and no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
