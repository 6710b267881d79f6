//! Which system calls a service has no business with: those that change the machine
//! (modules, mounts, clock, swap, restart), look into other processes, or reach parts of
//! the kernel that are known for their holes and needed by few.
//!
//! They fail with EPERM, as for want of a right; `clone3` with ENOSYS, since its flags are
//! behind a pointer where no filter sees them, and every C library then uses `clone`. The
//! choice follows what container engines block by default, from the other side: what is
//! not named here is allowed, so that a program is not broken by what a kernel adds.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Refused whatever their arguments.
const REFUSED: &[i64] = &[
    // The machine.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // What is mounted, and where the root is.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
    // Files by their number, past every rule about paths.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Namespaces.
    libc::SYS_setns,
    libc::SYS_unshare,
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Large parts of the kernel.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

/// Those that only one processor has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_kexec_file_load];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// Flags of `clone` that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];
/// `ioctl`s that type on somebody's terminal: TIOCSTI and TIOCLINUX (ioctl_tty(2)).
const TYPING: [u64; 2] = [0x5412, 0x541C];

/// The filters, to be put on in this order; none where this processor is not known.
pub(super) fn filters() -> Result<Vec<BpfProgram>, BackendError> {
    let Ok(processor) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Vec::new());
    };
    let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    let rule = |argument, length, mask: u64| {
        let operator = SeccompCmpOp::MaskedEq(mask);
        let value = mask;
        SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
    };
    let clone = NAMESPACES
        .iter()
        .map(|flag| rule(0, SeccompCmpArgLen::Qword, u64::from(flag.unsigned_abs())))
        .collect::<Result<Vec<_>, _>>()?;
    refused.insert(libc::SYS_clone, clone);
    let typing = TYPING
        .iter()
        .map(|request| {
            SeccompRule::new(vec![SeccompCondition::new(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                *request,
            )?])
        })
        .collect::<Result<Vec<_>, _>>()?;
    refused.insert(libc::SYS_ioctl, typing);
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    [(refused, libc::EPERM), (unknown, libc::ENOSYS)]
        .into_iter()
        .map(|(calls, number)| {
            SeccompFilter::new(calls, SeccompAction::Allow, errno(number), processor)?.try_into()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_here() {
        let known = TargetArch::try_from(std::env::consts::ARCH).is_ok();
        assert_eq!(filters().unwrap().len(), if known { 2 } else { 0 });
    }
}
