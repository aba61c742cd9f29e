//! How an ingest treats what it is told to read: over a queue and a bucket in memory, where every request is
//! seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flarelake::base::failure::FailureKind;
use flarelake::config::Route;
use flarelake::decode::object::ObjectId;
use flarelake::ingest::metrics::BySource;
use flarelake::ingest::service::{Ended, Ingest, IngestError};
use flarelake::source::queue::{Entry, Message, Queue, QueueError};
use flarelake::table::Lake;
use object_store::memory::InMemory;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::ledger::object;
use crate::memory_queue::MemoryQueue;
use crate::support::{FaultStore, Faults, memory_lake, read_ledger, read_table};
use crate::torture::{MemoryBuckets, SOURCE, SeveredQueue, feed, ingest, queues, s3_record};

/// A queue, a bucket and a lake, with a way to work the queue off.
pub struct Stage {
    pub queue: Arc<MemoryQueue>,
    pub buckets: Arc<MemoryBuckets>,
    pub lake: Arc<InMemory>,
}

impl Stage {
    pub fn new(visibility: Duration) -> Self {
        Self {
            queue: Arc::new(MemoryQueue::new("logs", visibility)),
            buckets: Arc::default(),
            lake: Arc::default(),
        }
    }

    /// Puts an object and announces it.
    pub fn put(&self, key: &str, n: u64) {
        self.buckets.put("bucket", key, object(n).1);
        self.announce(key);
    }

    pub fn announce(&self, key: &str) {
        self.queue.send(json!({"Records": [s3_record(key)]}).to_string());
    }

    pub async fn ingest(&self, faults: Faults) -> Ingest {
        let store = FaultStore::with(self.lake.clone(), faults);
        let lake = Arc::new(Lake::open(memory_lake(store)).await.expect("opens"));
        ingest(lake, vec![feed(self.queue.clone(), self.buckets.clone())])
    }

    pub async fn run(&self) -> Result<Ended, IngestError> {
        self.ingest(Faults::default()).await.run(CancellationToken::new()).await
    }

