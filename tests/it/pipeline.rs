//! The pipeline: what each source may take of it, and hours of it on one thread, by a clock that is moved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flarelake::base::clock;
use flarelake::base::failure::FailureKind;
use flarelake::config::Source;
use flarelake::ingest::backfill::Backfill;
use flarelake::ingest::intake::queue::Limits;
use flarelake::ingest::settle::book::Load;
use flarelake::source::local::{Links, LocalFile};
use flarelake::source::origin::Origin;
use flarelake::source::routing::Sources;
use flarelake::table::Lake;
use tokio_util::sync::CancellationToken;

use crate::ledger::object;
use crate::probes::OddStore;
use crate::service::Stage;
use crate::support::{Faults, memory_lake};
use crate::torture::feed;

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
        ingest.sources = vec![
            feed(bad.queue.clone(), bad.buckets.clone()),
            feed(fine.queue.clone(), fine.buckets.clone()),
        ];
        ingest.sources[1].source.id = "fine".into();
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
    let ingest = stage.ingest(Faults::default()).await;
    let mut settings = ingest.settings;
    // Nothing but the end makes it land.
    (settings.max_age, settings.flush_rows, settings.flush_bytes) = (Duration::MAX, u64::MAX, usize::MAX);
    let backfill = Backfill {
        catalog: ingest.catalog,
        tables: ingest.tables,
        lake: Some(ingest.lake),
        settings,
        workers: 2,
        fetches: 4,
        fetched_bytes: 1 << 20,
        sources: Sources { configured: vec![source("a"), source("b")], ..Sources::default() },
        meter: Arc::default(),
        stop: CancellationToken::new(),
    };
    let summary = tokio::time::timeout(Duration::from_secs(60), backfill.origins(origins)).await;
    let summary = summary.expect("it ends").expect("works");
    assert_eq!((summary.landed, summary.failed.len(), summary.not_begun), (5, 0, 0));
    assert_eq!(stage.rows().await["ingested_objects"], 5);
}
