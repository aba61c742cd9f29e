//! One merge: inputs read, merged by their time, and written as files of the target size, in bounded memory.
//!
//! ```text
//! read, decode, merge (a thread) → encode (by columns, on every core) → upload → read back the ids
//! ```
//!
//! Rows are ordered by time alone. Ordering by the client's address within slices of time was measured on a
//! day of 666,664 generated requests of 4,000 clients: a client's newest twenty rows are in 7.8 pages by
//! time, in 7.4 with slices of a minute and in 5.0 with slices of an hour, in a file that is 4 to 5 % larger.
//! Only a slice of a whole day gathers them (1.0), but loses the order by time that filters, sorts and merges
//! need.
//!
//! Rows are counted, and their ids hashed, as they are read, and again from the written files. A merge may be
//! committed only if both agree with each other and with the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::AsArray as _;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use rayon::ThreadPool;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::checksum::Checksum;
use super::input::{InputError, Inputs, Reading};
use super::merge::{Chunk, Merge};
use super::plan::Bin;
use crate::base::store::{Store, StoreError};
use crate::format::read::{ids, stream};
use crate::format::write::{FileError, FileWriter, GATHER_ROWS, ROW_GROUP_ROWS, gather};
use crate::table::{DataFile, TableError, TableSpec, file_location};

/// Files of at most this many bytes are uploaded by one put, larger ones in parts of this size.
const PART_BYTES: usize = 8 << 20;
/// A file is ended with a row group that is at least this full, so that it has no tiny one.
const FULL_GROUP_ROWS: usize = ROW_GROUP_ROWS / 16 * 15;
/// Batches on their way from merging to writing.
const BATCHES_IN_FLIGHT: usize = 1;
/// Of the memory of a merge the part for rows that are gathered at once.
const GATHER_PART: usize = 16;
/// Of the memory of a merge the part for batches that were read; the rest is the writer's.
const READ_PART: usize = 3;

/// Why a merge failed. Nothing of it was committed.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// An input or an output can't be read.
    #[error(transparent)]
    Read(#[from] InputError),
    /// The table's log can't be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The store doesn't tell what time it is.
    #[error(transparent)]
    Time(#[from] StoreError),
    /// A fault of this program.
    #[error(transparent)]
    Write(#[from] FileError),
    /// An output can't be uploaded.
    #[error(
        "uploading {location} failed: {message}; its inputs stay as they are, and the next run tries again"
    )]
    Upload {
        /// The file's path in the store.
        location: String,
        message: String,
    },
    /// What was written is not what was read, or what was read not what the log says.
    #[error(
        "{table}: merging {files} files read {read} and wrote {written}, but the log says {told} rows; the files stay as they are: \
         please report it"
    )]
    Differs {
        table: String,
        files: usize,
        written: Checksum,
        read: Checksum,
        /// Rows of the inputs, by the log.
        told: u64,
    },
    /// A fault of this program.
    #[error(
        "{table}: merging {files} files, of which {first} is the first, panicked: {said}; they stay as they are, and other merges go on: \
         please report it"
    )]
    Panicked {
        table: String,
        files: usize,
        /// The path of one of them.
        first: String,
        said: String,
    },
}

impl RewriteError {
    /// Where the file is that can't be read, if that is what is wrong.
    pub fn location(&self) -> Option<&str> {
        if let Self::Read(InputError::Read { location, .. }) = self { Some(location) } else { None }
    }

    /// Whether an input is not in the store any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Read(error) if error.is_gone())
    }
}

/// Running totals that a progress display reads.
#[derive(Debug, Default)]
pub struct Progress {
    pub bins: AtomicU64,
    pub bins_done: AtomicU64,
    /// Rows of all merges planned.
    pub rows: AtomicU64,
    pub rows_done: AtomicU64,
}

/// What merges have in common.
#[derive(Clone)]
pub struct Rewriter {
    pub store: Store,
    /// The table, with the columns that it really has.
    pub spec: Arc<TableSpec>,
    /// Bytes that a file is meant to have.
    pub target: u64,
    /// Bytes that one merge may take.
    pub memory: usize,
    /// What a progress display reads.
    pub progress: Arc<Progress>,
    /// Those that encode columns; none: one of the merge's own.
    pub threads: Option<Arc<ThreadPool>>,
    /// Which rows go, by their ids; none: all stay.
    pub drop_rows: Option<RowFilter>,
}

