//! Measures how far a peer is away, on a connection of its own: as often as [`pace`] says.
//!
//! Eight random bytes go out and come back. Nothing else travels on the connection, so
//! no answer waits behind data. The first exchange on a connection does not count: the
//! other side may still be busy with the end of the TLS handshake. A connection that breaks
//! is noticed at once and dialled again at once: if nobody listens there, the peer is gone.
//! One that answers too late to count is slow, and its connection is kept: only where nothing
//! comes any more is what is open to the peer given up.
//! One task a peer of interest; it ends when nobody has asked for the peer for a while. The numbers are
//! [`Window`]'s to judge.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use lca::{
    Error, Kind, PeerId,
    endpoint::Endpoint,
    mesh::{Distance, Felt, Smoothed},
    metrics::Metrics,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Alpn, Duplex, Stream, Timing,
    client::Shared,
    dial::{self, Dialler},
    interest::Interest,
    pace::{self, State},
    serve::NONCE,
    window::Window,
};

/// Longest wait before a peer that cannot be reached is tried again, in probe
/// intervals: eight seconds, so that one that is back is noticed before its clients'
/// patience is over.
const LONGEST_WAIT: u32 = 8;
/// Unanswered nonces whose late answers are recognised: more than are sent at their
/// shortest deadline until a peer of which nothing comes is gone.
const OUTSTANDING: usize = 8;
const _: () = {
    let timing = Timing::PRODUCTION;
    assert!(
        OUTSTANDING as u128
            > timing.gone_after.as_millis() / timing.probe_within_least.as_millis() + 1
    );
};

/// What is known of one peer's distance.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// The median of the last three round trips; none before the first and in silence.
    pub(super) rtt: Option<Duration>,
    /// Round trips of probes and requests since the last silence.
    pub(super) smoothed: Smoothed,
    /// What requests say.
    pub(super) felt: Felt,
    /// The least of the last eight round trips, likewise.
    pub(super) least: Option<Duration>,
    /// The last three probes were lost.
    pub(super) silent: bool,
    /// It is silent, and nothing else has come from it: what was open to it is given up.
    pub(super) gone: bool,
    /// Probes lost and connections failed, ever.
    pub(super) failures: u64,
    /// Why the last of those failed.
    pub(super) error: Option<Error>,
}

impl Reading {
    /// A request took this long on the way.
    pub(super) fn observed(&mut self, took: Duration, now: Instant) {
        if let Some(least) = self.felt.observed(took, now) {
            self.smoothed.add(least);
        }
    }

    pub(super) fn distance(&self, now: Instant) -> Option<Distance> {
        let median = self.rtt?;
        let (ewma, deviation) = self.smoothed.get()?;
        let least = self.least.unwrap_or(median);
        Some(Distance { median, least, ewma, deviation, felt: self.felt.contradicts(median, now) })
    }
}

/// The task that probes one peer.
#[derive(Debug)]
pub(super) struct Prober {
    peer: PeerId,
    dialler: Dialler,
    /// Where the peer is, as last heard.
    endpoint: watch::Receiver<Arc<Endpoint>>,
    /// What others see.
    reading: watch::Sender<Reading>,
    /// Somebody waits for a number: do not wait for the next turn.
    hurry: Arc<Notify>,
    /// Knows whether anybody is still interested.
    shared: Weak<Shared>,
    window: Window,
    /// As of the last probe; see [`pace::is_near`].
    near: bool,
    /// When anything came from it, or when it was first asked.
    heard: Instant,
    metrics: Metrics,
}

