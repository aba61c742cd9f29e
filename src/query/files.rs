//! `lake_files`: the files of every table, as a table.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use chrono::NaiveDate;

use crate::schema::timestamp_type;
use crate::table::{DataFile, TimeBounds};

/// Its name in SQL.
pub const FILES_TABLE: &str = "lake_files";

/// The columns: the table, the path below it, the partition's day, bytes, rows, when it was written, and
/// between which times its rows are.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("table_name", DataType::Utf8View, false),
        Field::new("path", DataType::Utf8View, false),
        Field::new("p_event_date", DataType::Date32, true),
        Field::new("size", DataType::Int64, false),
        Field::new("rows", DataType::Int64, true),
        Field::new("written_at", timestamp_type(), false),
        Field::new("min_event_time", timestamp_type(), true),
        Field::new("max_event_time", timestamp_type(), true),
    ]))
}

/// One row for each file.
pub fn rows<'a>(table: &str, files: impl Iterator<Item = &'a DataFile>) -> Result<RecordBatch, ArrowError> {
    let files: Vec<&DataFile> = files.collect();
    let times = |values: Vec<Option<i64>>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
    };
    let day = |file: &DataFile| {
        let day: NaiveDate = file.partition_values.get("p_event_date")?.parse().ok()?;
        Some(day.to_epoch_days())
    };
    let bounds: Vec<_> = files.iter().map(|f| f.time_bounds()).collect();
    let of = |pick: fn(TimeBounds) -> i64| bounds.iter().map(|b| b.map(pick)).collect();
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(StringViewArray::from_iter_values(files.iter().map(|_| table))),
            Arc::new(StringViewArray::from_iter_values(files.iter().map(|f| &f.path))),
            Arc::new(Date32Array::from_iter(files.iter().map(|f| day(f)))),
            Arc::new(Int64Array::from_iter_values(files.iter().map(|f| f.size as i64))),
            // Another engine's log may tell no count.
            Arc::new(Int64Array::from_iter(files.iter().map(|f| (f.rows > 0).then_some(f.rows as i64)))),
            times(files.iter().map(|f| Some(f.modified_ms * 1000)).collect()),
            times(of(|b| b.least)),
            times(of(|b| b.greatest)),
        ],
    )
}
