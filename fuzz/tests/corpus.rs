//! Every file of `corpus/`, without a fuzzer: what was found once stays found, and what is
//! checked in means something.

use std::{fs, path::Path};

use lca_fuzz::Outcome;

/// Hands every file of a target's corpus to it.
fn run(target: &str, check: fn(&[u8]) -> Outcome) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let (mut taken, mut refused) = (0, 0);
    for entry in fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("an entry").path();
        // A panic does not say which file it was.
        println!("{}", path.display());
        match check(&fs::read(&path).expect("a file")) {
            Outcome::Taken => taken += 1,
            Outcome::Refused => refused += 1,
        }
    }
    assert!(taken >= 5 && refused >= 5, "{target}: {taken} taken, {refused} refused");
}

#[test]
fn configuration_is_taken_whole_or_refused_with_its_place() {
    run("configuration", lca_fuzz::configuration);
}

#[test]
fn ids_print_as_read_and_requests_go_where_every_reader_would_send_them() {
    run("ids_and_routing", lca_fuzz::ids_and_routing);
}

#[test]
fn a_record_is_the_word_of_its_signer_or_nothing() {
    run("signed_records", lca_fuzz::signed_records);
}

#[test]
fn headers_that_must_not_pass_do_not_and_ours_mean_the_same_everywhere() {
    run("mesh_headers", lca_fuzz::mesh_headers);
}

#[test]
fn an_answer_is_what_was_sent_and_whole_or_none_and_leaves_nothing_behind() {
    run("answers", lca_fuzz::answers);
}

#[test]
fn what_points_inside_points_inside_and_a_time_is_the_one_that_was_said() {
    run("rewriting", lca_fuzz::rewriting);
}

#[test]
fn another_protocol_is_asked_for_in_the_same_words_or_not_at_all() {
    run("upgrades", lca_fuzz::upgrades);
}
