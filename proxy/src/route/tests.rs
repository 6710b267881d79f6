//! Which service a request reaches, and what of its target the application sees.

use proptest::prelude::*;

use super::*;

fn routed(target: &str, host: &str) -> Result<Route> {
    let headers = [(header::HOST, HeaderValue::from_str(host).unwrap())].into_iter().collect();
    let uri = target.parse().map_err(|_| invalid("hyper would not take it"))?;
    route(&Method::GET, &uri, &headers, [192, 168, 0, 7].into())
}

fn to(target: &str, host: &str) -> (String, String) {
    match routed(target, host) {
        Ok(Route::Service { service, target, .. }) => (service.to_string(), target.to_string()),
        other => panic!("{target} for {host}: {other:?}"),
    }
}

fn refused(target: &str, host: &str) -> Kind {
    match routed(target, host) {
        Err(error) => error.kind(),
        Ok(route) => panic!("{target} for {host} went {route:?}"),
    }
}

fn service(name: &str, target: &str) -> (String, String) {
    (name.to_owned(), target.to_owned())
}

#[test]
fn the_three_ways_lead_to_the_same_service_and_target() {
    let same = service("svc", "/a/b?c=d");
    assert_eq!(to("/svc/a/b?c=d", "127.0.0.1:4201"), same);
    assert_eq!(to("/a/b?c=d", "svc.lca.localhost:4201"), same);
    assert_eq!(to("/a/b?c=d", "SVC.LCA.Localhost"), same);
    assert_eq!(to("http://svc/a/b?c=d", "svc"), same);
    assert_eq!(to("http://svc.lca.localhost/a/b?c=d", "svc.lca.localhost"), same);
    assert_eq!(to("http://127.0.0.1:4201/svc/a/b?c=d", "127.0.0.1:4201"), same);
    assert_eq!(to("http://svc", "svc"), service("svc", "/"));
    assert_eq!(to("http://svc?x", "svc"), service("svc", "/?x"));
}

#[test]
fn the_fronts_own_names_are_loopback_and_the_address_that_was_used() {
    for host in
        ["localhost", "LOCALHOST:1", "127.9.9.9", "[::1]:80", "192.168.0.7", "[::ffff:127.0.0.1]"]
    {
        assert_eq!(to("/svc/x", host), service("svc", "/x"), "{host}");
    }
    for host in
        ["evil.example", "192.168.0.8", "lca.localhost", "localhost.evil", "svc", "localhost."]
    {
        assert_eq!(refused("/svc/x", host), Kind::Misdirected, "{host}");
    }
    assert_eq!(refused("http://10.0.0.1/svc/x", "10.0.0.1"), Kind::Misdirected);
}

#[test]
fn the_target_passes_byte_for_byte() {
    for rest in
        ["/%41", "/a+b;c", "/?", "/x?", "/a//b/../c", "/%2F%00%ff", "/é", "/?a=/&b=?&&", "//x"]
    {
        assert_eq!(to(&format!("/svc{rest}"), "localhost"), service("svc", rest));
        assert_eq!(to(rest, "svc.lca.localhost"), service("svc", rest));
    }
}

#[test]
fn a_missing_slash_is_added_and_the_query_kept() {
    for (target, location) in [("/svc", "/svc/"), ("/svc?x=1", "/svc/?x=1"), ("/svc?", "/svc/?")] {
        let redirect = Route::Redirect(HeaderValue::from_static(location));
        assert_eq!(routed(target, "localhost").unwrap(), redirect, "{target}");
    }
}

#[test]
fn what_names_no_service_is_the_clients_mistake() {
    let long = format!("/{}/", "a".repeat(64));
    for target in [
        "/",
        "//svc",
        "/../x/",
        "/%2e%2e/",
        "/svc%2Fadmin",
        "/%00",
        "/SVC/x",
        "/a..b/",
        "/?x",
        "/%c0%ae/",
        "/127.0.0.1/x",
        "/localhost/",
        "*",
        "svc/x",
        &long,
    ] {
        assert_eq!(refused(target, "localhost"), Kind::InvalidArgument, "{target}");
    }
    assert_eq!(refused("/x", "a_b.lca.localhost"), Kind::InvalidArgument);
    assert_eq!(refused("https://svc/x", "svc"), Kind::InvalidArgument);
    assert_eq!(refused("http://user@svc/x", "svc"), Kind::InvalidArgument);
}

#[test]
fn exactly_one_sound_host_is_needed() {
    for host in
        ["", ":80", "a b", "user@localhost", "localhost:x", "localhost:", "localhost:99999", "a/b"]
    {
        assert_eq!(refused("/svc/x", host), Kind::InvalidArgument, "{host:?}");
    }
    assert_eq!(refused("http://svc/x", "other"), Kind::InvalidArgument);
    let uri = "/svc/x".parse().unwrap();
    let mut headers = HeaderMap::new();
    for _ in 0..3 {
        let routed = route(&Method::GET, &uri, &headers, [127, 0, 0, 1].into());
        assert_eq!(routed.is_ok(), headers.len() == 1);
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
    }
}

#[test]
fn echoes_are_not_served() {
    let uri = "/svc/".parse().unwrap();
    let error = route(&Method::TRACE, &uri, &HeaderMap::new(), [127, 0, 0, 1].into()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed);
}

#[test]
fn tunnels_lead_to_services_and_nowhere_else() {
    let connect = |target: &str, host: &str| {
        let mut headers = HeaderMap::new();
        if !host.is_empty() {
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        let uri = target.parse().unwrap();
        route(&Method::CONNECT, &uri, &headers, [127, 0, 0, 1].into())
    };
    for (target, host) in [
        ("svc:80", "svc:80"),
        ("svc:80", ""),
        ("SVC:443", "svc"),
        ("svc.lca.localhost:8080", "svc.lca.localhost:8080"),
    ] {
        let Ok(Route::Service { service, target: seen, .. }) = connect(target, host) else {
            panic!("{target} is routed");
        };
        assert_eq!((service.as_str(), seen.as_str()), ("svc", "/"));
    }
    for (target, host, kind) in [
        ("127.0.0.1:22", "", Kind::Misdirected),
        ("[::1]:22", "", Kind::Misdirected),
        ("localhost:22", "", Kind::Misdirected),
        ("svc:80", "other:80", Kind::InvalidArgument),
        ("svc", "", Kind::InvalidArgument),
        ("svc_x:80", "", Kind::InvalidArgument),
        ("http://svc:80/", "", Kind::InvalidArgument),
        ("/svc", "", Kind::InvalidArgument),
    ] {
        assert_eq!(connect(target, host).unwrap_err().kind(), kind, "{target}");
    }
}

proptest! {
    #[test]
    fn no_target_and_no_host_make_it_panic(target in "\\PC{0,40}", host in "[ -~]{0,40}") {
        let _ = routed(&target, &host);
        let _ = routed(&format!("/{target}"), "localhost");
    }

    #[test]
    fn whatever_is_routed_by_path_is_the_target_cut_in_two(
        name in "[a-z0-9.-]{1,10}", rest in "/[!-~]{0,30}",
    ) {
        let target = format!("/{name}{rest}");
        if let Ok(Route::Service { service, target: seen, .. }) = routed(&target, "localhost") {
            // '#' ends a target: it never belongs on the wire.
            let kept = rest.split('#').next().unwrap();
            prop_assert_eq!(service.as_str(), name);
            prop_assert_eq!(seen.as_str(), kept);
        }
    }
}
