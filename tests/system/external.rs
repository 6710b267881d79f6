//! External services: programs that no allocator starts, represented by a proxy in
//! server mode.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lca::{
    api::proto::{
        Instance, InstanceState, ListInstancesRequest, ReleaseRequest, WatchInstancesRequest,
        allocator_client::AllocatorClient, instance_event::Event,
        instances_client::InstancesClient,
    },
    testing::eventually,
};
use lca_tests::{Cluster, Outside, Service, http as client};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The instances that the first proxy lists.
async fn listed(cluster: &Cluster) -> Vec<Instance> {
    listed_by(cluster, 0).await
}

/// The instances that proxy `n` lists.
async fn listed_by(cluster: &Cluster, n: usize) -> Vec<Instance> {
    let api = cluster.proxy_api(n).await.expect("the proxy answers");
    let request = ListInstancesRequest::default();
    let answer = InstancesClient::new(api).list_instances(request).await;
    answer.expect("it lists").into_inner().instances
}

/// The one instance of the fleet, once it is in this state.
async fn is(cluster: &Cluster, state: InstanceState) -> Instance {
    eventually(&format!("the instance to be {state:?}"), async || {
        let all = listed(cluster).await;
        match all.as_slice() {
            [one] if one.state() == state => Ok(one.clone()),
            _ => Err(all),
        }
    })
    .await
}

/// Once a request through proxy `n` is answered like this.
async fn answers(cluster: &Cluster, n: usize, target: &str, status: u16) -> client::Answer {
    eventually(&format!("{target} to be answered with {status}"), async || {
        let answer = client::get(cluster.front(n), target).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status == status { Ok(answer) } else { Err(answer.text()) }
    })
    .await
}

#[tokio::test]
async fn it_is_served_while_it_answers_and_found_again_when_it_is_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::external("printer")).await?;
    let mut printer = Outside::start();
    let n = cluster.represent("printer", printer.address()).await?;
    answers(&cluster, 0, "/printer/hello", 200).await;
    answers(&cluster, n, "/printer/hello", 200).await;

    let ready = is(&cluster, InstanceState::Ready).await;
    assert_eq!((ready.driver.as_str(), ready.pid, ready.revision), ("external", 0, 1));
    assert_eq!(ready.peer, cluster.proxy(n).peer.to_string());
    let mut allocator = AllocatorClient::new(cluster.proxy_api(0).await?);
    let refused = allocator.release(ReleaseRequest { instance: ready.id.clone() }).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::FailedPrecondition);

    printer.kill();
    let draining = is(&cluster, InstanceState::Draining).await;
    assert!(draining.reason.starts_with("nothing listens on port"), "{}", draining.reason);
    let refused = answers(&cluster, 0, "/printer/hello", 503).await;
    assert!(refused.text().contains("external service"), "{}", refused.text());
    assert!(refused.headers.contains_key("retry-after"));

    printer.start_again();
    answers(&cluster, 0, "/printer/hello", 200).await;
    assert_eq!(is(&cluster, InstanceState::Ready).await.id, ready.id);
    assert_eq!(cluster.instances().await?, [], "no allocator has started anything");
    cluster.drain().await;
    Ok(())
}

