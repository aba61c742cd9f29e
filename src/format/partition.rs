//! Which rows go into which partition: a cut of the time-sorted rows at midnight, or at every hour.

use std::collections::BTreeMap;

use crate::config::Partitioning;

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// Consecutive time-sorted rows of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The first row.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Partition column to value.
    pub values: BTreeMap<String, String>,
}

/// Cuts rows whose times, in microseconds, are `times` in ascending order.
pub fn cut(times: &[i64], partitioning: Option<Partitioning>) -> Vec<Run> {
    let width = match partitioning {
        None => return vec![Run { start: 0, end: times.len(), values: BTreeMap::new() }],
        Some(Partitioning::Day) => DAY,
        Some(Partitioning::Hour) => HOUR,
    };
    let mut runs = Vec::new();
    let mut start = 0;
    while start < times.len() {
        let slot = times[start].div_euclid(width);
        let end = start + times[start..].partition_point(|t| t.div_euclid(width) == slot);
        runs.push(Run { start, end, values: values(slot * width, width) });
        start = end;
    }
    runs
}

fn values(micros: i64, width: i64) -> BTreeMap<String, String> {
    let time = chrono::DateTime::from_timestamp_micros(micros).unwrap_or_default();
    let mut values = BTreeMap::from([("p_event_date".to_owned(), time.format("%Y-%m-%d").to_string())]);
    if width == HOUR {
        values.insert("p_event_hour".to_owned(), (micros.rem_euclid(DAY) / HOUR).to_string());
    }
    values
}
