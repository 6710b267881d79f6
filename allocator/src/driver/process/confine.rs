//! What a program may not do: prepared by us, put on by the child before it executes the
//! program, so from its first instruction on.
//!
//! ```text
//! parent                         child, in our memory
//! make a group, open its doors   begin in it, or enter it
//! lower our limits               set them
//! build the Landlock rules       close what is not its own at exec
//! compile the seccomp filters    drop capabilities, no new privileges, rules, filters
//! ```
//!
//! The invariant is that of [`child`](super::child): the child makes system calls over what
//! was prepared, and says which of them failed.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use lca::Allowance;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{self, CapabilitySet, CapabilitySets},
};
use seccompiler::BpfProgram;

use super::{
    cgroup::Group,
    child::{self, Born, Place},
    program::{self, Program},
};

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
pub(super) enum Step {
    Group,
    Limits,
    Descriptors,
    Capabilities,
    Privileges,
    Files,
    Calls,
    /// Nothing of these: the program cannot be executed.
    Program,
}

impl Step {
    /// In words; `None` where the program is to blame.
    pub(super) const fn words(self) -> Option<&'static str> {
        Some(match self {
            Self::Group => "its control group could not be entered",
            Self::Limits => "its limits could not be lowered",
            Self::Descriptors => "descriptors of others could not be closed",
            Self::Capabilities => "capabilities could not be dropped",
            Self::Privileges => "new privileges could not be ruled out",
            Self::Files => "files of others could not be closed to it",
            Self::Calls => "its system calls could not be filtered",
            Self::Program => return None,
        })
    }
}

/// What one child puts on.
#[derive(Debug)]
pub(super) struct Confinement {
    /// The folder of its group, where a child can begin in it.
    group: Option<OwnedFd>,
    /// Where else it is entered.
    doors: Vec<OwnedFd>,
    limits: Vec<(Resource, Rlimit)>,
    landlock: Option<OwnedFd>,
    filters: Vec<BpfProgram>,
    privileged: bool,
}

impl Confinement {
    /// Prepares it for a program that gets `group` and `limits`, and may touch `allowed`.
    /// `open_files`: its soft limit, if lower than ours. Blocks.
    ///
    /// # Errors
    /// If something cannot be opened, or no descriptor is left.
    pub(super) fn prepare(
        means: &Means,
        group: Option<&Group>,
        limits: &Allowance,
        open_files: Option<u64>,
        allowed: &Allowed<'_>,
    ) -> io::Result<Self> {
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
        Ok(Self {
            group: group.map(Group::open).transpose()?.flatten(),
            doors: group.map(Group::doors).transpose()?.unwrap_or_default(),
            limits: bounds.into_iter().map(|(what, to)| (what, lowered(what, to))).collect(),
            landlock: if means.landlock > 0 { paths::ruleset(allowed)? } else { None },
            filters: means.filters.clone(),
            privileged: means.privileged,
        })
    }

    /// Makes a child that puts it on and becomes `program`. Blocks until it has, or could
    /// not.
    ///
    /// # Errors
    /// The outer ones if no child could be made; the inner ones are the child's.
    #[allow(unsafe_code, reason = "what runs in the child is below")]
    pub(super) fn spawn(&self, program: &Program) -> io::Result<Result<Born, (Step, Errno)>> {
        let mut lists = program.lists();
        let become_it = |place| match self.put_on(program, place) {
            Ok(()) => (Step::Program, program.execute(&mut lists)),
            Err(failed) => failed,
        };
        // SAFETY: `put_on` and `execute` make system calls over what was prepared: they take
        // no lock and allocate nothing.
        unsafe { child::make(self.group.as_ref().map(OwnedFd::as_fd), become_it) }
    }

    /// In the child.
    fn put_on(&self, program: &Program, place: Place) -> Result<(), (Step, Errno)> {
        let at = |step| move |error: Errno| (step, error);
        if place == Place::Outside {
            for door in &self.doors {
                rustix::io::write(door, b"0").map_err(at(Step::Group))?;
            }
        }
        program.take_place().map_err(at(Step::Program))?;
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit).map_err(at(Step::Limits))?;
        }
        close_at_exec().map_err(at(Step::Descriptors))?;
        if self.privileged {
            drop_capabilities().map_err(at(Step::Capabilities))?;
        }
        thread::set_no_new_privs(true).map_err(at(Step::Privileges))?;
        if let Some(ruleset) = &self.landlock {
            restrict(ruleset).map_err(at(Step::Files))?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter(filter).map_err(|_| (Step::Calls, program::last()))?;
        }
        Ok(())
    }
}

/// What a limit of ours is lowered to, soft and hard, never above what we have.
fn lowered(resource: Resource, to: u64) -> Rlimit {
    let Rlimit { current, maximum } = getrlimit(resource);
    let least = |ours: Option<u64>| Some(ours.map_or(to, |ours| ours.min(to)));
    // What a program may open it may know as its soft limit and raise as far as we can.
    let maximum = if resource == Resource::Nofile { maximum } else { least(maximum) };
    Rlimit { current: least(current), maximum }
}

/// Whatever we inherited without its being meant for children, a program does not get:
/// only its standard three. They stay open until exec, which needs some of them.
#[allow(unsafe_code, reason = "no safe wrapper of close_range(2)")]
fn close_at_exec() -> Result<(), Errno> {
    // SAFETY: it marks descriptors and closes none.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST_OWN, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 { Ok(()) } else { Err(program::last()) }
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
fn restrict(ruleset: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: it takes a descriptor and flags, and no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if done == 0 { Ok(()) } else { Err(program::last()) }
}
