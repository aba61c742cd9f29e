//! The retry policy: whether and when. A pure function of what failed, how often, and the time.

use std::time::Duration;

use crate::base::clock::Instant;
use crate::base::failure::{Failure, FailureKind};

/// An announced object that was not there so often is rejected as `missing`.
pub const MAX_NOT_FOUND: u32 = 3;
/// Reads of one object that fail while others of its source succeed: it is given up.
const MAX_FAILURES: u32 = 8;
/// The same where a person has to change something.
const MAX_REFUSALS: u32 = 3;
/// The same of the lake, where each try has been patient already.
const MAX_LAKE_FAILURES: u32 = 3;
/// How often an object is read that others write to meanwhile.
pub const MAX_CHANGED: u32 = 3;
/// How often an object is decoded whose files were too old to be landed.
const MAX_STALE: u32 = 3;

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// There is no such object.
    NotFound,
    /// The object could not be read.
    Read(FailureKind),
    /// The object was written to while it was read.
    Changed,
    /// Its files had become too old to be landed.
    Stale,
    /// The lake could not be read.
    Lake,
}

impl Failed {
    /// What a store's answer says of an object.
    pub fn reading(failure: &Failure) -> Self {
        match failure.kind {
            FailureKind::NotFound if !failure.message.starts_with("NoSuchBucket") => Self::NotFound,
            FailureKind::Changed => Self::Changed,
            kind => Self::Read(kind),
        }
    }
}

/// Whether the same answer is to be expected for every object of the source, until a person changes
/// something.
pub fn is_refusal(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Denied | FailureKind::NotFound | FailureKind::Wrong)
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again after this time, and a bit of chance.
    Again(Duration),
    /// Nothing is there, and nothing will be.
    Missing,
    /// Not in this run.
    GiveUp,
}

/// How it went so far with one item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts {
    not_found: u32,
    failures: u32,
    refusals: u32,
    changed: u32,
    stale: u32,
    first_failure: Option<Instant>,
}

impl Attempts {
    /// How often reading it failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// After a failure at `now`. `read`: when an object of the same source was last read. `outlasts`: a
    /// source or a lake that is out of reach is waited for, however long it takes.
    pub fn next(&mut self, failed: Failed, now: Instant, read: Option<Instant>, outlasts: bool) -> Next {
        match failed {
            Failed::NotFound => {
                self.not_found += 1;
                match self.not_found {
                    MAX_NOT_FOUND.. => Next::Missing,
                    n => Next::Again(Duration::from_secs(u64::from(n))),
                }
            }
            Failed::Changed => {
                self.changed += 1;
                match self.changed {
                    MAX_CHANGED.. => Next::GiveUp,
                    n => Next::Again(delay(n)),
                }
            }
            Failed::Stale => {
                self.stale += 1;
                if self.stale < MAX_STALE { Next::Again(Duration::ZERO) } else { Next::GiveUp }
            }
            Failed::Lake => {
                self.failures += 1;
                let gives_up = self.failures >= MAX_LAKE_FAILURES && !outlasts;
                if gives_up { Next::GiveUp } else { Next::Again(delay(self.failures)) }
            }
            Failed::Read(kind) => self.after_reading(kind, now, read, outlasts),
        }
    }

    fn after_reading(
        &mut self,
        kind: FailureKind,
        now: Instant,
        read: Option<Instant>,
        outlasts: bool,
    ) -> Next {
        self.failures += 1;
        let first = *self.first_failure.get_or_insert(now);
        let is_final = is_refusal(kind) || kind == FailureKind::Unreadable;
        self.refusals += u32::from(is_final);
        let others_are_read = read.is_some_and(|at| at > first);
        let gives_up = if is_final {
            self.refusals >= MAX_REFUSALS
        } else {
            self.failures >= MAX_FAILURES && (others_are_read || !outlasts)
        };
        if gives_up { Next::GiveUp } else { Next::Again(delay(self.failures)) }
    }
}

/// How long to wait after the n-th failure in a row: shorter at first, and up to a minute.
pub fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_DELAY * (1 << doublings)).min(LONGEST_DELAY)
}