    /// How many rows each table has.
    pub async fn rows(&self) -> BTreeMap<&'static str, usize> {
        let mut rows = BTreeMap::new();
        for table in
            ["cloudflare_httprequest", "cloudflare_firewall", "classification_failures", "ingested_objects"]
        {
            let count = read_table(self.lake.as_ref(), table).await.values().map(Vec::len).sum();
            if count > 0 {
                rows.insert(table, count);
            }
        }
        rows
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_from_a_bucket_that_the_source_does_not_list() {
    let stage = Stage::new(Duration::from_secs(30));
    let mut record = s3_record("logs/0.log");
    record["s3"]["bucket"]["name"] = json!("elsewhere");
    let body = json!({"Records": [record]}).to_string();
    stage.queue.send(body.clone());
    stage.queue.send(body);
    stage.run().await.expect("ends");
    assert_eq!(stage.buckets.reads(), 0);
    assert!(stage.queue.is_empty());
    assert_eq!(stage.rows().await, BTreeMap::from([("classification_failures", 1), ("ingested_objects", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_object_is_looked_for_three_times_and_lands_when_it_comes_back() {
    let stage = Stage::new(Duration::from_secs(30));
    stage.announce("logs/gone.log");
    stage.run().await.expect("ends");
    assert!(stage.queue.is_empty(), "within one receipt");
    assert_eq!(stage.buckets.reads(), 6, "three times, under both names");
    assert_eq!(stage.rows().await, BTreeMap::from([("classification_failures", 1), ("ingested_objects", 1)]));
    // The same notice again: known.
    stage.announce("logs/gone.log");
    stage.run().await.expect("ends");
    assert_eq!(stage.rows().await["classification_failures"], 1);
    // It is restored, with the ETag that it had.
    stage.put("logs/gone.log", 1);
    stage.run().await.expect("ends");
    assert_eq!(stage.rows().await["cloudflare_httprequest"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_looks_encoded_is_found_by_its_literal_name() {
    let stage = Stage::new(Duration::from_secs(30));
    stage.buckets.put("bucket", "logs%2F1+1.log", object(1).1);
    stage.queue.send(
        json!({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "bucket"}, "object": {"key": "logs%2F1+1.log"}}}]})
        .to_string(),
    );
    stage.run().await.expect("ends");
    let known = read_ledger(stage.lake.as_ref()).await;
    assert!(
        known.contains_key(&ObjectId::of_s3("bucket", "logs%2F1+1.log", "etag").to_string()),
        "{known:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_not_an_empty_queue() {
    let stage = Stage::new(Duration::from_secs(30));
    stage.put("logs/1.log", 1);
    let store = FaultStore::with(stage.lake.clone(), Faults::default());
    let lake = Arc::new(Lake::open(memory_lake(store.clone())).await.expect("opens"));
    let queue =
        SeveredQueue { slow: Duration::from_secs(1), ..SeveredQueue::over(stage.queue.clone(), store) };
    ingest(lake, vec![feed(Arc::new(queue), stage.buckets.clone())])
        .run(CancellationToken::new())
        .await
        .expect("ends");
    assert_eq!(stage.rows().await["cloudflare_httprequest"], 2, "ended before the queue had answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_high_receive_count_is_no_reason_to_reject() {
    let stage = Stage::new(Duration::from_millis(1));
    stage.put("logs/1.log", 1);
    for _ in 0..60 {
        stage.queue.receive(Duration::from_millis(50)).await.expect("received");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let stage = Stage { queue: stage.queue, ..stage };
    let ended = tokio::time::timeout(Duration::from_secs(20), stage.run()).await;
    ended.expect("it ends").expect("ends");
    assert_eq!(stage.rows().await, BTreeMap::from([("cloudflare_httprequest", 2), ("ingested_objects", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_kept_while_a_batch_waits() {
    let stage = Stage::new(Duration::from_secs(1));
    for n in 0..30 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    let mut ingest = stage.ingest(Faults { slow_ms: 100, ..Faults::default() }).await;
    // Three times as long as a lease.
    ingest.settings.max_age = Duration::from_secs(3);
    ingest.pace.until_idle = Some(Duration::from_secs(4));
    let metrics = ingest.metrics.clone();
    let began = Instant::now();
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert!(began.elapsed() > Duration::from_secs(3));
    assert_eq!((metrics.leases_lost.get(), metrics.deleted.get(), metrics.duplicates.get()), (0, 30, 0));
    assert!(stage.queue.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_longer_leases_that_fail_or_hang_cost_no_lease() {
    let stage = Stage::new(Duration::from_secs(2));
    for n in 0..90 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    let store = FaultStore::with(stage.lake.clone(), Faults::default());
    let lake = Arc::new(Lake::open(memory_lake(store.clone())).await.expect("opens"));
    let queue = SeveredQueue { hides_fail: 3, ..SeveredQueue::over(stage.queue.clone(), store) };
    let mut ingest = ingest(lake, vec![feed(Arc::new(queue), stage.buckets.clone())]);
    ingest.settings.max_age = Duration::from_secs(7);
    ingest.pace.until_idle = Some(Duration::from_secs(8));
    let metrics = ingest.metrics.clone();
    ingest.run(CancellationToken::new()).await.expect("ends");
    let received = metrics.received.get_or_create(&BySource { source: SOURCE.into() }).get();
    assert_eq!((received, metrics.leases_lost.get(), metrics.deleted.get()), (90, 0, 90));
    assert!(stage.queue.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn others_land_in_time_while_a_large_object_is_read_slowly() {
    let stage = Stage::new(Duration::from_secs(30));
    stage.put("logs/1.log", 1);
    let line = "{\"EdgeStartTimestamp\":1653974623,\"ClientIP\":\"192.0.2.1\",\"ZoneID\":7}\n";
    let buckets = MemoryBuckets { slow_ranges: Duration::from_secs(2), ..MemoryBuckets::default() };
    buckets.put("bucket", "logs/1.log", object(1).1);
    buckets.put("bucket", "logs/long.log", line.repeat((18 << 20) / line.len()).into_bytes());
    let store = FaultStore::with(stage.lake.clone(), Faults::default());
    let lake = Arc::new(Lake::open(memory_lake(store)).await.expect("opens"));
    let mut ingest = ingest(lake, vec![feed(stage.queue.clone(), Arc::new(buckets))]);
    (ingest.pace.workers, ingest.pace.fetches) = (1, 1);
    (ingest.settings.flush_bytes, ingest.settings.flush_rows) = (usize::MAX, u64::MAX);
    ingest.settings.max_age = Duration::from_millis(500);
    let run = tokio::spawn(ingest.run(CancellationToken::new()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.announce("logs/long.log");
    // Three ranges of two seconds.
    tokio::time::sleep(Duration::from_millis(4300)).await;
    assert_eq!(
        stage.rows().await.get("ingested_objects"),
        Some(&1),
        "the short one has landed, the long one is on its way"
    );
    run.await.expect("no panic").expect("ends");
    assert_eq!(stage.rows().await["ingested_objects"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_costs_no_neighbour() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in [1, 2] {
        stage.buckets.put("bucket", &format!("logs/{n}.log"), object(n).1);
    }
    let mut bad = s3_record("x");
    bad["s3"]["object"] = json!({});
    stage.queue.send(json!({"Records": [s3_record("logs/1.log"), bad, s3_record("logs/2.log")]}).to_string());
    stage.run().await.expect("ends");
    assert!(stage.queue.is_empty());
    let expected = [("cloudflare_httprequest", 4), ("classification_failures", 1), ("ingested_objects", 3)];
    assert_eq!(stage.rows().await, BTreeMap::from(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_objects_stop_nothing() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..5 {
        stage.put(&format!("archive/{n}.log"), n);
    }
    *stage.buckets.refuses.lock() = Some(("archive/", FailureKind::Unreadable));
    let ended = stage.run().await.expect("others may still be read");
    assert_eq!((ended.given_up, stage.queue.len()), (5, 5), "their messages stay");
    assert_eq!(stage.rows().await, BTreeMap::new());
    // Where no object can be what is announced, there is nothing to wait for.
    let stage = Stage::new(Duration::from_secs(30));
    stage.announce(&"k".repeat(1025));
    stage.run().await.expect("ends");
    assert!(stage.queue.is_empty());
    assert_eq!(stage.rows().await, BTreeMap::from([("classification_failures", 1), ("ingested_objects", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_object_that_may_not_be_read_costs_itself_only() {
    let stage = Stage::new(Duration::from_secs(3));
    for n in 0..20 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    stage.put("secret/x.log", 21);
    *stage.buckets.refuses.lock() = Some(("secret/", FailureKind::Denied));
    let ended = stage.run().await.expect("goes on");
    assert!(ended.given_up >= 1, "{ended:?}");
    assert_eq!(stage.queue.len(), 1, "its message stays");
    assert_eq!(stage.rows().await["ingested_objects"], 20);
    assert_eq!(stage.rows().await["classification_failures"], 5, "the broken records of the others");
    *stage.buckets.refuses.lock() = None;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.run().await.expect("ends");
    assert_eq!((stage.queue.len(), stage.rows().await["ingested_objects"]), (0, 21));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_which_nothing_may_be_read_stops_the_run_and_says_why() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..5 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    *stage.buckets.refuses.lock() = Some(("logs/", FailureKind::Denied));
    let error = stage.run().await.expect_err("it stops").to_string();
    assert!(
        error.contains("s3://bucket/logs/")
            && error.contains("allow s3:GetObject")
            && error.contains("source cf"),
        "{error}"
    );
    assert_eq!(stage.queue.len(), 5, "nothing is lost");
    assert_eq!(stage.rows().await, BTreeMap::new(), "and nothing rejected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_says_what_the_records_below_a_prefix_are() {
    let stage = Stage::new(Duration::from_secs(30));
    // Enough for one log type, and by its own fields for none.
    let record = "{\"Timestamp\":1653974623,\"ColoCode\":\"HAM\"}\n";
    for key in ["spectrum/1.log", "other/1.log"] {
        stage.buckets.put("bucket", key, record);
        stage.announce(key);
    }
    let mut ingest = stage.ingest(Faults::default()).await;
    let route = |prefix: &str, log_type: &str| Route { prefix: prefix.into(), log_type: log_type.into() };
    let mut source = feed(stage.queue.clone(), stage.buckets.clone());
    source.source.route =
        vec![route("spect", "Cloudflare.Firewall"), route("spectrum/", "Cloudflare.Spectrum")];
    let log_type = |r: &Route| (r.log_type.clone(), ingest.catalog.index_of(&r.log_type).expect("known"));
    source.log_types = source.source.route.iter().map(log_type).collect();
    ingest.intakes = queues(vec![source]);
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert_eq!(read_table(stage.lake.as_ref(), "cloudflare_spectrum").await.values().flatten().count(), 1);
    assert_eq!(stage.rows().await, BTreeMap::from([("classification_failures", 1), ("ingested_objects", 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttling_bucket_is_waited_for() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..5 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    *stage.buckets.refuses.lock() = Some(("logs/", FailureKind::Throttled));
    let buckets = stage.buckets.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        *buckets.refuses.lock() = None;
    });
    assert_eq!(stage.run().await.expect("ends").given_up, 0);
    assert!(stage.buckets.reads() < 60, "{} reads: it goes slower", stage.buckets.reads());
    assert_eq!((stage.queue.len(), stage.rows().await["ingested_objects"]), (0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_back_at_once_what_has_not_landed() {
    let stage = Stage::new(Duration::from_secs(600));
    for n in 0..40 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    // Reads fail until it is stopped: nothing can land.
    *stage.buckets.refuses.lock() = Some(("logs/", FailureKind::Unavailable));
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.pace.until_idle = None;
    let stop = CancellationToken::new();
    let run = tokio::spawn(ingest.run(stop.clone()));
    let end = Instant::now() + Duration::from_secs(10);
    while stage.queue.visible() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(stage.queue.visible(), 0, "all are received");
    stop.cancel();
    let began = Instant::now();
    let ended = run.await.expect("no panic").expect("ends");
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    assert_eq!((ended.released, stage.queue.visible()), (40, 40));
}

/// A queue whose polls wait to be let through.
#[derive(Debug)]
struct GatedQueue {
    inner: Arc<MemoryQueue>,
    polls: Semaphore,
    gate: Semaphore,
}

#[async_trait]
impl Queue for GatedQueue {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        self.inner.visibility_timeout().await
    }

    async fn receive(&self, _: Duration) -> Result<Vec<Message>, QueueError> {
        self.polls.add_permits(1);
        self.gate.acquire().await.expect("nobody closes it").forget();
        let messages = self.inner.receive(Duration::ZERO).await?;
        // They are handed out, and their answer is on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(messages)
    }

    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError> {
        self.inner.delete(receipts).await
    }

    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError> {
        self.inner.hide(receipts, timeout).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_poll_brings_after_a_stop_goes_back_at_once_and_no_poll_is_begun() {
    let stage = Stage::new(Duration::from_secs(600));
    let queue = Arc::new(GatedQueue {
        inner: stage.queue.clone(),
        polls: Semaphore::new(0),
        gate: Semaphore::new(0),
    });
    let lake = Arc::new(Lake::open(memory_lake(stage.lake.clone())).await.expect("opens"));
    let mut ingest = ingest(lake, vec![feed(queue.clone(), stage.buckets.clone())]);
    (ingest.pace.until_idle, ingest.pace.drain) = (None, Duration::from_secs(20));
    let (stop, polls) = (CancellationToken::new(), ingest.pace.receivers as u32);
    let run = tokio::spawn(ingest.run(stop.clone()));
    queue.polls.acquire_many(polls).await.expect("nobody closes it").forget();
    // Every receiver waits for an answer, and now it is to stop.
    stop.cancel();
    stage.put("logs/1.log", 1);
    queue.gate.add_permits(100);
    let ended = run.await.expect("no panic").expect("ends");
    assert_eq!((stage.queue.len(), stage.queue.visible()), (1, 1), "nobody has to wait ten minutes for it");
    // It was never held, and nothing was read for it.
    assert_eq!((ended.released, stage.buckets.reads(), stage.rows().await.len()), (0, 0, 0));
    assert_eq!(queue.polls.available_permits(), 0, "polls that were begun after the stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_and_lies_about_sizes_cost_themselves_only() {
    let stage = Stage::new(Duration::from_secs(30));
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    // 64 MiB of blanks in 64 KiB: beyond limits.max_ratio.
    stage.buckets.put("bucket", "bomb.gz", gzip(&vec![b' '; 64 << 20]));
    stage.announce("bomb.gz");
    stage.buckets.put("bucket", "cut.gz", gzip(&object(1).1)[..40].to_vec());
    stage.announce("cut.gz");
    // 3 MB, announced as 300 bytes, and larger than what is held whole: read in ranges.
    let long = "{\"EdgeStartTimestamp\":1653974623,\"ClientIP\":\"192.0.2.1\",\"ZoneID\":7}\n".repeat(44_000);
    stage.buckets.put("bucket", "long.log", long.into_bytes());
    stage.announce("long.log");
    // A few bytes that ask for a window of 128 MiB.
    let mut wide = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    wide.window_log(27).expect("allowed");
    std::io::Write::write_all(&mut wide, &object(2).1).expect("memory");
    stage.buckets.put("bucket", "wide.zst", wide.finish().expect("memory"));
    stage.announce("wide.zst");
    stage.put("logs/1.log", 1);
    stage.queue.send(format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000)));
    stage.queue.send(
        json!({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}]})
            .to_string(),
    );
    stage.run().await.expect("ends");
    assert!(stage.queue.is_empty());
    let rows = stage.rows().await;
    assert_eq!((rows["cloudflare_httprequest"], rows["ingested_objects"]), (44_002, 7));
    assert_eq!(rows["classification_failures"], 5, "three objects, two messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_overwritten_before_it_was_read_lands_as_it_is_now_and_is_counted_once() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..3 {
        stage.buckets.put("bucket", &format!("logs/{n}.log"), object(n).1);
    }
    let announce = |n: u64, etag: &str, version: Option<&str>| {
        let mut record = s3_record(&format!("logs/{n}.log"));
        record["s3"]["object"]["eTag"] = json!(etag);
        record["s3"]["object"]["versionId"] = json!(version);
        stage.queue.send(json!({"Records": [record]}).to_string());
    };
    // The same ETag, as others write it.
    *stage.buckets.etag.lock() = Some("9b2cf535f27731c974343645a3985328-2");
    announce(0, "9B2CF535F27731C974343645A3985328-2", None);
    announce(1, "&quot;9b2cf535f27731c974343645a3985328&quot;", None);
    let ingest = stage.ingest(Faults::default()).await;
    let metrics = ingest.metrics.clone();
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert_eq!((metrics.overwritten.get(), metrics.landed.get()), (0, 2));
    // Another one; the landing fails at first, so it is read twice.
    announce(2, "0cc175b9c0f1b6a831c399e269772661", None);
    let store = FaultStore::with(stage.lake.clone(), Faults::default());
    let lake = Arc::new(Lake::open(memory_lake(store.clone())).await.expect("opens"));
    let failing = store.operations.load(std::sync::atomic::Ordering::SeqCst);
    let store = FaultStore::with(stage.lake.clone(), Faults { fails_at: failing + 1, ..Faults::default() });
    drop(lake);
    let lake = Arc::new(Lake::open(memory_lake(store)).await.expect("opens"));
    let again = crate::torture::ingest(lake, vec![feed(stage.queue.clone(), stage.buckets.clone())]);
    let metrics = again.metrics.clone();
    again.run(CancellationToken::new()).await.expect("ends");
    assert_eq!((metrics.flush_errors.get(), metrics.overwritten.get(), metrics.landed.get()), (1, 1, 1));
    // A version that is named is read, or is not there: nothing of it is overwritten.
    stage.buckets.put("bucket", "logs/3.log", object(3).1);
    announce(3, "0cc175b9c0f1b6a831c399e269772661", Some("v1"));
    let ingest = stage.ingest(Faults::default()).await;
    let metrics = ingest.metrics.clone();
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert_eq!((metrics.overwritten.get(), metrics.landed.get()), (0, 1));
    assert!(stage.queue.is_empty());
}
