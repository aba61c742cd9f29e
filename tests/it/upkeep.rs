//! Upkeep of real tables: what is merged, dropped, deleted and cleaned up while others write, die, and do the
//! same. Rows are counted by their ids, out of the files that the log names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use flarelake::base::now_micros;
use flarelake::base::store::Store;
use flarelake::config::{Maintenance, Partitioning};
use flarelake::land::batch::Tables;
use flarelake::maintain::compact::Compacted;
use flarelake::maintain::{MaintainError, Maintainer, Tidied};
use flarelake::schema::Catalog;
use flarelake::table::{Lake, LogFile, LogFileKind, open_tables, removable_below};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::decoding::runs;
use crate::ledger::{expected, land, life, object};
use crate::support::{FaultStore, Faults, at, memory_lake, row_ids};

pub const DAY: i64 = 86_400_000_000;

/// A maintainer as the command line makes it, but for what would take time.
pub async fn maintainer(
    store: Store,
    retention: BTreeMap<String, Duration>,
) -> Result<Maintainer, MaintainError> {
    let lake = Arc::new(Lake::open(store.clone()).await?);
    Ok(maintainer_of(store, Some(lake), retention))
}

pub fn maintainer_of(
    store: Store,
    lake: Option<Arc<Lake>>,
    retention: BTreeMap<String, Duration>,
) -> Maintainer {
    let Tables { log_types, failures, ledger } = Tables::new(&Catalog::embedded(), Partitioning::Day);
    Maintainer {
        store,
        lake,
        tables: Arc::new(log_types.into_iter().chain([failures, ledger]).collect()),
        settings: Maintenance { target_file_size: ByteSize::mib(1), ..Maintenance::default() },
        retention,
        memory: 64 << 20,
        at_once: 2,
        encoders: 2,
        checkpoint_every: 3,
        lease_term: Duration::from_millis(60),
        progress: Arc::default(),
        metrics: None,
        stop: Default::default(),
    }
}

pub async fn maintain(
    store: Store,
    retention: BTreeMap<String, Duration>,
    now: i64,
) -> Result<(Compacted, Tidied), MaintainError> {
    maintainer(at(store, now), retention).await?.once().await
}

/// The ids of a file's rows in order, and the first and last time that the log tells of it.
type File = (Vec<String>, Option<(i64, i64)>);

/// The files of each table, as its log names them, with their rows' ids in order, and their times.
pub async fn files(inner: &Arc<InMemory>) -> BTreeMap<String, Vec<File>> {
    let store = memory_lake(inner.clone());
    let names: Vec<String> =
        ["cloudflare_firewall", "cloudflare_httprequest", "classification_failures", "ingested_objects"]
            .map(str::to_owned)
            .to_vec();
    let mut tables = BTreeMap::new();
    for (name, table) in names.iter().zip(open_tables(&store, &names).await.expect("a lake")) {
        let mut files = Vec::new();
        for file in table.map_or(Vec::new(), |table| table.files().expect("files")) {
            let bytes = inner
                .get(&file.location(&store, name))
                .await
                .unwrap_or_else(|e| panic!("{name} names {}: {e}", file.path));
            files.push((row_ids(bytes.bytes().await.expect("bytes")), file.times));
        }
        files.sort_by_key(|(_, times)| *times);
        tables.insert(name.clone(), files);
    }
    tables
}

/// Each of the rows is there once, and no other.
pub async fn check(inner: &Arc<InMemory>, rows: &BTreeMap<&str, BTreeSet<String>>, context: &str) {
    let there = files(inner).await;
    for (table, expected) in rows {
        let ids: Vec<&String> = there[*table].iter().flat_map(|(ids, _)| ids).collect();
        let distinct: BTreeSet<String> = ids.iter().map(|id| (*id).clone()).collect();
        assert_eq!(ids.len(), distinct.len(), "{context}: {table} has rows twice");
        assert_eq!(&distinct, expected, "{context}: {table}");
    }
}

