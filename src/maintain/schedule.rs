//! When upkeep is due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::RngExt as _;

use crate::config::Every;

/// Of an interval, the part by which maintainers that began at once drift apart.
const JITTER: f64 = 0.1;
/// The most that is added to a time of a cron expression.
const CRON_JITTER: Duration = Duration::from_secs(30);
/// Where a cron expression names no time to come.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// How long from `now`, in microseconds since the epoch, until the next run. Some seconds are left to chance,
/// so that many workers don't begin at once.
pub fn until_next(every: &Every, now: i64) -> Duration {
    let mut random = rand::rng();
    match every {
        Every::Interval(interval) => interval.mul_f64(1.0 + random.random_range(-JITTER..JITTER)),
        Every::Cron(cron) => {
            let now: DateTime<Utc> = DateTime::from_timestamp_micros(now).unwrap_or_default();
            match cron.find_next_occurrence(&now, false) {
                Ok(next) => {
                    (next - now).to_std().unwrap_or_default()
                        + CRON_JITTER.mul_f64(random.random_range(0.0..1.0))
                }
                Err(_) => NEVER,
            }
        }
    }
}
