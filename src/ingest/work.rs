//! The workers: each has a batch, and lands it when it is full, old enough, or others wait for it. Decoding
//! and writing block, so each step of theirs has a thread while it lasts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};

use super::attempts::{Failed, Next, delay};
use super::ending::Ending;
use super::failures::{already_there, item_panicked, read_failed, try_again};
use super::feed::Feeds;
use super::item::{Content, Fetched, Item};
use super::metrics::Metrics;
use super::pressure::{Pressure, State};
use super::settle::{Outcome, Settle};
use crate::base::panics::caught_here;
use crate::base::{clock, jittered};
use crate::decode::object::ObjectId;
use crate::land::batch::{BatchError, Flushed, Tables};
use crate::land::worker::{Meter, WorkError, Worker, WorkerSettings};
use crate::schema::Catalog;
use crate::table::Lake;

/// How long a worker that others wait for waits itself for more.
const IDLE: Duration = Duration::from_millis(200);

/// What every worker works with.
#[derive(Clone)]
pub(super) struct Working {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    pub lake: Option<Arc<Lake>>,
    pub settings: WorkerSettings,
    pub meter: Arc<Meter>,
    pub metrics: Arc<Metrics>,
    pub settle: Arc<dyn Settle>,
    pub feeds: Arc<Feeds>,
    pub ending: Arc<Ending>,
    pub pressure: Arc<Pressure>,
    /// How often in a row landing may fail before the run ends; none: however often.
    pub landing_attempts: Option<u32>,
}

