//! The pipeline: what each source may take of it, and hours of it on one thread, by a clock that is moved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use flarelake::base::clock;
use flarelake::base::failure::FailureKind;
use flarelake::config::Source;
use flarelake::ingest::backfill::Backfill;
use flarelake::ingest::feed::Feed;
use flarelake::ingest::intake::queue::Limits;
use flarelake::ingest::intake::queues::QueueSource;
use flarelake::ingest::intake::{Intake, IntakeContext, RunningIntake};
use flarelake::ingest::item::{ItemKind, Settle};
use flarelake::ingest::pipeline::Entrance;
use flarelake::ingest::settle::book::Load;
use flarelake::ingest::settle::summary::Counting;
use flarelake::source::bucket::{Buckets, ObjectHead, Wanted};
use flarelake::source::local::{Links, LocalFile};
use flarelake::source::origin::Origin;
use flarelake::source::queue::{Entry, Message, Queue, QueueError};
use flarelake::source::routing::Sources;
use flarelake::table::Lake;
use futures::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::ledger::object;
use crate::panics::ClosedQueue;
use crate::probes::OddStore;
use crate::service::Stage;
use crate::support::{Faults, memory_lake};
use crate::torture::{feed, queues, s3_record};

#[test]
fn no_queue_takes_the_room_of_the_others() {
    let load = |messages| Load { messages, bytes: messages * 10 };
    let has_room = |queues: usize, held: &[usize], queue: usize| {
        let limits = Limits { most: load(80), queues };
        let held: BTreeMap<usize, Load> = held.iter().copied().map(load).enumerate().collect();
        limits.has_room(&held, queue)
    };
    // One queue has all of it.
    assert!(has_room(1, &[79], 0) && !has_room(1, &[80], 0));
    // Of four, each has ten for itself, and forty are for whoever comes.
    assert!(has_room(4, &[49], 0) && !has_room(4, &[50], 0));
    assert!(
        has_room(4, &[50, 9], 1) && !has_room(4, &[50, 10], 1),
        "the common half is gone, its own is not"
    );
    assert!(has_room(4, &[50, 10, 0, 0], 3));
    assert!(has_room(4, &[30, 29], 1) && !has_room(4, &[30, 30], 1), "two share the common half");
    // So too by what they weigh.
    let heavy = Load { messages: 1, bytes: 800 };
    assert!(!Limits { most: load(80), queues: 1 }.has_room(&BTreeMap::from([(0, heavy)]), 0));
}

