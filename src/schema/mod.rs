//! What a log type is: its columns, how its records are told apart, and the Arrow schema of its table.
//!
//! A [`LogType`] is read from one YAML file ([`parse`]); the [`Catalog`] holds the embedded ones and
//! those of `--schemas DIR`. Nothing here does I/O but the catalog's reading of that folder.

mod parse;
mod catalog;
mod datasets;
mod ddl;

pub use catalog::{Catalog, CatalogError};
pub use datasets::{Dataset, likely};
pub use ddl::{DdlError, Engine};
pub use parse::SchemaError;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// The column that holds fields the schema doesn't know and values its types can't hold.
pub const RESCUED_DATA: &str = "p_rescued_data";

/// A column's type, in the words of the documented schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// 64-bit integer.
    BigInt,
    /// 32-bit integer.
    Int,
    /// 16-bit integer; Delta `short`.
    SmallInt,
    /// 32-bit floating point.
    Float,
    /// true or false.
    Boolean,
    /// UTF-8 text.
    String,
    /// Microseconds since the epoch, UTC.
    Timestamp,
    /// `[string]`.
    StringList,
    /// `{string:string}`.
    StringMap,
}

impl ColumnType {
    /// The Arrow type of the column in memory. Text is held as views: sorting moves 16 bytes a value,
    /// and short values need no second read. In Parquet and Delta it is a plain string.
    pub fn arrow(self) -> DataType {
        match self {
            Self::BigInt => DataType::Int64,
            Self::Int => DataType::Int32,
            Self::SmallInt => DataType::Int16,
            Self::Float => DataType::Float32,
            Self::Boolean => DataType::Boolean,
            Self::String => DataType::Utf8View,
            Self::Timestamp => timestamp_type(),
            Self::StringList => DataType::List(Arc::new(list_element())),
            Self::StringMap => {
                DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(map_fields()), false)), false)
            }
        }
    }

    /// The type as the documentation writes it.
    pub fn documented(self) -> &'static str {
        match self {
            Self::BigInt => "bigint",
            Self::Int => "int",
            Self::SmallInt => "smallint",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::String => "string",
            Self::Timestamp => "timestamp",
            Self::StringList => "[string]",
            Self::StringMap => "{string:string}",
        }
    }
}

/// Microseconds, UTC: the one timestamp type that Delta protocol 1/2 has.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The child field of every list column, named as Delta wants it.
pub fn list_element() -> Field {
    Field::new("element", DataType::Utf8View, true)
}

/// The key and value fields of every map column, named as Delta wants them.
pub fn map_fields() -> Fields {
    Fields::from(vec![
        Field::new("key", DataType::Utf8View, false),
        Field::new("value", DataType::Utf8View, true),
    ])
}

/// What a column's value says about who or what was involved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indicator {
    /// An IP address: `p_any_ip_addresses`.
    Ip,
    /// A host name, or an IP address in its place: `p_any_domain_names` or `p_any_ip_addresses`.
    Hostname,
    /// A URL, or already a host: its host goes where a host name goes.
    Url,
    /// A trace id such as a Ray id: `p_any_trace_ids`.
    TraceId,
}

/// The written forms of time that a timestamp column accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeFormats {
    /// RFC 3339, any fraction, any offset.
    pub rfc3339: bool,
    /// Seconds, milliseconds, microseconds or nanoseconds since the epoch, told by magnitude; also as text.
    pub unix_auto: bool,
    /// `YYYY-MM-DD HH:MM:SS[.f]`, UTC.
    pub datetime: bool,
    /// RFC 1123 with GMT or UTC.
    pub rfc1123: bool,
}

impl TimeFormats {
    /// Every form there is: what a column without `timeFormats` accepts.
    pub const ALL: Self = Self { rfc3339: true, unix_auto: true, datetime: true, rfc1123: true };
}

/// One documented column that is filled from a record's own fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The documented name, which is the JSON field's name.
    pub name: String,
    /// The documented type.
    pub kind: ColumnType,
    /// A required column is never null.
    pub required: bool,
    /// What the documentation says of it.
    pub description: String,
    /// Other names under which Cloudflare sends it.
    pub aliases: Vec<String>,
    /// What its values are collected as.
    pub indicators: Vec<Indicator>,
    /// For a timestamp: which written forms are read.
    pub time_formats: TimeFormats,
    /// People look rows up by this column: its files carry a bloom filter for it.
    pub lookup: bool,
}

