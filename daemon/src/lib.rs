//! Composes the roles into running daemons. Roles know only the contract and what is
//! below them; this is the one place that knows them all, so that the daemons'
//! binaries, `lcactl up` and the test harness run exactly the same thing.
//!
//! Each daemon has an `App` that binds every socket first, returns the real addresses,
//! then runs until asked to stop. An error from `build` means that nothing is running.

pub mod allocator;
pub mod args;
mod base;
mod data;
mod diagnose;
mod drain;
mod external;
mod health;
pub mod limits;
mod metrics;
mod notify;
mod peers;
pub mod plan;
mod ports;
pub mod proxy;
mod reflection;
pub mod registry;
mod report;
pub mod run;
mod settle;

pub use base::{Addresses, STOP_WITHIN, Settings};

/// What people are told this build is: the version, and the commit where it is known.
pub const VERSION: &str = env!("LCA_VERSION");
