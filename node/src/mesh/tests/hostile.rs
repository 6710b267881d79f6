//! What is not a peer of ours, or lies: turned away in time, and in nobody's way.

use rustls::client::ResolvesClientCert;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{certificates::Shows, *};

/// Connections that say nothing, at once: fewer than one host may have under way.
const CROWD: usize = 200;

/// A client of libp2p's TLS, before somebody breaks it.
fn config() -> rustls::ClientConfig {
    let identity = Identity::ephemeral();
    let mut config = libp2p_tls::make_client_config(identity.keypair(), None).unwrap();
    config.alpn_protocols = vec![b"lca-h1".to_vec()];
    config
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// A ClientHello of TLS 1.2: no `supported_versions`.
fn client_hello_12() -> Vec<u8> {
    let mut body = vec![3, 3]; // TLS 1.2
    body.extend([7; 32]); // random
    body.push(0); // no session
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]); // ECDHE with AES-128-GCM
    body.extend([1, 0]); // no compression
    body.extend([0, 8, 0, 10, 0, 4, 0, 2, 0, 29]); // one extension: group X25519
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    hello
}

/// Sends bytes and waits for the other side to close.
async fn closes(at: SocketAddr, bytes: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let started = Instant::now();
    let _may_be_closed_already = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _end_or_reset = closed.expect("it was left open");
    started.elapsed()
}

/// Finishes its side of TLS if it can, and waits for the other side to close.
async fn closes_tls(at: SocketAddr, config: rustls::ClientConfig) {
    let stream = TcpStream::connect(at).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let told = async {
        let mut stream = connector.connect(tls::no_name(), stream).await?;
        let _may_be_closed_already = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        stream.read(&mut [0; 64]).await
    };
    let told = timeout(PATIENCE, told).await.expect("it was left open");
    assert!(!matches!(told, Ok(1..)), "it was answered");
}

/// Many connections on which nothing is said.
async fn crowd(peer: &Peer) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..CROWD {
        silent.push(TcpStream::connect(peer.endpoint.mesh[0]).await.unwrap());
    }
    silent
}

