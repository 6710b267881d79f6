//! First requests for services that are an image nobody runs, alternating with `docker run
//! -d` of the same image until its first 200. By hand means what a person types, with the
//! port published as ours are, on a network of its own as ours, looking every 100 microseconds. The image is present: what is
//! measured is a start.

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lca::api::proto;
use lca_daemon::allocator::Containers;
use lca_engine::testing::{self, TestImage};
use lca_tests::{Cluster, Service};

use super::{PATIENCE, POLL, Pair, answers, print, release_all, verdict};
use crate::stats::Samples;

/// What runs in the image listens here.
const PORT: u16 = 8000;

/// Measures `requests` starts of each kind.
pub(super) async fn run(requests: usize) -> anyhow::Result<()> {
    let engine = testing::engine("cold start of containers").await;
    let engine = engine.context("this needs a Docker Engine")?;
    let image = TestImage::make(&engine).await;
    let containers = Containers {
        engine: engine.address().clone(),
        grants: Default::default(),
        image_room: lca_engine::Terms::DEFAULT_ROOM,
    };
    let cluster = Cluster::builder()
        .instances_each(requests as u32 + 8)
        .containers(containers)
        .start()
        .await?;
    let label = format!("lca.node={}", cluster.allocator(0).peer);
    // Made once, as ours is.
    let network = docker(&["network", "create", "--label", &label, "lca-bench"])?;
    let measured = measure(&cluster, &image, &network, requests).await;
    cluster.drain().await;
    testing::clear(engine.address(), &label);
    let pair = measured?;
    println!("| image | | p50 ms | p99 ms |\n|---|---|---|---|");
    print("a static binary", "docker run -d", &pair);
    println!();
    verdict("a static binary", &pair, |by_hand, ours| {
        ours.percentile(50) <= by_hand.percentile(50)
    });
    Ok(())
}

async fn measure(
    cluster: &Cluster,
    image: &TestImage,
    network: &str,
    requests: usize,
) -> anyhow::Result<Pair> {
    cluster.add(&service("prime", image)).await?;
    let answer = cluster.get("/prime/hello").await?;
    ensure!(answer.status == 200, "{}", answer.text());
    release_all(cluster).await?;
    let (mut by_hand, mut ours) = (Vec::new(), Vec::new());
    for n in 0..requests {
        let name = format!("cold-{n}");
        cluster.add(&service(&name, image)).await?;
        by_hand.push(run_by_hand(image.id.to_string(), network.to_owned()).await?);
        let begin = Instant::now();
        let answer = cluster.get(&format!("/{name}/hello")).await?;
        ours.push(begin.elapsed());
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        release_all(cluster).await?;
    }
    Ok(Pair { by_hand: Samples::new(by_hand), ours: Samples::new(ours) })
}

fn service(name: &str, image: &TestImage) -> Service {
    let image = proto::Image {
        reference: image.reference(),
        id: image.id.to_string(),
        port: PORT.into(),
        ..Default::default()
    };
    let readiness = proto::Readiness { http_path: "/hello".into(), ..Default::default() };
    Service {
        program: None,
        spec: proto::ServiceSpec {
            name: name.into(),
            image: Some(image),
            readiness: Some(readiness),
            ..Default::default()
        },
    }
}

/// From typing `docker run -d` to the first 200.
async fn run_by_hand(image: String, network: String) -> anyhow::Result<Duration> {
    tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let published = format!("127.0.0.1:{port}:{PORT}");
        let told = format!("SERVICE_PORT={PORT}");
        let how = ["run", "--detach", "--network", &network, "--publish", &published];
        let id = docker(&[&how[..], &["--env", &told, &image]].concat())?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let took = loop {
            if answers(address) {
                break Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                break Err(anyhow::anyhow!("the container does not answer"));
            }
            #[expect(clippy::disallowed_methods, reason = "on a thread for blocking work")]
            std::thread::sleep(POLL);
        };
        docker(&["rm", "--force", &id])?;
        took
    })
    .await?
}

fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker").args(arguments).output().context("running docker")?;
    ensure!(output.status.success(), "docker: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
