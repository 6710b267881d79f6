//! The claims of one holder, by hand and by chance.

use super::*;

const SERVICE: ServiceHash = ServiceHash::from_sha256([1; 32]);
const TTL: Duration = Duration::from_secs(10);

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn claimant(n: u8) -> Claimant {
    Claimant { peer: Some(peer(n)), request: format!("r{n}").parse().unwrap() }
}

/// All of them were asked, and this is what runs.
fn survey(begun: Instant, running: &[(u8, InstanceId, Option<u8>)]) -> Survey {
    let ran = |n| {
        let its = running.iter().filter(|(at, ..)| *at == n);
        let its = its.map(|(_, id, by)| Running { instance: *id, claimant: by.map(claimant) });
        Said::Runs(its.collect())
    };
    let said = (100..105).map(|n| (peer(n), ran(n))).collect();
    Survey { begun, everywhere: true, said }
}

fn looked(now: Instant) -> Claims {
    let mut claims = Claims::default();
    claims.surveyed(SERVICE, &survey(now, &[]));
    claims
}

fn claim(claims: &mut Claims, by: u8, limit: u32, now: Instant) -> Answer {
    claims.claim(SERVICE, &claimant(by), 0, limit, TTL, now).unwrap()
}

fn taken(instances: &[(InstanceId, u8)], claims: u32) -> Answer {
    let instances = instances.iter().map(|(id, at)| (*id, peer(*at))).collect();
    Answer::Taken { instances, claims }
}

#[test]
fn one_claim_is_granted_and_the_next_waits_until_it_is_given_back() {
    let now = Instant::now();
    let mut claims = looked(now);
    assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
    assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted, "the same one, longer");
    assert_eq!(claim(&mut claims, 2, 1, now), taken(&[], 1));
    assert_eq!(claim(&mut claims, 2, 2, now), Answer::Granted, "where there may be two");
    claims.give_back(SERVICE, &claimant(1), 0, now);
    assert_eq!(claim(&mut claims, 3, 2, now), Answer::Granted);
}

#[test]
fn a_claim_becomes_its_instance_and_ends_with_it() {
    let now = Instant::now();
    let mut claims = looked(now);
    let instance = InstanceId::random();
    assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
    claims.bind(SERVICE, &claimant(1), 0, (instance, peer(100)), now);
    assert_eq!(claim(&mut claims, 2, 1, now), taken(&[(instance, 100)], 0));
    // Before somebody is refused for what was seen a while ago, it is looked at.
    let later = now + SEEN;
    assert_eq!(claim(&mut claims, 2, 1, later), Answer::LookAt(vec![peer(100)]));
    let look =
        |said| Survey { begun: later, everywhere: false, said: HashMap::from([(peer(100), said)]) };
    claims.surveyed(SERVICE, &look(Said::Runs(vec![Running { instance, claimant: None }])));
    assert_eq!(claim(&mut claims, 2, 1, later), taken(&[(instance, 100)], 0));
    claims.surveyed(SERVICE, &Survey { begun: later + SEEN, ..look(Said::Gone) });
    assert_eq!(claim(&mut claims, 2, 1, later + SEEN), Answer::Granted);
}

#[test]
fn what_a_slow_peer_ran_stays_counted_until_it_is_known_to_be_gone() {
    let now = Instant::now();
    let looked_at =
        |begun, said| Survey { begun, everywhere: true, said: HashMap::from([(peer(100), said)]) };
    let bound = |instance| {
        let mut claims = looked(now);
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
        claims.bind(SERVICE, &claimant(1), 0, (instance, peer(100)), now);
        claims
    };
    let instance = InstanceId::random();
    let mut claims = bound(instance);
    let later = now + SURVEYED;
    claims.surveyed(SERVICE, &looked_at(later, Said::Slow));
    assert_eq!(claim(&mut claims, 2, 1, later), taken(&[(instance, 100)], 1));
    assert_eq!(claims.undecided(SERVICE), taken(&[(instance, 100)], 1), "come again");
    claims.surveyed(SERVICE, &looked_at(later + SEEN, Said::Gone));
    assert_eq!(claim(&mut claims, 2, 1, later + SEEN), Answer::Granted);

    // Slow for ever is not slow; an answer in between is.
    let mut claims = bound(instance);
    claims.surveyed(SERVICE, &looked_at(later, Said::Slow));
    let running = vec![Running { instance, claimant: None }];
    claims.surveyed(SERVICE, &looked_at(later + SLOW / 2, Said::Runs(running)));
    claims.surveyed(SERVICE, &looked_at(later + SLOW, Said::Slow));
    let last = later + SLOW;
    assert_eq!(claim(&mut claims, 2, 1, last), taken(&[(instance, 100)], 1));
    claims.surveyed(SERVICE, &looked_at(last + SLOW, Said::Slow));
    assert_eq!(claim(&mut claims, 2, 1, last + SLOW), Answer::Granted);
}

#[test]
fn a_claimant_that_dies_blocks_for_its_time_and_what_it_started_is_found() {
    let now = Instant::now();
    let mut claims = looked(now);
    assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
    let later = now + TTL;
    assert_eq!(claim(&mut claims, 2, 1, later), Answer::LookEverywhere);
    let instance = InstanceId::random();
    claims.surveyed(SERVICE, &survey(later, &[(101, instance, Some(1))]));
    assert_eq!(claim(&mut claims, 2, 1, later), taken(&[(instance, 101)], 0));
}

