//! What a child becomes: a program, in the form the kernel wants it, with the place it
//! begins in.
//!
//! All of it is made before the child is; the child makes system calls over it and nothing
//! else (see [`child`](super::child)).

use std::{
    ffi::{CString, OsString, c_char},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

use super::child::unblock_signals;

/// A program that was prepared, to be become as often as it takes.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    folder: CString,
    /// Its standard input, which is empty, and where both of its outputs go.
    input: OwnedFd,
    output: OwnedFd,
}

/// What a program is told and where it begins.
#[derive(Debug)]
pub(super) struct Told<'a, E> {
    /// The file that is executed.
    pub(super) path: &'a Path,
    /// What follows its name.
    pub(super) arguments: &'a [String],
    /// All of its variables.
    pub(super) environment: E,
    /// Its working folder.
    pub(super) folder: &'a Path,
    /// What it writes goes there.
    pub(super) output: OwnedFd,
}

impl Program {
    /// Prepares it.
    ///
    /// # Errors
    /// If a NUL is in any of it, or no descriptor is left.
    pub(super) fn new(
        told: Told<'_, impl IntoIterator<Item = (OsString, OsString)>>,
    ) -> io::Result<Self> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let path = text(told.path)?;
        let mut arguments = vec![path.clone()];
        for argument in told.arguments {
            arguments.push(CString::new(argument.as_bytes())?);
        }
        let mut environment = Vec::new();
        for (name, value) in told.environment {
            environment.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
        let input = open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let (folder, output) = (text(told.folder)?, told.output);
        Ok(Self { path, arguments, environment, folder, input, output })
    }

    /// Its lists as C has them; to be made before the child, which uses them.
    pub(super) fn lists(&self) -> Lists {
        let list = |strings: &[CString]| {
            strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        Lists { arguments: list(&self.arguments), environment: list(&self.environment) }
    }

    /// In the child: takes its place, a group of its own, its folder, its standard
    /// descriptors.
    pub(super) fn take_place(&self) -> Result<(), Errno> {
        rustix::process::setpgid(None, None)?;
        let (input, output) = (self.input.as_raw_fd(), self.output.as_raw_fd());
        for (from, to) in [(input, 0), (output, 1), (output, 2)] {
            give(from, to)?;
        }
        rustix::process::chdir(self.folder.as_c_str())
    }

    /// In the child: becomes the program; returns only why not. It executes the file itself:
    /// execvp(3) would hand one that is no program to a shell.
    #[allow(unsafe_code, reason = "no safe wrapper of execve(2) takes what was prepared")]
    pub(super) fn execute(&self, lists: &Lists) -> Errno {
        unblock_signals();
        let Lists { arguments, environment } = lists;
        // SAFETY: both lists end with a null pointer and point to strings of ours that end
        // with a NUL, all of which live until the call is over.
        unsafe {
            libc::syscall(
                libc::SYS_execve,
                self.path.as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        last()
    }
}

/// Null-terminated lists of a program's strings, as long as the program lives.
#[derive(Debug)]
pub(super) struct Lists {
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

/// Descriptor `from` under the number `to`, to be kept at exec.
#[allow(unsafe_code, reason = "the number is that of nobody else's descriptor in a child")]
fn give(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: no memory is touched. What had the number was the child's copy.
    let done = unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) };
    if done >= 0 { Ok(()) } else { Err(last()) }
}

/// Why the last call of the C library failed.
pub(super) fn last() -> Errno {
    let number = io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(number.unwrap_or(libc::EINVAL))
}
