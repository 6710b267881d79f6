//! Whole-system stories: real nodes, real processes, real sockets, one module a theme.
//! Defects of the system this one re-creates (docs/ARCHITECTURE.md names them) each
//! have a test that says so in its name.

mod allocation;
mod alone;
mod at_most;
mod calls;
mod containers;
#[expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]
#[allow(dead_code, reason = "the tests of the engine need more of it")]
#[path = "../../engine/tests/engine/registry.rs"]
mod debian_registry;
mod draining;
mod external;
mod faults;
mod grpc;
mod idleness;
mod images;
mod killed_daemons;
mod kills;
mod limits;
mod loss;
mod machines;
mod metrics;
mod mobility;
mod moving;
mod network;
mod partition;
mod registry;
mod requests;
mod scaling;
mod silent_start;
mod storm;
mod takeover;
mod three_machines;
mod up;
mod up_far;
mod watching;
