//! A table's file, as a log tells of it.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::clock::{DAY_MICROS, HOUR_MICROS};
use crate::schema::Standard;

/// Between which times a file's rows are, in microseconds since the epoch, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeBounds {
    /// No row is earlier.
    pub least: i64,
    /// No row is later.
    pub greatest: i64,
    /// Whether rows with these two times are in it.
    pub exact: bool,
}

/// A Parquet file that was uploaded, with all that a log has to say of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// Its path below the table.
    pub path: String,
    /// Partition column to value.
    pub partition_values: BTreeMap<String, String>,
    /// Bytes.
    pub size: u64,
    pub rows: u64,
    /// When it was written, in milliseconds since the epoch.
    pub modified_ms: i64,
    /// Delta's per-file statistics, as JSON. Their times are cut to milliseconds, as Delta wants it.
    pub stats: String,
    /// The least and the greatest event time, in microseconds since the epoch; none in tables without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<(i64, i64)>,
}

impl DataFile {
    /// Between which times its rows are: as its writer tells, else by its statistics, else by its partition.
    pub fn time_bounds(&self) -> Option<TimeBounds> {
        if let Some((least, greatest)) = self.times {
            return Some(TimeBounds { least, greatest, exact: true });
        }
        let stats: Value = serde_json::from_str(&self.stats).unwrap_or_default();
        let of = |which: &str| {
            DateTime::parse_from_rfc3339(stats[which][Standard::EventTime.name()].as_str()?).ok()
        };
        if let (Some(least), Some(greatest)) = (of("minValues"), of("maxValues")) {
            // Some writers cut the greatest down to the millisecond, too.
            return Some(TimeBounds {
                least: least.timestamp_micros(),
                greatest: greatest.timestamp_micros() + 999,
                exact: false,
            });
        }
        let day: NaiveDate = self.partition_values.get("p_event_date")?.parse().ok()?;
        let day = i64::from(day.to_epoch_days()) * DAY_MICROS;
        let (least, width) =
            match self.partition_values.get("p_event_hour").and_then(|hour| hour.parse::<i64>().ok()) {
                Some(hour) => (day + hour * HOUR_MICROS, HOUR_MICROS),
                None => (day, DAY_MICROS),
            };
        Some(TimeBounds { least, greatest: least + width - 1, exact: false })
    }
}
