//! What a child becomes: a program, in the form the kernel wants it, with the place it
//! begins in.
//!
//! All of it is made before the child is; the child makes system calls over it and nothing
//! else (see [`child`](super::child)).

use std::{
    ffi::{CStr, CString, OsString, c_char},
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
    io::{Errno, fcntl_dupfd_cloexec},
};

use super::child::unblock_signals;
use crate::handed::Listener;

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
    /// The listening socket it inherits, if it is to.
    socket: Option<OwnedFd>,
}

/// The descriptor under which a program finds its socket: the first after the standard ones.
const SOCKET: RawFd = 3;
/// Copies of descriptors have numbers from this on, so that none is in its place.
const ABOVE: RawFd = SOCKET + 1;
/// What says how many sockets a program inherits, and what says to whom that is said
/// (sd_listen_fds(3)). The number is the child's own, so the child writes it.
const LISTEN_FDS: &CStr = c"LISTEN_FDS=1";
const LISTEN_PID: &[u8] = b"LISTEN_PID=";
/// Digits of the largest process id, and the NUL after them.
const DIGITS: usize = 11;

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
    /// The listening socket it inherits.
    pub(super) socket: Option<&'a Listener>,
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
        let copy = |socket| fcntl_dupfd_cloexec(socket, ABOVE);
        let socket = told.socket.map(copy).transpose()?;
        if socket.is_some() {
            environment.push(LISTEN_FDS.to_owned());
        }
        Ok(Self { path, arguments, environment, folder, input, output, socket })
    }

    /// Its lists as C has them; to be made before the child, which uses them.
    pub(super) fn lists(&self) -> Lists {
        let list = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        let mut environment: Vec<_> = list(&self.environment);
        // Its place, still null: it ends the list until the child has written it.
        environment.extend(self.socket.as_ref().map(|_| ptr::null()));
        let listen_pid = [LISTEN_PID, &[0; DIGITS]].concat();
        Lists { arguments: list(&self.arguments), environment, listen_pid }
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
    pub(super) fn execute(&self, lists: &mut Lists) -> Errno {
        let Lists { arguments, environment, listen_pid } = lists;
        if let Some(socket) = &self.socket {
            if let Err(error) = give(socket.as_raw_fd(), SOCKET) {
                return error;
            }
            let digits = listen_pid.iter_mut().skip(LISTEN_PID.len());
            write_number(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(), digits);
            if let Some(place) = environment.iter_mut().rev().nth(1) {
                *place = listen_pid.as_ptr().cast();
            }
        }
        unblock_signals();
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
    listen_pid: Vec<u8>,
}

/// Writes a number in decimal, as long as there is room for it, and a NUL.
fn write_number<'a>(number: u32, mut to: impl Iterator<Item = &'a mut u8>) {
    let mut unit = 1_000_000_000;
    while unit > 0 {
        if (number >= unit || unit == 1)
            && let Some(place) = to.next()
        {
            *place = b'0' + (number / unit % 10) as u8;
        }
        unit /= 10;
    }
    if let Some(end) = to.next() {
        *end = 0;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_without_leading_zeros() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            let mut buffer = [1; DIGITS];
            write_number(number, buffer.iter_mut());
            let text = CStr::from_bytes_until_nul(&buffer).unwrap();
            assert_eq!(text.to_str().unwrap(), number.to_string());
        }
    }
}
