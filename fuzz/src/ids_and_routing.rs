//! What clients and people type: ids, names and addresses, and the target and host of a
//! request.

use std::{
    fmt::{Debug, Display},
    net::IpAddr,
    str::FromStr,
};

use http::{HeaderMap, HeaderValue, Method, Uri, header, uri::Authority};
use lca::{
    Digest, InstanceId, InstancePrefix, PeerId, RequestId, ServiceHash, ServiceName,
    config::Bootstrap, endpoint::Role,
};
use lca_proxy::route::{Route, route};

use crate::Outcome;

/// Where the front got the request.
const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 7));

/// Reads each line as every kind of id; then the first as a method and a target, and the
/// others as `Host` headers.
///
/// # Panics
/// If an id is printed otherwise than it was read, a name breaks the grammar, or a request
/// is routed that another reader would route elsewhere.
pub fn ids_and_routing(input: &[u8]) -> Outcome {
    let Ok(text) = str::from_utf8(input) else { return Outcome::Refused };
    let mut taken = false;
    for line in text.lines().take(16) {
        taken |= ids(line);
    }
    taken |= routing(text).is_some();
    taken.into()
}

fn ids(text: &str) -> bool {
    let name = same::<ServiceName>(text);
    assert_eq!(name.is_some(), is_service_name(text), "a service name? {text:?}");
    let prefix = same::<InstancePrefix>(text);
    let instance = same::<InstanceId>(text);
    if let Some(instance) = instance {
        let prefix = prefix.clone().expect("a whole id is a prefix of itself");
        assert!(prefix.matches(instance));
        assert!(text.starts_with(&instance.short()));
    }
    let peer = same::<PeerId>(text);
    if let Some(peer) = peer {
        assert_eq!(PeerId::from_bytes(&peer.to_bytes()), Ok(peer));
    }
    // Several texts mean the same peer to join through, so only their meaning stays.
    let bootstrap = text.parse::<Bootstrap>().ok();
    if let Some(bootstrap) = &bootstrap {
        assert_eq!(bootstrap.to_string().parse::<Bootstrap>().ok().as_ref(), Some(bootstrap));
        assert_ne!(bootstrap.port, 0);
    }
    let taken = [
        name.is_some(),
        prefix.is_some(),
        peer.is_some(),
        bootstrap.is_some(),
        same::<Digest>(text).is_some(),
        same::<ServiceHash>(text).is_some(),
        same::<RequestId>(text).is_some(),
        same::<Role>(text).is_some(),
    ];
    taken.contains(&true)
}

/// Reads what must be printed exactly as it was written.
fn same<T: FromStr + Display + Debug>(text: &str) -> Option<T> {
    let read = text.parse::<T>().ok()?;
    assert_eq!(read.to_string(), text, "{read:?}");
    Some(read)
}

/// The grammar, written a second time: `[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?`, with
/// neither `..` nor names that mean an address.
fn is_service_name(text: &str) -> bool {
    let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-');
    (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with(['.', '-'])
        && !text.ends_with(['.', '-'])
        && !text.contains("..")
        && text != "localhost"
        && text.parse::<IpAddr>().is_err()
}

fn routing(text: &str) -> Option<Route> {
    let mut lines = text.lines();
    let first = lines.next()?;
    let (method, target) = first.split_once(' ').unwrap_or(("GET", first));
    let (method, uri): (Method, Uri) = (method.parse().ok()?, target.parse().ok()?);
    let mut headers = HeaderMap::new();
    for host in lines.take(3) {
        headers.append(header::HOST, HeaderValue::from_str(host).ok()?);
    }
    let routed = route(&method, &uri, &headers, OWN).ok()?;
    assert!(method != Method::TRACE, "{method} was routed");
    if let (&Method::CONNECT, Route::Service { service, target, .. }) = (&method, &routed) {
        // A tunnel leads to the service that the target names, and to nothing else.
        let named = uri.authority().expect("it names one").host().to_ascii_lowercase();
        assert!(is_service_name(service.as_str()), "routed to {service}");
        assert!(named == service.as_str() || named == format!("{service}.lca.localhost"));
        assert_eq!(target.as_str(), "/");
        return Some(routed);
    }
    assert_eq!(headers.len(), 1, "routed without exactly one Host");
    let host: Authority = headers[header::HOST].as_bytes().try_into().expect("a host was read");
    // A page on the web that makes its own name mean this machine must get nowhere.
    if uri.scheme().is_none() {
        assert!(is_ours(host.host()), "{host} was routed");
    } else {
        assert_eq!(uri.authority(), Some(&host), "two readers would see two hosts");
    }
    let raw = uri.path_and_query().map_or("/", |target| target.as_str());
    match &routed {
        Route::Service { service, target, .. } => {
            assert!(is_service_name(service.as_str()), "routed to {service}");
            let target = target.as_str();
            assert!(target.starts_with('/'), "{target} is no path");
            let rest = raw.strip_prefix(&format!("/{service}")).unwrap_or(raw);
            let whole = [rest.to_owned(), raw.to_owned(), format!("/{raw}")];
            assert!(whole.iter().any(|whole| whole == target), "{raw} became {target}");
        }
        Route::Redirect(location) => {
            // Clients may send text beyond ASCII, and get it back as it came.
            let location = str::from_utf8(location.as_bytes()).expect("made from text");
            let (service, rest) = location[1..].split_once('/').expect("a slash was added");
            assert!(is_service_name(service), "redirected to {location}");
            assert_eq!(format!("/{service}{rest}"), raw);
        }
    }
    Some(routed)
}

/// Whether nobody else can have a name like this.
fn is_ours(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let address = address.map(|address| address.to_canonical());
    host == "localhost"
        || host.ends_with(".lca.localhost")
        || address.is_ok_and(|address| address.is_loopback() || address == OWN)
}
