//! What an ingest counts and measures, by Prometheus' names; and whether it is ready.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::base::failure::FailureKind;
use crate::base::now_micros;
use crate::land::ledger_rows::ObjectOutcome;
use crate::source::queue::QueueError;

/// One label: why, which table, which queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    /// A fixed code.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByTable {
    pub table: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BySource {
    pub source: String,
}

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Debug)]
pub struct Metrics {
    /// Messages received, redelivered ones included.
    pub received: Family<BySource, Counter>,
    /// Messages deleted: all that they announce has landed.
    pub deleted: Counter,
    /// Messages given back to their queue.
    pub released: Counter,
    /// Messages held: received, and neither deleted nor given back.
    pub held: Gauge<i64, AtomicI64>,
    /// Messages that bring nothing to land: test messages, removals.
    pub ignored: Counter,
    pub landed: Counter,
    /// Objects and bodies that came again: they had landed, or were on their way.
    pub duplicates: Counter,
    /// Objects that hold no records by their name or size.
    pub skipped: Counter,
    /// Objects given up for now: their messages stay in their queue.
    pub given_up: Counter,
    /// Objects whose content is another than was announced.
    pub overwritten: Counter,
    /// Sources of which nothing can be read.
    pub sources_refused: Gauge,
    pub rejects: Family<ByReason, Counter>,
    pub rows: Family<ByTable, Counter>,
    /// Stored bytes of the objects that landed.
    pub bytes: Counter,
    /// Failed reads of objects, by what the answer asked for.
    pub fetch_errors: Family<ByReason, Counter>,
    /// Failed requests to queues, by what the answer asked for.
    pub queue_errors: Family<ByReason, Counter>,
    /// Failed flushes; their objects are decoded again.
    pub flush_errors: Counter,
    /// Panics that cost a task or an object, and nothing else.
    pub panics: Counter,
    /// Leases that ended before their message could be deleted.
    pub leases_lost: Counter,
    /// From the first file's writing to the last table's commit.
    pub flush_time: Histogram,
    /// The commits' part of that.
    pub commit_time: Histogram,
    /// From an object's creation to its rows being there to query.
    pub freshness: Histogram,
    /// Age of the oldest message that is held and has not landed.
    pub oldest: Seconds,
    /// Files that compaction took out for larger ones.
    pub merged: Counter,
    /// Files that vacuum deleted.
    pub vacuumed: Counter,
    /// Runs of upkeep that failed.
    pub upkeep_errors: Counter,
    /// 1 when ready.
    pub ready: Gauge<i64, AtomicI64>,
    health: Health,
}

#[derive(Debug, Default)]
struct Health {
    started: AtomicBool,
    stopping: AtomicBool,
    /// What is wrong, by what it is wrong with.
    problems: Mutex<BTreeMap<String, String>>,
}

fn times() -> Histogram {
    Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
}

impl Metrics {
    /// All at zero, and the registry that shows them.
    pub fn new() -> (Self, Registry) {
        let metrics = Self {
            received: Family::default(),
            deleted: Counter::default(),
            released: Counter::default(),
            held: Gauge::default(),
            ignored: Counter::default(),
            landed: Counter::default(),
            duplicates: Counter::default(),
            skipped: Counter::default(),
            given_up: Counter::default(),
            overwritten: Counter::default(),
            sources_refused: Gauge::default(),
            rejects: Family::default(),
            rows: Family::default(),
            bytes: Counter::default(),
            fetch_errors: Family::default(),
            queue_errors: Family::default(),
            flush_errors: Counter::default(),
            panics: Counter::default(),
            leases_lost: Counter::default(),
            flush_time: times(),
            commit_time: times(),
            freshness: Histogram::new([
                0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 90.0, 120.0, 300.0, 900.0, 3600.0,
                86_400.0,
            ]),
            oldest: Gauge::default(),
            merged: Counter::default(),
            vacuumed: Counter::default(),
            upkeep_errors: Counter::default(),
            ready: Gauge::default(),
            health: Health::default(),
        };
        let registry = metrics.registry();
        (metrics, registry)
    }

    fn registry(&self) -> Registry {
        let mut to = Registry::with_prefix("flarelake");
        to.register(
            "messages_received",
            "Messages received, redelivered ones included",
            self.received.clone(),
        );
        to.register(
            "messages_deleted",
            "Messages deleted: all that they announce has landed",
            self.deleted.clone(),
        );
        to.register("messages_released", "Messages given back to their queue", self.released.clone());
        to.register(
            "messages_held",
            "Messages received and neither deleted nor given back",
            self.held.clone(),
        );
        to.register("messages_ignored", "Messages that bring nothing to land", self.ignored.clone());
        to.register("objects_landed", "Objects and message bodies that landed", self.landed.clone());
        to.register(
            "objects_duplicate",
            "Objects and message bodies that came again",
            self.duplicates.clone(),
        );
        to.register(
            "objects_skipped",
            "Objects that hold no records by their name or size",
            self.skipped.clone(),
        );
        to.register(
            "objects_given_up",
            "Objects given up for now: their messages stay in their queue",
            self.given_up.clone(),
        );
        to.register(
            "objects_overwritten",
            "Objects whose content is another than was announced",
            self.overwritten.clone(),
        );
        to.register(
            "sources_refused",
            "Sources of which nothing can be read; each is tried again",
            self.sources_refused.clone(),
        );
        self.register_landing(&mut to);
        to
    }