/// The columns that flarelake adds to every row, under Panther's names and in Panther's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Standard {
    EventTime,
    ParseTime,
    LogType,
    RowId,
    SourceId,
    SourceLabel,
    AnyIpAddresses,
    AnyDomainNames,
    AnyTraceIds,
}

impl Standard {
    /// All of them, in the documented order.
    pub const ALL: [Self; 9] = [
        Self::EventTime,
        Self::ParseTime,
        Self::LogType,
        Self::RowId,
        Self::SourceId,
        Self::SourceLabel,
        Self::AnyIpAddresses,
        Self::AnyDomainNames,
        Self::AnyTraceIds,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EventTime => "p_event_time",
            Self::ParseTime => "p_parse_time",
            Self::LogType => "p_log_type",
            Self::RowId => "p_row_id",
            Self::SourceId => "p_source_id",
            Self::SourceLabel => "p_source_label",
            Self::AnyIpAddresses => "p_any_ip_addresses",
            Self::AnyDomainNames => "p_any_domain_names",
            Self::AnyTraceIds => "p_any_trace_ids",
        }
    }

    pub fn kind(self) -> ColumnType {
        match self {
            Self::EventTime | Self::ParseTime => ColumnType::Timestamp,
            Self::AnyIpAddresses | Self::AnyDomainNames | Self::AnyTraceIds => ColumnType::StringList,
            _ => ColumnType::String,
        }
    }

    /// Whether every row has it.
    pub fn required(self) -> bool {
        matches!(self, Self::EventTime | Self::ParseTime | Self::LogType | Self::RowId)
    }

    /// The column as an Arrow field.
    pub fn field(self) -> Field {
        Field::new(self.name(), self.kind().arrow(), !self.required())
    }
}

/// By which fields a record is told to be of a log type. Names are JSON field names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// Every one of these is there.
    pub all: Vec<String>,
    /// At least one of these is there, unless the list is empty.
    pub any: Vec<String>,
    /// None of these is there.
    pub none: Vec<String>,
}

impl Match {
    /// The most bits that the rules of all log types may take together.
    pub const MOST_BITS: usize = 128;

    /// What the rule takes of them: one for each name under `all`, one for `any`, one for `none`.
    pub fn bits(&self) -> usize {
        self.all.len() + usize::from(!self.any.is_empty()) + usize::from(!self.none.is_empty())
    }

    /// Every field that it names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.all.iter().chain(&self.any).chain(&self.none)
    }
}

/// One log type: one schema, one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogType {
    /// `Cloudflare.HttpRequest`.
    pub name: String,
    pub description: String,
    /// Where its fields are documented.
    pub reference_url: Option<String>,
    /// How its records are told from others; without a rule only a route or --log-type tells.
    pub matches: Match,
    /// The columns filled from the record, in documented order.
    pub columns: Vec<Column>,
    /// The index in `columns` of the time that becomes `p_event_time`.
    pub event_time: usize,
    /// The p_ columns it documents, in documented order.
    pub standard: Vec<(Standard, String)>,
}

impl LogType {
    /// The table's name: `cloudflare_httprequest`.
    pub fn table_name(&self) -> String {
        self.name.to_lowercase().replace('.', "_")
    }

    /// The column that holds the event's time.
    pub fn event_column(&self) -> &Column {
        &self.columns[self.event_time]
    }

    /// Whether the documented table has this p_ column.
    pub fn has(&self, standard: Standard) -> bool {
        self.standard.iter().any(|(s, _)| *s == standard)
    }

    /// The table's columns: documented ones in documented order, then [`RESCUED_DATA`].
    /// Partition columns are not among them: they are derived, and stand in the path.
    pub fn arrow_schema(&self) -> SchemaRef {
        let own = self.columns.iter().map(|c| Field::new(&c.name, c.kind.arrow(), !c.required));
        let standard = self.standard.iter().map(|(s, _)| s.field());
        let rescued = Field::new(RESCUED_DATA, ColumnType::StringMap.arrow(), true);
        Arc::new(Schema::new(own.chain(standard).chain([rescued]).collect::<Vec<_>>()))
    }
}
