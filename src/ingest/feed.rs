//! A source as the pipeline sees it: attribution, how objects are read, and whether that works. A source of
//! which nothing can be read is paused, reported, and retried; the others go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::ending::{Ending, IngestError};
use super::metrics::Metrics;
use crate::base::clock::{self, Instant};
use crate::config::Source;
use crate::decode::object::Object;
use crate::source::bucket::Buckets;
use crate::source::routing::routed;

/// How often a refused source is tried again, unless a service's pace says otherwise: a person who mends a
/// policy waits so long at most.
pub const REFUSED_RETRY_EVERY: Duration = Duration::from_secs(60);
/// Objects of a bucket refused, and none read in between: the bucket as a whole is refused.
const REFUSED_OBJECTS: usize = 3;
/// Failed reads of a source, and none that succeeded in between: it is out of reach, which is told.
const OUTAGE_FAILURES: usize = 8;

#[derive(Debug)]
pub struct Feed {
    /// Its place among the feeds of the run.
    pub no: usize,
    /// What its rows are attributed to.
    pub source: Option<Source>,
    /// Where announced objects are read.
    pub buckets: Option<Arc<dyn Buckets>>,
    /// The log type of every record, whatever its key.
    pub log_type: Option<usize>,
    /// The log types that routes name, by their index in the catalog.
    pub log_types: BTreeMap<String, usize>,
    health: Health,
}

#[derive(Debug, Default)]
struct Health {
    /// When an object was last read.
    read: Mutex<Option<Instant>>,
    /// By the bucket's name; files have none.
    buckets: Mutex<BTreeMap<String, BucketHealth>>,
    /// Since when nothing of it can be read.
    refused: Mutex<Option<Instant>>,
}

/// What happened since an object of the bucket was last read.
#[derive(Debug)]
struct BucketHealth {
    /// When a read first failed.
    since: Instant,
    /// Objects that were given up as refused.
    denied: usize,
    /// Reads that failed.
    failed: usize,
}

impl BucketHealth {
    fn new() -> Self {
        Self { since: clock::now(), denied: 0, failed: 0 }
    }

    fn is_refused(&self) -> bool {
        self.denied >= REFUSED_OBJECTS
    }
}

impl Feed {
    /// A feed of which nothing was read yet.
    pub fn new(no: usize, source: Option<Source>, log_types: BTreeMap<String, usize>) -> Self {
        Self { no, source, buckets: None, log_type: None, log_types, health: Health::default() }
    }

    /// The source's id, where there is a source.
    pub fn id(&self) -> &str {
        self.source.as_ref().map_or("", |source| &source.id)
    }

    /// The log type of the records below a key, if that is configured.
    pub fn log_type(&self, key: &str) -> Option<usize> {
        self.log_type.or_else(|| routed(self.source.as_ref()?, key, &self.log_types))
    }

    /// Fills in whose an object is.
    pub fn attribute(&self, object: &mut Object) {
        if let Some(source) = &self.source {
            (object.source_id, object.source_label) = (Some(source.id.clone()), source.label.clone());
        }
    }

    /// When an object was last read.
    pub fn last_read(&self) -> Option<Instant> {
        *self.health.read.lock()
    }

    /// Whether nothing of it can be read.
    pub fn is_refused(&self) -> bool {
        self.health.refused.lock().is_some()
    }

    /// Whether nothing of one of its buckets can be read.
    fn has_refused_bucket(&self) -> bool {
        self.health.buckets.lock().values().any(BucketHealth::is_refused)
    }

    /// What trouble with it is told under: whatever the source is called, not that of a queue, or of the
    /// lake.
    fn problem(&self) -> String {
        format!("source {}", self.id())
    }

    /// And trouble with the objects of one of its buckets.
    fn bucket_problem(&self, bucket: &str) -> String {
        format!("source {} bucket {bucket}", self.id())
    }
}

/// The feeds of a run, and what is told of those that are refused.
#[derive(Debug)]
pub struct Feeds {
    /// In the order of their numbers.
    pub all: Vec<Arc<Feed>>,
    metrics: Arc<Metrics>,
    ending: Arc<Ending>,
    /// How often a refused one is tried again; none: it is not, and its objects are given up.
    every: Option<Duration>,
}

impl Feeds {
    /// Nothing was read of them yet.
    pub fn new(
        all: Vec<Arc<Feed>>,
        metrics: Arc<Metrics>,
        ending: Arc<Ending>,
        every: Option<Duration>,
    ) -> Self {
        Self { all, metrics, ending, every }
    }

    /// Whether a source of which nothing can be read is waited for.
    pub fn outlast_outages(&self) -> bool {
        self.every.is_some()
    }

