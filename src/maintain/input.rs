//! A merge's inputs: files read some batches ahead, in the table's columns and types.

use std::sync::Arc;

use arrow::compute::{SortOptions, concat_batches, sort_to_indices, take_record_batch};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use parquet::arrow::async_reader::ParquetRecordBatchStream;
use parquet::errors::{ParquetError, Result};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::checksum::{Checksum, NoId};
use super::merge::Batches;
use crate::base::store::Store;
use crate::format::read::{StoredFile, adapt, external, is_gone, stream};
use crate::table::{DataFile, TableSpec};

/// Inputs whose bytes are fetched before the merge comes to them.
const FETCH_AHEAD: usize = 8;
/// Files of at most this many bytes are fetched whole, larger ones by row groups.
const WHOLE_BYTES: u64 = 4 << 20;
/// Why an input can't be merged.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(
        "{location}: can't be read: {source}; it stays as it is, and is tried again by the next run: if it is gone or broken, restore it"
    )]
    Read {
        /// The file's path in the store.
        location: String,
        source: ParquetError,
    },
    /// Its rows can't be told apart.
    #[error(transparent)]
    NoId(#[from] NoId),
}

impl InputError {
    /// Whether the file is not in the store any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Read { source, .. } if is_gone(source))
    }
}

/// What all inputs of a merge have in common.
pub struct Reading {
    pub store: Store,
    pub spec: Arc<TableSpec>,
    /// Bytes that the batches of all open inputs may take.
    pub memory: usize,
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

/// The inputs of a merge, by their first time. They are decoded by the merge's thread: as many threads as
/// there are inputs would each keep memory for themselves.
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
            let (objects, path) = (
                self.reading.store.objects.clone(),
                file.location(&self.reading.store, &self.reading.spec.name),
            );
            self.reading.runtime.spawn(async move { objects.get(&path).await?.bytes().await })
        });
        self.begun.push(Input::Fetching(fetching));
    }

    fn read(&mut self, input: usize) -> Result<Option<RecordBatch>> {
        let (reading, file) = (&self.reading, &self.files[input]);
        loop {
            match std::mem::replace(&mut self.begun[input], Input::Ended) {
                Input::Fetching(fetching) => {
                    self.begun[input] = reading.runtime.block_on(reading.open(file, fetching, self.share))?
                }
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
    type Error = InputError;

    fn next(&mut self, input: usize) -> std::result::Result<Option<RecordBatch>, InputError> {
        while self.begun.len() < self.files.len().min(input + 1 + FETCH_AHEAD) {
            self.begin();
        }
        let next = self.read(input).map_err(|source| {
            let location =
                self.files[input].location(&self.reading.store, &self.reading.spec.name).to_string();
            InputError::Read { location, source }
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
    let mut edges: Vec<(i64, i32)> =
        files.iter().map(bounds).flat_map(|(least, greatest)| [(least, -1), (greatest, 1)]).collect();
    // At one time what begins comes before what ends.
    edges.sort_unstable();
    let (mut open, mut most) = (0, 0);
    for (_, edge) in edges {
        open -= edge;
        most = most.max(open);
    }
    most as usize
}

impl Reading {
    async fn open(
        &self,
        file: &DataFile,
        fetching: Option<JoinHandle<object_store::Result<Bytes>>>,
        share: usize,
    ) -> Result<Input> {
        let whole = match fetching {
            Some(fetching) => {
                Some(fetching.await.map_err(|e| ParquetError::External(Box::new(e)))?.map_err(external)?)
            }
            None => None,
        };
        let schema = &self.spec.schema;
        let mut batches = stream(&self.store, &self.spec, file, whole, share, |name| {
            schema.column_with_name(name).is_some()
        })
        .await?;
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
    let Some(times) = spec.sort_column.as_ref().and_then(|column| batch.column_by_name(column)) else {
        return Ok(batch.clone());
    };
    let order = sort_to_indices(times, Some(SortOptions::default()), None)?;
    Ok(take_record_batch(batch, &order)?)
}
