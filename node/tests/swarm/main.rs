//! The libp2p half of a node, with real nodes on loopback. Each node has a runtime of
//! its own, so that a crash is real: nothing says goodbye.

mod cost;
mod crowd;
mod faults;
mod hostile;
mod joining;
mod net;
mod partition;
mod raw;
