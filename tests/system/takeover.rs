//! Instances that outlive their allocator.

use lca::api::proto::InstanceState;
use lca_tests::{Cluster, Service, eventually, processes};

async fn answers(cluster: &Cluster, target: &str) {
    eventually("an answer", async || {
        let answer = cluster.get(target).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_killed_allocator_finds_its_instances_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().keep_instances().start().await?;
    cluster.add(&Service::demo("kept")).await?;
    assert_eq!(cluster.get("/kept/hello").await?.status, 200);
    let before = cluster.instances_of(0).await?.remove(0);
    for _ in 0..2 {
        cluster.kill_allocator(0).await;
        let runs = processes::below(cluster.dir());
        assert!(runs.contains(&before.pid.cast_signed()), "it did not outlive its allocator");
        cluster.start_allocator(0).await?;
        answers(&cluster, "/kept/hello").await;
        let mut live = cluster.instances_of(0).await?;
        live.retain(|one| one.state() == InstanceState::Ready);
        let known: Vec<_> = live.iter().map(|one| (&one.id, one.pid)).collect();
        assert_eq!(known, [(&before.id, before.pid)], "something was started twice");
    }
    // The instance reaches other services where it was told to.
    cluster.add(&Service::demo("other")).await?;
    answers(&cluster, "/other/hello").await;
    Ok(())
}