/// Tells by its id whether a row goes.
pub type RowFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl Rewriter {
    /// Merges a bin's inputs: the files that it wrote, which no log names yet. `turn` is given back when the
    /// memory is: the last parts are then still being uploaded, and what was written has to be read back,
    /// which takes time alone.
    pub async fn run(&self, bin: &Bin, turn: impl Send) -> Result<Vec<DataFile>, RewriteError> {
        let (send, receive) = mpsc::channel(BATCHES_IN_FLIGHT);
        let (reader, writer) =
            ((self.clone(), bin.clone(), Handle::current()), (self.clone(), bin.clone(), Handle::current()));
        let reading = on_a_thread("merge", move || reader.0.merge(&reader.1, reader.2, send));
        let writing = on_a_thread("write", move || writer.0.write(&writer.1, writer.2, receive));
        // Where one failed, the other only met with a closed channel.
        let (read, files) = tokio::join!(reading, writing);
        let ((read, gone), (files, last)) = (read?, files?);
        drop(turn);
        if let Some(last) = last {
            last.ended().await?;
        }
        let mut written = Checksum::default();
        for file in &files {
            let failed = |source| InputError::Read {
                location: file.location(&self.store, &self.spec.name).to_string(),
                source,
            };
            let id = self.spec.id_column();
            let mut ids = stream(&self.store, &self.spec, file, None, self.memory, |name| name == id)
                .await
                .map_err(failed)?;
            while let Some(batch) = ids.next().await {
                written.add(&self.spec, &batch.map_err(failed)?).map_err(InputError::from)?;
            }
        }
        let told = bin.rows();
        // Not every engine tells the log how many rows a file has.
        let is_told = bin.inputs.iter().all(|file| file.rows > 0);
        if written.and(gone) != read || is_told && read.rows != told {
            return Err(RewriteError::Differs {
                table: self.spec.name.clone(),
                files: bin.inputs.len(),
                written,
                read,
                told,
            });
        }
        self.progress.bins_done.fetch_add(1, Ordering::Relaxed);
        Ok(files)
    }

    /// Reads and merges, until the end or until nobody listens: what was read, and what of it goes. Blocking.
    fn merge(
        &self,
        bin: &Bin,
        runtime: Handle,
        send: mpsc::Sender<OutputPiece<RecordBatch>>,
    ) -> Result<(Checksum, Checksum), RewriteError> {
        let reading = Reading {
            store: self.store.clone(),
            spec: self.spec.clone(),
            memory: self.memory / READ_PART,
            runtime,
        };
        let bounds: Vec<i64> =
            bin.inputs.iter().map(|file| file.time_bounds().map_or(0, |times| times.least)).collect();
        let column = self.spec.sort_column.as_ref().and_then(|column| self.spec.schema.index_of(column).ok());
        let mut merge = Merge::new(Inputs::new(reading, &bin.inputs), column, &bounds);
        // A view or a number a column, and text that is larger in memory than in a file.
        let row = (16 * self.spec.schema.fields().len() as u64).max(8 * bin.bytes() / bin.rows().max(1));
        let most = (self.memory / GATHER_PART) as u64 / row;
        let mut gone = Checksum::default();
        while let Some(Chunk { batches, mut rows }) = merge.next(most.clamp(1, GATHER_ROWS as u64) as usize)?
        {
            if let Some(drop_rows) = &self.drop_rows {
                let ids: Vec<_> = batches.iter().map(|batch| ids(&self.spec, batch)).collect();
                rows.retain(|&(batch, row)| {
                    let id = ids[batch].map_or("", |ids| ids.value(row));
                    let is_dropped = drop_rows(id);
                    if is_dropped {
                        gone.add_id(id);
                    }
                    !is_dropped
                });
                if rows.is_empty() {
                    continue;
                }
            }
            let sources: Vec<&RecordBatch> = batches.iter().collect();
            if send.blocking_send(OutputPiece::Next(gather(&self.spec, &sources, &rows)?)).is_err() {
                break;
            }
        }
        drop(send.blocking_send(OutputPiece::End));
        Ok((merge.inputs().read, gone))
    }

    /// Writes what comes: files, and the upload of the last one. Blocking.
    fn write(
        &self,
        bin: &Bin,
        runtime: Handle,
        mut receive: mpsc::Receiver<OutputPiece<RecordBatch>>,
    ) -> Result<(Vec<DataFile>, Option<Upload>), RewriteError> {
        let mut output = Output {
            rewriter: self,
            bin,
            runtime,
            writer: None,
            files: Vec::new(),
            last: None,
            left: bin.rows(),
        };
        loop {
            match receive.blocking_recv() {
                Some(OutputPiece::Next(rows)) => output.write(&rows)?,
                Some(OutputPiece::End) => {
                    output.end_file()?;
                    return Ok((output.files, output.last));
                }
                // Reading failed, and tells why.
                None => return Ok((Vec::new(), None)),
            }
        }
    }
}

