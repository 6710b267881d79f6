//! Reads more at once below TLS than TLS asks for, while there is more.
//!
//! rustls reads 4 KiB at a time, so a record of 16 KiB is four or five calls to the kernel.
//! A read that filled what was asked for is followed by one of [`ROOM`]; a connection that
//! carries little never has the buffer, and one whose burst is over gives it back.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Four records, which is what a sender has written with one call.
const ROOM: usize = 64 << 10;
/// A read of less than a record says that the burst is over.
const LITTLE: usize = 16 << 10;

/// A stream that is read ahead of. Writes pass through.
pub(super) struct Ahead<S> {
    inner: S,
    held: BytesMut,
    /// The last read left nothing free, so more is likely to be there.
    more: bool,
}

impl<S> Ahead<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, held: BytesMut::new(), more: false }
    }
}

impl<S> fmt::Debug for Ahead<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.held.is_empty() && !this.more {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            this.more = buf.filled().len() > before && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.held.is_empty() {
            // All of it was handed out: its room is used again where it still has it.
            this.held.reserve(ROOM);
            let read = match poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.held) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    (this.held, this.more) = (BytesMut::new(), false);
                    return Poll::Pending;
                }
            };
            this.more = read >= LITTLE;
        }
        let some = this.held.len().min(buf.remaining());
        buf.put_slice(&this.held[..some]);
        this.held.advance(some);
        if this.held.is_empty() && !this.more {
            this.held = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Gives its pieces one a read, as far as there is room, and counts the reads.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        reads: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            if let Some(mut piece) = self.pieces.pop_front() {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn much_is_read_with_few_calls_and_little_without_a_buffer() {
        let sent: Vec<u8> = (0..1 << 20).map(|n: u32| (n * 7 % 251) as u8).collect();
        let mut stream = Ahead::new(Pieces { pieces: VecDeque::from([sent.clone()]), reads: 0 });
        let (mut got, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            match stream.read(&mut chunk).await.unwrap() {
                0 => break,
                some => got.extend_from_slice(&chunk[..some]),
            }
        }
        assert!(got == sent, "something else came out");
        assert!(stream.inner.reads <= 20, "{} reads of a mebibyte", stream.inner.reads);

        let little = std::iter::repeat_n(vec![1; 300], 50).collect();
        let mut stream = Ahead::new(Pieces { pieces: little, reads: 0 });
        for _ in 0..50 {
            assert_eq!(stream.read(&mut chunk).await.unwrap(), 300);
            assert_eq!(stream.held.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn a_burst_that_is_over_leaves_no_buffer_behind() {
        let pieces = VecDeque::from([vec![1; 4096], vec![2; 40_000], vec![3; 100]]);
        let mut stream = Ahead::new(Pieces { pieces, reads: 0 });
        let (mut got, mut chunk) = (0, [0; 4096]);
        while got < 4096 + 40_000 + 100 {
            got += stream.read(&mut chunk).await.unwrap();
        }
        assert_eq!(stream.held.capacity(), 0);
    }
}
