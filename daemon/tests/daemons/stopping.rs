//! What a stop does to requests that are open, at the front and at the ingress: those that
//! end in time are answered, and the exit code says whether any was cut.

use std::io::{Read as _, Write as _};

use rustix::process::Signal;

use crate::net::{Net, head, rest};

#[tokio::test]
async fn what_is_open_at_a_stop_is_answered_and_the_exit_code_is_0() {
    for front in [true, false] {
        let mut net = Net::start().await;
        let (client, mut application) = net.open().await;
        net.stopped(front).signal(Signal::TERM);
        net.stopped(front).says("stopping").await;
        application.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        if front {
            let said = rest(client);
            assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("ok"), "{said}");
            assert!(said.contains("connection: close"), "{said}");
        } else {
            let (mut client, mut said) = (client, [0; 12]);
            client.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"HTTP/1.1 200");
        }
        let process = net.stopped(front);
        let ended = process.ended().await.code();
        assert_eq!(ended, Some(0), "front: {front}: {}", process.err());
        net.end(front).await;
    }
}

#[tokio::test]
async fn what_is_cut_at_a_stop_is_seen_by_its_client_and_in_the_exit_code() {
    for front in [true, false] {
        let mut net = Net::start().await;
        let (client, application) = net.open().await;
        net.stopped(front).signal(Signal::TERM);
        let process = net.stopped(front);
        let ended = process.ended().await.code();
        assert_eq!(ended, Some(1), "front: {front}: {}", process.err());
        let said = if front { rest(client) } else { head(&mut { client }) };
        let expected = if front { "" } else { "HTTP/1.1 502" };
        assert!(said.starts_with(expected) && !said.contains(" 200 "), "front: {front}: {said}");
        drop(application);
        net.end(front).await;
    }
}