    /// What lands, what fails on the way there, and upkeep.
    fn register_landing(&self, to: &mut Registry) {
        to.register("rejects", "Rejects that landed, by reason", self.rejects.clone());
        to.register("rows", "Rows that landed, by table", self.rows.clone());
        to.register("stored", "Bytes, as stored, of the objects that landed", self.bytes.clone());
        to.register("fetch_errors", "Failed reads of objects", self.fetch_errors.clone());
        to.register("queue_errors", "Failed requests to queues", self.queue_errors.clone());
        to.register(
            "flush_errors",
            "Failed flushes; their objects are decoded again",
            self.flush_errors.clone(),
        );
        to.register(
            "panics",
            "Faults of this program that cost a task or an object; please report them",
            self.panics.clone(),
        );
        to.register(
            "leases_lost",
            "Leases that ended before their message could be deleted",
            self.leases_lost.clone(),
        );
        let seconds = || Unit::Seconds;
        to.register_with_unit(
            "flush",
            "From a flush's first file to the last table's commit",
            seconds(),
            self.flush_time.clone(),
        );
        to.register_with_unit("commit", "The commits' part of a flush", seconds(), self.commit_time.clone());
        to.register_with_unit(
            "freshness",
            "From an object's creation to its rows being there to query",
            seconds(),
            self.freshness.clone(),
        );
        to.register_with_unit(
            "oldest_unlanded",
            "Age of the oldest message that has not landed",
            seconds(),
            self.oldest.clone(),
        );
        to.register("files_merged", "Files that compaction took out for larger ones", self.merged.clone());
        to.register("files_vacuumed", "Files that no version needed, deleted", self.vacuumed.clone());
        to.register(
            "upkeep_errors",
            "Runs of upkeep that failed; the next goes on",
            self.upkeep_errors.clone(),
        );
        to.register("ready", "1 when everything can be reached", self.ready.clone());
    }

    /// Counts an object that landed.
    pub fn count_landed(&self, outcome: &ObjectOutcome) {
        self.landed.inc();
        self.bytes.inc_by(outcome.object.size);
        for (table, rows) in &outcome.rows {
            self.rows.get_or_create(&ByTable { table: table.clone() }).inc_by(*rows);
        }
        for (reason, count) in &outcome.rejects {
            self.rejects.get_or_create(&ByReason { reason: reason.code().to_owned() }).inc_by(*count);
        }
        if let Some(created) = outcome.object.last_modified {
            self.freshness.observe((now_micros() - created).max(0) as f64 / 1e6);
        }
    }

    /// Counts a failed read of an object.
    pub fn count_fetch_error(&self, kind: FailureKind) {
        self.fetch_errors.get_or_create(&ByReason { reason: kind.code().to_owned() }).inc();
    }

    /// Counts a failed request to a queue.
    pub fn count_queue_error(&self, error: &QueueError) {
        let reason = error.failure.kind.code().to_owned();
        self.queue_errors.get_or_create(&ByReason { reason }).inc();
    }

    /// Counts a flush and the time of its commits.
    pub fn count_flush(&self, whole: Duration, commits: Duration) {
        self.flush_time.observe(whole.as_secs_f64());
        self.commit_time.observe(commits.as_secs_f64());
    }

    /// Everything could be reached once.
    pub fn started(&self) {
        self.health.started.store(true, Ordering::Relaxed);
        self.refresh();
    }

    /// No further message is received.
    pub fn stopping(&self) {
        self.health.stopping.store(true, Ordering::Relaxed);
        self.refresh();
    }

    /// Takes note of what is wrong with something: a source, a queue, the lake.
    pub fn set_problem(&self, with: &str, problem: String) {
        self.health.problems.lock().insert(with.to_owned(), problem);
        self.refresh();
    }

    /// Takes note that it works.
    pub fn clear_problem(&self, with: &str) {
        self.health.problems.lock().remove(with);
        self.refresh();
    }

    fn refresh(&self) {
        self.ready.set(i64::from(self.readiness().is_ok()));
    }

    /// Whether messages are received and land; else why not.
    pub fn readiness(&self) -> Result<(), String> {
        if !self.health.started.load(Ordering::Relaxed) {
            return Err("starting: the lake and the queues are being opened".into());
        }
        if self.health.stopping.load(Ordering::Relaxed) {
            return Err("stopping".into());
        }
        let problems = self.health.problems.lock();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.values().cloned().collect::<Vec<_>>().join("\n"))
        }
    }
}
