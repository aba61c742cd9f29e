//! Landing what exists already: a list of origins through the same journey as everything else.
//!
//! ```text
//! origins → fetch (a few ahead) → workers (a thread each, a batch each) → lake
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::config::Source;
use crate::decode::inflate::InflateError;
use crate::decode::object::{Object, ObjectId};
use crate::decode::reject::Reason;
use crate::decode::split::Place;
use crate::land::batch::{Flushed, Tables};
use crate::land::ledger_rows::ObjectOutcome;
use crate::land::worker::{Meter, WorkError, Worker, WorkerSettings};
use crate::schema::Catalog;
use crate::source::local::PassedOver;
use crate::source::origin::{Input, Origin, fetch};
use crate::source::stdin::Pieces;
use crate::table::Lake;

/// How many objects are fetched ahead of the workers.
const FETCH_AHEAD: usize = 4;

/// How often objects are decoded, where their files had become too old to be landed, or they changed while
/// they were read.
const MAX_PASSES: usize = 3;

/// What a backfill works with.
#[derive(Clone)]
pub struct Backfill {
    /// The log types.
    pub catalog: Catalog,
    /// Their tables.
    pub tables: Arc<Tables>,
    /// Where rows land; without it everything is decoded and counted, and nothing written.
    pub lake: Option<Arc<Lake>>,
    /// For each worker.
    pub settings: WorkerSettings,
    /// How many workers.
    pub workers: usize,
    /// Which objects are whose, and of which log type.
    pub sources: Sources,
    /// What a progress display reads.
    pub meter: Arc<Meter>,
    /// Set from outside: no further object is begun; those at hand land.
    pub stop: Arc<AtomicBool>,
}

/// What became of everything that was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Objects that landed now.
    pub landed: u64,
    /// Objects that had landed before, or were named twice.
    pub already_there: u64,
    /// Objects that hold no records by their name or size.
    pub skipped: u64,
    /// Objects that could not be read, with the reason.
    pub failed: Vec<String>,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
    /// Rejects by reason code.
    pub rejects: BTreeMap<&'static str, u64>,
    /// Test uploads among the records.
    pub skipped_records: u64,
    /// Least and greatest event time, in microseconds.
    pub event_times: Option<(i64, i64)>,
    /// Objects that were not begun because the run was stopped.
    pub not_begun: u64,
    /// What was met in folders and is not read.
    pub passed_over: PassedOver,
}

impl Summary {
    /// Rows in all log types' tables.
    pub fn total_rows(&self) -> u64 {
        self.rows.values().sum()
    }

    /// Rejects of every reason.
    pub fn total_rejects(&self) -> u64 {
        self.rejects.values().sum()
    }

    /// Adds what another run counted.
    pub fn merge(&mut self, other: Self) {
        self.landed += other.landed;
        self.already_there += other.already_there;
        self.skipped += other.skipped;
        self.failed.extend(other.failed);
        self.skipped_records += other.skipped_records;
        self.not_begun += other.not_begun;
        self.passed_over += other.passed_over;
        for (table, rows) in other.rows {
            *self.rows.entry(table).or_default() += rows;
        }
        for (reason, count) in other.rejects {
            *self.rejects.entry(reason).or_default() += count;
        }
        self.event_times = [self.event_times, other.event_times]
            .into_iter()
            .flatten()
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    }

    fn count(&mut self, outcome: &ObjectOutcome) {
        self.landed += 1;
        self.skipped_records += outcome.skipped;
        for (table, rows) in &outcome.rows {
            *self.rows.entry(table.clone()).or_default() += rows;
        }
        for (reason, count) in &outcome.rejects {
            *self.rejects.entry(Reason::code(*reason)).or_default() += count;
        }
        self.event_times = [self.event_times, outcome.event_times]
            .into_iter()
            .flatten()
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    }
}

/// Why a backfill stopped.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The lake can't be written.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// Standard input can't be inflated to its end; what came before has landed.
    #[error("standard input: {0}; the pieces before it have landed")]
    Stdin(#[from] InflateError),
}

