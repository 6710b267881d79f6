//! The state of one connection, which its driver and its streams share.
//!
//! Streams append frames to one buffer, and the driver writes what has come together in one
//! turn of the scheduler at once: that is what a multiplexed connection is for. The
//! lock is held to move bytes, never while waiting.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

use super::{
    CHUNK_COST, MAX_WAITING, WINDOW,
    frame::{self, Frame, Kind, Reset},
    head,
};

/// Beyond [`WINDOW`], what all streams of a connection may be given together for bodies
/// that go far: each of a thousand kilobytes.
const MORE_WINDOW: u32 = 1 << 20;
const MORE_TOGETHER: u32 = 16 << 20;

/// One connection.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Frames that wait to be written.
    pub(super) out: BytesMut,
    /// The last stream with a frame that was handed to the connection to be written.
    pub(super) written: u32,
    pub(super) streams: HashMap<u32, Stream>,
    /// The last stream that was opened.
    pub(super) last: u32,
    /// Nothing can be opened any more: why, if it is over altogether.
    pub(super) closed: Option<Closed>,
    /// The other end takes no stream after this.
    pub(super) left_at: Option<u32>,
    /// Close as soon as there is no stream.
    pub(super) leaving: bool,
    pub(super) idle_since: Instant,
    /// Streams that the other end has reset, or opened beyond what is taken, since.
    pub(super) resets: u32,
    pub(super) resets_since: Instant,
    pub(super) driver: Option<Waker>,
    /// Of those who wait for room to write.
    room: Vec<Waker>,
    /// Of [`MORE_TOGETHER`], not given.
    spare: u32,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// It was closed, or it broke.
    Gone,
    /// The other end sent what is not understood.
    Garbled,
}

/// One stream, as long as either side of it is open here.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The answer's head, until it is taken.
    pub(super) head: Option<Result<Response<()>, head::NoHead>>,
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// The other end has sent all.
    ended: bool,
    reset: Option<Reset>,
    /// Nobody reads what comes.
    unwanted: bool,
    /// What the other end may send, in bytes and in [`CHUNK_COST`]s.
    /// Less than nothing after a small chunk: see [`cost`].
    window: i64,
    /// Taken, and not yet allowed again.
    taken: u32,
    more: bool,
    pub(super) reader: Option<Waker>,
    /// What this end may send.
    pub(super) credit: i64,
    pub(super) writer: Option<Waker>,
    /// Of the task that serves it.
    pub(super) task: Option<AbortHandle>,
    /// An answer's head has been handed over.
    pub(super) answered: bool,
}

/// What there is to read of a body.
pub(super) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Broken,
}

/// A stream that the front has opened, to be served.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) head: Request<()>,
    /// There is no body.
    pub(super) whole: bool,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self { window: WINDOW.into(), credit: WINDOW.into(), ..Self::default() }
    }

    pub(super) fn with_ended(ended: bool) -> Self {
        Self { ended, ..Self::new() }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.ended && self.chunks.is_empty() && self.trailers.is_none()
    }

    /// What can be read now; `None` if that is nothing yet.
    pub(super) fn part(&mut self) -> Option<Part> {
        if let Some(chunk) = self.chunks.pop_front() {
            self.taken += cost(chunk.len());
            return Some(Part::Data(chunk));
        }
        match (self.trailers.take(), self.ended, self.reset) {
            (Some(trailers), ..) => Some(Part::Trailers(trailers)),
            (None, true, _) => Some(Part::End),
            (None, false, Some(_)) => Some(Part::Broken),
            (None, false, None) => None,
        }
    }

    /// What was reset, if no more than that is to be read.
    pub(super) fn reset(&self) -> Option<Reset> {
        self.reset
    }

    fn push(&mut self, payload: Bytes) -> Result<(), frame::NoFrame> {
        let cost = cost(payload.len());
        if self.window <= 0 {
            return Err(frame::NoFrame);
        }
        self.window -= i64::from(cost);
        if !payload.is_empty() && !self.unwanted {
            // A few bytes shall not hold on to all that was read with them.
            let small = payload.len() < CHUNK_COST as usize * 8;
            let alone = self.chunks.is_empty();
            self.chunks.push_back(if small && !alone {
                Bytes::copy_from_slice(&payload)
            } else {
                payload
            });
        }
        Ok(())
    }

    fn wake(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.reader.take());
    }
}

