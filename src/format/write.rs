//! Rows to Parquet files: sorted by time, one file a partition, with what the log has to say of each.
//!
//! Rows are never copied whole: the sort orders (batch, row) pairs, and the writer gathers a few thousand at
//! a time. So writing costs little memory beyond the file itself.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriterOptions};
use parquet::basic::{Compression, Encoding, LogicalType, TimeUnit, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::statistics::Statistics;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use rayon::ThreadPool;
use serde_json::{Map, Value, json};

use super::columns::Columns;
use super::partition;
use super::value_index::{self, ValueIndexBuilder};
use crate::base::{new_uuid, now_micros};
use crate::table::{DataFile, TableSpec};

/// How many rows are gathered at once for the writer.
pub const GATHER_ROWS: usize = 16 * 1024;
/// A row group is what a reader takes in at once.
pub const ROW_GROUP_ROWS: usize = 256 * 1024;
/// It is also ended when it takes more than this: rejects can be large.
const ROW_GROUP_BYTES: usize = 64 << 20;
const PAGE_ROWS: usize = 16 * 1024;
/// A list's value index is kept up to this part of the file.
const INDEX_PART: usize = 10;
const BLOOM_FALSE_POSITIVES: f64 = 0.01;
/// Tells Spark that times are by the calendar of today, whatever their century. Of a file that doesn't, it
/// refuses times before 1900, which a single header of a single origin server may bring:
/// <https://spark.apache.org/docs/latest/sql-data-sources-parquet.html>, under `datetimeRebaseModeInRead`.
/// The first version that wrote them so.
const CALENDAR: (&str, &str) = ("org.apache.spark.version", "3.0.0");

/// How long the footer of a file may be, measured on realistic rows: what is read at its end in the hope that
/// it is all of it.
pub fn footer_guess(columns: usize, rows: u64) -> u64 {
    let groups = rows.div_ceil(ROW_GROUP_ROWS as u64).max(1);
    groups * (180 * columns as u64 + 512)
}

/// Rows that can't be written: a fault of this program, never of the data.
#[derive(Debug, thiserror::Error)]
#[error("writing a Parquet file for {table} failed: {message}")]
pub struct FileError {
    table: String,
    message: String,
}

/// A Parquet file in memory, ready to be uploaded.
#[derive(Debug)]
pub struct EncodedFile {
    /// What the log says of it.
    pub file: DataFile,
    pub bytes: Vec<u8>,
}

/// Writes all rows of `batches`, which have the table's columns, as one file for each partition. Each is
/// written when it is asked for: who passes one on before the next holds one of them, however many partitions
/// there are.
pub fn encode<'a>(
    spec: &'a TableSpec,
    batches: &'a [RecordBatch],
) -> impl Iterator<Item = Result<EncodedFile, FileError>> + 'a {
    let Sorted { times, rows } = sort(spec, batches);
    let sources: Vec<&RecordBatch> = batches.iter().collect();
    let runs = partition::cut(&times, spec.partitioning).into_iter().filter(|run| run.start < run.end);
    runs.map(move |run| {
        let rows = &rows[run.start..run.end];
        let mut bytes = Vec::new();
        let mut writer = FileWriter::new(spec, run.values, rows.len(), &mut bytes, None)?;
        for chunk in rows.chunks(GATHER_ROWS) {
            writer.write(&gather(spec, &sources, chunk)?)?;
        }
        let file = writer.finish()?;
        Ok(EncodedFile { file, bytes })
    })
}

fn failed(spec: &TableSpec, error: impl std::fmt::Display) -> FileError {
    FileError { table: spec.name.clone(), message: error.to_string() }
}

/// One Parquet file under way into a sink, in the form that all of a table's files have.
pub struct FileWriter<'a, W: Write + Send> {
    spec: &'a TableSpec,
    writer: SerializedFileWriter<W>,
    factory: ArrowRowGroupWriterFactory,
    /// The row group at hand.
    columns: Option<Columns>,
    /// Those that encode columns; none: the caller's.
    threads: Option<Arc<ThreadPool>>,
    index: ValueIndexBuilder,
    rows: usize,
    times: Option<(i64, i64)>,
    path: String,
    partition_values: BTreeMap<String, String>,
}

