//! What the store keeps when many announce, lie, or go silent.

use std::collections::HashSet;

use lca::PeerId;
use proptest::prelude::*;

use super::*;
use crate::{
    identity::{Identity, to_libp2p},
    record::tests::endpoint_of,
};

const LIFE: Duration = Duration::from_secs(45);

fn peer(number: u8) -> Libp2pId {
    to_libp2p(PeerId::from_public_key([number; 32]))
}

fn key(number: u8) -> Key {
    Key::from(vec![number])
}

fn small() -> Store {
    let limits =
        Limits { providers: 12, per_key: 4, per_publisher: 3, values: 3, ..Limits::default() };
    Store::new(peer(0), limits)
}

fn who(store: &Store, number: u8) -> HashSet<Libp2pId> {
    store.providers(&key(number)).into_iter().map(|record| record.provider).collect()
}

fn value(identity: &Identity, sequence: u64) -> Record {
    let bytes = record::sign(identity, &endpoint_of(identity.peer_id(), sequence)).unwrap();
    Record::new(identity.peer_id().to_bytes().to_vec(), bytes)
}

#[test]
fn the_oldest_of_a_key_makes_room() {
    let (mut store, now) = (small(), Instant::now());
    for publisher in 1..=5 {
        store.announce(key(1), peer(publisher), vec![], now + LIFE);
    }
    assert_eq!(who(&store, 1), (2..=5).map(peer).collect());
}

#[test]
fn a_renewed_announcement_is_not_the_oldest() {
    let (mut store, now) = (small(), Instant::now());
    for publisher in [1, 2, 3, 4, 1, 5] {
        store.announce(key(1), peer(publisher), vec![], now + LIFE);
    }
    assert!(who(&store, 1).contains(&peer(1)) && !who(&store, 1).contains(&peer(2)));
}

#[test]
fn one_publisher_fills_only_its_own_share() {
    let mut store = Store::new(peer(0), Limits::default());
    let now = Instant::now();
    store.announce(key(7), peer(1), vec![], now + LIFE);
    for number in 0..10_000_u32 {
        let key = Key::from(number.to_be_bytes().to_vec());
        store.announce(key, peer(2), vec![], now + LIFE);
    }
    assert_eq!(store.len().0, 1 + Limits::default().per_publisher);
    assert_eq!(who(&store, 7), HashSet::from([peer(1)]));
}

#[test]
fn what_has_expired_is_swept_and_what_is_own_stays() {
    let (mut store, now) = (small(), Instant::now());
    store.add_provider(ProviderRecord::new(key(1), peer(0), vec![])).unwrap();
    store.announce(key(1), peer(1), vec![], now + LIFE);
    store.announce(key(1), peer(2), vec![], now + LIFE * 2);
    let identity = Identity::ephemeral();
    store.keep(value(&identity, 1), now).unwrap();
    store.sweep(now + LIFE);
    assert_eq!(who(&store, 1), HashSet::from([peer(0), peer(2)]));
    assert_eq!(store.len(), (1, 1));
    store.sweep(now + Duration::from_secs(601));
    assert_eq!(store.len(), (0, 0));
    assert_eq!(store.provided().count(), 1);
    store.remove_provider(&key(1), &peer(0));
    assert_eq!(store.provided().count(), 0);
}

#[test]
fn answers_differ_so_that_all_of_many_are_heard_of() {
    let mut store = Store::new(peer(0), Limits::default());
    let now = Instant::now();
    for publisher in 1..=60 {
        store.announce(key(1), peer(publisher), vec![], now + LIFE);
    }
    let mut seen = HashSet::new();
    for _ in 0..200 {
        seen.extend(store.providers(&key(1)).into_iter().take(20).map(|record| record.provider));
    }
    assert_eq!(seen.len(), 60);
}

#[test]
fn only_addresses_that_can_be_dialled_are_kept_and_few() {
    let (mut store, now) = (small(), Instant::now());
    let mut addresses: Vec<Multiaddr> = vec!["/dns4/example.org/tcp/1".parse().unwrap()];
    addresses.extend((1..100).map(|port| format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()));
    store.announce(key(1), peer(1), addresses, now + LIFE);
    let kept = &store.providers(&key(1))[0].addresses;
    assert_eq!(kept.len(), MAX_ADDRESSES);
    assert!(kept.iter().all(addresses::can_be_dialled));
}

