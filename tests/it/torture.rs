//! Queues worked off while everything goes wrong: stores that fail, die, are slow, or lose answers; messages
//! that come twice; leases that end. All in one process, over a queue and a bucket in memory. Seeds are
//! printed by whatever fails.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use flarelake::base::failure::{Failure, FailureKind};
use flarelake::config::{Partitioning, Source};
use flarelake::decode::inflate::ObjectLimits;
use flarelake::decode::object::{ContentHash, ObjectId};
use flarelake::ingest::intake::Intake;
use flarelake::ingest::intake::queues::{QueueSource, Queues};
use flarelake::ingest::metrics::Metrics;
use flarelake::ingest::service::{Ingest, Pace};
use flarelake::land::batch::Tables;
use flarelake::land::worker::WorkerSettings;
use flarelake::schema::Catalog;
use flarelake::source::bucket::{Body, Buckets, ListedObject, ObjectHead, Wanted};
use flarelake::source::queue::{Entry, Message, Queue, QueueError};
use flarelake::table::Lake;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::decoding::{LIMITS, WRITTEN, runs};
use crate::ledger::{check_tables, expected, object};
use crate::memory_queue::MemoryQueue;
use crate::support::{FaultStore, Faults, memory_lake};

/// Buckets in memory. Every n-th read fails, if so wished.
#[derive(Debug, Default)]
pub struct MemoryBuckets {
    pub objects: Mutex<BTreeMap<(String, String), Bytes>>,
    pub reads: AtomicU64,
    /// The answer to reads of keys that hold a text.
    pub refuses: Mutex<Option<(&'static str, FailureKind)>>,
    pub fails_every: u64,
    /// How long a range is on its way.
    pub slow_ranges: Duration,
    /// Reads, and reads of ranges, of keys that hold a text panic.
    pub panics: Mutex<Option<&'static str>>,
    /// Reads of keys that hold a text are never answered.
    pub hangs: Mutex<Option<&'static str>>,
    /// The ETag of every object, if it is another than usual.
    pub etag: Mutex<Option<&'static str>>,
}

impl MemoryBuckets {
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.objects.lock().insert((bucket.to_owned(), key.to_owned()), bytes.into());
    }

    /// How often it was asked for an object.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Panics over keys that hold the text and say how.
    fn panic(&self, key: &str, how: &str) {
        let text = *self.panics.lock();
        assert!(
            !(text.is_some_and(|text| key.contains(text)) && key.contains(how)),
            "a fault of the bucket's client"
        );
    }

    fn find(&self, wanted: &Wanted) -> Result<Bytes, Failure> {
        let failed = |kind, message: &str| Failure { kind, message: message.to_owned() };
        let read = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some((text, kind)) = *self.refuses.lock()
            && wanted.key.contains(text)
        {
            return Err(failed(kind, "refused"));
        }
        if wanted.key.len() > 1024 {
            return Err(failed(FailureKind::Unreadable, "KeyTooLongError: Your key is too long"));
        }
        if self.fails_every > 0 && read.is_multiple_of(self.fails_every) {
            return Err(failed(FailureKind::Unavailable, "the connection was cut"));
        }
        let found = self.objects.lock().get(&(wanted.bucket.clone(), wanted.key.clone())).cloned();
        found.ok_or_else(|| failed(FailureKind::NotFound, "NoSuchKey: it is not there"))
    }
}

#[async_trait]
impl Buckets for MemoryBuckets {
    async fn get(&self, wanted: &Wanted, whole: u64) -> Result<(ObjectHead, Body), Failure> {
        let hangs = *self.hangs.lock();
        if hangs.is_some_and(|text| wanted.key.contains(text)) {
            return std::future::pending().await;
        }
        let bytes = self.find(wanted)?;
        self.panic(&wanted.key, "whole");
        let etag = self.etag.lock().unwrap_or("etag").to_owned();
        let head = ObjectHead { etag, size: bytes.len() as u64, last_modified: Some(WRITTEN) };
        let body = if head.size <= whole { Body::Whole(bytes) } else { Body::Larger };
        Ok((head, body))
    }

