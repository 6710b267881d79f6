//! What a dialler asks of TLS: libp2p's certificates, and the cipher that costs this
//! machine least.
//!
//! libp2p's own configuration offers ChaCha20 first, which is right where nothing helps with
//! AES. A server takes the first it knows of what a client offers, so only the client's order
//! counts; but rustls ties that to the verifier, and libp2p's cannot be had alone.

use std::sync::Arc;

use libp2p_tls::certificate::{self, ParseError, VerificationError};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, PeerIncompatible, SignatureScheme,
    SupportedCipherSuite,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            self,
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
        },
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Those that libp2p's TLS allows, in the order in which this machine offers them. All are as
/// safe as the key exchange before them; what differs is what a byte costs.
fn suites(aes_in_hardware: bool) -> Vec<SupportedCipherSuite> {
    let mut suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    if !aes_in_hardware {
        suites.rotate_right(1);
    }
    suites
}

/// Whether this machine has instructions for AES, and for the multiplication of GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// The ciphers and key exchanges of a dialler.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites(has_aes());
    Arc::new(provider)
}

/// Takes a certificate that stands alone and carries a PeerId with a valid word for its key
/// (the TLS specification of libp2p). Whose PeerId that is, is compared after the handshake.
#[derive(Debug)]
pub(super) struct Peers(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !others.is_empty() {
            return Err(rustls::Error::General("more than one certificate".to_owned()));
        }
        // Its own signature, its dates and its extension are looked at as it is read.
        certificate::parse(shown).map_err(unreadable)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let shown = certificate::parse(shown).map_err(unreadable)?;
        let verified = shown.verify_signature(signed.scheme, message, signed.signature());
        verified.map_err(forged)?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn unreadable(error: ParseError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn forged(_: VerificationError) -> rustls::Error {
    CertificateError::BadSignature.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_comes_first_where_the_machine_helps_with_it_and_last_where_not() {
        let first = |aes| suites(aes)[0].suite();
        assert_eq!(first(true), TLS13_AES_128_GCM_SHA256.suite());
        assert_eq!(first(false), TLS13_CHACHA20_POLY1305_SHA256.suite());
        for aes in [true, false] {
            assert_eq!(suites(aes).len(), 3, "every peer can be talked to");
        }
    }
}
