//! What each id takes, refuses and prints.

use proptest::{prelude::*, strategy::ValueTree as _};

use super::*;

#[test]
fn a_peer_id_reads_what_libp2p_prints() {
    // An id from the libp2p peer-id specification's Ed25519 form.
    let text = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    let peer: PeerId = text.parse().unwrap();
    assert_eq!(peer.to_string(), text);
    assert_eq!(PeerId::from_bytes(&peer.to_bytes()), Ok(peer));
}

#[test]
fn an_rsa_peer_id_is_refused() {
    let rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
    assert!(rsa.parse::<PeerId>().unwrap_err().to_string().contains("Ed25519"));
}

#[test]
fn names_that_are_no_services_are_refused_with_a_reason() {
    let long = "a".repeat(64);
    for name in [
        "",
        "-a",
        "a-",
        ".a",
        "a..b",
        "A",
        "a_b",
        "a/b",
        "é",
        "localhost",
        "127.0.0.1",
        "../x",
        &long,
    ] {
        assert!(name.parse::<ServiceName>().is_err(), "{name:?} was taken");
    }
    for name in ["a", "0", "hello-world-server", "a.b", "a--b", &long[..63]] {
        assert!(name.parse::<ServiceName>().is_ok(), "{name:?} was refused");
    }
}

#[test]
fn an_instance_is_matched_by_any_prefix_of_it() {
    let id = InstanceId::random();
    let prefix: InstancePrefix = id.to_string()[..5].parse().unwrap();
    assert!(prefix.matches(id));
    assert!("xyz".parse::<InstancePrefix>().is_err());
}

/// What each type that can read `text` prints.
fn readings(text: &str) -> [Option<String>; 7] {
    fn reading<T: FromStr + fmt::Display>(text: &str) -> Option<String> {
        text.parse::<T>().ok().map(|value| value.to_string())
    }
    [
        reading::<ServiceName>(text),
        reading::<RequestId>(text),
        reading::<PeerId>(text),
        reading::<Digest>(text),
        reading::<ServiceHash>(text),
        reading::<InstanceId>(text),
        reading::<InstancePrefix>(text),
    ]
}

/// Texts that some type takes, or that are one character from it.
fn near_an_id() -> impl Strategy<Value = String> {
    let peer = any::<[u8; 32]>().prop_map(|key| PeerId::from_public_key(key).to_string());
    let fits = prop_oneof![
        "[a-z0-9]{1,8}([.-][a-z0-9]{1,8}){0,3}",
        "[a-f0-9]{1,32}",
        "[a-f0-9]{32}",
        "[a-f0-9]{64}",
        "sha256:[a-f0-9]{64}",
        "12D3KooW[1-9A-HJ-NP-Za-km-z]{44}",
        "[!-~]{1,128}",
        peer,
    ];
    let changed = (fits.clone(), any::<prop::sample::Index>(), any::<char>(), 0..4).prop_map(
        |(text, at, other, how)| {
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len());
            match how {
                0 => drop(chars.remove(at)),
                1 => chars.insert(at, other),
                2 => chars[at] = other,
                // The same digit, and another text.
                _ => chars[at] = chars[at].to_ascii_uppercase(),
            }
            chars.into_iter().collect()
        },
    );
    prop_oneof![fits, changed]
}

#[test]
fn what_is_drawn_near_the_ids_is_read_by_each_of_them() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut read = [0; 7];
    for _ in 0..500 {
        let text = near_an_id().new_tree(&mut runner).unwrap().current();
        for (count, reading) in read.iter_mut().zip(readings(&text)) {
            *count += u32::from(reading.is_some());
        }
    }
    assert!(read.iter().all(|count| *count >= 5), "{read:?}");
}

proptest! {
    #[test]
    fn whatever_parses_prints_the_same(text in near_an_id()) {
        for printed in readings(&text).into_iter().flatten() {
            prop_assert_eq!(printed, text.clone());
        }
    }

    #[test]
    fn every_key_has_a_peer_id_that_parses(key: [u8; 32]) {
        let peer = PeerId::from_public_key(key);
        prop_assert_eq!(peer.to_string().parse::<PeerId>(), Ok(peer));
    }

    #[test]
    fn every_digest_and_hash_round_trips(bytes: [u8; 32]) {
        let digest = Digest::from_sha256(bytes);
        prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        let hash = ServiceHash::from_sha256(bytes);
        prop_assert_eq!(hash.to_string().parse::<ServiceHash>(), Ok(hash));
    }
}

#[test]
fn what_is_sent_in_a_header_is_the_text() {
    let (hash, instance) = (ServiceHash::from_sha256([0xa7; 32]), InstanceId::random());
    let request = RequestId::random();
    assert_eq!(hash.to_header(), hash.to_string());
    assert_eq!(instance.to_header(), instance.to_string());
    assert_eq!(request.to_header(), request.as_str());
}
