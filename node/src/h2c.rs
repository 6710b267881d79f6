//! HTTP/2 with prior knowledge, towards an instance that speaks it.
//!
//! Each request is a stream; several share a connection, as many as the instance allows. What
//! could make one wait for another is kept apart: a connection on which a body waits until the
//! instance takes more of it gets no further requests, as that instance may have one window for
//! all of them. So an instance that reads nothing costs a connection for each request it does
//! not read, as in HTTP/1.1, and nobody else has to wait.

mod connection;
mod exchange;
mod pool;

pub use connection::status;
pub use pool::Pool;

/// Requests at once on one connection, if the instance allows more.
const MAX_STREAMS: usize = 128;
/// Connections to one instance.
const MAX_CONNECTIONS: usize = 128;
/// Bytes of an answer that wait for who asked. What all streams of a connection may have
/// together fits into its window, so that answers nobody reads do not hold up the others.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;
/// Bytes of a request that wait to be written.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes of headers, as in HTTP/1.1.
const MAX_HEAD: u32 = 64 << 10;
/// Interim answers (1xx) before the head of an answer, which are passed over.
const MAX_INTERIM: u32 = 100;
/// How often a request goes on another connection because nobody looked at it.
const AGAIN: usize = 3;
