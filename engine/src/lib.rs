//! The Docker Engine of this machine: reaching it, and its images.
//!
//! A container engine is a daemon of somebody else's: it can be absent, be restarted under
//! us, or take a call and never answer. So nobody talks to it but through [`Engine`], whose
//! calls end within a deadline of ours, and whose failures are [`lca::Error`]s that say what
//! was being done. The drivers of allocators and the registration of images in `lcactl`
//! are built on this.

mod about;
mod address;
mod engine;
mod failure;
#[cfg(test)]
mod fake;
mod image;
mod keyring;
mod progress;
mod pull;
mod resolve;
mod stock;
mod trouble;

pub mod testing;

pub use about::About;
pub use address::{Address, DOCKER_HOST};
pub use bollard;
pub use engine::Engine;
pub use failure::failed;
pub use image::{Image, Wanted};
pub use keyring::{Credentials, Keyring};
pub use progress::Progress;
pub use pull::{Fetched, PATIENCE};
pub use resolve::{Resolved, resolve};
pub use stock::{Stock, Terms};
