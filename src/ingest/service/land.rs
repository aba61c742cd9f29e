//! The workers: each has a thread and a batch, and lands it when it is full, old enough, or others wait for
//! it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};

use super::{Content, Job, Ready, Shared, What, patience};
use crate::base::aws::{Failure, FailureKind};
use crate::base::panics::caught_here;
use crate::decode::object::ObjectId;
use crate::decode::split::Place;
use crate::land::batch::{BatchError, Flushed};
use crate::land::worker::{WorkError, Worker};

/// How often a worker that waits looks whether others wait for it.
const LOOK: Duration = Duration::from_millis(200);

/// An object whose files were too old to be landed so often is given up for now.
const STALE: u32 = 3;

/// A worker's batch, from outside.
struct Holding {
    worker: Worker,
    /// What is in it, and in it alone.
    jobs: HashMap<ObjectId, Job>,
    /// The last hurry that was heeded.
    hurried: u64,
    /// Flushes in a row that failed.
    failures: u32,
}

impl Shared {
    fn new_worker(&self) -> Worker {
        let run = &self.run;
        Worker::new(
            &run.catalog,
            run.tables.clone(),
            Some(run.lake.clone()),
            run.settings.clone(),
            run.meter.clone(),
            Handle::current(),
        )
    }

    /// A worker's life: until the last fetcher has gone.
    pub(super) fn work_all(self: Arc<Self>, ready: &Mutex<mpsc::Receiver<Ready>>) {
        let _stops_all = self.stop.clone().drop_guard();
        let hurried = self.hurry.load(Ordering::Relaxed);
        let mut holding = Holding { worker: self.new_worker(), jobs: HashMap::new(), hurried, failures: 0 };
        loop {
            let wait = holding.worker.time_left().unwrap_or(LOOK).min(LOOK);
            let next = async { ready.lock().await.recv().await };
            match Handle::current().block_on(async { tokio::time::timeout(wait, next).await }) {
                Ok(Some(found)) => self.work(&mut holding, found),
                Ok(None) => break,
                // Nothing more comes before something has landed.
                Err(_) if self.waiting_for_room.load(Ordering::Relaxed) > 0 => self.flush(&mut holding),
                Err(_) => {}
            }
            let hurry = self.hurry.load(Ordering::Relaxed);
            let is_old = holding.worker.time_left().is_some_and(|left| left.is_zero());
            if is_old || hurry != std::mem::replace(&mut holding.hurried, hurry) {
                self.flush(&mut holding);
            }
        }
        self.flush(&mut holding);
    }

    fn work(self: &Arc<Self>, holding: &mut Holding, found: Ready) {
        let Ready { job, object, content, log_type, room } = found;
        let (id, location) = (object.id, object.location());
        holding.jobs.insert(id, job);
        let worked = caught_here(|| match content {
            Content::Input(input) => holding.worker.work(object, input, Place::START, log_type),
            Content::Reject { reason, message, payload } => {
                Ok(holding.worker.reject(object, reason, message, payload)?)
            }
        });
        drop(room);
        let worked = match worked {
            Ok(worked) => worked,
            Err(said) => return self.work_panicked(holding, id, &said),
        };
        match worked {
            Ok(()) => self.account(holding),
            Err(WorkError::Read { source, .. }) => {
                self.account(holding);
                let Some(job) = holding.jobs.remove(&id) else { return };
                let failure = Failure { kind: FailureKind::Unavailable, message: source.to_string() };
                let Some(What::Announced(feed, _)) = self.book.lock().what(job.no) else { return };
                self.count_fetch_error(failure.kind);
                Handle::current().block_on(self.read_failed(job, feed, &location, &failure));
            }
            Err(WorkError::Batch(error)) => self.landing_failed(holding, error),
        }
    }

    /// One object is given up; the others of the batch are decoded again: what the worker held may be half of
    /// something.
    fn work_panicked(self: &Arc<Self>, holding: &mut Holding, id: ObjectId, said: &str) {
        self.account(holding);
        holding.worker = self.new_worker();
        if let Some(job) = holding.jobs.remove(&id) {
            self.object_panicked(job, said);
        }
        self.later(holding.jobs.drain().map(|(_, job)| job).collect(), Duration::ZERO);
    }

    fn flush(self: &Arc<Self>, holding: &mut Holding) {
        if holding.worker.is_empty() {
            return;
        }
        match holding.worker.flush() {
            Ok(flushed) => {
                holding.failures = 0;
                self.account_for(holding, flushed);
            }
            Err(error) => self.landing_failed(holding, error),
        }
    }

    /// Takes note of what the worker landed on its own.
    fn account(self: &Arc<Self>, holding: &mut Holding) {
        let flushed = holding.worker.flushed();
        self.account_for(holding, flushed);
    }

    fn account_for(self: &Arc<Self>, holding: &mut Holding, flushed: Flushed) {
        let metrics = &self.run.metrics;
        for (whole, commits) in flushed.took {
            metrics.count_flush(whole, commits);
            metrics.tell("lake", None);
        }
        let mut take = |id: ObjectId| holding.jobs.remove(&id);
        for outcome in &flushed.landed {
            metrics.count_landed(outcome);
            if let Some(job) = take(outcome.object.id) {
                self.landed(job.no);
            }
        }
        for job in flushed.already_there.into_iter().filter_map(&mut take) {
            Handle::current().block_on(self.already_there(job));
        }
        let stale: Vec<Job> = flushed.stale.into_iter().filter_map(&mut take).collect();
        self.decode_again(stale);
    }

    /// Objects whose files a vacuum may have taken: decoded again, but not for ever.
    fn decode_again(self: &Arc<Self>, stale: Vec<Job>) {
        let mut again = Vec::new();
        for mut job in stale {
            job.stale += 1;
            let location = self.location(&job);
            let why = "a vacuum came by over an hour after its files were written: give this worker a faster line, more memory, or `partition = \"day\"`";
            if job.stale < STALE {
                tracing::warn!(times = job.stale, "{location}: {why}; it is decoded again");
                again.push(job);
            } else {
                tracing::error!(times = job.stale, "{location}: {why}");
                self.give_up(job, &location);
            }
        }
        self.later(again, Duration::ZERO);
    }

    /// The lake could not be written. What the batch held is decoded again: whether it landed all the same,
    /// the ledger tells.
    fn landing_failed(self: &Arc<Self>, holding: &mut Holding, error: BatchError) {
        self.account(holding);
        holding.worker = self.new_worker();
        holding.failures += 1;
        self.run.metrics.flush_errors.inc();
        self.run.metrics.tell("lake", Some(error.to_string()));
        if error.needs_a_person() {
            return self.fail(error.into());
        }
        let delay = patience(holding.failures + 1);
        tracing::warn!(
            objects = holding.jobs.len(),
            "{error}; what the batch held is decoded again in {delay:.1?}"
        );
        self.later(holding.jobs.drain().map(|(_, job)| job).collect(), delay);
    }
}
