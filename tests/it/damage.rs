//! What others do to a lake: other engines that write to its tables, parts that are removed, restored, or
//! copied while they are written. Nothing is lost or doubled by it: it is survived, or refused before
//! anything lands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::land::batch::Tables;
use flarelake::recover::{Mender, RepairError};
use flarelake::schema::Catalog;
use flarelake::table::{Findings, Lake, TableError, open_tables};
use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};

use crate::ledger::{land, life};
use crate::support::{FaultStore, Faults, at, memory_lake};
use crate::upkeep::{check, maintainer, rows};

const DAY: i64 = 86_400_000_000;

/// A lake with these objects, each landed by itself.
pub async fn lake_of(numbers: std::ops::Range<u64>) -> Arc<InMemory> {
    let inner = Arc::new(InMemory::new());
    for n in numbers {
        life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
    }
    inner
}

pub async fn below(inner: &InMemory, prefix: &str) -> Vec<ObjectMeta> {
    inner.list(Some(&Path::from(prefix))).try_collect().await.expect("a listing")
}

pub async fn remove(inner: &InMemory, prefix: &str) {
    for meta in below(inner, prefix).await {
        inner.delete(&meta.location).await.expect("deleted");
    }
}

pub async fn copy(inner: &InMemory, prefix: &str, to: &InMemory) {
    for meta in below(inner, prefix).await {
        let bytes = inner.get(&meta.location).await.expect("a file").bytes().await.expect("bytes");
        to.put(&meta.location, bytes.into()).await.expect("put");
    }
}

/// A table of the lake for another engine: deltalake's own commits, checkpoints and all.
pub async fn table(inner: &Arc<InMemory>, name: &str) -> deltalake::DeltaTable {
    let tables = open_tables(&memory_lake(inner.clone()), &[name.to_owned()]).await.expect("opens");
    tables.into_iter().next().flatten().expect("is there").0
}

pub fn is_damaged(error: &TableError, words: &str) {
    let text = error.to_string();
    assert!(
        matches!(error, TableError::Damaged { .. })
            && text.contains(words)
            && text.contains("flarelake repair"),
        "{text}"
    );
}

