//! `lcactl peers`

use lca::api::{self, proto};
use serde::Serialize;

use crate::{
    args::Global,
    connect,
    errors::Result,
    output::Output,
    table::Table,
    view::{Peer, micros, short_peer},
};

#[derive(Serialize)]
struct Document {
    peers: Vec<Peer>,
}

pub(super) async fn run(global: &Global, output: &mut Output) -> Result<()> {
    let mut manager = proto::manager_client::ManagerClient::new(connect::daemon(global).await?)
        .max_decoding_message_size(api::MAX_ANSWER);
    let request = proto::ListPeersRequest {};
    let answer =
        api::call("the daemon", connect::ANSWER, request, |r| manager.list_peers(r)).await?;
    let document = Document { peers: answer.peers.into_iter().map(Peer::from).collect() };
    output.data(&document, || table(&document.peers).to_string())
}

fn table(peers: &[Peer]) -> Table {
    let mut table =
        Table::new(["PEER", "ROLES", "STATE", "RTT", "INSTANCES", "VERSION", "ADDRESSES"]);
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
            micros(peer.rtt_us.filter(|_| !peer.local)),
            instances,
            peer.version.clone(),
            peer.mesh_addresses.join(","),
        ]);
    }
    table
}
