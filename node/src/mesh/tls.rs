//! TLS 1.3 in which each side's certificate carries its PeerId: libp2p's TLS
//! specification, with ALPN names of our own.
//!
//! The client has one key and certificate and one configuration a protocol, whoever it
//! dials; the PeerId is compared after the handshake. Sessions are never resumed: a
//! resumed one has no certificate to look at.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use lca::{Error, Kind, PeerId, Result};
use libp2p::identity::Keypair;
use rustls::{ClientConfig, CommonState, ServerConfig, pki_types::ServerName};

use super::{Alpn, verify};
use crate::identity::from_libp2p;

/// One client configuration for each protocol, so that a connection offers exactly one.
#[derive(Clone, Debug)]
pub(super) struct Offers {
    grpc: Arc<ClientConfig>,
    h1: Arc<ClientConfig>,
    mux: Arc<ClientConfig>,
    probe: Arc<ClientConfig>,
}

impl Offers {
    /// # Errors
    /// [`Kind::Internal`] if no certificate can be made for `key`.
    pub(super) fn new(key: &Keypair) -> Result<Self> {
        let certificate = libp2p_tls::make_client_config(key, None).map_err(no_certificate)?;
        let provider = verify::provider();
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Error::new(Kind::Internal, "no cipher for TLS 1.3").because(error))?
            .dangerous() // in that the verifier is ours
            .with_custom_certificate_verifier(Arc::new(verify::Peers(provider)))
            .with_client_cert_resolver(certificate.client_auth_cert_resolver);
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        let offering = |alpn: Alpn| {
            let mut config = config.clone();
            config.alpn_protocols = vec![alpn.as_str().into()];
            Arc::new(config)
        };
        Ok(Self {
            grpc: offering(Alpn::Grpc),
            h1: offering(Alpn::H1),
            mux: offering(Alpn::Mux),
            probe: offering(Alpn::Probe),
        })
    }

    pub(super) fn of(&self, alpn: Alpn) -> Arc<ClientConfig> {
        match alpn {
            Alpn::Grpc => self.grpc.clone(),
            Alpn::H1 => self.h1.clone(),
            Alpn::Mux => self.mux.clone(),
            Alpn::Probe => self.probe.clone(),
        }
    }
}

/// The configuration of a listener, which takes every protocol.
///
/// # Errors
/// [`Kind::Internal`] if no certificate can be made for `key`.
pub(super) fn server(key: &Keypair) -> Result<Arc<ServerConfig>> {
    let mut config = libp2p_tls::make_server_config(key).map_err(no_certificate)?;
    config.key_log = Arc::new(rustls::NoKeyLog);
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.as_str().into()).collect();
    Ok(Arc::new(config))
}

/// What stands where TLS wants a server's name; an IP address is not sent as SNI.
pub(super) fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// Who is at the other end of a finished handshake, and what it wants to carry.
///
/// # Errors
/// If it proved nothing, its key is not Ed25519, or no protocol was agreed on.
pub(super) fn identify(tls: &CommonState) -> io::Result<(PeerId, Alpn)> {
    let refused = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
    let certificate = tls.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| refused("no certificate"))?;
    let certificate = libp2p_tls::certificate::parse(certificate)
        .map_err(|_| refused("a certificate without a PeerId"))?;
    let peer = from_libp2p(&certificate.peer_id())
        .ok_or_else(|| refused("the PeerId is not of an Ed25519 key"))?;
    let alpn = tls.alpn_protocol().and_then(Alpn::from_wire);
    Ok((peer, alpn.ok_or_else(|| refused("no protocol of ours was agreed on"))?))
}

fn no_certificate(error: libp2p_tls::certificate::GenError) -> Error {
    Error::new(Kind::Internal, "cannot make a certificate from the node's key").because(error)
}
