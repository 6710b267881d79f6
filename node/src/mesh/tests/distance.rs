//! How far peers are away, and what happens when the network between them changes.

use super::*;

const RTT: Duration = Duration::from_millis(20);

async fn two(links: &Links) -> (Peer, Peer) {
    (Peer::start(links).await, Peer::start(links).await)
}

/// Waits until the distance is in a range.
async fn settles(a: &Peer, b: &Peer, range: std::ops::Range<Duration>) {
    let within = async || {
        a.client.watch(&b.endpoint);
        a.client.rtt(b.id()).filter(|rtt| range.contains(rtt))
    };
    eventually(&format!("a round trip within {range:?}"), within).await;
}

#[tokio::test]
async fn the_round_trip_follows_the_link() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    assert_eq!(a.client.rtt(b.id()), None);
    assert_eq!(a.client.rtt(a.id()), Some(Duration::ZERO));
    settles(&a, &b, Duration::ZERO..RTT).await;
    links.set(a.id(), b.id(), Profile::rtt(RTT));
    settles(&a, &b, RTT..RTT + RTT / 2).await;
    links.set(a.id(), b.id(), Profile::rtt(RTT * 3));
    settles(&a, &b, RTT * 3..RTT * 4).await;
    links.clear(a.id(), b.id());
    settles(&a, &b, Duration::ZERO..RTT).await;
}

#[tokio::test]
async fn connecting_does_not_count() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    let far = RTT * 10;
    links.set(a.id(), b.id(), Profile::rtt(far));
    let rtt = a.client.measure(&b.endpoint).await.unwrap();
    assert!(rtt >= far && rtt < far * 2, "{rtt:?}: TCP and TLS alone are three round trips");
    assert_eq!(a.client.rtt(b.id()), Some(rtt));
    assert_eq!(a.client.measure(&a.endpoint).await.unwrap(), Duration::ZERO);
}

#[tokio::test]
async fn a_cut_is_silence_within_three_probes_and_heals() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    a.reach(&b.endpoint).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    assert!(!a.client.is_silent(b.id()));
    links.set(a.id(), b.id(), Profile::CUT);
    let cut = Instant::now();
    let gone = async || a.client.is_gone(b.id()).then_some(());
    eventually("it to be gone", gone).await;
    assert_eq!(a.client.rtt(b.id()), None);
    // Three deadlines and a turn are 1.6 s; the rest is for a busy machine.
    assert!(cut.elapsed() < Duration::from_secs(15), "{:?}", cut.elapsed());
    // The channel was open, and is not waited on any more.
    assert_eq!(a.client.grpc(&b.endpoint).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(a.client.measure(&b.endpoint).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(a.client.is_silent(b.id()));
    links.clear(a.id(), b.id());
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    assert!(!a.client.is_silent(b.id()));
    a.reach(&b.endpoint).await;
}

#[tokio::test]
async fn silence_breaks_the_streams_to_that_peer_and_to_no_other() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    let other = Peer::start(&links).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    let mut lost = a.client.connect(&b.endpoint, Alpn::H1).await.unwrap();
    let mut kept = a.client.connect(&other.endpoint, Alpn::H1).await.unwrap();
    links.set(a.id(), b.id(), Profile::CUT);
    let mut byte = [0; 1];
    let read = timeout(PATIENCE, lost.read(&mut byte)).await.expect("it was waited on for ever");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(a.client.is_silent(b.id()), "who loses a stream must not be sent there again");
    kept.write_all(b"x").await.unwrap();
    kept.flush().await.unwrap();
    kept.read_exact(&mut byte).await.unwrap();
    // What is opened after the silence is good.
    links.clear(a.id(), b.id());
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    let mut again = a.client.connect(&b.endpoint, Alpn::H1).await.unwrap();
    again.write_all(b"y").await.unwrap();
    again.flush().await.unwrap();
    again.read_exact(&mut byte).await.unwrap();
}

#[tokio::test]
async fn who_answers_late_keeps_its_streams_and_who_is_cut_off_loses_them() {
    let links = Links::default();
    // Three seconds, as in production: the first late answer comes after half of that.
    let timing = Timing { gone_after: Timing::PRODUCTION.gone_after, ..BRISK };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let a = Peer::start_with(Identity::ephemeral(), any, 1, &links, timing).await;
    let b = Peer::start(&links).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    let mut stream = a.client.connect(&b.endpoint, Alpn::H1).await.unwrap();
    links.set(a.id(), b.id(), Profile::rtt(Duration::from_millis(1500)));
    let silent = async || a.client.is_silent(b.id()).then_some(());
    eventually("silence", silent).await;
    let lost = || a.metrics.node.probe_failures.get();
    let before = lost();
    let more = async || (lost() >= before + 6).then_some(()).ok_or(lost());
    eventually("six more answers that come too late", more).await;
    assert!(a.client.is_silent(b.id()) && !a.client.is_gone(b.id()));
    let mut byte = [0; 1];
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    stream.read_exact(&mut byte).await.unwrap();
    links.set(a.id(), b.id(), Profile::CUT);
    let read = timeout(PATIENCE, stream.read(&mut byte)).await.expect("it was waited on for ever");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(a.client.is_gone(b.id()));
    links.clear(a.id(), b.id());
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    assert!(!a.client.is_gone(b.id()));
}

#[tokio::test]
async fn a_peer_nobody_has_probed_is_not_silent() {
    let a = Peer::start(&Links::default()).await;
    let unknown = endpoint(PeerId::from_public_key([7; 32]), &[nobody().await], 1);
    assert!(!a.client.is_silent(unknown.peer));
    a.client.watch(&unknown);
    assert!(!a.client.is_silent(unknown.peer), "its first probe is under way");
    let silent = async || a.client.is_silent(unknown.peer).then_some(());
    eventually("three failures to be silence", silent).await;
    assert!(!a.client.is_silent(a.id()));
}