    async fn range(&self, wanted: &Wanted, range: Range<u64>, _etag: &str) -> Result<Bytes, Failure> {
        tokio::time::sleep(self.slow_ranges).await;
        self.panic(&wanted.key, "range");
        Ok(self.find(wanted)?.slice(range.start as usize..range.end as usize))
    }

    fn list(&self, _: &str, _: &str) -> BoxStream<'static, Result<ListedObject, Failure>> {
        stream::empty().boxed()
    }
}

/// A queue whose client panics, so many times for each kind of request.
#[derive(Debug)]
pub struct PanickingQueue {
    pub inner: Arc<MemoryQueue>,
    pub receives: AtomicU64,
    pub deletes: AtomicU64,
    pub hides: AtomicU64,
}

impl PanickingQueue {
    fn panic(left: &AtomicU64) {
        let was = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(was.is_err(), "a fault of the queue's client");
    }
}

#[async_trait]
impl Queue for PanickingQueue {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        self.inner.visibility_timeout().await
    }

    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        let received = self.inner.receive(wait).await?;
        // Not before there is something to lose.
        if received.is_empty() {
            Self::panic(&self.receives);
        }
        Ok(received)
    }

    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError> {
        Self::panic(&self.deletes);
        self.inner.delete(receipts).await
    }

    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError> {
        if !timeout.is_zero() {
            Self::panic(&self.hides);
        }
        self.inner.hide(receipts, timeout).await
    }
}

/// A queue as a process sees it that may be cut off from everything: by its store's death.
#[derive(Debug)]
pub struct SeveredQueue {
    pub inner: Arc<MemoryQueue>,
    pub store: Arc<FaultStore>,
    /// Leases can't be extended.
    pub frozen: bool,
    /// How long a request to receive is on its way.
    pub slow: Duration,
    /// Every n-th request about leases fails, if so wished, and every other n-th hangs.
    pub hides_fail: u64,
    pub hides: AtomicU64,
}

impl SeveredQueue {
    fn reach(&self, doing: &'static str) -> Result<(), QueueError> {
        if self.store.is_dead() { self.cut(doing) } else { Ok(()) }
    }

    fn cut<T>(&self, doing: &'static str) -> Result<T, QueueError> {
        let failure = Failure { kind: FailureKind::Unavailable, message: "cut off".into() };
        Err(QueueError { queue: self.inner.url().to_owned(), doing, failure })
    }

    /// A queue that is never cut off.
    pub fn over(inner: Arc<MemoryQueue>, store: Arc<FaultStore>) -> Self {
        Self { inner, store, frozen: false, slow: Duration::ZERO, hides_fail: 0, hides: AtomicU64::new(0) }
    }
}

#[async_trait]
impl Queue for SeveredQueue {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        self.inner.visibility_timeout().await
    }

    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        self.reach("receive")?;
        tokio::time::sleep(self.slow).await;
        self.inner.receive(wait).await
    }

    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError> {
        self.reach("delete")?;
        self.inner.delete(receipts).await
    }

    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError> {
        self.reach("hide")?;
        if self.hides_fail > 0 {
            match self.hides.fetch_add(1, Ordering::SeqCst) % (2 * self.hides_fail) {
                0 => return self.cut("hide"),
                n if n == self.hides_fail => std::future::pending().await,
                _ => {}
            }
        }
        if self.frozen && !timeout.is_zero() {
            return Ok(receipts.iter().map(|_| Entry::Failed("frozen".into())).collect());
        }
        self.inner.hide(receipts, timeout).await
    }
}

pub const SOURCE: &str = "cf";

pub fn feed(queue: Arc<dyn Queue>, buckets: Arc<dyn Buckets>) -> QueueSource {
    let source = Source {
        id: SOURCE.into(),
        label: Some("Cloudflare".into()),
        queue: None,
        buckets: vec!["bucket".into()],
        aws: flarelake::base::aws::Access::default(),
        route: Vec::new(),
    };
    QueueSource { source, queue, buckets, log_types: BTreeMap::new() }
}

/// What an ingest reads from: these queues.
pub fn queues(sources: Vec<QueueSource>) -> Vec<Arc<dyn Intake>> {
    vec![Arc::new(Queues { sources })]
}

