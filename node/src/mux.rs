//! Many requests at once on few connections between two peers.
//!
//! A write to a TLS connection costs the same for one small request as for thirty, in the
//! kernel and in ciphers, and so does waking the other end. So what a front has for a peer
//! at one moment goes out together, and so do the answers. Each request has a stream of
//! its own with a window of its own, and there is no window of the connection: a body that nobody
//! reads stops its own stream and nothing else, and both sides always read.
//!
//! ```text
//!  front                                     ingress
//!    │ Head 1  HeadOnly 2  LastData 1  ─────►  │   GET, POST with a body
//!    │ ◄─────  HeadOnly 2  Head 1  Data 1      │   answers in any order
//!    │ Credit 1  Reset 3  ─────────────────►   │   more of 1 may come, nobody waits for 3
//!    │ ◄──────────────────  LastData 1  Leave  │   the end, and no new streams
//! ```
//!
//! What each side holds is bounded: 512 streams on a connection, 64 KiB of each that nobody has
//! read (a mebibyte more for some, where bodies are long), 256 KiB that wait to be written.
//! Why not HTTP/2: decision 0010.

mod body;
mod client;
mod driver;
mod frame;
mod head;
mod pool;
mod server;
mod shared;
#[cfg(test)]
mod tests;

pub use body::Incoming;
pub use pool::{Hop, Streamed, takes};
pub use server::serve;
pub use shared::Cut;

/// Requests at once on one connection.
pub const STREAMS: usize = 512;
/// What a side may send of a body before the other has read some of it.
const WINDOW: u32 = 64 << 10;
/// What a chunk of a body counts as at least: what it costs to hold.
const CHUNK_COST: u32 = 64;
/// Bytes that wait to be written, beyond which bodies wait. Heads do not.
const MAX_WAITING: usize = 256 << 10;
