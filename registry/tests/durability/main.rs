//! A registry as a process of its own, that is killed, locked out and left without room.

#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not see their helpers")]

mod kill;
mod process;
mod room;