/// A worker's batch, from outside.
pub(super) struct WorkStage {
    working: Working,
    /// None only while it works on a thread of its own.
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
        Self { working, worker, items: HashMap::new(), failures: 0 }
    }

    /// Until nothing is fetched any more.
    pub async fn run(mut self, fetched: Arc<Mutex<mpsc::Receiver<Fetched>>>) {
        let mut pressure = self.working.pressure.watch();
        let mut hurried = pressure.borrow_and_update().hurries;
        loop {
            let state = *pressure.borrow_and_update();
            if std::mem::replace(&mut hurried, state.hurries) != state.hurries {
                self.flush().await;
            }
            let wait = self.time_left().map(|left| match state {
                State { busy: 0, .. } => Duration::ZERO,
                State { waiting: 0, .. } => left,
                State { .. } => left.min(IDLE),
            });
            let next = async { fetched.lock().await.recv().await };
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
                    Some(fetched) => self.work(fetched).await,
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

    /// Until the batch is old enough to land; none while it is empty.
    fn time_left(&self) -> Option<Duration> {
        self.worker.as_ref().and_then(Worker::time_left)
    }

    async fn work(&mut self, fetched: Fetched) {
        let Fetched { item, object, content, log_type, room } = fetched;
        let (id, location, size) = (object.id, object.location(), object.size);
        let is_suspect = item.is_suspect;
        if is_suspect {
            // In a batch of its own.
            self.flush().await;
        }
        self.items.insert(id, item);
        let mut worker = self.worker.take().expect("it is put back below");
        let working = tokio::task::spawn_blocking(move || {
            let worked = caught_here(|| match content {
                Content::Input(input, place) => worker.work(object, input, place, log_type),
                Content::Reject { reason, message, payload } => {
                    Ok(worker.reject(object, reason, message, payload)?)
                }
            });
            drop(room);
            (worker, worked)
        });
        let (worker, worked) = working.await.expect("panics are caught");
        self.worker = Some(worker);
        self.account().await;
        match worked {
            Ok(Ok(())) => {
                let meter = &self.working.meter;
                Meter::add(&meter.objects_done, 1);
                Meter::add(&meter.bytes_done, size);
                if is_suspect {
                    self.flush().await;
                }
            }
            Ok(Err(error @ WorkError::Read { .. })) => {
                let Some(item) = self.items.remove(&id) else { return };
                let failure = error.failure();
                self.working.metrics.count_fetch_error(failure.kind);
                let (feeds, settle) = (&self.working.feeds, self.working.settle.as_ref());
                if let Some((item, _)) = read_failed(item, &location, &failure, feeds, settle) {
                    // Fetching it finds out what to do about that.
                    try_again(item, Duration::ZERO, settle);
                }
            }
            Ok(Err(WorkError::Batch(error))) => self.landing_failed(error),
            Err(said) if self.worker.as_ref().is_some_and(Worker::is_landing) => self.flush_panicked(&said),
            Err(said) => self.panicked(id, &said),
        }
    }

    /// One object is given up; the others of the batch are decoded again: what the worker held may be half of
    /// something.
    fn panicked(&mut self, id: ObjectId, said: &str) {
        self.worker = Some(self.working.worker());
        if let Some(item) = self.items.remove(&id) {
            item_panicked(&item, said, self.working.settle.as_ref(), &self.working.metrics);
        }
        self.try_all_again(Duration::ZERO);
    }

    fn try_all_again(&mut self, after: Duration) {
        for (_, item) in self.items.drain() {
            try_again(item, after, self.working.settle.as_ref());
        }
    }

    async fn flush(&mut self) {
        let Some(mut worker) = self.worker.take_if(|worker| !worker.is_empty()) else { return };
        let flushing = tokio::task::spawn_blocking(move || {
            let flushed = caught_here(|| worker.flush());
            (worker, flushed)
        });
        let (worker, flushed) = flushing.await.expect("panics are caught");
        self.worker = Some(worker);
        match flushed {
            Ok(Ok(flushed)) => {
                self.failures = 0;
                self.account_for(flushed).await;
            }
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
        let settle = self.working.settle.as_ref();
        if let [item] = items.as_slice() {
            return item_panicked(item, said, settle, &self.working.metrics);
        }
        self.working.metrics.panics.inc();
        tracing::error!(
            objects = items.len(),
            "landing a batch panicked: {said}; each of its objects is tried again by itself: please report this"
        );
        for mut item in items.drain(..) {
            item.is_suspect = true;
            try_again(item, Duration::ZERO, settle);
        }
    }

    /// Takes note of what the worker landed on its own.
    async fn account(&mut self) {
        let flushed = self.worker.as_mut().map(Worker::flushed).unwrap_or_default();
        self.account_for(flushed).await;
    }

    async fn account_for(&mut self, flushed: Flushed) {
        let Working { metrics, settle, lake, .. } = &self.working;
        for (whole, commits) in flushed.took {
            metrics.count_flush(whole, commits);
            metrics.tell("lake", None);
        }
        for outcome in &flushed.landed {
            metrics.count_landed(outcome);
            if let Some(item) = self.items.remove(&outcome.object.id) {
                settle.settle(&item, Outcome::Landed(outcome));
            }
        }
        for id in flushed.already_there {
            if let Some(item) = self.items.remove(&id) {
                already_there(item, lake.as_deref(), settle.as_ref(), metrics).await;
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
        let settle = self.working.settle.as_ref();
        let why = format!(
            "{}: decoding and landing it took over an hour, and a vacuum came by: give it a faster line, more memory, or `partition = \"day\"`",
            item.what.location()
        );
        match item.attempts.next(Failed::Stale, clock::now(), None, true) {
            Next::Again(after) => {
                tracing::warn!("{why}; it is decoded again");
                try_again(item, after, settle);
            }
            Next::Missing | Next::GiveUp => settle.settle(&item, Outcome::GivenUp(&why)),
        }
    }

    /// The lake could not be written. What the batch held is decoded again: whether it landed all the same,
    /// the ledger tells.
    fn landing_failed(&mut self, error: BatchError) {
        let Working { metrics, ending, landing_attempts, .. } = &self.working;
        self.failures += 1;
        metrics.flush_errors.inc();
        metrics.tell("lake", Some(error.to_string()));
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
