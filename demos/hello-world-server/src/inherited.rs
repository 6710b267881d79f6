//! The listening socket that somebody else opened for us, as sd_listen_fds(3) has it.

use std::{
    io,
    net::TcpListener,
    os::fd::{FromRawFd as _, RawFd},
};

/// The first descriptor after the standard ones: where it is, if there is one.
const FIRST: RawFd = 3;

/// It, if this process was given one. To be asked once.
///
/// # Errors
/// If what was given cannot be used with a runtime.
pub(crate) fn socket() -> io::Result<Option<TcpListener>> {
    let is = |name: &str, value: u32| std::env::var(name).is_ok_and(|is| is == value.to_string());
    if !is("LISTEN_FDS", 1) || !is("LISTEN_PID", std::process::id()) {
        return Ok(None);
    }
    #[allow(unsafe_code, reason = "a descriptor that is passed has no other form than its number")]
    // SAFETY: whoever started us says that this descriptor is ours, and nobody else in this
    // process asks for it.
    let socket = unsafe { TcpListener::from_raw_fd(FIRST) };
    socket.set_nonblocking(true)?;
    Ok(Some(socket))
}
