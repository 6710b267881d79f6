//! What goes over a multiplexed connection: a header of eight bytes, and what it says
//! how much of.
//!
//! ```text
//!  0       1                   4                               8
//!  ┌───────┬───────────────────┬───────────────────────────────┬─ ─ ─
//!  │ kind  │ length of payload │ stream                        │ payload
//!  └───────┴───────────────────┴───────────────────────────────┴─ ─ ─
//! ```
//!
//! Numbers are big endian. The front opens streams 1, 2, 3 and so on; none is used twice.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Bytes before each payload.
pub(super) const HEADER: usize = 8;
/// Longest payload of [`Kind::Head`] and [`Kind::Trailers`]: what a client may send and
/// the front adds.
pub(super) const MAX_HEAD: usize = 80 << 10;
/// Longest payload of [`Kind::Data`]. Frames of several streams take turns.
pub(super) const MAX_DATA: usize = 32 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The head of a request or an answer, as HTTP/1.1 writes it.
    Head,
    /// The same, and there is no body.
    HeadOnly,
    /// Some of a body.
    Data,
    /// The rest of a body, which may be nothing.
    LastData,
    /// Trailers, as HTTP/1.1 writes them: the end of a body.
    Trailers,
    /// The stream is over, whatever is missing: one byte, a [`Reset`].
    Reset,
    /// So many more bytes of a body may be sent: a number of four bytes.
    Credit,
    /// The sender takes no streams after the one it names, and wants to close.
    Leave,
}

/// Why a stream is over before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// It broke off, or nobody wants it any more.
    Cut,
    /// Nobody has looked at the request.
    Refused,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Head,
        Self::HeadOnly,
        Self::Data,
        Self::LastData,
        Self::Trailers,
        Self::Reset,
        Self::Credit,
        Self::Leave,
    ];

    fn max(self) -> usize {
        match self {
            Self::Head | Self::HeadOnly | Self::Trailers => MAX_HEAD,
            Self::Data | Self::LastData => MAX_DATA,
            Self::Reset => 1,
            Self::Credit => 4,
            Self::Leave => 0,
        }
    }
}

impl Reset {
    pub(super) fn read(payload: &[u8]) -> Self {
        if payload == [1] { Self::Refused } else { Self::Cut }
    }
}

/// A frame that has come whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) stream: u32,
    pub(super) payload: Bytes,
}

/// Bytes that are no frame: whoever sends them is not understood from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame that is none")]
pub(super) struct NoFrame;

/// Takes the first frame out of what has come, if that is there whole.
///
/// # Errors
/// As soon as its header is there and wrong: nothing is waited for that is not taken.
pub(super) fn take(read: &mut BytesMut) -> Result<Option<Frame>, NoFrame> {
    let Some((mut header, _)) = read.split_at_checked(HEADER) else { return Ok(None) };
    let first = header.get_u32();
    let stream = header.get_u32();
    let kind = *Kind::ALL.get((first >> 24) as usize).ok_or(NoFrame)?;
    let length = (first & 0x00ff_ffff) as usize;
    if length > kind.max() {
        return Err(NoFrame);
    }
    if read.len() < HEADER + length {
        return Ok(None);
    }
    read.advance(HEADER);
    Ok(Some(Frame { kind, stream, payload: read.split_to(length).freeze() }))
}

/// Writes a header; exactly `length` bytes have to follow.
fn put_header(out: &mut BytesMut, kind: Kind, stream: u32, length: usize) {
    debug_assert!(length <= kind.max());
    out.put_u32((kind as u32) << 24 | length as u32);
    out.put_u32(stream);
}

/// Writes a frame whose payload is there.
pub(super) fn put(out: &mut BytesMut, kind: Kind, stream: u32, payload: &[u8]) {
    put_header(out, kind, stream, payload.len());
    out.extend_from_slice(payload);
}

/// Writes a frame of what `write` appends.
///
/// # Errors
/// If that is longer than such a frame may be; nothing is written then.
pub(super) fn put_with(
    out: &mut BytesMut,
    kind: Kind,
    stream: u32,
    write: impl FnOnce(&mut BytesMut),
) -> Result<(), NoFrame> {
    let start = out.len();
    put_header(out, kind, stream, 0);
    write(out);
    let length = out.len() - start - HEADER;
    if length > kind.max() {
        out.truncate(start);
        return Err(NoFrame);
    }
    let bytes = (length as u32).to_be_bytes();
    out[start + 1..start + 4].copy_from_slice(&bytes[1..]);
    Ok(())
}

pub(super) fn put_reset(out: &mut BytesMut, stream: u32, why: Reset) {
    put(out, Kind::Reset, stream, &[u8::from(why == Reset::Refused)]);
}

pub(super) fn put_credit(out: &mut BytesMut, stream: u32, more: u32) {
    put(out, Kind::Credit, stream, &more.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_is_taken_before_it_is_whole() {
        let mut out = BytesMut::new();
        put(&mut out, Kind::Data, 7, b"some");
        put_with(&mut out, Kind::Head, 8, |out| out.extend_from_slice(b"GET")).unwrap();
        put_reset(&mut out, 9, Reset::Refused);
        put_credit(&mut out, u32::MAX, 65_536);
        let (mut read, mut frames) = (BytesMut::new(), Vec::new());
        for byte in out {
            read.put_u8(byte);
            frames.extend(take(&mut read).unwrap());
        }
        let expected = [
            (Kind::Data, 7, &b"some"[..]),
            (Kind::Head, 8, b"GET"),
            (Kind::Reset, 9, &[1]),
            (Kind::Credit, u32::MAX, &[0, 1, 0, 0]),
        ];
        let seen = frames.iter().map(|one| (one.kind, one.stream, &one.payload[..]));
        assert!(seen.eq(expected), "{frames:?}");
        assert!(read.is_empty());
    }

    #[test]
    fn what_is_too_long_is_refused_by_its_header_and_never_written() {
        for (kind, length) in [(0, MAX_HEAD + 1), (2, MAX_DATA + 1), (5, 2), (6, 5), (7, 1)] {
            let first = (kind << 24 | length) as u32;
            let mut read = BytesMut::from(&[first.to_be_bytes(), [0; 4]].concat()[..]);
            assert_eq!(take(&mut read), Err(NoFrame), "{kind} {length}");
        }
        let mut unknown = BytesMut::from(&[8, 0, 0, 0, 0, 0, 0, 0][..]);
        assert_eq!(take(&mut unknown), Err(NoFrame));
        let mut out = BytesMut::from("before");
        let long = |out: &mut BytesMut| out.resize(out.len() + MAX_HEAD + 1, b'x');
        assert_eq!(put_with(&mut out, Kind::Head, 1, long), Err(NoFrame));
        assert_eq!(out, "before");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_keep_much(bytes: Vec<u8>) {
            let mut read = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = take(&mut read) {
                prop_assert!(frame.payload.len() <= MAX_HEAD);
            }
        }
    }
}
