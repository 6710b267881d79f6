//! Link profiles by a clock that stands still: no byte lost, each in its time.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::{sleep, timeout},
};

use super::*;

const A: PeerId = PeerId::from_public_key([1; 32]);
const B: PeerId = PeerId::from_public_key([2; 32]);
const RTT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(30);

/// A stream from A to B, and what B holds of it.
async fn stream(links: &Links) -> (Delayed<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(1 << 20);
    (links.link(A, B).connect(async { Ok(near) }).await.unwrap(), far)
}

async fn round_trip(near: &mut Delayed<DuplexStream>, far: &mut DuplexStream) -> Duration {
    let started = Instant::now();
    near.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    far.read_exact(&mut buffer).await.unwrap();
    far.write_all(&buffer).await.unwrap();
    near.read_exact(&mut buffer).await.unwrap();
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn without_a_profile_nothing_waits_and_nothing_is_wrapped() {
    let links = Links::default();
    links.set(B, PeerId::from_public_key([3; 32]), Profile::CUT); // somebody else's
    let (mut near, mut far) = stream(&links).await;
    assert_eq!(round_trip(&mut near, &mut far).await, Duration::ZERO);
    assert!(matches!(near.route, Route::Direct(_)));
}

#[tokio::test(start_paused = true)]
async fn a_round_trip_and_connecting_take_the_delay() {
    let links = Links::default();
    links.set(B, A, Profile::rtt(RTT));
    let started = Instant::now();
    let (mut near, mut far) = stream(&links).await;
    assert!((started.elapsed()).abs_diff(RTT) <= Duration::from_millis(2));
    let took = round_trip(&mut near, &mut far).await;
    assert!(took.abs_diff(RTT) <= Duration::from_millis(4), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_follows_a_change() {
    let links = Links::default();
    let (mut near, mut far) = stream(&links).await;
    assert_eq!(round_trip(&mut near, &mut far).await, Duration::ZERO);
    links.set(A, B, Profile::rtt(RTT));
    assert!(round_trip(&mut near, &mut far).await >= RTT);
    links.set(A, B, Profile::rtt(RTT * 3));
    assert!(round_trip(&mut near, &mut far).await >= RTT * 3);
    links.clear(A, B);
    assert!(round_trip(&mut near, &mut far).await < Duration::from_millis(2));
}

#[tokio::test(start_paused = true)]
async fn whoever_already_waits_to_read_still_gets_the_bytes() {
    let links = Links::default();
    let (near, mut far) = stream(&links).await;
    let (mut reader, mut writer) = split(near);
    let reading = tokio::spawn(async move {
        let mut buffer = [0; 4];
        reader.read_exact(&mut buffer).await.map(|_| buffer)
    });
    sleep(RTT).await; // the reader is parked on the direct stream
    links.set(A, B, Profile::rtt(RTT));
    writer.write_all(b"x").await.unwrap(); // moves the stream to a pump
    far.write_all(b"late").await.unwrap();
    let read = timeout(LONG, reading).await.expect("the reader was forgotten");
    assert_eq!(&read.unwrap().unwrap(), b"late");
}

#[tokio::test(start_paused = true)]
async fn a_cut_holds_bytes_and_healing_lets_them_through() {
    let links = Links::default();
    let (mut near, mut far) = stream(&links).await;
    links.set(A, B, Profile::CUT);
    near.write_all(b"held").await.unwrap();
    let mut buffer = [0; 4];
    assert!(timeout(LONG, far.read_exact(&mut buffer)).await.is_err());
    far.write_all(b"back").await.unwrap();
    let mut other = [0; 4];
    assert!(timeout(LONG, near.read_exact(&mut other)).await.is_err());
    links.clear(A, B);
    timeout(LONG, far.read_exact(&mut buffer)).await.unwrap().unwrap();
    timeout(LONG, near.read_exact(&mut other)).await.unwrap().unwrap();
    assert_eq!((&buffer, &other), (b"held", b"back"));
}

#[tokio::test(start_paused = true)]
async fn connecting_over_a_cut_link_hangs_until_it_heals() {
    let links = Links::default();
    links.set(A, B, Profile::CUT);
    assert!(timeout(LONG, stream(&links)).await.is_err());
    let healed = links.clone();
    tokio::spawn(async move {
        sleep(RTT).await;
        healed.clear(A, B);
    });
    timeout(LONG, stream(&links)).await.expect("the link healed");
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_dial_is_told() {
    let dial = async { Err::<DuplexStream, _>(io::ErrorKind::ConnectionRefused.into()) };
    let error = Links::default().link(A, B).connect(dial).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn order_survives_jitter_and_stalls() {
    let links = Links::default();
    let jitter = RTT * 3;
    links.set(A, B, Profile { delay: RTT, jitter, stall: 0.3, cut: false });
    let (mut near, mut far) = stream(&links).await;
    let sent: Vec<u8> = (0..200).collect();
    for byte in &sent {
        near.write_all(&[*byte]).await.unwrap();
        sleep(Duration::from_millis(3)).await;
    }
    near.shutdown().await.unwrap();
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, sent);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_the_writer_back() {
    let links = Links::default();
    links.set(A, B, Profile::rtt(RTT));
    let (mut near, _far) = stream(&links).await;
    let mut written = 0;
    let block = vec![0; 64 << 10];
    while let Ok(n) = timeout(LONG, near.write(&block)).await {
        written += n.unwrap();
        assert!(written < 16 << 20, "nobody reads, yet everything is taken");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_a_drop_arrives_and_then_the_end() {
    let links = Links::default();
    links.set(A, B, Profile::rtt(RTT));
    let (mut near, mut far) = stream(&links).await;
    near.write_all(b"last words").await.unwrap();
    drop(near);
    let mut received = Vec::new();
    timeout(LONG, far.read_to_end(&mut received)).await.expect("the end").unwrap();
    assert_eq!(received, b"last words");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_is_given_up_even_on_a_cut_link() {
    let links = Links::default();
    links.set(A, B, Profile::rtt(RTT));
    let (mut near, mut far) = stream(&links).await;
    near.write_all(b"x").await.unwrap();
    links.set(A, B, Profile::CUT);
    near.write_all(b"never").await.unwrap();
    drop(near);
    let mut received = Vec::new();
    // Only the pump's end closes this side.
    timeout(LONG, far.read_to_end(&mut received)).await.expect("the pump still runs").unwrap();
}

#[test]
fn half_the_delay_goes_each_way_and_a_stall_costs_at_least_200_ms() {
    let profile = Profile { delay: RTT, jitter: RTT, stall: 0.5, cut: false };
    assert_eq!(profile.one_way([0.0, 0.9]), RTT / 2);
    assert_eq!(profile.one_way([1.0, 0.9]), RTT);
    assert_eq!(profile.one_way([0.0, 0.1]), RTT / 2 + MIN_STALL);
    let far = Profile { delay: RTT * 5, stall: 1.0, ..Profile::default() };
    assert_eq!(far.one_way([0.0, 0.1]), RTT * 5 / 2 + RTT * 5);
}
