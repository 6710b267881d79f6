//! Nodes that go away, come back, or cannot be reached.

use std::time::Duration;

use futures::future::join_all;
use http::Method;
use lca::{config::Config, discovery::Discovery as _, mesh::Mesh as _};
use lca_node::link::Profile;
use lca_tests::{Cluster, Service, eventually, http as client};
use tokio::time::{Instant, timeout};

use crate::scaling::{Clients, ready};

/// Far above what loopback takes on a busy machine.
const HARD_MS: u32 = 250;
/// Beyond that, with room below the second after which a probe is lost.
const FAR: Duration = Duration::from_millis(400);
/// A request that took longer on a busy machine has waited for something else.
const WAITED: Duration = Duration::from_secs(10);

/// The peer that answered a request with `LCA-Debug: 1`, and after how many attempts.
fn answered_by(answer: &client::Answer) -> (String, String) {
    let told = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
    let told = |name| told(name).unwrap_or_default().to_owned();
    (told("lca-debug-peer"), told("lca-debug-attempts"))
}

#[tokio::test]
async fn a_machine_that_dies_is_replaced_by_another() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("moves")).await?;
    assert_eq!(cluster.get("/moves/hello").await?.status, 200);
    let first = usize::from(cluster.instances_of(0).await?.is_empty());
    cluster.crash_allocator(first).await;
    eventually("the other machine to serve", async || {
        let answer = cluster.get("/moves/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(cluster.instances_of(1 - first).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_instance_that_dies_is_replaced_for_the_next_request() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("mortal")).await?;
    assert_eq!(cluster.get("/mortal/hello").await?.status, 200);
    lca_tests::processes::kill_below(cluster.dir());
    eventually("a new instance to answer", async || {
        let answer = cluster.get("/mortal/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let failed = cluster.instances().await?;
    assert!(failed.iter().any(|instance| instance.reason.contains("SIGKILL")), "{failed:?}");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_registry_outage_changes_nothing_for_services_that_are_known() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("known").idle_timeout_ms(300)).await?;
    assert_eq!(cluster.get("/known/hello").await?.status, 200);
    cluster.crash_registry().await;
    for _ in 0..20 {
        let asked = timeout(WAITED, cluster.get("/known/hello")).await;
        let answer = asked.expect("a request waited for the registry")?;
        assert_eq!(answer.status, 200, "the outage evicted a healthy peer");
    }
    cluster.restart_registry().await?;
    cluster.add(&Service::demo("newcomer")).await?;
    eventually("the registry to be found again", async || {
        let answer = cluster.get("/newcomer/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_crashed_allocator_rejoins_and_serves_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("again")).await?;
    assert_eq!(cluster.get("/again/hello").await?.status, 200);
    cluster.crash_allocator(0).await;
    cluster.start_allocator(0).await?;
    eventually("the allocator to serve again", async || {
        let answer = cluster.get("/again/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_hung_peer_stalls_nobody_else() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("first")).await?;
    assert_eq!(cluster.get("/first/hello").await?.status, 200);
    let holder = usize::from(cluster.instances_of(0).await?.is_empty());
    // The machine that holds it goes silent: no reset, no goodbye.
    cluster.link(cluster.proxy(0).peer, cluster.allocator(holder).peer, Profile::CUT);
    let front = cluster.front(0);
    let stuck = tokio::spawn(async move { client::get(front, "/first/hello").await });
    cluster.add(&Service::demo("second")).await?;
    let begin = Instant::now();
    let answer = cluster.get("/second/hello").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let took = begin.elapsed();
    assert!(took < WAITED, "another service waited {took:?} for the hung peer");
    // What was under way to it is answered elsewhere.
    assert_eq!(stuck.await??.status, 200);
    let elsewhere = cluster.instances_of(1 - holder).await?;
    assert!(elsewhere.iter().any(|one| one.service == "first"), "{elsewhere:#?}");
    cluster.heal(cluster.proxy(0).peer, cluster.allocator(holder).peer);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn requests_leave_a_peer_that_fell_silent() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("leaves")).await?;
    let several = || join_all((0..8).map(|_| cluster.get("/leaves/slow?ms=100")));
    // Warm: the instance is known, and connections to its peer wait in the pool.
    for answer in several().await {
        assert_eq!(answer?.status, 200);
    }
    let holder = usize::from(cluster.instances_of(0).await?.is_empty());
    cluster.link(cluster.proxy(0).peer, cluster.allocator(holder).peer, Profile::CUT);
    // Three losses within three seconds, one look at whether it still lives, a start.
    let cut = Instant::now();
    for answer in several().await {
        let answer = answer?;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let took = cut.elapsed();
    assert!(took < Duration::from_secs(30), "requests waited {took:?} for the silent peer");
    assert_eq!(cluster.instances_of(1 - holder).await?.len(), 1);
    // Nobody is sent there again while it is silent.
    let answer = client::get_debug(cluster.front(0), "/leaves/hello").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let other = cluster.allocator(1 - holder).peer;
    assert_eq!(answered_by(&answer), (other.to_string(), "1".to_owned()));
    cluster.heal(cluster.proxy(0).peer, cluster.allocator(holder).peer);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_dead_record_does_not_hide_a_live_instance() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().allocators(2).proxies(2).start().await?;
    let spec = cluster.add(&Service::demo("both")).await?;
    // An instance on each machine.
    use lca::api::proto::{
        AllocateRequest, allocate_request::Mode, allocator_client::AllocatorClient,
    };
    for n in 0..2 {
        let request = AllocateRequest {
            service: "both".into(),
            service_hash: spec.service_hash.clone(),
            mode: Mode::New.into(),
            request_id: format!("dead-record-{n}"),
        };
        let channel = lca::local::connect(&cluster.allocator(n).socket).await?;
        AllocatorClient::new(channel).allocate(request).await?;
    }
    cluster.crash_allocator(0).await;
    // A proxy that has never asked finds the dead record and the live one.
    let answer = client::get(cluster.front(1), "/both/hello").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let live = cluster.instances_of(1).await?;
    assert_eq!(live.len(), 1, "the live instance was used, not another started: {live:?}");
    Ok(())
}

#[tokio::test]
async fn an_instance_beyond_the_hard_limit_is_never_chosen() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(1).start().await?;
    cluster.add(&Service::demo("near").hard_rtt_ms(HARD_MS)).await?;
    assert_eq!(cluster.get("/near/hello").await?.status, 200, "it is near at first");
    cluster.link(cluster.proxy(0).peer, cluster.allocator(0).peer, Profile::rtt(FAR));
    let allocator = cluster.allocator(0).peer.short();
    eventually("the far instance to be given up", async || {
        let answer = cluster.get("/near/hello").await.map_err(|error| error.to_string())?;
        let named = answer.text().contains(&allocator);
        if answer.status == 503 && named { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    cluster.heal(cluster.proxy(0).peer, cluster.allocator(0).peer);
    eventually("it to be used once it is near again", async || {
        let answer = cluster.get("/near/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn beyond_hard_what_is_under_way_finishes_and_what_is_new_goes_elsewhere()
-> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("drifts").hard_rtt_ms(HARD_MS)).await?;
    assert_eq!(cluster.get("/drifts/hello").await?.status, 200);
    let holder = usize::from(cluster.instances_of(0).await?.is_empty());
    let front = cluster.front(0);
    // One that was severed would not be repeated elsewhere.
    let long = async move { client::send_debug(front, Method::POST, "/drifts/slow?ms=8000").await };
    let long = tokio::spawn(long);
    eventually("the long request to be under way", async || {
        let instances = cluster.instances_of(holder).await.map_err(|error| error.to_string())?;
        let open = instances.iter().filter_map(|one| one.load).any(|load| load.in_flight == 1);
        if open { Ok(()) } else { Err(format!("{instances:?}")) }
    })
    .await;
    let (proxy, far) = (cluster.proxy(0).peer, cluster.allocator(holder).peer);
    cluster.link(proxy, far, Profile::rtt(FAR));
    eventually("new requests to go elsewhere", async || {
        let answer = cluster.get("/drifts/hello").await.map_err(|error| error.to_string())?;
        assert_eq!(answer.status, 200, "a request saw the move: {}", answer.text());
        let there = cluster.instances_of(1 - holder).await.map_err(|error| error.to_string())?;
        if there.len() == 1 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let long = long.await??;
    assert_eq!(long.status, 200, "it was begun within the limit: {}", long.text());
    assert_eq!(answered_by(&long), (far.to_string(), "1".to_owned()));
    cluster.heal(proxy, far);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn what_an_application_takes_is_not_taken_for_distance() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("slow-one")).await?;
    let (node, allocator) = (cluster.proxy_node(0), cluster.allocator(0).peer);
    // Long enough for three seconds with requests on a connection used before.
    for _ in 0..12 {
        assert_eq!(cluster.get("/slow-one/slow?ms=400").await?.status, 200);
    }
    let distance = node.distance(allocator).expect("it is probed while it is used");
    assert_eq!(distance.felt, None, "{distance:?}");
    assert!(distance.effective() < Duration::from_millis(200), "{distance:?}");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_clients_own_limit_holds_where_the_service_has_none() -> anyhow::Result<()> {
    // The original read milliseconds as nanoseconds: 250 would have refused everything,
    // or nothing.
    let limits = Config::parse("conf.json", r#"{ "Perf": { "HardReq": { "RTT": 250 } } }"#)?;
    let cluster = Cluster::builder().requirements(limits.requirements).start().await?;
    cluster.add(&Service::demo("any-distance")).await?;
    assert_eq!(cluster.get("/any-distance/hello").await?.status, 200, "loopback is nearer");
    let (proxy, allocator) = (cluster.proxy(0).peer, cluster.allocator(0).peer);
    cluster.link(proxy, allocator, Profile::rtt(FAR));
    eventually("the far instance to be given up", async || {
        let answer = cluster.get("/any-distance/hello").await.map_err(|error| error.to_string())?;
        let named = answer.text().contains(&allocator.short());
        if answer.status == 503 && named { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    cluster.heal(proxy, allocator);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_partition_heals() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(1).proxies(2).start().await?;
    cluster.add(&Service::demo("split")).await?;
    assert_eq!(cluster.get("/split/hello").await?.status, 200);
    let others = [cluster.allocator(0).peer, cluster.registry().peer];
    for peer in others {
        cluster.link(cluster.proxy(1).peer, peer, Profile::CUT);
    }
    let answer = client::get(cluster.front(1), "/split/hello").await?;
    assert!(answer.status.is_server_error(), "{answer:?}");
    assert_eq!(cluster.get("/split/hello").await?.status, 200, "the other side goes on");
    for peer in others {
        cluster.heal(cluster.proxy(1).peer, peer);
    }
    eventually("the far side to find it", async || {
        let answer = client::get(cluster.front(1), "/split/hello")
            .await
            .map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let found = cluster.proxy_node(1).endpoint(cluster.allocator(0).peer).await?;
    assert!(found.has(lca::endpoint::Role::Allocator));
    Ok(())
}

/// One more instance of `service`, beside those there are.
pub(crate) async fn another(
    cluster: &Cluster,
    allocator: usize,
    service: &str,
) -> anyhow::Result<()> {
    use lca::api::proto::{
        AllocateRequest, GetServiceRequest, allocate_request::Mode,
        allocator_client::AllocatorClient,
    };
    let known = GetServiceRequest { name: service.to_owned() };
    let known = cluster.registry_client().await?.get_service(known).await?.into_inner().spec;
    let request = AllocateRequest {
        service: service.to_owned(),
        service_hash: known.expect("the spec").service_hash,
        mode: Mode::New.into(),
        request_id: format!("{service}-on-{allocator}"),
    };
    let channel = lca::local::connect(&cluster.allocator(allocator).socket).await?;
    AllocatorClient::new(channel).allocate(request).await?;
    Ok(())
}

/// A fleet with an instance on each of two machines, both known to the proxy.
async fn two_of(service: &str) -> anyhow::Result<Cluster> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo(service)).await?;
    for n in 0..2 {
        another(&cluster, n, service).await?;
    }
    let target = format!("/{service}/slow?ms=20");
    eventually("both to be used", async || {
        let asked = join_all((0..8).map(|_| cluster.get(&target))).await;
        assert!(asked.into_iter().all(|answer| answer.is_ok_and(|answer| answer.status == 200)));
        let ready = ready(&cluster).await?;
        let used = |one: &lca::api::proto::Instance| one.load.is_some_and(|load| load.app_us > 0);
        if ready.iter().all(used) { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    Ok(cluster)
}

fn kill(instance: &lca::api::proto::Instance) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(instance.pid as i32).expect("a process id");
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

#[tokio::test]
async fn a_killed_process_costs_no_request_while_there_is_another() -> anyhow::Result<()> {
    let cluster = two_of("pair").await?;
    let clients = Clients::start(cluster.front(0), "/pair/slow?ms=20", 6, Duration::ZERO);
    clients.answers(60).await;
    kill(&ready(&cluster).await.map_err(anyhow::Error::msg)?[0])?;
    clients.answers(60).await;
    assert_eq!(clients.stop().await, [""; 0]);
    assert_eq!(ready(&cluster).await.map_err(anyhow::Error::msg)?.len(), 1);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_killed_process_without_another_costs_a_start_and_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("alone")).await?;
    assert_eq!(cluster.get("/alone/hello").await?.status, 200);
    let clients = Clients::start(cluster.front(0), "/alone/slow?ms=20", 6, Duration::ZERO);
    // One that dies young is a failed start, which is tried again a second later.
    eventually("it to have lived for long enough", async || {
        let age = ready(&cluster).await?.first().map(|one| one.age_ms).unwrap_or_default();
        if age > 11_000 { Ok(()) } else { Err(age.to_string()) }
    })
    .await;
    kill(&ready(&cluster).await.map_err(anyhow::Error::msg)?[0])?;
    clients.answers(60).await;
    assert_eq!(clients.stop().await, [""; 0]);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_machine_that_falls_silent_costs_no_request_while_there_is_another() -> anyhow::Result<()>
{
    let cluster = two_of("apart").await?;
    let clients = Clients::start(cluster.front(0), "/apart/slow?ms=20", 6, Duration::ZERO);
    clients.answers(30).await;
    let cut = Instant::now();
    cluster.link(cluster.proxy(0).peer, cluster.allocator(0).peer, Profile::CUT);
    // Those under way there wait until it is known to be silent, and then go elsewhere.
    clients.answers(60).await;
    assert_eq!(clients.stop().await, [""; 0]);
    let took = cut.elapsed();
    assert!(took < Duration::from_secs(30), "requests waited {took:?} for the silent machine");
    assert_eq!(cluster.instances().await?.len(), 2, "none was started");
    cluster.heal(cluster.proxy(0).peer, cluster.allocator(0).peer);
    cluster.drain().await;
    Ok(())
}
