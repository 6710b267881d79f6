//! `lcactl explain`: what a request would come to now, and why.

use lca::{
    ServiceName,
    api::{self, proto},
};
use serde::Serialize;

use super::instances::requests;
use crate::{
    args::Global,
    connect,
    errors::Result,
    output::Output,
    table::{Screen, Table},
    units::setting_millis,
    view::{
        Instance, PeerCapacity, Requirements, ServiceSpec, age, distance, micros, short_id,
        short_peer,
    },
};

#[derive(Serialize)]
struct Document {
    spec: ServiceSpec,
    stale: bool,
    requirements: InForce,
    instances: Vec<ConsideredInstance>,
    allocators: Vec<ConsideredAllocator>,
    outlook: Outlook,
    unreachable_peers: Vec<String>,
    moves: Vec<Move>,
}

#[derive(Serialize)]
struct InForce {
    in_force: Requirements,
    service: Requirements,
    node: Requirements,
}

#[derive(Serialize)]
struct ConsideredInstance {
    instance: Instance,
    verdict: &'static str,
    reason: String,
    known: bool,
    level: String,
    ejected_ms: u64,
}

#[derive(Serialize)]
struct Move {
    age_ms: u64,
    from_instance: String,
    from_peer: String,
    to_instance: String,
    to_peer: String,
    reason: String,
}

#[derive(Serialize)]
struct ConsideredAllocator {
    peer: String,
    rtt_us: Option<u64>,
    bucket_us: u64,
    has_room: bool,
    rank: u32,
    reason: String,
    capacity: Option<PeerCapacity>,
}

#[derive(Serialize)]
struct Outlook {
    action: &'static str,
    instance: String,
    peer: String,
    reason: String,
}

pub(super) async fn run(service: &ServiceName, global: &Global, output: &mut Output) -> Result<()> {
    let mut manager = proto::manager_client::ManagerClient::new(connect::daemon(global).await?)
        .max_decoding_message_size(api::MAX_ANSWER);
    let request = proto::ExplainRequest { service: service.to_string() };
    let answer = api::call("the daemon", connect::ANSWER, request, |r| manager.explain(r)).await?;
    let document = Document::from(answer);
    output.data(&document, || Picture(&document))?;
    if document.stale {
        output.note("warning: no registry answers; this is the service as it was known last");
    }
    for peer in &document.unreachable_peers {
        output.note(&format!("warning: peer {} did not answer in time", short_peer(peer)));
    }
    Ok(())
}

/// The document for people.
struct Picture<'a>(&'a Document);

impl Screen for Picture<'_> {
    fn on(&self, width: Option<usize>) -> String {
        let Self(document) = self;
        let mut text = vec![document.heading() + "\n" + &document.outlook.sentence() + "\n"];
        if !document.instances.is_empty() {
            text.push(instances(&document.instances).on(width));
        }
        if !document.allocators.is_empty() {
            text.push(allocators(&document.allocators).on(width));
        }
        if !document.moves.is_empty() {
            text.push(moves(&document.moves).on(width));
        }
        text.join("\n")
    }
}

impl Document {
    fn heading(&self) -> String {
        let limit = |name: &str, of: fn(&Requirements) -> u32| {
            let InForce { in_force, service, .. } = &self.requirements;
            match of(in_force) {
                0 => format!("no {name} limit"),
                ms => {
                    let whose = if ms == of(service) { "the service's" } else { "this node's" };
                    format!("{name} limit {} ({whose})", setting_millis(ms.into()))
                }
            }
        };
        let soft = limit("soft", |limits| limits.soft_rtt_ms);
        let hard = limit("hard", |limits| limits.hard_rtt_ms);
        format!("{}, revision {}: {soft}, {hard}", self.spec.name, self.spec.revision)
    }
}

impl Outlook {
    fn sentence(&self) -> String {
        let peer = short_peer(&self.peer);
        let what = match self.action {
            "ACTION_USE" => format!("would use {} on {peer}", short_id(&self.instance)),
            "ACTION_ALLOCATE" => format!("would allocate on {peer}"),
            _ => "would be refused".to_owned(),
        };
        // What a daemon says must not move the cursor.
        let reason = self.reason.replace(|c: char| c.is_control(), " ");
        format!("A request now {what}: {reason}")
    }
}