impl Prober {
    /// Who will probe the peer that `endpoint` tells of, and tell others by `reading`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        endpoint: watch::Receiver<Arc<Endpoint>>,
        reading: watch::Sender<Reading>,
        hurry: Arc<Notify>,
    ) -> Self {
        let peer = endpoint.borrow().peer;
        Self {
            peer,
            dialler: shared.dialler.clone(),
            endpoint,
            reading,
            hurry,
            metrics: shared.metrics.clone(),
            shared: Arc::downgrade(shared),
            window: Window::default(),
            near: false,
            heard: Instant::now(),
        }
    }

    /// Probes until nobody is interested.
    pub(super) async fn run(mut self) {
        let timing = self.dialler.timing();
        let soon = timing.probe_again;
        let mut wait = soon;
        while self.interest().is_some() {
            let endpoint = self.endpoint.borrow_and_update().clone();
            match self.dialler.dial(self.peer, &endpoint.mesh, Alpn::Probe).await {
                Ok(stream) => {
                    let since = Instant::now();
                    self.heard_late(Some(since)); // it has proved who it is
                    let end = self.probe(stream).await;
                    if end.any {
                        wait = soon;
                    }
                    // Not as fast as somebody can accept and hang up.
                    if end.broke && since.elapsed() >= soon {
                        continue;
                    }
                }
                Err(error) => self.lost(error),
            }
            let spread = rand::random_range(0.75..1.25); // peers that died together
            tokio::select! {
                () = sleep(wait.mul_f64(spread)) => wait = (wait * 2).min(timing.probe_every * LONGEST_WAIT),
                changed = self.endpoint.changed() => match changed {
                    Ok(()) => wait = soon,
                    Err(_) => return, // the peer was dropped from the table
                },
                () = self.hurry.notified() => {}
            }
        }
    }

    /// Probes on one connection until it is given up or nobody is interested.
    pub(super) async fn probe<S: Duplex>(&mut self, stream: S) -> End {
        let timing = self.dialler.timing();
        let mut connection = Connection::new(stream, timing.probe_within);
        let mut end = End::default();
        while let Some(interest) = self.interest() {
            let mut within = pace::deadline(&timing, self.reading.borrow().smoothed.get());
            let sent = Instant::now();
            if let Some(gone_at) = self.gone_at() {
                within = within.min(gone_at.duration_since(sent));
            }
            let answer = connection.measure(within).await;
            self.heard_late(connection.late.take());
            let lost = answer.is_err();
            match answer {
                Ok(took) => {
                    end.any = true;
                    self.answered(took);
                }
                Err(error) => {
                    end.broke = error.kind() != io::ErrorKind::TimedOut;
                    self.lost(unanswered(self.peer).because(error));
                    if end.broke || self.reading.borrow().gone {
                        return end;
                    }
                }
            }
            let (median, last) = (self.window.median(), self.window.last());
            self.near = pace::is_near(self.near, median, last, &interest.limits);
            let (sure, near) = (self.window.is_sure(), self.near);
            let state = State { used: interest.used, sure, lost, near };
            let next = Instant::now() + pace::next_probe_in(&timing, state, sent.elapsed());
            let next = self.gone_at().map_or(next, |gone_at| next.min(gone_at));
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    () = self.hurry.notified() => break,
                    late = connection.next_answer() => match late {
                        // It is far, not dead.
                        Ok(took) if took <= timing.probe_within => self.answered(took),
                        Ok(_) => self.heard_late(Some(Instant::now())),
                        Err(error) => {
                            end.broke = true;
                            self.lost(unanswered(self.peer).because(error));
                            return end;
                        }
                    },
                }
            }
        }
        end
    }

    fn interest(&self) -> Option<Interest> {
        self.shared.upgrade()?.interest(self.peer)
    }

    /// When the silent peer is gone, unless something comes from it until then. None while
    /// it is not silent, and when it is gone or refuses connections.
    fn gone_at(&self) -> Option<Instant> {
        let waited_for = self.window.is_hopeless() && !self.reading.borrow().gone;
        waited_for.then(|| self.heard + self.dialler.timing().gone_after)
    }

    fn answered(&mut self, took: Duration) {
        self.metrics.node.probe_rtt.observe(took.as_secs_f64());
        self.window.answered(took);
        self.heard = Instant::now();
        let (rtt, least) = (self.window.median(), self.window.least());
        self.reading.send_modify(|reading| {
            (reading.rtt, reading.least) = (rtt, least);
            (reading.silent, reading.gone) = (false, false);
            reading.smoothed.add(took);
        });
    }

    /// Something came that is no measure of the distance, such as an answer that was lost
    /// long ago: the peer lives.
    fn heard_late(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return };
        self.heard = self.heard.max(at);
        self.reading.send_if_modified(|reading| std::mem::take(&mut reading.gone));
    }

    fn lost(&mut self, error: Error) {
        self.metrics.node.probe_failures.inc();
        let was_silent = self.window.silent();
        if is_refusal(&error) {
            self.window.refused()
        } else {
            self.window.lost()
        }
        let gives_up = self.gone_at().is_some_and(|gone_at| gone_at <= Instant::now());
        let (rtt, silent) = (self.window.median(), self.window.silent());
        if silent && !was_silent {
            tracing::debug!(peer = %self.peer.short(), error = error.chain(), "peer is silent");
        }
        let least = self.window.least();
        self.reading.send_modify(|reading| {
            if silent {
                // What it was before the silence says nothing after it.
                (reading.smoothed, reading.felt) = Default::default();
            }
            (reading.rtt, reading.least, reading.silent) = (rtt, least, silent);
            reading.gone |= gives_up;
            (reading.failures, reading.error) = (reading.failures + 1, Some(error));
        });
        // After it is known to be silent: whoever loses a stream by this looks elsewhere.
        if gives_up && let Some(shared) = self.shared.upgrade() {
            tracing::debug!(peer = %self.peer.short(), "peer is gone");
            shared.give_up(self.peer);
        }
    }
}

