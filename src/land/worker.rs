//! One worker: takes fetched objects, decodes them into its batch, and flushes the batch when it is full.
//! Blocking code: a worker has a thread of its own.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::batch::{Batch, BatchError, Flushed, Tables};
use crate::base::failure::{Failure, FailureKind};
use crate::decode::decoder::{Counts, Decoder, Need, RecordLimits};
use crate::decode::inflate::{InflateError, Inflater, ObjectLimits, cause};
use crate::decode::object::{Object, ObjectContext, ObjectId, RowId};
use crate::decode::reject::{Reason, Reject};
use crate::decode::split::{MAX_PAYLOAD, Place};
use crate::schema::Catalog;
use crate::source::local::Changed;
use crate::source::origin::Input;
use crate::table::Lake;

/// How much of a large object is decoded at once.
const WINDOW_BYTES: usize = 8 << 20;

/// Partitions that a flush touches, at most, unless a single object touches more: each is a file of its own.
const MAX_FLUSH_PARTITIONS: usize = 1024;

/// How many records that were rejects have their rows gathered, at most.
const MAX_GATHERED_RECORDS: u64 = 8 * 1024;

/// What a worker works with.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    pub records: RecordLimits,
    pub objects: ObjectLimits,
    /// The batch is flushed when its rows hold this many bytes.
    pub flush_bytes: usize,
    /// Or when it holds this many rows.
    pub flush_rows: u64,
    /// Or when its oldest object has waited this long: while a large object takes its time, others land.
    pub max_age: Duration,
    /// Objects that inflate to at most this are decoded in one piece.
    pub whole_bytes: usize,
}

/// Running totals that a progress display reads while workers count.
#[derive(Debug, Default)]
pub struct Meter {
    pub objects_total: AtomicU64,
    /// Objects done with, one way or another.
    pub objects_done: AtomicU64,
    /// Stored bytes found.
    pub bytes_total: AtomicU64,
    /// Stored bytes done with.
    pub bytes_done: AtomicU64,
    /// Inflated bytes decoded.
    pub inflated: AtomicU64,
    pub records: AtomicU64,
    pub rejects: AtomicU64,
}

impl Meter {
    pub fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Why an object, or everything, stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// This object can't be read; others can.
    #[error("{location}: can't be read: {source}")]
    Read {
        location: String,
        /// What the system or store said.
        source: std::io::Error,
    },
    /// The lake can't be written.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl WorkError {
    /// What it asks of the caller.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Read { source, .. } => source.get_ref(),
            Self::Batch(_) => None,
        };
        let message = match self {
            Self::Read { source, .. } => source.to_string(),
            Self::Batch(error) => error.to_string(),
        };
        match cause {
            Some(cause) if cause.is::<Changed>() => Failure { kind: FailureKind::Changed, message },
            // What the store said, wherever on the way to here it was wrapped.
            Some(cause) => cause
                .downcast_ref::<Failure>()
                .cloned()
                .unwrap_or(Failure { kind: FailureKind::Unavailable, message }),
            None => Failure { kind: FailureKind::Unavailable, message },
        }
    }
}

/// What there is of a reject to be decoded again.
#[derive(Debug)]
pub enum Rejected {
    Record(Bytes),
    /// The whole object, which could not be decoded.
    Object(Input),
    /// The object that was rejected unread. It lands as itself, and so under two entries.
    Unread(Object, Input),
    /// Nothing: what was rejected unread has landed since, or holds nothing to land.
    Landed,
}

/// What became of a reject that was decoded again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// It is in the batch, and a reject no more when that lands.
    Accepted,
    /// It stays as it is, for this reason now; none: it is not one record.
    Rejected(Option<Reason>),
}

pub struct Worker {
    settings: WorkerSettings,
    decoder: Decoder,
    inflater: Option<Inflater>,
    window: Vec<u8>,
    batch: Batch,
    /// What became of objects since it was last told: also kept where an object in between can't be read.
    flushed: Flushed,
    /// It is landing its batch; or it was when it panicked.
    is_landing: bool,
    /// Records that were rejects, and whose rows are with the decoder.
    records: Option<Records>,
    meter: Arc<Meter>,
}

