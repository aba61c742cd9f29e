//! A table's files, read in the columns and types that the table has, whoever wrote them.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::write::footer_guess;
use crate::base::store::Store;
use crate::table::{DataFile, TableSpec};

/// Bytes at the end of a file that may hold its footer, if nothing is known of it.
const FIRST_GUESS: u64 = 64 << 10;
/// Batches of one input in memory: with the merge, and in what is gathered.
const BATCHES_IN_MEMORY: usize = 2;
/// Rows that a batch has at most.
const BATCH_ROWS: usize = 8 * 1024;

/// A file in the store, read whole row groups at a time.
pub struct StoredFile {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
    /// How much of its end is read at first, in the hope that it holds the footer.
    footer: usize,
    /// All of it, if it was fetched whole.
    whole: Option<Bytes>,
}

impl StoredFile {
    fn held(&self, range: &Range<u64>) -> Option<Bytes> {
        let range = range.start as usize..range.end as usize;
        self.whole.as_ref().filter(|whole| range.end <= whole.len()).map(|whole| whole.slice(range))
    }
}

/// Whether a file is not in the store any more.
pub fn is_gone(error: &ParquetError) -> bool {
    let ParquetError::External(source) = error else { return false };
    matches!(source.downcast_ref(), Some(object_store::Error::NotFound { .. }))
}

/// As readers of Parquet expect it.
pub fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for StoredFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            match self.held(&range) {
                Some(held) => Ok(held),
                None => self.objects.get_range(&self.path, range).await.map_err(external),
            }
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move {
            match ranges.iter().map(|range| self.held(range)).collect() {
                Some(held) => Ok(held),
                // Neighbours are one request.
                None => self.objects.get_ranges(&self.path, &ranges).await.map_err(external),
            }
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let (size, footer) = (self.size, self.footer);
            let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(footer));
            Ok(Arc::new(reader.load_and_finish(self, size).await?))
        }
        .boxed()
    }
}

/// The footer of a file of which only its size is known.
pub async fn footer(store: &Store, path: Path, size: u64) -> Result<Arc<ParquetMetaData>> {
    let mut reader = StoredFile {
        objects: store.objects.clone(),
        path,
        size,
        footer: FIRST_GUESS.min(size) as usize,
        whole: None,
    };
    reader.get_metadata(None).await
}

/// A stream of a file's rows, in the types that the table has them in, of those columns that `wanted` wants.
/// `whole`: its bytes, if they are there already.
pub async fn stream(
    store: &Store,
    spec: &TableSpec,
    file: &DataFile,
    whole: Option<Bytes>,
    memory: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<ParquetRecordBatchStream<StoredFile>> {
    let path = file.location(store, &spec.name);
    let footer = footer_guess(spec.schema.fields().len(), file.rows).min(file.size) as usize;
    let mut reader = StoredFile { objects: store.objects.clone(), path, size: file.size, footer, whole };
    // By the Parquet types alone: whoever wrote the file, text is text of one kind.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load_async(&mut reader, options.clone()).await?;
    let is_int96 = |name: &str| {
        let columns = metadata.metadata().file_metadata().schema_descr().columns();
        columns.iter().any(|column| {
            column.path().parts() == [name] && column.physical_type() == parquet::basic::Type::INT96
        })
    };
    let field = |field: &Arc<Field>| match spec.schema.field_with_name(field.name()) {
        // In nanoseconds, times after 2262 would be others.
        Ok(wanted) if is_int96(field.name()) => {
            field.as_ref().clone().with_data_type(wanted.data_type().clone())
        }
        _ => in_views(field, spec),
    };
    let fields: Fields = metadata.schema().fields().iter().map(|of| Arc::new(field(of))).collect();
    let options = options.with_schema(Arc::new(Schema::new(fields)));
    let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options)?;
    let groups = metadata.metadata().row_groups();
    let encoded: i64 = groups.iter().map(|group| group.total_byte_size()).sum();
    // A view or a number each, and text that is in memory as it was encoded, or longer.
    let row = 16 * spec.schema.fields().len() + 2 * encoded as usize / (file.rows as usize).max(1);
    let rows = (memory / BATCHES_IN_MEMORY / row).clamp(1, BATCH_ROWS);
    let roots = metadata
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| wanted(field.name()))
        .map(|(at, _)| at);
    let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
    ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
        .with_projection(mask)
        .with_batch_size(rows)
        .build()
}

/// A file's field, its text in views where the table has them.
fn in_views(field: &Field, spec: &TableSpec) -> Field {
    match spec.schema.field_with_name(field.name()) {
        Ok(wanted) => field.clone().with_data_type(views(field.data_type(), wanted.data_type())),
        Err(_) => field.clone(),
    }
}

fn views(there: &DataType, wanted: &DataType) -> DataType {
    let inner = |there: &Field, wanted: &Field| {
        Arc::new(there.clone().with_data_type(views(there.data_type(), wanted.data_type())))
    };
    match (there, wanted) {
        (DataType::Utf8, DataType::Utf8View) => DataType::Utf8View,
        (DataType::Binary, DataType::BinaryView) => DataType::BinaryView,
        (DataType::List(there), DataType::List(wanted)) => DataType::List(inner(there, wanted)),
        (DataType::Map(there, sorted), DataType::Map(wanted, _)) => {
            DataType::Map(inner(there, wanted), *sorted)
        }
        (DataType::Struct(there), DataType::Struct(wanted)) if there.len() == wanted.len() => {
            DataType::Struct(there.iter().zip(wanted).map(|(there, wanted)| inner(there, wanted)).collect())
        }
        _ => there.clone(),
    }
}

/// A file's rows under the table's columns: those that it lacks are null.
pub fn adapt(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let column = |field: &Arc<Field>| -> Result<ArrayRef> {
        match batch.column_by_name(field.name()) {
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
            Some(column) => Ok(cast(column, field.data_type())?),
        }
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

/// The values of a table's id column in a batch.
pub fn ids<'a>(spec: &TableSpec, batch: &'a RecordBatch) -> Option<&'a arrow::array::StringViewArray> {
    batch.column_by_name(spec.id_column())?.as_string_view_opt()
}