#[test]
fn a_holder_that_has_started_anew_looks_before_it_grants() {
    let now = Instant::now();
    let mut claims = Claims::default();
    assert_eq!(claim(&mut claims, 1, 1, now), Answer::LookEverywhere);
    let instance = InstanceId::random();
    claims.surveyed(SERVICE, &survey(now, &[(102, instance, None)]));
    assert_eq!(claim(&mut claims, 1, 1, now), taken(&[(instance, 102)], 0));
    assert_eq!(claim(&mut claims, 1, 2, now + SURVEYED), Answer::LookEverywhere);
}

#[test]
fn an_instance_that_starts_counts_once_with_its_claim() {
    let now = Instant::now();
    let mut claims = looked(now);
    assert_eq!(claim(&mut claims, 1, 2, now), Answer::Granted);
    claims.surveyed(SERVICE, &survey(now, &[(100, InstanceId::random(), Some(1))]));
    assert_eq!(claim(&mut claims, 2, 2, now), Answer::Granted);
}

#[test]
fn a_look_that_began_before_an_instance_was_bound_does_not_lose_it() {
    let now = Instant::now();
    let mut claims = looked(now);
    let begun = now + SEEN;
    let instance = InstanceId::random();
    assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
    claims.bind(SERVICE, &claimant(1), 0, (instance, peer(100)), begun + SEEN);
    claims.surveyed(SERVICE, &survey(begun, &[]));
    assert_eq!(claim(&mut claims, 2, 1, begun + SEEN), taken(&[(instance, 100)], 0));
}

#[test]
fn a_renewal_that_the_end_of_its_claim_has_overtaken_blocks_nobody() {
    let now = Instant::now();
    let mut claims = looked(now);
    let instance = InstanceId::random();
    let says = |sequence, claims: &mut Claims| {
        claims.claim(SERVICE, &claimant(1), sequence, 2, TTL, now).unwrap()
    };
    assert_eq!(says(5, &mut claims), Answer::Granted);
    claims.bind(SERVICE, &claimant(1), 7, (instance, peer(100)), now);
    assert_eq!(says(6, &mut claims), taken(&[(instance, 100)], 0), "it is void");
    assert!(!claims.holds(SERVICE, &claimant(1), now));
    assert_eq!(claim(&mut claims, 2, 2, now), Answer::Granted, "there is a place");
    claims.give_back(SERVICE, &claimant(2), 0, now);
    // The same call again, later: it is a claim of its own, which what was said before
    // does not end.
    assert_eq!(says(8, &mut claims), Answer::Granted);
    claims.give_back(SERVICE, &claimant(1), 7, now);
    assert!(claims.holds(SERVICE, &claimant(1), now));
    claims.give_back(SERVICE, &claimant(1), 9, now);
    assert!(!claims.holds(SERVICE, &claimant(1), now));
    // An end that comes before anything else of it counts as well.
    claims.give_back(SERVICE, &claimant(3), 4, now);
    let late = claims.claim(SERVICE, &claimant(3), 3, 2, TTL, now).unwrap();
    assert_eq!(late, taken(&[(instance, 100)], 0));
    // It is not remembered for ever, and who counts nothing is heard as it comes.
    let later = now + REMEMBERED;
    claims.give_back(SERVICE, &claimant(4), 1, later);
    assert_eq!(claims.services.peek(&SERVICE).unwrap().ended.len(), 1);
    claims.surveyed(SERVICE, &survey(later, &[(100, instance, None)]));
    assert_eq!(claim(&mut claims, 4, 2, later), Answer::Granted);
}

#[test]
fn nothing_grows_without_bound() {
    let now = Instant::now();
    let mut claims = Claims::default();
    for n in 0..2 * MAX_SERVICES.get() {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_be_bytes());
        claims.surveyed(ServiceHash::from_sha256(hash), &survey(now, &[]));
    }
    assert_eq!(claims.services.len(), MAX_SERVICES.get());
    for n in 0..MAX_CLAIMS {
        let claimant = Claimant { peer: None, request: format!("r{n}").parse().unwrap() };
        claims.surveyed(SERVICE, &survey(now, &[]));
        let granted = claims.claim(SERVICE, &claimant, 0, u32::MAX, MAX_TTL, now).unwrap();
        assert_eq!(granted, Answer::Granted);
    }
    let over = claims.claim(SERVICE, &claimant(1), 0, u32::MAX, MAX_TTL, now);
    assert_eq!(over.unwrap_err().kind(), Kind::NoCapacity);
    for n in 0..MAX_COUNTED + 10 {
        let claimant = Claimant { peer: None, request: format!("e{n}").parse().unwrap() };
        claims.bind(SERVICE, &claimant, 7, (InstanceId::random(), peer(1)), now);
    }
    assert_eq!(claims.services.peek(&SERVICE).unwrap().ended.len(), MAX_ENDED);
    assert_eq!(claims.services.peek(&SERVICE).unwrap().instances.len(), MAX_COUNTED);
}
