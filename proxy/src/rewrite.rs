//! Answers that point inside a service, for clients that know it by another address.
//!
//! An application knows nothing of us: it redirects to `/x`, or to `http://{service}/x`
//! after the `Host` it was given, and sets cookies for `/`. A client that came by path
//! finds all of that under `/{service}`. Bodies are not touched, nor is what points
//! elsewhere, nor a target relative to the request's own.

use http::{HeaderMap, HeaderValue, header};
use lca::ServiceName;

use crate::route::Way;

/// Makes `Location` and `Set-Cookie` of an application what they mean to a client that
/// came by `way`.
pub fn inside(headers: &mut HeaderMap, service: &ServiceName, way: Way) {
    if way == Way::Proxy {
        return; // it knows the service by its name, as the application does
    }
    if let Some(location) = headers.get_mut(header::LOCATION)
        && let Some(moved) = self::location(location.as_bytes(), service, way)
        && let Ok(moved) = HeaderValue::from_bytes(&moved)
    {
        *location = moved;
    }
    if way == Way::Path && headers.contains_key(header::SET_COOKIE) {
        let cookies: Vec<HeaderValue> =
            headers.get_all(header::SET_COOKIE).iter().cloned().collect();
        headers.remove(header::SET_COOKIE);
        for cookie in cookies {
            let moved = HeaderValue::from_bytes(&self::cookie(cookie.as_bytes(), service));
            headers.append(header::SET_COOKIE, moved.unwrap_or(cookie));
        }
    }
}

/// Where a target inside the service is for the client; none if it is there already.
fn location(target: &[u8], service: &ServiceName, way: Way) -> Option<Vec<u8>> {
    let path = match own_path(target, service) {
        Some(path) => path,
        None if way == Way::Path && target.starts_with(b"/") && !target.starts_with(b"//") => {
            target
        }
        None => return None,
    };
    let mut moved = Vec::with_capacity(path.len() + service.as_str().len() + 2);
    if way == Way::Path {
        moved.push(b'/');
        moved.extend_from_slice(service.as_str().as_bytes());
    }
    // "http://service?query" and "http://service" have no slash of their own.
    if !path.starts_with(b"/") || (way == Way::Host && names_a_host(path)) {
        moved.extend_from_slice(if path.starts_with(b"/") { b"/." } else { b"/" });
    }
    moved.extend_from_slice(path);
    Some(moved)
}

/// Whether a path alone, `//x`, would be read as another host: browsers take `\` for a slash
/// too, and see no tabs.
fn names_a_host(path: &[u8]) -> bool {
    let mut seen = path.iter().filter(|byte| **byte != b'\t');
    seen.next() == Some(&b'/') && matches!(seen.next(), Some(b'/' | b'\\'))
}

/// What follows `http://{service}`, with or without the port that goes without saying.
fn own_path<'a>(target: &'a [u8], service: &ServiceName) -> Option<&'a [u8]> {
    let name = service.as_str().as_bytes();
    let rest = strip(target, b"http://").and_then(|rest| strip(rest, name))?;
    let rest = rest.strip_prefix(b":80").unwrap_or(rest);
    matches!(rest.first(), None | Some(b'/' | b'?' | b'#')).then_some(rest)
}

/// Strips a prefix that is the same in any case.
fn strip<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = text.split_at_checked(prefix.len())?;
    begin.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// A cookie with its path under the service's, and without a domain that is the service.