/// Records of one kind that were rejects.
struct Records {
    /// Source, its label, and the log type, if that is configured: what the rows of a batch have in common.
    kind: (Option<String>, Option<String>, Option<usize>),
    /// What each was rejected of.
    rejects: HashMap<RowId, Object>,
    /// As they stood in their objects.
    bytes: usize,
}

impl Rejected {
    /// Bytes that it holds in memory.
    pub fn held(&self) -> u64 {
        match self {
            Self::Record(bytes)
            | Self::Object(Input::Memory(bytes))
            | Self::Unread(_, Input::Memory(bytes)) => bytes.len() as u64,
            Self::Object(_) | Self::Unread(..) | Self::Landed => 0,
        }
    }
}

impl Worker {
    /// A worker that lands in `lake`; without one it only decodes.
    pub fn new(
        catalog: &Catalog,
        tables: Arc<Tables>,
        lake: Option<Arc<Lake>>,
        settings: WorkerSettings,
        meter: Arc<Meter>,
        runtime: Handle,
    ) -> Self {
        Self {
            decoder: Decoder::new(catalog, settings.records),
            inflater: Some(Inflater::new(settings.objects, settings.whole_bytes)),
            window: Vec::new(),
            batch: Batch::new(lake, tables, runtime),
            flushed: Flushed::default(),
            is_landing: false,
            records: None,
            settings,
            meter,
        }
    }

    /// Decodes an object into the batch, and flushes the batch if it is full. `log_type`: what every record
    /// is taken for, by its index in the catalog; else each is told by its own fields.
    pub fn work(
        &mut self,
        mut object: Object,
        input: Input,
        place: Place,
        log_type: Option<usize>,
    ) -> Result<(), WorkError> {
        let parse_time = self.begin(&object, place, log_type);
        match self.decode(&object, input, parse_time) {
            Ok(size) => {
                object.size = size;
                self.batch.close(object, self.decoder.counts());
            }
            Err(Stop::Inflate(InflateError::Read(source))) => {
                self.batch.abandon_open();
                return Err(WorkError::Read { location: object.location(), source });
            }
            Err(Stop::Inflate(error)) => {
                let reason = error.reason().expect("only a failed read has no reason");
                let message = format!("{}: {error}", object.location());
                tracing::warn!(object = %object.location(), reason = reason.code(), "{error}; no row of it lands");
                Meter::add(&self.meter.rejects, 1);
                self.batch.close_broken(object, reason, message, parse_time);
            }
            Err(Stop::Batch(error)) => return Err(error.into()),
        }
        self.flush_if_full()?;
        Ok(())
    }

    /// Decodes a reject again: `object` is what was rejected, or what the record is of. Nothing of it is in
    /// the batch unless it is a reject no more: a record as a whole; of an object, records may be rejected.
    pub fn replay(
        &mut self,
        reject: RowId,
        object: Object,
        what: Rejected,
        log_type: Option<usize>,
    ) -> Result<ReplayOutcome, WorkError> {
        let mut own = None;
        let decoded = match what {
            Rejected::Record(bytes) => return self.replay_record(reject, object, &bytes, log_type),
            Rejected::Object(input) => {
                let parse_time = self.begin(&object, Place::START, log_type);
                self.decode(&object, input, parse_time)
            }
            Rejected::Unread(unread, input) => {
                let parse_time = self.begin(&unread, Place::START, log_type);
                let decoded = self.decode(&unread, input, parse_time);
                own = Some(Object { size: *decoded.as_ref().unwrap_or(&unread.size), ..unread });
                decoded
            }
            Rejected::Landed => {
                self.batch.close_replayed(object, Counts::default(), reject);
                self.flush_if_full()?;
                return Ok(ReplayOutcome::Accepted);
            }
        };
        match decoded {
            Ok(_) => {}
            Err(Stop::Batch(error)) => return Err(error.into()),
            Err(Stop::Inflate(error)) => {
                self.batch.abandon_open();
                return match error {
                    InflateError::Read(source) => {
                        Err(WorkError::Read { location: object.location(), source })
                    }
                    error => Ok(ReplayOutcome::Rejected(error.reason())),
                };
            }
        }
        let counts = self.decoder.counts();
        match own {
            Some(own) => {
                self.batch.close(own, counts);
                self.batch.close_replayed(object, Counts::default(), reject);
            }
            None => self.batch.close_replayed(object, counts, reject),
        }
        self.flush_if_full()?;
        Ok(ReplayOutcome::Accepted)
    }

