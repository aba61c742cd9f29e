//! What each table of a lake looks like.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use crate::config::Partitioning;
use crate::schema::{ColumnType, LogType, Standard, timestamp_type};

pub const FAILURES_TABLE: &str = "classification_failures";
/// The table whose log says what has landed.
pub const LEDGER_TABLE: &str = "ingested_objects";

/// A table: its name, columns and layout.
#[derive(Debug, Clone, PartialEq)]
pub struct TableSpec {
    /// The folder's name, and the name in SQL.
    pub name: String,
    /// The columns in its files, without the partition columns.
    pub schema: SchemaRef,
    /// None: one folder.
    pub partitioning: Option<Partitioning>,
    /// The time that its files are sorted by.
    pub sort_column: Option<String>,
    /// Columns that people look values up in: bloom filters. A list column's values count.
    pub bloom_columns: Vec<String>,
    /// Columns whose least and greatest value each file's log entry tells.
    pub stats: Vec<String>,
}

impl TableSpec {
    /// The column that tells each row from every other.
    pub fn id_column(&self) -> &'static str {
        if self.name == LEDGER_TABLE { "object_id" } else { Standard::RowId.name() }
    }

    /// All columns, partition columns last.
    pub fn full_schema(&self) -> SchemaRef {
        let partitions =
            self.partitioning.map_or(&[][..], Partitioning::columns).iter().map(|name| match *name {
                "p_event_hour" => Arc::new(Field::new(*name, DataType::Int32, true)),
                _ => Arc::new(Field::new(*name, DataType::Date32, true)),
            });
        Arc::new(Schema::new(self.schema.fields().iter().cloned().chain(partitions).collect::<Fields>()))
    }
}

/// The table of a log type.
pub fn log_type_spec(log_type: &LogType, partitioning: Partitioning) -> TableSpec {
    let lists = [Standard::AnyIpAddresses, Standard::AnyDomainNames, Standard::AnyTraceIds];
    let lists = lists.into_iter().filter(|s| log_type.has(*s)).map(|s| s.name().to_owned());
    let own = log_type.columns.iter().filter(|c| c.lookup).map(|c| c.name.clone());
    TableSpec {
        name: log_type.table_name(),
        schema: log_type.arrow_schema(),
        partitioning: Some(partitioning),
        sort_column: Some(Standard::EventTime.name().to_owned()),
        bloom_columns: own.chain(lists).collect(),
        stats: vec![
            Standard::EventTime.name().into(),
            Standard::ParseTime.name().into(),
            log_type.event_column().name.clone(),
        ],
    }
}

pub fn failures_spec(partitioning: Partitioning) -> TableSpec {
    // A reject may be of no known log type; all else is as in every table.
    let standard =
        Standard::ALL.into_iter().map(|s| s.field().with_nullable(!s.required() || s == Standard::LogType));
    let own = [
        Field::new("reason", DataType::Utf8View, false),
        Field::new("message", DataType::Utf8View, true),
        Field::new("object_bucket", DataType::Utf8View, true),
        Field::new("object_key", DataType::Utf8View, true),
        Field::new("object_etag", DataType::Utf8View, true),
        Field::new("record_offset", DataType::Int64, true),
        Field::new("record_length", DataType::Int64, true),
        // In views, as text is: offsets would end at 2 GiB, and equal payloads of a file stand in memory
        // once.
        Field::new("payload", DataType::BinaryView, true),
    ];
    TableSpec {
        name: FAILURES_TABLE.to_owned(),
        schema: Arc::new(Schema::new(standard.chain(own).collect::<Vec<_>>())),
        partitioning: Some(partitioning),
        sort_column: Some(Standard::EventTime.name().to_owned()),
        bloom_columns: Vec::new(),
        stats: vec![Standard::EventTime.name().into(), Standard::ParseTime.name().into(), "reason".into()],
    }
}

/// The ledger: one row for each object that has landed.
pub fn ledger_spec() -> TableSpec {
    let rows = DataType::Map(
        Arc::new(Field::new(
            "key_value",
            DataType::Struct(Fields::from(vec![
                Field::new("key", DataType::Utf8View, false),
                Field::new("value", DataType::Int64, true),
            ])),
            false,
        )),
        false,
    );
    let columns = vec![
        Field::new("object_id", ColumnType::String.arrow(), false),
        Field::new("source_id", ColumnType::String.arrow(), true),
        Field::new("bucket", ColumnType::String.arrow(), true),
        Field::new("key", ColumnType::String.arrow(), true),
        Field::new("etag", ColumnType::String.arrow(), true),
        Field::new("size", DataType::Int64, true),
        Field::new("last_modified", timestamp_type(), true),
        Field::new("landed_at", timestamp_type(), false),
        Field::new("rows", rows, true),
        Field::new("rejects", DataType::Int64, false),
        Field::new("min_event_time", timestamp_type(), true),
        Field::new("max_event_time", timestamp_type(), true),
        Field::new("flarelake_version", ColumnType::String.arrow(), false),
    ];
    TableSpec {
        name: LEDGER_TABLE.to_owned(),
        schema: Arc::new(Schema::new(columns)),
        partitioning: None,
        sort_column: None,
        bloom_columns: vec!["object_id".into(), "key".into()],
        stats: vec!["object_id".into(), "landed_at".into(), "min_event_time".into(), "max_event_time".into()],
    }
}
