//! The workers: each has a batch, and lands it when it is full, old enough, or others wait for it. Decoding
//! and writing block, so each worker has a thread for these steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc};

use super::attempts::{Failed, Next, delay};
use super::ending::Ending;
use super::failures::{already_there, item_panicked, read_failed, try_again};
use super::feed::Feeds;
use super::item::{Content, Fetched, Item, ItemKind, Outcome};
use super::metrics::Metrics;
use super::pressure::{Pressure, PressureState};
use super::room::Taken;
use super::thread::OwnThread;
use crate::base::panics::caught_here;
use crate::base::{clock, jittered};
use crate::decode::object::{Object, ObjectId};
use crate::land::batch::{BatchError, Flushed, Tables};
use crate::land::worker::{Meter, ReplayOutcome, WorkError, Worker, WorkerSettings};
use crate::schema::Catalog;
use crate::table::Lake;

/// How long a worker that others wait for waits itself for more.
const IDLE_BEFORE_FLUSH: Duration = Duration::from_millis(200);

/// When an object is fetched again that another intake's item in the same batch is.
const TWIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bytes of small objects that are decoded in one go.
const SMALL_OBJECTS_BYTES: u64 = 256 << 10;

/// What every worker works with.
#[derive(Clone)]
pub(super) struct Working {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    pub lake: Option<Arc<Lake>>,
    pub settings: WorkerSettings,
    pub meter: Arc<Meter>,
    pub metrics: Arc<Metrics>,
    pub feeds: Arc<Feeds>,
    pub ending: Arc<Ending>,
    pub pressure: Arc<Pressure>,
    /// How often in a row landing may fail before the run ends; none: however often.
    pub landing_attempts: Option<u32>,
}

/// What a worker does with one thing that was fetched.
struct Step {
    entry: ObjectId,
    location: String,
    object: Object,
    content: Content,
    log_type: Option<usize>,
    /// Given back when it is decoded.
    room: Option<Taken>,
    /// Given back then, too.
    remote: Option<OwnedSemaphorePermit>,
}

enum Done {
    /// An object, of so many stored bytes.
    Decoded(u64),
    Replayed(ReplayOutcome),
}

impl Step {
    fn run(self, worker: &mut Worker) -> Result<Done, WorkError> {
        let Self { object, content, log_type, room, remote, .. } = self;
        let bytes = object.size;
        let done = match content {
            Content::Input(input, place) => {
                worker.work(object, input, place, log_type).map(|()| Done::Decoded(bytes))
            }
            Content::Reject { reason, message, payload } => {
                Ok(worker.reject(object, reason, message, payload).map(|()| Done::Decoded(bytes))?)
            }
            Content::Replay { reject, rejected } => {
                worker.replay(reject, object, rejected, log_type).map(Done::Replayed)
            }
        };
        drop((room, remote));
        done
    }
}

/// A worker's batch, from outside.
pub(super) struct WorkStage {
    working: Working,
    thread: OwnThread,
    /// None only while it works.
    worker: Option<Worker>,
    /// What is in its batch, and in it alone.
    items: HashMap<ObjectId, Item>,
    /// Flushes in a row that failed.
    failures: u32,
}

impl WorkStage {
    /// With an empty batch.
    pub fn new(working: Working) -> Self {
        let worker = Some(working.worker());
        let thread = OwnThread::new(Handle::current());
        Self { working, thread, worker, items: HashMap::new(), failures: 0 }
    }

