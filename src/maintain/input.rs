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
use tokio::task::JoinHandle;

use super::merge::Batches;
use super::rewrite::{Checksum, RewriteError};
use crate::base::store::Store;
use crate::format::write::footer_guess;
use crate::table::{DataFile, TableSpec};

/// Inputs whose bytes are fetched before the merge comes to them.
const FETCH_AHEAD: usize = 8;
/// Files of at most this many bytes are fetched whole, larger ones by row groups.
const WHOLE_BYTES: u64 = 4 << 20;
/// Bytes at the end of a file that may hold its footer, if nothing is known of it.
const FIRST_GUESS: u64 = 64 << 10;
/// Batches of one input in memory: with the merge, and in what is gathered.
const IN_MEMORY: usize = 2;
/// Rows that a batch has at most.
const BATCH_ROWS: usize = 8 * 1024;

/// What all inputs of a merge have in common.
pub struct Reading {
    /// Where they are.
    pub store: Store,
    /// Their table.
    pub spec: Arc<TableSpec>,
    /// Bytes that the batches of all open inputs may take.
    pub memory: usize,
    /// Where requests run.
    pub runtime: Handle,
}

/// An input, as far as the merge has come to it.
enum Input {
    /// Its bytes are on their way, if it is fetched whole.
    Fetching(Option<JoinHandle<object_store::Result<Bytes>>>),
    Open(Box<ParquetRecordBatchStream<StoredFile>>),
    /// All its rows, in order.
    Sorted(RecordBatch),
    Ended,
}

/// The inputs of a merge, by their first time. They are decoded by the merge's thread: as many threads as there are inputs
/// would each keep memory for themselves.
pub struct Inputs {
    reading: Reading,
    files: Vec<DataFile>,
    /// Bytes for the batches of one input.
    share: usize,
    /// Those begun.
    begun: Vec<Input>,
    /// Of all rows that were given.
    pub read: Checksum,
}

impl Inputs {
    /// Inputs none of which is open yet.
    pub fn new(reading: Reading, files: &[DataFile]) -> Self {
        let share = reading.memory / open_at_once(files).max(1);
        Self { reading, files: files.to_vec(), share, begun: Vec::new(), read: Checksum::default() }
    }

    fn begin(&mut self) {
        let file = &self.files[self.begun.len()];
        let fetching = (file.size <= WHOLE_BYTES).then(|| {
            let (objects, path) = (self.reading.store.objects.clone(), file.location(&self.reading.store, &self.reading.spec.name));
            self.reading.runtime.spawn(async move { objects.get(&path).await?.bytes().await })
        });
        self.begun.push(Input::Fetching(fetching));
    }

    fn read(&mut self, input: usize) -> Result<Option<RecordBatch>> {
        let (reading, file) = (&self.reading, &self.files[input]);
        loop {
            match std::mem::replace(&mut self.begun[input], Input::Ended) {
                Input::Fetching(fetching) => self.begun[input] = reading.runtime.block_on(reading.open(file, fetching, self.share))?,
                Input::Open(mut batches) => match reading.runtime.block_on(batches.next()) {
                    Some(batch) => {
                        let batch = adapt(&batch?, &reading.spec.schema)?;
                        self.begun[input] = Input::Open(batches);
                        if batch.num_rows() > 0 {
                            return Ok(Some(batch));
                        }
                    }
                    None => return Ok(None),
                },
                Input::Sorted(batch) => return Ok((batch.num_rows() > 0).then_some(batch)),
                Input::Ended => return Ok(None),
            }
        }
    }
}

impl Batches for Inputs {
    type Error = RewriteError;

    fn next(&mut self, input: usize) -> std::result::Result<Option<RecordBatch>, RewriteError> {
        while self.begun.len() < self.files.len().min(input + 1 + FETCH_AHEAD) {
            self.begin();
        }
        let next = self.read(input).map_err(|source| {
            let location = self.files[input].location(&self.reading.store, &self.reading.spec.name).to_string();
            RewriteError::Read { location, source }
        })?;
        if let Some(batch) = &next {
            self.read.add(&self.reading.spec, batch)?;
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

fn external(error: object_store::Error) -> ParquetError {
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

    fn get_metadata<'a>(&'a mut self, _: Option<&'a ArrowReaderOptions>) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
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
    let mut reader = StoredFile { objects: store.objects.clone(), path, size, footer: FIRST_GUESS.min(size) as usize, whole: None };
    reader.get_metadata(None).await
}

/// A stream of a file's rows, in the types that the table has them in, of those columns that `wanted` wants. `whole`: its
/// bytes, if they are there already.
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
        columns.iter().any(|column| column.path().parts() == [name] && column.physical_type() == parquet::basic::Type::INT96)
    };
    let field = |field: &Arc<Field>| match spec.schema.field_with_name(field.name()) {
        // In nanoseconds, times after 2262 would be others.
        Ok(wanted) if is_int96(field.name()) => field.as_ref().clone().with_data_type(wanted.data_type().clone()),
        _ => in_views(field, spec),
    };
    let fields: Fields = metadata.schema().fields().iter().map(|of| Arc::new(field(of))).collect();
    let options = options.with_schema(Arc::new(Schema::new(fields)));
    let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options)?;
    let groups = metadata.metadata().row_groups();
    let encoded: i64 = groups.iter().map(|group| group.total_byte_size()).sum();
    // A view or a number each, and text that is in memory as it was encoded, or longer.
    let row = 16 * spec.schema.fields().len() + 2 * encoded as usize / (file.rows as usize).max(1);
    let rows = (memory / IN_MEMORY / row).clamp(1, BATCH_ROWS);
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
    async fn open(&self, file: &DataFile, fetching: Option<JoinHandle<object_store::Result<Bytes>>>, share: usize) -> Result<Input> {
        let whole = match fetching {
            Some(fetching) => Some(fetching.await.map_err(|e| ParquetError::External(Box::new(e)))?.map_err(external)?),
            None => None,
        };
        let schema = &self.spec.schema;
        let mut batches = stream(&self.store, &self.spec, file, whole, share, |name| schema.column_with_name(name).is_some()).await?;
        if file.times.is_some() || self.spec.sort_column.is_none() {
            return Ok(Input::Open(Box::new(batches)));
        }
        // Not of our writing, or of long ago: its rows may be in any order.
        let (mut rows, mut held) = (Vec::new(), 0);
        while let Some(batch) = batches.next().await {
            let batch = adapt(&batch?, schema)?;
            held += batch.get_array_memory_size();
            rows.push(batch);
            if held > self.memory * 2 {
                let message = format!(
                    "its rows are not known to be in order, and sorting them takes more memory than there is ({held} bytes): give it more (memory = …)"
                );
                return Err(ParquetError::General(message));
            }
        }
        Ok(Input::Sorted(sort(&concat_batches(schema, &rows)?, &self.spec)?))
    }
}

fn sort(batch: &RecordBatch, spec: &TableSpec) -> Result<RecordBatch> {
    let Some(times) = spec.sort_column.as_ref().and_then(|column| batch.column_by_name(column)) else { return Ok(batch.clone()) };
    let order = sort_to_indices(times, Some(SortOptions::default()), None)?;
    Ok(take_record_batch(batch, &order)?)
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
