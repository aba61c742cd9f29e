//! Exactly once: writers that race, die between any two steps, and lose answers; over one store in memory.
//! After each run the tables are read back by their logs alone. Seeds are printed by whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::decode::inflate::ObjectLimits;
use flarelake::decode::object::{Object, ObjectId};
use flarelake::decode::split::Place;
use flarelake::land::batch::{Flushed, Tables};
use flarelake::land::worker::{Worker, WorkerSettings};
use flarelake::schema::Catalog;
use flarelake::source::origin::Input;
use flarelake::table::Lake;
use object_store::memory::InMemory;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::Handle;

use crate::decoding::{LIMITS, WRITTEN, runs};
use crate::support::{FaultStore, memory_lake, read_ledger, read_table};

/// An object of a few records: rows of two tables, and in some a reject.
pub fn object(n: u64) -> (Object, Vec<u8>) {
    let key = format!("logs/{n}.log");
    let mut bytes =
        format!("{{\"EdgeStartTimestamp\":{},\"ZoneID\":{n}}}\n", 1_653_974_623 + n * 3600).into_bytes();
    bytes.extend_from_slice(
        format!("{{\"EdgeStartTimestamp\":{},\"ZoneID\":{n}}}\n", 1_653_974_623 + n * 7200).as_bytes(),
    );
    if n.is_multiple_of(3) {
        bytes.extend_from_slice(b"{\"Datetime\":1653974623,\"Source\":\"block\"}\n");
    }
    if n.is_multiple_of(4) {
        bytes.extend_from_slice(b"{\"broken\n");
    }
    let object = Object {
        id: ObjectId::of_s3("bucket", &key, "etag"),
        bucket: Some("bucket".into()),
        etag: "etag".into(),
        size: bytes.len() as u64,
        last_modified: Some(WRITTEN),
        source_id: None,
        source_label: None,
        key,
    };
    (object, bytes)
}

pub fn worker(lake: Arc<Lake>, flush_bytes: usize) -> Worker {
    let catalog = Catalog::embedded();
    let tables = Arc::new(Tables::new(&catalog, Partitioning::Day));
    let settings = WorkerSettings {
        records: LIMITS,
        objects: ObjectLimits { max_object: 1 << 30, max_ratio: 500, max_window: 8 << 20 },
        flush_bytes,
        flush_rows: u64::MAX,
        max_age: Duration::MAX,
        whole_bytes: 1 << 20,
    };
    Worker::new(&catalog, tables, Some(lake), settings, Arc::default(), Handle::current())
}

/// One process's life: opens the lake, lands objects in batches, and may die at any step.
pub async fn life(store: Store, mut todo: Vec<u64>, seed: u64) -> Result<Vec<u64>, String> {
    let mut random = SmallRng::seed_from_u64(seed);
    todo.shuffle(&mut random);
    let lake = Arc::new(Lake::open(store).await.map_err(|e| e.to_string())?);
    let work = move || {
        let mut worker = worker(lake, usize::MAX);
        let mut done = Vec::new();
        let mut held = Vec::new();
        for n in todo {
            let (object, bytes) = object(n);
            worker
                .work(object, Input::Memory(bytes.into()), Place::START, None)
                .map_err(|e| e.to_string())?;
            held.push(n);
            if random.random_ratio(1, 3) {
                worker.flush().map_err(|e| e.to_string())?;
                done.append(&mut held);
            }
        }
        worker.flush().map_err(|e| e.to_string())?;
        done.append(&mut held);
        Ok(done)
    };
    tokio::task::spawn_blocking(work).await.expect("a writer doesn't panic")
}

/// Lands these objects together.
pub async fn land(lake: Arc<Lake>, numbers: Vec<u64>) -> Result<(), String> {
    let work = move || {
        let mut worker = worker(lake, usize::MAX);
        for n in numbers {
            let (object, bytes) = object(n);
            worker
                .work(object, Input::Memory(bytes.into()), Place::START, None)
                .map_err(|e| e.to_string())?;
        }
        let flushed = worker.flush().map_err(|e| e.to_string())?;
        if flushed.stale.is_empty() {
            Ok(())
        } else {
            Err("a vacuum came by: it has to be decoded again".into())
        }
    };
    tokio::task::spawn_blocking(work).await.expect("a writer doesn't panic")
}