fn cookie(cookie: &[u8], service: &ServiceName) -> Vec<u8> {
    let mut moved = Vec::with_capacity(cookie.len() + service.as_str().len() + 1);
    for (index, part) in cookie.split(|byte| *byte == b';').enumerate() {
        let mut halves = part.splitn(2, |byte| *byte == b'=');
        let name = halves.next().unwrap_or_default().trim_ascii();
        let value = halves.next().unwrap_or_default().trim_ascii();
        let attribute = |is: &[u8]| index > 0 && name.eq_ignore_ascii_case(is);
        let domain = value.strip_prefix(b".").unwrap_or(value);
        if attribute(b"domain") && domain.eq_ignore_ascii_case(service.as_str().as_bytes()) {
            continue;
        }
        if index > 0 {
            moved.push(b';');
        }
        if attribute(b"path") && value.starts_with(b"/") {
            moved.extend_from_slice(b" Path=/");
            moved.extend_from_slice(service.as_str().as_bytes());
            moved.extend_from_slice(value);
        } else {
            moved.extend_from_slice(part);
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moved(name: header::HeaderName, value: &str, way: Way) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(&name, HeaderValue::from_str(value).unwrap());
        inside(&mut headers, &"svc".parse().unwrap(), way);
        assert_eq!(headers.len(), 1);
        headers[&name].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_redirect_inside_the_service_leads_there_by_the_way_the_client_came() {
        for (target, by_path, by_host) in [
            ("/", "/svc/", "/"),
            ("/x?y#z", "/svc/x?y#z", "/x?y#z"),
            ("/svc/x", "/svc/svc/x", "/svc/x"),
            ("http://svc/x", "/svc/x", "/x"),
            ("HTTP://SVC:80/x", "/svc/x", "/x"),
            ("http://svc", "/svc/", "/"),
            ("http://svc?x", "/svc/?x", "/?x"),
            ("http://svc//other/x", "/svc//other/x", "/.//other/x"),
        ] {
            assert_eq!(moved(header::LOCATION, target, Way::Path), by_path, "{target}");
            assert_eq!(moved(header::LOCATION, target, Way::Host), by_host, "{target}");
            assert_eq!(moved(header::LOCATION, target, Way::Proxy), target);
        }
    }

    #[test]
    fn a_redirect_elsewhere_or_relative_stays() {
        for target in [
            "x",
            "../x",
            "?x",
            "#x",
            "",
            "//other/x",
            "http://other/x",
            "https://svc/x",
            "http://svcx/",
            "http://svc:8080/x",
            "http://svc@other/",
            "http://svc.other/",
            "mailto:a@svc",
        ] {
            for way in [Way::Path, Way::Host, Way::Proxy] {
                assert_eq!(moved(header::LOCATION, target, way), target);
            }
        }
    }

    #[test]
    fn a_cookie_for_a_path_is_for_that_path_of_the_service() {
        for (cookie, by_path) in [
            ("a=b; Path=/; HttpOnly", "a=b; Path=/svc/; HttpOnly"),
            ("a=b;path=/x", "a=b; Path=/svc/x"),
            ("a=b; Max-Age=1; PATH = /x ; Secure", "a=b; Max-Age=1; Path=/svc/x; Secure"),
            ("a=b; Domain=svc; Path=/", "a=b; Path=/svc/"),
            ("a=b; domain=.SVC", "a=b"),
            ("a=b", "a=b"),
            ("a=b; Path=", "a=b; Path="),
            ("a=b; Path=x", "a=b; Path=x"),
            ("path=/; Domain=other", "path=/; Domain=other"),
            ("a=\"b; Path=/\"", "a=\"b; Path=/svc/\""),
        ] {
            assert_eq!(moved(header::SET_COOKIE, cookie, Way::Path), by_path, "{cookie}");
            assert_eq!(moved(header::SET_COOKIE, cookie, Way::Host), cookie);
        }
    }

    proptest! {
        #[test]
        fn a_redirect_never_leads_to_another_host_than_the_application_said(
            target in "(http://svc|/|//|)[ -~]{0,20}",
        ) {
            let told = moved(header::LOCATION, &target, Way::Path);
            if told != target {
                prop_assert!(told.starts_with("/svc/"), "{target} became {told}");
            }
            let told = moved(header::LOCATION, &target, Way::Host);
            if told != target {
                prop_assert!(told.starts_with('/') && !told.starts_with("//"), "{target} became {told}");
            }
        }

        #[test]
        fn no_cookie_loses_its_value(value in "[ -:<-~]{0,10}", rest in "[ -~]{0,30}") {
            let sent = format!("a={value}");
            let told = moved(header::SET_COOKIE, &format!("{sent};{rest}"), Way::Path);
            prop_assert!(told.starts_with(&sent), "{told}");
        }
    }
}
