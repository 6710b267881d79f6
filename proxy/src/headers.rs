//! The headers between client, front and application: what must not pass is taken
//! out, who the client is said by us alone, and a request that comes round is seen.

use std::{net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header, uri::Authority};
use lca::{Error, Kind, PeerId, Requirements, Result, ServiceName, headers::PREFIX};
use lca_node::h1::hygiene;

const SOFT_RTT: HeaderName = HeaderName::from_static("lca-soft-rtt");
const HARD_RTT: HeaderName = HeaderName::from_static("lca-hard-rtt");
const TIMEOUT: HeaderName = HeaderName::from_static("lca-timeout");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What an RTT header can say, beyond which it is a mistake.
const LONGEST_RTT: Duration = Duration::from_secs(60);

/// What the header with a request's time can say, beyond which it is a mistake.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What a client demands of the distance, on top of what holds anyway.
///
/// # Errors
/// `InvalidArgument` naming the header.
pub fn tightening(headers: &HeaderMap) -> Result<Requirements> {
    let read = |name: HeaderName| {
        let Some(value) = headers.get(&name) else { return Ok(None) };
        let rtt = value.to_str().ok().and_then(|text| duration(text, LONGEST_RTT));
        rtt.map(Some).ok_or_else(|| {
            Error::new(Kind::InvalidArgument, format!("{name} must be like 50ms, at most 60s"))
        })
    };
    Ok(Requirements { soft: read(SOFT_RTT)?, hard: read(HARD_RTT)? })
}

/// How long a client waits for all of its answer, if it says so. It can only shorten what
/// holds anyway.
///
/// # Errors
/// `InvalidArgument` naming the header.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let mut values = headers.get_all(&TIMEOUT).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let time = value.to_str().ok().and_then(|text| duration(text, LONGEST_TIMEOUT));
    match time {
        Some(time) if values.next().is_none() => Ok(Some(time)),
        _ => Err(Error::new(
            Kind::InvalidArgument,
            format!("{TIMEOUT} must be one time like 250ms or 5s, at most 86400s"),
        )),
    }
}

/// `50ms`, `1s`, `800us`.
fn duration(text: &str, longest: Duration) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(unit);
    let number: u64 = digits.parse().ok()?;
    let duration = match unit {
        "us" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return None,
    };
    (!duration.is_zero() && duration <= longest).then_some(duration)
}

/// Whether a client expects no more than to be asked for its body.
///
/// # Errors
/// `Unexpected` naming what else it expects.
pub fn expectation(headers: &HeaderMap) -> Result<()> {
    let known = |value: &&HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    match headers.get_all(header::EXPECT).iter().find(|value| !known(value)) {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Unexpected, "only `Expect: 100-continue` can be met")),
    }
}

/// What a front calls itself in `Via`: `1.1 lca-<short PeerId> (<service>)`.
#[derive(Clone, Debug)]
pub struct Via(String);

impl Via {
    /// The front of this node.
    pub fn new(peer: PeerId) -> Self {
        Self(format!("lca-{}", peer.short()))
    }

    /// Adds this hop, on one line with those before it: applications that pass `Via`
    /// on often pass on only one.
    ///
    /// # Errors
    /// `Loop` if the request went through this front to this service before.
    fn add(&self, headers: &mut HeaderMap, service: &ServiceName) -> Result<()> {
        let hop = format!("{} ({service})", self.0);
        let mut line = String::new();
        for value in headers.get_all(header::VIA) {
            // Not text: somebody else's, and not worth passing on.
            let Ok(text) = value.to_str() else { continue };
            // After the protocol's version comes who received it.
            let received = |entry: &str| {
                let entry = entry.trim();
                entry.split_once(' ').is_some_and(|(_, by)| by.trim_start() == hop)
            };
            if text.split(',').any(received) {
                return Err(Error::new(
                    Kind::Loop,
                    format!("the request for {service} came back to the front it went through"),
                )
                .hint("an instance of it calls itself, or a proxy in front of it does"));
            }
            line.push_str(text);
            line.push_str(", ");
        }
        line.push_str("1.1 ");
        line.push_str(&hop);
        headers.insert(header::VIA, value(line));
        Ok(())
    }
}