#[tokio::test]
async fn what_is_not_a_peer_is_closed_in_time_and_delays_nobody() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    // One that has much patience with them, so that a busy machine does not look like it.
    let patient = Timing { handshake: PATIENCE, ..BRISK };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let patient = Peer::start_with(Identity::ephemeral(), any, 1, &links, patient).await;
    let mute = crowd(&patient).await;
    let started = Instant::now();
    assert_eq!(a.call(&patient.endpoint).await.unwrap(), a.id().to_string());
    assert!(started.elapsed() < PATIENCE / 2, "the silent ones were waited for");
    drop(mute);

    let silent = crowd(&b).await;
    let at = b.endpoint.mesh[0];
    let hello = client_hello_12();
    let limit = BRISK.handshake + Duration::from_secs(4); // a busy machine
    for (what, bytes) in [
        ("plain HTTP", &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("garbage", &[0xff; 4096]),
        ("TLS 1.2", &hello),
        ("half a handshake", &hello[..20]),
        ("silence", b""),
    ] {
        let took = closes(at, bytes).await;
        assert!(took < limit, "{what} was closed only after {took:?}");
    }
    for mut stream in silent {
        timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("left open").ok();
    }
    assert_eq!(a.call(&b.endpoint).await.unwrap(), a.id().to_string());
    assert_eq!(b.http.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tls_without_a_certificate_or_a_protocol_of_ours_is_refused() {
    let b = Peer::start(&Links::default()).await;
    let at = b.endpoint.mesh[0];
    let mut nameless = config();
    nameless.client_auth_cert_resolver = Arc::new(NoCertificate);
    closes_tls(at, nameless).await;
    for offered in [vec![], vec![b"libp2p".to_vec()], vec![b"h2".to_vec()]] {
        let mut foreign = config();
        foreign.alpn_protocols = offered;
        closes_tls(at, foreign).await;
    }
    assert_eq!(b.http.connections.load(Ordering::SeqCst), 0);
}

/// `bytes` with the one place that reads `from` changed.
fn changed(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is in there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[tokio::test]
async fn a_certificate_proves_nothing_for_whom_it_was_not_made() {
    let b = Peer::start(&Links::default()).await;
    let (own, other) = (Identity::ephemeral(), Identity::ephemeral());
    let key_of = |identity: &Identity| {
        let public = identity.keypair().public().try_into_ed25519();
        public.expect("ours are Ed25519").to_bytes()
    };
    let (certificate, key) = libp2p_tls::certificate::generate(own.keypair()).unwrap();
    let (_, another_key) = libp2p_tls::certificate::generate(own.keypair()).unwrap();
    let claiming = changed(&certificate, &key_of(&own), &key_of(&other));
    // The last number of the extension's name: 1.3.6.1.4.1.53594.1.1.
    let name = [0x2b, 6, 1, 4, 1, 0x83, 0xa2, 0x5a, 1];
    let nameless = changed(&certificate, &[&name[..], &[1]].concat(), &[&name[..], &[2]].concat());
    for (what, certificate, key, refused) in [
        ("its own", certificate.to_vec(), &key, false),
        ("its own, signed with another key", certificate.to_vec(), &another_key, true),
        ("another peer's id", claiming, &key, true),
        ("no id at all", nameless, &key, true),
    ] {
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(key).unwrap();
        let shown = rustls::sign::CertifiedKey::new(vec![certificate.into()], key);
        let mut client = config();
        client.client_auth_cert_resolver = Arc::new(Shows(Arc::new(shown)));
        let stream = TcpStream::connect(b.endpoint.mesh[0]).await.unwrap();
        let echoed = async {
            let connector = TlsConnector::from(Arc::new(client));
            let mut stream = connector.connect(tls::no_name(), stream).await?;
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0; 1]).await
        };
        let echoed = timeout(PATIENCE, echoed).await.expect("it was left open");
        assert_eq!(echoed.is_err(), refused, "{what}: {echoed:?}");
    }
    assert_eq!(b.http.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let b = Peer::start(&Links::default()).await;
    let mut config = config();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let connector = TlsConnector::from(Arc::new(config));
    for _ in 0..2 {
        let stream = TcpStream::connect(b.endpoint.mesh[0]).await.unwrap();
        let mut stream = connector.connect(tls::no_name(), stream).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap(); // a ticket would be here by now
        let kind = stream.get_ref().1.handshake_kind();
        assert_ne!(kind, Some(rustls::HandshakeKind::Resumed));
    }
}

#[tokio::test]
async fn a_peer_that_answers_probes_it_was_not_sent_is_not_measured() {
    let a = Peer::start(&Links::default()).await;
    let identity = Identity::ephemeral();
    let tls = TlsAcceptor::from(tls::server(identity.keypair()).unwrap());
    let (listener, address) = black_hole().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await.unwrap();
                // As fast as it can, before any question.
                while stream.write_all(&[1; 8]).await.is_ok() {}
            });
        }
    });
    let liar = endpoint(identity.peer_id(), &[address], 1);
    assert_eq!(a.client.measure(&liar).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(a.client.rtt(liar.peer), None);
}

#[tokio::test]
async fn what_a_peer_offers_is_checked_by_who_dials() {
    // Speaks TLS as itself, but no protocol of ours.
    let a = Peer::start(&Links::default()).await;
    let identity = Identity::ephemeral();
    let mut config = libp2p_tls::make_server_config(identity.keypair()).unwrap();
    config.alpn_protocols = vec![];
    let tls = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = black_hole().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = tls.accept(stream).await.unwrap();
            let read = stream.read(&mut [0; 64]).await;
            assert!(!matches!(read, Ok(1..)), "it got a byte");
        }
    });
    let other = endpoint(identity.peer_id(), &[address], 1);
    let error = a.client.connect(&other, Alpn::H1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}
