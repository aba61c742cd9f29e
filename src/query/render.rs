//! Results as a table to read, or as JSON or CSV to pass on. Row formats stream.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, JsonArray, LineDelimited, Writer, WriterBuilder, make_encoder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns in a frame.
    Table,
    /// One JSON array.
    Json,
    /// A JSON object a line.
    Ndjson,
    /// Comma-separated, with a header; lists and maps as JSON text.
    Csv,
}

enum Sink<W: Write> {
    Table(W, Vec<RecordBatch>),
    Json(Writer<W, JsonArray>),
    Ndjson(Writer<W, LineDelimited>),
    Csv(Box<csv::Writer<W>>),
}

/// Writes batches of one result.
pub struct Renderer<W: Write> {
    sink: Sink<W>,
}

fn failed(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        other => io::Error::other(other),
    }
}

impl<W: Write> Renderer<W> {
    /// A renderer of a result with these columns.
    pub fn new(format: Format, schema: SchemaRef, to: W) -> Result<Self, io::Error> {
        let json = WriterBuilder::new().with_explicit_nulls(true);
        let sink = match format {
            Format::Table => Sink::Table(to, vec![RecordBatch::new_empty(schema)]),
            Format::Json => Sink::Json(json.build(to)),
            Format::Ndjson => Sink::Ndjson(json.build(to)),
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(to);
                // The header is there even if no row is.
                writer.write(&flatten(&RecordBatch::new_empty(schema.clone())).map_err(failed)?).map_err(failed)?;
                Sink::Csv(Box::new(writer))
            }
        };
        Ok(Self { sink })
    }

    /// Writes a batch.
    pub fn write(&mut self, batch: RecordBatch) -> Result<(), io::Error> {
        match &mut self.sink {
            Sink::Table(_, batches) => {
                batches.push(batch);
                Ok(())
            }
            Sink::Json(writer) => writer.write(&batch).map_err(failed),
            Sink::Ndjson(writer) => writer.write(&batch).map_err(failed),
            Sink::Csv(writer) => flatten(&batch).and_then(|flat| writer.write(&flat)).map_err(failed),
        }
    }

    /// Writes what is held back, and the end.
    pub fn finish(self) -> Result<(), io::Error> {
        match self.sink {
            Sink::Table(mut to, batches) => {
                let options = FormatOptions::default().with_null("NULL");
                let table = pretty_format_batches_with_options(&batches, &options).map_err(failed)?;
                writeln!(to, "{table}")
            }
            Sink::Json(mut writer) => {
                writer.finish().map_err(failed)?;
                writeln!(writer.into_inner())
            }
            Sink::Ndjson(mut writer) => writer.finish().map_err(failed),
            Sink::Csv(_) => Ok(()),
        }
    }
}

/// CSV knows no lists and maps: they become JSON text.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let (fields, columns): (Vec<Arc<Field>>, Vec<ArrayRef>) = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| match field.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::Map(..) | DataType::Struct(_) => {
                let text = json_text(field, column)?;
                Ok((Arc::new(Field::new(field.name(), DataType::Utf8, true)), text))
            }
            _ => Ok((field.clone(), column.clone())),
        })
        .collect::<Result<Vec<_>, ArrowError>>()?
        .into_iter()
        .unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
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