/// The files that a merge writes, one after another.
struct Output<'a> {
    rewriter: &'a Rewriter,
    bin: &'a Bin,
    runtime: Handle,
    writer: Option<(FileWriter<'a, Parts>, Upload)>,
    files: Vec<DataFile>,
    /// That of the last of them, which may not have come to its end.
    last: Option<Upload>,
    /// Rows to come, by the log.
    left: u64,
}

impl Output<'_> {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), RewriteError> {
        let mut at = 0;
        while at < rows.num_rows() {
            let end = self.end_of_file(rows, at);
            let to = end.unwrap_or(rows.num_rows());
            if to > at {
                self.append(&rows.slice(at, to - at))?;
            }
            if end.is_some() {
                self.end_file()?;
            }
            at = to;
        }
        Ok(())
    }

    /// At which of these rows, from `at` on, the file at hand ends; none if it goes on beyond them. Always
    /// between rows of different times: files that share a time overlap.
    fn end_of_file(&self, rows: &RecordBatch, at: usize) -> Option<usize> {
        let (writer, _) = self.writer.as_ref()?;
        let last = writer.last_time()?;
        let times = rows
            .column_by_name(self.rewriter.spec.sort_column.as_ref()?)?
            .as_primitive::<TimestampMicrosecondType>()
            .values();
        let next_cut = self.bin.cuts.iter().copied().find(|cut| *cut > last);
        let at_cut = next_cut.map(|cut| at + times[at..].partition_point(|time| *time < cut));
        let at_size =
            self.is_large_enough(writer).then(|| at + times[at..].partition_point(|time| *time <= last));
        [at_cut, at_size].into_iter().flatten().filter(|end| *end < rows.num_rows()).min()
    }

    fn is_large_enough(&self, writer: &FileWriter<'_, Parts>) -> bool {
        let (rows, bytes) = (writer.rows() as u64, writer.bytes() as u64);
        // What is left had better not be a file of its own if it is small.
        let left = (u128::from(self.left) * u128::from(bytes) / u128::from(rows.max(1))) as u64;
        let is_group_full =
            writer.rows_of_group() >= FULL_GROUP_ROWS || writer.rows_of_group() == writer.rows();
        is_group_full && bytes >= self.rewriter.target && left >= self.rewriter.target / 4
    }

    fn append(&mut self, rows: &RecordBatch) -> Result<(), RewriteError> {
        let spec = &*self.rewriter.spec;
        if self.writer.is_none() {
            let (send, receive) = mpsc::channel(1);
            let sink = Parts { send: send.clone(), held: Vec::new() };
            let writer = FileWriter::new(
                spec,
                self.bin.partition.clone(),
                self.left as usize,
                sink,
                self.rewriter.threads.clone(),
            )?;
            let path = file_location(&self.rewriter.store, &spec.name, writer.path());
            let upload = Upload::start(&self.runtime, &self.rewriter.store, path, receive, send);
            self.writer = Some((writer, upload));
        }
        let (writer, _) = self.writer.as_mut().expect("made above");
        if let Err(error) = writer.write(rows) {
            // The writer only meets with a closed channel where the upload has failed.
            let (writer, upload) = self.writer.take().expect("made above");
            drop(writer);
            return Err(upload.failure(&self.runtime).unwrap_or(error.into()));
        }
        self.left = self.left.saturating_sub(rows.num_rows() as u64);
        self.rewriter.progress.rows_done.fetch_add(rows.num_rows() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), RewriteError> {
        if let Some((writer, upload)) = self.writer.take() {
            match writer.finish() {
                Ok(file) => {
                    upload.end();
                    // It had the time that this file took: where it failed, no more is written for nothing.
                    if let Some(before) = self.last.replace(upload) {
                        self.runtime.block_on(before.ended())?;
                    }
                    // When the last of its rows landed: the planner goes by it, and a merge brings nothing
                    // new.
                    let modified_ms = self
                        .bin
                        .inputs
                        .iter()
                        .map(|input| input.modified_ms)
                        .max()
                        .unwrap_or(file.modified_ms);
                    self.files.push(DataFile { modified_ms, ..file });
                }
                Err(error) => return Err(upload.failure(&self.runtime).unwrap_or(error.into())),
            }
        }
        Ok(())
    }
}

