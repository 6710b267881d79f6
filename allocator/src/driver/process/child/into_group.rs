//! Begins a child in its control group of version 2, by `clone3` with CLONE_INTO_CGROUP.
//!
//! Entering by `cgroup.procs` makes the kernel wait until no other process forks, which
//! takes some 20 ms. The C library has no `clone3`: that a child comes back on another stack than its
//! parent takes a few instructions, which are written here for the one processor they were
//! tried on. Elsewhere, and where the kernel or a filter of calls refuses it, a child is
//! made as ever and enters by itself.

use std::{io, os::fd::BorrowedFd};

use super::{Born, Errand, Stack};

/// Elsewhere: not known.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn clone(_: BorrowedFd<'_>, _: &Stack, _: &mut Errand<'_>) -> io::Result<Born> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_arch = "x86_64")]
pub(super) use known::clone;

#[cfg(target_arch = "x86_64")]
mod known {
    use std::{
        arch::asm,
        os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        ptr,
    };

    use rustix::process::Pid;

    use super::{
        super::{FLAGS, STACK, run},
        *,
    };

    /// CLONE_INTO_CGROUP of `linux/sched.h`.
    const INTO_CGROUP: u64 = 0x2_0000_0000;

    /// `struct clone_args` of clone(2).
    #[derive(Default)]
    #[repr(C)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }

    /// Makes the child in `group`.
    #[allow(unsafe_code, reason = "no wrapper of clone3(2) whose child has another stack")]
    pub(in super::super) fn clone(
        group: BorrowedFd<'_>,
        stack: &Stack,
        errand: &mut Errand<'_>,
    ) -> io::Result<Born> {
        let mut handle: RawFd = -1;
        let arguments = Arguments {
            flags: u64::from(FLAGS.unsigned_abs()) | INTO_CGROUP,
            pidfd: ptr::from_mut(&mut handle).addr() as u64,
            exit_signal: libc::SIGCHLD.unsigned_abs().into(),
            stack: stack.top().wrapping_byte_sub(STACK).addr() as u64,
            stack_size: STACK as u64,
            cgroup: u64::from(group.as_raw_fd().unsigned_abs()),
            ..Arguments::default()
        };
        let returned: i64;
        // SAFETY: in the parent it is a system call that changes `rax`, `rcx` and `r11`, and
        // the two places that were passed by address. The child comes back with a stack of
        // its own, aligned as a call wants it, calls `run` with the errand, which this thread
        // leaves alone while it stands still, and never leaves it.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 => returned,
                in("rdi") ptr::from_ref(&arguments),
                in("rsi") size_of::<Arguments>(),
                in("r12") ptr::from_mut(errand),
                in("r13") run as extern "C" fn(*mut std::ffi::c_void) -> std::ffi::c_int,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        match i32::try_from(returned).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) {
            // SAFETY: the kernel has just made the descriptor for us.
            Some(pid) => Ok(Born { pid, handle: unsafe { OwnedFd::from_raw_fd(handle) } }),
            None => {
                let number = i32::try_from(-returned).unwrap_or(libc::EINVAL);
                Err(io::Error::from_raw_os_error(number))
            }
        }
    }
}
