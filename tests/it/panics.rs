//! Faults of the program itself, and sources that are refused: what they cost an ingest, and what they don't.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flarelake::base::failure::{Failure, FailureKind};
use flarelake::base::panics::to_the_end;
use flarelake::config::Every;
use flarelake::ingest::metrics::Metrics;
use flarelake::ingest::service::Ingest;
use flarelake::maintain::Maintainer;
use flarelake::source::queue::{Entry, Message, Queue, QueueError};
use flarelake::table::Lake;
use futures::TryStreamExt as _;
use object_store::ObjectStore as _;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::memory_queue::MemoryQueue;
use crate::probes::OddStore;
use crate::service::Stage;
use crate::support::{Faults, memory_lake};
use crate::torture::{PanickingQueue, feed, queues};
use crate::upkeep::maintainer_of;

/// An ingest over a queue whose client panics so many times over receives, deletes and leases.
async fn panicking(stage: &Stage, [receives, deletes, hides]: [u64; 3]) -> Ingest {
    let queue = PanickingQueue {
        inner: stage.queue.clone(),
        receives: receives.into(),
        deletes: deletes.into(),
        hides: hides.into(),
    };
    Ingest {
        intakes: queues(vec![feed(Arc::new(queue), stage.buckets.clone())]),
        ..stage.ingest(Faults::default()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_kept_and_messages_deleted_after_a_panic_over_them() {
    let stage = Stage::new(Duration::from_secs(3));
    for n in 0..20 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    let mut ingest = panicking(&stage, [0, 2, 2]).await;
    // More than a lease.
    ingest.settings.max_age = Duration::from_secs(4);
    ingest.pace.until_idle = Some(Duration::from_secs(5));
    let metrics = ingest.metrics.clone();
    ingest.run(CancellationToken::new()).await.expect("goes on");
    assert_eq!((metrics.panics.get(), metrics.leases_lost.get(), metrics.deleted.get()), (4, 0, 20));
    assert!(stage.queue.is_empty());
    assert_eq!(stage.rows().await["ingested_objects"], 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_panics_ends_the_run_and_what_was_held_lands_or_goes_back() {
    let stage = Stage::new(Duration::from_secs(600));
    for n in 0..20 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    // Nothing can be read, so all of them are held when there is nothing more to receive.
    *stage.buckets.refuses.lock() = Some(("logs/", FailureKind::Unavailable));
    let mut ingest = panicking(&stage, [1, 0, 0]).await;
    ingest.pace.until_idle = None;
    let metrics = ingest.metrics.clone();
    let ended = tokio::time::timeout(Duration::from_secs(60), ingest.run(CancellationToken::new()))
        .await
        .expect("it is noticed");
    let error = ended.expect_err("it is said").to_string();
    assert!(
        error.contains("receiving panicked: a fault of the queue's client") && error.contains("report"),
        "{error}"
    );
    assert_eq!(metrics.panics.get(), 1);
    assert_eq!((stage.queue.len(), stage.queue.visible()), (20, 20), "all can be received at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_over_one_object_costs_no_other() {
    let stage = Stage::new(Duration::from_secs(600));
    for n in 0..10 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    // One while it is fetched, one while a worker reads it.
    stage.put("bad/whole.log", 11);
    stage.buckets.put("bucket", "bad/range.log", vec![b' '; 3 << 20]);
    stage.announce("bad/range.log");
    *stage.buckets.panics.lock() = Some("bad/");
    let ingest = stage.ingest(Faults::default()).await;
    let metrics = ingest.metrics.clone();
    let ended = ingest.run(CancellationToken::new()).await.expect("goes on");
    assert_eq!((ended.given_up, metrics.panics.get()), (2, 2));
    assert_eq!(
        (stage.queue.len(), stage.rows().await["ingested_objects"]),
        (2, 10),
        "their messages stay, and all else lands"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_that_panics_is_tried_again_when_it_is_next_due() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..4 {
        stage.put(&format!("logs/{n}.log"), n);
        stage.run().await.expect("ends");
    }
    let store = OddStore { inner: stage.lake.clone(), listings_panic: 2.into(), ..OddStore::default() };
    let lake = Arc::new(Lake::open(memory_lake(stage.lake.clone())).await.expect("opens"));
    let metrics = Arc::new(Metrics::new().0);
    let mut upkeep = maintainer_of(memory_lake(Arc::new(store)), Some(lake), BTreeMap::new());
    upkeep.metrics = Some(metrics.clone());
    upkeep.settings.compact_every = Every::Interval(Duration::from_millis(100));
    let stop = upkeep.stop.clone();
    let panics = Mutex::new(Vec::new());
    let panicked = |said| {
        panics.lock().push(said);
        Duration::ZERO
    };
    let until_merged = async {
        while metrics.merged.get() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
    };
    let both = futures::future::join(to_the_end(|| upkeep.run(), panicked), until_merged);
    let (kept_up, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it goes on");
    kept_up.expect("it was stopped");
    assert_eq!(*panics.lock(), ["a fault of the store's client"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_panics_costs_itself_and_is_tried_again_by_the_next_run() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..4 {
        stage.put(&format!("logs/{n}.log"), 3 * n);
        stage.run().await.expect("ends");
    }
    let before = stage.rows().await;
    // The first merge of HTTP requests, in whichever partition.
    let store = OddStore { inner: stage.lake.clone(), files_panic: 1.into(), ..OddStore::default() };
    let upkeep = || async {
        let lake = Arc::new(Lake::open(memory_lake(stage.lake.clone())).await.expect("opens"));
        maintainer_of(memory_lake(stage.lake.clone()), Some(lake), BTreeMap::new())
    };
    let odd = Maintainer { store: memory_lake(Arc::new(store)), ..upkeep().await };
    let (compacted, _) = odd.once().await.expect("goes on");
    assert!(compacted.merges > 0, "other tables are merged: {compacted:?}");
    let [failed] = compacted.failed.as_slice() else { panic!("{:?}", compacted.failed) };
    assert!(
        failed.contains("cloudflare_httprequest: merging") && failed.contains("a fault of the store's"),
        "{failed}"
    );
    let (again, _) = upkeep().await.once().await.expect("ends");
    assert!(again.merges > 0 && again.failed.is_empty(), "{again:?}");
    assert_eq!(stage.rows().await, before);
}

/// A queue that may not be read for a while.
#[derive(Debug)]
pub struct ClosedQueue {
    pub inner: Arc<MemoryQueue>,
    pub is_open: AtomicBool,
}

impl ClosedQueue {
    fn reach(&self, doing: &'static str) -> Result<(), QueueError> {
        if self.is_open.load(Ordering::SeqCst) {
            return Ok(());
        }
        let failure = Failure { kind: FailureKind::Denied, message: "AccessDenied".into() };
        Err(QueueError { queue: self.inner.url().to_owned(), doing, failure })
    }
}

#[async_trait]
impl Queue for ClosedQueue {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        self.reach("sqs:GetQueueAttributes")?;
        self.inner.visibility_timeout().await
    }

    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        self.reach("sqs:ReceiveMessage")?;
        self.inner.receive(wait).await
    }

    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError> {
        self.inner.delete(receipts).await
    }

    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError> {
        self.inner.hide(receipts, timeout).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_refused_stops_itself_and_is_tried_again() {
    // Its objects may not be read; or its queue may not.
    for queue_is_closed in [false, true] {
        let context = format!("queue is closed: {queue_is_closed}");
        let (stage, other) = (Stage::new(Duration::from_secs(2)), Stage::new(Duration::from_secs(30)));
        let closed =
            Arc::new(ClosedQueue { inner: stage.queue.clone(), is_open: AtomicBool::new(!queue_is_closed) });
        if !queue_is_closed {
            *stage.buckets.refuses.lock() = Some(("logs/", FailureKind::Denied));
        }
        for n in 0..5 {
            stage.put(&format!("logs/{n}.log"), n);
            other.put(&format!("others/{n}.log"), 10 + n);
        }
        let mut ingest = stage.ingest(Faults::default()).await;
        let mut sources = vec![
            feed(closed.clone(), stage.buckets.clone()),
            feed(other.queue.clone(), other.buckets.clone()),
        ];
        sources[1].source.id = "other".into();
        ingest.intakes = queues(sources);
        ingest.pace.until_idle = None;
        let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
        let running = tokio::spawn(ingest.run(stop.clone()));
        let until = async |is_so: &dyn Fn() -> bool| {
            let waiting = async {
                while !is_so() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok()
        };
        assert!(
            until(&|| other.queue.is_empty() && metrics.sources_refused.get() == 1).await,
            "{context}: {:?}",
            metrics.readiness()
        );
        let told = metrics.readiness().expect_err("it is told");
        assert!(
            told.contains(if queue_is_closed { "allow sqs:" } else { "allow s3:GetObject" }),
            "{context}: {told}"
        );
        assert_eq!(stage.queue.len(), 5, "{context}: its messages stay");
        // A person mends it.
        *stage.buckets.refuses.lock() = None;
        closed.is_open.store(true, Ordering::SeqCst);
        assert!(until(&|| stage.queue.is_empty()).await, "{context}: {:?}", metrics.readiness());
        assert_eq!((metrics.readiness(), metrics.sources_refused.get()), (Ok(()), 0), "{context}");
        stop.cancel();
        let ended = running.await.expect("it doesn't panic").expect("ends");
        assert_eq!(ended.refused, 0, "{context}");
        assert_eq!(stage.rows().await["ingested_objects"], 10, "{context}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_book_lands_in_batches_and_not_in_scraps() {
    let stage = Stage::new(Duration::from_secs(60));
    for n in 0..600 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    let mut ingest = stage.ingest(Faults::default()).await;
    // A batch that is never full, and never old: it lands because nothing more can come before.
    (ingest.settings.max_age, ingest.settings.flush_rows) = (Duration::from_secs(600), u64::MAX);
    ingest.settings.flush_bytes = 256 << 20;
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert_eq!((stage.queue.len(), stage.rows().await["ingested_objects"]), (0, 600));
    let log = object_store::path::Path::from("lake/ingested_objects/_delta_log");
    let listed: Vec<_> = stage.lake.list(Some(&log)).try_collect().await.expect("a listing");
    // Half of a hundred messages go at a time, and each of two workers has its part of them.
    assert!(listed.len() <= 2 * 600 / 50 + 4, "{} landings", listed.len() - 1);
}
