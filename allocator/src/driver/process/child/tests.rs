use std::{
    fs,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use super::*;

/// A child that only says what `look` sees in it.
#[allow(unsafe_code, reason = "the invariant is kept by each test's `look`")]
fn child<F>(group: Option<BorrowedFd<'_>>, look: impl FnMut(Place) -> F) -> Result<Born, F> {
    // SAFETY: what the tests do in it are system calls.
    unsafe { make(group, look).unwrap() }
}

#[test]
fn what_a_child_says_is_heard_and_it_is_reaped() {
    let pid = AtomicI32::new(0);
    let said = child(None, |place| {
        pid.store(rustix::process::getpid().as_raw_nonzero().get(), Ordering::Relaxed);
        (place, 7)
    });
    assert_eq!(said.unwrap_err(), (Place::Outside, 7));
    let pid = Pid::from_raw(pid.into_inner()).unwrap();
    assert_ne!(pid, rustix::process::getpid());
    let again = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    assert_eq!(again.unwrap_err(), rustix::io::Errno::CHILD, "a zombie is left");
}

#[test]
fn what_was_ignored_or_blocked_is_not_in_a_program() {
    // The standard library ignores SIGPIPE in us, and `make` blocks all.
    for none in [c"^SigBlk:.0000000000000000$", c"^SigIgn:.0000000000000000$"] {
        let status = c"/proc/self/status";
        let arguments = [c"/bin/grep", c"-q", none, status].map(std::ffi::CStr::as_ptr);
        let arguments = [&arguments[..], &[ptr::null()]].concat();
        let born = child(None, |_| {
            unblock_signals();
            execute(&arguments)
        });
        let born = born.unwrap();
        let status = waitid(WaitId::PidFd(born.handle.as_fd()), WaitIdOptions::EXITED).unwrap();
        assert_eq!(status.unwrap().exit_status(), Some(0), "not {none:?}");
    }
}

#[allow(unsafe_code, reason = "execve(2)")]
fn execute(arguments: &[*const std::ffi::c_char]) -> io::Error {
    // SAFETY: the list ends with a null pointer and points to C strings.
    unsafe { libc::execve(arguments[0], arguments.as_ptr(), [ptr::null()].as_ptr()) };
    io::Error::last_os_error()
}

#[test]
fn other_threads_go_on_and_handlers_are_not_run_in_a_child() {
    static CAUGHT: AtomicBool = AtomicBool::new(false);
    extern "C" fn caught(_: c_int) {
        CAUGHT.store(true, Ordering::Relaxed);
    }
    #[allow(unsafe_code, reason = "sets a handler")]
    // SAFETY: the handler stores to an atomic.
    unsafe {
        libc::signal(libc::SIGURG, caught as *const () as libc::sighandler_t)
    };
    let said = child(None, |_| {
        unblock_signals();
        // By default it is ignored; our handler would be seen here, the memory being ours.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::URG)
    });
    said.unwrap_err().unwrap();
    assert!(!CAUGHT.load(Ordering::Relaxed), "a handler of ours ran in the child");
}

#[test]
fn a_child_begins_in_its_group_where_there_is_one_of_version_2() {
    let Some(group) = Group::make() else {
        eprintln!("SKIPPED: no control group of version 2 can be made here");
        assert!(std::env::var_os("LCA_REQUIRE_CGROUP2").is_none(), "and it is required");
        return;
    };
    let pid = AtomicI32::new(0);
    let mut read = [0_u8; 256];
    let said = child(Some(group.open().as_fd()), |place| {
        pid.store(rustix::process::getpid().as_raw_nonzero().get(), Ordering::Relaxed);
        let procs = rustix::fs::open(
            group.procs.as_c_str(),
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        );
        (place, procs.and_then(|procs| rustix::io::read(&procs, &mut read)))
    });
    let (place, length) = said.unwrap_err();
    assert_eq!(place, Place::Inside);
    let inside = String::from_utf8_lossy(&read[..length.unwrap()]).trim().to_owned();
    assert_eq!(inside, pid.into_inner().to_string());
}

#[test]
fn where_a_group_cannot_be_begun_in_a_child_is_made_all_the_same() {
    let no_group: OwnedFd = fs::File::open("/").unwrap().into();
    let said = child(Some(no_group.as_fd()), |place| place);
    assert_eq!(said.unwrap_err(), Place::Outside);
}

/// A group of version 2, with or without controllers.
struct Group {
    dir: std::path::PathBuf,
    procs: std::ffi::CString,
}

impl Group {
    fn make() -> Option<Self> {
        let dir =
            super::super::cgroup::unified_here()?.join(format!("lca-test-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let procs = dir.join("cgroup.procs").to_str()?.to_owned();
        Some(Self { dir, procs: std::ffi::CString::new(procs).ok()? })
    }

    fn open(&self) -> OwnedFd {
        fs::File::open(&self.dir).unwrap().into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::remove_dir(&self.dir).unwrap();
    }
}
