//! `lcactl up` with distance: nodes of one machine that are as far from each other as
//! `--link` and `--topology` say.

use std::{collections::HashMap, path::PathBuf};

use anyhow::Context as _;
use lca_tests::{eventually, http as client, program};
use rustix::process::Signal;
use serde_json::Value;

use crate::up::Up;

/// What `up --nodes 5` prints with three links, ports, identities and folders aside.
const REPORT: &str = "\
service-manager

registry   mesh ADDRESS libp2p MULTIADDR
allocator  mesh ADDRESS libp2p MULTIADDR
allocator  mesh ADDRESS libp2p MULTIADDR
allocator  mesh ADDRESS libp2p MULTIADDR
allocator  mesh ADDRESS libp2p MULTIADDR
allocator  mesh ADDRESS libp2p MULTIADDR
proxy      mesh ADDRESS libp2p MULTIADDR

node 0     registry and proxy, the front
node 1     allocator PEER edge, 2.0 ms
node 2     allocator PEER edge, 2.0 ms
node 3     allocator PEER metro, 15.0 ms ± 3.0 ms
node 4     allocator PEER far, 90.0 ms, 1 % of writes stall
node 5     allocator PEER far, 90.0 ms, 1 % of writes stall

front      http://ADDRESS
local API  FILE
gRPC       ADDRESS, token in FILE
service    hello-world-server, started by its first request

    curl http://ADDRESS/hello-world-server/hello

Waiting for requests. Ctrl-C stops everything.
";

/// The report with a word for whatever is different each time.
fn redacted(report: &str) -> String {
    let mut text = String::new();
    for line in report.lines() {
        if line.starts_with("service-manager ") {
            text += "service-manager\n";
            continue;
        }
        let node = line.starts_with("node ");
        let words = line.split(' ').map(|word| match word {
            word if word.starts_with("/ip4/") => "MULTIADDR".to_owned(),
            word if word.starts_with('/') => "FILE".to_owned(),
            word if word.contains("127.0.0.1:") => {
                let port = word.split("127.0.0.1:").nth(1).unwrap_or_default();
                let port: String = port.chars().take_while(char::is_ascii_digit).collect();
                word.replace(&format!("127.0.0.1:{port}"), "ADDRESS")
            }
            word if node && word.ends_with(':') => "PEER".to_owned(),
            word => word.to_owned(),
        });
        // Columns are as wide as the ports of the day.
        let words: Vec<_> = words.collect();
        let line = words.join(" ");
        let line = match line.split_once("ADDRESS") {
            Some((before, after)) if before.contains(" mesh ") => {
                format!("{before}ADDRESS {}", after.trim_start())
            }
            _ => line,
        };
        text += line.trim_end();
        text.push('\n');
    }
    text
}

impl Up {
    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments: Vec<_> = ["-o", "json"].iter().chain(arguments).copied().collect();
        let (status, said) = self.lcactl(&arguments).await?;
        anyhow::ensure!(status.success(), "{arguments:?}: {said}");
        Ok(serde_json::from_str(&said)?)
    }

    /// The number of each allocator, by peer, in the order of the report.
    fn numbers(&self) -> HashMap<String, usize> {
        let allocators = self.report.lines().filter(|line| line.starts_with("allocator "));
        let ids = allocators.filter_map(|line| line.split("/p2p/").nth(1).map(str::to_owned));
        ids.zip(1..).collect()
    }

    /// By node: what its link is called, and its RTT in milliseconds if that is known.
    async fn distances(&self) -> anyhow::Result<HashMap<usize, (String, Option<f64>)>> {
        let (numbers, said) = (self.numbers(), self.json(&["peers"]).await?);
        let peers = said["peers"].as_array().context("a list of peers")?;
        let far = peers.iter().filter_map(|peer| {
            let node = numbers.get(peer["peer"].as_str()?)?;
            let rtt = peer["rtt_us"].as_f64().map(|rtt| rtt / 1e3);
            Some((*node, (peer["link"].as_str()?.to_owned(), rtt)))
        });
        Ok(far.collect())
    }

    /// Adds the demo as `service` with these limits.
    async fn add(&self, service: &str, limits: &[&str]) -> anyhow::Result<()> {
        let demo = program("hello-world-server");
        let demo = demo.to_str().context("a plain path")?;
        let add = ["service", "add", service, "--exec", demo];
        let (status, said) = self.lcactl(&[&add, limits].concat()).await?;
        anyhow::ensure!(status.success(), "{said}");
        Ok(())
    }

    /// By node: whether it would be asked to start `service`, and why or why not.
    async fn would_start(&self, service: &str) -> anyhow::Result<HashMap<usize, (bool, String)>> {
        let (numbers, said) = (self.numbers(), self.json(&["explain", service]).await?);
        let allocators = said["allocators"].as_array().context("a list of allocators")?;
        let each = allocators.iter().filter_map(|one| {
            let node = numbers.get(one["peer"].as_str()?)?;
            Some((*node, (one["rank"] != 0, one["reason"].as_str()?.to_owned())))
        });
        Ok(each.collect())
    }
}