    /// Rows of records of one kind are gathered: a batch of rows for each would take a hundred times the
    /// memory.
    fn replay_record(
        &mut self,
        reject: RowId,
        object: Object,
        bytes: &[u8],
        log_type: Option<usize>,
    ) -> Result<ReplayOutcome, WorkError> {
        let kind = (object.source_id.clone(), object.source_label.clone(), log_type);
        if self.records.as_ref().is_none_or(|records| records.kind != kind) {
            self.close_records();
            self.flush_if_full()?;
            self.begin(&object, Place::LINE, log_type);
            self.records = Some(Records { kind, rejects: HashMap::new(), bytes: 0 });
        }
        if let Err(reason) = self.decoder.decode_alone(&object, reject.offset, bytes) {
            return Ok(ReplayOutcome::Rejected(reason));
        }
        Meter::add(&self.meter.records, 1);
        Meter::add(&self.meter.inflated, bytes.len() as u64);
        if let Some(records) = &mut self.records {
            records.bytes += bytes.len();
            records.rejects.insert(reject, object);
            if records.bytes >= self.settings.flush_bytes / 4
                || records.rejects.len() as u64 >= self.settings.flush_rows.min(MAX_GATHERED_RECORDS)
            {
                self.close_records();
                self.flush_if_full()?;
            }
        }
        Ok(ReplayOutcome::Accepted)
    }

    /// Moves the rows of records into the batch.
    fn close_records(&mut self) {
        if let Some(records) = self.records.take() {
            self.batch.close_records(records.rejects, self.decoder.take());
        }
    }

    /// Resets the decoder for `object` and returns its parse time.
    fn begin(&mut self, object: &Object, place: Place, log_type: Option<usize>) -> i64 {
        self.close_records();
        let parse_time = self.batch.clock().now_micros();
        let context = ObjectContext {
            id: object.id,
            last_modified: object.last_modified,
            source_id: object.source_id.clone(),
            source_label: object.source_label.clone(),
            parse_time,
            log_type,
        };
        self.decoder.begin(context, place);
        parse_time
    }

    /// Takes in an object that is one reject, unread: `payload` is what there is of it.
    pub fn reject(
        &mut self,
        object: Object,
        reason: Reason,
        message: String,
        payload: Option<Vec<u8>>,
    ) -> Result<(), BatchError> {
        let length = payload.as_ref().map(|p| p.len() as u64);
        let payload = payload.map(|mut bytes| {
            bytes.truncate(MAX_PAYLOAD);
            bytes
        });
        let reject = Reject { reason, message, log_type: None, offset: length.map(|_| 0), length, payload };
        Meter::add(&self.meter.rejects, 1);
        let now = self.batch.clock().now_micros();
        self.batch.close_rejected(object, reject, now);
        self.flush_if_full()
    }

    fn is_full(&self) -> bool {
        let batch = &self.batch;
        batch.bytes() >= self.settings.flush_bytes
            || batch.rows() >= self.settings.flush_rows
            || batch.age() >= self.settings.max_age
    }

    fn flush_if_full(&mut self) -> Result<(), BatchError> {
        if self.is_full() || self.batch.partitions() >= MAX_FLUSH_PARTITIONS { self.land() } else { Ok(()) }
    }

    fn land(&mut self) -> Result<(), BatchError> {
        self.is_landing = true;
        let flushed = self.batch.flush();
        self.is_landing = false;
        self.flushed.append(flushed?);
        Ok(())
    }

    /// Whether a panic of it was over its batch, and not over the object that it was given.
    pub fn is_landing(&self) -> bool {
        self.is_landing
    }