/// An ingest in small: a batch every few milliseconds, and an end soon after the last message.
pub fn ingest(lake: Arc<Lake>, sources: Vec<QueueSource>) -> Ingest {
    let catalog = Catalog::embedded();
    Ingest {
        tables: Arc::new(Tables::new(&catalog, Partitioning::Day)),
        catalog,
        lake,
        settings: WorkerSettings {
            records: LIMITS,
            objects: ObjectLimits { max_object: 1 << 30, max_ratio: 500, max_window: 8 << 20 },
            flush_bytes: 1 << 20,
            flush_rows: 1000,
            max_age: Duration::from_millis(20),
            whole_bytes: 1 << 20,
        },
        pace: Pace {
            workers: 2,
            receivers: 2,
            fetches: 4,
            max_messages: 100,
            message_bytes: 1 << 20,
            fetched_bytes: 1 << 20,
            drain: Duration::from_millis(1500),
            refused_every: Duration::from_millis(300),
            until_idle: Some(Duration::from_millis(400)),
        },
        intakes: queues(sources),
        metrics: Arc::new(Metrics::new().0),
    }
}

pub fn s3_record(key: &str) -> serde_json::Value {
    let key = key.replace('/', "%2F");
    json!({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": key, "eTag": "etag", "size": 300}}})
}

/// A world with so many objects: in a bucket, announced in every envelope, every fifth twice; and some bodies
/// that are records.
struct World {
    queue: Arc<MemoryQueue>,
    lake: Arc<InMemory>,
    objects: Vec<(ObjectId, Vec<u8>)>,
    contents: Vec<(String, Vec<u8>)>,
}

impl World {
    fn new(objects: u64, visibility: Duration, random: &mut SmallRng) -> Self {
        let queue = Arc::new(MemoryQueue::new("logs", visibility));
        let mut bodies = Vec::new();
        let (mut known, mut contents) = (Vec::new(), Vec::new());
        for n in 0..objects {
            let (object, bytes) = object(n);
            if n % 6 == 5 {
                let hash = ContentHash::of(&bytes[..]).expect("memory");
                bodies.push(String::from_utf8(bytes.clone()).expect("text"));
                known.push((ObjectId::of_message(SOURCE, &hash), bytes));
                continue;
            }
            let record = s3_record(&object.key);
            bodies.push(match n % 6 {
                0 | 3 => json!({"Records": [record]}).to_string(),
                1 => json!({"Records": [record, s3_record(&self::object(n.saturating_sub(1)).0.key)]}).to_string(),
                2 => json!({"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:123456789012:logs", "MessageId": "m",
                    "Message": json!({"Records": [record]}).to_string()})
                .to_string(),
                _ => json!({"version": "0", "source": "aws.s3", "detail-type": "Object Created",
                    "detail": {"bucket": {"name": "bucket"}, "object": {"key": object.key, "etag": "etag", "size": 300}}})
                .to_string(),
            });
            contents.push((object.key.clone(), bytes.clone()));
            known.push((object.id, bytes));
        }
        let twice: Vec<String> = bodies.iter().step_by(5).cloned().collect();
        bodies.extend(twice);
        bodies.shuffle(random);
        bodies.into_iter().for_each(|body| queue.send(body));
        Self { queue, lake: Arc::new(InMemory::new()), objects: known, contents }
    }

    fn buckets(&self, fails_every: u64) -> Arc<MemoryBuckets> {
        let buckets = MemoryBuckets { fails_every, ..MemoryBuckets::default() };
        for (key, bytes) in &self.contents {
            buckets.put("bucket", key, bytes.clone());
        }
        Arc::new(buckets)
    }

    /// One process's life: until idle, or until its store dies.
    async fn live(&self, faults: Faults, frozen: bool, fails_every: u64) -> Result<Arc<FaultStore>, String> {
        let store = FaultStore::with(self.lake.clone(), faults);
        let lake = loop {
            match Lake::open(memory_lake(store.clone())).await {
                Ok(lake) => break Arc::new(lake),
                Err(_) if store.is_dead() => return Ok(store),
                Err(_) => {}
            }
        };
        let queue =
            Arc::new(SeveredQueue { frozen, ..SeveredQueue::over(self.queue.clone(), store.clone()) });
        let stop = CancellationToken::new();
        let (dead, stopping) = (store.clone(), stop.clone());
        let watch = tokio::spawn(async move {
            while !dead.is_dead() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stopping.cancel();
        });
        let ended = ingest(lake, vec![feed(queue, self.buckets(fails_every))]).run(stop).await;
        watch.abort();
        ended.map_err(|e| e.to_string())?;
        Ok(store)
    }

    /// Works the queue off without a fault, and looks at what is there.
    async fn finish(&self, context: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.queue.is_empty() {
            assert!(Instant::now() < end, "{context}: {} messages are left", self.queue.len());
            self.live(Faults::default(), false, 0).await.unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        check_tables(&self.lake, &expected(self.objects.iter().cloned()), context).await;
    }
}

/// How many operations a run without a fault takes.
async fn operations() -> u64 {
    let world = World::new(8, Duration::from_secs(30), &mut SmallRng::seed_from_u64(0));
    let store = world.live(Faults::default(), false, 0).await.expect("nothing fails");
    world.finish("without a fault").await;
    store.operations.load(Ordering::SeqCst)
}

/// Runs many at a time.
async fn each<F: Future<Output = ()> + Send + 'static>(runs: impl Iterator<Item = F>) {
    use futures::StreamExt as _;
    let done: Vec<()> = futures::stream::iter(runs.map(tokio::spawn))
        .buffer_unordered(16)
        .map(|r| r.expect("no panic"))
        .collect()
        .await;
    assert!(!done.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failure_of_any_operation_is_tried_again_by_the_worker_itself() {
    let operations = operations().await;
    assert!(operations > 30, "{operations} operations");
    each((1..=operations).map(|k| async move {
        let world = World::new(8, Duration::from_secs(30), &mut SmallRng::seed_from_u64(k));
        world
            .live(Faults { fails_at: k, ..Faults::default() }, false, 0)
            .await
            .unwrap_or_else(|e| panic!("operation {k}: {e}"));
        // Nobody else came to help: what is not done now would wait for its lease to end.
        assert_eq!(world.queue.len(), 0, "operation {k}");
        world.finish(&format!("operation {k} failed")).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lost_answer_to_any_operation_lands_nothing_twice() {
    let operations = operations().await;
    each((1..=operations).map(|k| async move {
        let world = World::new(8, Duration::from_secs(30), &mut SmallRng::seed_from_u64(k));
        world
            .live(Faults { loses_answer_at: k, ..Faults::default() }, false, 0)
            .await
            .unwrap_or_else(|e| panic!("operation {k}: {e}"));
        assert_eq!(world.queue.len(), 0, "operation {k}");
        world.finish(&format!("the answer to operation {k} was lost")).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_death_at_any_operation_is_finished_by_the_next_worker() {
    let operations = operations().await;
    each((1..=operations).map(|k| async move {
        let world = World::new(8, Duration::from_millis(300), &mut SmallRng::seed_from_u64(k));
        world
            .live(Faults { dies_at: k, ..Faults::default() }, false, 0)
            .await
            .unwrap_or_else(|e| panic!("operation {k}: {e}"));
        world.finish(&format!("death at operation {k}")).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_workers_in_trouble_land_every_record_once() {
    each((0..runs(24)).map(|seed| async move {
        let mut random = SmallRng::seed_from_u64(seed);
        let objects = random.random_range(10..60);
        let world =
            Arc::new(World::new(objects, Duration::from_millis(random.random_range(200..500)), &mut random));
        let lives: Vec<_> = (0..3)
            .map(|_| {
                let mut sometimes = |often: f64, most: u64| {
                    if random.random_bool(often) { random.random_range(1..most) } else { 0 }
                };
                let faults = Faults {
                    dies_at: sometimes(0.6, 150),
                    fails_at: sometimes(0.5, 80),
                    loses_answer_at: sometimes(0.5, 80),
                    slow_ms: sometimes(0.4, 40),
                    ..Faults::default()
                };
                let (frozen, fails_every) =
                    (random.random_bool(0.3), if random.random_bool(0.3) { 3 } else { 0 });
                let world = world.clone();
                tokio::spawn(async move { world.live(faults, frozen, fails_every).await })
            })
            .collect();
        for life in lives {
            life.await.expect("no panic").unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        world.finish(&format!("seed {seed}")).await;
    }))
    .await;
}
