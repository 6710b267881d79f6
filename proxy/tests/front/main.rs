//! The data plane end to end: front, mesh and ingress of a real node, with clients and
//! applications that speak in bytes.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

mod bytes;
mod faults;
mod grpc;
mod h2;
mod h2c;
mod limits;
mod metrics;
mod raw;
mod streams;
mod times;
mod upgrades;
mod world;