    /// Until nothing is fetched any more.
    pub async fn run(mut self, fetched: Arc<Mutex<mpsc::Receiver<Fetched>>>) {
        let mut pressure = self.working.pressure.watch();
        let mut hurried = pressure.borrow_and_update().hurries;
        loop {
            let state = pressure.borrow_and_update().clone();
            if std::mem::replace(&mut hurried, state.hurries) != state.hurries {
                self.flush().await;
            }
            let wait = self.time_left().map(|left| match state.busy {
                0 => Duration::ZERO,
                _ if self.is_waited_for(&state) => left.min(IDLE_BEFORE_FLUSH),
                _ => left,
            });
            let next = async {
                let mut fetched = fetched.lock().await;
                let mut together = vec![fetched.recv().await?];
                while together.iter().map(Fetched::held).sum::<u64>() < SMALL_OBJECTS_BYTES
                    && let Ok(next) = fetched.try_recv()
                {
                    together.push(next);
                }
                Some(together)
            };
            let old = async {
                match wait {
                    Some(wait) => clock::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // It is as good as sent: nobody drops the pressure before the workers.
                _ = pressure.changed() => {}
                next = next => match next {
                    Some(fetched) => self.work_all(fetched).await,
                    None => break,
                },
                () = old => self.flush().await,
            }
            if self.time_left().is_some_and(|left| left.is_zero()) {
                self.flush().await;
            }
        }
        self.flush().await;
    }

    /// Whether someone waits until something of the batch has landed.
    fn is_waited_for(&self, state: &PressureState) -> bool {
        let is_waited_for = |item: &Item| state.waiting[item.feed.no] > 0;
        state.waiting.iter().any(|waiting| *waiting > 0) && self.items.values().any(is_waited_for)
    }

    /// Until the batch is old enough to land; none while it is empty.
    fn time_left(&self) -> Option<Duration> {
        self.worker.as_ref().and_then(Worker::time_left)
    }

    /// Decodes what was fetched together. What a panic was over before has a batch of its own.
    async fn work_all(&mut self, fetched: Vec<Fetched>) {
        let (suspects, others): (Vec<_>, Vec<_>) = fetched.into_iter().partition(|f| f.item.is_suspect);
        self.work(others).await;
        for suspect in suspects {
            self.flush().await;
            self.work(vec![suspect]).await;
            self.flush().await;
        }
    }

    async fn work(&mut self, fetched: Vec<Fetched>) {
        let step = |fetched: Fetched| {
            let Fetched { item, entry, object, content, log_type, room, remote } = fetched;
            if self.items.contains_key(&entry) {
                // Two intakes have taken it in: when it comes again, it has landed.
                try_again(item, TWIN_RETRY_AFTER);
                return None;
            }
            self.items.insert(entry, item);
            Some(Step { entry, location: object.location(), object, content, log_type, room, remote })
        };
        let steps: Vec<Step> = fetched.into_iter().filter_map(step).collect();
        let mut worker = self.worker.take().expect("it is put back below");
        let working = self.thread.run(move || {
            let mut worked = Vec::with_capacity(steps.len());
            for step in steps {
                let (entry, location) = (step.entry, step.location.clone());
                let done = caught_here(|| step.run(&mut worker));
                let goes_on = matches!(done, Ok(Ok(_) | Err(WorkError::Read { .. })));
                worked.push((entry, location, done));
                if !goes_on {
                    break;
                }
            }
            (worker, worked)
        });
        let (worker, worked) = working.await;
        self.worker = Some(worker);
        self.account().await;
        for (entry, location, done) in worked {
            match done {
                Ok(done) => self.worked(entry, &location, done),
                Err(said) if self.worker.as_ref().is_some_and(Worker::is_landing) => {
                    self.flush_panicked(&said)
                }
                Err(said) => self.panicked(entry, &said),
            }
        }
    }

    fn worked(&mut self, entry: ObjectId, location: &str, done: Result<Done, WorkError>) {
        let Working { meter, metrics, feeds, .. } = &self.working;
        match done {
            Ok(Done::Decoded(bytes)) => {
                Meter::add(&meter.objects_done, 1);
                Meter::add(&meter.bytes_done, bytes);
            }
            Ok(Done::Replayed(ReplayOutcome::Accepted)) => {}
            Ok(Done::Replayed(ReplayOutcome::Rejected(reason))) => {
                if let Some(item) = self.items.remove(&entry) {
                    item.settle(Outcome::Rejected(reason));
                }
            }
            Err(error @ WorkError::Read { .. }) => {
                let Some(item) = self.items.remove(&entry) else { return };
                let failure = error.failure();
                metrics.count_fetch_error(failure.kind);
                if let ItemKind::Replayed(_) = item.kind {
                    item.settle(Outcome::GivenUp(&error.to_string()));
                } else if let Some((item, _)) = read_failed(item, location, &failure, feeds) {
                    // Fetching it finds out what to do about that.
                    try_again(item, Duration::ZERO);
                }
            }
            Err(WorkError::Batch(error)) => self.landing_failed(error),
        }
    }

    /// One object is given up; the others of the batch are decoded again: what the worker held may be half of
    /// something.
    fn panicked(&mut self, id: ObjectId, said: &str) {
        self.worker = Some(self.working.worker());
        if let Some(item) = self.items.remove(&id) {
            item_panicked(&item, said, &self.working.metrics);
        }
        self.try_all_again(Duration::ZERO);
    }

    fn try_all_again(&mut self, after: Duration) {
        for (_, item) in self.items.drain() {
            try_again(item, after);
        }
    }

    async fn flush(&mut self) {
        let Some(mut worker) = self.worker.take_if(|worker| !worker.is_empty()) else { return };
        let flushing = self.thread.run(move || {
            let flushed = caught_here(|| worker.flush());
            (worker, flushed)
        });
        let (worker, flushed) = flushing.await;
        self.worker = Some(worker);
        match flushed {
            Ok(Ok(flushed)) => self.account_for(flushed).await,
            Ok(Err(error)) => {
                self.account().await;
                self.landing_failed(error);
            }
            Err(said) => self.flush_panicked(&said),
        }
    }

    /// Nobody knows over which object, unless there is but one: each is tried again in a batch of its own.
    fn flush_panicked(&mut self, said: &str) {
        self.worker = Some(self.working.worker());
        let mut items: Vec<Item> = self.items.drain().map(|(_, item)| item).collect();
        if let [item] = items.as_slice() {
            return item_panicked(item, said, &self.working.metrics);
        }
        self.working.metrics.panics.inc();
        tracing::error!(
            objects = items.len(),
            "landing a batch panicked: {said}; each of its objects is tried again by itself: please report this"
        );
        for mut item in items.drain(..) {
            item.is_suspect = true;
            try_again(item, Duration::ZERO);
        }
    }

    /// Takes note of what the worker landed on its own.
    async fn account(&mut self) {
        let flushed = self.worker.as_mut().map(Worker::flushed).unwrap_or_default();
        self.account_for(flushed).await;
    }

    async fn account_for(&mut self, flushed: Flushed) {
        let Working { metrics, feeds, lake, .. } = &self.working;
        for (whole, commits) in flushed.took {
            self.failures = 0;
            metrics.count_flush(whole, commits);
            metrics.clear_problem("lake");
        }
        for outcome in &flushed.landed {
            metrics.count_landed(outcome);
            match self.items.remove(&outcome.entry()) {
                Some(item) => item.settle(Outcome::Landed(outcome)),
                // The item that brought it is told after it, so it is still there.
                None => {
                    let replayed = |item: &&Item| matches!(item.kind, ItemKind::Replayed(_));
                    if let Some(item) = self.items.values().find(replayed) {
                        item.settle.landed_beside(outcome);
                    }
                }
            }
        }
        for id in flushed.already_there {
            if let Some(item) = self.items.remove(&id) {
                already_there(item, lake.as_deref(), feeds, metrics).await;
            }
        }
        for id in flushed.stale {
            if let Some(item) = self.items.remove(&id) {
                self.decode_again(item);
            }
        }
    }

    /// An object whose files a vacuum may have taken is decoded again, but not for ever.
    fn decode_again(&self, mut item: Item) {
        let why = format!(
            "{}: decoding and landing it took over an hour, and a vacuum ran meanwhile: use a faster connection, more memory, or `partition = \"day\"`",
            item.kind.location()
        );
        match item.attempts.next(Failed::Stale, clock::now(), None, true) {
            Next::Again(after) => {
                tracing::warn!("{why}; it is decoded again");
                try_again(item, after);
            }
            Next::Missing | Next::GiveUp => item.settle(Outcome::GivenUp(&why)),
        }
    }

    /// The lake could not be written. What the batch held is decoded again: whether it landed all the same,
    /// the ledger tells.
    fn landing_failed(&mut self, error: BatchError) {
        let Working { metrics, ending, landing_attempts, .. } = &self.working;
        self.failures += 1;
        metrics.flush_errors.inc();
        metrics.set_problem("lake", error.to_string());
        let is_last = landing_attempts.is_some_and(|most| self.failures >= most);
        let after = jittered(delay(self.failures + 1));
        if error.needs_a_person() || is_last {
            ending.fail(error.into());
        } else {
            tracing::warn!(
                objects = self.items.len(),
                "{error}; what the batch held is decoded again in {after:.1?}"
            );
        }
        self.worker = Some(self.working.worker());
        self.try_all_again(after);
    }
}

impl Working {
    fn worker(&self) -> Worker {
        Worker::new(
            &self.catalog,
            self.tables.clone(),
            self.lake.clone(),
            self.settings.clone(),
            self.meter.clone(),
            Handle::current(),
        )
    }
}
