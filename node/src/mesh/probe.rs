//! Measures how far a peer is away, on a connection of its own: once a second while it is
//! used or in doubt, every few seconds while it is only of interest.
//!
//! Eight random bytes go out and come back. Nothing else travels on the connection, so
//! no answer waits behind data. The first exchange on a connection does not count: the
//! other side may still be busy with the end of the TLS handshake. One task a peer of
//! interest; it ends when nobody has asked for the peer for a while. The numbers are
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
    Alpn, Stream,
    client::{Interest, Shared},
    dial::Dialler,
    serve::NONCE,
    window::Window,
};

/// Longest wait before a peer that cannot be reached is tried again, in probe
/// intervals: eight seconds, so that one that is back is noticed before its clients'
/// patience is over.
const LONGEST_WAIT: u32 = 8;
/// Unanswered nonces whose late answers are recognised. After as many losses the
/// connection is given up.
const OUTSTANDING: usize = 3;

/// What is known of one peer's distance.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// The median of the last three round trips; none before the first and in silence.
    pub(super) rtt: Option<Duration>,
    /// Round trips of probes and requests since the last silence.
    pub(super) smoothed: Smoothed,
    /// What requests say.
    pub(super) felt: Felt,
    /// The last three probes were lost.
    pub(super) silent: bool,
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
        Some(Distance { median, ewma, deviation, felt: self.felt.contradicts(median, now) })
    }
}

/// The task that probes one peer.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) peer: PeerId,
    pub(super) dialler: Dialler,
    /// Where the peer is, as last heard.
    pub(super) endpoint: watch::Receiver<Arc<Endpoint>>,
    /// What others see.
    pub(super) reading: watch::Sender<Reading>,
    /// Somebody waits for a number: do not wait for the next turn.
    pub(super) hurry: Arc<Notify>,
    /// Knows whether anybody is still interested.
    pub(super) shared: Weak<Shared>,
    pub(super) window: Window,
    pub(super) metrics: Metrics,
}

impl Prober {
    /// Probes until nobody is interested.
    pub(super) async fn run(mut self) {
        let every = self.dialler.timing().probe_every;
        let mut wait = every;
        while self.interest().is_some() {
            let endpoint = self.endpoint.borrow_and_update().clone();
            match self.dialler.dial(self.peer, &endpoint.mesh, Alpn::Probe).await {
                Ok(stream) => {
                    if self.probe(stream).await {
                        wait = every;
                    }
                }
                Err(error) => self.lost(error),
            }
            let spread = rand::random_range(0.75..1.25); // peers that died together
            tokio::select! {
                () = sleep(wait.mul_f64(spread)) => wait = (wait * 2).min(every * LONGEST_WAIT),
                changed = self.endpoint.changed() => match changed {
                    Ok(()) => wait = every,
                    Err(_) => return, // the peer was dropped from the table
                },
                () = self.hurry.notified() => {}
            }
        }
    }

    /// Probes on one connection until it is given up or nobody is interested. True if
    /// anything was answered.
    async fn probe(&mut self, stream: Stream) -> bool {
        let timing = self.dialler.timing();
        let mut connection = Connection::new(stream);
        let mut any = false;
        while let Some(interest) = self.interest() {
            let sent = Instant::now();
            match connection.measure(timing.probe_within).await {
                Ok(took) => {
                    any = true;
                    self.answered(took);
                }
                Err(error) => {
                    let may_answer_yet = error.kind() == io::ErrorKind::TimedOut;
                    self.lost(unanswered(self.peer).because(error));
                    if !may_answer_yet || self.window.silent() {
                        return any;
                    }
                }
            }
            let sure = interest == Interest::Idle && self.window.is_sure();
            let every = if sure { timing.probe_idly_every } else { timing.probe_every };
            tokio::select! {
                () = sleep_until(sent + every) => {}
                () = self.hurry.notified() => {}
            }
        }
        any
    }

    fn interest(&self) -> Option<Interest> {
        self.shared.upgrade()?.interest(self.peer)
    }

    fn answered(&mut self, took: Duration) {
        self.metrics.node.probe_rtt.observe(took.as_secs_f64());
        self.window.answered(took);
        let rtt = self.window.median();
        self.reading.send_modify(|reading| {
            (reading.rtt, reading.silent) = (rtt, false);
            reading.smoothed.add(took);
        });
    }

    fn lost(&mut self, error: Error) {
        self.metrics.node.probe_failures.inc();
        let falls_silent = self.window.lost();
        if falls_silent {
            tracing::debug!(peer = %self.peer.short(), error = error.chain(), "peer is silent");
        }
        let (rtt, silent) = (self.window.median(), self.window.silent());
        self.reading.send_modify(|reading| {
            if silent {
                // What it was before the silence says nothing after it.
                (reading.smoothed, reading.felt) = Default::default();
            }
            (reading.rtt, reading.silent) = (rtt, silent);
            (reading.failures, reading.error) = (reading.failures + 1, Some(error));
        });
        // After it is known to be silent: whoever loses a stream by this looks elsewhere.
        if falls_silent && let Some(shared) = self.shared.upgrade() {
            shared.give_up(self.peer);
        }
    }
}

/// A probe connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// Sent and not answered, oldest first. An answer that comes after its deadline is
    /// known by this, and one to nothing that was sent is a fault: a peer can answer
    /// late but neither early nor often.
    outstanding: VecDeque<[u8; NONCE]>,
    frame: [u8; NONCE],
    filled: usize,
    warm: bool,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, outstanding: VecDeque::new(), frame: [0; NONCE], filled: 0, warm: false }
    }

    /// How long a nonce takes to come back. May be dropped and called again.
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
        self.outstanding.push_back(nonce);
        let sent = Instant::now();
        self.stream.write_all(&nonce).await?;
        self.stream.flush().await?;
        while !self.outstanding.is_empty() {
            let answer = self.answer().await?;
            let known = self.outstanding.iter().position(|nonce| *nonce == answer);
            let known = known.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing that was sent")
            })?;
            self.outstanding.drain(..=known);
        }
        Ok(sent.elapsed())
    }

    /// The next nonce that comes back. Cancel safe.
    async fn answer(&mut self) -> io::Result<[u8; NONCE]> {
        while self.filled < NONCE {
            match self.stream.read(&mut self.frame[self.filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.filled += read,
            }
        }
        self.filled = 0;
        Ok(self.frame)
    }
}

/// The error of a peer that is connected and does not answer.
pub(super) fn unanswered(peer: PeerId) -> Error {
    Error::new(Kind::Unavailable, format!("peer {} does not answer probes", peer.short()))
}
