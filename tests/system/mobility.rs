//! The paper's ride, ten times as far so that a busy machine is no part of the distance,
//! and four times as fast.

use lca_tests::{
    Service,
    mobility::{Recording, Ride},
};

#[tokio::test]
async fn a_client_of_passing_buses_turns_to_the_next_before_the_first_is_too_far()
-> anyhow::Result<()> {
    let ride = Ride::paper().farther(10).faster(4);
    let recording = ride.record(Service::demo).await?;
    assert_eq!(recording.failures(), Vec::<String>::new());

    // Where two buses are equally far it may hesitate between them, on a busy machine.
    let moves = recording.moves();
    let last = |from, to| moves.iter().rev().find(|one| (one.from, one.to) == (from, to));
    let (to_second, to_third) = (last(0, 1).expect("a move"), last(1, 2).expect("a move"));
    for one in [to_second, to_third] {
        let left = ride.rtt(one.from, one.at);
        assert!(left > ride.soft && left < ride.hard, "bus {} was {left:?} away", one.from);
    }
    assert_eq!(moves.last(), Some(to_third), "{moves:#?}");
    assert!(moves.iter().all(|one| one.from.abs_diff(one.to) == 1), "{moves:#?}");
    let Recording { moving, staying, .. } = &recording;
    assert_eq!(recording.share_above(moving, ride.hard), 0.0);
    assert_eq!(recording.moves_of(staying), [], "without limits there is nothing to move for");
    // What the limits are for.
    let above = |samples| recording.share_above(samples, ride.soft);
    assert!(above(moving) * 2.0 < above(staying), "{} {}", above(moving), above(staying));
    Ok(())
}