#[tokio::test]
async fn a_peer_that_comes_back_elsewhere_is_found_by_its_new_word() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    let identity = b.identity.clone();
    b.tasks.drain(PATIENCE).await;
    let silent = async || a.client.rtt(b.endpoint.peer).is_none().then_some(());
    eventually("silence", silent).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let b = Peer::start_as(identity, any, 2, &links).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
}

#[tokio::test]
async fn measuring_who_is_not_there_fails_at_once() {
    let a = Peer::start(&Links::default()).await;
    let gone = endpoint(PeerId::from_public_key([7; 32]), &[nobody().await], 1);
    let started = Instant::now();
    for _ in 0..3 {
        let error = a.client.measure(&gone).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }
    assert!(started.elapsed() < BRISK.connect, "it waited for the next turn");
}

#[tokio::test]
async fn a_peer_nobody_asks_for_is_not_probed_any_more() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    assert_eq!(a.client.probed(), 1);
    a.client.lose_interest(b.id());
    eventually("the probe to end", async || (a.client.probed() == 0).then_some(())).await;
    assert_eq!(a.client.rtt(b.id()), None);
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
}

#[tokio::test]
async fn a_peer_is_probed_as_one_in_use_as_long_as_a_stream_to_it_is_open() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    // Nobody has asked for it otherwise.
    let stream = a.client.connect(&b.endpoint, Alpn::H1).await.unwrap();
    answered(&a, 1).await;
    for _ in 0..3 {
        let seen = a.metrics.node.probe_rtt.get_sample_count();
        a.client.lose_interest(b.id());
        answered(&a, seen + 3).await;
    }
    assert_eq!(a.client.probed(), 1);
    drop(stream);
    a.client.lose_interest(b.id());
    eventually("the probe to end", async || (a.client.probed() == 0).then_some(())).await;
}

#[tokio::test]
async fn interest_is_bounded_and_the_latest_wins() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    let dead = nobody().await;
    for n in 0..200_u8 {
        a.client.watch(&endpoint(PeerId::from_public_key([n; 32]), &[dead], 1));
    }
    assert_eq!(a.client.probed(), 64);
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    assert_eq!(a.client.probed(), 64);
    for n in 0..u16::MAX / 64 {
        let [high, low] = n.to_be_bytes();
        let mut key = [9; 32];
        (key[0], key[1]) = (high, low);
        a.client.watch(&endpoint(PeerId::from_public_key(key), &[dead], 1));
    }
    assert!(a.client.remembered() <= 256, "{}", a.client.remembered());
    assert_eq!(a.client.probed(), 64);
}

#[tokio::test]
async fn more_peers_than_are_probed_can_still_be_measured() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    let dead = nobody().await;
    links.set(a.id(), b.id(), Profile::rtt(RTT));
    let crowd = async {
        for n in 0..200_u8 {
            a.client.watch(&endpoint(PeerId::from_public_key([n; 32]), &[dead], 1));
        }
    };
    let (measured, ()) = tokio::join!(a.client.measure(&b.endpoint), crowd);
    let measured = measured.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert!(measured >= RTT, "its probe made room for others");
}

#[tokio::test]
async fn probing_stops_with_the_node() {
    let links = Links::default();
    let (a, b) = two(&links).await;
    settles(&a, &b, Duration::ZERO..PATIENCE).await;
    a.client.watch(&endpoint(PeerId::from_public_key([7; 32]), &[nobody().await], 1));
    assert!(a.tasks.drain(PATIENCE).await, "a probe had to be forced");
}

/// Two, of which the first probes who is not used so seldom.
async fn two_idle(links: &Links, probe_idly_every: Duration) -> (Peer, Peer) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let timing = Timing { probe_idly_every, ..BRISK };
    let a = Peer::start_with(Identity::ephemeral(), any, 1, links, timing).await;
    let b = Peer::start(links).await;
    a.client.watch_idly(&b.endpoint);
    (a, b)
}

/// Waits until this many probes were answered.
async fn answered(a: &Peer, count: u64) {
    let probes = || a.metrics.node.probe_rtt.get_sample_count();
    eventually("answers to probes", async || (probes() >= count).then_some(()).ok_or(probes()))
        .await;
}

#[tokio::test]
async fn who_is_not_used_is_probed_seldom_and_at_once_when_it_is() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (a, b) = two_idle(&Links::default(), HOUR).await;
    answered(&a, 3).await; // which a median needs
    // Time for twenty of those that a used peer gets: a third peer's probes are the clock.
    let clock = Peer::start(&Links::default()).await;
    clock.client.watch(&b.endpoint);
    answered(&clock, 20).await;
    let idle = a.metrics.node.probe_rtt.get_sample_count();
    assert_eq!(idle, 3, "nobody uses it");
    assert!(a.client.rtt(b.id()).is_some() && !a.client.is_silent(b.id()));
    a.client.watch(&b.endpoint);
    answered(&a, idle + 5).await;
}

#[tokio::test]
async fn the_silence_of_who_is_not_used_is_known_soon_after_one_lost_probe() {
    let links = Links::default();
    let idly = Duration::from_secs(6);
    let (a, b) = two_idle(&links, idly).await;
    answered(&a, 3).await;
    links.set(a.id(), b.id(), Profile::CUT);
    let cut = Instant::now();
    let silent = async || a.client.is_silent(b.id()).then_some(());
    eventually("silence", silent).await;
    // One turn and three deadlines are 7.5 s; three turns would be 18 s and more.
    let took = cut.elapsed();
    assert!(took < idly * 5 / 2, "{took:?}");
}