// It looks for the first time before it has reached a registry. A busy machine is slow to
// reach one, so the quickest of some counts.
#[tokio::test]
async fn it_is_announced_as_soon_as_a_registry_is_reached() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::external("printer")).await?;
    let printer = Outside::start();
    let mut took = Vec::new();
    while took.iter().all(|took| *took > Duration::from_millis(700)) {
        anyhow::ensure!(took.len() < 6, "ready after {took:?}");
        let n = cluster.represent("printer", printer.address()).await?;
        let began = Instant::now();
        let peer = cluster.proxy(n).peer.to_string();
        eventually("it to be ready", async || {
            let all = listed_by(&cluster, n).await;
            let is_here = |one: &Instance| one.peer == peer && one.state() == InstanceState::Ready;
            if all.iter().any(is_here) { Ok(()) } else { Err(all) }
        })
        .await;
        took.push(began.elapsed());
        cluster.stop_proxy(n).await;
    }
    drop(printer);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn when_one_dies_another_answers_and_no_request_fails() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::external("printer")).await?;
    let (mut first, second) = (Outside::start(), Outside::start());
    for printer in [&first, &second] {
        cluster.represent("printer", printer.address()).await?;
    }
    eventually("both to be ready", async || {
        let all = listed(&cluster).await;
        let ready = all.iter().filter(|one| one.state() == InstanceState::Ready).count();
        if ready == 2 { Ok(()) } else { Err(all) }
    })
    .await;
    answers(&cluster, 0, "/printer/hello", 200).await;
    first.kill();
    let mut withdrawn = false;
    while !withdrawn {
        let answer = cluster.get("/printer/hello").await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        withdrawn = listed(&cluster).await.iter().any(|i| i.state() == InstanceState::Draining);
    }
    assert_eq!(cluster.get("/printer/hello").await?.status, 200);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_spec_that_comes_later_or_changes_is_followed() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let printer = Outside::start();
    cluster.represent("printer", printer.address()).await?;
    eventually("the proxy to say what is missing", async || {
        let all = listed(&cluster).await;
        let said = all.iter().any(|one| one.reason.contains("there is no service `printer`"));
        if said { Ok(()) } else { Err(all) }
    })
    .await;
    assert_eq!(cluster.get("/printer/hello").await?.status, 404);

    let mut service = Service::external("printer");
    let first = cluster.add(&service).await?;
    answers(&cluster, 0, "/printer/hello", 200).await;
    assert_eq!(is(&cluster, InstanceState::Ready).await.service_hash, first.service_hash);

    // Another hash: the same program under another key, and not for a moment missing.
    service.spec.environment.insert("EDITION".into(), "2".into());
    let second = cluster.add(&service).await?;
    assert_ne!(second.service_hash, first.service_hash);
    eventually("the new hash to be represented", async || {
        let all = listed(&cluster).await;
        let same = all.iter().any(|one| {
            one.service_hash == second.service_hash && one.state() == InstanceState::Ready
        });
        if same { Ok(()) } else { Err(all) }
    })
    .await;
    answers(&cluster, 0, "/printer/hello", 200).await;

    // A program instead: from now on allocators start it, and the proxy says why it does not.
    cluster.add(&Service::demo("printer")).await?;
    let pending = is(&cluster, InstanceState::Pending).await;
    assert!(pending.reason.contains("has a program of its own"), "{}", pending.reason);
    answers(&cluster, 0, "/printer/hello", 200).await;
    assert_eq!(cluster.instances().await?.len(), 1);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn one_that_hangs_is_withdrawn_after_two_looks_and_watchers_are_told() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::external("printer")).await?;
    let printer = Outside::start();
    let n = cluster.represent("printer", printer.address()).await?;
    answers(&cluster, 0, "/printer/hello", 200).await;

    let node = cluster.proxy_node(0);
    let at = lca::discovery::Discovery::endpoint(node, cluster.proxy(n).peer).await?;
    let channel = lca::mesh::Mesh::grpc(node, &at).await?;
    let mut events = InstancesClient::new(channel)
        .watch_instances(WatchInstancesRequest::default())
        .await?
        .into_inner();
    let mut next = async || events.message().await.unwrap().expect("it goes on").event.unwrap();
    assert!(matches!(next().await, Event::Put(one) if one.state() == InstanceState::Ready));
    assert_eq!(next().await, Event::Synced(true));

    printer.hang();
    let hung = Instant::now();
    loop {
        if matches!(next().await, Event::Put(one) if one.state() == InstanceState::Draining) {
            break;
        }
    }
    // Two looks of a second, a second apart, begun at most a second late; and a busy machine.
    assert!(hung.elapsed() < Duration::from_secs(4 + 6), "{:?}", hung.elapsed());
    let begun = Instant::now();
    assert_eq!(answers(&cluster, 0, "/printer/hello", 503).await.status, 503);
    assert!(begun.elapsed() < Duration::from_secs(10), "a request waited for what hangs");
    printer.wake();
    answers(&cluster, 0, "/printer/hello", 200).await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn its_limit_is_kept_and_what_is_open_ends_when_its_proxy_stops() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let mut service = Service::external("printer");
    service.spec.concurrency_limit = 1;
    cluster.add(&service).await?;
    let printer = Outside::start();
    let n = cluster.represent("printer", printer.address()).await?;
    answers(&cluster, 0, "/printer/hello", 200).await;

    let front = cluster.front(0);
    let one_open = async || {
        eventually("a request to be open", async || {
            let all = listed(&cluster).await;
            let open = all.iter().any(|one| one.load.is_some_and(|load| load.in_flight == 1));
            if open { Ok(()) } else { Err(all) }
        })
        .await;
    };
    // For longer than the next one waits for its place.
    let open = tokio::spawn(async move { client::get(front, "/printer/slow?ms=4000").await });
    one_open().await;
    assert_eq!(cluster.get("/printer/hello").await?.status, 503, "one at a time");
    assert_eq!(open.await??.status, 200);

    // For less than what is open is given when its proxy stops.
    let open = tokio::spawn(async move { client::get(front, "/printer/slow?ms=900").await });
    one_open().await;
    cluster.stop_proxy(n).await;
    let answer = open.await??;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(cluster.get("/printer/hello").await?.status, 503);
    cluster.drain().await;
    Ok(())
}

/// A gateway that sends every request back to `front`, as `printer`, with the `Via` it got.
async fn gateway(front: SocketAddr) -> anyhow::Result<(SocketAddr, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    // A look at whether it listens says nothing.
                    head.push(near.read_u8().await.ok()?);
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let head = String::from_utf8_lossy(&head).into_owned();
                let via = head.lines().find(|line| line.to_lowercase().starts_with("via:"))?;
                let mut far = TcpStream::connect(front).await.ok()?;
                let request = format!(
                    "GET /hello HTTP/1.1\r\nHost: printer.lca.localhost\r\n{via}\r\nConnection: close\r\n\r\n"
                );
                far.write_all(request.as_bytes()).await.ok()?;
                tokio::io::copy(&mut far, &mut near).await.ok()
            });
        }
    });
    Ok((address, requests))
}

#[tokio::test]
async fn one_that_leads_back_to_a_front_is_a_loop_and_ends() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let plain = |name: &str| {
        let mut service = Service::external(name);
        service.spec.readiness = None;
        service
    };
    cluster.add(&plain("printer")).await?;
    cluster.add(&plain("mirror")).await?;
    let (gateway, requests) = gateway(cluster.front(0)).await?;
    cluster.represent("printer", gateway).await?;
    answers(&cluster, 0, "/printer/hello", 508).await;
    assert_eq!(requests.load(Ordering::SeqCst), 1, "it went round once");
    // A front itself: what it is asked for by that name is not its own.
    let front = cluster.front(0);
    cluster.represent("mirror", front).await?;
    answers(&cluster, 0, "/mirror/hello", 421).await;
    cluster.drain().await;
    Ok(())
}