fn instances(all: &[ConsideredInstance]) -> Table {
    let mut table = Table::new([
        "INSTANCE", "PEER", "RTT", "STATE", "REQUESTS", "KNOWN", "LEVEL", "VERDICT", "WHY",
    ])
    .spare(&["KNOWN", "REQUESTS", "STATE", "LEVEL", "PEER"]);
    for ConsideredInstance { instance, verdict, reason, known, level, ejected_ms } in all {
        let level = match ejected_ms {
            0 => level.clone(),
            ms => format!("ejected for {}", age(*ms)),
        };
        table.row([
            short_id(&instance.id),
            short_peer(&instance.peer),
            distance(instance.rtt_us, instance.rtt_deviation_us),
            instance.state_word(),
            requests(instance),
            if *known { "yes" } else { "no" }.to_owned(),
            level,
            word(verdict, "VERDICT_"),
            reason.clone(),
        ]);
    }
    table
}

fn allocators(all: &[ConsideredAllocator]) -> Table {
    let mut table =
        Table::new(["ALLOCATOR", "RTT", "ORDER", "ROOM", "INSTANCES", "WHY"]).spare(&["INSTANCES"]);
    for one in all {
        let running = one.capacity.as_ref().and_then(|capacity| {
            let (total, used) = (capacity.total.as_ref()?, capacity.used.as_ref()?);
            Some(format!("{} of {}", used.instances, total.instances))
        });
        let order = if one.rank == 0 { String::new() } else { one.rank.to_string() };
        table.row([
            short_peer(&one.peer),
            micros(one.rtt_us),
            order,
            if one.has_room { "yes" } else { "no" }.to_owned(),
            running.unwrap_or_default(),
            one.reason.clone(),
        ]);
    }
    table
}

/// The latest first.
fn moves(all: &[Move]) -> Table {
    let mut table = Table::new(["MOVED", "FROM", "TO", "WHY"]);
    let place = |instance: &str, peer: &str| match instance {
        "" => String::new(),
        instance if peer.is_empty() => short_id(instance),
        instance => format!("{} on {}", short_id(instance), short_peer(peer)),
    };
    for one in all {
        table.row([
            format!("{} ago", age(one.age_ms)),
            place(&one.from_instance, &one.from_peer),
            place(&one.to_instance, &one.to_peer),
            one.reason.clone(),
        ]);
    }
    table
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase().replace('_', " ")
}

impl From<proto::ExplainResponse> for Document {
    fn from(answer: proto::ExplainResponse) -> Self {
        let requirements = answer.requirements.unwrap_or_default();
        let limits = |limits: Option<proto::Requirements>| limits.unwrap_or_default().into();
        let outlook = answer.outlook.unwrap_or_default();
        let instances = answer.instances.into_iter().map(|one| ConsideredInstance {
            verdict: one.verdict().as_str_name(),
            instance: one.instance.unwrap_or_default().into(),
            reason: one.reason,
            known: one.known,
            level: one.level,
            ejected_ms: one.ejected_ms,
        });
        let moves = answer.moves.into_iter().map(|one| {
            let proto::Move { age_ms, from_instance, from_peer, to_instance, to_peer, reason } =
                one;
            Move { age_ms, from_instance, from_peer, to_instance, to_peer, reason }
        });
        let allocators = answer.allocators.into_iter().map(|one| ConsideredAllocator {
            peer: one.peer,
            rtt_us: one.rtt_us,
            bucket_us: one.bucket_us,
            has_room: one.has_room,
            rank: one.rank,
            reason: one.reason,
            capacity: one.capacity.map(PeerCapacity::from),
        });
        Self {
            spec: answer.spec.unwrap_or_default().into(),
            stale: answer.stale,
            requirements: InForce {
                in_force: limits(requirements.in_force),
                service: limits(requirements.service),
                node: limits(requirements.node),
            },
            instances: instances.collect(),
            allocators: allocators.collect(),
            outlook: Outlook {
                action: outlook.action().as_str_name(),
                instance: outlook.instance,
                peer: outlook.peer,
                reason: outlook.reason,
            },
            unreachable_peers: answer.unreachable_peers,
            moves: moves.collect(),
        }
    }
}
