//! Stories of one allocator: its policy on the fake driver, and the whole of it on
//! real processes. Specs and ingress are twins that do as they are told.

mod claiming;
mod draining;
mod policy;
mod real;
mod takeover;
mod twins;
mod watching;
mod whole;
