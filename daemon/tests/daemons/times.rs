//! Times of a configuration file, seen at a running daemon.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::net::{Net, SOON, head, rest};

/// Far shorter than what holds if nothing is said, and long enough to get a request through.
const SHORT: Duration = Duration::from_millis(1500);

fn saying(key: &str) -> String {
    format!(r#"{{"Timeouts": {{"{key}": {}}}}}"#, SHORT.as_millis())
}

#[tokio::test]
async fn the_times_of_a_front_are_those_of_its_file() {
    for (key, status) in [("Answer", "504"), ("Request", "504"), ("Quiet", "200")] {
        let net = Net::configured(&saying(key), "{}").await;
        let (mut client, mut application) = net.open().await;
        if key == "Quiet" {
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
            application.write_all(begun).unwrap();
        }
        let asked = Instant::now();
        let said = head(&mut client);
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{key}: {said}");
        if key == "Quiet" {
            assert_eq!(rest(client), "half", "it breaks off");
        }
        assert!(asked.elapsed() < SOON, "{key}: {:?}", asked.elapsed());
        drop(application);
    }
}

#[tokio::test]
async fn the_time_for_a_head_is_that_of_the_file() {
    let net = Net::configured(&saying("Header"), "{}").await;
    let mut client = TcpStream::connect(net.front_address()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let begun = Instant::now();
    client.write_all(b"GET /svc/x HTTP/1.1\r\nHost: loc").unwrap();
    let mut said = Vec::new();
    client.read_to_end(&mut said).unwrap();
    let took = begun.elapsed();
    assert!(took >= SHORT, "{took:?}");
    assert!(took < Duration::from_secs(9), "{took:?}: without the file it is ten seconds");
}

#[tokio::test]
async fn an_ingress_keeps_its_own_times() {
    let net = Net::configured("{}", &saying("Answer")).await;
    let (mut client, application) = net.open().await;
    let asked = Instant::now();
    let said = head(&mut client);
    assert!(said.starts_with("HTTP/1.1 504 "), "{said}");
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    drop(application);
}