/// An object on its way to a worker.
struct Fetched {
    object: Object,
    input: Input,
    place: Place,
    log_type: Option<usize>,
    origin: Option<Origin>,
}

/// Which objects are whose, and of which log type.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configured sources, found by bucket.
    pub configured: Vec<Source>,
    /// The source of everything, if the caller named one.
    pub named: Option<Source>,
    /// The log type of everything, if the caller named one.
    pub log_type: Option<usize>,
    /// Log type names of the routes, by their index in the catalog.
    pub log_types: BTreeMap<String, usize>,
}

impl Sources {
    /// The source whose the bucket is.
    pub fn of_bucket(&self, bucket: &str) -> Option<&Source> {
        self.named.as_ref().or_else(|| self.configured.iter().find(|s| s.buckets.iter().any(|b| b == bucket)))
    }

    /// Fills in the object's source, and tells the log type of its records, if that is configured.
    fn attribute(&self, object: &mut Object) -> Option<usize> {
        let found = object.bucket.as_ref().map_or(self.named.as_ref(), |bucket| self.of_bucket(bucket));
        let Some(source) = found else { return self.log_type };
        object.source_id = Some(source.id.clone());
        object.source_label = source.label.clone();
        self.log_type.or(self.routed(source, &object.key))
    }

    fn routed(&self, source: &Source, key: &str) -> Option<usize> {
        let routes = source.route.iter().filter(|r| key.starts_with(&r.prefix));
        routes.max_by_key(|r| r.prefix.len()).and_then(|r| self.log_types.get(&r.log_type).copied())
    }

    /// The source whose an object is now that was decoded before: the one that it had then, unless another
    /// one lists its bucket.
    pub fn of_object(&self, object: &Object) -> Option<&Source> {
        let before = self.configured.iter().find(|s| object.source_id.as_ref() == Some(&s.id));
        match &object.bucket {
            Some(bucket) => before.filter(|s| s.buckets.contains(bucket)).or_else(|| self.of_bucket(bucket)),
            None => before,
        }
    }

    /// The log type of that object's records, if that is configured.
    pub fn log_type_of(&self, object: &Object) -> Option<usize> {
        // A message's body, which has its queue for a key, has no prefix.
        let is_named = object.bucket.is_some() || Path::new(&object.key).is_absolute();
        let key = if is_named { &object.key } else { "" };
        self.log_type.or_else(|| self.routed(self.of_object(object)?, key))
    }
}

/// Why an object is read and decoded once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Its files had become too old to be landed.
    Late,
    /// It was written to meanwhile.
    Changed,
}

impl Again {
    /// What to tell of an object for which no pass was enough.
    fn told(self, origin: &Origin) -> String {
        let location = origin.location();
        match self {
            Self::Late => format!(
                "{location}: decoding and landing it takes over an hour; give it a faster line or more memory"
            ),
            Self::Changed => format!(
                "{location}: it changed while it was read, {MAX_PASSES} times: nothing of it landed; run it again when its writer is done with it"
            ),
        }
    }
}

/// What fetchers and workers share.
struct Shared {
    run: Backfill,
    summary: Mutex<Summary>,
    /// Objects begun in this run: each is decoded once, however often it is named.
    begun: Mutex<HashMap<ObjectId, Option<Origin>>>,
    again: Mutex<Vec<(Origin, Again)>>,
    broken: AtomicBool,
}

impl Backfill {
    /// Lands every origin.
    pub async fn origins(&self, origins: Vec<Origin>) -> Result<Summary, BackfillError> {
        let shared = Arc::new(Shared::new(self.clone()));
        for origin in &origins {
            Meter::add(&self.meter.objects_total, 1);
            Meter::add(&self.meter.bytes_total, origin.size());
        }
        let mut again = self.pass(&shared, origins).await?;
        for _ in 1..MAX_PASSES {
            if again.is_empty() {
                break;
            }
            again = self.pass(&shared, again.into_iter().map(|(origin, _)| origin).collect()).await?;
        }
        for (origin, why) in again {
            shared.fail(origin.size(), &why.told(&origin));
        }
        Ok(shared.summary.lock().clone())
    }