/// How the probes of one connection ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    /// Anything was answered.
    pub(super) any: bool,
    /// The connection is of no use any more, rather than slow.
    pub(super) broke: bool,
}

/// Whether nobody listens where a peer should be.
fn is_refusal(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    cause.and_then(|cause| cause.downcast_ref()).is_some_and(dial::is_refusal)
}

/// A probe connection.
#[derive(Debug)]
pub(super) struct Connection<S = Stream> {
    stream: S,
    /// Sent and not answered, and when, oldest first. An answer that comes after its
    /// deadline is known by this, and one to nothing that was sent is a fault: a peer can
    /// answer late but neither early nor often.
    outstanding: VecDeque<([u8; NONCE], Instant)>,
    frame: [u8; NONCE],
    filled: usize,
    warm: bool,
    /// What takes longer is no answer.
    most: Duration,
    /// When such a one came last, while another was waited for.
    late: Option<Instant>,
}

impl<S: Duplex> Connection<S> {
    pub(super) fn new(stream: S, most: Duration) -> Self {
        let (outstanding, frame) = (VecDeque::new(), [0; NONCE]);
        Self { stream, outstanding, frame, filled: 0, warm: false, most, late: None }
    }

    /// How long a nonce takes to come back: this one, or an earlier one that was given up
    /// and comes now. May be dropped and called again.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it takes longer than `within`; another if the
    /// connection broke or carries what was not sent.
    pub(super) async fn measure(&mut self, within: Duration) -> io::Result<Duration> {
        if !self.warm {
            timeout(within, self.round_trip()).await??;
            self.warm = true;
        }
        timeout(within, self.round_trip()).await?
    }

    async fn round_trip(&mut self) -> io::Result<Duration> {
        let nonce: [u8; NONCE] = rand::random();
        if self.outstanding.len() == OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((nonce, Instant::now()));
        self.stream.write_all(&nonce).await?;
        self.stream.flush().await?;
        loop {
            let took = self.next_answer().await?;
            if took <= self.most {
                return Ok(took);
            }
            self.late = Some(Instant::now());
        }
    }

    /// How long the nonce took whose answer is the next. Cancel safe.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub(super) async fn next_answer(&mut self) -> io::Result<Duration> {
        while self.filled < NONCE {
            match self.stream.read(&mut self.frame[self.filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.filled += read,
            }
        }
        self.filled = 0;
        let known = self.outstanding.iter().position(|(nonce, _)| *nonce == self.frame);
        let sent = known.and_then(|known| self.outstanding.drain(..=known).next_back());
        let (_, sent) = sent.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing that was sent")
        })?;
        Ok(sent.elapsed())
    }
}

/// The error of a peer that is connected and does not answer.
pub(super) fn unanswered(peer: PeerId) -> Error {
    Error::new(Kind::Unavailable, format!("peer {} does not answer probes", peer.short()))
}
