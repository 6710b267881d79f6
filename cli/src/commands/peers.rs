//! `lcactl peers`

use std::{collections::BTreeMap, time::Duration};

use lca::api::{self, proto};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    args::{Global, Peers as Args},
    connect,
    errors::Result,
    output::{Format, Output},
    table::Table,
    view::{Peer, distance, short_peer},
    watch::Drawing,
};

/// How often a watch asks: the API has no stream of peers, and each is asked anew.
const POLL: Duration = Duration::from_secs(1);

type Manager = proto::manager_client::ManagerClient<connect::Api>;

#[derive(Serialize)]
struct Document {
    peers: Vec<Peer>,
}

/// One line of `--watch -o json`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    /// A peer that is there, or has changed.
    Put(&'a Peer),
    /// The id of one that is known no more.
    Gone(&'a str),
    /// All that was there when the watch began has been told.
    Synced(bool),
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let mut manager = proto::manager_client::ManagerClient::new(connect::daemon(global).await?)
        .max_decoding_message_size(api::MAX_ANSWER);
    if args.watch {
        return watch(&mut manager, output).await;
    }
    let document = Document { peers: ask(&mut manager).await? };
    output.data(&document, || table(&document.peers))
}

async fn ask(manager: &mut Manager) -> Result<Vec<Peer>> {
    let request = proto::ListPeersRequest {};
    let answer =
        api::call("the daemon", connect::ANSWER, request, |r| manager.list_peers(r)).await?;
    Ok(answer.peers.into_iter().map(Peer::from).collect())
}

async fn watch(manager: &mut Manager, output: &mut Output) -> Result<()> {
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut drawing, mut told) = (Drawing::default(), Told::default());
    let mut first = true;
    loop {
        poll.tick().await;
        let peers = ask(manager).await?;
        let drawn = output.format == Format::Table;
        let changed = told.take(&peers, |line| match drawn {
            true => Ok(()),
            false => output.line(&line),
        })?;
        if drawn && (changed || first) {
            drawing.draw(&table(&peers), output)?;
        }
        if !drawn && first {
            output.line(&Line::Synced(true))?;
        }
        first = false;
    }
}

/// What has been said of each peer.
#[derive(Default)]
struct Told(BTreeMap<String, serde_json::Value>);

impl Told {
    /// Says what is different, and whether anything was.
    fn take(
        &mut self,
        peers: &[Peer],
        mut say: impl FnMut(Line<'_>) -> Result<()>,
    ) -> Result<bool> {
        let mut changed = false;
        let is_gone = |id: &&String| !peers.iter().any(|peer| peer.peer == **id);
        let gone: Vec<_> = self.0.keys().filter(is_gone).cloned().collect();
        for id in gone {
            self.0.remove(&id);
            say(Line::Gone(&id))?;
            changed = true;
        }
        for peer in peers {
            let now = serde_json::to_value(peer).unwrap_or_default();
            if self.0.get(&peer.peer) != Some(&now) {
                self.0.insert(peer.peer.clone(), now);
                say(Line::Put(peer))?;
                changed = true;
            }
        }
        Ok(changed)
    }
}

fn table(peers: &[Peer]) -> Table {
    let mut table =
        Table::new(["PEER", "ROLES", "STATE", "LINK", "RTT", "INSTANCES", "VERSION", "ADDRESSES"])
            .spare(&["VERSION", "ADDRESSES", "INSTANCES"]);
    for peer in peers {
        let state = match (peer.local, peer.reachable) {
            (true, _) => "this node",
            (false, true) => "reachable",
            (false, false) => "unreachable",
        };
        let instances = match peer.max_instances {
            0 => String::new(),
            max => format!("{} of {max}", peer.instances),
        };
        table.row([
            short_peer(&peer.peer),
            peer.roles.join(","),
            state.to_owned(),
            peer.link.clone(),
            distance(peer.rtt_us.filter(|_| !peer.local), peer.rtt_deviation_us),
            instances,
            peer.version.clone(),
            peer.mesh_addresses.join(","),
        ]);
    }
    // Only where distances are simulated.
    match peers.iter().any(|peer| !peer.link.is_empty()) {
        true => table,
        false => table.without("LINK"),
    }
}
