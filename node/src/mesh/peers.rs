//! What is known of each peer: an entry each, in one bounded table.

use std::{num::NonZeroUsize, sync::Arc};

use futures::future::{BoxFuture, Shared as Flight};
use lca::{PeerId, Result, endpoint::Endpoint};
use lru::LruCache;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{
    Stream,
    interest::{Interest, Probe, Use},
};

/// Peers remembered, with a channel each: more than one node talks to at a time. A
/// channel costs a connection on both sides.
const PEERS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Peers probed at a time: at 2 kbit/s each, 128 kbit/s at most if all are used, and 9
/// kbit/s each while all are near a limit.
const OF_INTEREST: usize = 64;

/// See the module. The least recently used makes room.
#[derive(Debug)]
pub(super) struct Peers {
    entries: LruCache<PeerId, Entry>,
}

/// Everything known of one peer.
#[derive(Debug)]
pub(super) struct Entry {
    /// The latest word on where it is.
    pub(super) endpoint: watch::Sender<Arc<Endpoint>>,
    pub(super) channel: Slot,
    pub(super) probe: Option<Probe>,
    /// Cancelled, and replaced, when the peer is gone: breaks the streams handed out to it.
    pub(super) severed: CancellationToken,
    /// Each of those streams holds a clone.
    streams: Arc<()>,
}

/// The channel to a peer.
#[derive(Debug)]
pub(super) enum Slot {
    Empty,
    /// One attempt, for everybody who asks meanwhile.
    Connecting(Flight<BoxFuture<'static, Result<Channel>>>),
    Open {
        channel: Channel,
        /// Cancelled when the connection is gone.
        gone: CancellationToken,
        /// The start of the peer that it was made to.
        boot: u64,
    },
}

impl Default for Peers {
    fn default() -> Self {
        Self { entries: LruCache::new(PEERS) }
    }
}

impl Peers {
    /// The entry of a peer, made if need be, with the latest word on where it is.
    pub(super) fn enter(&mut self, to: &Endpoint) -> &mut Entry {
        let entry = self.entries.get_or_insert_mut(to.peer, || Entry {
            endpoint: watch::Sender::new(Arc::new(to.clone())),
            channel: Slot::Empty,
            probe: None,
            severed: CancellationToken::new(),
            streams: Arc::default(),
        });
        entry.endpoint.send_if_modified(|known| {
            let later = to.supersedes(known);
            if later {
                *known = Arc::new(to.clone());
            }
            later
        });
        entry
    }

    pub(super) fn known(&mut self, peer: PeerId) -> Option<&mut Entry> {
        self.entries.peek_mut(&peer)
    }

    pub(super) fn probe(&self, peer: PeerId) -> Option<&Probe> {
        self.entries.peek(&peer)?.probe.as_ref()
    }

    /// Whether to go on probing, and what for. If nobody has asked for long enough and
    /// nothing is open, the probe is taken out, so that whoever asks next starts another.
    pub(super) fn interest(&mut self, peer: PeerId) -> Option<Interest> {
        let now = Instant::now();
        if self.entries.peek(&peer)?.has_streams() {
            // A stream may be quiet for minutes, and says nothing of the peer then.
            self.entries.promote(&peer);
        }
        let entry = self.entries.peek_mut(&peer)?;
        let open = entry.has_streams();
        let interest = entry.probe.as_mut().and_then(|probe| {
            if open {
                probe.asked(Use::Now, None, now);
            }
            probe.interest(now)
        });
        if interest.is_none() {
            entry.probe = None;
        }
        interest
    }

    /// Ends the probe of the peer least recently asked for, if there are too many.
    pub(super) fn make_room(&mut self) {
        if self.probed() < OF_INTEREST {
            return;
        }
        let until = |entry: &Entry| entry.probe.as_ref().map(Probe::until);
        let oldest = self.entries.iter().filter_map(|(peer, entry)| Some((until(entry)?, *peer)));
        if let Some(entry) = oldest.min().and_then(|(_, peer)| self.entries.peek_mut(&peer)) {
            entry.probe = None;
        }
    }

    pub(super) fn probed(&self) -> usize {
        self.entries.iter().filter(|(_, entry)| entry.probe.is_some()).count()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Entry {
    /// `stream` breaks when the peer is gone, and keeps it of interest until it is dropped.
    pub(super) fn hands_out(&self, stream: &mut Stream) {
        // A child each, so that streams share no lock while they are read.
        stream.sever_with(&self.severed.child_token());
        stream.counts_as(&self.streams);
    }

    fn has_streams(&self) -> bool {
        Arc::strong_count(&self.streams) > 1
    }
}
