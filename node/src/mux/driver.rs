//! Moves the bytes of one connection: writes what its streams have put together, reads what
//! comes and hands it out.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time::{Instant, Sleep, sleep},
};
use tokio_util::io::poll_read_buf;

use super::{
    frame::{self, NoFrame},
    shared::{Closed, Opened, Shared, State},
};

/// Room for what is read at once: one TLS record.
const READ: usize = 16 << 10;
/// What is kept of a buffer that was larger once.
const KEEP: usize = 64 << 10;
/// Reads in one turn, so that others come to theirs.
const READS: usize = 8;

/// What a side does with the frames that come.
pub(super) trait Side {
    /// Takes up one frame. Wakers and tasks to end are left for after the lock.
    fn frame(
        &mut self,
        state: &mut State,
        frame: frame::Frame,
        after: &mut After,
    ) -> Result<(), NoFrame>;

    /// Looks whether this side puts up with the other.
    fn bears(&self, _state: &mut State) -> bool {
        true
    }

    /// Serves a stream that has been opened.
    fn serve(&mut self, _shared: &Arc<Shared>, _opened: Opened) {}
}

/// What is to be done once the lock is given back.
#[derive(Default)]
pub(super) struct After {
    pub(super) wakers: Vec<Waker>,
    pub(super) over: Vec<AbortHandle>,
    pub(super) opened: Vec<Opened>,
}

/// Drives a connection until it ends, nothing is open on it for `keep`, or it shall be left
/// and nothing is open any more.
///
/// # Errors
/// Why it broke.
pub(super) async fn drive<S, D>(
    shared: Arc<Shared>,
    mut stream: S,
    mut side: D,
    keep: Duration,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Side,
{
    let end = End(shared.clone());
    let mut io = Io { read: BytesMut::new(), writing: BytesMut::new(), dirty: false };
    let mut idle = Box::pin(sleep(keep));
    let ended = poll_fn(|cx| {
        let ended = io.turn(&shared, &mut stream, &mut side, cx);
        if ended.is_pending() && is_unused(&shared, idle.as_mut(), keep, cx) {
            return Poll::Ready(Ok(()));
        }
        ended
    })
    .await;
    let garbled = ended.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData);
    end.because(if garbled { Closed::Garbled } else { Closed::Gone });
    ended?;
    poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await
}

/// Whether there is no use for a connection.
fn is_unused(
    shared: &Shared,
    mut idle: Pin<&mut Sleep>,
    keep: Duration,
    cx: &mut Context<'_>,
) -> bool {
    loop {
        let due = idle.as_mut().poll(cx).is_ready();
        let mut state = shared.lock();
        let unused = state.streams.is_empty() && state.out.is_empty();
        if unused && (state.leaving || state.left_at.is_some()) {
            state.closed.get_or_insert(Closed::Gone);
            return true;
        }
        if !due {
            return false;
        }
        let until = state.idle_since + keep;
        if unused && until <= Instant::now() {
            // Under the lock: nothing can be opened between this and the end.
            state.closed.get_or_insert(Closed::Gone);
            return true;
        }
        drop(state);
        // With streams open it is looked at again later.
        idle.as_mut().reset(if unused { until } else { Instant::now() + keep });
    }
}

/// However driving ends, whoever waits is told.
struct End(Arc<Shared>);

impl End {
    fn because(&self, why: Closed) {
        let (wakers, tasks) = self.0.lock().close(why);
        tasks.into_iter().for_each(|task| task.abort());
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.because(Closed::Gone);
    }
}

struct Io {
    read: BytesMut,
    writing: BytesMut,
    dirty: bool,
}

impl Io {
    /// One turn: ready once the connection has ended.
    fn turn<S, D>(
        &mut self,
        shared: &Arc<Shared>,
        stream: &mut S,
        side: &mut D,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        D: Side,
    {
        let mut reads = 0;
        let mut wants_read = true;
        loop {
            let blocked = self.write(shared, stream, cx)?.is_pending();
            while wants_read {
                if reads == READS {
                    cx.waker().wake_by_ref();
                    break;
                }
                reads += 1;
                match self.read(stream, cx)? {
                    Poll::Ready(0) if self.read.is_empty() => return Poll::Ready(Ok(())),
                    Poll::Ready(0) => {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Poll::Ready(_) => self.take_up(shared, side)?,
                    Poll::Pending => wants_read = false,
                }
            }
            // What was read may have made something to write.
            let mut state = shared.lock();
            if blocked || state.out.is_empty() {
                if !state.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
                    state.driver = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
        }
    }

    /// Writes all there is; pending if the other end takes no more for now.
    fn write<S: AsyncWrite + Unpin>(
        &mut self,
        shared: &Shared,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>> {
        loop {
            if self.writing.is_empty() {
                let room = shared.lock().take_out(&mut self.writing);
                room.into_iter().for_each(Waker::wake);
            }
            if self.writing.is_empty() {
                break;
            }
            match Pin::new(&mut *stream).poll_write(cx, &self.writing)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.dirty = true;
                    self.writing.advance(written);
                    if self.writing.is_empty() {
                        // Its room is used again, unless that is too much to keep.
                        let kept = std::mem::take(&mut self.writing);
                        self.writing = again(kept);
                    }
                }
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        if self.dirty {
            match Pin::new(stream).poll_flush(cx)? {
                Poll::Ready(()) => self.dirty = false,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }

    fn read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<usize>> {
        self.read.reserve(READ);
        match poll_read_buf(Pin::new(stream), cx, &mut self.read) {
            Poll::Ready(read) => read.map(Poll::Ready),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn take_up<D: Side>(&mut self, shared: &Arc<Shared>, side: &mut D) -> io::Result<()> {
        let mut after = After::default();
        let invalid = |error: NoFrame| io::Error::new(io::ErrorKind::InvalidData, error);
        let taken = {
            let mut state = shared.lock();
            let taken = loop {
                match frame::take(&mut self.read) {
                    Ok(Some(frame)) => {
                        if let Err(error) = side.frame(&mut state, frame, &mut after) {
                            break Err(invalid(error));
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(invalid(error)),
                }
            };
            if side.bears(&mut state) { taken } else { Err(invalid(NoFrame)) }
        };
        after.over.into_iter().for_each(|task| task.abort());
        after.wakers.into_iter().for_each(Waker::wake);
        for opened in after.opened {
            side.serve(shared, opened);
        }
        taken
    }
}

/// An empty buffer with the room of `used`.
fn again(mut used: BytesMut) -> BytesMut {
    used.clear();
    // Advanced to its end, its room comes back as it is reserved.
    if used.try_reclaim(1) && used.capacity() <= KEEP { used } else { BytesMut::new() }
}