impl<'a, W: Write + Send> FileWriter<'a, W> {
    /// Begins a file of a partition for at most `rows` rows. `threads`: those that encode its columns; none:
    /// the caller's.
    pub fn new(
        spec: &'a TableSpec,
        partition_values: BTreeMap<String, String>,
        rows: usize,
        sink: W,
        threads: Option<Arc<ThreadPool>>,
    ) -> Result<Self, FileError> {
        // Without the Arrow schema, which would make readers hold text as we do; the Parquet types say all
        // there is to say.
        let options =
            ArrowWriterOptions::new().with_properties(properties(spec, rows)).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(sink, spec.schema.clone(), options)
            .and_then(ArrowWriter::into_serialized_writer);
        let (writer, factory) = writer.map_err(|e| failed(spec, e))?;
        let folders = spec.partitioning.map_or(&[][..], |p| p.columns()).iter();
        let folders =
            folders.filter_map(|column| Some(format!("{column}={}/", partition_values.get(*column)?)));
        let path = format!("{}{}.parquet", folders.collect::<String>(), new_uuid());
        let index = ValueIndexBuilder::new(spec);
        Ok(Self {
            spec,
            writer,
            factory,
            columns: None,
            threads,
            index,
            rows: 0,
            times: None,
            path,
            partition_values,
        })
    }