/// What must be in each table, by row id, once these have landed.
pub fn expected(
    objects: impl IntoIterator<Item = (ObjectId, Vec<u8>)>,
) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut tables: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (id, bytes) in objects {
        tables.entry("ingested_objects").or_default().insert(id.to_string());
        let mut offset = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let table = match line[2] {
                b'E' => "cloudflare_httprequest",
                b'D' => "cloudflare_firewall",
                _ => "classification_failures",
            };
            tables.entry(table).or_default().insert(format!("{id}{offset:012x}"));
            offset += line.len();
        }
    }
    tables
}

async fn check(inner: &Arc<InMemory>, objects: u64, context: &str) {
    // Whoever comes last brings the tables up to the ledger.
    Lake::open(memory_lake(inner.clone())).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    let objects = (0..objects).map(object).map(|(object, bytes)| (object.id, bytes));
    check_tables(inner, &expected(objects), context).await;
}

/// Each row of these tables is there once, no other is, and the ledger agrees object by object.
pub async fn check_tables(
    inner: &Arc<InMemory>,
    expected: &BTreeMap<&'static str, BTreeSet<String>>,
    context: &str,
) {
    let mut counted: BTreeMap<String, (BTreeMap<String, i64>, i64)> = BTreeMap::new();
    for (table, expected) in expected {
        let files = read_table(inner.as_ref(), table).await;
        let ids: Vec<String> = files.into_values().flatten().collect();
        let distinct: BTreeSet<String> = ids.iter().cloned().collect();
        assert_eq!(ids.len(), distinct.len(), "{context}: {table} has rows twice");
        assert_eq!(&distinct, expected, "{context}: {table}");
        for id in ids {
            let told = counted.entry(id[..32].to_owned()).or_default();
            match *table {
                "ingested_objects" => {}
                "classification_failures" => told.1 += 1,
                table => *told.0.entry(table.to_owned()).or_default() += 1,
            }
        }
    }
    assert_eq!(read_ledger(inner.as_ref()).await, counted, "{context}: the ledger and the tables");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_that_die_land_each_object_once() {
    for seed in 0..runs(150) {
        let context = format!("seed {seed}");
        let inner = Arc::new(InMemory::new());
        let mut random = SmallRng::seed_from_u64(seed);
        let objects = random.random_range(4..14);
        // Three writers at once, each dying somewhere, now and then with a lost answer; then one that lives.
        let lives = (0..3).map(|w| {
            let dies = if random.random_bool(0.7) { random.random_range(1..120) } else { -1 };
            let lost = if random.random_bool(0.5) { random.random_range(1..80) } else { 0 };
            let store = memory_lake(FaultStore::new(inner.clone(), dies, lost));
            tokio::spawn(life(store, (0..objects).collect(), seed * 31 + w))
        });
        let lives: Vec<_> = lives.collect();
        for life in lives {
            // That it died is as it should be; that it panicked is not.
            let _ = life.await.expect("a writer doesn't panic");
        }
        life(memory_lake(inner.clone()), (0..objects).collect(), seed)
            .await
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        check(&inner, objects, &context).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failure_of_every_single_operation_loses_and_doubles_nothing() {
    let objects = 5;
    let whole = FaultStore::new(Arc::new(InMemory::new()), -1, 0);
    life(memory_lake(whole.clone()), (0..objects).collect(), 1).await.expect("nothing fails");
    let operations = whole.operations.load(std::sync::atomic::Ordering::SeqCst);
    assert!(operations > 30, "{operations} operations");
    for k in 1..=operations {
        for (dies, lost) in [(k as i64 - 1, 0), (-1, k)] {
            let context = format!(
                "operation {k} of {operations}, {}",
                if lost > 0 { "its answer lost" } else { "and all after it" }
            );
            let inner = Arc::new(InMemory::new());
            let _ = life(memory_lake(FaultStore::new(inner.clone(), dies, lost)), (0..objects).collect(), 1)
                .await;
            life(memory_lake(inner.clone()), (0..objects).collect(), 2)
                .await
                .unwrap_or_else(|e| panic!("{context}: {e}"));
            check(&inner, objects, &context).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_another_writer_landed_meanwhile_is_cut_out_of_the_batch() {
    let inner = Arc::new(InMemory::new());
    let lakes = [(); 2].map(|()| memory_lake(inner.clone()));
    let [first, second] =
        lakes.map(|store| tokio::spawn(async move { Arc::new(Lake::open(store).await.expect("opens")) }));
    let (first, second) = (first.await.expect("opens"), second.await.expect("opens"));
    let land = |lake: Arc<Lake>, numbers: Vec<u64>| {
        tokio::task::spawn_blocking(move || {
            let mut worker = worker(lake, usize::MAX);
            for n in numbers {
                let (object, bytes) = object(n);
                worker.work(object, Input::Memory(bytes.into()), Place::START, None).expect("decodes");
            }
            worker.flush().expect("lands")
        })
    };
    let landed = |flushed: &Flushed| flushed.landed.len();
    let one = land(first, vec![0, 1, 2]).await.expect("no panic");
    assert_eq!((landed(&one), one.already_there.len()), (3, 0));
    // The second lake was opened before: it learns of them only when it lands.
    let two = land(second, vec![2, 3, 0, 4]).await.expect("no panic");
    assert_eq!((landed(&two), two.already_there.len()), (2, 2));
    check(&inner, 5, "two writers").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_larger_than_memory_spills_and_still_lands_whole_or_not_at_all() {
    let line = "{\"EdgeStartTimestamp\":1653974623,\"ClientIP\":\"192.0.2.1\",\"ZoneID\":7}\n";
    let bytes = line.repeat(400_000).into_bytes();
    let inner = Arc::new(InMemory::new());
    let lake = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let stored = gzip(&bytes);
    let broken = stored[..stored.len() - 9].to_vec();
    let run = tokio::task::spawn_blocking(move || {
        let mut worker = worker(lake, 4 << 20);
        let (mut good, _) = object(0);
        good.size = stored.len() as u64;
        let (bad, _) = object(1);
        worker
            .work(bad, Input::Memory(broken.into()), Place::START, None)
            .expect("a broken object is a reject");
        worker.work(good, Input::Memory(stored.into()), Place::START, None).expect("decodes");
        worker.flush().expect("lands")
    });
    run.await.expect("no panic");
    let rows = read_table(inner.as_ref(), "cloudflare_httprequest").await;
    assert!(rows.len() > 3, "it was written in several files, not {}", rows.len());
    let ids: BTreeSet<&String> = rows.values().flatten().collect();
    assert_eq!(ids.len(), 400_000);
    let good = ObjectId::of_s3("bucket", "logs/0.log", "etag").to_string();
    assert!(ids.iter().all(|id| id.starts_with(&good)), "no row of the broken object");
    let rejects = read_table(inner.as_ref(), "classification_failures").await;
    assert_eq!(rejects.values().flatten().count(), 1);
}

/// Lands objects one by one, so that the ledger has many versions.
async fn land_each(inner: &Arc<InMemory>, numbers: std::ops::Range<u64>) -> Result<usize, String> {
    let mut landed = 0;
    for n in numbers {
        let lake = Arc::new(Lake::open(memory_lake(inner.clone())).await.map_err(|e| e.to_string())?);
        if lake.contains(object(n).0.id.0) {
            continue;
        }
        landed += 1;
        land(lake, vec![n]).await?;
    }
    Ok(landed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_ledgers_log_is_never_taken_for_its_end() {
    use object_store::ObjectStoreExt as _;
    let inner = Arc::new(InMemory::new());
    assert_eq!(land_each(&inner, 0..8).await, Ok(8));
    let entry = |version: u64| {
        object_store::path::Path::from(format!("lake/ingested_objects/_delta_log/{version:020}.json"))
    };
    let removed = inner.get(&entry(3)).await.expect("an entry").bytes().await.expect("bytes");
    inner.delete(&entry(3)).await.expect("deleted");
    let refused = land_each(&inner, 0..8).await.expect_err("a gap is an error");
    assert!(refused.contains("gap before version 4"), "{refused}");
    // With a checkpoint above it, everything below can go, and what landed is still known.
    inner.put(&entry(3), removed.into()).await.expect("restored");
    let ledger = flarelake::table::open_tables(&memory_lake(inner.clone()), &["ingested_objects".into()])
        .await
        .expect("opens")
        .remove(0)
        .expect("is there");
    deltalake::checkpoints::create_checkpoint(&ledger.0, None).await.expect("a checkpoint");
    for version in 0..6 {
        inner.delete(&entry(version)).await.expect("deleted");
    }
    assert_eq!(land_each(&inner, 0..10).await, Ok(2));
    let lake = Lake::open(memory_lake(inner.clone())).await.expect("opens");
    assert_eq!(lake.objects(), 10);
}
