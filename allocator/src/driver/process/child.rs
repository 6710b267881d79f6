//! Makes a child that shares our memory until it is another program, as posix_spawn(3)
//! does: a fork copies the page tables of the whole daemon, which takes milliseconds of
//! every start.
//!
//! ```text
//! parent: one thread                     child
//! block all signals
//! clone(VM, VFORK, PIDFD) ─────────────► on a stack of its own
//!   stands still                         all signals back to their defaults
//!   .                                    the work it was made for
//!   . ◄───────────────────────────────── execve, or _exit once it has said what failed
//! unblock signals, look what was said
//! ```
//!
//! The thread that makes it stands still (CLONE_VFORK) until the child has a memory of its
//! own; all others go on. So it is made off the runtime.
//!
//! The invariant: in the child nothing is allocated, locked or logged, and nothing panics,
//! since it runs in our memory while other threads may hold any lock. No handler of ours
//! runs in it: signals are blocked from before it is there until their handlers are not.
//! It shares the thread-local storage of the thread that stands still, `errno` included,
//! which that thread reads only after a call of its own has failed.

use std::{
    ffi::{c_int, c_void},
    io, mem,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use rustix::{
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
    param::page_size,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

mod into_group;

/// What a child needs for a few calls, and some more; it is never touched beyond that.
const STACK: usize = 64 << 10;
/// Signals have numbers from 1 to this.
const SIGNALS: c_int = 64;
/// Of a set of signals, as the kernel counts it.
const SIGNAL_SET: usize = 8;
/// What it shares, and what we get: see clone(2).
const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;

/// A child that is a program now. Nobody else reaps it.
#[derive(Debug)]
pub(super) struct Born {
    pub(super) pid: Pid,
    /// By which it is known, whatever becomes of its number.
    pub(super) handle: OwnedFd,
}

/// Whether a child begins its life in the control group it is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In its own group.
    Inside,
    /// In ours.
    Outside,
}

/// Makes a child that does `work`, which returns only if it cannot become a program, with
/// what failed. With `group`, the folder of a group of version 2, it begins in there, where
/// the kernel can do that. Blocks until it is a program, or could not be.
///
/// # Errors
/// The outer ones if no child could be made, the inner ones if `work` returned.
///
/// # Safety
/// `work` keeps the module's invariant.
#[allow(unsafe_code, reason = "the caller vouches for what runs in the child")]
pub(super) unsafe fn make<F>(
    group: Option<BorrowedFd<'_>>,
    mut work: impl FnMut(Place) -> F,
) -> io::Result<Result<Born, F>> {
    let stack = Stack::new()?;
    let mut failed = None;
    let mut done = |place| failed = Some(work(place));
    let born = {
        let _blocked = Blocked::all()?;
        let mut errand = Errand { work: &mut done, place: Place::Inside };
        // Where it cannot begin in its group for whatever reason, it enters as ever.
        let inside = group.and_then(|group| into_group::clone(group, &stack, &mut errand).ok());
        match inside {
            Some(born) => born,
            None => {
                errand.place = Place::Outside;
                clone(&stack, &mut errand)?
            }
        }
    };
    Ok(match failed {
        None => Ok(born),
        Some(failed) => {
            // It ends at once, if it has not.
            let _reaped = waitid(WaitId::PidFd(born.handle.as_fd()), WaitIdOptions::EXITED);
            Err(failed)
        }
    })
}

/// What a child is made for.
struct Errand<'a> {
    work: &'a mut dyn FnMut(Place),
    place: Place,
}

/// The child's first function, and its last.
#[allow(unsafe_code, reason = "runs in a child that shares our memory")]
extern "C" fn run(errand: *mut c_void) -> c_int {
    // SAFETY: it is the errand of the thread that stands still meanwhile, so nobody else
    // uses it.
    let errand = unsafe { &mut *errand.cast::<Errand<'_>>() };
    default_signals();
    (errand.work)(errand.place);
    // SAFETY: it ends this process and touches nothing: no handler of ours runs at its end.
    unsafe { libc::_exit(127) }
}

/// Whatever we do about signals, a program begins with their defaults: also those that we
/// ignore, which executing would leave ignored.
#[allow(unsafe_code, reason = "the C library's sigaction keeps books that are the parent's")]
fn default_signals() {
    // As the kernel has it (handler, flags, restorer, mask): all zero is the default.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: the kernel reads the one structure and writes none; that SIGKILL and
        // SIGSTOP are refused changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                SIGNAL_SET,
            )
        };
    }
}

/// In the child, before it is a program: lets signals through again. Safe there only since
/// [`default_signals`].
#[allow(unsafe_code, reason = "see there")]
pub(super) fn unblock_signals() {
    let none = 0_u64;
    // SAFETY: the kernel reads one set and writes none.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&none),
            ptr::null_mut::<c_void>(),
            SIGNAL_SET,
        )
    };
}

/// Makes the child where we are.
#[allow(unsafe_code, reason = "no safe wrapper of clone(2)")]
fn clone(stack: &Stack, errand: &mut Errand<'_>) -> io::Result<Born> {
    let mut handle: RawFd = -1;
    // SAFETY: `run` gets a stack of its own, and the errand, which this thread leaves alone
    // while it stands still. The kernel writes the descriptor to the one place it is told.
    let pid = unsafe {
        libc::clone(
            run,
            stack.top(),
            FLAGS | libc::SIGCHLD,
            ptr::from_mut(errand).cast(),
            ptr::from_mut(&mut handle),
        )
    };
    match Pid::from_raw(pid).filter(|_| pid > 0) {
        // SAFETY: the kernel has just made the descriptor for us.
        Some(pid) => Ok(Born { pid, handle: unsafe { OwnedFd::from_raw_fd(handle) } }),
        None => Err(io::Error::last_os_error()),
    }
}

/// Memory for a child's calls, with a page below it that nobody may touch.
struct Stack {
    base: *mut c_void,
    length: usize,
}

impl Stack {
    #[allow(unsafe_code, reason = "no safe wrapper of mmap(2)")]
    fn new() -> io::Result<Self> {
        let length = STACK + page_size();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: it maps new memory, wherever the kernel likes.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE)? };
        let stack = Self { base, length };
        // SAFETY: the page is ours, and nothing is in it yet.
        unsafe { mprotect(base, page_size(), MprotectFlags::empty())? };
        Ok(stack)
    }

    /// Where it begins: at the end of a page, as every processor wants it aligned.
    fn top(&self) -> *mut c_void {
        self.base.wrapping_byte_add(self.length)
    }
}

impl Drop for Stack {
    #[allow(unsafe_code, reason = "no safe wrapper of munmap(2)")]
    fn drop(&mut self) {
        // SAFETY: it was mapped by us, and the child that used it has a memory of its own.
        let _cannot_fail = unsafe { munmap(self.base, self.length) };
    }
}

/// All signals of this thread are blocked until this is dropped.
struct Blocked(libc::sigset_t);

impl Blocked {
    #[allow(unsafe_code, reason = "no safe wrapper of pthread_sigmask(3)")]
    fn all() -> io::Result<Self> {
        // SAFETY: a set of signals is a number; `sigfillset` and the call write to our own.
        unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = mem::zeroed();
            libc::sigfillset(&mut all);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) {
                0 => Ok(Self(before)),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for Blocked {
    #[allow(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        // SAFETY: the set is the one that was in force.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests;
