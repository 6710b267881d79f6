//! Which service a request is for, and what of its target the application sees.
//!
//! Decided on the raw target: nothing is decoded, so nothing can be decoded twice.
//! In this order: absolute form (`http_proxy=`), `Host: {service}.lca.localhost`,
//! path `/{service}/{rest}` where the authority is the front's own. Any other
//! authority is refused: a web page that has its own name resolve to 127.0.0.1 (DNS
//! rebinding) sends that name.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderValue, Method, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use lca::{Error, Kind, Result, ServiceName};

/// Bytes of path and query that are read: twice what common servers take.
const LONGEST_TARGET: usize = 16 << 10;
/// `{service}` before this is a service's own host name.
const SUFFIX: &str = ".lca.localhost";

/// How a client names a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the target, as a proxy is asked: `http://{service}/x`.
    Proxy,
    /// By a host name of its own: `{service}.lca.localhost`.
    Host,
    /// By the path on the front's own address: `/{service}/x`.
    Path,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// To a service.
    Service {
        /// Which.
        service: ServiceName,
        /// What the application sees.
        target: PathAndQuery,
        /// The authority the client used, for `Forwarded`.
        authority: Authority,
        /// How the client named the service.
        way: Way,
    },
    /// To the same with a slash, so that relative links work.
    Redirect(HeaderValue),
}

/// Routes a request that came in on the address `own`.
///
/// # Errors
/// `InvalidArgument` where no service can be meant, `TargetTooLong`, `Misdirected` for
/// authorities that are not ours, `NotAllowed` for `TRACE`.
pub fn route(method: &Method, uri: &Uri, headers: &HeaderMap, own: IpAddr) -> Result<Route> {
    if *method == Method::TRACE {
        return Err(Error::new(Kind::NotAllowed, format!("{method} is not served here")));
    }
    if *method == Method::CONNECT {
        return tunnel(uri, headers);
    }
    let host = host(headers)?;
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if target.len() > LONGEST_TARGET {
        return Err(Error::new(
            Kind::TargetTooLong,
            format!("path and query are longer than {LONGEST_TARGET} bytes"),
        ));
    }
    let authority = match (uri.scheme(), uri.authority()) {
        (None, None) if target.starts_with('/') => &host,
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => {
            if *authority != host {
                return Err(invalid("the Host header is not the authority of the target"));
            }
            authority
        }
        (Some(_), _) => return Err(invalid("only http:// targets are served here")),
        _ => return Err(invalid("the target is neither a path nor an http:// URL")),
    };
    let name = authority.host();
    if is_own(name, own) {
        return by_path(target, authority);
    }
    let service = if let Some(service) = strip_suffix(name) {
        parse(service)?
    } else if uri.scheme().is_some() && address(name).is_none() {
        parse(name)?
    } else {
        return Err(Error::new(Kind::Misdirected, format!("{name} is not served here"))
            .hint("use /{service}/{path} on this address, or {service}.lca.localhost"));
    };
    // "http://service?query" has no slash of its own.
    let target = match target.starts_with('/') {
        true => path(target)?,
        false => path(&format!("/{target}"))?,
    };
    let way = if uri.scheme().is_some() { Way::Proxy } else { Way::Host };
    Ok(Route::Service { service, target, authority: authority.clone(), way })
}

/// `CONNECT {service}:port`: to the port of an instance, whichever number the client has
/// for it. Of old clients no `Host` comes with it.
fn tunnel(uri: &Uri, headers: &HeaderMap) -> Result<Route> {
    let authority = match (uri.authority(), uri.scheme(), uri.path_and_query()) {
        (Some(authority), None, None) if authority.port_u16().is_some() => authority,
        _ => return Err(invalid("the target of CONNECT is {service}:{port}")),
    };
    let name = authority.host();
    if headers.contains_key(header::HOST) && !host(headers)?.host().eq_ignore_ascii_case(name) {
        return Err(invalid("the Host header is not the host of the target"));
    }
    if address(name).is_some() || name.eq_ignore_ascii_case("localhost") {
        return Err(Error::new(Kind::Misdirected, format!("no tunnel leads to {name}"))
            .hint("CONNECT leads to services: {service}:{port}"));
    }
    let service = parse(strip_suffix(name).unwrap_or(name))?;
    let target = PathAndQuery::from_static("/");
    Ok(Route::Service { service, target, authority: authority.clone(), way: Way::Proxy })
}

/// The one Host of a request.
fn host(headers: &HeaderMap) -> Result<Authority> {
    let mut values = headers.get_all(header::HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(invalid("a request needs exactly one Host header"));
    };
    Authority::try_from(value.as_bytes())
        .ok()
        .filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
        // "host:" and "host:99999" have a colon, and no port.
        .filter(|authority| {
            authority.port_u16().is_some() || authority.as_str() == authority.host()
        })
        .ok_or_else(|| invalid("the Host header is not a host and port"))
}

fn by_path(target: &str, authority: &Authority) -> Result<Route> {
    let after = target.strip_prefix('/').unwrap_or(target);
    let (service, rest) = after.split_at(after.find(['/', '?']).unwrap_or(after.len()));
    let service: ServiceName = service.parse().map_err(|error| {
        Error::from(error).hint("the path begins with the service: /{service}/{path}")
    })?;
    if !rest.starts_with('/') {
        let location = HeaderValue::try_from(format!("/{service}/{rest}"))
            .map_err(|_| invalid("the target is not visible ASCII"))?;
        return Ok(Route::Redirect(location));
    }
    let (target, authority) = (path(rest)?, authority.clone());
    Ok(Route::Service { service, target, authority, way: Way::Path })
}

/// Host names are the same in any case, service names are lower case.
fn parse(name: &str) -> Result<ServiceName> {
    Ok(name.to_ascii_lowercase().parse()?)
}

fn path(text: &str) -> Result<PathAndQuery> {
    text.parse().map_err(|error| invalid("the target is not a path and query").because(error))
}

fn strip_suffix(host: &str) -> Option<&str> {
    let at = host.len().checked_sub(SUFFIX.len())?;
    let (name, suffix) = (host.get(..at)?, host.get(at..)?);
    suffix.eq_ignore_ascii_case(SUFFIX).then_some(name)
}

fn is_own(host: &str, own: IpAddr) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || address(host).is_some_and(|ip| ip.is_loopback() || ip == own.to_canonical())
}

fn address(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

fn invalid(text: &str) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

#[cfg(test)]
mod tests;