    /// Lands origins. Those that are to be begun again, and why.
    async fn pass(
        &self,
        shared: &Arc<Shared>,
        origins: Vec<Origin>,
    ) -> Result<Vec<(Origin, Again)>, BackfillError> {
        let (send, workers) = shared.clone().start_workers();
        let mut fetches =
            futures::stream::iter(origins).map(|origin| shared.fetch(origin)).buffered(FETCH_AHEAD);
        while let Some(fetched) = fetches.next().await {
            let Some(fetched) = fetched else { continue };
            if send.send(fetched).await.is_err() {
                break;
            }
        }
        drop((send, fetches));
        join(workers).await?;
        Ok(std::mem::take(&mut *shared.again.lock()))
    }

    /// Lands a stream, cut into objects.
    pub async fn stdin(&self, input: impl std::io::Read + Send + 'static) -> Result<Summary, BackfillError> {
        let shared = Arc::new(Shared::new(self.clone()));
        let (send, workers) = shared.clone().start_workers();
        // Taken away when the run ends early: the cutter may be waiting for input that never comes.
        let send = Arc::new(Mutex::new(Some(send)));
        let (reader, sender) = (shared.clone(), send.clone());
        let cutting = tokio::task::spawn_blocking(move || {
            let settings = &reader.run.settings;
            let mut pieces = Pieces::new(input, settings.records, settings.objects.max_ratio)
                .map_err(crate::decode::inflate::cause)?;
            while let Some(piece) = pieces.next_piece()? {
                Meter::add(&reader.run.meter.objects_total, 1);
                let mut object = piece.object;
                let log_type = reader.run.sources.attribute(&mut object);
                let fetched = Fetched {
                    object,
                    input: Input::Memory(piece.bytes),
                    place: piece.place,
                    log_type,
                    origin: None,
                };
                let Some(send) = sender.lock().clone() else { break };
                let Some(fetched) = reader.admit(fetched) else { continue };
                if send.blocking_send(fetched).is_err() {
                    break;
                }
            }
            Ok::<_, InflateError>(())
        });
        let cut = tokio::select! {
            cut = cutting => cut.expect("cutting doesn't panic"),
            () = shared.ended_early() => Ok(()),
        };
        send.lock().take();
        join(workers).await?;
        cut?;
        Ok(shared.summary.lock().clone())
    }
}

async fn join(workers: Vec<tokio::task::JoinHandle<Result<(), WorkError>>>) -> Result<(), BackfillError> {
    let mut result = Ok(());
    for worker in workers {
        let ended = worker.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        result = result.and(ended);
    }
    Ok(result?)
}

