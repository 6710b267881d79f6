//! What goes wrong, and that it is said: status, reason, and nothing left behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use lca::api::proto::InstanceState;
use lca_tests::{Cluster, Service, eventually, http::Answer, processes};
use tokio::time::Instant;

/// The problem document of an answer of ours.
fn problem(answer: &Answer) -> serde_json::Value {
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{answer:?}");
    serde_json::from_slice(&answer.body).expect("a problem is JSON")
}

fn detail(answer: &Answer) -> String {
    problem(answer)["detail"].as_str().expect("a problem has a detail").to_owned()
}

#[tokio::test]
async fn an_unknown_service_is_404_and_named() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    let answer = cluster.get("/no-such-service/x").await?;
    assert_eq!(answer.status, 404);
    assert!(detail(&answer).contains("no-such-service"), "{answer:?}");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn without_registry_and_cache_it_is_503_with_retry_after() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.crash_registry().await;
    let answer = cluster.get("/anything/x").await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(detail(&answer).contains("registry"), "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"));
    Ok(())
}

#[tokio::test]
async fn without_allocator_it_is_503() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(0).start().await?;
    cluster.add(&Service::demo("lonely")).await?;
    let answer = cluster.get("/lonely/hello").await?;
    assert_eq!(answer.status, 503);
    assert!(detail(&answer).contains("allocator"), "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn without_room_it_is_503_with_the_reason_of_each_allocator() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).instances_each(0).start().await?;
    cluster.add(&Service::demo("homeless")).await?;
    let answer = cluster.get("/homeless/hello").await?;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    let detail = detail(&answer);
    for allocator in 0..2 {
        let peer = cluster.allocator(allocator).peer.short();
        assert!(detail.contains(&peer), "{detail:?} does not name {peer}");
    }
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_program_that_exits_is_reported_with_its_last_words_and_backed_off() -> anyhow::Result<()>
{
    let cluster = Cluster::builder().start().await?;
    cluster
        .add(&Service::script("broken", "echo cannot find my configuration >&2\nexit 3"))
        .await?;
    let answer = cluster.get("/broken/x").await?;
    assert_eq!(answer.status, 503);
    assert!(detail(&answer).contains("code 3"), "{answer:?}");
    let output = problem(&answer)["output"].to_string();
    assert!(output.contains("cannot find my configuration"), "{output}");

    // The back-off is answered, not waited for: whoever waits starts it again.
    let again = cluster.get("/broken/x").await?;
    assert_eq!(again.status, 503);
    assert!(again.headers.contains_key("retry-after"));
    let failed = cluster.instances().await?;
    assert_eq!(failed.len(), 1, "the second request started nothing: {failed:?}");
    assert_eq!(failed[0].state(), InstanceState::Failed);
    assert!(processes::below(cluster.dir()).is_empty());
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_program_that_never_gets_ready_is_stopped_at_its_deadline() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster
        .add(&Service::script("mute", "echo still thinking\nexec sleep 600").start_timeout_ms(400))
        .await?;
    let begin = Instant::now();
    let answer = cluster.get("/mute/x").await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    assert!(problem(&answer)["output"].to_string().contains("still thinking"), "{answer:?}");
    eventually("nothing to be left running", async || {
        let left = processes::below(cluster.dir());
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_said_to_be() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    let mut service = Service::demo("garbage");
    service.program = Some(b"\x7fELF but not really".to_vec());
    cluster.add(&service).await?;
    let answer = cluster.get("/garbage/x").await?;
    assert_eq!(answer.status, 503);
    assert!(detail(&answer).contains("execut"), "{answer:?}");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn artifact_bytes_that_differ_from_the_digest_are_refused_and_deleted() -> anyhow::Result<()>
{
    let cluster = Cluster::builder().start().await?;
    let stored = cluster.add(&Service::demo("forged")).await?;
    let hex = stored.artifact.trim_start_matches("sha256:");
    // The registry's disk flips a bit and says nothing: what its store looks at, mode
    // and time of modification, is as it was, so that the bytes are served.
    let mut changed = 0;
    for file in files_below(cluster.registry_dir()) {
        if file.file_name().is_some_and(|name| name.to_string_lossy().contains(hex)) {
            let modified = fs::metadata(&file)?.modified()?;
            assert!(modified < SystemTime::UNIX_EPOCH + Duration::from_secs(60), "the mark");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            let mut bytes = fs::read(&file)?;
            bytes[100] ^= 1;
            fs::write(&file, bytes)?;
            fs::File::open(&file)?.set_modified(modified)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o555))?;
            changed += 1;
        }
    }
    assert_eq!(changed, 1, "the registry keeps the artifact under its digest");
    let answer = cluster.get("/forged/hello").await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    let detail = detail(&answer);
    assert!(detail.contains(hex) && detail.contains("have the digest"), "{detail}");
    let kept = files_below(&cluster.allocator_dir(0).join("artifacts"));
    assert_eq!(kept, [] as [std::path::PathBuf; 0], "nothing is kept, whole or in part");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn data_folders_and_the_store_are_for_their_owner_alone() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    let mode =
        |path: &std::path::Path| anyhow::Ok(fs::metadata(path)?.permissions().mode() & 0o777);
    let registry = cluster.registry_dir();
    for dir in [registry, cluster.allocator_dir(0), &cluster.dir().join("proxy-0")] {
        assert_eq!(mode(dir)?, 0o700, "{dir:?}");
    }
    assert_eq!(mode(&registry.join("registry.redb"))?, 0o600);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn private_keys_are_readable_by_their_owner_alone() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    let keys: Vec<_> = files_below(cluster.dir())
        .into_iter()
        .filter(|file| file.file_name().is_some_and(|name| name == "identity"))
        .collect();
    assert_eq!(keys.len(), 3);
    for key in keys {
        assert_eq!(fs::metadata(&key)?.permissions().mode() & 0o777, 0o600, "{key:?}");
    }
    cluster.drain().await;
    Ok(())
}

fn files_below(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
