use std::{fs, os::unix::fs::PermissionsExt as _};

use futures::FutureExt as _;
use lca::config::Host;
use lca_allocator::{
    Driver as _, Timing,
    driver::{
        Launch, Runnable,
        process::{Grants, Process},
    },
};
use tempfile::TempDir;
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::*;
use crate::{allocator, registry};

fn settings(dir: &TempDir) -> Settings {
    Settings::loopback(dir.path().join("data"), dir.path().join("run"))
}

async fn health(addresses: &Addresses) -> HealthClient<Channel> {
    HealthClient::new(local::connect(&addresses.socket).await.unwrap())
}

async fn next(statuses: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    statuses.message().await.unwrap().expect("the stream goes on").status()
}

async fn watched(addresses: &Addresses) -> Streaming<HealthCheckResponse> {
    let all = HealthCheckRequest::default();
    health(addresses).await.watch(all).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_daemon_serves_once_it_knows_that_it_is_alone_and_until_it_is_asked_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let app = registry::App::build(settings(&dir)).await.unwrap();
    let mut statuses = watched(app.addresses()).await;
    while next(&mut statuses).await != ServingStatus::Serving {}
    let (left, in_time) = tokio::join!(next(&mut statuses), app.drain());
    assert_eq!(left, ServingStatus::NotServing);
    drop(statuses);
    assert!(in_time);
}

#[tokio::test]
async fn a_daemon_does_not_serve_while_it_tries_to_join() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry::App::build(settings(&dir)).await.unwrap();
    // Accepts connections and says nothing: neither joined nor alone for a while.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = Bootstrap {
        host: Host::Ip(mute.local_addr().unwrap().ip()),
        port: mute.local_addr().unwrap().port(),
        peer: first.addresses().peer,
    };
    let other = tempfile::tempdir().unwrap();
    let mut settings = settings(&other);
    settings.bootstraps = vec![nowhere];
    settings.timing.alone_after = Duration::from_secs(3600);
    let app = registry::App::build(settings).await.unwrap();
    let all = HealthCheckRequest::default();
    let status = health(app.addresses()).await.check(all).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::NotServing);
}

#[tokio::test]
async fn a_second_registry_on_one_folder_fails_before_it_is_a_twin_on_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry::App::build(settings(&dir)).await.unwrap();
    let boots = || fs::read(dir.path().join("data/identity.boot")).unwrap();
    let before = boots();
    let error = registry::App::build(settings(&dir)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert_eq!(boots(), before, "it had begun to be a node");
    assert!(first.drain().await);
}

#[tokio::test]
async fn a_data_folder_is_ours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let data = dir.path().join("a/b");
    crate::data::create_dir(&data).unwrap();
    assert_eq!((mode(&data), mode(&dir.path().join("a"))), (0o700, 0o700));
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    crate::data::create_dir(&data).unwrap();
    assert_eq!(mode(&data), 0o755, "whoever made it knows who may read");
    for open in [0o775, 0o757] {
        fs::set_permissions(&data, fs::Permissions::from_mode(open)).unwrap();
        let error = crate::data::create_dir(&data).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.hint_text().unwrap().starts_with("chmod go-w"), "{error}");
    }
}

#[tokio::test]
async fn a_dropped_allocator_kills_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data/allocator");
    let driver = Process::open(&data.join("instances")).unwrap();
    let config = allocator::Config {
        settings: settings(&dir),
        allocator: lca_allocator::Config::new(data),
        http: lca_proxy::Config::default(),
        keep_instances: false,
        grants: Grants::default(),
        containers: None,
    };
    let app = allocator::App::build(config, Arc::new(driver.clone())).await.unwrap();
    let launch_one = launch();
    let id = launch_one.id;
    driver.start(launch_one).await.unwrap();
    assert!(driver.is_running(id));
    // Cut short, as at a second Ctrl-C.
    drop(app.drain());
    assert!(!driver.is_running(id));
    assert_eq!(driver.start(launch()).await.unwrap_err().kind(), Kind::Unavailable);
}

fn launch() -> Launch {
    Launch {
        id: lca::InstanceId::random(),
        service: "hello".parse().unwrap(),
        hash: lca::ServiceHash::from_sha256([1; 32]),
        program: Runnable::File("/bin/sleep".into()),
        arguments: vec!["1000".into()],
        environment: Default::default(),
        port: 1,
        listener: None,
        resources: lca::Resources::default(),
        allowance: lca::Allowance::default(),
    }
}

