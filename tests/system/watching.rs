//! What runs, as a watcher on the local API of a proxy sees it; and what is explained.

use lca::api::proto::{
    ExplainRequest, Instance, InstanceEvent, InstanceState, WatchInstancesRequest,
    instance_event::Event, instances_client::InstancesClient, manager_client::ManagerClient,
    outlook::Action,
};
use lca_tests::{Cluster, Service};
use tonic::Streaming;

/// Events until `what` is found in one.
async fn until<T>(
    events: &mut Streaming<InstanceEvent>,
    what: &str,
    find: impl Fn(&Event) -> Option<T>,
) -> anyhow::Result<T> {
    let looking = async {
        while let Some(message) = events.message().await? {
            if let Some(found) = message.event.as_ref().and_then(&find) {
                return Ok(found);
            }
        }
        anyhow::bail!("the watch has ended before {what}")
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), looking).await?
}

fn in_state(state: InstanceState) -> impl Fn(&Event) -> Option<Instance> {
    move |event| match event {
        Event::Put(instance) if instance.state() == state => Some(instance.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn a_watcher_sees_a_start_its_load_and_its_end() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("watched").idle_timeout_ms(1500)).await?;
    let api = cluster.proxy_api(0).await?;
    let explain = async || {
        let request = ExplainRequest { service: "watched".into() };
        anyhow::Ok(ManagerClient::new(api.clone()).explain(request).await?.into_inner())
    };
    let before = explain().await?.outlook.unwrap_or_default();
    assert_eq!(before.action(), Action::Allocate, "{before:?}");

    let request = WatchInstancesRequest { service: "watched".into(), ..Default::default() };
    let mut events = InstancesClient::new(api.clone()).watch_instances(request).await?.into_inner();
    until(&mut events, "synced", |event| matches!(event, Event::Synced(_)).then_some(())).await?;
    assert_eq!(cluster.get("/watched/hello").await?.status, 200);
    let ready = until(&mut events, "ready", in_state(InstanceState::Ready)).await?;
    assert_eq!(ready.peer, before.peer, "it was allocated where it was said");
    let used = explain().await?.outlook.unwrap_or_default();
    assert_eq!((used.action(), &used.instance), (Action::Use, &ready.id));

    let mut seen = vec![ready.clone()];
    let gone = loop {
        let next = until(&mut events, "the next event", |event| Some(event.clone())).await?;
        match next {
            Event::Put(instance) => seen.push(instance),
            Event::Gone(id) => break id,
            _ => {}
        }
    };
    assert_eq!(gone, ready.id);
    // The application's time is part of the load, and was 0 before the first request.
    let loads: Vec<_> = seen.iter().filter_map(|one| one.load).map(|load| load.app_us).collect();
    assert!(loads.iter().any(|app_us| *app_us > 0), "{loads:?}");
    let ended = &seen[seen.len() - 1];
    assert_eq!(ended.state(), InstanceState::Stopped);
    assert!(ended.reason.contains("idle"), "{}", ended.reason);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn the_instances_of_a_killed_allocator_are_gone() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("lost")).await?;
    let api = cluster.proxy_api(0).await?;
    assert_eq!(cluster.get("/lost/hello").await?.status, 200);
    let mut events = InstancesClient::new(api)
        .watch_instances(WatchInstancesRequest::default())
        .await?
        .into_inner();
    let ready = until(&mut events, "ready", in_state(InstanceState::Ready)).await?;
    cluster.crash_allocator(0).await;
    let gone = |event: &Event| match event {
        Event::Gone(id) => Some(id.clone()),
        _ => None,
    };
    assert_eq!(until(&mut events, "that it is gone", gone).await?, ready.id);
    cluster.drain().await;
    Ok(())
}
