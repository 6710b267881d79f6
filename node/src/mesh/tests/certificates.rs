//! Certificates by hand, one thing wrong with each: whoever shows it is refused in the
//! handshake, on either side of a connection.
//!
//! Nobody's clock is relied on: what libp2p makes is valid for centuries, and only one whose
//! dates exclude any doubt is refused for them.

use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyPair};
use rustls::{
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// What carries a PeerId in a certificate, by the TLS specification of libp2p.
const EXTENSION: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];

/// Shows a certificate, on either side.
#[derive(Clone, Debug)]
pub(super) struct Shows(pub(super) Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// `SEQUENCE { OCTET STRING, OCTET STRING }` of short strings, as the extension has it.
fn pair(one: &[u8], other: &[u8]) -> Vec<u8> {
    let string = |bytes: &[u8]| [&[4, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let both = [string(one), string(other)].concat();
    assert!(both.len() < 128, "its length does not fit into one byte");
    [&[0x30, both.len() as u8], &*both].concat()
}

/// The word of `identity` that it uses `key`.
fn vouched(identity: &Identity, key: &KeyPair) -> CustomExtension {
    let keypair = identity.keypair();
    let signed = [b"libp2p-tls-handshake:", &*key.public_key_der()].concat();
    let signature = keypair.sign(&signed).unwrap();
    let content = pair(&keypair.public().encode_protobuf(), &signature);
    CustomExtension::from_oid_content(&EXTENSION, content)
}

fn shown(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Shows {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).unwrap();
    Shows(Arc::new(CertifiedKey::new(chain, key)))
}

/// A certificate with the word of `identity`, before somebody breaks it.
fn of(identity: &Identity, change: impl FnOnce(&mut CertificateParams)) -> Shows {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.custom_extensions.push(vouched(identity, &key));
    change(&mut params);
    shown(vec![params.self_signed(&key).unwrap().into()], &key)
}

/// All that are to be refused, by what is wrong with them.
fn broken(identity: &Identity) -> Vec<(&'static str, Shows)> {
    let date = rcgen::date_time_ymd;
    let (key, another) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let with = |extension: CustomExtension| {
        let mut params = CertificateParams::default();
        params.custom_extensions.push(extension);
        params
    };
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = authority.self_signed(&another).unwrap();
    let issued = with(vouched(identity, &key)).signed_by(&key, &authority, &another).unwrap();
    let alone = of(identity, |_| ()).0;
    let twice = Shows(Arc::new(CertifiedKey::new(
        vec![alone.cert[0].clone(), alone.cert[0].clone()],
        alone.key.clone(),
    )));
    let nonsense = CustomExtension::from_oid_content(&EXTENSION, pair(b"no key", b"nothing"));
    let self_signed =
        |params: CertificateParams| shown(vec![params.self_signed(&key).unwrap().into()], &key);
    vec![
        ("expired", of(identity, |params| params.not_after = date(2001, 1, 1))),
        ("not yet valid", of(identity, |params| params.not_before = date(4000, 1, 1))),
        ("self-signed, without a PeerId", self_signed(CertificateParams::default())),
        ("vouched for another key", self_signed(with(vouched(identity, &another)))),
        ("with a PeerId of nonsense", self_signed(with(nonsense))),
        ("of an authority", shown(vec![issued.into()], &key)),
        ("not alone", twice),
        (
            "with a duty that nobody understands",
            of(identity, |params| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
                unknown.set_criticality(true);
                params.custom_extensions.push(unknown);
            }),
        ),
    ]
}

/// Connects with this certificate, and says whether a byte came back.
async fn dial(at: SocketAddr, shows: Shows) -> std::io::Result<()> {
    let mut config = libp2p_tls::make_client_config(Identity::ephemeral().keypair(), None).unwrap();
    config.alpn_protocols = vec![b"lca-h1".to_vec()];
    config.client_auth_cert_resolver = Arc::new(shows);
    let stream = TcpStream::connect(at).await.unwrap();
    let echoed = async {
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(tls::no_name(), stream).await?;
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0; 1]).await.map(drop)
    };
    timeout(PATIENCE, echoed).await.expect("it was left open")
}

// FAULTS 32.
#[tokio::test]
async fn a_peer_that_shows_a_certificate_that_is_none_is_refused_in_the_handshake() {
    let b = Peer::start(&Links::default()).await;
    let at = b.endpoint.mesh[0];
    let identity = Identity::ephemeral();
    dial(at, of(&identity, |_| ())).await.expect("nothing is wrong with it");
    for (what, shows) in broken(&identity) {
        assert!(dial(at, shows).await.is_err(), "one {what} was taken");
    }
    assert_eq!(b.http.connections.load(Ordering::SeqCst), 1, "it got beyond the handshake");
    let refused = b.metrics.node.refusals.with_label_values(&["handshake"]);
    eventually("each refusal to be counted", async || refused.get() == 8).await;
}

/// Listens with this certificate; counts bytes that were sent to it after the handshake.
async fn listen(identity: &Identity, shows: Shows) -> (Endpoint, Arc<AtomicUsize>) {
    let mut config = libp2p_tls::make_server_config(identity.keypair()).unwrap();
    config.alpn_protocols = vec![b"lca-h1".to_vec()];
    config.cert_resolver = Arc::new(shows);
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = endpoint(identity.peer_id(), &[listener.local_addr().unwrap()], 1);
    let told = Arc::new(AtomicUsize::new(0));
    let heard = told.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = tls.accept(stream).await
                && let Ok(read) = stream.read(&mut [0; 64]).await
            {
                heard.fetch_add(read, Ordering::SeqCst);
            }
        }
    });
    (at, told)
}

#[tokio::test]
async fn nothing_is_sent_to_whom_shows_a_certificate_that_is_none() {
    let a = Peer::start(&Links::default()).await;
    let identity = Identity::ephemeral();
    let (good, _) = listen(&identity, of(&identity, |_| ())).await;
    a.client.connect(&good, Alpn::H1).await.expect("nothing is wrong with it");
    for (what, shows) in broken(&identity) {
        let (bad, told) = listen(&identity, shows).await;
        let error = a.client.connect(&bad, Alpn::H1).await.expect_err(what);
        assert_eq!(error.kind(), Kind::Unavailable, "{what}: {error}");
        assert_eq!(told.load(Ordering::SeqCst), 0, "one {what} was told something");
    }
    // One that is right, of somebody else.
    let other = Identity::ephemeral();
    let (impostor, told) = listen(&identity, of(&other, |_| ())).await;
    let error = a.client.connect(&impostor, Alpn::H1).await.expect_err("it is somebody else");
    assert!(error.chain().contains(&other.peer_id().short()), "{}", error.chain());
    assert_eq!(told.load(Ordering::SeqCst), 0);
}