pub async fn refused(inner: &Arc<InMemory>, words: &str) {
    let before = below(inner, "lake").await.len();
    is_damaged(&Lake::open(memory_lake(inner.clone())).await.err().expect("refused"), words);
    assert_eq!(below(inner, "lake").await.len(), before, "nothing is written to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_writer_landed_is_brought_in_behind_another_engines_checkpoint() {
    // With and without a checkpoint of ours before; the writer dies at every step of its landing.
    for ours in [false, true] {
        let mut brought_in = 0;
        for dies_after in (0..40).skip(usize::from(ours)).step_by(3) {
            let context = format!(
                "with a checkpoint of ours: {ours}, dies after {dies_after} operations of its landing"
            );
            let inner = lake_of(0..3).await;
            if ours {
                maintainer(memory_lake(inner.clone()), BTreeMap::new())
                    .await
                    .expect("a lake")
                    .once()
                    .await
                    .expect("upkeep");
            }
            let opening = FaultStore::with(inner.clone(), Faults::default());
            drop(Lake::open(memory_lake(opening.clone())).await.expect("opens"));
            let opened = opening.operations.load(std::sync::atomic::Ordering::SeqCst);
            let dying = FaultStore::with(
                inner.clone(),
                Faults { dies_at: opened + 1 + dies_after, ..Faults::default() },
            );
            drop(life(memory_lake(dying), vec![12], 7).await);
            let missing = Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger");
            let ledger = table(&inner, "ingested_objects").await;
            deltalake::checkpoints::create_checkpoint(&ledger, None).await.expect("a checkpoint");
            assert_eq!(
                Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger"),
                missing,
                "{context}"
            );
            brought_in += missing.len();
            life(memory_lake(inner.clone()), vec![0, 1, 2, 12], 8).await.expect("lands");
            check(&inner, &rows(&[0, 1, 2, 12].into()), &context).await;
        }
        assert!(brought_in > 0, "no writer died between the ledger and the tables");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_engine_takes_out_of_the_ledger_stop_every_writer() {
    // Seen in the log; or hidden below a checkpoint, where only their number tells.
    for hidden in [false, true] {
        let inner = lake_of(0..8).await;
        maintainer(memory_lake(inner.clone()), BTreeMap::new())
            .await
            .expect("a lake")
            .once()
            .await
            .expect("upkeep");
        let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
        let ledger = table(&inner, "ingested_objects").await;
        let (ledger, deleted) = ledger.delete().await.expect("deletes");
        assert!(deleted.num_removed_files > 0, "{deleted:?}");
        if hidden {
            deltalake::checkpoints::create_checkpoint(&ledger, None).await.expect("a checkpoint");
        }
        refused(&inner, "another engine took rows out").await;
        let error = land(lives, vec![9]).await.expect_err("a process that lives finds it, too");
        assert!(error.contains("another engine took rows out"), "{error}");
    }
}

/// A row of the ledger's files, written into it once more by another engine.
async fn append_again(inner: &Arc<InMemory>, files: usize) -> deltalake::DeltaTable {
    let ledger = table(inner, "ingested_objects").await;
    let store = memory_lake(inner.clone());
    let named = open_tables(&store, &["ingested_objects".to_owned()])
        .await
        .expect("opens")
        .remove(0)
        .expect("is there")
        .files()
        .expect("files");
    let mut again = Vec::new();
    for file in named.iter().take(files) {
        let bytes = inner
            .get(&file.location(&store, "ingested_objects"))
            .await
            .expect("there")
            .bytes()
            .await
            .expect("bytes");
        let rows = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes)
            .and_then(|b| b.build())
            .expect("Parquet");
        again.extend(rows.map(|batch| batch.expect("rows")));
    }
    ledger.write(again).await.expect("writes")
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_engine_adds_to_the_ledger_stop_every_writer_until_a_repair_takes_them_out() {
    // Seen in the log; or only in the rows, from a checkpoint on; merged by the other engine into one file;
    // of some objects and of all.
    for (hidden, optimized, files) in
        [(false, false, 100), (true, false, 100), (false, true, 100), (true, true, 100), (true, true, 2)]
    {
        let context = format!("hidden {hidden}, optimized {optimized}, {files} files");
        let inner = lake_of(0..4).await;
        if hidden {
            maintainer(memory_lake(inner.clone()), BTreeMap::new())
                .await
                .expect("a lake")
                .once()
                .await
                .expect("upkeep");
            life(memory_lake(inner.clone()), vec![4], 4).await.expect("lands");
        }
        let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
        let mut ledger = append_again(&inner, files).await;
        if hidden {
            // An engine that says of new rows that nothing changes.
            let entry = Path::from(format!(
                "lake/ingested_objects/_delta_log/{:020}.json",
                ledger.version().expect("a version")
            ));
            let told = inner.get(&entry).await.expect("there").bytes().await.expect("bytes");
            let told = String::from_utf8_lossy(&told).replace("\"dataChange\":true", "\"dataChange\":false");
            inner.put(&entry, told.into()).await.expect("put");
        }
        if optimized {
            ledger = ledger.optimize().await.expect("optimizes").0;
        }
        if hidden {
            deltalake::checkpoints::create_checkpoint(&ledger, None).await.expect("a checkpoint");
        }
        refused(&inner, "another engine added rows").await;
        if !hidden {
            let error = land(lives, vec![9]).await.expect_err("a process that lives finds it, too");
            assert!(error.contains("another engine added rows"), "{context}: {error}");
        }
        let findings = mends(&inner, &context).await;
        assert!(
            findings.mended.iter().any(|mended| mended.contains("are taken out")) && findings.lost.is_empty(),
            "{context}: {findings:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_engines_may_optimize_the_ledger_and_delete_from_data_tables() {
    let inner = lake_of(0..8).await;
    let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
    table(&inner, "ingested_objects").await.optimize().await.expect("optimizes");
    let requests = table(&inner, "cloudflare_httprequest").await;
    let (requests, _) = requests.optimize().await.expect("optimizes");
    deltalake::checkpoints::create_checkpoint(&requests, None).await.expect("a checkpoint");
    land(lives, vec![8]).await.expect("a process that lives goes on");
    life(memory_lake(inner.clone()), (0..10).collect(), 1).await.expect("lands");
    check(&inner, &rows(&(0..10).collect()), "optimized").await;
    let (_, deleted) = table(&inner, "cloudflare_firewall").await.delete().await.expect("deletes");
    assert!(deleted.num_removed_files > 0);
    life(memory_lake(inner.clone()), (0..12).collect(), 1).await.expect("lands");
    let mut left = rows(&(0..12).collect());
    // Of the last two none has a row there.
    left.insert("cloudflare_firewall", BTreeSet::new());
    check(&inner, &left, "what was deleted does not come back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_engine_began_before_a_compaction_is_refused_after_it() {
    for name in ["ingested_objects", "cloudflare_httprequest"] {
        let inner = lake_of(0..8).await;
        let [optimizes, deletes] = [table(&inner, name).await, table(&inner, name).await];
        let files = open_tables(&memory_lake(inner.clone()), &[name.to_owned()])
            .await
            .expect("opens")
            .remove(0)
            .expect("is there")
            .files();
        let (compacted, _) = maintainer(memory_lake(inner.clone()), BTreeMap::new())
            .await
            .expect("a lake")
            .once()
            .await
            .expect("upkeep");
        assert!(compacted.merges > 0 && files.expect("files").len() > 2, "{compacted:?}");
        // What is taken out is the same, and what is put in as well: all would be there twice.
        optimizes.optimize().await.map(drop).expect_err("it began before");
        let zone = deletes.delete();
        let zone = if name == "ingested_objects" { zone } else { zone.with_predicate("zone_id = 3") };
        zone.await.map(drop).expect_err("it began before");
        life(memory_lake(inner.clone()), (0..10).collect(), 1).await.expect("lands");
        maintainer(memory_lake(inner.clone()), BTreeMap::new())
            .await
            .expect("a lake")
            .once()
            .await
            .expect("upkeep");
        check(&inner, &rows(&(0..10).collect()), name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_removed_restored_or_copied_too_early_is_refused() {
    let inner = lake_of(0..4).await;
    let early = Arc::new(InMemory::new());
    copy(&inner, "lake/ingested_objects", &early).await;
    let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
    for n in 4..7 {
        life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
    }
    // An older copy of it was put back.
    let restored = Arc::new(inner.fork());
    remove(&restored, "lake/ingested_objects").await;
    copy(&early, "lake", &restored).await;
    refused(&restored, "ends at version 4").await;
    // It was removed, while a process lives.
    remove(&inner, "lake/ingested_objects").await;
    refused(&inner, "it was removed, or not copied").await;
    let error = land(lives, vec![20]).await.expect_err("nothing lands in a log that is gone");
    assert!(error.contains("is gone and no checkpoint stands for it"), "{error}");
    let error = Lake::open(memory_lake(inner.clone())).await.err().expect("refused");
    assert!(matches!(error, TableError::Damaged { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_another_process_made_and_that_was_removed_is_not_made_anew() {
    // Of these only every third has a row in that table.
    let inner = lake_of(1..3).await;
    let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
    life(memory_lake(inner.clone()), vec![3], 3).await.expect("lands");
    remove(&inner, "lake/cloudflare_firewall").await;
    let error = land(lives, vec![6]).await.expect_err("rows of another process would be lost in silence");
    assert!(
        error.contains("gives it files, but it is not there") && error.contains("flarelake repair"),
        "{error}"
    );
    assert!(below(&inner, "lake/cloudflare_firewall/_delta_log").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_beyond_the_log_is_refused() {
    for name in ["ingested_objects", "cloudflare_httprequest"] {
        let inner = lake_of(0..8).await;
        // Copied early, but for the hint, which sorts last.
        let copied = Arc::new(inner.fork());
        maintainer(memory_lake(inner.clone()), BTreeMap::new())
            .await
            .expect("a lake")
            .once()
            .await
            .expect("upkeep");
        let hint = Path::from(format!("lake/{name}/_delta_log/_last_checkpoint"));
        let bytes = inner.get(&hint).await.expect("a hint").bytes().await.expect("bytes");
        copied.put(&hint, bytes.into()).await.expect("put");
        refused(&copied, "was copied while it was written, or restored").await;
        // The same where the log's beginning was cleaned up: nothing is left.
        remove(&copied, &format!("lake/{name}/_delta_log/0000")).await;
        for meta in below(&copied, &format!("lake/{name}/_delta_log")).await {
            if meta.location.filename() != Some("_last_checkpoint") {
                copied.delete(&meta.location).await.expect("deleted");
            }
        }
        refused(&copied, "holds no version at all").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_vacuumed_before_it_was_brought_in_is_never_named() {
    let inner = lake_of(0..3).await;
    let mut dies = 40;
    while Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger").is_empty() {
        dies += 1;
        let dying =
            memory_lake(FaultStore::with(inner.clone(), Faults { dies_at: dies, ..Faults::default() }));
        drop(life(dying, vec![1000 + dies], 7).await);
    }
    let missing = Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger");
    let (name, files) = missing.iter().next().expect("some");
    let lost = files[0].location(&memory_lake(inner.clone()), name);
    inner.delete(&lost).await.expect("deleted");
    let error = Lake::open(memory_lake(inner.clone())).await.err().expect("refused");
    is_damaged(&error, &format!("{}, which landed up to version", files[0].path));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_are_as_old_as_their_rejection() {
    let keep = || BTreeMap::from([("classification_failures".to_owned(), Duration::from_secs(90 * 86_400))]);
    let inner = Arc::new(InMemory::new());
    // Object 4 has a reject, and was written months before it landed.
    let now = 1_780_272_000_000_000 + 200 * DAY;
    life(at(memory_lake(inner.clone()), now), vec![4], 1).await.expect("lands");
    for (days, dropped) in [(0, 0), (89, 0), (91, 1)] {
        let store = at(memory_lake(inner.clone()), now + days * DAY);
        let (_, tidied) = maintainer(store, keep()).await.expect("a lake").once().await.expect("upkeep");
        let rows: u64 = tidied.dropped.values().flatten().map(|file| file.rows).sum();
        assert_eq!(rows, dropped, "{days} days after");
    }
}

/// Mends a lake, and looks through the folders of these tables whatever they look like.
pub async fn repair(store: Store, searched: &[&str]) -> Result<Findings, RepairError> {
    let tables = Arc::new(Tables::new(&Catalog::embedded(), Partitioning::Day));
    let searched = searched.iter().map(|name| (*name).to_owned()).collect();
    let mut findings = Findings::default();
    let mut tell = |told: Findings| {
        findings.mended.extend(told.mended);
        findings.lost.extend(told.lost);
    };
    Mender { store, tables, searched, target: 1 << 20, memory: 64 << 20 }.run(&mut tell).await?;
    Ok(findings)
}

/// Mends a lake in which objects 0 to 6 had landed, lands all of them again and some more, and finds each row
/// once.
pub async fn mends(inner: &Arc<InMemory>, context: &str) -> Findings {
    let findings = repair(memory_lake(inner.clone()), &[]).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    life(memory_lake(inner.clone()), (0..10).collect(), 3).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    maintainer(memory_lake(inner.clone()), BTreeMap::new())
        .await
        .expect("a lake")
        .once()
        .await
        .expect("upkeep");
    check(inner, &rows(&(0..10).collect()), context).await;
    let again = repair(memory_lake(inner.clone()), &[]).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!(again, Findings::default(), "{context}: there is nothing to mend any more");
    findings
}
