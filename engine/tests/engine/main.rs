//! The engine and a registry as they really are: Docker's engine of this machine, Debian's
//! `docker-registry` on loopback, and something in between that breaks what passes.
//!
//! Where there is no engine or no registry, each test says SKIPPED with the reason and passes;
//! with `LCA_DOCKER=required` it fails instead. All images and containers made here are
//! removed again.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

mod between;
mod bundle;
mod fetching;
mod means;
mod own;
mod registry;
mod resolving;
mod rooms;
