//! How often a peer is probed, and when it is out, by a clock that only tests move.

use std::sync::atomic::{AtomicBool, AtomicU64};

use lca::Requirements;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::*;
use crate::mesh::probe::{Connection, End, Reading};

/// A peer on an in-memory connection, and who probes it.
struct Probed {
    reading: watch::Receiver<Reading>,
    peer: Arc<Echo>,
    probing: JoinHandle<End>,
    _client: Client,
    _tasks: Tasks,
}

/// Answers probes as it is told.
#[derive(Default)]
struct Echo {
    rtt_ms: AtomicU64,
    /// Every so many answers one comes 200 ms later.
    stalls_every: AtomicU64,
    dead: AtomicBool,
    probes: AtomicU64,
}

impl Echo {
    async fn run(self: Arc<Self>, stream: DuplexStream) {
        let (mut questions, mut answers) = tokio::io::split(stream);
        let (under_way, mut due) = mpsc::channel(64);
        let reading = async {
            let under_way = under_way;
            let mut nonce = [0; 8];
            while questions.read_exact(&mut nonce).await.is_ok() {
                let number = self.probes.fetch_add(1, Ordering::SeqCst) + 1;
                let every = self.stalls_every.load(Ordering::SeqCst);
                let stalls = every > 0 && number.is_multiple_of(every);
                let stall = if stalls { 200 } else { 0 };
                let after = ms(self.rtt_ms.load(Ordering::SeqCst) + stall);
                under_way.send((Instant::now() + after, nonce)).await.unwrap();
            }
        };
        let answering = async {
            while let Some((at, nonce)) = due.recv().await {
                sleep_until(at).await;
                if !self.dead.load(Ordering::SeqCst) && answers.write_all(&nonce).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(reading, answering);
    }

    fn probes(&self) -> u64 {
        self.probes.load(Ordering::SeqCst)
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Begins to probe one that is so far away, by `watch` what it is probed for.
fn probe(rtt_ms: u64, watch: impl FnOnce(&Client, &Endpoint)) -> Probed {
    let tasks = Tasks::default();
    let spawner = tasks.spawner();
    let (timing, metrics) = (Timing::default(), Metrics::default());
    let identity = Identity::ephemeral();
    let client = Client::new(&identity, Links::default(), timing, metrics, &spawner).unwrap();
    // Its own prober finds no address; ours has a connection.
    let to = endpoint(PeerId::from_public_key([7; 32]), &[], 1);
    watch(&client, &to);
    let (mut prober, reading) = client.prober(&to);
    let (near, far) = tokio::io::duplex(64);
    let peer = Arc::new(Echo { rtt_ms: rtt_ms.into(), ..Echo::default() });
    tokio::spawn(peer.clone().run(far));
    let probing = tokio::spawn(async move { prober.probe(near).await });
    Probed { reading, peer, probing, _client: client, _tasks: tasks }
}

fn limits(soft: u64, hard: u64) -> Requirements {
    Requirements { soft: Some(ms(soft)), hard: Some(ms(hard)) }
}

#[tokio::test(start_paused = true)]
async fn a_peer_in_use_that_stops_answering_is_silent_within_three_seconds() {
    for (rtt, after) in [(1, 10_000), (20, 10_001), (20, 10_999), (200, 10_500)] {
        let mut probed = probe(rtt, |client, to| client.watch(to));
        sleep(ms(after)).await;
        assert!(!probed.reading.borrow().silent);
        probed.peer.dead.store(true, Ordering::SeqCst);
        let dead = Instant::now();
        probed.reading.wait_for(|reading| reading.silent).await.unwrap();
        let took = dead.elapsed();
        assert!(took <= ms(3000), "{rtt} ms away: {took:?}");
        assert!(took >= ms(1300), "{rtt} ms away: {took:?}, before three could be lost");
        assert_eq!(probed.reading.borrow().failures, 3);
        probed.reading.wait_for(|reading| reading.gone).await.unwrap();
        assert!(dead.elapsed() <= ms(3001), "{rtt} ms away: {:?}", dead.elapsed());
        assert!(!probed.probing.await.unwrap().broke);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_a_lost_segment_is_no_loss_however_often() {
    for every in [1, 2, 3, 10] {
        let probed = probe(20, |client, to| client.watch(to));
        probed.peer.stalls_every.store(every, Ordering::SeqCst);
        sleep(Duration::from_secs(40)).await;
        let reading = probed.reading.borrow();
        assert!(probed.peer.probes() > 35, "{}", probed.peer.probes());
        assert_eq!((reading.failures, reading.silent), (0, false), "every {every}");
    }
}

#[tokio::test(start_paused = true)]
async fn near_a_limit_there_are_five_probes_a_second_and_otherwise_one() {
    // Far from both, near soft, near hard but slower than five a second, far again.
    for (rtt, expected) in [(20, 20), (80, 100), (450, 43), (1, 20)] {
        let probed = probe(rtt, |client, to| client.watch_near(to, &limits(100, 400)));
        sleep(Duration::from_secs(20)).await;
        let probes = probed.peer.probes();
        assert!(probes.abs_diff(expected) <= 5, "{rtt} ms away: {probes} in 20 s");
    }
    let idle = probe(80, |client, to| client.watch_idly(to));
    sleep(Duration::from_secs(60)).await;
    // One that warms the connection, three to begin with, then one in 5 s.
    assert!(idle.peer.probes() <= 16, "{}", idle.peer.probes());
}

#[tokio::test(start_paused = true)]
async fn a_jump_over_a_limit_is_decided_within_a_second_and_a_half() {
    let mut probed = probe(1, |client, to| client.watch_near(to, &limits(50, 100)));
    sleep(ms(10_500)).await;
    probed.peer.rtt_ms.store(150, Ordering::SeqCst);
    let jump = Instant::now();
    probed.reading.wait_for(|reading| reading.rtt > Some(ms(100))).await.unwrap();
    assert!(jump.elapsed() <= ms(1500), "{:?}", jump.elapsed());
    probed.peer.rtt_ms.store(1, Ordering::SeqCst);
    let back = Instant::now();
    probed.reading.wait_for(|reading| reading.rtt < Some(ms(50))).await.unwrap();
    assert!(back.elapsed() <= ms(1500), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_is_suddenly_farther_than_answers_were_waited_for_is_far_and_not_silent() {
    let mut probed = probe(1, |client, to| client.watch_near(to, &limits(50, 100)));
    sleep(ms(10_500)).await;
    probed.peer.rtt_ms.store(700, Ordering::SeqCst);
    let jump = Instant::now();
    let told = probed.reading.wait_for(|reading| reading.silent || reading.rtt > Some(ms(100)));
    assert_eq!(told.await.unwrap().rtt, Some(ms(700)));
    assert!(jump.elapsed() < ms(4000), "{:?}", jump.elapsed());
    sleep(Duration::from_secs(20)).await;
    let reading = probed.reading.borrow();
    assert!(!reading.silent && reading.failures <= 2, "{reading:?}");
}

#[tokio::test(start_paused = true)]
async fn what_takes_longer_than_is_worth_using_is_silence() {
    let mut probed = probe(1, |client, to| client.watch(to));
    sleep(ms(10_500)).await;
    probed.peer.rtt_ms.store(1_200, Ordering::SeqCst);
    let jump = Instant::now();
    probed.reading.wait_for(|reading| reading.silent).await.unwrap();
    assert!(jump.elapsed() <= ms(3000), "{:?}", jump.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_answers_late_is_silent_and_not_gone_and_near_again_on_the_same_connection() {
    for rtt in [1_100, 1_500, 1_900] {
        let mut probed = probe(1, |client, to| client.watch(to));
        sleep(ms(10_500)).await;
        probed.peer.rtt_ms.store(rtt, Ordering::SeqCst);
        probed.reading.wait_for(|reading| reading.silent).await.unwrap();
        for _ in 0..600 {
            sleep(ms(100)).await;
            let reading = probed.reading.borrow();
            assert!(reading.silent && !reading.gone, "{rtt} ms away: {reading:?}");
        }
        assert!(!probed.probing.is_finished(), "its connection is kept");
        probed.peer.rtt_ms.store(1, Ordering::SeqCst);
        let better = Instant::now();
        probed.reading.wait_for(|reading| !reading.silent).await.unwrap();
        assert!(better.elapsed() <= ms(5_000), "{rtt} ms away: {:?}", better.elapsed());
        assert!(!probed.probing.is_finished());
        // And dead it is gone as soon as anybody.
        probed.peer.rtt_ms.store(1_500, Ordering::SeqCst);
        probed.reading.wait_for(|reading| reading.silent).await.unwrap();
        probed.peer.dead.store(true, Ordering::SeqCst);
        let dead = Instant::now();
        probed.reading.wait_for(|reading| reading.gone).await.unwrap();
        assert!(dead.elapsed() <= ms(3_001), "{:?}", dead.elapsed());
        assert!(!probed.probing.await.unwrap().broke);
    }
}

#[tokio::test(start_paused = true)]
async fn late_answers_are_taken_between_probes_and_the_end_is_noticed_at_once() {
    let (near, mut far) = tokio::io::duplex(64);
    let mut connection = Connection::new(near, ms(1000));
    let peer = tokio::spawn(async move {
        let mut nonce = [0; 8];
        far.read_exact(&mut nonce).await.unwrap();
        sleep(ms(700)).await;
        far.write_all(&nonce).await.unwrap();
        sleep(ms(300)).await;
    });
    let late = connection.measure(ms(500)).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    let before = Instant::now();
    // The first exchange warms the connection: it has no second yet.
    assert_eq!(connection.next_answer().await.unwrap(), ms(700));
    assert_eq!(connection.next_answer().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(before.elapsed(), ms(500), "700 ms and 300 ms after the question");
    peer.await.unwrap();
}

#[tokio::test]
async fn a_peer_whose_process_ends_is_out_without_another_probe() {
    const HOUR: Duration = Duration::from_secs(3600);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let timing = Timing { probe_every: HOUR, ..BRISK };
    let a = Peer::start_with(Identity::ephemeral(), any, 1, &Links::default(), timing).await;
    let b = Peer::start(&Links::default()).await;
    a.client.watch(&b.endpoint);
    a.client.measure(&b.endpoint).await.unwrap();
    assert!(!a.client.is_silent(b.id()));
    b.tasks.drain(PATIENCE).await;
    let silent = async || a.client.is_silent(b.endpoint.peer).then_some(());
    eventually("its connection to end and the next to be refused", silent).await;
    assert_eq!(a.client.rtt(b.endpoint.peer), None);
}