/// Runs blocking work on a thread that ends with it. A pool's threads would each keep, for later, what memory
/// they once used.
async fn on_a_thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let thread = thread.spawn(move || drop(send.send(work()))).expect("the system gives a thread");
    match receive.await {
        Ok(result) => result,
        Err(_) => std::panic::resume_unwind(thread.join().expect_err("it ended without a result")),
    }
}

/// A piece of something whole.
enum OutputPiece<T> {
    Next(T),
    /// Nothing comes after it. Without it what was sent is not whole.
    End,
}

/// A file's bytes in parts, as they are written.
struct Parts {
    send: mpsc::Sender<OutputPiece<Bytes>>,
    held: Vec<u8>,
}

impl std::io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let fits = bytes.len().min(PART_BYTES - self.held.len());
        self.held.extend_from_slice(&bytes[..fits]);
        if self.held.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(fits)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let part = OutputPiece::Next(std::mem::take(&mut self.held).into());
        self.send.blocking_send(part).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

/// A file on its way to the store.
struct Upload {
    location: String,
    send: mpsc::Sender<OutputPiece<Bytes>>,
    task: JoinHandle<object_store::Result<()>>,
}

impl Upload {
    fn start(
        runtime: &Handle,
        store: &Store,
        path: Path,
        mut receive: mpsc::Receiver<OutputPiece<Bytes>>,
        send: mpsc::Sender<OutputPiece<Bytes>>,
    ) -> Self {
        let location = path.to_string();
        let mut to = BufWriter::with_capacity(store.objects.clone(), path, PART_BYTES);
        let task = runtime.spawn(async move {
            loop {
                match receive.recv().await {
                    Some(OutputPiece::Next(bytes)) => to.put(bytes).await?,
                    Some(OutputPiece::End) => {
                        return tokio::io::AsyncWriteExt::shutdown(&mut to).await.map_err(store_error);
                    }
                    // The merge failed: what is there of the file goes.
                    None => return to.abort().await,
                }
            }
        });
        Self { location, send, task }
    }

    /// All of the file was sent. Blocking.
    fn end(&self) {
        // An upload that has failed hears nothing any more.
        drop(self.send.blocking_send(OutputPiece::End));
    }

    /// Ends the upload where it is. Why it failed, if it did. Blocking.
    fn failure(self, runtime: &Handle) -> Option<RewriteError> {
        runtime.block_on(self.ended()).err()
    }

    /// Waits until the file is in the store or, if not all of it was sent, nothing is left of it there.
    async fn ended(self) -> Result<(), RewriteError> {
        let Self { location, send, task } = self;
        drop(send);
        let ended = task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        ended.map_err(|e| RewriteError::Upload { location, message: e.to_string() })
    }
}

fn store_error(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "upload", source: error.into() }
}
