//! What other engines do to the logs of a lake's tables: restored tables, upgraded protocols, entries and
//! marks that are cleaned up.

use std::collections::BTreeMap;
use std::sync::Arc;

use flarelake::config::Partitioning;
use flarelake::land::batch::Tables;
use flarelake::recover::Mender;
use flarelake::schema::Catalog;
use flarelake::table::{Change, Lake, TableError};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio::runtime::Handle;

use crate::damage::{below, copy, lake_of, mends, refused, remove, repair, table};
use crate::ledger::{land, life};
use crate::support::memory_lake;
use crate::upkeep::maintainer;

async fn keep_up(inner: &Arc<InMemory>) {
    maintainer(memory_lake(inner.clone()), BTreeMap::new())
        .await
        .expect("a lake")
        .once()
        .await
        .expect("upkeep");
}

async fn text(inner: &InMemory, path: &Path) -> String {
    let bytes = inner.get(path).await.expect("an entry").bytes().await.expect("bytes");
    String::from_utf8(bytes.to_vec()).expect("text")
}

async fn entries(inner: &InMemory, table: &str) -> Vec<Path> {
    let listed = below(inner, &format!("lake/{table}/_delta_log")).await;
    listed.into_iter().map(|meta| meta.location).filter(|path| path.extension() == Some("json")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_another_engine_restored_is_refused_until_a_repair_has_brought_in_what_landed_since() {
    for kept_up in [false, true] {
        let inner = lake_of(0..4).await;
        if kept_up {
            keep_up(&inner).await;
        }
        let before = table(&inner, "cloudflare_httprequest").await.version().expect("a version");
        for n in 4..7 {
            life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
        }
        let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
        let restoring =
            table(&inner, "cloudflare_httprequest").await.restore().with_version_to_restore(before);
        let (_, done) = restoring.await.expect("restores");
        assert!(done.num_removed_file > 0, "{done:?}");
        refused(&inner, "another engine restored it to an older version").await;
        // It is in the ledger, and the table gets it after the repair.
        let error = land(lives, vec![7]).await.expect_err("a process that lives finds it, too");
        assert!(error.contains("another engine restored it"), "{error}");
        mends(&inner, &format!("kept up: {kept_up}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_whose_old_entries_another_engine_removed_is_refused_where_no_mark_tells_what_is_settled() {
    // The table lacks nothing; or a writer died before it brought its rows in. Without a settled mark; or
    // with one of before.
    for (died, marked) in [(false, false), (true, false), (false, true), (true, true)] {
        let inner = lake_of(0..6).await;
        if marked {
            keep_up(&inner).await;
        }
        let early = Arc::new(InMemory::new());
        copy(&inner, "lake/cloudflare_httprequest/_delta_log", &early).await;
        life(memory_lake(inner.clone()), vec![6], 6).await.expect("lands");
        if died {
            remove(&inner, "lake/cloudflare_httprequest/_delta_log").await;
            copy(&early, "lake", &inner).await;
        }
        let ledger = table(&inner, "ingested_objects").await.optimize().await.expect("optimizes").0;
        deltalake::checkpoints::create_checkpoint(&ledger, None).await.expect("a checkpoint");
        let all = entries(&inner, "ingested_objects").await;
        for entry in &all[..all.len() - 1] {
            inner.delete(entry).await.expect("deleted");
        }
        let words =
            if marked { "no checkpoint tells that it was settled" } else { "and nothing tells whether " };
        refused(&inner, words).await;
        let findings = mends(&inner, &format!("died: {died}, marked: {marked}")).await;
        assert_eq!(findings.mended.iter().any(|what| what.contains("are brought in")), died, "{findings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_tell_its_version_of_the_ledger_any_more_is_refused_and_repaired() {
    let inner = lake_of(0..7).await;
    keep_up(&inner).await;
    // As an engine leaves it whose checkpoints drop what has no time to live.
    for path in entries(&inner, "cloudflare_httprequest").await {
        let kept: Vec<String> = text(&inner, &path)
            .await
            .lines()
            .filter(|line| !line.contains("\"txn\""))
            .map(str::to_owned)
            .collect();
        inner.put(&path, kept.join("\n").into()).await.expect("put");
    }
    for meta in below(&inner, "lake/cloudflare_httprequest/_delta_log").await {
        if meta.location.extension() != Some("json") || meta.location.filename() == Some("_last_checkpoint") {
            inner.delete(&meta.location).await.expect("deleted");
        }
    }
    let error = Lake::open(memory_lake(inner.clone())).await.err().expect("refused").to_string();
    assert!(
        error.contains("no commit records its ledger version") && error.contains("flarelake repair"),
        "{error}"
    );
    mends(&inner, "unmarked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_another_engine_upgraded_is_refused_before_anything_lands() {
    for checkpointed in [false, true] {
        let inner = lake_of(0..3).await;
        let lives = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
        let next = entries(&inner, "ingested_objects").await.len();
        let entry = Path::from(format!("lake/ingested_objects/_delta_log/{next:020}.json"));
        inner
            .put(&entry, r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":4}}"#.into())
            .await
            .expect("put");
        if checkpointed {
            let ledger = table(&inner, "ingested_objects").await;
            deltalake::checkpoints::create_checkpoint(&ledger, None).await.expect("a checkpoint");
        }
        let before = below(&inner, "lake").await.len();
        let error = Lake::open(memory_lake(inner.clone())).await.err().expect("refused");
        assert!(
            matches!(error, TableError::Layout { .. }) && error.to_string().contains("its protocol is (1,4)"),
            "{error}"
        );
        let error =
            repair(memory_lake(inner.clone()), &[]).await.expect_err("it can't be written").to_string();
        assert!(error.contains("its protocol is (1,4)"), "{error}");
        // Told again and again, whoever reads it.
        for n in [8, 9] {
            let error = land(lives.clone(), vec![n]).await.expect_err("a process that lives finds it, too");
            assert!(error.contains("its protocol is (1,4)"), "{error}");
        }
        let names = below(&inner, "lake").await;
        let logs = names
            .iter()
            .filter(|meta| meta.location.as_ref().contains("ingested_objects/_delta_log"))
            .count();
        assert_eq!(logs, next + 1 + usize::from(checkpointed) * 2, "nothing was put: {before}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_ledger_that_is_gone_is_told_and_repaired() {
    for kept_up in [false, true] {
        let inner = lake_of(0..7).await;
        if kept_up {
            keep_up(&inner).await;
        }
        let store = memory_lake(inner.clone());
        let files = flarelake::table::open_tables(&store, &["ingested_objects".to_owned()])
            .await
            .expect("opens")
            .remove(0);
        let file = files.expect("is there").files().expect("files").remove(0);
        inner.delete(&file.location(&store, "ingested_objects")).await.expect("deleted");
        if kept_up {
            refused(&inner, "is gone: it was removed, or not copied").await;
        }
        let findings = mends(&inner, &format!("kept up: {kept_up}")).await;
        assert!(
            findings.mended.iter().any(|what| what.contains("is gone, and is not named any more")),
            "{findings:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_not_whole_beyond_a_checkpoint_is_told_and_repaired() {
    for name in ["ingested_objects", "cloudflare_httprequest"] {
        let inner = lake_of(0..3).await;
        keep_up(&inner).await;
        for n in 3..7 {
            life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
        }
        let checkpoint = table(&inner, name).await.version().expect("a version");
        let entry = entries(&inner, name).await.remove(entries(&inner, name).await.len() - 2);
        assert!(entry.as_ref().ends_with(&format!("{:020}.json", checkpoint - 1)), "{entry}");
        let whole = text(&inner, &entry).await;
        for cut in ["", "{}", "{}\n{}\n", "[1]", &whole[..whole.len() / 2], &whole[..whole.len() - 2]] {
            let context = format!("{name}: {cut:?}");
            let broken = Arc::new(inner.fork());
            broken.put(&entry, cut.to_owned().into()).await.expect("put");
            // A data table stops what is to be landed in it.
            let said = life(memory_lake(broken.clone()), vec![8], 8).await.expect_err(&context);
            assert!(said.contains("can't be used") && said.contains("flarelake repair"), "{context}: {said}");
            mends(&broken, &context).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_ours_that_another_engine_overwrote_is_noticed() {
    // As engines do that put without a condition.
    for name in ["ingested_objects", "cloudflare_httprequest"] {
        let inner = lake_of(0..7).await;
        let all = entries(&inner, name).await;
        inner
            .put(&all[all.len() - 3], r#"{"commitInfo":{"operation":"OPTIMIZE"}}"#.into())
            .await
            .expect("put");
        refused(&inner, "another engine put its own entry in the place of one of ours").await;
        mends(&inner, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_repair_finds_to_be_lost_is_told_before_the_lake_is_taken_for_whole() {
    let inner = lake_of(0..5).await;
    remove(&inner, "lake/cloudflare_httprequest").await;
    let tables = Arc::new(Tables::new(&Catalog::embedded(), Partitioning::Day));
    let (store, mut told) = (memory_lake(inner.clone()), Vec::new());
    let mender = Mender { store, tables, searched: Vec::new(), target: 1 << 20, memory: 64 << 20 };
    let opens = || {
        tokio::task::block_in_place(|| {
            Handle::current().block_on(Lake::open(memory_lake(inner.clone()))).is_ok()
        })
    };
    mender.run(&mut |findings| told.push((findings.lost.len(), opens()))).await.expect("mends");
    assert_eq!(told, [(1, false), (0, true)], "what is lost, and whether the lake is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_that_was_made_append_only_are_not_taken_out() {
    let inner = lake_of(0..3).await;
    let log = entries(&inner, "cloudflare_httprequest").await;
    let first = text(&inner, &log[0]).await;
    let layout = first.lines().find(|line| line.contains("metaData")).expect("a layout");
    let only = layout.replace(r#""delta.appendOnly":"false""#, r#""delta.appendOnly":"true""#);
    assert_ne!(only, layout);
    let next = Path::from(format!("lake/cloudflare_httprequest/_delta_log/{:020}.json", log.len()));
    inner.put(&next, only.into()).await.expect("put");
    let store = memory_lake(inner.clone());
    let mut kept = flarelake::table::Upkeep::open(&store, "cloudflare_httprequest")
        .await
        .expect("opens")
        .expect("is there");
    let files = kept.snapshot().files().expect("files");
    let error = kept.replace(Change::Delete, &files, &[], 0).await.expect_err("refused").to_string();
    assert!(error.contains("delta.appendOnly"), "{error}");
    // The same rows in other files are allowed.
    kept.replace(Change::Compact { target: 1 }, &files[..1], &files[..1], 0).await.expect("merges");
}
