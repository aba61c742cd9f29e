//! A merge's inputs: files read some batches ahead, by threads of their own, in the table's columns and types.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, new_null_array};
use arrow::compute::{SortOptions, cast, concat_batches, sort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::merge::Batches;
use super::rewrite::{Checksum, RewriteError};
use crate::base::store::Store;
use crate::ingest::file::footer_guess;
use crate::table::{DataFile, TableSpec};

/// Inputs that are begun before the merge comes to them.
const OPEN_AHEAD: usize = 3;
/// Batches of one input in memory: with the merge, in the channel, being decoded, and in the chunk being written.
const IN_MEMORY: usize = 4;
/// Rows that a batch has at least and at most.
const BATCH_ROWS: (usize, usize) = (64, 8 * 1024);

/// What all inputs of a merge have in common.
pub struct Reading {
    /// Where they are.
    pub store: Store,
    /// Their table.
    pub spec: Arc<TableSpec>,
    /// Bytes that the batches of all open inputs may take.
    pub memory: usize,
    /// Where tasks run.
    pub runtime: Handle,
}

/// The inputs of a merge, by their first time.
pub struct Inputs {
    reading: Arc<Reading>,
    files: Vec<DataFile>,
    /// Bytes for the batches of one input.
    share: usize,
    /// Those begun.
    begun: Vec<Option<mpsc::Receiver<std::result::Result<RecordBatch, RewriteError>>>>,
    /// Of all rows that were given.
    pub read: Checksum,
}

impl Inputs {
    /// Inputs none of which is open yet.
    pub fn new(reading: Reading, files: &[DataFile]) -> Self {
        let share = reading.memory / (open_at_once(files) + OPEN_AHEAD);
        Self { reading: Arc::new(reading), files: files.to_vec(), share, begun: Vec::new(), read: Checksum::default() }
    }

    fn begin(&mut self, input: usize) {
        let (reading, file, share) = (self.reading.clone(), self.files[input].clone(), self.share);
        let (send, receive) = mpsc::channel(1);
        let runtime = reading.runtime.clone();
        self.reading.runtime.spawn_blocking(move || {
            // A merge that ended early hangs up.
            if let Err(error) = runtime.block_on(reading.give(&file, share, &send)) {
                let location = file.location(&reading.store, &reading.spec.name).to_string();
                drop(send.blocking_send(Err(RewriteError::Read { location, source: error })));
            }
        });
        self.begun.push(Some(receive));
    }
}

impl Batches for Inputs {
    type Error = RewriteError;

    fn next(&mut self, input: usize) -> std::result::Result<Option<RecordBatch>, RewriteError> {
        while self.begun.len() < self.files.len().min(input + 1 + OPEN_AHEAD) {
            self.begin(self.begun.len());
        }
        let Some(batches) = &mut self.begun[input] else { return Ok(None) };
        let next = batches.blocking_recv().transpose()?;
        match &next {
            Some(batch) => self.read.add(&self.reading.spec, batch)?,
            None => self.begun[input] = None,
        }
        Ok(next)
    }
}

/// How many of these files have rows between the same two times, at most.
fn open_at_once(files: &[DataFile]) -> usize {
    let bounds = |file: &DataFile| file.time_bounds().map_or((0, 0), |times| (times.least, times.greatest));
    let mut edges: Vec<(i64, i32)> = files.iter().map(bounds).flat_map(|(least, greatest)| [(least, -1), (greatest, 1)]).collect();
    // At one time what begins comes before what ends.
    edges.sort_unstable();
    let (mut open, mut most) = (0, 0);
    for (_, edge) in edges {
        open -= edge;
        most = most.max(open);
    }
    most as usize
}

/// A file in the store, read whole row groups at a time.
pub struct StoredFile {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
    /// How much of its end is read at first, in the hope that it holds the footer.
    footer: usize,
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for StoredFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move { self.objects.get_range(&self.path, range).await.map_err(external) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        // Neighbours are one request.
        async move { self.objects.get_ranges(&self.path, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(&'a mut self, _: Option<&'a ArrowReaderOptions>) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let (size, footer) = (self.size, self.footer);
            let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(footer));
            Ok(Arc::new(reader.load_and_finish(self, size).await?))
        }
        .boxed()
    }
}

/// A stream of a file's rows, in the types that the table has them in, of those columns that `wanted` wants.
pub async fn stream(
    store: &Store,
    spec: &TableSpec,
    file: &DataFile,
    memory: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<ParquetRecordBatchStream<StoredFile>> {
    let path = file.location(store, &spec.name);
    let footer = footer_guess(spec.schema.fields().len(), file.rows).min(file.size) as usize;
    let mut reader = StoredFile { objects: store.objects.clone(), path, size: file.size, footer };
    // By the Parquet types alone: whoever wrote the file, text is text of one kind.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load_async(&mut reader, options.clone()).await?;
    let fields: Fields = metadata.schema().fields().iter().map(|field| Arc::new(in_views(field, spec))).collect();
    let options = options.with_schema(Arc::new(Schema::new(fields)));
    let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options)?;
    let groups = metadata.metadata().row_groups();
    let encoded: i64 = groups.iter().map(|group| group.total_byte_size()).sum();
    // A view or a number each, and text that is in memory as it was encoded, or longer.
    let row = 16 * spec.schema.fields().len() + 2 * encoded as usize / (file.rows as usize).max(1);
    let rows = (memory / IN_MEMORY / row).clamp(BATCH_ROWS.0, BATCH_ROWS.1);
    let roots = metadata.schema().fields().iter().enumerate().filter(|(_, field)| wanted(field.name())).map(|(at, _)| at);
    let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
    ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata).with_projection(mask).with_batch_size(rows).build()
}

