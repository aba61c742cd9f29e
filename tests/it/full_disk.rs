//! A lake on a disk that is full: nothing is lost, it is said, and it goes on when there is room again. And
//! what decoding takes in memory, whatever comes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use flarelake::base::store::Store;
use flarelake::table::Lake;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio_util::sync::CancellationToken;

use crate::service::Stage;
use crate::support::{Faults, command, flarelake, peak_mib, query_one, stdout};

/// A small disk of its own, in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    /// None where this user may not mount.
    fn new(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(dir.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        let _ = writeln!(std::io::stderr(), "\n1 skipped: a full disk: this user may not mount one");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it up but for so many bytes.
    fn fill(&self, but: usize) -> PathBuf {
        let filler = self.path().join("filler");
        let mut file = fs::File::create(&filler).expect("created");
        let block = vec![0; 64 << 10];
        while file.write_all(&block).is_ok() {}
        let size = file.metadata().expect("there").len();
        file.set_len(size.saturating_sub(but as u64)).expect("cut");
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.expect("an entry"));
    entries.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

#[test]
fn a_backfill_onto_a_full_disk_says_so_and_the_next_one_lands_everything_once() {
    let Some(disk) = Disk::new(48) else { return };
    let logs = tempfile::tempdir().expect("a folder");
    let generated = ["--log-type", "Cloudflare.HttpRequest", "--rows", "30000", "--files", "3", "--gzip"];
    stdout(&flarelake(&[&["generate", "--out", text(logs.path())], &generated[..]].concat()));
    let lake = disk.path().join("lake");
    // Enough to begin with; too little for the tables' files, for what is spilled, and for log entries.
    for left in [1 << 20, 200 << 10, 8 << 10] {
        let filler = disk.fill(left);
        let mut backfill = command(&["--lake", text(&lake), "backfill", text(logs.path())]);
        let output = backfill.env("FLARELAKE_MEMORY", "64MiB").output().expect("started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{left} bytes left: {said}");
        assert!(said.contains("No space left on device") && said.contains("lake"), "{left} left: {said}");
        fs::remove_file(filler).expect("room again");
        // What was begun is no more than a few files; nothing is half there.
        let staged = files(&lake).into_iter().filter(|file| text(file).contains('#')).count();
        assert_eq!(staged, 0, "{left} bytes left: staging files stay behind");
    }
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(logs.path())]));
    let rows = "SELECT count(*) FROM (SELECT p_row_id FROM cloudflare_httprequest UNION ALL SELECT p_row_id FROM classification_failures)";
    assert_eq!(query_one(&lake, rows), 30_000);
    assert_eq!(query_one(&lake, &rows.replace("count(*)", "count(DISTINCT p_row_id)")), 30_000);
    assert_eq!(query_one(&lake, "SELECT count(*) FROM ingested_objects"), 3);
    // Nor does a merge that has no room take anything away.
    let more = tempfile::tempdir().expect("a folder");
    let generated = ["--log-type", "Cloudflare.HttpRequest", "--rows", "3000", "--seed", "2"];
    stdout(&flarelake(&[&["generate", "--out", text(more.path())], &generated[..]].concat()));
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(more.path())]));
    let filler = disk.fill(64 << 10);
    let output = flarelake(&["--lake", text(&lake), "compact"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(query_one(&lake, rows), 33_000);
    fs::remove_file(filler).expect("room again");
    let merged = stdout(&flarelake(&["--lake", text(&lake), "compact"]));
    assert!(merged.contains("merged:  "), "{merged}");
    assert_eq!(query_one(&lake, rows), 33_000);
    assert_eq!(query_one(&lake, &rows.replace("count(*)", "count(DISTINCT p_row_id)")), 33_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_waits_while_the_disk_is_full_and_goes_on_when_there_is_room() {
    let Some(disk) = Disk::new(24) else { return };
    let path = disk.path().join("lake");
    let stage = Stage::new(Duration::from_secs(2));
    let store = Store::open(text(&path), &Default::default()).await.expect("a folder");
    let mut ingest = stage.ingest(Faults::default()).await;
    ingest.lake = Arc::new(Lake::open(store).await.expect("opens"));
    ingest.pace.until_idle = None;
    let filler = disk.fill(4 << 10);
    for n in 0..20 {
        stage.put(&format!("logs/{n}.log"), n);
    }
    let (metrics, stop) = (ingest.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(ingest.run(stop.clone()));
    let until = async |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let minute = Duration::from_secs(60);
    tokio::time::timeout(minute, until(&|| metrics.flush_errors.get() >= 2)).await.expect("it is tried");
    let told = metrics.readiness().expect_err("it is told");
    assert!(told.contains("No space left on device"), "{told}");
    assert_eq!(stage.queue.len(), 20, "no message is deleted");
    fs::remove_file(filler).expect("room again");
    tokio::time::timeout(minute, until(&|| stage.queue.is_empty())).await.expect("it goes on");
    assert_eq!(metrics.readiness(), Ok(()));
    stop.cancel();
    running.await.expect("no panic").expect("ends");
    assert_eq!(query_one(&path, "SELECT count(*) FROM ingested_objects"), 20);
    let counts = BTreeMap::from([("cloudflare_httprequest", 40), ("classification_failures", 5)]);
    for (table, rows) in counts {
        assert_eq!(
            query_one(&path, &format!("SELECT count(DISTINCT p_row_id) FROM {table}")),
            rows,
            "{table}"
        );
    }
}

#[test]
fn known_ids_are_told_exactly_where_there_is_no_room_for_their_file() {
    // Room for none of it; for what is gathered, and not for the sorted file.
    for mib in [1, 24] {
        let Some(disk) = Disk::new(mib) else { return };
        let test = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "ids::ids_that_lie_in_a_file_are_told_exactly"])
            .env("TMPDIR", disk.path())
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&test.stdout).into_owned();
        assert!(test.status.success() && said.contains("1 passed"), "{mib} MiB: {said}");
    }
}

fn gzip(path: &Path, write: impl FnOnce(&mut GzEncoder<fs::File>)) {
    let mut encoder = GzEncoder::new(fs::File::create(path).expect("created"), Compression::fast());
    write(&mut encoder);
    encoder.finish().expect("written");
}

#[test]
fn lists_of_millions_and_rows_of_a_few_bytes_keep_to_the_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let (lists, narrow) = (dir.path().join("lists"), dir.path().join("narrow"));
    fs::create_dir_all(&lists).expect("a folder");
    fs::create_dir_all(&narrow).expect("a folder");
    let many = format!("[{}1]", "1,".repeat(7_000_000));
    for n in 0..4 {
        gzip(&lists.join(format!("{n}.log.gz")), |to| {
            for ray in 0..2 {
                writeln!(
                    to,
                    "{{\"EdgeStartTimestamp\":1653974623,\"RayID\":\"{n}{ray}\",\"FirewallMatchesRuleIDs\":{many}}}"
                )
                .expect("written");
            }
            writeln!(
                to,
                "{{\"EdgeStartTimestamp\":1653974623,\"RayID\":\"s\",\"FirewallMatchesRuleIDs\":[1,\"b\"]}}"
            )
            .expect("written");
        });
    }
    gzip(&narrow.join("0.log.gz"), |to| {
        (0..400_000).for_each(|_| writeln!(to, "{{\"EdgeStartTimestamp\":1653974623}}").expect("written"));
    });
    for (folder, rows) in [(&lists, 12), (&narrow, 400_000)] {
        let lake = dir.path().join(format!("lake-{rows}"));
        let mut backfill = command(&["--lake", text(&lake), "backfill", "--workers", "1", text(folder)]);
        backfill.env("FLARELAKE_MEMORY", "64MiB");
        let peak = peak_mib(backfill);
        assert!(peak < 64 + 150, "{}: {peak} MiB at the peak", folder.display());
        assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_httprequest"), rows);
    }
    let lake = dir.path().join("lake-12");
    let count = |condition: &str| {
        query_one(&lake, &format!("SELECT count(*) FROM cloudflare_httprequest WHERE {condition}"))
    };
    // What does not fit is rescued as it came.
    assert_eq!(
        count(
            "FirewallMatchesRuleIDs IS NULL AND length(p_rescued_data['FirewallMatchesRuleIDs']) = 14000003"
        ),
        8
    );
    assert_eq!(count("FirewallMatchesRuleIDs = ['1', 'b']"), 4);
}
