//! The registry is away while those who need it start again, a cache is damaged, and a
//! service is removed while it is used.

use std::{fs, path::Path, time::Duration};

use lca::{
    Error, Kind,
    api::proto::{
        AllocateServiceRequest, DeleteServiceRequest, GetServiceRequest,
        manager_client::ManagerClient,
    },
};
use lca_tests::{Cluster, Service, eventually, eventually_within, http};

/// Waits until `names` would be remembered over a crash.
async fn remembered(dir: &Path, names: &[&str]) {
    holds(&dir.join("specs.cache"), names).await;
}

/// Waits until the file names all of these.
async fn holds(file: &Path, names: &[&str]) {
    eventually("it to be on disk", async || {
        let bytes = fs::read(file).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&bytes);
        if names.iter().all(|name| text.contains(name)) {
            Ok(())
        } else {
            Err("not all".to_owned())
        }
    })
    .await;
}

/// Asks until the service answers.
async fn answers(cluster: &Cluster, target: &str) {
    eventually("the service to answer", async || {
        let answer = cluster.get(target).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn known_services_start_and_answer_after_a_restart_without_the_registry() -> anyhow::Result<()>
{
    let mut cluster = Cluster::builder().start().await?;
    // The same program, which the allocator has after the first start.
    cluster.add(&Service::demo("used-before")).await?;
    cluster.add(&Service::demo("never-used")).await?;
    assert_eq!(cluster.get("/used-before/hello").await?.status, 200);
    for dir in [cluster.proxy_dir(0), cluster.allocator_dir(0)] {
        remembered(dir, &["used-before", "never-used"]).await;
    }
    let allocator = cluster.allocator(0).peer.to_string();
    holds(&cluster.proxy_dir(0).join("peers.json"), &[&allocator]).await;
    cluster.crash_registry().await;
    cluster.crash_proxy(0).await;
    cluster.crash_allocator(0).await;

    cluster.start_allocator(0).await?;
    cluster.start_proxy(0).await?;
    answers(&cluster, "/used-before/hello").await;
    assert_eq!(cluster.get("/used-before/hello").await?.status, 200, "warm");
    assert_eq!(cluster.get("/never-used/hello").await?.status, 200, "cold");
    let unknown = cluster.get("/never-heard-of/hello").await?;
    assert_eq!(unknown.status, 503, "nobody can say that there is none: {unknown:?}");
    Ok(())
}

#[tokio::test]
async fn a_damaged_cache_of_specs_is_told_and_written_anew() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("kept")).await?;
    remembered(cluster.proxy_dir(0), &["kept"]).await;
    cluster.crash_proxy(0).await;
    let file = cluster.proxy_dir(0).join("specs.cache");
    let mut bytes = fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes)?;
    cluster.start_proxy(0).await?;
    answers(&cluster, "/kept/hello").await;
    eventually("the file to be written anew", async || {
        let found = fs::read(&file).map_err(|error| error.to_string())?;
        if found == bytes { Err("as it was".to_owned()) } else { Ok(()) }
    })
    .await;
    remembered(cluster.proxy_dir(0), &["kept"]).await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_service_removed_while_it_is_used_finishes_what_it_has_and_is_not_started_again()
-> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("leaving").idle_timeout_ms(300)).await?;
    assert_eq!(cluster.get("/leaving/hello").await?.status, 200);
    let front = cluster.front(0);
    let open = tokio::spawn(async move { http::get(front, "/leaving/slow?ms=3000").await });
    eventually("the request to be under way", async || {
        let instances = cluster.instances().await.map_err(|error| error.to_string())?;
        let busy = |load: lca::api::proto::Load| load.in_flight > 0;
        if instances.iter().any(|one| one.load.is_some_and(busy)) {
            Ok(())
        } else {
            Err("idle".to_owned())
        }
    })
    .await;

    let mut registry = cluster.registry_client().await?;
    let name = "leaving".to_owned();
    let request = DeleteServiceRequest { name: name.clone(), if_revision: None };
    registry.delete_service(request).await?;
    let gone = registry.get_service(GetServiceRequest { name: name.clone() }).await;
    assert_eq!(Error::from(gone.expect_err("it is removed")).kind(), Kind::NotFound, "at once");
    eventually_within(Duration::from_secs(2), "the name to be unknown", async || {
        let answer = cluster.get("/leaving/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let request = AllocateServiceRequest { service: name, ..Default::default() };
    let refused = async {
        let mut api = ManagerClient::new(cluster.proxy_api(0).await?);
        let mut progress = api.allocate(request).await.map_err(Error::from)?.into_inner();
        while progress.message().await.map_err(Error::from)?.is_some() {}
        Ok::<_, Error>(())
    };
    assert_eq!(refused.await.expect_err("it is removed").kind(), Kind::NotFound);

    assert_eq!(open.await??.status, 200, "what was under way is answered");
    eventually("its instance to end once it is idle", async || {
        let left = lca_tests::processes::below(cluster.dir());
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    assert_eq!(cluster.instances().await?.len(), 1, "none was started for it since");
    cluster.drain().await;
    Ok(())
}
