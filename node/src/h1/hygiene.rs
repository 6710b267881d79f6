//! What a proxy must not pass on: headers that concern one connection only, framing
//! that two readers could understand differently, and headers of ours.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers of one connection, whatever `Connection` says (RFC 9110 section 7.6.1, and
/// the older ones still seen). `TE` and `Transfer-Encoding` are among them; `Trailer`
/// is not: without it hyper sends no trailers.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What `Connection` may name without our removing it: without these a message would
/// mean something else to the next reader.
const END_TO_END: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::DATE, header::VIA];

/// Removes the headers that concern this connection only: the standard ones, those
/// that `Connection` names, and all of `Proxy-*`. `TE: trailers` stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = accepts_trailers(headers);
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !END_TO_END.contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    strip_prefix(headers, "proxy-");
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// What the sender asks to go on with instead of HTTP/1.1, if it asks for one protocol and
/// in the words of RFC 9110, section 7.8. Another HTTP (`h2c`) or TLS is not passed on: each
/// connection of a proxy speaks what the proxy chose.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else { return None };
    let name = protocol.to_str().ok()?.to_ascii_lowercase();
    let taken =
        name.contains(',') || ["h2", "http", "tls"].iter().any(|prefix| name.starts_with(prefix));
    (!taken && !name.is_empty() && is_listed(headers, &header::CONNECTION, "upgrade"))
        .then(|| protocol.clone())
}

/// Says that the connection goes on with `protocol`, or shall.
pub fn insert_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Removes all headers whose name begins with `prefix` (lower case).
pub fn strip_prefix(headers: &mut HeaderMap, prefix: &str) {
    // Rare, so looked for before anything is copied.
    if headers.keys().any(|name| name.as_str().starts_with(prefix)) {
        let names: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Whether the end of the message is where every reader would see it: not both a
/// length and a transfer encoding, and no encoding but `chunked`, once.
pub fn is_framed_clearly(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked")
                && !headers.contains_key(header::CONTENT_LENGTH)
        }
        _ => false,
    }
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    is_listed(headers, &header::TE, "trailers")
}

/// Whether `word` is among what all lines of a header list.
fn is_listed(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|listed| listed.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn standard_and_listed_headers_stay_on_their_connection() {
        let mut headers = map(&[
            ("connection", "X-Auth, close"),
            ("x-auth", "secret"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-foo", "x"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        let left = map(&[("trailer", "x-sum"), ("accept", "*/*"), ("te", "trailers")]);
        assert_eq!(headers, left);
    }

    #[test]
    fn what_frames_a_message_cannot_be_listed_away() {
        let mut headers = map(&[("connection", "content-length, host"), ("content-length", "3")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("content-length", "3")]));
    }

    #[test]
    fn only_one_reading_of_the_length_is_clear() {
        assert!(is_framed_clearly(&map(&[])));
        assert!(is_framed_clearly(&map(&[("content-length", "3")])));
        assert!(is_framed_clearly(&map(&[("transfer-encoding", "Chunked")])));
        for coding in ["gzip", "gzip, chunked", "chunked, chunked", ",chunked", "chunked;x", ""] {
            assert!(!is_framed_clearly(&map(&[("transfer-encoding", coding)])), "{coding:?}");
        }
        assert!(!is_framed_clearly(&map(&[
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
        ])));
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        let mut headers = HeaderMap::new();
        for (name, value) in twice {
            headers.append(name, HeaderValue::from_static(value));
        }
        assert!(!is_framed_clearly(&headers));
    }

    #[test]
    fn one_protocol_that_is_not_http_can_be_asked_for() {
        let asked = |upgrade: &'static str, connection: &'static str| {
            upgrade_of(&[("upgrade", upgrade), ("connection", connection)])
        };
        assert_eq!(asked("websocket", "keep-alive, Upgrade").unwrap(), "websocket");
        assert_eq!(asked("WebSocket", "upgrade").unwrap(), "WebSocket");
        for (upgrade, connection) in [
            ("websocket", "keep-alive"),
            ("h2c", "upgrade"),
            ("H2C", "upgrade"),
            ("HTTP/2.0", "upgrade"),
            ("TLS/1.0", "upgrade"),
            ("websocket, h2c", "upgrade"),
            ("", "upgrade"),
        ] {
            assert_eq!(asked(upgrade, connection), None, "{upgrade} {connection}");
        }
        let twice = [("upgrade", "a"), ("connection", "upgrade")];
        let mut headers = map(&twice);
        headers.append("upgrade", HeaderValue::from_static("b"));
        assert_eq!(super::upgrade(&headers), None);
        assert_eq!(upgrade_of(&[("connection", "upgrade")]), None);
    }

    fn upgrade_of(lines: &[(&'static str, &'static str)]) -> Option<HeaderValue> {
        upgrade(&map(lines))
    }

    #[test]
    fn a_prefix_takes_all_its_headers_and_no_other() {
        let mut headers = map(&[("lca-load", "x"), ("lca-x", "y"), ("xlca-", "z")]);
        strip_prefix(&mut headers, "lca-");
        assert_eq!(headers, map(&[("xlca-", "z")]));
    }
}
