//! What may be believed of a name, moment by moment; the clock is given.

use super::*;
use crate::api::proto;

const TTL: Duration = Duration::from_secs(2);

fn spec(name: &str, revision: u64) -> Spec {
    let message = proto::ServiceSpec { name: name.into(), revision, ..Default::default() };
    Spec::try_from(message).unwrap()
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

const fn registry(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn all_of(names: &[&str]) -> HashSet<ServiceName> {
    names.iter().map(|text| name(text)).collect()
}

/// A cache and a moment.
fn empty() -> (Cache, Instant) {
    (Cache::new(TTL), Instant::now())
}

#[test]
fn an_answer_is_current_for_its_time_to_live_and_old_after_it() {
    let (mut cache, t) = empty();
    assert_eq!(cache.judge(&name("a"), t), Verdict::Unknown);
    let cached = cache.answered(spec("a", 1), registry(1), t, t);
    assert!(!cached.stale);
    let last = t + TTL - Duration::from_millis(1);
    assert_eq!(cache.judge(&name("a"), last), Verdict::Current(cached));
    let Verdict::Old(old) = cache.judge(&name("a"), t + TTL) else { panic!("not old") };
    assert!(old.stale);
}

#[test]
fn a_watched_entry_is_current_until_the_watch_ends_and_its_time_to_live_after_that() {
    let (mut cache, t) = empty();
    cache.told(spec("a", 1), registry(1), t);
    cache.watching(registry(1), &all_of(&["a"]));
    let later = t + Duration::from_secs(1000);
    assert!(matches!(cache.judge(&name("a"), later), Verdict::Current(_)));
    cache.unwatched(later);
    assert!(matches!(cache.judge(&name("a"), later + TTL / 2), Verdict::Current(_)));
    assert!(matches!(cache.judge(&name("a"), later + TTL), Verdict::Old(_)));
}

#[test]
fn a_watch_covers_only_what_came_from_its_own_registry() {
    let (mut cache, t) = empty();
    cache.answered(spec("other", 5), registry(2), t, t);
    cache.watching(registry(1), &all_of(&[]));
    assert!(matches!(cache.judge(&name("other"), t + TTL), Verdict::Old(_)));
    cache.told_deleted(&name("other"), registry(1), t);
    let Verdict::Old(_) = cache.judge(&name("other"), t) else { panic!("worth a question") };
    assert!(!cache.told(spec("other", 4), registry(1), t), "an older revision is no news");
    assert_eq!(cache.revision(&name("other")), 5);
}

#[test]
fn what_a_complete_watch_did_not_tell_is_gone() {
    let (mut cache, t) = empty();
    cache.remember(spec("kept", 1), registry(1));
    cache.remember(spec("gone", 1), registry(1));
    cache.remember(spec("elsewhere", 1), registry(2));
    cache.told(spec("kept", 2), registry(1), t);
    assert!(cache.watching(registry(1), &all_of(&["kept"])));
    assert!(matches!(cache.judge(&name("kept"), t), Verdict::Current(_)));
    assert_eq!(cache.judge(&name("gone"), t), Verdict::Unknown);
    assert!(matches!(cache.judge(&name("elsewhere"), t), Verdict::Old(_)));
}

#[test]
fn an_outage_makes_what_is_known_stale_and_what_is_not_unreachable_at_once() {
    let (mut cache, t) = empty();
    cache.remember(spec("a", 1), registry(1));
    cache.unreached(t);
    let Verdict::Stale(stale) = cache.judge(&name("a"), t) else { panic!("not stale") };
    assert!(stale.stale);
    assert_eq!(cache.judge(&name("b"), t), Verdict::Unknown, "nothing to serve: ask");
    assert!(matches!(cache.judge(&name("a"), t + OUTAGE), Verdict::Old(_)), "asked again");
    cache.reached();
    assert!(matches!(cache.judge(&name("a"), t), Verdict::Old(_)));
}

#[test]
fn an_absence_is_believed_briefly_and_ended_by_the_watch() {
    let (mut cache, t) = empty();
    assert_eq!(cache.denied(&name("a"), &HashSet::new(), t, t), None);
    assert_eq!(cache.judge(&name("a"), t), Verdict::Absent);
    assert_eq!(cache.judge(&name("a"), t + ABSENT_FOR), Verdict::Unknown);
    cache.denied(&name("a"), &HashSet::new(), t, t);
    cache.told(spec("a", 1), registry(1), t);
    assert!(matches!(cache.judge(&name("a"), t), Verdict::Current(_)));
}

#[test]
fn a_denial_does_not_count_for_what_only_a_silent_registry_knew() {
    let (mut cache, t) = empty();
    cache.answered(spec("a", 1), registry(2), t, t);
    let later = t + TTL;
    let silent = HashSet::from([registry(2)]);
    let kept = cache.denied(&name("a"), &silent, later, later).unwrap();
    assert!(kept.stale);
    assert_eq!(cache.denied(&name("a"), &HashSet::new(), later, later), None);
}

#[test]
fn an_answer_does_not_undo_what_was_learnt_after_it_was_asked_for() {
    let (mut cache, t) = empty();
    let (asked, told, answered) = (t, t + TTL / 4, t + TTL / 2);
    cache.watching(registry(1), &all_of(&[]));
    cache.told(spec("a", 2), registry(1), told);
    let believed = cache.answered(spec("a", 1), registry(1), asked, answered);
    assert_eq!(believed.spec.revision, 2);
    let believed = cache.denied(&name("a"), &HashSet::new(), asked, answered).unwrap();
    assert_eq!(believed.spec.revision, 2);

    cache.told_deleted(&name("a"), registry(1), told);
    cache.answered(spec("a", 2), registry(1), asked, answered);
    assert_eq!(cache.judge(&name("a"), answered), Verdict::Unknown, "it was deleted since");
}

#[test]
fn a_registry_that_began_anew_is_believed_though_its_revisions_are_lower() {
    let (mut cache, t) = empty();
    cache.answered(spec("a", 9), registry(1), t, t);
    let later = t + TTL;
    assert_eq!(cache.answered(spec("a", 1), registry(1), later, later).spec.revision, 1);
}

#[test]
fn it_is_in_use_while_names_are_asked_for() {
    let (mut cache, t) = empty();
    assert!(!cache.is_used(TTL, t), "nobody has asked yet");
    cache.judge(&name("a"), t);
    assert!(cache.is_used(TTL, t + TTL / 2));
    assert!(!cache.is_used(TTL, t + TTL));
}