#[test]
fn all_the_graces_of_a_polite_stop_fit_into_its_time() {
    // Half a second for what has no grace: dropping, and a busy machine.
    let most = Timing::default().stop_within() + GRACE + Duration::from_millis(500);
    assert!(most <= STOP_WITHIN, "{most:?}");
}

#[tokio::test]
async fn a_daemon_says_how_it_stands_and_only_to_its_own_machine() {
    use lca::api::proto::{DiagnoseRequest, diagnose_response::Standing, node_client::NodeClient};
    let dir = tempfile::tempdir().unwrap();
    let nobody = {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    let peer = lca_node::Identity::ephemeral().peer_id();
    let bootstrap =
        lca::config::Bootstrap { host: Host::Ip(nobody.ip()), port: nobody.port(), peer };
    let settings = Settings { bootstraps: vec![bootstrap.clone()], ..settings(&dir) };
    let app = registry::App::build(settings).await.unwrap();
    let mut client = NodeClient::new(local::connect(&app.addresses().socket).await.unwrap());
    let told = lca::testing::eventually("the failed attempt to be told", async || {
        let told = client.diagnose(DiagnoseRequest {}).await.unwrap().into_inner();
        let failed = told.bootstraps.iter().all(|one| !one.last_error.is_empty());
        if failed && told.standing() == Standing::Alone { Ok(told) } else { Err(told) }
    })
    .await;
    assert_eq!(told.peer, app.addresses().peer.to_string());
    assert_eq!(told.roles, ["registry"]);
    assert_eq!(told.bootstraps[0].address, bootstrap.to_string());
    assert!(told.bootstraps[0].last_error.contains("refused"), "{:?}", told.bootstraps);
    assert!(told.registries[0].answered, "it is one itself: {told:?}");
    assert!(told.allocators.is_empty());
    assert_eq!(told.data_dir, dir.path().join("data").display().to_string());

    let mesh = app.node();
    let own = lca::discovery::Discovery::own(mesh);
    let over_the_mesh = lca::mesh::Mesh::grpc(mesh, &own).await.unwrap();
    let refused = NodeClient::new(over_the_mesh).diagnose(DiagnoseRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    assert!(app.drain().await);
}

#[tokio::test]
async fn metrics_are_for_this_machine_unless_the_network_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let anywhere = || Some("0.0.0.0:0".parse().unwrap());
    let closed = Settings { metrics_listen: anywhere(), ..settings(&dir) };
    let error = registry::App::build(closed).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--insecure-open-network")));
    let open =
        Settings { metrics_listen: anywhere(), insecure_open_network: true, ..settings(&dir) };
    let app = registry::App::build(open).await.unwrap();
    assert!(app.addresses().metrics.unwrap().ip().is_unspecified());
    assert!(app.drain().await);
}

#[tokio::test]
async fn a_port_for_metrics_that_is_taken_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let settings = Settings { metrics_listen: Some(taken), ..settings(&dir) };
    let error = registry::App::build(settings).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.public().contains(&taken.to_string()), "{error}");
}

#[tokio::test]
async fn a_node_comes_back_through_a_peer_it_remembers_which_is_no_bootstrap() {
    let bind = async |settings: &Settings| {
        let dir = DataDir::take(&settings.data_dir).await.unwrap();
        Base::bind(settings, Role::Allocator, dir).await.unwrap()
    };
    let joined = async |base: &Base| {
        let mut status = base.node.status();
        let joined =
            status.wait_for(|status| status.joined == Some(lca_node::Joined::Joined)).boxed();
        tokio::time::timeout(Duration::from_secs(20), joined).await.unwrap().unwrap().clone()
    };
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let there = bind(&settings(&dirs[0])).await;
    let bootstraps = there.node.bootstrap_addresses();
    for (ephemeral, dir) in [(false, &dirs[1]), (true, &dirs[2])] {
        let alone = Settings { ephemeral, ..settings(dir) };
        let first = bind(&Settings { bootstraps: bootstraps.clone(), ..alone.clone() }).await;
        assert_eq!(joined(&first).await.bootstraps, 1);
        let Base { tasks, node, dir: taken, .. } = first;
        drop(node);
        tasks.drain(GRACE).await;
        drop(taken);
        assert_eq!(peers::read(dir.path().join("data").as_path()).is_empty(), ephemeral);
        if !ephemeral {
            let again = bind(&alone).await;
            let status = joined(&again).await;
            assert_eq!((status.bootstraps, status.bootstrap_states.len()), (0, 0));
        }
    }
}
