//! Answers that are moved to where their client is, and how long a client says it waits.

use std::{sync::LazyLock, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use lca::{Kind, ServiceName};
use lca_proxy::{headers::timeout, rewrite::inside, route::Way};

use crate::{Outcome, lines_of};

static SERVICE: LazyLock<ServiceName> = LazyLock::new(|| "svc".parse().expect("a name"));

/// Reads lines as headers of an answer to a client that came by each way, and as those of a
/// request that says how long it waits. Taken is what was moved, or said a time.
///
/// # Panics
/// If a target inside comes to name another host, a cookie is lost or renamed, another header
/// changes, or a time is not the one that was said.
pub fn rewriting(input: &[u8]) -> Outcome {
    let sent = lines_of(input);
    let timed = time(&sent);
    let mut moved = false;
    for way in [Way::Proxy, Way::Host, Way::Path] {
        let mut told = sent.clone();
        inside(&mut told, &SERVICE, way);
        moved |= told != sent;
        assert!(way != Way::Proxy || told == sent, "changed for who knows the service by name");
        target(&sent, &told, way);
        cookies(&sent, &told, way);
        for name in
            sent.keys().filter(|name| ![header::LOCATION, header::SET_COOKIE].contains(name))
        {
            let all =
                |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
            assert_eq!(all(&sent), all(&told), "{name} changed");
        }
        assert_eq!(sent.len(), told.len(), "a line came or went");
    }
    Outcome::from(moved || timed)
}

/// What a client resolves against the front's own address, as browsers do it: tabs are
/// nothing, and either slash is a slash.
fn target(sent: &HeaderMap, told: &HeaderMap, way: Way) {
    let (Some(from), Some(to)) = (sent.get(header::LOCATION), told.get(header::LOCATION)) else {
        return;
    };
    if from == to {
        return;
    }
    let mut seen = to.as_bytes().iter().filter(|byte| **byte != b'\t');
    assert_eq!(seen.next(), Some(&b'/'), "{from:?} became {to:?}");
    assert!(!matches!(seen.next(), Some(b'/' | b'\\')), "{from:?} became {to:?}: another host");
    assert!(way != Way::Path || to.as_bytes().starts_with(b"/svc/"), "{from:?} became {to:?}");
}

fn cookies(sent: &HeaderMap, told: &HeaderMap, way: Way) {
    let (from, to) = (sent.get_all(header::SET_COOKIE), told.get_all(header::SET_COOKIE));
    assert_eq!(from.iter().count(), to.iter().count(), "a cookie came or went");
    for (from, to) in from.iter().zip(to) {
        let parts = |cookie: &HeaderValue| -> Vec<Vec<u8>> {
            cookie.as_bytes().split(|byte| *byte == b';').map(<[u8]>::to_vec).collect()
        };
        let (from, to) = (parts(from), parts(to));
        assert_eq!(from[0], to[0], "name or value changed");
        assert!(to.len() <= from.len(), "an attribute came");
        if way != Way::Path {
            continue;
        }
        for attribute in &to[1..] {
            let text = String::from_utf8_lossy(attribute).to_ascii_lowercase();
            let Some((name, value)) = text.split_once('=') else { continue };
            let (name, value) = (name.trim_ascii(), value.trim_ascii());
            let inside = value.starts_with("/svc/") || !value.starts_with('/');
            assert!(name != "path" || inside, "a cookie for {value}");
            assert!(name != "domain" || !["svc", ".svc"].contains(&value), "a cookie for {value}");
        }
    }
}

/// Whether a time is said, which is then the one of the only line that says one.
fn time(headers: &HeaderMap) -> bool {
    let lines: Vec<_> = headers.get_all("lca-timeout").iter().collect();
    match timeout(headers) {
        Ok(None) => {
            assert!(lines.is_empty(), "not read: {lines:?}");
            false
        }
        Ok(Some(time)) => {
            assert_eq!(lines.len(), 1, "which of them?");
            assert!(!time.is_zero() && time <= Duration::from_secs(86_400), "{time:?}");
            let again = format!("{}us", time.as_micros());
            let again = HeaderValue::try_from(again).expect("digits");
            let again = [("lca-timeout".parse().expect("a name"), again)].into_iter().collect();
            assert_eq!(timeout(&again).ok(), Some(Some(time)), "{lines:?} means something else");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(!lines.is_empty(), "refused, and nothing was said");
            false
        }
    }
}
