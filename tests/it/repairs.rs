//! What `flarelake repair` makes of a lake whose parts don't fit together any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use flarelake::table::Lake;
use futures::FutureExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};

use crate::damage::{below, copy, is_damaged, lake_of, mends, refused, remove, repair, table};
use crate::decoding::runs;
use crate::ledger::{land, life};
use crate::support::{FaultStore, Faults, Meanwhile, memory_lake};
use crate::upkeep::{check, maintainer, rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_fills_the_ledger_up_from_the_tables() {
    for checkpointed in [false, true] {
        let inner = lake_of(0..4).await;
        let early = Arc::new(InMemory::new());
        copy(&inner, "lake/ingested_objects", &early).await;
        for n in 4..7 {
            life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
        }
        if checkpointed {
            maintainer(memory_lake(inner.clone()), BTreeMap::new())
                .await
                .expect("a lake")
                .once()
                .await
                .expect("upkeep");
        }
        // An older copy of the ledger was put back.
        let restored = Arc::new(inner.fork());
        remove(&restored, "lake/ingested_objects").await;
        copy(&early, "lake", &restored).await;
        let findings = mends(&restored, "restored").await;
        assert!(findings.mended.iter().any(|what| what.contains("told of 3 objects")), "{findings:?}");
        // It was removed.
        let removed = Arc::new(inner.fork());
        remove(&removed, "lake/ingested_objects").await;
        let findings = mends(&removed, "removed").await;
        assert!(findings.mended.iter().any(|what| what.contains("told of 7 objects")), "{findings:?}");
        assert!(findings.lost.iter().any(|what| what.contains("flarelake reconcile")), "{findings:?}");
        // It was removed while a process lives, which then put a version into the empty log.
        let stray = Arc::new(inner.fork());
        let lives = Arc::new(Lake::open(memory_lake(stray.clone())).await.expect("opens"));
        remove(&stray, "lake/ingested_objects").await;
        land(lives, vec![20]).await.expect_err("nothing lands in a log that is gone");
        let findings = mends(&stray, "removed under a process that lives").await;
        assert!(findings.mended.iter().any(|what| what.contains("set aside")), "{findings:?}");
        // Another engine took its rows out.
        let ledger = table(&inner, "ingested_objects").await;
        ledger.delete().await.expect("deletes");
        refused(&inner, "another engine took rows out").await;
        mends(&inner, "deleted by another engine").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_removes_wrong_hints_and_makes_missing_tables_anew() {
    let inner = lake_of(0..7).await;
    let copied = Arc::new(inner.fork());
    maintainer(memory_lake(inner.clone()), BTreeMap::new())
        .await
        .expect("a lake")
        .once()
        .await
        .expect("upkeep");
    for name in ["ingested_objects", "cloudflare_httprequest"] {
        let hint = Path::from(format!("lake/{name}/_delta_log/_last_checkpoint"));
        let bytes = inner.get(&hint).await.expect("a hint").bytes().await.expect("bytes");
        copied.put(&hint, bytes.into()).await.expect("put");
    }
    let findings = mends(&copied, "copied while it was written").await;
    assert_eq!(findings.mended.len(), 2, "{findings:?}");
    // A table is gone: its rows are, too, and the rest goes on.
    let purged = lake_of(0..7).await;
    remove(&purged, "lake/classification_failures").await;
    let error = Lake::open(memory_lake(purged.clone())).await.err().expect("refused");
    is_damaged(&error, "gives it files, but it is not there");
    let findings = repair(memory_lake(purged.clone()), &[]).await.expect("mends");
    assert!(
        findings.mended[0].contains("classification_failures: it was not there; it is made anew"),
        "{findings:?}"
    );
    assert!(
        findings.lost.iter().any(|what| what.contains("2 rows") || what.contains("1 rows")),
        "{findings:?}"
    );
    life(memory_lake(purged.clone()), (0..9).collect(), 3).await.expect("lands");
    let mut left = rows(&(0..9).collect());
    // Of those that landed before, 0 and 4 had a reject.
    let of_8 = crate::ledger::object(8).0.id.to_string();
    left.get_mut("classification_failures").expect("rejects").retain(|id| id.starts_with(&of_8));
    check(&purged, &left, "without its rejects of before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_does_without_checkpoints_that_cannot_be_read() {
    for name in ["ingested_objects", "cloudflare_httprequest"] {
        // With the entries below the checkpoint, and without.
        for cleaned in [false, true] {
            let inner = lake_of(0..7).await;
            maintainer(memory_lake(inner.clone()), BTreeMap::new())
                .await
                .expect("a lake")
                .once()
                .await
                .expect("upkeep");
            let log = below(&inner, &format!("lake/{name}/_delta_log")).await;
            let is_checkpoint = |meta: &&ObjectMeta| meta.location.to_string().contains(".checkpoint.");
            let newest = log
                .iter()
                .filter(is_checkpoint)
                .map(|meta| meta.location.clone())
                .max()
                .expect("a checkpoint");
            if cleaned {
                for meta in log.iter().filter(|meta| meta.location < newest) {
                    inner.delete(&meta.location).await.expect("deleted");
                }
            }
            let whole = inner.get(&newest).await.expect("a checkpoint").bytes().await.expect("bytes");
            let mut flipped = whole.to_vec();
            flipped[whole.len() / 3..whole.len() / 2].fill(0x5a);
            for broken in [Vec::new(), whole[..whole.len() / 2].to_vec(), flipped] {
                let context =
                    format!("{name}, cleaned up: {cleaned}, {} of {} bytes", broken.len(), whole.len());
                let damaged = Arc::new(inner.fork());
                damaged.put(&newest, broken.into()).await.expect("put");
                let findings = mends(&damaged, &context).await;
                assert!(
                    findings.mended.iter().any(|what| what.contains("checkpoint of version")),
                    "{context}: {findings:?}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_written_any_more_costs_only_itself() {
    let inner = lake_of(0..7).await;
    maintainer(memory_lake(inner.clone()), BTreeMap::new())
        .await
        .expect("a lake")
        .once()
        .await
        .expect("upkeep");
    let firewall = "lake/cloudflare_firewall/_delta_log";
    let entries = below(&inner, firewall)
        .await
        .into_iter()
        .filter(|meta| meta.location.extension() == Some("json"))
        .count();
    let upgrade = r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]}}"#;
    inner.put(&Path::from(format!("{firewall}/{entries:020}.json")), upgrade.into()).await.expect("put");
    // Of these two only the second has a row there.
    life(memory_lake(inner.clone()), vec![7], 1).await.expect("what does not concern it lands");
    let refused = life(memory_lake(inner.clone()), vec![9], 1).await.expect_err("it can't be written");
    assert!(
        refused.contains("cloudflare_firewall") && refused.contains("its protocol is (3,7)"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_a_newer_version_is_left_as_it_is() {
    let inner = lake_of(0..3).await;
    let entry = Path::from("lake/ingested_objects/_delta_log/00000000000000000002.json");
    let text = inner.get(&entry).await.expect("an entry").bytes().await.expect("bytes");
    let newer = String::from_utf8(text.to_vec()).expect("text").replace("\"v\":1", "\"v\":9");
    inner.put(&entry, newer.into()).await.expect("put");
    let before = below(&inner, "lake/ingested_objects").await;
    let error = repair(memory_lake(inner.clone()), &[]).await.expect_err("it is not damaged").to_string();
    assert!(
        error.contains("has format 9") && error.contains("upgrade") && !error.contains("flarelake repair"),
        "{error}"
    );
    assert_eq!(below(&inner, "lake/ingested_objects").await, before);
}

/// The repair's findings; then everything lands once more, and each row is there once.
async fn comes_back(inner: &Arc<InMemory>, words: &str, context: &str) {
    refused(inner, words).await;
    mends(inner, context).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_removed_or_restored_is_refused_and_filled_from_the_ledger() {
    for checkpointed in [false, true] {
        let inner = lake_of(0..4).await;
        let early = Arc::new(InMemory::new());
        copy(&inner, "lake/cloudflare_httprequest/_delta_log", &early).await;
        for n in 4..7 {
            life(memory_lake(inner.clone()), vec![n], n).await.expect("lands");
        }
        if checkpointed {
            maintainer(memory_lake(inner.clone()), BTreeMap::new())
                .await
                .expect("a lake")
                .once()
                .await
                .expect("upkeep");
        }
        // Its log alone was removed: the files are there.
        let removed = Arc::new(inner.fork());
        remove(&removed, "lake/cloudflare_httprequest/_delta_log").await;
        let words = if checkpointed { "others were removed" } else { "gives it files, but it is not there" };
        comes_back(&removed, words, "without its log").await;
        // Its log alone was restored.
        if checkpointed {
            let restored = Arc::new(inner.fork());
            remove(&restored, "lake/cloudflare_httprequest/_delta_log").await;
            copy(&early, "lake", &restored).await;
            comes_back(&restored, "it was restored from an older copy", "restored").await;
        }
        // An entry in its middle is gone, or cut, or empty.
        if !checkpointed {
            let entry = Path::from("lake/cloudflare_httprequest/_delta_log/00000000000000000003.json");
            let whole = inner.get(&entry).await.expect("an entry").bytes().await.expect("bytes");
            let gap = Arc::new(inner.fork());
            gap.delete(&entry).await.expect("deleted");
            comes_back(&gap, "has a gap before version 4", "with a gap").await;
            for length in [0, whole.len() / 3, whole.len() * 2 / 3, whole.len() - 2] {
                let cut = Arc::new(inner.fork());
                cut.put(&entry, whole.slice(..length).into()).await.expect("put");
                mends(&cut, &format!("cut to {length} of {} bytes", whole.len())).await;
            }
        }
        // It was removed with its files: what is lost is said.
        remove(&inner, "lake/cloudflare_httprequest").await;
        refused(&inner, words).await;
        let findings = repair(memory_lake(inner.clone()), &[]).await.expect("mends");
        assert!(
            findings
                .lost
                .iter()
                .any(|what| what.starts_with("cloudflare_httprequest: of 14 rows that landed, 14 are")),
            "{findings:?}"
        );
        life(memory_lake(inner.clone()), (0..9).collect(), 3).await.expect("lands");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_ledger_that_is_not_whole_is_refused() {
    let inner = lake_of(0..7).await;
    let entry = Path::from("lake/ingested_objects/_delta_log/00000000000000000007.json");
    let whole = inner.get(&entry).await.expect("an entry").bytes().await.expect("bytes");
    for length in [0, 1, whole.len() / 3, whole.len() * 2 / 3, whole.len() * 9 / 10, whole.len() - 2] {
        let cut = Arc::new(inner.fork());
        cut.put(&entry, whole.slice(..length).into()).await.expect("put");
        let error = Lake::open(memory_lake(cut.clone())).await.err().expect("refused").to_string();
        assert!(error.contains("log entry 7 can't be used") && error.contains("flarelake repair"), "{error}");
        mends(&cut, &format!("cut to {length} of {} bytes", whole.len())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_repair_beside_a_writer_doubles_nothing() {
    let (mut ended, mut operations) = (0, 1);
    for operation in (1..).step_by(if runs(1) > 1 { 1 } else { 9 }) {
        if operation > operations {
            break;
        }
        let inner = lake_of(0..3).await;
        // At some moment of the repair another process lands an object.
        let others = inner.clone();
        let meanwhile: Meanwhile = Arc::new(move || {
            let others = others.clone();
            async move { drop(life(memory_lake(others), vec![8], 8).await) }.boxed()
        });
        let store = FaultStore::meanwhile(inner.clone(), operation, meanwhile);
        let done = repair(memory_lake(store.clone()), &[]).await;
        operations = store.operations.load(std::sync::atomic::Ordering::SeqCst);
        match done {
            Ok(_) => ended += 1,
            Err(error) => assert!(error.to_string().contains("stop every writer"), "{error}"),
        }
        life(memory_lake(inner.clone()), (0..10).collect(), 3).await.expect("lands");
        check(&inner, &rows(&(0..10).collect()), &format!("landed before operation {operation} of a repair"))
            .await;
    }
    assert!(ended > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_drops_what_is_gone_and_brings_in_the_rest() {
    let inner = lake_of(0..3).await;
    let mut dies = 40;
    while Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger").len() < 2 {
        dies += 1;
        let dying =
            memory_lake(FaultStore::with(inner.clone(), Faults { dies_at: dies, ..Faults::default() }));
        drop(life(dying, vec![12 * dies], 7).await);
    }
    let missing = Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger");
    let (name, files) = missing.iter().next().expect("some");
    inner.delete(&files[0].location(&memory_lake(inner.clone()), name)).await.expect("deleted");
    let findings = repair(memory_lake(inner.clone()), &[]).await.expect("mends");
    assert!(
        findings.mended.iter().any(|what| what.contains(&files[0].path) && what.contains("is gone")),
        "{findings:?}"
    );
    assert!(
        findings
            .lost
            .iter()
            .any(|what| what.starts_with(name) && what.contains("are in no file of its folder")),
        "{findings:?}"
    );
    assert!(Lake::missing(&memory_lake(inner.clone())).await.expect("a ledger").is_empty());
}

#[test]
fn a_removed_ledger_is_mended_at_the_command_line() {
    use crate::support::{flarelake, query_one, stdout};
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (lake, logs) = (path("lake"), path("logs"));
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
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    let typo = flarelake(&["--lake", &path("typo"), "repair"]);
    assert!(
        String::from_utf8_lossy(&typo.stderr).contains("there is no lake")
            && !dir.path().join("typo").exists()
    );
    let whole = stdout(&flarelake(&["--lake", &lake, "repair"]));
    assert!(whole.starts_with("nothing to mend"), "{whole}");
    std::fs::remove_dir_all(dir.path().join("lake/ingested_objects")).expect("removed");
    let refused = flarelake(&["--lake", &lake, "backfill", &logs]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("flarelake repair"), "{said}");
    assert!(!dir.path().join("lake/ingested_objects/_delta_log").exists(), "no second ledger");
    let repaired = flarelake(&["--lake", &lake, "repair"]);
    assert_eq!(
        repaired.status.code(),
        Some(1),
        "something is lost: {}",
        String::from_utf8_lossy(&repaired.stderr)
    );
    let said = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert!(said.contains("mended: ingested_objects: told of 3 objects"), "{said}");
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    let count = query_one(
        dir.path().join("lake").as_path(),
        "SELECT count(*) - count(DISTINCT p_row_id) * 1000 FROM cloudflare_firewall",
    );
    assert_eq!(count, 90 - 90_000);
}
