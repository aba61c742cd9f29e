//! What a dry run of upkeep foretells is what a run then does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flarelake::base::now_micros;
use flarelake::maintain::{Tidied, UpkeepPreview};
use flarelake::table::{DataFile, Lake};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::ledger::life;
use crate::support::{FaultStore, Faults, at, memory_lake};
use crate::upkeep::{DAY, files, maintain, maintainer_of};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dry_run_tells_is_what_a_run_then_does() {
    let inner = Arc::new(InMemory::new());
    let store = || memory_lake(inner.clone());
    for n in 0..8 {
        life(store(), vec![n], n).await.expect("lands");
    }
    // A writer that dies between the ledger and the tables.
    let mut dies = 40;
    while Lake::missing(&store()).await.expect("a ledger").is_empty() {
        dies += 1;
        let dying =
            memory_lake(FaultStore::with(inner.clone(), Faults { dies_at: dies, ..Faults::default() }));
        drop(life(dying, vec![1000 + dies], 7).await);
    }
    let listing = async || {
        let mut listed: Vec<_> =
            futures::TryStreamExt::try_collect(inner.list(None)).await.expect("a listing");
        listed.sort_by_key(|meta: &object_store::ObjectMeta| meta.location.to_string());
        listed
    };
    let retention = || BTreeMap::from([("cloudflare_firewall".to_owned(), Duration::from_secs(90 * 86_400))]);
    let preview = async |now| {
        let before = listing().await;
        let preview = maintainer_of(at(store(), now), None, retention()).preview().await.expect("an preview");
        assert_eq!(listing().await, before, "a dry run writes nothing");
        preview
    };
    let sorted = |mut tidied: Tidied| {
        tidied.dropped.values_mut().for_each(|files| files.sort_by(|a, b| a.path.cmp(&b.path)));
        tidied
    };
    // Two days on what dead writers left is old enough to go; but not what has landed.
    let now = now_micros() + 2 * DAY;
    let told = preview(now).await;
    let count =
        |files: &BTreeMap<String, Vec<DataFile>>| files.values().flatten().map(|file| file.rows).sum::<u64>();
    assert!(
        count(&told.missing) > 0 && count(&told.tidied.dropped) > 0 && !told.tidied.deleted.is_empty(),
        "{told:?}"
    );
    let counted = async || {
        let tables = files(&inner).await;
        let data = tables.iter().filter(|(name, _)| *name != "ingested_objects");
        data.flat_map(|(_, files)| files).map(|(ids, _)| ids.len() as u64).sum::<u64>()
    };
    let before = counted().await;
    let (compacted, tidied) = maintain(store(), retention(), now).await.expect("upkeep");
    assert_eq!(counted().await, before + count(&told.missing) - count(&told.tidied.dropped));
    let merges = |told: &UpkeepPreview| told.merges.iter().map(|(_, bins)| bins.len() as u64).sum::<u64>();
    assert!(merges(&told) > 0 && compacted.merges >= merges(&told), "{compacted:?}");
    assert_eq!(
        told.tidied.checkpoints.keys().collect::<Vec<_>>(),
        tidied.checkpoints.keys().collect::<Vec<_>>()
    );
    let checkpoints = BTreeMap::new();
    assert_eq!(
        sorted(Tidied { checkpoints: checkpoints.clone(), ..told.tidied }),
        sorted(Tidied { checkpoints, ..tidied })
    );
    // From now on there is nothing to merge: what is told is what is done, to the file.
    for days in [4, 10] {
        let now = now + days * DAY;
        let told = preview(now).await;
        assert_eq!((told.missing.len(), merges(&told)), (0, 0));
        let (_, tidied) = maintain(store(), retention(), now).await.expect("upkeep");
        assert_eq!(told.tidied, tidied, "{days} days on");
        assert!(tidied.log_entries > 0 || days != 10, "{tidied:?}");
    }
}

#[test]
fn a_dry_run_writes_nothing_and_a_wrong_url_makes_no_lake() {
    use crate::support::{flarelake, stdout};
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    for command in
        [&["compact"][..], &["compact", "--dry-run"], &["maintain", "--once"], &["maintain", "--dry-run"]]
    {
        let output = flarelake(&[&["--lake", &path("typo")], command].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("there is no lake"), "{command:?}: {said}");
        assert!(!dir.path().join("typo").exists(), "{command:?}");
    }
    let (lake, logs) = (path("lake"), path("logs"));
    stdout(&flarelake(&[
        "generate",
        "--log-type",
        "Cloudflare.Firewall",
        "--rows",
        "90",
        "--files",
        "9",
        "--odd",
        "0",
        "--out",
        &logs,
    ]));
    for entry in
        walkdir::WalkDir::new(&logs).into_iter().flatten().filter(|entry| entry.file_type().is_file())
    {
        stdout(&flarelake(&["--lake", &lake, "backfill", entry.path().to_str().expect("a path")]));
    }
    let names = || {
        walkdir::WalkDir::new(&lake)
            .into_iter()
            .flatten()
            .map(|entry| entry.into_path())
            .collect::<BTreeSet<_>>()
    };
    let before = names();
    let plan = stdout(&flarelake(&["--lake", &lake, "compact", "--dry-run", "--format", "csv"]));
    assert!(
        plan.starts_with(
            "table,partition,files_in,bytes_in,rows,files_out,why\ncloudflare_firewall,p_event_date=2026-01-1"
        ),
        "{plan}"
    );
    let told = stdout(&flarelake(&["--lake", &lake, "maintain", "--dry-run"]));
    let lines: Vec<&str> = told.lines().collect();
    assert!(
        lines[0].starts_with("would be merged: cloudflare_firewall: ") && lines[0].ends_with(" into 2"),
        "{told}"
    );
    assert_eq!(lines.last(), Some(&"nothing to free"), "{told}");
    assert_eq!(names(), before);
    let wrong = flarelake(&["--lake", &lake, "compact", "--table", "cloudflare_http"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
}
