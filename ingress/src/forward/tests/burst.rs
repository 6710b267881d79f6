//! Many requests at the same time, and then as many again.

use futures::future::join_all;

use super::*;

/// More than a few, fewer than one connection between peers carries.
const AT_ONCE: u32 = 150;

#[tokio::test]
async fn connections_to_the_application_outlive_the_burst_that_needed_them() {
    let mut world = World::new().await;
    // Longer than this takes on any machine.
    let instances = h1::Config { keep: Duration::from_secs(60), ..Config::default().instances };
    world.ingress = Ingress::new(Config { instances, ..Config::default() }, Metrics::default());
    world.local.limit = AT_ONCE;
    let _registration = world.register();
    let request = world.get();
    let mut peers: Vec<_> = (0..AT_ONCE).map(|_| world.peer()).collect();
    let mut apps = Vec::new();
    for wave in 0..3 {
        join_all(peers.iter_mut().map(|peer| peer.write(&request))).await;
        while apps.len() < AT_ONCE as usize {
            assert_eq!(wave, 0, "a connection was closed that is needed again");
            apps.push(world.app().await);
        }
        // Each of the first connections has one of the requests, or this waits in vain.
        join_all(apps.iter_mut().map(Wire::head)).await;
        let answers = apps.iter_mut().map(|app| app.write("HTTP/1.1 204 No Content\r\n\r\n"));
        join_all(answers).await;
        let answered = join_all(peers.iter_mut().map(Wire::head)).await;
        assert!(answered.iter().all(|head| head.starts_with("HTTP/1.1 204 ")), "{wave}");
    }
}