/// Makes a client's headers those that go to ingress, but for the ones that name the
/// instance. `Host` becomes the service's name whichever way the request was routed;
/// what the client used is in `Forwarded` and `X-Forwarded-Host`.
///
/// # Errors
/// `InvalidArgument` if the body's end is not clear; `Loop`.
pub fn for_ingress(
    headers: &mut HeaderMap,
    client: IpAddr,
    authority: &Authority,
    service: &ServiceName,
    via: &Via,
) -> Result<()> {
    if !hygiene::is_framed_clearly(headers) {
        return Err(Error::new(
            Kind::InvalidArgument,
            "only `Transfer-Encoding: chunked` is taken",
        ));
    }
    via.add(headers, service)?;
    hygiene::strip_hop_by_hop(headers);
    hygiene::strip_prefix(headers, PREFIX);
    hygiene::strip_prefix(headers, "x-forwarded-");
    headers.remove(REAL_IP);
    // Each of our servers answers it by itself, once somebody reads the body.
    headers.remove(header::EXPECT);
    let client = client.to_canonical();
    let node = match client {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let forwarded = format!("for={node};host=\"{authority}\";proto=http");
    headers.insert(header::FORWARDED, value(forwarded));
    headers.insert(FORWARDED_FOR, value(client.to_string()));
    headers.insert(FORWARDED_HOST, value(authority.to_string()));
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(header::HOST, value(service.to_string()));
    Ok(())
}

/// Makes an answer's headers those that the client gets.
pub fn for_client(headers: &mut HeaderMap) {
    hygiene::strip_hop_by_hop(headers);
    hygiene::strip_prefix(headers, PREFIX);
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("names, addresses and received headers are header values")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn sent(lines: &[(&'static str, &'static str)]) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let authority = Authority::from_static("svc.lca.localhost:4201");
        for_ingress(&mut headers, CLIENT, &authority, &"svc".parse().unwrap(), &via())?;
        Ok(headers)
    }

    fn via() -> Via {
        Via("lca-abcdefgh".to_owned())
    }

    #[test]
    fn who_the_client_is_comes_from_us_alone() {
        let headers = sent(&[
            ("host", "svc.lca.localhost:4201"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-port", "666"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("lca-instance", "mine"),
            ("lca-anything", "x"),
        ])
        .unwrap();
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "forwarded: for=127.0.0.1;host=\"svc.lca.localhost:4201\";proto=http",
                "host: svc",
                "via: 1.1 lca-abcdefgh (svc)",
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-host: svc.lca.localhost:4201",
                "x-forwarded-proto: http",
            ]
        );
    }

    #[test]
    fn a_request_that_comes_round_is_a_loop_and_one_that_passes_on_is_not() {
        let joined = "1.0 fred, 1.1 lca-abcdefgh (other), 1.1 lca-hgfedcba (svc)";
        let headers = sent(&[("via", joined), ("via", "1.1 b")]).unwrap();
        let line = format!("{joined}, 1.1 b, 1.1 lca-abcdefgh (svc)");
        assert_eq!(headers["via"], line.as_str());
        assert_eq!(headers.get_all("via").iter().count(), 1);
        for via in ["1.1 lca-abcdefgh (svc)", "1.0 x,  HTTP/1.1  lca-abcdefgh (svc) , 1.1 y"] {
            assert_eq!(sent(&[("via", via)]).unwrap_err().kind(), Kind::Loop, "{via}");
            assert_eq!(sent(&[("via", "1.1 a"), ("via", via)]).unwrap_err().kind(), Kind::Loop);
        }
    }

    #[test]
    fn a_client_cannot_list_away_what_we_say() {
        let headers = sent(&[("connection", "host, via, x-forwarded-for, close")]).unwrap();
        assert!(["host", "via", "x-forwarded-for"].iter().all(|name| headers.contains_key(*name)));
        assert!(!headers.contains_key("connection"));
    }

    #[test]
    fn codings_other_than_chunked_are_refused() {
        let refused = sent(&[("transfer-encoding", "gzip, chunked")]).unwrap_err();
        assert_eq!(refused.kind(), Kind::InvalidArgument);
    }

    #[test]
    fn distances_are_numbers_with_a_unit() {
        let read = |text: &'static str| {
            let headers = [(SOFT_RTT, HeaderValue::from_static(text))].into_iter().collect();
            tightening(&headers).map(|requirements| requirements.soft)
        };
        assert_eq!(read("50ms").unwrap(), Some(Duration::from_millis(50)));
        assert_eq!(read("1s").unwrap(), Some(Duration::from_secs(1)));
        assert_eq!(read("800us").unwrap(), Some(Duration::from_micros(800)));
        for text in ["", "50", "-5ms", "0ms", "1e3ms", "ms", "61s", "5 ms", "99999999999999999999s"]
        {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert_eq!(tightening(&HeaderMap::new()).unwrap(), Requirements::default());
    }

    #[test]
    fn a_time_is_one_number_with_a_unit() {
        let read = |texts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for text in texts {
                headers.append(TIMEOUT, HeaderValue::from_static(text));
            }
            timeout(&headers)
        };
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&["250ms"]).unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(read(&["86400s"]).unwrap(), Some(LONGEST_TIMEOUT));
        for texts in [&["5"][..], &["0ms"], &["86401s"], &["-1s"], &["1s, 2s"], &["1s", "1s"]] {
            let said = read(texts).unwrap_err();
            assert_eq!(said.kind(), Kind::InvalidArgument, "{texts:?}");
            assert!(said.public().contains("lca-timeout must be"), "{said}");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_what_its_number_says_up_to_a_day(
            number in proptest::prop_oneof![0u64..100_000, 86_399_999..86_400_002u64, any::<u64>()],
            (unit, micros) in proptest::sample::select(vec![("us", 1u128), ("ms", 1_000), ("s", 1_000_000)]),
        ) {
            let text = HeaderValue::try_from(format!("{number}{unit}")).unwrap();
            let said = timeout(&[(TIMEOUT, text)].into_iter().collect());
            let time = u128::from(number) * micros;
            if (1..=86_400_000_000).contains(&time) {
                prop_assert_eq!(said.unwrap().map(|time| time.as_micros()), Some(time));
            } else {
                prop_assert_eq!(said.unwrap_err().kind(), Kind::InvalidArgument);
            }
        }

        #[test]
        fn no_via_makes_it_panic(text in "[\\t -~]{0,60}") {
            let mut headers = HeaderMap::new();
            headers.append(header::VIA, HeaderValue::try_from(text).unwrap());
            let _ = via().add(&mut headers, &"svc".parse().unwrap());
        }
    }
}