    /// Its path below the table.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes rows that come after those before.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), FileError> {
        // The value index tells in which row group a value stands: nothing is written across the end of one.
        let mut at = 0;
        while at < rows.num_rows() {
            let length = (ROW_GROUP_ROWS - self.rows_of_group()).min(rows.num_rows() - at);
            self.write_in_group(&rows.slice(at, length)).map_err(|e| failed(self.spec, e))?;
            at += length;
        }
        Ok(())
    }

    fn write_in_group(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        let group = self.writer.flushed_row_groups().len();
        self.index.add(rows, group);
        let columns = match &mut self.columns {
            Some(columns) => columns,
            none => none.insert(Columns::begin(&self.factory, self.writer.schema_descr(), group)?),
        };
        columns.write(rows, self.threads.as_deref())?;
        // Until it ends, a row group is in memory.
        if columns.rows() >= ROW_GROUP_ROWS || columns.bytes() > ROW_GROUP_BYTES {
            self.end_group()?;
        }
        self.rows += rows.num_rows();
        if let Some(times) = self.spec.sort_column.as_ref().and_then(|column| rows.column_by_name(column)) {
            let times = times.as_primitive::<TimestampMicrosecondType>().values();
            self.times = Some((self.times.map_or(times[0], |(least, _)| least), times[times.len() - 1]));
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), ParquetError> {
        match self.columns.take() {
            Some(columns) => columns.end(self.writer.next_row_group()?, self.threads.as_deref()),
            None => Ok(()),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of the row group at hand.
    pub fn rows_of_group(&self) -> usize {
        self.columns.as_ref().map_or(0, Columns::rows)
    }

    /// Bytes so far, those of the row group at hand by estimation.
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.columns.as_ref().map_or(0, Columns::bytes)
    }

    pub fn last_time(&self) -> Option<i64> {
        self.times.map(|(_, greatest)| greatest)
    }

    /// Writes what is left, and tells what the log has to say of the file.
    pub fn finish(mut self) -> Result<DataFile, FileError> {
        let ended = self.end_group();
        let Self { spec, mut writer, index, rows, times, path, partition_values, .. } = self;
        let finish = || {
            ended?;
            let written = writer.bytes_written();
            let (index, places) = index.finish(written as u64, written / INDEX_PART);
            if !places.is_empty() {
                writer.write_all(&index)?;
                let places =
                    serde_json::to_string(&places).map_err(|e| ParquetError::External(Box::new(e)))?;
                writer.append_key_value_metadata(KeyValue::new(value_index::METADATA_KEY.to_owned(), places));
            }
            writer.append_key_value_metadata(KeyValue::new(CALENDAR.0.to_owned(), CALENDAR.1.to_owned()));
            Ok::<_, ParquetError>((writer.finish()?, writer.bytes_written()))
        };
        let (metadata, size) = finish().map_err(|e| failed(spec, e))?;
        Ok(DataFile {
            path,
            size: size as u64,
            rows: rows as u64,
            modified_ms: now_micros() / 1000,
            stats: stats(spec, &metadata).to_string(),
            times,
            partition_values,
        })
    }
}

/// What the log has to say of a file that stands in the store, by its footer. `path`: below the table.
pub fn describe(
    spec: &TableSpec,
    path: &str,
    size: u64,
    modified_ms: i64,
    metadata: &ParquetMetaData,
) -> DataFile {
    let folders = path.split('/').filter_map(|folder| folder.split_once('='));
    let time = spec.sort_column.as_ref().and_then(|column| leaf_of(spec, metadata, column));
    // Whoever sorted its rows says so in every row group.
    let is_sorted = |leaf: usize| {
        let mut sorting =
            metadata.row_groups().iter().map(|group| group.sorting_columns().and_then(|by| by.first()));
        sorting.all(|by| by.is_some_and(|by| by.column_idx as usize == leaf && !by.descending))
    };
    DataFile {
        path: path.to_owned(),
        size,
        rows: metadata.file_metadata().num_rows() as u64,
        modified_ms,
        stats: stats(spec, metadata).to_string(),
        times: time.filter(|leaf| is_sorted(*leaf)).and_then(|leaf| time_bounds(metadata, leaf)),
        partition_values: folders.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }
}

/// The order in which rows are written, as (batch, row), and their times.
struct Sorted {
    rows: Vec<(usize, usize)>,
    times: Vec<i64>,
}

fn sort(spec: &TableSpec, batches: &[RecordBatch]) -> Sorted {
    let Some(column) = spec.sort_column.as_ref().and_then(|c| spec.schema.index_of(c).ok()) else {
        let rows: Vec<_> = batches
            .iter()
            .enumerate()
            .flat_map(|(b, batch)| (0..batch.num_rows()).map(move |r| (b, r)))
            .collect();
        return Sorted { times: vec![0; rows.len()], rows };
    };
    let mut keyed = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (b, batch) in batches.iter().enumerate() {
        let times = batch.column(column).as_primitive::<TimestampMicrosecondType>();
        keyed.extend(times.values().iter().enumerate().map(|(r, time)| (*time, b as u32, r as u32)));
    }
    // Equal times keep the order in which they came.
    keyed.sort_unstable();
    Sorted {
        rows: keyed.iter().map(|k| (k.1 as usize, k.2 as usize)).collect(),
        times: keyed.iter().map(|k| k.0).collect(),
    }
}

/// Rows of several batches of a table's columns, each named by batch and row, as one batch. At least one row.
pub fn gather(
    spec: &TableSpec,
    sources: &[&RecordBatch],
    rows: &[(usize, usize)],
) -> Result<RecordBatch, FileError> {
    let (batch, first) = rows[0];
    let consecutive = rows.iter().enumerate().all(|(i, row)| *row == (batch, first + i));
    if consecutive {
        return Ok(sources[batch].slice(first, rows.len()));
    }
    // Only the batches that these rows are in: every source costs, used or not.
    let mut used: Vec<usize> = rows.iter().map(|row| row.0).collect();
    used.sort_unstable();
    used.dedup();
    let local: Vec<(usize, usize)> =
        rows.iter().map(|(b, r)| (used.binary_search(b).unwrap_or_default(), *r)).collect();
    let sources: Vec<&RecordBatch> = used.iter().map(|b| sources[*b]).collect();
    let gathered = interleave_record_batch(&sources, &local).map_err(|e| failed(spec, e))?;
    // The schema stays the table's own object.
    gathered.with_schema(spec.schema.clone()).map_err(|e| failed(spec, e))
}

fn properties(spec: &TableSpec, rows: usize) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_created_by(format!("flarelake {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::Page);
    for (index, field) in spec.schema.fields().iter().enumerate() {
        let path = column_path(field.name(), field.data_type());
        if spec.sort_column.as_ref() == Some(field.name()) {
            let sorting = SortingColumn {
                column_idx: leaf_index(&spec.schema, index),
                descending: false,
                nulls_first: false,
            };
            builder = builder.set_sorting_columns(Some(vec![sorting]));
            builder = plain(builder, path.clone(), Encoding::DELTA_BINARY_PACKED);
        }
        if field.name() == "p_row_id" {
            // Neighbours share all but the last few digits, and no value comes twice.
            builder = plain(builder, path.clone(), Encoding::DELTA_BYTE_ARRAY);
        }
        if spec.bloom_columns.contains(field.name()) {
            let values =
                rows.min(ROW_GROUP_ROWS) * if matches!(field.data_type(), DataType::List(_)) { 3 } else { 1 };
            builder = builder
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(path, values as u64);
        }
    }
    builder.build()
}

fn plain(builder: WriterPropertiesBuilder, path: ColumnPath, encoding: Encoding) -> WriterPropertiesBuilder {
    builder.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding)
}

/// The Parquet path of a column's values.
fn column_path(name: &str, data_type: &DataType) -> ColumnPath {
    let mut parts = vec![name.to_owned()];
    if matches!(data_type, DataType::List(_)) {
        parts.extend(["list".to_owned(), "element".to_owned()]);
    }
    ColumnPath::new(parts)
}

/// Parquet counts leaves: a map has two.
fn leaf_index(schema: &SchemaRef, column: usize) -> i32 {
    let leaves = |t: &DataType| if matches!(t, DataType::Map(..)) { 2 } else { 1 };
    schema.fields()[..column].iter().map(|f| leaves(f.data_type())).sum()
}

/// Where a column stands in a file, which may have fewer or more of them than its table.
fn leaf_of(spec: &TableSpec, metadata: &ParquetMetaData, column: &str) -> Option<usize> {
    let path = column_path(column, spec.schema.field_with_name(column).ok()?.data_type());
    metadata.file_metadata().schema_descr().columns().iter().position(|leaf| *leaf.path() == path)
}

/// The least and the greatest value of a column, as its row groups tell by `of`. A row group of nothing but
/// nulls has none; one that does not tell makes every bound a guess.
fn bounds<T: Ord>(
    metadata: &ParquetMetaData,
    leaf: usize,
    of: impl Fn(&Statistics) -> Option<(T, T)>,
) -> Option<(T, T)> {
    let mut all = None;
    for group in metadata.row_groups() {
        let statistics = group.column(leaf).statistics()?;
        if statistics.null_count_opt() == Some(group.num_rows() as u64) {
            continue;
        }
        let (least, greatest) = of(statistics)?;
        all = Some(match all {
            None => (least, greatest),
            Some((min, max)) => (least.min(min), greatest.max(max)),
        });
    }
    all
}

/// [`bounds`] of a time, in microseconds. Another engine may have written it in another unit.
fn time_bounds(metadata: &ParquetMetaData, leaf: usize) -> Option<(i64, i64)> {
    let column = metadata.file_metadata().schema_descr().column(leaf);
    let Some(LogicalType::Timestamp(time)) = column.logical_type_ref() else { return None };
    if time.unit != TimeUnit::MICROS {
        return None;
    }
    bounds(metadata, leaf, |statistics| match statistics {
        Statistics::Int64(v) => Some((*v.min_opt()?, *v.max_opt()?)),
        _ => None,
    })
}

fn text_bounds(metadata: &ParquetMetaData, leaf: usize) -> Option<(String, String)> {
    let text = |bytes: &parquet::data_type::ByteArray| Some(bytes.as_utf8().ok()?.to_owned());
    bounds(metadata, leaf, |statistics| match statistics {
        Statistics::ByteArray(v) => Some((text(v.min_opt()?)?, text(v.max_opt()?)?)),
        _ => None,
    })
}

/// Delta's statistics of a file: true bounds, whoever reads them.
fn stats(spec: &TableSpec, metadata: &ParquetMetaData) -> Value {
    let (mut least, mut greatest, mut nulls) = (Map::new(), Map::new(), Map::new());
    for name in &spec.stats {
        let Ok(field) = spec.schema.field_with_name(name) else { continue };
        let Some(leaf) = leaf_of(spec, metadata, name) else { continue };
        let is_time = matches!(field.data_type(), DataType::Timestamp(..));
        let found: Option<Vec<&Statistics>> =
            metadata.row_groups().iter().map(|g| g.column(leaf).statistics()).collect();
        // A row group that tells nothing makes every bound a guess.
        let Some(found) = found else { continue };
        nulls.insert(name.clone(), json!(found.iter().filter_map(|s| s.null_count_opt()).sum::<u64>()));
        if is_time {
            if let Some((min, max)) = time_bounds(metadata, leaf) {
                least.insert(name.clone(), json!(milliseconds(min.div_euclid(1000))));
                // Cut to the millisecond, the greatest time would be too small to be a bound.
                greatest.insert(name.clone(), json!(milliseconds(-(-max).div_euclid(1000))));
            }
        } else if let Some((min, max)) = text_bounds(metadata, leaf) {
            least.insert(name.clone(), json!(min));
            greatest.insert(name.clone(), json!(max));
        }
    }
    json!({"numRecords": metadata.file_metadata().num_rows(), "minValues": least, "maxValues": greatest, "nullCount": nulls})
}

fn milliseconds(count: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(count).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// The rows of an uploaded file that `keep` wants, told by their `p_row_id`; none if it wants none.
pub fn filter_rows(
    spec: &TableSpec,
    bytes: bytes::Bytes,
    keep: impl Fn(&str) -> bool,
) -> Result<Vec<RecordBatch>, FileError> {
    let failed = |message: String| FileError { table: spec.name.clone(), message };
    // Text is read into views, as the schema has it, and every column under the type it was written from.
    let options = ArrowReaderOptions::new().with_schema(spec.schema.clone());
    let reader =
        ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options).and_then(|b| b.build());
    let mut kept = Vec::new();
    for batch in reader.map_err(|e| failed(e.to_string()))? {
        let batch = batch.map_err(|e| failed(e.to_string()))?;
        let ids = batch.column_by_name("p_row_id").ok_or_else(|| failed("no column p_row_id".into()))?;
        let mask: arrow::array::BooleanArray = ids.as_string_view().iter().map(|id| id.map(&keep)).collect();
        let batch = arrow::compute::filter_record_batch(&batch, &mask).map_err(|e| failed(e.to_string()))?;
        if batch.num_rows() > 0 {
            kept.push(batch);
        }
    }
    Ok(kept)
}

/// Bytes that a batch holds in memory.
pub fn memory(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::get_array_memory_size).sum()
}
