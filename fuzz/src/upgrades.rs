//! Who asks to leave HTTP, and how that is asked for on the next connection.

use http::{HeaderMap, HeaderValue, header};
use lca_node::h1::hygiene;

use crate::{Outcome, lines_of};

/// Reads lines as headers of a request. Taken is one that asks for another protocol.
///
/// # Panics
/// If what is passed on was not asked for in so many words, is another HTTP or TLS, or would
/// be read differently by the next proxy.
pub fn upgrades(input: &[u8]) -> Outcome {
    let mut headers = lines_of(input);
    let Some(protocol) = hygiene::upgrade(&headers) else {
        return Outcome::Refused;
    };
    let lines: Vec<_> = headers.get_all(header::UPGRADE).iter().cloned().collect();
    assert_eq!(lines, std::slice::from_ref(&protocol), "not the one that was asked for");
    let name = protocol.to_str().expect("text").to_ascii_lowercase();
    assert!(!name.is_empty() && !name.contains(','), "{name}: which?");
    for other in ["h2", "http", "tls"] {
        assert!(!name.starts_with(other), "{name} is what each connection chooses by itself");
    }
    let listed = headers.get_all(header::CONNECTION).iter().any(|line| {
        let text = String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase();
        text.split(',').any(|word| word.trim() == "upgrade")
    });
    assert!(listed, "the header was not meant for this connection");

    // What goes on, is this and no more, and is understood in the same way.
    hygiene::strip_hop_by_hop(&mut headers);
    assert!(!headers.contains_key(header::UPGRADE), "it stays on its connection");
    hygiene::insert_upgrade(&mut headers, protocol.clone());
    let all = |name, headers: &HeaderMap| -> Vec<HeaderValue> {
        headers.get_all(name).iter().cloned().collect()
    };
    assert_eq!(all(header::UPGRADE, &headers), std::slice::from_ref(&protocol));
    assert_eq!(all(header::CONNECTION, &headers), [HeaderValue::from_static("upgrade")]);
    assert_eq!(hygiene::upgrade(&headers), Some(protocol), "the next one reads it differently");
    Outcome::Taken
}