/// Lands objects one by one and keeps the lake up after every so many, a week passing every fifty objects.
/// What landed.
pub async fn land_and_keep_up(folder: &std::path::Path, objects: u64, every: u64) -> BTreeSet<u64> {
    let open = async |now| {
        let store =
            Store::open(folder.to_str().expect("a path"), &Default::default()).await.expect("a folder");
        maintainer(at(store, now), BTreeMap::new()).await.expect("a lake")
    };
    let mut now = now_micros();
    let mut upkeep = open(now).await;
    for n in 0..objects {
        land(upkeep.lake.clone().expect("a lake"), vec![n]).await.expect("lands");
        if n % 50 == 49 {
            now += 8 * DAY;
            upkeep = open(now).await;
        }
        if n % every == every - 1 {
            upkeep.once().await.expect("upkeep");
        }
    }
    (0..objects).collect()
}

/// All rows of these objects, by table.
pub fn rows(objects: &BTreeSet<u64>) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut rows = expected(objects.iter().map(|n| object(*n)).map(|(object, bytes)| (object.id, bytes)));
    for table in
        ["cloudflare_firewall", "cloudflare_httprequest", "classification_failures", "ingested_objects"]
    {
        rows.entry(table).or_default();
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_become_one_a_day_in_order_with_all_that_lookups_need() {
    let inner = Arc::new(InMemory::new());
    let all: BTreeSet<u64> = (0..60).collect();
    for chunk in 0..12 {
        life(memory_lake(inner.clone()), (chunk * 5..chunk * 5 + 5).collect(), chunk).await.expect("lands");
    }
    let before = files(&inner).await;
    assert!(before["cloudflare_httprequest"].len() > 30, "{}", before["cloudflare_httprequest"].len());
    let (compacted, tidied) =
        maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros()).await.expect("upkeep");
    assert!(compacted.merges > 3 && compacted.files_in > compacted.files_out, "{compacted:?}");
    assert!(tidied.deleted.is_empty(), "nothing is old enough: {tidied:?}");
    check(&inner, &rows(&all), "compacted").await;
    let after = files(&inner).await;
    // Hours 0 to 59 and, doubled, to 118 from 2022-05-31T05:23:43Z on: six days.
    assert_eq!(after["cloudflare_httprequest"].len(), 6);
    assert!(
        after["cloudflare_httprequest"]
            .windows(2)
            .all(|pair| pair[0].1.expect("times").1 < pair[1].1.expect("times").0)
    );
    assert!(
        after["ingested_objects"].len() < 12,
        "the ledger's own files too: {}",
        after["ingested_objects"].len()
    );
    let store = memory_lake(inner.clone());
    let table = open_tables(&store, &["cloudflare_httprequest".into()])
        .await
        .expect("a lake")
        .remove(0)
        .expect("a table");
    for file in table.files().expect("files") {
        let bytes = inner
            .get(&file.location(&store, "cloudflare_httprequest"))
            .await
            .expect("a file")
            .bytes()
            .await
            .expect("bytes");
        let reader =
            parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet");
        let group = reader.metadata().row_group(0);
        let blooms = group
            .columns()
            .iter()
            .filter(|c| c.bloom_filter_offset().is_some())
            .map(|c| c.column_path().string());
        assert!(blooms.collect::<Vec<_>>().contains(&"RayID".to_owned()));
        assert!(group.sorting_columns().is_some_and(|columns| columns.len() == 1));
        assert_eq!(reader.metadata().file_metadata().num_rows() as u64, file.rows);
    }
    let again = maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros()).await.expect("upkeep");
    assert_eq!(
        (again.0, again.1.deleted),
        (Compacted::default(), BTreeMap::new()),
        "a second run does nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crashes_and_merges_left_is_deleted_when_it_is_old_and_nothing_else() {
    let inner = Arc::new(InMemory::new());
    let all: BTreeSet<u64> = (0..23).collect();
    for n in 0..20 {
        life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
    }
    // Writers that die everywhere, some with their files uploaded; then one that lives.
    for dies in (200..440).step_by(6) {
        let store =
            memory_lake(FaultStore::with(inner.clone(), Faults { dies_at: dies, ..Faults::default() }));
        drop(life(store, vec![20, 21, 22], 7).await);
    }
    life(memory_lake(inner.clone()), vec![20, 21, 22], 7).await.expect("lands");
    maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros()).await.expect("upkeep");
    let count = async || {
        let listed: Vec<_> = futures::TryStreamExt::try_collect(inner.list(None)).await.expect("a listing");
        listed
            .iter()
            .filter(|meta: &&object_store::ObjectMeta| meta.location.extension() == Some("parquet"))
            .count()
    };
    let before = count().await;
    // Two days on only what no table ever named is old enough; in eight days what merges took out is, too.
    let (_, two) =
        maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros() + 2 * DAY).await.expect("upkeep");
    let deleted = |tidied: &Tidied| tidied.deleted.values().flatten().count();
    let orphans = deleted(&two);
    assert!(orphans > 0, "{two:?}");
    let (_, eight) =
        maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros() + 8 * DAY).await.expect("upkeep");
    assert!(deleted(&eight) > 30, "{}", deleted(&eight));
    assert!(eight.log_entries > 20, "{}", eight.log_entries);
    let live: usize = files(&inner).await.values().map(Vec::len).sum();
    let checkpoints = {
        let listed: Vec<_> = futures::TryStreamExt::try_collect(inner.list(None)).await.expect("a listing");
        listed
            .iter()
            .filter(|meta: &&object_store::ObjectMeta| meta.location.as_ref().contains(".checkpoint."))
            .count()
    };
    assert_eq!(count().await, live + checkpoints, "nothing but what is named is left of {before}");
    check(&inner, &rows(&all), "vacuumed").await;
    // What was cleaned up is not landed again, by a writer that starts where the log now begins.
    let more: BTreeSet<u64> = (0..25).collect();
    life(memory_lake(inner.clone()), more.iter().copied().collect(), 5).await.expect("lands");
    check(&inner, &rows(&more), "after clean-up").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_at_once_and_dies_rows_stay_what_they_are() {
    for seed in 0..runs(12) {
        let context = format!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let inner = Arc::new(InMemory::new());
        let mut landed = BTreeSet::new();
        let mut begun = BTreeSet::new();
        for _ in 0..random.random_range(4..10) {
            let mut lives = Vec::new();
            let mut upkeeps = Vec::new();
            for _ in 0..random.random_range(1..4) {
                let faults = Faults {
                    dies_at: if random.random_bool(0.5) { random.random_range(1..150) } else { 0 },
                    loses_answer_at: if random.random_bool(0.3) { random.random_range(1..150) } else { 0 },
                    slow_ms: if random.random_bool(0.3) { 2 } else { 0 },
                    ..Faults::default()
                };
                let store = memory_lake(FaultStore::with(inner.clone(), faults));
                if random.random_bool(0.6) {
                    let some = random.random_range(1..6);
                    let todo: Vec<u64> =
                        (0..40).collect::<Vec<_>>().sample(&mut random, some).copied().collect();
                    begun.extend(todo.iter().copied());
                    lives.push((todo.clone(), tokio::spawn(life(store, todo, random.random()))));
                } else {
                    upkeeps.push(tokio::spawn(async move {
                        maintain(store, BTreeMap::new(), now_micros()).await
                    }));
                }
            }
            for (todo, life) in lives {
                if life.await.expect("a writer doesn't panic").is_ok() {
                    landed.extend(todo);
                }
            }
            for upkeep in upkeeps {
                let _ = upkeep.await.expect("a maintainer doesn't panic");
            }
            // When all is quiet, days pass.
            if random.random_bool(0.4) {
                let later = now_micros() + 9 * DAY;
                maintain(memory_lake(inner.clone()), BTreeMap::new(), later)
                    .await
                    .unwrap_or_else(|e| panic!("{context}: {e}"));
            }
        }
        // What a dead writer had begun may have landed or not; then all of it does.
        life(memory_lake(inner.clone()), begun.iter().copied().collect(), seed)
            .await
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(landed.is_subset(&begun));
        check(&inner, &rows(&begun), &context).await;
        maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros())
            .await
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        check(&inner, &rows(&begun), &context).await;
        let (again, _) =
            maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros()).await.expect("upkeep");
        assert_eq!(again, Compacted::default(), "{context}: a second run merges nothing");
        let days =
            |files: &[File]| files.iter().map(|f| f.1.expect("times").0 / DAY).collect::<BTreeSet<_>>().len();
        let requests = &files(&inner).await["cloudflare_httprequest"];
        assert_eq!(requests.len(), days(requests), "{context}: one file a day");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_drops_whole_days_and_a_reader_of_the_ledger_lands_nothing_again() {
    let inner = Arc::new(InMemory::new());
    // They landed when they were of today.
    let then = at(memory_lake(inner.clone()), 1_653_974_623_000_000);
    life(then, (0..60).collect(), 1).await.expect("lands");
    let day = |time: i64| time.div_euclid(DAY);
    let before = files(&inner).await;
    let first =
        before["cloudflare_httprequest"].iter().map(|f| day(f.1.expect("times").0)).min().expect("files");
    // A day is over at its end, and is dropped when even its last moment is older than is kept.
    let keep = BTreeMap::from([("cloudflare_httprequest".to_owned(), Duration::from_secs(30 * 86_400))]);
    let minute = DAY / 1440;
    for (now, dropped) in [
        ((first + 31) * DAY - minute, 0),
        ((first + 31) * DAY, 1),
        ((first + 33) * DAY, 2),
        ((first + 33) * DAY, 0),
    ] {
        let (_, tidied) = maintain(memory_lake(inner.clone()), keep.clone(), now).await.expect("upkeep");
        let days: BTreeSet<i64> =
            tidied.dropped.values().flatten().map(|f| day(f.times.expect("times").0)).collect();
        assert_eq!(days.len(), dropped, "at {now}");
    }
    let after = files(&inner).await;
    let left: BTreeSet<i64> =
        after["cloudflare_httprequest"].iter().map(|f| day(f.1.expect("times").0)).collect();
    assert_eq!(left, (first + 3..first + 6).collect());
    assert_eq!(
        after["cloudflare_firewall"].len(),
        before["cloudflare_firewall"].len().min(1),
        "other tables keep theirs"
    );
    life(memory_lake(inner.clone()), (0..60).collect(), 2).await.expect("lands");
    assert_eq!(files(&inner).await["cloudflare_httprequest"].len(), 3, "what was dropped does not come back");
    let wrong = BTreeMap::from([("ingested_objects".to_owned(), Duration::from_secs(86_400))]);
    let refused = maintain(memory_lake(inner.clone()), wrong, now_micros())
        .await
        .expect_err("the ledger is kept")
        .to_string();
    assert!(refused.contains("no table ingested_objects whose rows could be dropped"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_maintainer_works_and_others_wait_until_it_is_done_or_dead() {
    use flarelake::maintain::lease::Lease;
    let store = memory_lake(Arc::new(InMemory::new()));
    let term = Duration::from_millis(300);
    let going = Default::default();
    let first = Lease::take(&store, "first", term, Some(&going)).await.expect("a store").expect("it is free");
    assert!(Lease::take(&store, "second", term, None).await.expect("a store").is_none(), "it is taken");
    tokio::time::sleep(term * 2).await;
    assert!(Lease::take(&store, "second", term, None).await.expect("a store").is_none(), "it was renewed");
    first.give_back().await;
    let second =
        Lease::take(&store, "second", term, None).await.expect("a store").expect("it was given back");
    // Dies without giving it back.
    drop(second);
    let waited = tokio::time::timeout(term * 5, Lease::take(&store, "third", term, Some(&going)))
        .await
        .expect("a dead holder is not waited for");
    let third = waited.expect("a store").expect("a lease");
    assert!(!third.lost.is_cancelled());
    third.give_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_another_engine_stay_through_a_merge() {
    let inner = Arc::new(InMemory::new());
    for n in 0..10 {
        life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
    }
    // Another engine adds a column: a commit of metaData alone.
    let folder = "lake/cloudflare_httprequest/_delta_log";
    let entry = |version: u64| object_store::path::Path::from(format!("{folder}/{version:020}.json"));
    let text = inner.get(&entry(0)).await.expect("an entry").bytes().await.expect("bytes");
    let mut metadata: serde_json::Value = text
        .split(|b| *b == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .find(|action| action["metaData"].is_object())
        .expect("a metaData action");
    let schema = metadata["metaData"]["schemaString"].as_str().expect("a schema");
    let mut schema: serde_json::Value = serde_json::from_str(schema).expect("JSON");
    let added = serde_json::json!({"name": "verdict", "type": "string", "nullable": true, "metadata": {}});
    schema["fields"].as_array_mut().expect("fields").push(added);
    metadata["metaData"]["schemaString"] = schema.to_string().into();
    let mut next = 0;
    while inner.get(&entry(next)).await.is_ok() {
        next += 1;
    }
    inner.put(&entry(next), metadata.to_string().into_bytes().into()).await.expect("an entry");
    let all: BTreeSet<u64> = (0..10).collect();
    let (compacted, _) =
        maintain(memory_lake(inner.clone()), BTreeMap::new(), now_micros()).await.expect("upkeep");
    assert!(compacted.merges > 0);
    check(&inner, &rows(&all), "with a column more").await;
    let store = memory_lake(inner.clone());
    let table = open_tables(&store, &["cloudflare_httprequest".into()])
        .await
        .expect("a lake")
        .remove(0)
        .expect("a table");
    let merged = table.files().expect("files").into_iter().max_by_key(|f| f.rows).expect("files");
    let bytes = inner
        .get(&merged.location(&store, "cloudflare_httprequest"))
        .await
        .expect("a file")
        .bytes()
        .await
        .expect("bytes");
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet");
    assert!(reader.schema().field_with_name("verdict").is_ok(), "{:?}", reader.schema().fields().last());
}

#[test]
fn what_may_be_deleted_goes_by_what_the_log_tells_of_each_file() {
    use flarelake::maintain::vacuum::{Ages, ListedFile, deletable};
    const HOUR: i64 = 3_600_000;
    let ages = Ages { taken_out: Duration::from_secs(7 * 86_400), never_named: Duration::from_secs(86_400) };
    let now = 1_000_000 * HOUR;
    let file =
        |path: &str, hours: i64| ListedFile { path: path.into(), size: 1, written_ms: now - hours * HOUR };
    let files = [
        file("named", 9000),
        file("never named, of today", 23),
        file("never named, of yesterday", 24),
        file("old, taken out yesterday", 9000),
        file("old, taken out a week ago", 9000),
    ];
    let named = ["named".to_owned()].into();
    let taken_out = [("old, taken out yesterday", 24), ("old, taken out a week ago", 7 * 24)];
    let taken_out =
        taken_out.into_iter().map(|(path, hours)| (path.to_owned(), now - hours * HOUR)).collect();
    let gone: Vec<String> =
        deletable(&files, &named, &taken_out, now, ages).into_iter().map(|f| f.path).collect();
    assert_eq!(gone, ["never named, of yesterday", "old, taken out a week ago"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_is_named_and_stops_nothing_else() {
    let inner = Arc::new(InMemory::new());
    for n in 0..12 {
        life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
    }
    let store = memory_lake(inner.clone());
    let table = open_tables(&store, &["cloudflare_httprequest".into()])
        .await
        .expect("a lake")
        .remove(0)
        .expect("a table");
    let lost = table.files().expect("files").remove(0);
    inner.delete(&lost.location(&store, "cloudflare_httprequest")).await.expect("deleted");
    let (compacted, tidied) =
        maintain(store.clone(), BTreeMap::new(), now_micros()).await.expect("upkeep goes on");
    assert_eq!(compacted.failed.len(), 1, "{compacted:?}");
    assert!(
        compacted.failed[0].contains(&lost.path) && compacted.failed[0].contains("restore it"),
        "{}",
        compacted.failed[0]
    );
    assert_eq!(compacted.overtaken, 0);
    assert!(compacted.merges > 2 && !tidied.checkpoints.is_empty(), "{compacted:?} {tidied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_slept_learns_that_others_hold_by_higher_numbers() {
    use flarelake::maintain::lease::Lease;
    let inner = Arc::new(InMemory::new());
    let term = Duration::from_millis(300);
    let slept = Lease::take(&memory_lake(inner.clone()), "slept", term, None)
        .await
        .expect("a store")
        .expect("it is free");
    // Meanwhile others had the lease, gave it back, have it again, and removed what was below.
    let entry = |number: u64| object_store::path::Path::from(format!("lake/_lease/{number:020}.json"));
    let until = now_micros() / 1000 + 10_000;
    let held = format!("{{\"holder\":\"another\",\"until_ms\":{until}}}");
    inner.put(&entry(50), held.into_bytes().into()).await.expect("an entry");
    inner.delete(&entry(0)).await.expect("deleted");
    tokio::time::timeout(term * 3, slept.lost.cancelled()).await.expect("it learns of it at its next entry");
}

#[test]
fn what_may_go_from_a_log_leaves_every_young_version_readable() {
    use LogFileKind::{Checkpoint, Entry, Part};
    use proptest::prelude::*;
    let file = |version: u64, kind, written_ms: i64| LogFile {
        version,
        kind,
        written_ms,
        location: format!("{version}{kind:?}").into(),
    };
    // How long after the one before each entry was put, and whether a checkpoint of it was written some time
    // later, whole or in parts.
    let checkpoint = (0..6_i64, prop_oneof![9 => Just(Checkpoint), 1 => Just(Part)]);
    let log = proptest::collection::vec((0..3_i64, proptest::option::of(checkpoint)), 1..14);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) };
    proptest!(config, |(log in log, first in 0..4_usize, before_ms in 0..30_i64)| {
        let (mut files, mut time) = (Vec::new(), 0);
        // What was cleaned up before: all below a whole checkpoint.
        let first = if matches!(log.get(first), Some((_, Some((_, Checkpoint))))) { first } else { 0 };
        for (version, (step, checkpoint)) in log.iter().enumerate() {
            time += step;
            if version >= first {
                files.push(file(version as u64, Entry, time));
                files.extend(checkpoint.map(|(later, kind)| file(version as u64, kind, time + later)));
            }
        }
        let base = removable_below(&files, before_ms);
        let (gone, left): (Vec<&LogFile>, Vec<&LogFile>) = files.iter().partition(|file| Some(file.version) < base);
        let is_entry = |version: u64| left.iter().any(|file| file.version == version && file.kind == Entry);
        let readable = |version: u64| {
            let bases = left.iter().filter(|file| file.kind == Checkpoint && file.version <= version).map(|file| file.version + 1);
            bases.chain([0]).any(|base| (base..=version).all(is_entry))
        };
        let entries: Vec<&LogFile> = files.iter().filter(|file| file.kind == Entry).collect();
        let newest_then = entries.iter().filter(|file| file.written_ms < before_ms).map(|file| file.version).max();
        for entry in entries.iter().filter(|file| file.written_ms >= before_ms || Some(file.version) == newest_then) {
            prop_assert!(readable(entry.version), "version {} can't be read: {gone:?} of {files:?}", entry.version);
        }
        // Nothing that is there could go as well: below a checkpoint of then that is no newer than what came
        // since.
        let could_stand = |base: &&LogFile| {
            let is_then = base.kind == Checkpoint && base.written_ms < before_ms;
            is_then && files.iter().all(|file| file.written_ms < before_ms || file.version >= base.version)
        };
        if let Some(base) = files.iter().filter(could_stand).map(|file| file.version).max() {
            prop_assert!(left.iter().all(|file| file.version >= base), "{left:?} could go below {base}");
        }
    });
}
