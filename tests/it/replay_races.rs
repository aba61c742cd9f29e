//! Replays in one process over a store in memory: whichever operation fails, whoever races or is paused, each
//! reject lands once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flarelake::base::Clock;
use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::decode::decoder::RecordLimits;
use flarelake::decode::inflate::ObjectLimits;
use flarelake::decode::object::{Object, ObjectId};
use flarelake::decode::split::Place;
use flarelake::land::batch::Tables;
use flarelake::land::worker::{Worker, WorkerSettings};
use flarelake::recover::{Chosen, Replay, Summary};
use flarelake::schema::Catalog;
use flarelake::source::local::{Links, LocalFile};
use flarelake::source::origin::{Input, Origin, fetch};
use flarelake::source::routing::Sources;
use flarelake::table::Lake;
use futures::FutureExt as _;
use object_store::memory::InMemory;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::decoding::{WRITTEN, runs};
use crate::replay::http;
use crate::support::{FaultStore, Faults, Meanwhile, TimedStore, memory_lake, read_ledger, read_table};

const MENDED: RecordLimits = RecordLimits { max_record: 1 << 20, max_depth: 32 };
const OLD: RecordLimits = RecordLimits { max_record: 256, max_depth: 32 };
/// By the old limits the smaller objects of these tests are none too large.
const OLD_OBJECT: u64 = 2000;

fn settings(records: RecordLimits, max_object: u64, flush_rows: u64) -> WorkerSettings {
    let (flush_bytes, whole_bytes) = (usize::MAX, 1 << 20);
    let objects = ObjectLimits { max_object, max_ratio: 500, max_window: 8 << 20 };
    WorkerSettings { records, objects, flush_bytes, flush_rows, max_age: Duration::MAX, whole_bytes }
}

/// An object with a row, a record that is too long by the old limit, one that nothing can mend, and another
/// too long one.
fn object(n: u64) -> (Object, Vec<u8>) {
    let lines = [
        http("short.test", 0),
        http(&format!("{n}.test"), 300),
        "{broken".to_owned(),
        http("last.test", 300),
    ];
    let key = format!("logs/{n}.log");
    let object = Object {
        id: ObjectId::of_s3("bucket", &key, "etag"),
        bucket: Some("bucket".into()),
        etag: "etag".into(),
        size: 1,
        last_modified: Some(WRITTEN),
        source_id: None,
        source_label: None,
        key,
    };
    (object, lines.join("\n").into_bytes())
}

pub type Objects = Vec<(Object, Vec<u8>)>;

/// So many of them, and a file that is too large by the old limits, of which nothing can mend one record.
pub async fn objects(dir: &Path, many: u64) -> Objects {
    let path = dir.join("large.log");
    let bytes = format!("{}\n{{broken\n{}", http("large.test", 2000), http("large.test", 0)).into_bytes();
    fs::write(&path, &bytes).expect("written");
    let (file, _) = fetch(Origin::File(LocalFile { path, links: Links::Follow })).await.expect("read");
    (0..many).map(object).chain([(file, bytes)]).collect()
}

/// Lands objects by the old limits, a batch each: so the table of rejects has as many files.
pub async fn land(store: Store, objects: Objects) {
    let lake = Arc::new(Lake::open(store).await.expect("opens"));
    let work = move || {
        let catalog = Catalog::embedded();
        let tables = Arc::new(Tables::new(&catalog, Partitioning::Day));
        let mut worker = Worker::new(
            &catalog,
            tables,
            Some(lake),
            settings(OLD, OLD_OBJECT, 1),
            Arc::default(),
            Handle::current(),
        );
        for (object, bytes) in objects {
            worker.work(object, Input::Memory(bytes.into()), Place::START, None).expect("decodes");
        }
        worker.flush().expect("lands");
    };
    tokio::task::spawn_blocking(work).await.expect("no panic");
}

pub async fn replay(store: Store, flush_rows: u64) -> Result<Summary, String> {
    let lake = Arc::new(Lake::open(store.clone()).await.map_err(|e| e.to_string())?);
    let catalog = Catalog::embedded();
    let replay = Replay {
        tables: Arc::new(Tables::new(&catalog, Partitioning::Day)),
        catalog,
        store,
        lake: Some(lake),
        settings: settings(MENDED, 1 << 30, flush_rows),
        memory: 64 << 20,
        target: 1 << 20,
        sources: Sources::default(),
        chosen: Chosen::default(),
        meter: Arc::default(),
        stop: CancellationToken::new(),
    };
    replay.run().await.map_err(|e| e.to_string())
}

/// The tables are those of a lake that knew the limits from the start, and the ledger's sums are what they
/// hold.
async fn check(inner: &InMemory, objects: &Objects, context: &str) {
    let ledger = read_ledger(inner).await;
    for (table, rows) in check_rows(inner, objects, context).await {
        let told: i64 = match table {
            "classification_failures" => ledger.values().map(|(_, rejects)| rejects).sum(),
            table => ledger.values().filter_map(|(rows, _)| rows.get(table)).sum(),
        };
        assert_eq!(told, rows as i64, "{context}: the ledger's sum of {table}");
    }
}

