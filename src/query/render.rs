//! Results as a table to read, or in a format to pass on. All of them stream.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, StringArray};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, JsonArray, LineDelimited, Writer, WriterBuilder, make_encoder};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::frame::{Expanded, TableWriter};
use crate::base::printable::{JsonWriter, printable};

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns in a frame, or records where these are too wide.
    Table(Expanded),
    /// One JSON array.
    Json,
    /// A JSON object a line.
    Ndjson,
    /// Comma-separated, with a header; lists and maps as JSON text.
    Csv(Cells),
    /// A Parquet file.
    Parquet,
}

/// How text stands in the cells of CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cells {
    /// For a terminal: what would steer it is escaped. Else every byte is as it was.
    pub shown: bool,
    /// For a spreadsheet: what it would take for a formula gets a `'` before it.
    pub no_formulas: bool,
}

impl Cells {
    /// Whether cells may differ from what is in the rows.
    fn change(self) -> bool {
        self.shown || self.no_formulas
    }

    fn cell<'a>(self, text: &'a str) -> Cow<'a, str> {
        let text = match self.no_formulas
            && text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'])
        {
            true => Cow::Owned(format!("'{text}")),
            false => Cow::Borrowed(text),
        };
        if self.shown { Cow::Owned(printable(&text).into_owned()) } else { text }
    }
}

enum Sink<W: Write + Send> {
    Table(Box<TableWriter<W>>),
    Json(Writer<JsonWriter<W>, JsonArray>),
    Ndjson(Writer<JsonWriter<W>, LineDelimited>),
    Csv(Cells, Box<csv::Writer<W>>),
    Parquet(Box<ArrowWriter<W>>),
}

/// Writes batches of one result.
pub struct Renderer<W: Write + Send> {
    schema: SchemaRef,
    sink: Sink<W>,
}

fn failed(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        other => io::Error::other(other),
    }
}

fn not_written(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}

impl<W: Write + Send> Renderer<W> {
    /// A renderer of a result with these columns.
    pub fn new(format: Format, schema: SchemaRef, to: W) -> Result<Self, io::Error> {
        let schema = with_names_of_their_own(&schema);
        let json = WriterBuilder::new().with_explicit_nulls(true);
        let sink = match format {
            Format::Table(expanded) => Sink::Table(Box::new(TableWriter::new(&schema, expanded, to))),
            Format::Json => Sink::Json(json.build(JsonWriter::new(to))),
            Format::Ndjson => Sink::Ndjson(json.build(JsonWriter::new(to))),
            Format::Csv(cells) => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(to);
                // The header is there even if no row is.
                writer
                    .write(&flatten(&RecordBatch::new_empty(schema.clone()), cells).map_err(failed)?)
                    .map_err(failed)?;
                Sink::Csv(cells, Box::new(writer))
            }
            Format::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                Sink::Parquet(Box::new(
                    ArrowWriter::try_new(to, schema.clone(), Some(properties)).map_err(not_written)?,
                ))
            }
        };
        Ok(Self { schema, sink })
    }

    /// Writes a batch.
    pub fn write(&mut self, batch: RecordBatch) -> Result<(), io::Error> {
        let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let columns = batch.columns().to_vec();
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &rows).map_err(failed)?;
        match &mut self.sink {
            Sink::Table(writer) => writer.write(&batch).map_err(failed),
            Sink::Parquet(writer) => writer.write(&batch).map_err(not_written),
            Sink::Json(writer) => writer.write(&batch).map_err(failed),
            Sink::Ndjson(writer) => writer.write(&batch).map_err(failed),
            Sink::Csv(cells, writer) => {
                flatten(&batch, *cells).and_then(|flat| writer.write(&flat)).map_err(failed)
            }
        }
    }

    /// Writes what is held back, and the end: all of it is with the system then, or an error says that it is
    /// not.
    pub fn finish(self) -> Result<(), io::Error> {
        match self.sink {
            Sink::Table(writer) => writer.finish(),
            Sink::Parquet(writer) => writer.into_inner().map_err(not_written)?.flush(),
            Sink::Json(mut writer) => {
                writer.finish().map_err(failed)?;
                let mut to = writer.into_inner();
                writeln!(to)?;
                to.flush()
            }
            Sink::Ndjson(mut writer) => {
                writer.finish().map_err(failed)?;
                writer.into_inner().flush()
            }
            Sink::Csv(_, writer) => writer.into_inner().flush(),
        }
    }
}

/// Two columns of one name would be one in JSON, and none in Parquet: the later ones are numbered.
fn with_names_of_their_own(schema: &SchemaRef) -> SchemaRef {
    let mut seen = HashSet::new();
    let fields = schema.fields().iter().map(|field| {
        let own = |n: usize| if n == 1 { field.name().clone() } else { format!("{}_{n}", field.name()) };
        let name = (1..).map(own).find(|name| !seen.contains(name)).expect("numbers don't end");
        seen.insert(name.clone());
        Arc::new(field.as_ref().clone().with_name(name))
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// CSV knows no lists and maps: they become JSON text.
fn flatten(batch: &RecordBatch, cells: Cells) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let named = |field: &Field, kind: DataType| Arc::new(Field::new(cells.cell(field.name()), kind, true));
    let (fields, columns): (Vec<Arc<Field>>, Vec<ArrayRef>) = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| match field.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::Map(..) | DataType::Struct(_) => {
                Ok((named(field, DataType::Utf8), in_cells(&json_text(field, column)?, cells)?))
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if cells.change() => {
                Ok((named(field, DataType::Utf8), in_cells(column, cells)?))
            }
            kind => Ok((named(field, kind.clone()), column.clone())),
        })
        .collect::<Result<Vec<_>, ArrowError>>()?
        .into_iter()
        .unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Text as it stands in cells.
fn in_cells(column: &ArrayRef, cells: Cells) -> Result<ArrayRef, ArrowError> {
    if !cells.change() {
        return Ok(column.clone());
    }
    let text = arrow::compute::cast(column, &DataType::Utf8)?;
    let texts = text.as_string::<i32>().iter().map(|text| text.map(|text| cells.cell(text)));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

fn json_text(field: &Arc<Field>, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(field, column, &options)?;
    let texts = (0..column.len()).map(|row| {
        if column.is_null(row) {
            return None;
        }
        let mut bytes = Vec::new();
        encoder.encode(row, &mut bytes);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    });
    Ok(Arc::new(texts.collect::<StringArray>()))
}
