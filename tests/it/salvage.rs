//! A repair that makes tables whole from the files in their folders, and the ledger from what is left of one
//! of before: whatever merges had made of the files, each row is there once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::AsArray as _;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;
use flarelake::table::{Lake, open_tables};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::damage::{below, copy, lake_of, mends, refused, remove, repair};
use crate::decoding::runs;
use crate::ledger::{life, object};
use crate::replay_races;
use crate::support::{FaultStore, Faults, memory_lake, read_ledger, read_table, row_ids};
use crate::upkeep::{check, maintainer, rows};

const REQUESTS: &str = "cloudflare_httprequest";

/// The files that a table names, or what lies below its folder.
async fn named(inner: &Arc<InMemory>, name: &str) -> BTreeSet<Path> {
    let store = memory_lake(inner.clone());
    let table = open_tables(&store, &[name.to_owned()]).await.expect("opens").remove(0).expect("is there");
    table.files().expect("files").iter().map(|file| file.location(&store, name)).collect()
}

async fn data_files(inner: &InMemory, name: &str) -> BTreeSet<Path> {
    let files = below(inner, &format!("lake/{name}")).await.into_iter().map(|meta| meta.location);
    files
        .filter(|path| path.extension() == Some("parquet") && !path.to_string().contains("_delta_log"))
        .collect()
}

async fn keep_up(inner: &Arc<InMemory>) {
    maintainer(memory_lake(inner.clone()), BTreeMap::new())
        .await
        .expect("a lake")
        .once()
        .await
        .expect("upkeep");
}

