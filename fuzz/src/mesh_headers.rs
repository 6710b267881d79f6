//! Headers on both hops: what clients and applications send to the front, and what peers
//! tell each other around it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, header, uri::Authority};
use lca::{
    Kind, PeerId, ServiceName,
    headers::{Failure, Load, PREFIX, Refusal},
};
use lca_node::h1::hygiene;
use lca_proxy::headers::{Via, for_client, for_ingress, tightening};

use crate::Outcome;

static SERVICE: LazyLock<ServiceName> = LazyLock::new(|| "svc".parse().expect("a name"));
static VIA: LazyLock<Via> = LazyLock::new(|| Via::new(PeerId::from_public_key([7; 32])));

/// Reads each line as a header; the first may be the authority that the client used.
///
/// # Panics
/// If a header passes that must not, a client is believed about who it is, the framing is
/// not clear, a loop is not seen, or what peers tell each other changes when repeated.
pub fn mesh_headers(input: &[u8]) -> Outcome {
    let mut lines = input.split(|byte| *byte == b'\n').take(128);
    let authority = lines.next().and_then(|line| Authority::try_from(line).ok());
    let authority = authority
        // As the route demands it.
        .filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
        .unwrap_or_else(|| Authority::from_static("svc.lca.localhost:4201"));
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            words(&value);
            headers.append(name, value);
        }
    }
    limits(&headers);
    answer(headers.clone());
    request(headers, &authority)
}

/// What one peer tells another means the same when it is told on.
fn words(value: &HeaderValue) {
    let load = Load::from_header(value);
    assert_eq!(Load::from_header(&load.to_header()), load);
    let refusal = Refusal::from_header(value);
    assert_eq!(Refusal::from_header(&HeaderValue::from_static(refusal.as_str())), refusal);
    let failure = Failure::from_header(value);
    assert_eq!(Failure::from_header(&HeaderValue::from_static(failure.as_str())), failure);
}

fn limits(headers: &HeaderMap) {
    let Ok(limits) = tightening(headers) else { return };
    for limit in [limits.soft, limits.hard].into_iter().flatten() {
        assert!(!limit.is_zero() && limit <= Duration::from_secs(60), "a limit of {limit:?}");
    }
}

/// What a client gets of an application's answer.
fn answer(mut headers: HeaderMap) {
    for_client(&mut headers);
    check_clean(&headers);
    let once = headers.clone();
    for_client(&mut headers);
    assert_eq!(headers, once, "cleaning twice finds more");
}

/// What ingress gets of a client's request.
fn request(mut headers: HeaderMap, authority: &Authority) -> Outcome {
    let clear = hygiene::is_framed_clearly(&headers);
    let sent = headers.clone();
    let clients = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let client = clients[sent.len() % 2];
    match for_ingress(&mut headers, client, authority, &SERVICE, &VIA) {
        Ok(()) => assert!(clear, "passed on though nobody knows where it ends"),
        Err(error) if error.kind() == Kind::Loop => return Outcome::Refused,
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(!clear, "refused though it is framed clearly");
            return Outcome::Refused;
        }
    }
    check_clean(&headers);
    let node = match client {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let forwarded = format!("for={node};host=\"{authority}\";proto=http");
    let said = [
        (header::HOST, "svc"),
        (header::FORWARDED, &forwarded),
        (HeaderName::from_static("x-forwarded-for"), &client.to_string()),
        (HeaderName::from_static("x-forwarded-host"), authority.as_str()),
        (HeaderName::from_static("x-forwarded-proto"), "http"),
    ];
    for (name, expected) in said {
        let values: Vec<_> = headers.get_all(&name).iter().collect();
        assert_eq!(values, [expected], "{name} is not what we say");
    }
    assert_eq!(forwarded.matches('"').count() % 2, 0, "{forwarded} can be read in two ways");
    assert!(!headers.contains_key("x-real-ip"));
    let lengths = |headers: &HeaderMap| headers.get_all(header::CONTENT_LENGTH).iter().count();
    assert_eq!(lengths(&headers), lengths(&sent), "the length of the body was listed away");

    // An application that sends it on as it came is a loop; at another front it is none.
    let again = for_ingress(&mut headers.clone(), client, authority, &SERVICE, &VIA);
    assert_eq!(again.map_err(|error| error.kind()), Err(Kind::Loop));
    let other = Via::new(PeerId::from_public_key([8; 32]));
    for_ingress(&mut headers, client, authority, &SERVICE, &other).unwrap_or_else(|error| {
        // Unless the client made up that it had been there.
        assert_eq!(error.kind(), Kind::Loop);
    });
    Outcome::Taken
}

/// Nothing of one connection, and nothing of ours.
fn check_clean(headers: &HeaderMap) {
    for name in headers.keys() {
        let name = name.as_str();
        let ours = name.starts_with(PREFIX) || name.starts_with("proxy-");
        let hop = ["connection", "keep-alive", "transfer-encoding", "upgrade"].contains(&name);
        assert!(!ours && !hop, "{name} passed");
    }
    let te: Vec<_> = headers.get_all(header::TE).iter().collect();
    assert!(te.is_empty() || te == ["trailers"], "te: {te:?}");
}
