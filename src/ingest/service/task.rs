//! Tasks, and what becomes of a panic in one. It is noticed at once and told, whichever task it is.
//!
//! A task that holds nothing between two turns (leases, deletions, gauges) is begun again: ending the run
//! would cost every source, and a supervisor's restart no less, for what may be one odd answer of one queue.
//! A panic over one object gives that object up, whose messages stay in their queue: no other is to blame.
//! Whatever else panics may have held messages or rows, which only a drain gives back: the run ends, with an
//! error.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::{IngestError, Job, Ready, Shared, What, patience};
use crate::base::panics::{caught, caught_here, to_the_end};
use crate::source::bucket::Wanted;

impl Shared {
    /// A stage of the journey: its panic ends the run.
    pub(super) fn stage(
        self: &Arc<Self>,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let shared = self.clone();
        tokio::spawn(async move {
            if let Err(said) = caught(work).await {
                shared.stage_panicked(task, said);
            }
        })
    }

    /// The same on a thread of its own.
    pub(super) fn blocking_stage(
        self: &Arc<Self>,
        task: &'static str,
        ready: Arc<Mutex<mpsc::Receiver<Ready>>>,
        work: fn(Arc<Self>, &Mutex<mpsc::Receiver<Ready>>),
    ) -> JoinHandle<()> {
        let shared = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(said) = caught_here(|| work(shared.clone(), &ready)) {
                shared.stage_panicked(task, said);
            }
        })
    }

    fn stage_panicked(&self, task: &str, said: String) {
        self.run.metrics.panics.inc();
        self.fail(IngestError::Panicked { task: task.to_owned(), said });
    }

    /// A task that holds nothing: it is begun again, until it is ended. `feed`: whose it is.
    pub(super) fn lasting<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        task: &'static str,
        feed: impl Into<Option<usize>>,
        work: impl Fn(Arc<Self>) -> F + Send + Sync + 'static,
    ) -> JoinHandle<()> {
        let queue =
            feed.into().map(|feed: usize| self.run.feeds[feed].queue.url().to_owned()).unwrap_or_default();
        let (shared, panicking) = (self.clone(), self.clone());
        let mut panics = 0;
        let panicked = move |said: String| -> Duration {
            panics += 1;
            panicking.run.metrics.panics.inc();
            let wait = patience(panics);
            tracing::error!(
                queue,
                panics,
                "{task} panicked: {said}; it is begun again in {wait:.1?}: please report this"
            );
            wait
        };
        tokio::spawn(async move { to_the_end(|| work(shared.clone()), panicked).await })
    }

    /// A panic over one object: it alone is given up.
    pub(super) fn object_panicked(&self, job: Job, said: &str) {
        self.run.metrics.panics.inc();
        let location = self.location(&job);
        tracing::error!("{location}: this program panicked over it: {said}; please report this");
        self.give_up(job, &location);
    }

    /// Where an item is, as a person would write it.
    pub(super) fn location(&self, job: &Job) -> String {
        let queue = |feed: usize| self.run.feeds[feed].queue.url().to_owned();
        match self.book.lock().what(job.no) {
            Some(What::Announced(_, announced)) => {
                Wanted { bucket: announced.bucket, key: announced.key, version: announced.version }.location()
            }
            Some(What::Body(feed, _)) => format!("a message's body in queue {}", queue(feed)),
            Some(What::Reject(_, rejected)) => rejected.message,
            None => "an object that others have done with".to_owned(),
        }
    }
}
