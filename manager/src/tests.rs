//! Flows of a whole manager over the in-memory network, with fakes for everyone else.

mod allocating;
mod checking;
mod claiming;
mod explaining;
mod fetching;
mod hearsay;
mod hedging;
mod idle;
mod levels;
mod moving;
mod picking;
mod registry;
mod relaying;
mod rooms;
mod scaling;
mod stampede;
mod watching;
mod world;