/// A file's field, its text in views where the table has them.
fn in_views(field: &Field, spec: &TableSpec) -> Field {
    match spec.schema.field_with_name(field.name()) {
        Ok(wanted) => field.clone().with_data_type(views(field.data_type(), wanted.data_type())),
        Err(_) => field.clone(),
    }
}

fn views(there: &DataType, wanted: &DataType) -> DataType {
    let inner = |there: &Field, wanted: &Field| Arc::new(there.clone().with_data_type(views(there.data_type(), wanted.data_type())));
    match (there, wanted) {
        (DataType::Utf8, DataType::Utf8View) => DataType::Utf8View,
        (DataType::List(there), DataType::List(wanted)) => DataType::List(inner(there, wanted)),
        (DataType::Map(there, sorted), DataType::Map(wanted, _)) => DataType::Map(inner(there, wanted), *sorted),
        (DataType::Struct(there), DataType::Struct(wanted)) if there.len() == wanted.len() => {
            DataType::Struct(there.iter().zip(wanted).map(|(there, wanted)| inner(there, wanted)).collect())
        }
        _ => there.clone(),
    }
}

impl Reading {
    /// Reads a file into a channel, until its end or until nobody listens.
    async fn give(&self, file: &DataFile, share: usize, send: &mpsc::Sender<std::result::Result<RecordBatch, RewriteError>>) -> Result<()> {
        let schema = &self.spec.schema;
        let mut batches = stream(&self.store, &self.spec, file, share, |name| schema.column_with_name(name).is_some()).await?;
        if file.times.is_some() || self.spec.sort_column.is_none() {
            while let Some(batch) = batches.next().await {
                let batch = adapt(&batch?, schema)?;
                if batch.num_rows() > 0 && send.send(Ok(batch)).await.is_err() {
                    break;
                }
            }
            return Ok(());
        }
        // Not of our writing, or of long ago: its rows may be in any order.
        let mut whole = Vec::new();
        while let Some(batch) = batches.next().await {
            whole.push(adapt(&batch?, schema)?);
            let held: usize = whole.iter().map(RecordBatch::get_array_memory_size).sum();
            if held > self.memory * 2 {
                let message = format!("its rows are not known to be in order, and sorting them takes more memory than the {held} bytes there are");
                return Err(ParquetError::General(message));
            }
        }
        let sorted = sort(&concat_batches(schema, &whole)?, &self.spec)?;
        if sorted.num_rows() > 0 {
            drop(send.send(Ok(sorted)).await);
        }
        Ok(())
    }
}

fn sort(batch: &RecordBatch, spec: &TableSpec) -> Result<RecordBatch> {
    let Some(times) = spec.sort_column.as_ref().and_then(|column| batch.column_by_name(column)) else { return Ok(batch.clone()) };
    let order = sort_to_indices(times, Some(SortOptions::default()), None)?;
    Ok(take_record_batch(batch, &order)?)
}

/// A file's rows under the table's columns: those that it lacks are null.
fn adapt(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
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