/// The tables are those of a lake that knew the limits from the start: so many rows.
pub async fn check_rows(inner: &InMemory, objects: &Objects, context: &str) -> BTreeMap<&'static str, usize> {
    let mut expected: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (object, bytes) in objects {
        let mut offset = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let table = if line.starts_with(b"{broken") {
                "classification_failures"
            } else {
                "cloudflare_httprequest"
            };
            expected.entry(table).or_default().insert(format!("{}{offset:012x}", object.id));
            offset += line.len();
        }
    }
    for (table, expected) in &expected {
        let ids: Vec<String> = read_table(inner, table).await.into_values().flatten().collect();
        assert_eq!(ids.len(), expected.len(), "{context}: {table} has rows twice");
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), *expected, "{context}: {table}");
    }
    expected.into_iter().map(|(table, rows)| (table, rows.len())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_death_at_any_step_is_healed_by_the_next_replay() {
    let dir = tempfile::tempdir().expect("a folder");
    let objects = objects(dir.path(), 3).await;
    let landed = Arc::new(InMemory::new());
    land(memory_lake(landed.clone()), objects.clone()).await;
    let whole = FaultStore::with(Arc::new(landed.fork()), Faults::default());
    let summary = replay(memory_lake(whole.clone()), u64::MAX).await.expect("nothing fails");
    assert_eq!((summary.found, summary.landed, summary.removed.rows), (10, 7, 7));
    assert_eq!(summary.rejected, BTreeMap::from([("invalid_json".to_owned(), 3)]));
    assert_eq!(summary.new_rejects, BTreeMap::from([("invalid_json", 1)]));
    let (operations, puts) = (whole.operations.load(Ordering::SeqCst), whole.puts.lock().clone());
    assert!(puts.len() > 5, "{operations} operations, {puts:?} of them puts");
    // Before and after everything that is written, and now and then in what is read, of which most is the end
    // of a log.
    let lost = puts.iter().map(|k| Faults { loses_answer_at: *k, ..Faults::default() });
    let deaths: BTreeSet<u64> =
        puts.iter().flat_map(|k| [*k, k + 1]).chain((1..=operations).step_by(20)).collect();
    // One operation fails, or its put lands later: whatever the replay makes of it.
    let once =
        deaths.iter().step_by(2).map(|k| Faults { fails_at: *k, ..Faults::default() }).collect::<Vec<_>>();
    let late = puts.iter().map(|k| Faults { late_at: (*k, 1 + k % 5), ..Faults::default() });
    let mut removals = 0;
    for faults in deaths
        .into_iter()
        .map(|k| Faults { dies_at: k, ..Faults::default() })
        .chain(lost)
        .chain(once)
        .chain(late)
    {
        let context = format!("{operations} operations, {faults:?}");
        let inner = Arc::new(landed.fork());
        let died = replay(memory_lake(FaultStore::with(inner.clone(), faults)), u64::MAX).await;
        let healed = replay(memory_lake(inner.clone()), 2).await.unwrap_or_else(|e| panic!("{context}: {e}"));
        // It died between the landing and the removal: what is left is to take the rejects out.
        removals += u64::from(died.is_err() && healed.already_there == 7 && healed.removed.rows == 7);
        check(&inner, &objects, &context).await;
    }
    assert!(removals > 3, "some runs died between the two, not {removals}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replay_that_is_paused_for_a_day_lands_each_reject_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let objects = objects(dir.path(), 2).await;
    let landed = Arc::new(InMemory::new());
    land(memory_lake(landed.clone()), objects.clone()).await;
    let whole = FaultStore::with(Arc::new(landed.fork()), Faults::default());
    replay(memory_lake(whole.clone()), u64::MAX).await.expect("nothing fails");
    let operations = whole.operations.load(Ordering::SeqCst);
    let mut random = SmallRng::seed_from_u64(operations);
    let steps: Vec<u64> = if runs(1) > 1 {
        (1..=operations).collect()
    } else {
        (0..8).map(|_| random.random_range(1..=operations)).collect()
    };
    for k in steps {
        let context = format!("paused before operation {k} of {operations}");
        let (inner, time) = (Arc::new(landed.fork()), Clock::movable());
        let store = TimedStore::new(inner.clone(), time.clone());
        let others = Store { clock: time.clone(), ..memory_lake(store.clone()) };
        // Meanwhile another replays, and a day later what was left over is vacuumed. Logs are kept, to be
        // read by.
        let meanwhile: Meanwhile = Arc::new(move || {
            let (time, others) = (time.clone(), others.clone());
            async move {
                replay(others.clone(), 2).await.expect("another replays");
                time.pass(Duration::from_secs(2 * 86_400));
                let mut upkeep = crate::upkeep::maintainer(others, Default::default()).await.expect("a lake");
                upkeep.checkpoint_every = u64::MAX;
                upkeep.once().await.expect("upkeep");
            }
            .boxed()
        });
        let clock = Clock::movable();
        clock.stop();
        let paused = Store { clock, ..memory_lake(FaultStore::meanwhile(store, k, meanwhile)) };
        // It may have to give up: then what is left is for the next.
        drop(replay(paused, 2).await);
        replay(memory_lake(inner.clone()), 2).await.unwrap_or_else(|e| panic!("{context}: {e}"));
        check(&inner, &objects, &context).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replays_at_once_land_each_reject_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let objects = objects(dir.path(), 4).await;
    for seed in 0..runs(8) {
        let inner = Arc::new(InMemory::new());
        land(memory_lake(inner.clone()), objects.clone()).await;
        let lives = (0..3).map(|n| {
            let faults = Faults { slow_ms: 1 + (seed + n) % 4, ..Faults::default() };
            let store = memory_lake(FaultStore::with(inner.clone(), faults));
            tokio::spawn(replay(store, 1 + (seed + n) % 5))
        });
        let mut landed = 0;
        for life in lives.collect::<Vec<_>>() {
            landed += life.await.expect("no panic").unwrap_or_else(|e| panic!("seed {seed}: {e}")).landed;
        }
        assert_eq!(landed, 9, "seed {seed}");
        check(&inner, &objects, &format!("seed {seed}")).await;
    }
}