impl Shared {
    /// Waits until the run is stopped from outside, or broken from inside.
    async fn ended_early(&self) {
        while !self.run.stop.load(Ordering::Relaxed) && !self.broken.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn new(run: Backfill) -> Self {
        Self {
            run,
            summary: Mutex::default(),
            begun: Mutex::default(),
            again: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// Fetches an origin, unless there is no need to. None: it is counted, and done with.
    async fn fetch(&self, origin: Origin) -> Option<Fetched> {
        let size = origin.size();
        if self.run.stop.load(Ordering::Relaxed) || self.broken.load(Ordering::Relaxed) {
            self.summary.lock().not_begun += 1;
            return None;
        }
        if origin.is_no_log() {
            self.done(size, |s| s.skipped += 1);
            return None;
        }
        if origin.likely_id().is_some_and(|id| self.has_landed(id)) {
            self.done(size, |s| s.already_there += 1);
            return None;
        }
        match fetch(origin.clone()).await {
            Ok((object, input)) if input.is_empty() => {
                drop((object, input));
                self.done(size, |s| s.skipped += 1);
                None
            }
            Ok((mut object, input)) => {
                let log_type = self.run.sources.attribute(&mut object);
                self.admit(Fetched { object, input, place: Place::START, log_type, origin: Some(origin) })
            }
            Err(error) if error.has_changed() => {
                self.again(origin, Again::Changed);
                None
            }
            Err(error) => {
                self.fail(size, &error);
                None
            }
        }
    }

    fn again(&self, origin: Origin, why: Again) {
        if why == Again::Changed {
            tracing::info!(
                "{}: it changed while it was read: it is read again when all else is",
                origin.location()
            );
        }
        self.again.lock().push((origin, why));
    }

    fn has_landed(&self, id: ObjectId) -> bool {
        self.run.lake.as_ref().is_some_and(|lake| lake.contains(id.0))
    }

    /// Lets an object pass once; what has landed or was begun is counted instead.
    fn admit(&self, fetched: Fetched) -> Option<Fetched> {
        let id = fetched.object.id;
        let first = self.begun.lock().insert(id, fetched.origin.clone()).is_none();
        if first && !self.has_landed(id) {
            return Some(fetched);
        }
        self.done(fetched.object.size, |s| s.already_there += 1);
        None
    }

    fn done(&self, size: u64, count: impl FnOnce(&mut Summary)) {
        Meter::add(&self.run.meter.objects_done, 1);
        Meter::add(&self.run.meter.bytes_done, size);
        count(&mut self.summary.lock());
    }

    fn fail(&self, size: u64, error: &impl std::fmt::Display) {
        tracing::error!("{error}");
        self.done(size, |s| s.failed.push(error.to_string()));
    }

    fn start_workers(
        self: Arc<Self>,
    ) -> (mpsc::Sender<Fetched>, Vec<tokio::task::JoinHandle<Result<(), WorkError>>>) {
        let (send, receive) = mpsc::channel(1);
        let receive = Arc::new(Mutex::new(receive));
        let workers = (0..self.run.workers.max(1)).map(|_| {
            let (shared, receive) = (self.clone(), receive.clone());
            tokio::task::spawn_blocking(move || shared.work_all(&receive))
        });
        (send, workers.collect())
    }

    /// A worker's life.
    fn work_all(&self, receive: &Mutex<mpsc::Receiver<Fetched>>) -> Result<(), WorkError> {
        let run = &self.run;
        let mut worker = Worker::new(
            &run.catalog,
            run.tables.clone(),
            run.lake.clone(),
            run.settings.clone(),
            run.meter.clone(),
            Handle::current(),
        );
        let result = loop {
            let next = receive.lock().blocking_recv();
            let Some(Fetched { object, input, place, log_type, .. }) = next else { break Ok(()) };
            if self.broken.load(Ordering::Relaxed) {
                continue;
            }
            let (id, size) = (object.id, object.size);
            let worked = worker.work(object, input, place, log_type);
            // Objects before it may have landed, whatever became of this one.
            self.account(worker.flushed());
            match worked {
                Ok(()) => {
                    Meter::add(&run.meter.objects_done, 1);
                    Meter::add(&run.meter.bytes_done, size);
                }
                Err(error @ WorkError::Read { .. }) => {
                    let origin = self.begun.lock().remove(&id).flatten();
                    match origin.filter(|_| error.has_changed()) {
                        Some(origin) => self.again(origin, Again::Changed),
                        None => self.fail(size, &error),
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let result = result.and_then(|()| {
            self.account(worker.flush()?);
            Ok(())
        });
        if result.is_err() {
            // The others land what they hold and stop; the channel is emptied so that nobody waits.
            self.broken.store(true, Ordering::Relaxed);
            while receive.lock().blocking_recv().is_some() {}
        }
        result
    }

    fn account(&self, flushed: Flushed) {
        let mut summary = self.summary.lock();
        flushed.landed.iter().for_each(|outcome| summary.count(outcome));
        summary.already_there += flushed.already_there.len() as u64;
        let mut begun = self.begun.lock();
        for id in flushed.stale {
            match begun.remove(&id).flatten() {
                Some(origin) => self.again(origin, Again::Late),
                None => summary.failed.push(format!(
                    "standard input, piece {id}: the writer was away for more than an hour; pipe it in again"
                )),
            }
        }
    }
}