/// What clean-up takes of a log: its entries below the newest checkpoint.
async fn clean_up(inner: &InMemory, name: &str) {
    let log = format!("lake/{name}/_delta_log");
    let files = below(inner, &log).await;
    let version = |path: &Path| path.filename().and_then(|name| name.get(..20)?.parse::<u64>().ok());
    let checkpoints = files.iter().filter(|meta| meta.location.to_string().contains(".checkpoint."));
    let newest = checkpoints.filter_map(|meta| version(&meta.location)).max().expect("a checkpoint");
    for meta in files
        .iter()
        .filter(|meta| meta.location.extension() == Some("json") && version(&meta.location) < Some(newest))
    {
        inner.delete(&meta.location).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_its_log_is_made_whole_whatever_merges_left_in_its_folder() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for round in 0..8 * runs(1) {
        let inner = lake_of(0..5).await;
        let early = Arc::new(InMemory::new());
        copy(&inner, &format!("lake/{REQUESTS}/_delta_log"), &early).await;
        life(memory_lake(inner.clone()), vec![5, 6], 7).await.expect("lands");
        let before = data_files(&inner, REQUESTS).await;
        // Another merge of the same files came too late: some of what it wrote lies there, too.
        let late = Arc::new(inner.fork());
        keep_up(&late).await;
        keep_up(&inner).await;
        let merged: BTreeSet<Path> = named(&inner, REQUESTS).await.difference(&before).cloned().collect();
        assert!(!merged.is_empty(), "something was merged");
        for path in data_files(&late, REQUESTS).await.difference(&before).filter(|_| random.random_bool(0.5))
        {
            let bytes = late.get(path).await.expect("a file").bytes().await.expect("bytes");
            inner.put(path, bytes.into()).await.expect("put");
        }
        // Each of the two, what was merged and what came of it, has all rows: of one of them any file may be
        // gone.
        let inputs: Vec<Path> = before.difference(&named(&inner, REQUESTS).await).cloned().collect();
        let mut gone: Vec<Path> = if random.random_bool(0.7) { inputs } else { merged.into_iter().collect() };
        gone.shuffle(&mut random);
        gone.truncate(random.random_range(0..=gone.len()));
        for path in &gone {
            inner.delete(path).await.expect("deleted");
        }
        let is_cleaned = random.random_bool(0.5);
        if is_cleaned {
            clean_up(&inner, "ingested_objects").await;
        }
        remove(&inner, &format!("lake/{REQUESTS}/_delta_log")).await;
        let is_restored = random.random_bool(0.5);
        if is_restored {
            copy(&early, "lake", &inner).await;
        }
        let context = format!(
            "round {round}: {} files gone, ledger cleaned up {is_cleaned}, log restored {is_restored}",
            gone.len()
        );
        let findings = mends(&inner, &context).await;
        assert_eq!(findings.lost, Vec::<String>::new(), "{context}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_broken_file_are_taken_from_the_others() {
    let inner = lake_of(0..5).await;
    let early = Arc::new(InMemory::new());
    copy(&inner, &format!("lake/{REQUESTS}/_delta_log"), &early).await;
    life(memory_lake(inner.clone()), vec![5, 6], 7).await.expect("lands");
    let before = data_files(&inner, REQUESTS).await;
    keep_up(&inner).await;
    clean_up(&inner, "ingested_objects").await;
    // The ids; the end; or another column, of files of which some rows are in others that the log names.
    for (what, is_restored) in [("p_row_id", false), ("the end", false), ("ZoneID", true)] {
        let damaged = Arc::new(inner.fork());
        let mut broken = 0;
        for path in named(&inner, REQUESTS).await.difference(&before) {
            let whole = damaged.get(path).await.expect("a file").bytes().await.expect("bytes");
            let mut bytes = whole.to_vec();
            bytes[column(&whole, what).unwrap_or(whole.len() - 20..whole.len())].fill(0x5a);
            damaged.put(path, bytes.into()).await.expect("put");
            broken += 1;
        }
        assert!(broken > 0);
        remove(&damaged, &format!("lake/{REQUESTS}/_delta_log")).await;
        if is_restored {
            copy(&early, "lake", &damaged).await;
        }
        let findings = repair(memory_lake(damaged.clone()), &[]).await.expect("mends");
        let left_out = findings
            .lost
            .iter()
            .filter(|what| what.contains("left out is") && what.contains("can't be read"))
            .count();
        let is_whole = findings.lost.len() == left_out && (1..=broken).contains(&left_out);
        assert!(is_whole && (is_restored || left_out == broken), "{what}: {broken} broken, {findings:?}");
        check(&damaged, &rows(&(0..7).collect()), &format!("{what} is broken")).await;
    }
}

/// Where a column stands in a file of one row group; none if there is no such column.
fn column(file: &Bytes, name: &str) -> Option<std::ops::Range<usize>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone()).expect("a Parquet file");
    let metadata = builder.metadata().clone();
    let (start, length) = metadata
        .row_group(0)
        .columns()
        .iter()
        .find(|column| column.column_path().string() == name)?
        .byte_range();
    Some(start as usize..(start + length) as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_counted_and_comes_back_with_its_files() {
    let inner = lake_of(0..7).await;
    let path = named(&inner, REQUESTS).await.first().cloned().expect("a file");
    let bytes = inner.get(&path).await.expect("a file").bytes().await.expect("bytes");
    inner.delete(&path).await.expect("deleted");
    let findings = repair(memory_lake(inner.clone()), &[]).await.expect("mends");
    let all = rows(&(0..7).collect())[REQUESTS].len();
    let mut left = 0;
    for path in named(&inner, REQUESTS).await {
        left += row_ids(inner.get(&path).await.expect("a file").bytes().await.expect("bytes")).len();
    }
    assert!(left < all);
    let lost = format!("of {all} rows that landed, {} are in no file", all - left);
    assert!(
        findings.lost.len() == 1
            && findings.lost[0].contains(&lost)
            && findings.lost[0].contains("--table cloudflare_httprequest"),
        "{findings:?}"
    );
    assert!(
        findings.mended.iter().any(|what| what.contains(path.filename().expect("a name"))),
        "{findings:?}"
    );
    // It is put back.
    inner.put(&path, bytes.into()).await.expect("put");
    let findings = repair(memory_lake(inner.clone()), &[REQUESTS]).await.expect("mends");
    assert_eq!(findings.lost, Vec::<String>::new());
    check(&inner, &rows(&(0..7).collect()), "put back").await;
    let error = repair(memory_lake(inner.clone()), &["cloudflare_httprequests"])
        .await
        .expect_err("a typo")
        .to_string();
    assert!(error.contains("no table cloudflare_httprequests") && error.contains(REQUESTS), "{error}");
}

/// Lands an object in copies of a lake, by writers of whom each dies an operation later than the one before.
async fn dying(
    inner: &Arc<InMemory>,
    object: u64,
    mut found: impl AsyncFnMut(&Arc<InMemory>) -> bool,
) -> Arc<InMemory> {
    let opening = FaultStore::with(Arc::new(inner.fork()), Faults::default());
    drop(Lake::open(memory_lake(opening.clone())).await.expect("opens"));
    let opened = opening.operations.load(Ordering::SeqCst);
    for operation in 1..100 {
        let copy = Arc::new(inner.fork());
        let dying =
            FaultStore::with(copy.clone(), Faults { dies_at: opened + operation, ..Faults::default() });
        drop(life(memory_lake(dying), vec![object], 7).await);
        if found(&copy).await {
            return copy;
        }
    }
    panic!("no writer died as was wanted");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_objects_that_never_landed_stay_out() {
    let inner = lake_of(0..4).await;
    // The writer dies between its uploads and the ledger: its files lie there, and nothing landed.
    let before = data_files(&inner, REQUESTS).await.len();
    let other = dying(&inner, 6, async |copy| data_files(copy, REQUESTS).await.len() > before).await;
    assert!(!read_ledger(other.as_ref()).await.contains_key(&object(6).0.id.to_string()));
    remove(&other, &format!("lake/{REQUESTS}/_delta_log")).await;
    let findings = repair(memory_lake(other.clone()), &[]).await.expect("mends");
    assert!(findings.lost.iter().any(|what| what.contains("does not tell of")), "{findings:?}");
    check(&other, &rows(&(0..4).collect()), "what had landed").await;
    life(memory_lake(other.clone()), (0..8).collect(), 7).await.expect("lands");
    check(&other, &rows(&(0..8).collect()), "landed for the first time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_made_anew_knows_what_the_old_one_knew() {
    let inner = lake_of(0..7).await;
    let before = read_ledger(inner.as_ref()).await;
    keep_up(&inner).await;
    remove(&inner, "lake/ingested_objects/_delta_log").await;
    refused(&inner, "it was removed, or not copied").await;
    let findings = repair(memory_lake(inner.clone()), &[]).await.expect("mends");
    assert!(findings.mended.iter().any(|what| what.contains("told of 7 objects")), "{findings:?}");
    assert!(
        findings.lost.len() == 1 && findings.lost[0].contains("what only it knew is gone"),
        "{findings:?}"
    );
    assert_eq!(read_ledger(inner.as_ref()).await, before);
    let mut keys = BTreeSet::new();
    for path in named(&inner, "ingested_objects").await {
        let bytes = inner.get(&path).await.expect("a file").bytes().await.expect("bytes");
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
            .and_then(|reader| reader.build())
            .expect("a Parquet file");
        for batch in reader {
            let batch = batch.expect("rows");
            let column = cast(batch.column_by_name("key").expect("a column"), &DataType::Utf8).expect("text");
            keys.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
    }
    assert_eq!(keys, (0..7).map(|n| object(n).0.key).collect());
    mends(&inner, "once more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_still_lacked_when_its_ledger_was_lost_comes_in() {
    let inner = lake_of(0..4).await;
    let of_12 = object(12).0.id.to_string();
    let inner = dying(&inner, 12, async |copy| {
        let missing = Lake::missing(&memory_lake(copy.clone())).await.expect("a ledger");
        let mut has = false;
        for table in ["cloudflare_firewall", REQUESTS] {
            has |= read_table(copy.as_ref(), table).await.values().flatten().any(|id| id.starts_with(&of_12));
        }
        has && !missing.is_empty()
    })
    .await;
    remove(&inner, "lake/ingested_objects/_delta_log").await;
    let findings = repair(memory_lake(inner.clone()), &[]).await.expect("mends");
    assert!(
        findings.mended.iter().any(|what| what.contains("rows that had landed are brought in")),
        "{findings:?}"
    );
    life(memory_lake(inner.clone()), vec![12], 7).await.expect("lands");
    check(&inner, &rows(&[0, 1, 2, 3, 12].into()), "brought in").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replay_that_died_lands_nothing_twice_though_the_ledger_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let objects = replay_races::objects(dir.path(), 3).await;
    let landed = Arc::new(InMemory::new());
    replay_races::land(memory_lake(landed.clone()), objects.clone()).await;
    let whole = FaultStore::with(Arc::new(landed.fork()), Faults::default());
    replay_races::replay(memory_lake(whole.clone()), u64::MAX).await.expect("nothing fails");
    let puts = whole.puts.lock().clone();
    let mut removals = 0;
    for (n, dies_at) in puts.iter().map(|put| put + 1).enumerate() {
        let inner = Arc::new(landed.fork());
        drop(
            replay_races::replay(
                memory_lake(FaultStore::with(inner.clone(), Faults { dies_at, ..Faults::default() })),
                u64::MAX,
            )
            .await,
        );
        // Of the old ledger its rows are left, or nothing.
        let lost = if n % 2 == 0 { "lake/ingested_objects/_delta_log" } else { "lake/ingested_objects" };
        remove(&inner, lost).await;
        let context = format!("dies at {dies_at}, {lost} lost");
        repair(memory_lake(inner.clone()), &[]).await.unwrap_or_else(|e| panic!("{context}: {e}"));
        let healed = replay_races::replay(memory_lake(inner.clone()), 2)
            .await
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        removals += u64::from(healed.already_there == 7 && healed.removed.rows == 7);
        replay_races::check_rows(&inner, &objects, &context).await;
    }
    assert!(removals > 1, "some died between landing and removal, not {removals}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rejects_that_come_back_are_known_to_have_been_replayed_though_the_ledger_was_lost_meanwhile() {
    let dir = tempfile::tempdir().expect("a folder");
    let objects = replay_races::objects(dir.path(), 3).await;
    for restored in [false, true] {
        let inner = Arc::new(InMemory::new());
        replay_races::land(memory_lake(inner.clone()), objects.clone()).await;
        let early = Arc::new(InMemory::new());
        copy(&inner, "lake/ingested_objects/_delta_log", &early).await;
        replay_races::replay(memory_lake(inner.clone()), u64::MAX).await.expect("lands");
        // Its log is gone; or it is that of before the replay.
        remove(&inner, "lake/ingested_objects/_delta_log").await;
        if restored {
            copy(&early, "lake", &inner).await;
        }
        repair(memory_lake(inner.clone()), &[]).await.expect("mends");
        remove(&inner, "lake/classification_failures/_delta_log").await;
        repair(memory_lake(inner.clone()), &[]).await.expect("mends");
        replay_races::replay(memory_lake(inner.clone()), 2).await.expect("what comes back is known");
        replay_races::check_rows(&inner, &objects, &format!("restored: {restored}")).await;
    }
}

#[test]
fn a_table_by_the_hour_is_made_anew_without_its_configuration() {
    use crate::support::{flarelake, query_one, stdout};
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (lake, logs, config) = (path("lake"), path("logs"), path("flarelake.toml"));
    std::fs::write(&config, "partition = \"hour\"\n").expect("written");
    stdout(&flarelake(&[
        "generate",
        "--log-type",
        "Cloudflare.Firewall",
        "--rows",
        "90",
        "--files",
        "3",
        "--odd",
        "0",
        "--out",
        &logs,
    ]));
    stdout(&flarelake(&["--config", &config, "--lake", &lake, "backfill", &logs]));
    std::fs::remove_dir_all(dir.path().join("lake/cloudflare_firewall/_delta_log")).expect("removed");
    let said = stdout(&flarelake(&["--lake", &lake, "repair"]));
    assert!(
        said.contains("mended: cloudflare_firewall: it was not there; it is made anew, with 90 rows in"),
        "{said}"
    );
    stdout(&flarelake(&["--config", &config, "--lake", &lake, "backfill", &logs]));
    let count = query_one(
        dir.path().join("lake").as_path(),
        "SELECT count(*) - count(DISTINCT p_row_id) * 1000 FROM cloudflare_firewall",
    );
    assert_eq!(count, 90 - 90_000);
}