#[tokio::test(start_paused = true)]
async fn leases_are_kept_for_hours_while_nothing_can_land() {
    let began = clock::now();
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..30 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.settings.max_age = Duration::from_secs(3 * 3600);
    ingest.pace.until_idle = Some(Duration::from_secs(4 * 3600));
    let metrics = ingest.metrics.clone();
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert!(began.elapsed() >= Duration::from_secs(4 * 3600), "{:?}", began.elapsed());
    assert_eq!((metrics.leases_lost.get(), metrics.duplicates.get(), metrics.deleted.get()), (0, 0, 30));
    assert_eq!((stage.queue.len(), stage.rows().await["ingested_objects"]), (0, 30));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_day_is_waited_for_and_told_of() {
    let stage = Stage::new(Duration::from_secs(30));
    for n in 0..10 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    *stage.buckets.refuses.lock() = Some(("logs/", FailureKind::Unavailable));
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.pace.until_idle = None;
    let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(ingest.run(stop.clone()));
    clock::sleep(Duration::from_secs(24 * 3600)).await;
    let told = metrics.readiness().expect_err("nothing can be read");
    assert!(told.contains("s3://bucket/logs/") && told.contains("refused"), "{told}");
    // A minute apart at most, and a bit of chance.
    let reads = stage.buckets.reads();
    assert!((10 * 24 * 40..10 * 24 * 65).contains(&reads), "{reads} reads");
    *stage.buckets.refuses.lock() = None;
    clock::sleep(Duration::from_secs(100)).await;
    assert_eq!((stage.queue.len(), metrics.given_up.get(), metrics.readiness()), (0, 0, Ok(())));
    stop.cancel();
    running.await.expect("no panic").expect("ends");
    assert_eq!(stage.rows().await["ingested_objects"], 10);
}

/// Two sources, the second one called "fine".
fn two(bad: &Stage, fine: &Stage) -> Vec<Arc<dyn Intake>> {
    let mut sources =
        vec![feed(bad.queue.clone(), bad.buckets.clone()), feed(fine.queue.clone(), fine.buckets.clone())];
    sources[1].source.id = "fine".into();
    queues(sources)
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_or_never_answers_keeps_no_other_waiting() {
    for hangs in [true, false] {
        let (bad, fine) = (Stage::new(Duration::from_secs(30)), Stage::new(Duration::from_secs(30)));
        // More than all that may be held.
        for n in 0..300 {
            bad.put(&format!("bad/{n}.log"), n);
        }
        match hangs {
            true => *bad.buckets.hangs.lock() = Some("bad/"),
            false => *bad.buckets.refuses.lock() = Some(("bad/", FailureKind::Unavailable)),
        }
        let mut ingest = bad.ingest(Faults::default()).await;
        ingest.intakes = two(&bad, &fine);
        (ingest.pace.until_idle, ingest.pace.max_messages) = (None, 20);
        let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
        let running = tokio::spawn(ingest.run(stop.clone()));
        // The bad one has taken whatever it can get.
        clock::sleep(Duration::from_secs(60)).await;
        for n in 0..100 {
            fine.put(&format!("fine/{n}.log"), 1000 + n);
        }
        clock::sleep(Duration::from_secs(60)).await;
        assert_eq!((fine.queue.len(), bad.queue.len()), (0, 300), "it hangs: {hangs}");
        assert_eq!(metrics.landed.get(), 100, "it hangs: {hangs}");
        stop.cancel();
        let ended = running.await.expect("no panic").expect("ends");
        assert!(ended.released <= 20, "{ended:?}: no more than may be held");
        assert_eq!(bad.queue.visible(), 300, "all can be received at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_over_a_batch_costs_the_object_that_it_is_over() {
    let stage = Stage::new(Duration::from_secs(600));
    for n in 0..10 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    // The first batch, and then one of its objects by itself.
    let store = OddStore { inner: stage.lake.clone(), files_panic: 2.into(), ..OddStore::default() };
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.lake = Arc::new(Lake::open(memory_lake(Arc::new(store))).await.expect("opens"));
    (ingest.pace.workers, ingest.settings.max_age) = (1, Duration::from_secs(600));
    ingest.settings.flush_bytes = 256 << 20;
    let metrics = ingest.metrics.clone();
    let ended = ingest.run(CancellationToken::new()).await.expect("goes on");
    assert_eq!((ended.given_up, metrics.panics.get()), (1, 2));
    assert_eq!((stage.queue.len(), stage.rows().await["ingested_objects"]), (1, 9), "its message stays");
}

/// A backfill into a stage's lake, of which nothing but the end makes anything land.
async fn backfill(stage: &Stage, configured: Vec<Source>) -> Backfill {
    let ingest = stage.ingest(Faults::default()).await;
    let mut settings = ingest.settings;
    (settings.max_age, settings.flush_rows, settings.flush_bytes) = (Duration::MAX, u64::MAX, usize::MAX);
    Backfill {
        catalog: ingest.catalog,
        tables: ingest.tables,
        lake: Some(ingest.lake),
        settings,
        workers: 2,
        fetches: 4,
        fetched_bytes: 1 << 20,
        sources: Sources { configured, ..Sources::default() },
        meter: Arc::default(),
        stop: CancellationToken::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_ends_whatever_sources_are_configured() {
    let stage = Stage::new(Duration::from_secs(30));
    let folder = tempfile::tempdir().expect("a folder");
    let mut origins = Vec::new();
    for n in 0..5 {
        let path = folder.path().join(format!("{n}.log"));
        std::fs::write(&path, object(n).1).expect("written");
        origins.push(Origin::File(LocalFile { path, links: Links::Follow }));
    }
    let source =
        |id: &str| Source { id: id.into(), ..feed(stage.queue.clone(), stage.buckets.clone()).source };
    let backfill = backfill(&stage, vec![source("a"), source("b")]).await;
    let summary = tokio::time::timeout(Duration::from_secs(60), backfill.origins(origins)).await;
    let summary = summary.expect("it ends").expect("works");
    assert_eq!((summary.landed, summary.failed.len(), summary.not_begun), (5, 0, 0));
    assert_eq!(stage.rows().await["ingested_objects"], 5);
}

/// A queue that never answers.
#[derive(Debug)]
struct HungQueue;

#[async_trait]
impl Queue for HungQueue {
    fn url(&self) -> &str {
        "memory://hung"
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        std::future::pending().await
    }

    async fn receive(&self, _: Duration) -> Result<Vec<Message>, QueueError> {
        std::future::pending().await
    }

    async fn delete(&self, _: &[String]) -> Result<Vec<Entry>, QueueError> {
        std::future::pending().await
    }

    async fn hide(&self, _: &[String], _: Duration) -> Result<Vec<Entry>, QueueError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_never_answers_keeps_no_other_waiting() {
    let (hung, fine) = (Stage::new(Duration::from_secs(30)), Stage::new(Duration::from_secs(30)));
    for n in 0..10 {
        fine.put(&format!("fine/{n}.log"), n);
    }
    let mut ingest = fine.ingest(Faults::default()).await;
    let mut sources =
        vec![feed(Arc::new(HungQueue), hung.buckets.clone()), feed(fine.queue.clone(), fine.buckets.clone())];
    sources[1].source.id = "fine".into();
    ingest.intakes = queues(sources);
    ingest.pace.until_idle = None;
    let stop = CancellationToken::new();
    let running = tokio::spawn(ingest.run(stop.clone()));
    clock::sleep(Duration::from_secs(2)).await;
    assert_eq!((fine.queue.len(), fine.rows().await["ingested_objects"]), (0, 10));
    stop.cancel();
    running.await.expect("no panic").expect("ends");
}

#[tokio::test(start_paused = true)]
async fn large_objects_of_a_source_land_while_another_has_taken_the_common_room() {
    let (bad, fine) = (Stage::new(Duration::from_secs(30)), Stage::new(Duration::from_secs(30)));
    *bad.buckets.hangs.lock() = Some("bad/");
    let mut ingest = bad.ingest(Faults::default()).await;
    ingest.intakes = two(&bad, &fine);
    (ingest.pace.until_idle, ingest.pace.fetched_bytes) = (None, 4 << 20);
    // Each is announced as larger than the share of a source, which is 1 MiB of the 4.
    let announce = |stage: &Stage, key: &str| {
        let mut record = s3_record(key);
        record["s3"]["object"]["size"] = json!(1_900_000);
        stage.queue.send(json!({"Records": [record]}).to_string());
    };
    for n in 0..20 {
        announce(&bad, &format!("bad/{n}.log"));
    }
    let stop = CancellationToken::new();
    let running = tokio::spawn(ingest.run(stop.clone()));
    clock::sleep(Duration::from_secs(60)).await;
    let line = "{\"EdgeStartTimestamp\":1653974623,\"ClientRequestUserAgent\":\"".to_owned()
        + &"x".repeat(9_000)
        + "\"}\n";
    for n in 0..3 {
        let key = format!("fine/{n}.log");
        fine.buckets.put("bucket", &key, line.repeat(210).into_bytes());
        announce(&fine, &key);
    }
    clock::sleep(Duration::from_secs(60)).await;
    assert_eq!((fine.queue.len(), bad.queue.len()), (0, 20));
    assert_eq!(bad.rows().await["cloudflare_httprequest"], 3 * 210, "both land in one lake");
    stop.cancel();
    running.await.expect("no panic").expect("ends");
}

/// How many batches have landed: entries of the ledger after its first.
async fn entries(lake: &InMemory) -> usize {
    let listed: Vec<_> = lake.list(None).try_collect().await.expect("a listing");
    let names = listed.iter().map(|meta| meta.location.as_ref());
    names.filter(|name| name.contains("ingested_objects/_delta_log/") && name.ends_with(".json")).count() - 1
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_one_source_leaves_the_others_their_full_batches() {
    let (bad, fine) = (Stage::new(Duration::from_secs(600)), Stage::new(Duration::from_secs(600)));
    *bad.buckets.refuses.lock() = Some(("bad/", FailureKind::Unavailable));
    for n in 0..300 {
        bad.put(&format!("bad/{n}.log"), n);
    }
    let mut ingest = bad.ingest(Faults::default()).await;
    ingest.intakes = two(&bad, &fine);
    (ingest.pace.until_idle, ingest.pace.max_messages, ingest.pace.workers) = (None, 100, 1);
    ingest.settings.flush_bytes = 256 << 20;
    ingest.settings.max_age = Duration::from_secs(30);
    let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(ingest.run(stop.clone()));
    clock::sleep(Duration::from_secs(60)).await;
    // One every two seconds: fifteen in each batch of half a minute.
    for n in 0..30 {
        fine.put(&format!("fine/{n}.log"), 1000 + n);
        clock::sleep(Duration::from_secs(2)).await;
    }
    clock::sleep(Duration::from_secs(60)).await;
    assert_eq!((fine.queue.len(), metrics.landed.get()), (0, 30));
    let batches = entries(&bad.lake).await;
    assert!((2..=4).contains(&batches), "{batches} batches");
    stop.cancel();
    running.await.expect("no panic").expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_stop_lands_what_is_decoded_though_a_fetch_hangs() {
    let (bad, fine) = (Stage::new(Duration::from_secs(600)), Stage::new(Duration::from_secs(600)));
    *bad.buckets.hangs.lock() = Some("bad/");
    bad.put("bad/0.log", 0);
    for n in 0..10 {
        fine.put(&format!("fine/{n}.log"), 100 + n);
    }
    let mut ingest = bad.ingest(Faults::default()).await;
    ingest.intakes = two(&bad, &fine);
    ingest.settings.max_age = Duration::from_secs(300);
    ingest.settings.flush_bytes = 256 << 20;
    (ingest.pace.until_idle, ingest.pace.drain) = (None, Duration::from_secs(25));
    let stop = CancellationToken::new();
    let running = tokio::spawn(ingest.run(stop.clone()));
    clock::sleep(Duration::from_secs(10)).await;
    assert_eq!(fine.queue.len(), 10, "none has landed so far");
    stop.cancel();
    let ended = running.await.expect("no panic").expect("ends");
    assert_eq!((ended.released, fine.queue.len(), bad.queue.visible()), (1, 0, 1));
    assert_eq!(bad.rows().await["ingested_objects"], 10);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_refused_later_is_told_of_once_and_read_again() {
    let stage = Stage::new(Duration::from_secs(30));
    let queue = Arc::new(ClosedQueue { inner: stage.queue.clone(), is_open: true.into() });
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.intakes = queues(vec![feed(queue.clone(), stage.buckets.clone())]);
    (ingest.pace.until_idle, ingest.pace.refused_every) = (None, Duration::from_secs(60));
    let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(ingest.run(stop.clone()));
    clock::sleep(Duration::from_secs(30)).await;
    queue.is_open.store(false, Ordering::SeqCst);
    clock::sleep(Duration::from_secs(3600)).await;
    assert!(metrics.readiness().is_err() && metrics.sources_refused.get() == 1);
    stage.put("logs/0.log", 0);
    queue.is_open.store(true, Ordering::SeqCst);
    clock::sleep(Duration::from_secs(120)).await;
    assert_eq!((metrics.readiness(), metrics.sources_refused.get(), stage.queue.len()), (Ok(()), 0, 0));
    stop.cancel();
    running.await.expect("no panic").expect("a service does not end by it");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_refused_is_told_of_until_it_can_be_read_and_the_sources_others_go_on() {
    let stage = Stage::new(Duration::from_secs(30));
    *stage.buckets.refuses.lock() = Some(("closed/", FailureKind::Denied));
    let mut source = feed(stage.queue.clone(), stage.buckets.clone());
    source.source.buckets.push("closed".into());
    let put = |n: u64| {
        stage.put(&format!("logs/{n}.log"), n);
        let mut record = s3_record(&format!("closed/{n}.log"));
        record["s3"]["bucket"]["name"] = json!("closed");
        stage.buckets.put("closed", &format!("closed/{n}.log"), object(1000 + n).1);
        stage.queue.send(json!({"Records": [record]}).to_string());
    };
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.intakes = queues(vec![source]);
    ingest.pace.until_idle = None;
    let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(ingest.run(stop.clone()));
    (0..10).for_each(put);
    clock::sleep(Duration::from_secs(120)).await;
    for n in 10..20 {
        put(n);
        clock::sleep(Duration::from_secs(60)).await;
        let told = metrics.readiness().expect_err("a bucket is refused");
        assert!(told.contains("s3://closed/") && !told.contains("s3://bucket/"), "{told}");
        assert_eq!((metrics.sources_refused.get(), metrics.landed.get()), (1, n + 1));
    }
    *stage.buckets.refuses.lock() = None;
    clock::sleep(Duration::from_secs(120)).await;
    assert_eq!((metrics.readiness(), metrics.sources_refused.get(), stage.queue.len()), (Ok(()), 0, 0));
    stop.cancel();
    running.await.expect("no panic").expect("ends");
    assert_eq!(stage.rows().await["ingested_objects"], 40);
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_only_busy_bucket_is_refused_spends_few_receives_of_its_messages() {
    let stage = Stage::new(Duration::from_secs(30));
    let mut source = feed(stage.queue.clone(), stage.buckets.clone());
    source.source.buckets.push("closed".into());
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.intakes = queues(vec![source]);
    (ingest.pace.until_idle, ingest.pace.refused_every) = (None, Duration::from_secs(60));
    let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(ingest.run(stop.clone()));
    // Its other bucket was read, but long before.
    stage.put("logs/0.log", 0);
    clock::sleep(Duration::from_secs(3600)).await;
    assert_eq!(metrics.landed.get(), 1);
    *stage.buckets.refuses.lock() = Some(("closed/", FailureKind::Denied));
    for n in 0..100 {
        let mut record = s3_record(&format!("closed/{n}.log"));
        record["s3"]["bucket"]["name"] = json!("closed");
        stage.queue.send(json!({"Records": [record]}).to_string());
    }
    clock::sleep(Duration::from_secs(3600)).await;
    // Ten messages for each of two receivers once a minute, each read three times; it would be ten times as
    // many if they came again as soon as their leases end.
    let reads = stage.buckets.reads();
    assert!(reads < 3 * 20 * 65, "{reads} reads");
    assert_eq!((metrics.sources_refused.get(), stage.queue.len()), (1, 100));
    stop.cancel();
    running.await.expect("no panic").expect("ends");
}

/// A bucket that is listed again and again: an intake that the program doesn't have.
struct Polled(QueueSource);

impl Intake for Polled {
    fn feeds(&self, first: usize) -> Vec<Feed> {
        vec![Feed::new(first, Some(self.0.source.clone()), BTreeMap::new())]
    }

    fn open(&self, context: IntakeContext) -> Box<dyn RunningIntake> {
        let settle = Arc::new(Counting::new(Arc::default(), false));
        Box::new(RunningPoll { buckets: self.0.buckets.clone(), context, settle })
    }
}

struct RunningPoll {
    buckets: Arc<dyn Buckets>,
    context: IntakeContext,
    settle: Arc<Counting>,
}

#[async_trait]
impl RunningIntake for RunningPoll {
    fn settle(&self) -> Arc<dyn Settle> {
        self.settle.clone()
    }

    fn start(&mut self, entrances: Vec<Entrance>) {
        let (buckets, context) = (self.buckets.clone(), self.context.clone());
        tokio::spawn(async move {
            while !context.ending.stop.is_cancelled() {
                for n in 0..20 {
                    let key = format!("logs/{n}.log");
                    let wanted = Wanted { bucket: "bucket".into(), key, version: None };
                    let head = ObjectHead { etag: "etag".into(), size: 1, last_modified: None };
                    let origin = Origin::S3 { buckets: buckets.clone(), wanted, head };
                    let _ = entrances[0].take_in(n, ItemKind::Listed(origin)).await;
                }
                clock::sleep(Duration::from_secs(60)).await;
            }
        });
    }

    async fn opened(&self) {}

    fn is_quiet_since(&self, _: clock::Instant) -> bool {
        true
    }

    fn held(&self) -> usize {
        0
    }

    async fn acknowledged(&self) {}

    async fn give_back(&mut self, _: Duration) -> usize {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn another_intake_beside_the_queues_lands_nothing_twice() {
    let stage = Stage::new(Duration::from_secs(30));
    // Ten of the twenty are announced as well.
    for n in 0..20 {
        stage.buckets.put("bucket", &format!("logs/{n}.log"), object(n).1);
    }
    for n in 0..10 {
        stage.announce(&format!("logs/{n}.log"));
    }
    let mut ingest = stage.ingest(Faults::default()).await;
    let source = |id: &str| {
        let mut source = feed(stage.queue.clone(), stage.buckets.clone());
        source.source.id = id.into();
        source
    };
    ingest.intakes = vec![Arc::new(Polled(source("polled")))];
    ingest.intakes.extend(queues(vec![source("queue")]));
    ingest.settings.max_age = Duration::from_secs(5);
    ingest.pace.until_idle = Some(Duration::from_secs(20));
    ingest.run(CancellationToken::new()).await.expect("ends");
    assert_eq!((stage.queue.len(), stage.rows().await["ingested_objects"]), (0, 20));
    let rows = stage.rows().await;
    // The ledger has every object once, and so the tables every row.
    let expected = (0..20).map(|n| 2 + u64::from(n % 3 == 0)).sum::<u64>() as usize;
    assert_eq!(rows["cloudflare_httprequest"] + rows["cloudflare_firewall"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_whose_tables_cant_be_written_ends_and_says_so() {
    let stage = Stage::new(Duration::from_secs(30));
    stage.put("logs/100.log", 100);
    stage.run().await.expect("makes the tables");
    let folder = tempfile::tempdir().expect("a folder");
    let mut origins = Vec::new();
    for n in 0..3 {
        let path = folder.path().join(format!("{n}.log"));
        std::fs::write(&path, object(n).1).expect("written");
        origins.push(Origin::File(LocalFile { path, links: Links::Follow }));
    }
    // The ledger can be written, and files; but not a table's log.
    let store = OddStore {
        inner: stage.lake.clone(),
        refuses: Some("cloudflare_httprequest/_delta_log"),
        ..OddStore::default()
    };
    let lake = Arc::new(Lake::open(memory_lake(Arc::new(store))).await.expect("opens"));
    let backfill = Backfill { lake: Some(lake), ..backfill(&stage, Vec::new()).await };
    let ended = clock::timeout(Duration::from_secs(3600), backfill.origins(origins)).await;
    match ended.expect("it ends") {
        Ok(summary) => assert!(summary.failed.iter().any(|why| why.contains("AccessDenied")), "{summary:?}"),
        Err(error) => assert!(error.to_string().contains("AccessDenied"), "{error}"),
    }
    let rows = stage.rows().await;
    assert_eq!(
        (rows["ingested_objects"], rows["cloudflare_httprequest"]),
        (4, 2),
        "they have landed: the next writer brings them into the table"
    );
}