#[test]
fn a_value_must_be_the_latest_word_of_the_peer_it_is_filed_under() {
    let (mut store, now) = (small(), Instant::now());
    let (honest, liar) = (Identity::ephemeral(), Identity::ephemeral());
    store.keep(value(&honest, 5), now).unwrap();
    assert_eq!(store.keep(value(&honest, 4), now).unwrap_err().kind(), Kind::Conflict);
    let misfiled = Record { key: value(&honest, 1).key, ..value(&liar, 9) };
    assert_eq!(store.keep(misfiled, now).unwrap_err().kind(), Kind::InvalidArgument);
    let no_peer = Record::new(b"/pk/key".to_vec(), value(&liar, 9).value);
    assert!(store.keep(no_peer, now).is_err());
    store.keep(value(&honest, 6), now).unwrap();
    let kept = store.get(&value(&honest, 6).key).unwrap().into_owned();
    assert_eq!(record::verify(honest.peer_id(), &kept.value).unwrap().sequence, 6);
}

#[test]
fn repeating_a_value_does_not_lengthen_its_life() {
    let (mut store, now) = (small(), Instant::now());
    let identity = Identity::ephemeral();
    store.keep(value(&identity, 1), now).unwrap();
    store.keep(value(&identity, 1), now + Duration::from_secs(500)).unwrap();
    store.sweep(now + Duration::from_secs(600));
    assert_eq!(store.len().1, 0);
}

#[test]
fn a_value_lives_no_longer_than_it_says_or_we_allow() {
    let (mut store, now) = (small(), Instant::now());
    let identity = Identity::ephemeral();
    let forever = Record { expires: None, ..value(&identity, 1) };
    store.keep(forever, now).unwrap();
    assert_eq!(
        store.get(&value(&identity, 1).key).unwrap().expires,
        Some(now + Duration::from_secs(600))
    );
}

#[test]
fn a_value_that_is_over_is_refused_and_one_that_nearly_is_not_handed_out() {
    let (mut store, now) = (small(), Instant::now());
    let until = |identity, expires| Record { expires: Some(expires), ..value(identity, 1) };
    let (over, nearly, alive) =
        (Identity::ephemeral(), Identity::ephemeral(), Identity::ephemeral());
    assert_eq!(store.keep(until(&over, now), now).unwrap_err().kind(), Kind::InvalidArgument);
    store.keep(until(&nearly, now + Duration::from_millis(900)), now).unwrap();
    store.keep(until(&alive, now + Duration::from_secs(60)), now).unwrap();
    // libp2p would write 0 s, which reads as "for ever".
    assert!(store.get(&value(&nearly, 1).key).is_none());
    assert!(store.get(&value(&alive, 1).key).is_some());
}

#[derive(Clone, Debug)]
enum Step {
    Announce(u8, u8),
    Withdraw(u8, u8),
    Sweep(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..8, 1_u8..8).prop_map(|(key, peer)| Step::Announce(key, peer)),
        1 => (0_u8..8, 1_u8..8).prop_map(|(key, peer)| Step::Withdraw(key, peer)),
        1 => (0_u64..60).prop_map(Step::Sweep),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_the_bounds_hold_and_the_lists_agree(steps in proptest::collection::vec(step(), 0..200)) {
        let (mut store, start) = (small(), Instant::now());
        let mut now = start;
        for step in steps {
            match step {
                Step::Announce(k, p) => {
                    store.announce(key(k), peer(p), vec![], now + LIFE);
                    prop_assert!(who(&store, k).contains(&peer(p)), "the newest is always kept");
                }
                Step::Withdraw(k, p) => store.remove_provider(&key(k), &peer(p)),
                Step::Sweep(later) => {
                    now += Duration::from_secs(later);
                    store.sweep(now);
                    prop_assert!(store.providers.values().flat_map(HashMap::values).all(|p| p.expires > now));
                }
            }
            let all: usize = store.providers.values().map(HashMap::len).sum();
            let shares: usize = store.by_publisher.values().map(BTreeMap::len).sum();
            prop_assert_eq!((all, all), (store.by_age.len(), shares));
            prop_assert!(all <= store.limits.providers);
            prop_assert!(store.providers.values().all(|of_key| (1..=store.limits.per_key).contains(&of_key.len())));
            prop_assert!(store.by_publisher.values().all(|s| (1..=store.limits.per_publisher).contains(&s.len())));
        }
    }
}

#[test]
fn values_are_bounded_and_the_oldest_make_room() {
    let (mut store, now) = (small(), Instant::now());
    let identities: Vec<_> = (0..5).map(|_| Identity::ephemeral()).collect();
    for sequence in 1..=2 {
        for identity in &identities {
            store.keep(value(identity, sequence), now).unwrap();
            assert!(store.values.len() <= store.limits.values);
            assert_eq!(store.values.len(), store.values_by_age.len());
        }
    }
    let kept = |identity| store.get(&value(identity, 0).key).is_some();
    assert_eq!(identities.iter().map(kept).collect::<Vec<_>>(), [false, false, true, true, true]);
}