    /// How long until the batch is old enough to be flushed; none while it is empty.
    pub fn time_left(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| self.settings.max_age.saturating_sub(self.batch.age()))
    }

    /// Whether no whole object waits to be landed.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.records.is_none()
    }

    /// Lands what the batch holds, and tells what became of every object since this was last told.
    pub fn flush(&mut self) -> Result<Flushed, BatchError> {
        self.close_records();
        self.land()?;
        Ok(self.flushed())
    }

    /// What became of objects since this was last told.
    pub fn flushed(&mut self) -> Flushed {
        std::mem::take(&mut self.flushed)
    }

    /// Decodes an object, and makes sure that it was read as it is. How many bytes it has as stored.
    fn decode(&mut self, object: &Object, mut input: Input, parse_time: i64) -> Result<u64, Stop> {
        if let Input::Memory(stored) = &input {
            // Out of the worker while its buffer is read.
            let mut inflater = self.inflater.take().expect("it is put back below");
            let result = match inflater.whole(stored) {
                Ok(Some(window)) => {
                    Some(self.decode_window(window, 0, true, object, parse_time).map(|_| object.size))
                }
                Ok(None) => None,
                Err(error) => Some(Err(error.into())),
            };
            self.inflater = Some(inflater);
            if let Some(result) = result {
                return result;
            }
        }
        let decoded = match self.decode_input(&mut input, object, parse_time) {
            Err(Stop::Batch(error)) => return Err(error.into()),
            Err(Stop::Inflate(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        input.finish(decoded)?;
        Ok(input.counted().unwrap_or(object.size))
    }

    fn decode_input(&mut self, input: &mut Input, object: &Object, parse_time: i64) -> Result<(), Stop> {
        let mut reader = Inflater::stream(input, self.settings.objects).map_err(cause)?;
        let mut window = std::mem::take(&mut self.window);
        window.clear();
        let result = self.decode_stream(&mut reader, &mut window, object, parse_time);
        self.window = window;
        result
    }

    fn decode_stream(
        &mut self,
        reader: &mut dyn Read,
        window: &mut Vec<u8>,
        object: &Object,
        parse_time: i64,
    ) -> Result<(), Stop> {
        let mut offset = 0;
        let mut wanted = WINDOW_BYTES;
        loop {
            let missing = wanted - window.len();
            let got = reader.take(missing as u64).read_to_end(window).map_err(cause)?;
            let last = got < missing;
            let used = self.decode_window(window, offset, last, object, parse_time)?;
            window.drain(..used);
            offset += used as u64;
            // What is left is the beginning of a record: the next window holds it and as much again.
            wanted = window.len() + WINDOW_BYTES;
            if last {
                return Ok(());
            }
        }
    }

    /// Decodes a window as far as it holds whole records, and tells how far that is.
    fn decode_window(
        &mut self,
        window: &[u8],
        offset: u64,
        last: bool,
        object: &Object,
        parse_time: i64,
    ) -> Result<usize, Stop> {
        let mut used = 0;
        loop {
            let progress = self.decoder.decode(&window[used..], offset + used as u64, last);
            used += progress.used;
            Meter::add(&self.meter.inflated, progress.used as u64);
            self.collect(object, parse_time)?;
            if progress.need == Need::Bytes {
                return Ok(used);
            }
        }
    }

    /// Moves what was decoded into the batch, and makes room if it grows too large.
    fn collect(&mut self, object: &Object, parse_time: i64) -> Result<(), Stop> {
        let decoded = self.decoder.take();
        let rows: usize = decoded.batches.iter().map(|(_, batch)| batch.num_rows()).sum();
        Meter::add(&self.meter.records, (rows + decoded.rejects.len()) as u64);
        Meter::add(&self.meter.rejects, decoded.rejects.len() as u64);
        self.batch.add(object, decoded, parse_time);
        if !self.batch.is_empty() {
            self.flush_if_full()?;
        }
        if self.is_full() {
            self.batch.spill()?;
        }
        Ok(())
    }
}

/// Why decoding an object stopped.
enum Stop {
    Inflate(InflateError),
    Batch(BatchError),
}

impl From<InflateError> for Stop {
    fn from(error: InflateError) -> Self {
        Self::Inflate(error)
    }
}

impl From<BatchError> for Stop {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}

impl Flushed {
    fn append(&mut self, other: Self) {
        self.landed.extend(other.landed);
        self.already_there.extend(other.already_there);
        self.stale.extend::<Vec<ObjectId>>(other.stale);
        self.took.extend(other.took);
    }
}