#[tokio::test]
async fn links_are_as_long_as_they_are_said_to_be_and_requests_stay_near() -> anyhow::Result<()> {
    let up = Up::start(&[
        "--nodes",
        "5",
        "--link",
        "edge=2ms:1,2",
        "--link",
        "metro=15ms±3ms:3",
        "--link",
        "far=90ms,stall=1%:4,5",
    ])
    .await?;
    assert_eq!(redacted(&up.report), REPORT, "{}", up.report);

    // Nothing makes a link shorter; a busy machine makes it longer now and then.
    let links = [("edge", 2.0), ("edge", 2.0), ("metro", 12.0), ("far", 90.0), ("far", 90.0)];
    const BUSY: f64 = 60.0;
    eventually("each node to be as far as its link is long", async || {
        let seen = up.distances().await.map_err(|error| error.to_string())?;
        let fits = |node: usize, (name, least): (&str, f64)| {
            let Some((link, Some(rtt))) = seen.get(&node) else { return false };
            assert!(link == name && *rtt >= least, "node {node}: {seen:?}");
            *rtt < least + BUSY
        };
        if (1..).zip(links).all(|(node, link)| fits(node, link)) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;

    up.add("near", &["--soft-rtt", "30ms", "--hard-rtt", "85ms"]).await?;
    eventually("what is beyond hard to be out, and the others in", async || {
        let seen = up.would_start("near").await.map_err(|error| error.to_string())?;
        let beyond = |node: &usize| seen.get(node).is_some_and(|(would, _)| !would);
        if ![1, 2, 3, 4, 5].iter().all(|node| seen.contains_key(node))
            || [1, 2, 3].iter().any(beyond)
        {
            return Err(format!("{seen:?}"));
        }
        for node in [4, 5] {
            let (would, reason) = &seen[&node];
            assert!(!would && reason.contains("beyond the hard limit of 85.0 ms"), "{seen:?}");
        }
        Ok(())
    })
    .await;
    eventually("a request to be answered", async || {
        match client::get(up.front, "/near/hello").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let said = up.json(&["explain", "near"]).await?;
    let runs_on = said["instances"][0]["instance"]["peer"].as_str();
    let runs_on = runs_on.with_context(|| format!("an instance in {said}"))?;
    assert!([1, 2, 3].contains(&up.numbers()[runs_on]), "{said}");
    assert!(up.stop(Signal::INT).await?.success());
    Ok(())
}

#[tokio::test]
async fn a_topology_file_moves_nodes_away_while_time_passes() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file: PathBuf = folder.path().join("moving.json");
    let text = r#"{ "Links": [
        { "Between": [0, 1], "Name": "fixed", "RTT": "20ms" },
        { "Between": [0, 2], "Name": "bus", "Course": [
            { "At": "0s", "RTT": "10ms" }, { "At": "2s", "RTT": "10ms" }, { "At": "4s", "RTT": "300ms" } ] }
    ] }"#;
    std::fs::write(&file, text)?;
    let file = file.to_str().context("a plain path")?;
    let up = Up::start(&["--nodes", "2", "--topology", file]).await?;
    for line in [": fixed, 20.0 ms", ": bus, 10.0 ms now, changing"] {
        assert!(up.report.lines().any(|row| row.ends_with(line)), "no {line:?} in {}", up.report);
    }
    up.add("near", &["--hard-rtt", "200ms"]).await?;
    eventually("the bus to be away, and the other where it was", async || {
        let seen = up.distances().await.map_err(|error| error.to_string())?;
        let (Some((fixed, Some(near))), Some((bus, Some(far)))) = (seen.get(&1), seen.get(&2))
        else {
            return Err(format!("{seen:?}"));
        };
        assert!(fixed == "fixed" && bus == "bus" && *near >= 20.0 && *far >= 10.0, "{seen:?}");
        if *near < 200.0 && *far >= 300.0 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    eventually("only the near one to be asked", async || {
        let seen = up.would_start("near").await.map_err(|error| error.to_string())?;
        let [Some((true, _)), Some((false, why))] = [1, 2].map(|node| seen.get(&node)) else {
            return Err(format!("{seen:?}"));
        };
        if why.contains("beyond the hard limit of 200 ms") { Ok(()) } else { Err(why.clone()) }
    })
    .await;
    assert!(up.stop(Signal::INT).await?.success());
    Ok(())
}