    /// An object of it was read.
    pub fn was_read(&self, feed: &Feed, bucket: &str) {
        *feed.health.read.lock() = Some(clock::now());
        let before = feed.health.buckets.lock().remove(bucket);
        if let Some(before) = before {
            self.metrics.clear_problem(&feed.bucket_problem(bucket));
            if before.is_refused() && !feed.is_refused() {
                tracing::info!(source = feed.id(), bucket, "it can be read again");
                self.metrics.sources_refused.set(self.refused() as i64);
            }
        }
        self.accept(feed);
    }

    /// An object of it could not be read. `is_refused`: nor will it be before a person changes something.
    pub fn read_failed(&self, feed: &Feed, bucket: &str, is_refused: bool, why: &str) {
        let failed = {
            let mut buckets = feed.health.buckets.lock();
            let health = buckets.entry(bucket.to_owned()).or_insert_with(BucketHealth::new);
            health.failed += 1;
            health.failed
        };
        if is_refused || failed >= OUTAGE_FAILURES {
            self.metrics.set_problem(&feed.bucket_problem(bucket), why.to_owned());
        }
    }

    /// An object was given up as refused. If so were others of its bucket, and none was read in between, that
    /// bucket is refused; and the source, if nothing else of it was read meanwhile.
    pub fn object_refused(&self, feed: &Feed, bucket: &str, error: IngestError) {
        let (is_refused, is_new, others_are_read) = {
            let mut buckets = feed.health.buckets.lock();
            let health = buckets.entry(bucket.to_owned()).or_insert_with(BucketHealth::new);
            health.denied += 1;
            // Of this bucket nothing was read since.
            let others_are_read = feed.last_read().is_some_and(|at| at >= health.since);
            (health.is_refused(), health.denied == REFUSED_OBJECTS, others_are_read)
        };
        if is_refused && !others_are_read {
            return self.refuse(feed, error);
        }
        if is_new {
            self.metrics.sources_refused.set(self.refused() as i64);
            tracing::error!(
                source = feed.id(),
                bucket,
                "{error}; the source's other buckets go on, and this one's messages come again"
            );
        }
    }

    /// Its queue answers. Whether its objects can be read is another question, which reading them answers.
    pub fn queue_answers(&self, feed: &Feed) {
        if feed.health.buckets.lock().values().all(|health| health.denied == 0) {
            self.accept(feed);
        }
    }

    /// Stops a source. Told once, until it can be read again. If all are refused before one of them was ever
    /// read, a person has to see it, and the run ends.
    pub fn refuse(&self, feed: &Feed, error: IngestError) {
        let is_new = self.stop(feed, &error);
        let none_was_read = self.all.iter().all(|feed| feed.last_read().is_none());
        if self.every.is_some() && none_was_read && self.all.iter().all(|feed| feed.is_refused()) {
            return self.ending.fail(error);
        }
        if is_new {
            self.tell(feed, &error);
        }
    }

    /// Stops a source that was in order before: the run goes on, whatever the others are like.
    pub fn pause(&self, feed: &Feed, error: IngestError) {
        if self.stop(feed, &error) {
            self.tell(feed, &error);
        }
    }

    /// True: it was not stopped.
    fn stop(&self, feed: &Feed, error: &IngestError) -> bool {
        let was_refused = feed.health.refused.lock().replace(clock::now()).is_some();
        self.metrics.set_problem(&feed.problem(), error.to_string());
        self.metrics.sources_refused.set(self.refused() as i64);
        !was_refused
    }

    fn tell(&self, feed: &Feed, error: &IngestError) {
        let source = feed.id();
        match self.every {
            Some(every) => tracing::error!(
                source,
                "{error}; the other sources go on, and this one is tried again every {every:.0?}"
            ),
            None => {
                tracing::error!(source, "{error}; its other objects are given up, too, if they are refused")
            }
        }
    }

    /// A source can be read, whatever was before.
    fn accept(&self, feed: &Feed) {
        if feed.health.refused.lock().take().is_some() {
            self.metrics.clear_problem(&feed.problem());
            tracing::info!(source = feed.id(), "it can be read again");
            self.metrics.sources_refused.set(self.refused() as i64);
        }
    }

    /// How many sources are refused, or a bucket of theirs.
    pub fn refused(&self) -> usize {
        self.all.iter().filter(|feed| feed.is_refused() || feed.has_refused_bucket()).count()
    }

    /// Waits until a source that is refused may be tried again.
    pub async fn wait_while_refused(&self, feed: &Feed) {
        if let Some(every) = self.every.filter(|_| feed.is_refused()) {
            tokio::select! {
                () = self.ending.stop.cancelled() => {}
                () = clock::sleep(every) => {}
            }
        }
    }
}