/// What a chunk takes of a window: its bytes, and at least what it costs to hold.
pub(super) fn cost(length: usize) -> u32 {
    (length as u32).max(CHUNK_COST)
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            out: BytesMut::new(),
            written: 0,
            streams: HashMap::new(),
            last: 0,
            closed: None,
            left_at: None,
            leaving: false,
            idle_since: Instant::now(),
            resets: 0,
            resets_since: Instant::now(),
            driver: None,
            room: Vec::new(),
            spare: MORE_TOGETHER,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then wakes the driver if there is something for it to do.
    pub(super) fn tell<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, driver) = {
            let mut state = self.lock();
            let result = change(&mut state);
            let left = state.leaving || state.left_at.is_some();
            let wanted = !state.out.is_empty() || left && state.streams.is_empty();
            (result, if wanted { state.driver.take() } else { None })
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }
}

impl Shared {
    /// Writes of `data` as much as the other end takes at once; `over` if it ends a body. Pending
    /// while it takes nothing, and for good once the stream is over.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        id: u32,
        data: &mut Bytes,
        over: bool,
    ) -> Poll<()> {
        self.tell(|state| {
            if state.out.len() >= MAX_WAITING {
                state.wait_for_room(cx.waker());
                return Poll::Pending;
            }
            let Some(stream) = state.streams.get_mut(&id) else { return Poll::Pending };
            if stream.credit <= 0 && !data.is_empty() {
                stream.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let room = usize::try_from(stream.credit).unwrap_or_default();
            let chunk = data.split_to(data.len().min(room).min(frame::MAX_DATA));
            if !chunk.is_empty() {
                stream.credit -= i64::from(cost(chunk.len()));
            }
            let last = over && data.is_empty();
            frame::put(&mut state.out, if last { Kind::LastData } else { Kind::Data }, id, &chunk);
            Poll::Ready(())
        })
    }
}

