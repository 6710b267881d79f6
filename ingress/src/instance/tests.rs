//! What is let in, what waits, and what counts as idle.

use std::net::Ipv4Addr;

use lca::metrics::Metrics;

use super::*;
use crate::{Config, Ingress};

fn local(limit: u32) -> Local {
    Local {
        instance: InstanceId::random(),
        hash: ServiceHash::from_sha256([7; 32]),
        service: "hello".parse().unwrap(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        protocol: Protocol::Http1,
        limit,
    }
}

fn registered(limit: u32) -> (Ingress, Registration, Arc<Instance>) {
    let ingress = Ingress::new(Config::default(), Metrics::default());
    let local = local(limit);
    let registration = ingress.register(local.clone());
    let instance = ingress.shared.instance(local.instance).unwrap();
    (ingress, registration, instance)
}

async fn admitted(instance: &Arc<Instance>) -> Open {
    instance.admit(instance.local.hash, &Arc::default()).await.ok().unwrap()
}

async fn refused(instance: &Arc<Instance>, hash: ServiceHash) -> Option<Refusal> {
    instance.admit(hash, &Arc::default()).await.err()
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_kept_and_those_beyond_it_wait_in_their_order() {
    let (_ingress, registration, instance) = registered(2);
    let first = admitted(&instance).await;
    let second = admitted(&instance).await;
    assert_eq!(first.load().queue, Duration::ZERO);
    let after = async |ms| {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        let open = admitted(&instance).await;
        (open.load().queue.as_millis(), open)
    };
    let finish = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(registration.load().in_flight, 4, "those that wait count");
        drop(first);
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(second);
    };
    let ((third, _open), (fourth, _other), ()) = tokio::join!(after(10), after(20), finish);
    assert_eq!((third, fourth), (90, 130));
    assert_eq!(registration.load().queue.as_millis(), 130, "as the last one waited");
    assert_eq!(registration.load().in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn they_wait_so_long_and_so_many_at_most() {
    let (_ingress, registration, instance) = registered(1);
    let hash = instance.local.hash;
    let first = admitted(&instance).await;
    let since = Instant::now();
    let asked = async || (refused(&instance, hash).await, since.elapsed());
    let (waited, turned) = tokio::join!(asked(), asked());
    assert_eq!(waited, (Some(Refusal::Overloaded), MAX_WAIT));
    assert_eq!(turned, (Some(Refusal::Overloaded), Duration::ZERO), "the line is full");
    // One that gave up is not waited for.
    drop(timeout(Duration::from_millis(10), instance.admit(hash, &Arc::default())).await);
    assert_eq!(registration.load().in_flight, 1);
    drop(first);
    assert_eq!(registration.load().in_flight, 0);
    drop(admitted(&instance).await);
}

#[tokio::test]
async fn those_that_wait_are_sent_away_by_a_drain_and_by_the_end() {
    let (_ingress, registration, instance) = registered(1);
    let hash = instance.local.hash;
    let _first = admitted(&instance).await;
    let drain = async { registration.drain() };
    let (refusal, ()) = tokio::join!(refused(&instance, hash), drain);
    assert_eq!(refusal, Some(Refusal::Draining));
    registration.resume();
    let (refusal, ()) = tokio::join!(refused(&instance, hash), async { drop(registration) });
    assert_eq!(refusal, Some(Refusal::Unknown));
}

#[tokio::test]
async fn another_service_a_drained_and_a_gone_instance_refuse() {
    let (ingress, registration, instance) = registered(1);
    let other = ServiceHash::from_sha256([8; 32]);
    let hash = instance.local.hash;
    assert_eq!(refused(&instance, other).await, Some(Refusal::Unknown));
    registration.drain();
    assert_eq!(refused(&instance, hash).await, Some(Refusal::Draining));
    registration.resume();
    assert_eq!(refused(&instance, hash).await, None);
    drop(registration);
    assert_eq!(refused(&instance, hash).await, Some(Refusal::Unknown));
    assert!(ingress.shared.instance(instance.local.instance).is_none());
}

#[tokio::test]
async fn a_gone_instance_cuts_off_what_is_open() {
    let (_ingress, registration, instance) = registered(1);
    let end = Arc::new(Notify::new());
    let _open = instance.admit(instance.local.hash, &end).await.ok().unwrap();
    drop(registration);
    end.notified().await;
}

#[tokio::test(start_paused = true)]
async fn idleness_counts_from_the_last_request_however_short() {
    let (_ingress, registration, instance) = registered(9);
    let started = tokio::time::Instant::now();
    let idle = registration.idle_for(Duration::from_secs(60));
    let requests = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(59)).await;
            drop(admitted(&instance).await);
        }
        let long = admitted(&instance).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(long);
    };
    tokio::join!(idle, requests);
    assert_eq!(started.elapsed().as_secs(), 3 * 59 + 600 + 60);
}

#[tokio::test(start_paused = true)]
async fn draining_does_not_make_an_idle_instance_busy() {
    let (_ingress, registration, _instance) = registered(1);
    let started = tokio::time::Instant::now();
    let drain = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        registration.drain();
        registration.drained().await;
    };
    tokio::join!(registration.idle_for(Duration::from_secs(60)), drain);
    assert_eq!(started.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn time_before_the_question_counts_and_so_does_being_sent_there() {
    let (_ingress, registration, _instance) = registered(1);
    let started = Instant::now();
    let minute = Duration::from_secs(60);
    tokio::time::sleep(Duration::from_secs(40)).await;
    registration.touch();
    tokio::time::sleep(Duration::from_secs(50)).await;
    registration.idle_for(minute).await;
    assert_eq!(started.elapsed().as_secs(), 100);
    // From here on it is idle, until somebody is sent there.
    let touch = async {
        tokio::time::sleep(minute).await;
        registration.touch();
    };
    tokio::join!(registration.used_within(Duration::from_secs(1)), touch);
    assert_eq!(started.elapsed().as_secs(), 160);
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_closed_only_while_it_is_idle() {
    let (_ingress, registration, instance) = registered(1);
    let minute = Duration::from_secs(60);
    tokio::time::sleep(minute).await;
    let open = admitted(&instance).await;
    assert!(!registration.drain_if_idle(minute), "a request came first");
    drop(open);
    assert!(!registration.drain_if_idle(minute), "a moment ago");
    assert!(refused(&instance, instance.local.hash).await.is_none(), "so it goes on");
    tokio::time::sleep(minute).await;
    assert!(registration.drain_if_idle(minute));
    let hash = instance.local.hash;
    assert_eq!(refused(&instance, hash).await, Some(Refusal::Draining));
}
