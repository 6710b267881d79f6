//! More instances of a service when its requests need them, and fewer when they do not.
//!
//! `control` decides, per service, whether one more is to be started and over how many
//! requests are spread; `set` says which those are. Nothing is ever stopped from here: an
//! instance that gets no requests idles out by itself.

mod act;
mod control;
mod set;

pub(crate) use act::{Scale, keep, start_one};
pub(crate) use control::Outcome;
pub(crate) use set::{Share, surplus};
