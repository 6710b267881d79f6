//! Flows of a whole manager over the in-memory network, with fakes for everyone else.

mod allocating;
mod checking;
mod picking;
mod registry;
mod relaying;
mod world;
