//! Which rows go into which partition: a cut of the time-sorted rows at midnight, or at every hour.

use std::collections::BTreeMap;

use crate::base::clock::{DAY_MICROS, HOUR_MICROS};
use crate::config::Partitioning;

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

/// The numbers of the partitions that rows of these times are in; neighbours of one partition are one.
pub fn numbers(times: &[i64], partitioning: Partitioning) -> impl Iterator<Item = i64> {
    let width = width(partitioning);
    let mut last = None;
    times.iter().map(move |time| time.div_euclid(width)).filter(move |n| last.replace(*n) != Some(*n))
}

/// How long the times of a partition are, in microseconds.
fn width(partitioning: Partitioning) -> i64 {
    match partitioning {
        Partitioning::Day => DAY_MICROS,
        Partitioning::Hour => HOUR_MICROS,
    }
}

/// Cuts rows whose times, in microseconds, are `times` in ascending order.
pub fn cut(times: &[i64], partitioning: Option<Partitioning>) -> Vec<Run> {
    let Some(width) = partitioning.map(width) else {
        return vec![Run { start: 0, end: times.len(), values: BTreeMap::new() }];
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
    if width == HOUR_MICROS {
        values.insert("p_event_hour".to_owned(), (micros.rem_euclid(DAY_MICROS) / HOUR_MICROS).to_string());
    }
    values
}