impl State {
    /// Whether a stream can be opened.
    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none() && !self.leaving && self.left_at.is_none() && self.last < u32::MAX
    }

    fn wait_for_room(&mut self, waker: &Waker) {
        if !self.room.iter().any(|one| one.will_wake(waker)) {
            self.room.push(waker.clone());
        }
    }

    /// Hands over what is to be written, into `writing`, which is empty.
    pub(super) fn take_out(&mut self, writing: &mut BytesMut) -> Vec<Waker> {
        mem::swap(&mut self.out, writing);
        self.written = self.last;
        mem::take(&mut self.room)
    }

    /// The stream is over on this side; what still comes for it is ignored.
    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        if stream.more {
            self.spare += MORE_WINDOW;
        }
        if self.streams.is_empty() {
            self.idle_since = Instant::now();
        }
        Some(stream)
    }

    /// Nobody reads what still comes.
    pub(super) fn ignore(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.unwanted = true;
            stream.chunks.clear();
        }
    }

    /// After a part was read: lets the other end send more, a good deal at a time.
    pub(super) fn allow(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended || stream.taken < WINDOW / 2 {
            return;
        }
        let mut more = mem::take(&mut stream.taken);
        if !stream.more && self.spare >= MORE_WINDOW {
            // It is longer than a window: it may have a bigger one.
            self.spare -= MORE_WINDOW;
            stream.more = true;
            more += MORE_WINDOW;
        }
        stream.window += i64::from(more);
        frame::put_credit(&mut self.out, id, more);
    }

    /// Everything is over: whoever waits is told.
    pub(super) fn close(&mut self, why: Closed) -> (Vec<Waker>, Vec<AbortHandle>) {
        self.closed.get_or_insert(why);
        let (mut wakers, mut tasks) = (mem::take(&mut self.room), Vec::new());
        for stream in self.streams.values_mut() {
            stream.reset.get_or_insert(Reset::Cut);
            wakers.extend(stream.reader.take().into_iter().chain(stream.writer.take()));
            tasks.extend(stream.task.take());
        }
        (wakers, tasks)
    }

    /// Takes up a frame of the front, at ingress.
    ///
    /// # Errors
    /// If an honest front would not have sent it.
    pub(super) fn asked(
        &mut self,
        Frame { kind, stream: id, payload }: Frame,
        most: usize,
        wakers: &mut Vec<Waker>,
        over: &mut Vec<AbortHandle>,
    ) -> Result<Option<Opened>, frame::NoFrame> {
        match kind {
            Kind::Head | Kind::HeadOnly => {
                if id <= self.last {
                    return Err(frame::NoFrame);
                }
                self.last = id;
                if self.leaving || self.streams.len() >= most {
                    frame::put_reset(&mut self.out, id, Reset::Refused);
                    // Those who never stop asking are not answered for ever.
                    self.resets += 1;
                    return Ok(None);
                }
                let head = head::request(&payload).map_err(|_| frame::NoFrame)?;
                let whole = kind == Kind::HeadOnly;
                self.streams.insert(id, Stream::with_ended(whole));
                return Ok(Some(Opened { id, head, whole }));
            }
            Kind::Reset => {
                if let Some(stream) = self.remove(id) {
                    self.resets += 1;
                    over.extend(stream.task);
                }
            }
            _ if id > self.last => return Err(frame::NoFrame),
            _ => self.body(kind, id, payload, wakers)?,
        }
        Ok(None)
    }

    /// Takes up a frame of ingress, at the front.
    ///
    /// # Errors
    /// If an honest ingress would not have sent it.
    pub(super) fn told(
        &mut self,
        Frame { kind, stream: id, payload }: Frame,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), frame::NoFrame> {
        if kind == Kind::Leave {
            self.left_at = Some(self.left_at.map_or(id, |before| before.min(id)));
            for (_, stream) in self.streams.iter_mut().filter(|(one, _)| **one > id) {
                stream.reset.get_or_insert(Reset::Refused);
                stream.wake(wakers);
            }
            return Ok(());
        }
        if id > self.last {
            return Err(frame::NoFrame);
        }
        match kind {
            Kind::Head | Kind::HeadOnly => {
                let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
                if stream.answered || stream.head.is_some() || stream.ended {
                    return Err(frame::NoFrame);
                }
                stream.head = Some(head::response(&payload));
                stream.ended = kind == Kind::HeadOnly;
                stream.wake(wakers);
            }
            Kind::Reset => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.reset.get_or_insert(Reset::read(&payload));
                    stream.wake(wakers);
                }
            }
            _ => self.body(kind, id, payload, wakers)?,
        }
        Ok(())
    }

    fn body(
        &mut self,
        kind: Kind,
        id: u32,
        payload: Bytes,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), frame::NoFrame> {
        // It may have been given up meanwhile.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if kind == Kind::Credit {
            let more = <[u8; 4]>::try_from(&payload[..]).map_err(|_| frame::NoFrame)?;
            // An honest one never allows more than it would hold.
            stream.credit += i64::from(u32::from_be_bytes(more));
            if stream.credit > i64::from(WINDOW + MORE_WINDOW) {
                return Err(frame::NoFrame);
            }
            wakers.extend(stream.writer.take());
            return Ok(());
        }
        if stream.ended {
            return Err(frame::NoFrame);
        }
        match kind {
            Kind::Data => stream.push(payload)?,
            Kind::LastData => {
                if !payload.is_empty() {
                    stream.push(payload)?;
                }
                stream.ended = true;
            }
            Kind::Trailers => {
                let trailers = head::trailers(&payload).map_err(|_| frame::NoFrame)?;
                stream.trailers = Some(trailers);
                stream.ended = true;
            }
            _ => return Err(frame::NoFrame),
        }
        stream.wake(wakers);
        Ok(())
    }
}

/// Writes trailers, which end a body. Those that are too long are left away: the body is whole.
pub(super) fn put_trailers(state: &mut State, id: u32, trailers: &HeaderMap) {
    let put = |out: &mut BytesMut| {
        head::put_headers(out, trailers);
        out.extend_from_slice(b"\r\n");
    };
    if frame::put_with(&mut state.out, Kind::Trailers, id, put).is_err() {
        frame::put(&mut state.out, Kind::LastData, id, &[]);
    }
}

/// Cuts off one stream at the serving side: see [`serve`](super::serve).
pub type Cut = Arc<Notify>;
