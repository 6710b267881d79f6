//! Allocation by hand, and what survives a change of the spec.

use std::time::Duration;

use lca::api::proto::{
    AllocateServiceRequest, DeleteServiceRequest, ListInstancesRequest, ReleaseRequest,
    allocate_progress::Progress, allocate_request::Mode, allocator_client::AllocatorClient,
    instances_client::InstancesClient, manager_client::ManagerClient,
};
use lca_tests::{Cluster, Service, eventually, eventually_within, processes};

#[tokio::test]
async fn an_instance_allocated_by_hand_is_listed_used_and_released() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("manual")).await?;
    let api = cluster.proxy_api(0).await?;
    let request = AllocateServiceRequest {
        service: "manual".into(),
        mode: Mode::New.into(),
        ..Default::default()
    };
    let mut progress = ManagerClient::new(api.clone()).allocate(request).await?.into_inner();
    let mut done = None;
    while let Some(message) = progress.message().await? {
        if let Some(Progress::Done(answer)) = message.progress {
            done = Some(answer);
        }
    }
    let done = done.expect("the last message carries the instance");
    let steps: Vec<_> = done.steps.iter().map(|step| step.name.as_str()).collect();
    for step in ["spawn", "ready"] {
        assert!(steps.contains(&step), "{steps:?}");
    }
    let instance = done.instance.expect("an instance");

    assert_eq!(cluster.get("/manual/hello").await?.status, 200);
    let listed =
        InstancesClient::new(api.clone()).list_instances(ListInstancesRequest::default()).await?;
    let listed = listed.into_inner().instances;
    assert_eq!(listed.len(), 1, "the request used it: {listed:?}");
    assert_eq!(listed[0].id, instance.id);

    let release = ReleaseRequest { instance: instance.id[..8].to_owned() };
    AllocatorClient::new(api).release(release).await?;
    assert!(processes::below(cluster.dir()).is_empty());
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_new_revision_is_used_within_two_seconds_and_the_old_instance_idles_out()
-> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("changes").idle_timeout_ms(500)).await?;
    let old = cluster.get("/changes/env").await?.text();
    let mut next = Service::demo("changes").idle_timeout_ms(500);
    next.spec.environment.insert("COLOUR".into(), "green".into());
    cluster.add(&next).await?;
    eventually_within(Duration::from_secs(2), "new requests to use the new revision", async || {
        let new = cluster.get("/changes/env").await.map_err(|error| error.to_string())?.text();
        if new == old { Err(new) } else { Ok(()) }
    })
    .await;
    eventually("the old instance to idle out", async || {
        let instances = cluster.instances().await.map_err(|error| error.to_string())?;
        let old = instances.iter().filter(|instance| instance.revision == 1);
        if old.clone().all(|instance| instance.state() == lca::api::proto::InstanceState::Stopped) {
            Ok(())
        } else {
            Err(format!("{:?}", old.collect::<Vec<_>>()))
        }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_removed_service_is_404_within_two_seconds() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("gone")).await?;
    assert_eq!(cluster.get("/gone/hello").await?.status, 200);
    let request = DeleteServiceRequest { name: "gone".into(), if_revision: None };
    cluster.registry_client().await?.delete_service(request).await?;
    eventually_within(Duration::from_secs(2), "the name to be unknown", async || {
        let answer = cluster.get("/gone/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn instances_that_are_gone_cost_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("many")).await?;
    let api = cluster.proxy_api(0).await?;
    for _ in 0..6 {
        let request = AllocateServiceRequest {
            service: "many".into(),
            mode: Mode::New.into(),
            ..Default::default()
        };
        let mut progress = ManagerClient::new(api.clone()).allocate(request).await?.into_inner();
        while progress.message().await?.is_some() {}
    }
    // They are stopped behind the proxy's back, all but one, then that one too.
    let instances = cluster.instances().await?;
    let allocator = lca::local::connect(&cluster.allocator(0).socket).await?;
    for (left, instance) in instances.iter().enumerate().rev() {
        let release = ReleaseRequest { instance: instance.id.clone() };
        AllocatorClient::new(allocator.clone()).release(release).await?;
        if left <= 1 {
            let answer = cluster.get("/many/hello").await?;
            assert_eq!(answer.status, 200, "{left} are left: {}", answer.text());
        }
    }
    cluster.drain().await;
    Ok(())
}
