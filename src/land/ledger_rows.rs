//! What is kept besides the rows: the rejects, and for each object its line in the ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewBuilder, Int64Array, Int64Builder, MapBuilder, MapFieldNames, StringViewArray,
    StringViewBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::record_batch::RecordBatch;

use crate::decode::object::{Object, ObjectId, RowId};
use crate::decode::reject::{Reason, Reject};
use crate::decode::rows::constant;
use crate::table::TableSpec;

/// The rejects of one object as rows of `classification_failures`. `parse_time` is when they were decoded.
///
/// # Panics
/// If `spec` is not that table's.
pub fn reject_rows(spec: &TableSpec, object: &Object, rejects: &[Reject], parse_time: i64) -> RecordBatch {
    let rows = rejects.len();
    let event_time = object.written().unwrap_or(parse_time);
    let mut payload = BinaryViewBuilder::new();
    for reject in rejects {
        payload.append_option(reject.payload.as_deref());
    }
    let row_ids = rejects
        .iter()
        .map(|r| RowId { object: object.id, offset: r.offset.unwrap_or(RowId::WHOLE_OBJECT) }.to_string());
    let number = |of: fn(&Reject) -> Option<u64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(rejects.iter().map(|r| of(r).map(|n| n as i64))))
    };
    let columns = spec.schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "p_event_time" => times(event_time, rows),
            "p_parse_time" => times(parse_time, rows),
            "p_log_type" => {
                Arc::new(StringViewArray::from_iter(rejects.iter().map(|r| r.log_type.as_deref())))
            }
            "p_row_id" => Arc::new(StringViewArray::from_iter_values(row_ids.clone())),
            "p_source_id" => constant(object.source_id.as_deref(), rows),
            "p_source_label" => constant(object.source_label.as_deref(), rows),
            "reason" => Arc::new(StringViewArray::from_iter_values(rejects.iter().map(|r| r.reason.code()))),
            "message" => {
                Arc::new(StringViewArray::from_iter_values(rejects.iter().map(|r| r.message.as_str())))
            }
            "object_bucket" => constant(object.bucket.as_deref(), rows),
            "object_key" => constant(Some(&object.key), rows),
            "object_etag" => constant(Some(&object.etag), rows),
            "record_offset" => number(|r| r.offset),
            "record_length" => number(|r| r.length),
            "payload" => Arc::new(payload.finish_cloned()),
            _ => new_null_array(field.data_type(), rows),
        }
    });
    RecordBatch::try_new(spec.schema.clone(), columns.collect()).expect("every column has its table's type")
}

fn times(micros: i64, rows: usize) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_value(micros, rows).with_timezone("UTC"))
}

/// What became of one object: its line in the ledger.
#[derive(Debug, Clone)]
pub struct ObjectOutcome {
    pub object: Object,
    /// The reject that it was before, if it is that and no more of the object that landed now.
    pub replayed: Option<RowId>,
    /// Rows by table, without the rejects.
    pub rows: BTreeMap<String, u64>,
    /// Rejects by reason.
    pub rejects: BTreeMap<Reason, u64>,
    /// Records that are neither: Cloudflare's test upload.
    pub skipped: u64,
    /// Least and greatest `p_event_time`, in microseconds.
    pub event_times: Option<(i64, i64)>,
}

impl ObjectOutcome {
    /// What it is known by in the ledger.
    pub fn entry(&self) -> ObjectId {
        self.replayed.map_or(self.object.id, ObjectId::of_replay)
    }

    pub fn reject_count(&self) -> u64 {
        self.rejects.values().sum()
    }
}

/// Objects as rows of `ingested_objects`, landed at `landed_at` microseconds.
///
/// # Panics
/// If `spec` is not that table's.
pub fn ledger_rows(spec: &TableSpec, outcomes: &[ObjectOutcome], landed_at: i64) -> RecordBatch {
    let text = |of: &dyn Fn(&ObjectOutcome) -> Option<String>| -> ArrayRef {
        Arc::new(StringViewArray::from_iter(outcomes.iter().map(of)))
    };
    let number = |of: &dyn Fn(&ObjectOutcome) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(outcomes.iter().map(of)))
    };
    let time = |of: &dyn Fn(&ObjectOutcome) -> Option<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter(outcomes.iter().map(of)).with_timezone("UTC"))
    };
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut rows = MapBuilder::new(Some(names), StringViewBuilder::new(), Int64Builder::new());
    for outcome in outcomes {
        for (table, count) in &outcome.rows {
            rows.keys().append_value(table);
            rows.values().append_value(*count as i64);
        }
        rows.append(true).expect("keys and values are of one length");
    }
    let columns = vec![
        text(&|o| Some(o.entry().to_string())),
        text(&|o| o.object.source_id.clone()),
        text(&|o| o.object.bucket.clone()),
        text(&|o| Some(o.object.key.clone())),
        text(&|o| Some(o.object.etag.clone())),
        number(&|o| o.object.size as i64),
        time(&|o| o.object.written()),
        times(landed_at, outcomes.len()),
        Arc::new(rows.finish()),
        // A reject that was replayed is one no more: so the ledger's sum stays what the table of rejects
        // holds.
        number(&|o| o.reject_count() as i64 - i64::from(o.replayed.is_some())),
        time(&|o| o.event_times.map(|t| t.0)),
        time(&|o| o.event_times.map(|t| t.1)),
        constant(Some(env!("CARGO_PKG_VERSION")), outcomes.len()),
    ];
    RecordBatch::try_new(spec.schema.clone(), columns).expect("every column has the ledger's type")
}
