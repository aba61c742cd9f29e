//! Parses rows of `classification_failures` into rejects, and selects among them.

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use serde_json::Value;

use crate::decode::object::{Object, RowId};
use crate::decode::reject::Reason;
use crate::decode::split::MAX_PAYLOAD;
use crate::schema::Standard;
use crate::table::DataFile;

/// Which rejects are meant.
#[derive(Debug, Clone, Default)]
pub struct Chosen {
    /// Of these reasons; none: of any.
    pub reasons: Vec<Reason>,
    /// Rejected since then, by `p_parse_time`, in microseconds since the epoch.
    pub since: Option<i64>,
}

impl Chosen {
    /// Whether a file may hold some, by what the log says of it.
    pub fn may_be_in(&self, file: &DataFile) -> bool {
        let stats: Value = serde_json::from_str(&file.stats).unwrap_or_default();
        let bound = |which: &str, column: &str| stats[which][column].as_str().map(str::to_owned);
        let last = bound("maxValues", Standard::ParseTime.name())
            .and_then(|last| DateTime::parse_from_rfc3339(&last).ok());
        // Some writers cut the greatest down to the millisecond.
        let too_old = last.zip(self.since).is_some_and(|(last, since)| last.timestamp_micros() + 999 < since);
        let reasons = bound("minValues", "reason").zip(bound("maxValues", "reason"));
        let fits = |reason: &Reason| {
            reasons
                .as_ref()
                .is_none_or(|(least, greatest)| (least.as_str()..=greatest).contains(&reason.code()))
        };
        !too_old && (self.reasons.is_empty() || self.reasons.iter().any(fits))
    }

    /// Whether a reject is meant, by its reason and by when it was rejected.
    pub fn wants(&self, reason: &str, rejected: i64) -> bool {
        let of_reason = self.reasons.is_empty() || self.reasons.iter().any(|wanted| wanted.code() == reason);
        of_reason && self.since.is_none_or(|since| rejected >= since)
    }
}

/// A reject, as it was kept.
#[derive(Debug)]
pub struct KeptReject<'a> {
    pub id: RowId,
    /// The code of what was wrong, which a newer version may have brought.
    pub reason: &'a str,
    /// What was rejected, or what the record is of. Its size is not known.
    pub object: Object,
    /// How long the record is; none for a whole object.
    pub length: Option<u64>,
    /// The record's bytes, or the first of them.
    pub payload: &'a [u8],
}

impl KeptReject<'_> {
    /// What is wrong with it, as this version knows it.
    pub fn reason(&self) -> Option<Reason> {
        Reason::parse(self.reason)
    }

    /// The length of a record of which only the beginning was kept.
    pub fn cut(&self) -> Option<u64> {
        self.length.filter(|length| self.payload.len() == MAX_PAYLOAD && *length > MAX_PAYLOAD as u64)
    }
}

/// The rejects among a batch's rows that are meant. Rows that are none of ours are left out.
pub fn kept<'a>(batch: &'a RecordBatch, chosen: &Chosen) -> impl Iterator<Item = KeptReject<'a>> {
    let column = |name: &str| batch.column_by_name(name).expect("the table's columns");
    let text = |name: &str| {
        let values = column(name).as_string_view();
        move |row: usize| values.is_valid(row).then(|| values.value(row))
    };
    let time = |name: &str| {
        let values = column(name).as_primitive::<TimestampMicrosecondType>();
        move |row: usize| values.value(row)
    };
    let (id, reason) = (text(Standard::RowId.name()), text("reason"));
    let (written, rejected) = (time(Standard::EventTime.name()), time(Standard::ParseTime.name()));
    let (source_id, source_label) = (text(Standard::SourceId.name()), text(Standard::SourceLabel.name()));
    let (bucket, key, etag) = (text("object_bucket"), text("object_key"), text("object_etag"));
    let (lengths, payloads) =
        (column("record_length").as_primitive::<Int64Type>(), column("payload").as_binary_view());
    let wanted = move |row: &usize| chosen.wants(reason(*row).unwrap_or_default(), rejected(*row));
    let read = move |row: usize| {
        let id = RowId::parse(id(row)?)?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let object = Object {
            id: id.object,
            bucket: owned(bucket(row)),
            key: key(row)?.to_owned(),
            etag: etag(row).unwrap_or_default().to_owned(),
            size: 0,
            // The time of rejection stands for an object of which no time was known.
            last_modified: Some(written(row)).filter(|written| *written != rejected(row)),
            source_id: owned(source_id(row)),
            source_label: owned(source_label(row)),
        };
        let length = lengths.is_valid(row).then(|| lengths.value(row).max(0) as u64);
        let payload = if payloads.is_valid(row) { payloads.value(row) } else { &[] };
        Some(KeptReject { id, reason: reason(row).unwrap_or_default(), object, length, payload })
    };
    (0..batch.num_rows()).filter(wanted).filter_map(read)
}
