//! One worker: takes fetched objects, decodes them into its batch, and flushes the batch when it is full.
//! Blocking code: a worker has a thread of its own.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::batch::{Batch, BatchError, Flushed, Tables};
use super::decode::{Decoder, Need, ObjectContext, RecordLimits};
use super::inflate::{InflateError, Inflater, ObjectLimits, cause};
use super::object::{Object, ObjectId};
use super::reject::{Reason, Reject};
use super::source::Input;
use super::split::{MAX_PAYLOAD, Place};
use crate::base::now_micros;
use crate::schema::Catalog;
use crate::table::Lake;

/// How much of a large object is decoded at once.
const WINDOW_BYTES: usize = 8 << 20;

/// What a worker works with.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Limits on records.
    pub records: RecordLimits,
    /// Limits on objects.
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
    /// Objects found.
    pub objects_total: AtomicU64,
    /// Objects done with, one way or another.
    pub objects_done: AtomicU64,
    /// Stored bytes found.
    pub bytes_total: AtomicU64,
    /// Stored bytes done with.
    pub bytes_done: AtomicU64,
    /// Inflated bytes decoded.
    pub inflated: AtomicU64,
    /// Records decoded.
    pub records: AtomicU64,
    /// Rejects among them.
    pub rejects: AtomicU64,
}

impl Meter {
    pub(super) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// A counter's value.
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
        /// The object.
        location: String,
        /// What the system or store said.
        source: std::io::Error,
    },
    /// The lake can't be written.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// See the module.
pub struct Worker {
    settings: WorkerSettings,
    decoder: Decoder,
    inflater: Option<Inflater>,
    window: Vec<u8>,
    batch: Batch,
    /// What became of objects since it was last told: also kept where an object in between can't be read.
    flushed: Flushed,
    meter: Arc<Meter>,
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
            settings,
            meter,
        }
    }

    /// Decodes an object into the batch, and flushes the batch if it is full. `log_type`: what every record is
    /// taken for, by its index in the catalog; else each is told by its own fields.
    pub fn work(&mut self, object: Object, input: Input, place: Place, log_type: Option<usize>) -> Result<(), WorkError> {
        let parse_time = now_micros();
        let context = ObjectContext {
            id: object.id,
            last_modified: object.last_modified,
            source_id: object.source_id.clone(),
            source_label: object.source_label.clone(),
            parse_time,
            log_type,
        };
        self.decoder.begin(context, place);
        match self.decode(&object, input, parse_time) {
            Ok(()) => self.batch.close(object, self.decoder.counts()),
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

    /// Takes in an object that is one reject, unread: `payload` is what there is of it.
    pub fn reject(&mut self, object: Object, reason: Reason, message: String, payload: Option<Vec<u8>>) -> Result<(), BatchError> {
        let length = payload.as_ref().map(|p| p.len() as u64);
        let payload = payload.map(|mut bytes| {
            bytes.truncate(MAX_PAYLOAD);
            bytes
        });
        let reject = Reject { reason, message, log_type: None, offset: length.map(|_| 0), length, payload };
        Meter::add(&self.meter.rejects, 1);
        self.batch.close_rejected(object, reject, now_micros());
        self.flush_if_full()
    }

    fn is_full(&self) -> bool {
        let batch = &self.batch;
        batch.bytes() >= self.settings.flush_bytes || batch.rows() >= self.settings.flush_rows || batch.age() >= self.settings.max_age
    }

    fn flush_if_full(&mut self) -> Result<(), BatchError> {
        if self.is_full() {
            let flushed = self.batch.flush()?;
            self.flushed.append(flushed);
        }
        Ok(())
    }

    /// How long until the batch is old enough to be flushed; none while it is empty.
    pub fn time_left(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| self.settings.max_age.saturating_sub(self.batch.age()))
    }

    /// Whether no whole object waits to be landed.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Lands what the batch holds, and tells what became of every object since this was last told.
    pub fn flush(&mut self) -> Result<Flushed, BatchError> {
        let flushed = self.batch.flush()?;
        self.flushed.append(flushed);
        Ok(self.flushed())
    }

    /// What became of objects since this was last told.
    pub fn flushed(&mut self) -> Flushed {
        std::mem::take(&mut self.flushed)
    }

    fn decode(&mut self, object: &Object, input: Input, parse_time: i64) -> Result<(), Stop> {
        let stored = match input {
            Input::Memory(stored) => {
                // Out of the worker while its buffer is read.
                let mut inflater = self.inflater.take().expect("it is put back below");
                let result = match inflater.whole(&stored) {
                    Ok(Some(window)) => Some(self.decode_window(window, 0, true, object, parse_time).map(|_| ())),
                    Ok(None) => None,
                    Err(error) => Some(Err(error.into())),
                };
                self.inflater = Some(inflater);
                if let Some(result) = result {
                    return result;
                }
                Input::Memory(stored)
            }
            other => other,
        };
        let mut reader = Inflater::stream(stored.reader(), self.settings.objects).map_err(cause)?;
        let mut window = std::mem::take(&mut self.window);
        window.clear();
        let result = self.decode_stream(&mut reader, &mut window, object, parse_time);
        self.window = window;
        result
    }

    fn decode_stream(&mut self, reader: &mut dyn Read, window: &mut Vec<u8>, object: &Object, parse_time: i64) -> Result<(), Stop> {
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
    fn decode_window(&mut self, window: &[u8], offset: u64, last: bool, object: &Object, parse_time: i64) -> Result<usize, Stop> {
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
