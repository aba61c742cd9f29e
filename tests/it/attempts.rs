//! When what failed is tried again: a table of failures and times.

use std::time::Duration;

use flarelake::base::clock;
use flarelake::base::failure::{Failure, FailureKind};
use flarelake::ingest::attempts::{Attempts, Failed, Next, delay};

#[test]
fn what_failed_is_tried_again_as_often_as_it_may_help() {
    use FailureKind::{Denied, NotFound, Throttled, Unavailable, Unreadable, Wrong};
    let start = clock::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    // What fails, whether others are read meanwhile, whether outages are waited for, and what it ends in
    // after how many tries; none: never.
    let cases = [
        (Failed::NotFound, false, true, Some((3, Next::Missing))),
        (Failed::Changed, false, true, Some((3, Next::GiveUp))),
        (Failed::Stale, false, true, Some((3, Next::GiveUp))),
        (Failed::Lake, true, true, None),
        (Failed::Lake, true, false, Some((3, Next::GiveUp))),
        (Failed::Read(Denied), false, true, Some((3, Next::GiveUp))),
        (Failed::Read(NotFound), true, true, Some((3, Next::GiveUp))),
        (Failed::Read(Wrong), false, false, Some((3, Next::GiveUp))),
        (Failed::Read(Unreadable), false, true, Some((3, Next::GiveUp))),
        (Failed::Read(Unavailable), true, true, Some((8, Next::GiveUp))),
        (Failed::Read(Throttled), true, true, Some((8, Next::GiveUp))),
        (Failed::Read(Unavailable), false, true, None),
        (Failed::Read(Throttled), false, false, Some((8, Next::GiveUp))),
    ];
    for (failed, others_are_read, outlasts, end) in cases {
        let mut attempts = Attempts::default();
        let mut next = |n: u32| {
            let now = at(u64::from(n));
            attempts.next(failed, now, others_are_read.then_some(now), outlasts)
        };
        let tries: Vec<Next> = (1..=20).map(&mut next).collect();
        let ended = tries.iter().position(|next| !matches!(next, Next::Again(_)));
        let case = format!("{failed:?}, others are read: {others_are_read}, outages: {outlasts}");
        assert_eq!(ended.map(|n| (n + 1, tries[n])), end, "{case}");
    }
    // One that was read before the first failure says nothing of what came after.
    let mut attempts = Attempts::default();
    let tries = (1..=20).map(|n| attempts.next(Failed::Read(Unavailable), at(n), Some(at(0)), true));
    assert!(tries.into_iter().all(|next| matches!(next, Next::Again(_))));
    let delays =
        [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000].map(Duration::from_millis);
    assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 9, 4_000_000_000].map(delay), delays);
}

#[test]
fn a_failed_read_is_what_the_store_says_that_it_is() {
    let failure = |kind, message: &str| Failure { kind, message: message.into() };
    let reading = |kind, message| Failed::reading(&failure(kind, message));
    assert_eq!(reading(FailureKind::NotFound, "NoSuchKey: x"), Failed::NotFound);
    assert_eq!(reading(FailureKind::NotFound, "NoSuchBucket: x"), Failed::Read(FailureKind::NotFound));
    assert_eq!(reading(FailureKind::Changed, "PreconditionFailed"), Failed::Changed);
    assert_eq!(reading(FailureKind::Denied, "AccessDenied"), Failed::Read(FailureKind::Denied));
}
