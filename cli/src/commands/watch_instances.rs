//! `lcactl instances --watch`: what runs, as it changes.

use std::{collections::BTreeMap, future::ready};

use futures::TryStreamExt as _;
use lca::{
    Kind,
    api::proto::{self, instance_event::Event, instances_client::InstancesClient},
};
use serde::Serialize;
use tokio::time::{Instant, sleep_until, timeout};

use super::instances::table;
use crate::{
    args::{Global, Instances as Args},
    connect,
    errors::{Failure, Result},
    output::{Format, Output},
    view::{Instance, PeerCapacity},
    watch::{Drawing, REDRAW, SETTLE},
};

/// One line of `-o json`: an `InstanceEvent`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Put(Box<Instance>),
    Gone(String),
    Synced(bool),
    Capacity(PeerCapacity),
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let service = args.service.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut client = InstancesClient::new(connect::daemon(global).await?);
    let request = proto::WatchInstancesRequest { service, service_hash: String::new() };
    // Without grpc-timeout: it would end the stream, too.
    let silent = || {
        let within = connect::ANSWER;
        Failure::new(Kind::Timeout, format!("the daemon did not answer within {within:?}"))
    };
    let answer = timeout(connect::ANSWER, client.watch_instances(request)).await;
    let answer = answer.map_err(|_| silent())?;
    let mut events = answer?.into_inner().try_filter_map(|message| ready(Ok(message.event)));
    if output.format == Format::Json {
        while let Some(event) = events.try_next().await? {
            output.line(&line(event))?;
        }
        return Err(ended());
    }
    let mut shown = Shown::default();
    let mut drawing = Drawing::default();
    // Nothing is drawn before everything is there.
    loop {
        let event = timeout(connect::ANSWER, events.try_next()).await.map_err(|_| silent())?;
        if !shown.take(event?.ok_or_else(ended)?) {
            break;
        }
    }
    shown.draw(&mut drawing, output)?;
    let mut next = Instant::now() + REDRAW;
    loop {
        let ages_go_on = output.terminal().is_some();
        tokio::select! {
            event = events.try_next() => match event? {
                Some(event) => {
                    if shown.take(event) {
                        next = next.min(Instant::now() + SETTLE);
                    }
                }
                None => {
                    if shown.changed {
                        shown.draw(&mut drawing, output)?;
                    }
                    return Err(ended());
                }
            },
            () = sleep_until(next), if ages_go_on || shown.changed => {
                shown.draw(&mut drawing, output)?;
                next = Instant::now() + REDRAW;
            }
        }
    }
}

fn ended() -> Failure {
    Failure::new(Kind::Unavailable, "the daemon has ended the watch")
}

fn line(event: Event) -> Line {
    match event {
        Event::Put(instance) => Line::Put(Box::new(instance.into())),
        Event::Gone(id) => Line::Gone(id),
        Event::Synced(synced) => Line::Synced(synced),
        Event::Capacity(capacity) => Line::Capacity(capacity.into()),
    }
}

/// The instances on the screen.
#[derive(Default)]
struct Shown {
    instances: BTreeMap<String, (Instant, proto::Instance)>,
    changed: bool,
}

impl Shown {
    /// False when everything that was there has been told.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Put(instance) => {
                self.instances.insert(instance.id.clone(), (Instant::now(), instance));
                self.changed = true;
            }
            Event::Gone(id) => {
                self.changed |= self.instances.remove(&id).is_some();
            }
            Event::Synced(_) => return false,
            Event::Capacity(_) => {}
        }
        true
    }

    fn draw(&mut self, drawing: &mut Drawing, output: &mut Output) -> Result<()> {
        self.changed = false;
        let mut instances: Vec<Instance> = self
            .instances
            .values()
            .map(|(told, instance)| {
                let since = u64::try_from(told.elapsed().as_millis()).unwrap_or(u64::MAX);
                let age_ms = instance.age_ms.saturating_add(since);
                Instance::from(proto::Instance { age_ms, ..instance.clone() })
            })
            .collect();
        if instances.is_empty() {
            return drawing.draw(&"no instances\n".to_owned(), output);
        }
        instances.sort_by(|a, b| (&a.service, &a.peer, &a.id).cmp(&(&b.service, &b.peer, &b.id)));
        drawing.draw(&table(&instances), output)
    }
}
