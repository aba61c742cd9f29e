//! What others see: writers and maintainers as real processes over one lake, killed at random, while Python's
//! readers count.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use crate::decoding::runs;
use crate::moto::{Moto, python, readers, run, script, skipped};
use crate::support::{command, flarelake, query_one, stdout};
use crate::upkeep::{land_and_keep_up, rows};

const LINES: u64 = 6000;
const CONFIG: &str = "memory = \"64MiB\"\n[flush]\nmax_bytes = \"150KiB\"\n[maintenance]\ncompact_every = \"700ms\"\nvacuum_every = \"2s\"\nvacuum_after = \"20s\"\n";

fn start(arguments: &[&str]) -> Child {
    command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
}

/// Starts each again as often as it ends or is killed, until the time is over.
fn churn(commands: &[Vec<&str>], until: Instant, random: &mut SmallRng) {
    let mut running: Vec<Child> = commands.iter().map(|arguments| start(arguments)).collect();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(50..600)));
        let one = random.random_range(0..running.len());
        let _ = running[one].kill();
        running[one].wait().expect("it ends");
        running[one] = start(&commands[one]);
    }
    for mut child in running {
        let _ = child.kill();
        child.wait().expect("it ends");
    }
}

/// The table's files as the log has them: bytes, first and last time.
fn files(lake: &str, table: &str) -> Vec<Value> {
    let sql = format!(
        "SELECT size, min_event_time, max_event_time FROM lake_files WHERE table_name = '{table}' ORDER BY min_event_time"
    );
    serde_json::from_str(&stdout(&flarelake(&["--lake", lake, "query", "--format", "json", &sql])))
        .expect("JSON")
}

#[test]
fn readers_see_whole_versions_while_writers_and_maintainers_work_and_die() {
    let Some(python) = python() else { return skipped("readers beside upkeep") };
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (logs, lake, config, end) = (path("logs"), path("lake"), path("upkeep.toml"), path("end"));
    let rows = LINES.to_string();
    let generate = [
        "generate",
        "--log-type",
        "Cloudflare.HttpRequest",
        "--rows",
        &rows,
        "--files",
        "150",
        "--span",
        "10d",
        "--gzip",
        "--out",
        &logs,
    ];
    assert!(flarelake(&generate).status.success());
    fs::write(&config, CONFIG).expect("written");
    let with = |command: &[&'static str]| -> Vec<String> {
        ["--config", &config, "--lake", &lake]
            .into_iter()
            .chain(command.iter().copied())
            .map(str::to_owned)
            .collect()
    };
    // The table has to be there before it is watched.
    let first = format!(
        "{logs}/{}",
        fs::read_dir(&logs).expect("logs").next().expect("a file").expect("a file").file_name().display()
    );
    assert!(flarelake(&["--lake", &lake, "backfill", &first]).status.success());
    let table = format!("{lake}/cloudflare_httprequest");
    let mut watch = readers(python, &script("watching.py"));
    let watching = watch
        .args([&table, &end])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let backfill = [with(&["backfill"]), vec![logs.clone()]].concat();
    let maintain = with(&["maintain"]);
    let commands: Vec<Vec<&str>> = [&backfill, &backfill, &maintain, &maintain, &maintain]
        .into_iter()
        .map(|c| c.iter().map(String::as_str).collect())
        .collect();
    let seed = 20_261_124;
    println!("seed {seed}");
    churn(&commands, Instant::now() + Duration::from_secs(25), &mut SmallRng::seed_from_u64(seed));
    // What died is finished by whoever comes next.
    let landed = stdout(&flarelake(&commands[0]));
    assert!(landed.contains(" 0 failed"), "{landed}");
    let once: Vec<&str> = commands[2].iter().copied().chain(["--once"]).collect();
    println!("{}", stdout(&flarelake(&once)));
    fs::write(&end, "").expect("written");
    let watched = watching.wait_with_output().expect("it ends");
    assert!(watched.status.success(), "{}", String::from_utf8_lossy(&watched.stderr));
    let watched: Value = serde_json::from_slice(&watched.stdout).expect("JSON");
    println!("{watched}");
    assert!(watched["versions"].as_u64() > Some(3), "{watched}");
    let lake_path = Path::new(&lake);
    let sql = "SELECT (SELECT count(*) FROM all_logs) + (SELECT count(*) FROM classification_failures)";
    assert_eq!(query_one(lake_path, sql), LINES);
    assert_eq!(query_one(lake_path, "SELECT count(DISTINCT p_row_id) FROM all_logs"), watched["rows"]);
    let files = files(&lake, "cloudflare_httprequest");
    // 10 days from noon on are 11 dates.
    assert_eq!(files.len(), 11, "{files:#?}");
    for pair in files.windows(2) {
        assert!(pair[0]["max_event_time"].as_str() < pair[1]["min_event_time"].as_str(), "{pair:#?}");
    }
    let again = stdout(&flarelake(&once));
    assert!(again.contains("nothing to merge"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_five_hundred_landings_with_upkeep_between_is_read_alike_by_everyone() {
    let Some(python) = python() else { return skipped("reading a table that was kept up") };
    let dir = tempfile::tempdir().expect("a folder");
    let lake = dir.path().join("lake");
    // With FLARE_TEST_RUNS=500 after each of them.
    let landed = land_and_keep_up(&lake, 500, (500 / runs(20)).max(1)).await;
    let expected = rows(&landed)["cloudflare_httprequest"].len() as u64;
    let table = lake.join("cloudflare_httprequest");
    let told: Value =
        serde_json::from_str(&run(readers(python, &script("rounds.py")).arg(&table))).expect("JSON");
    println!("{told}");
    for reader in ["deltalake", "duckdb", "polars", "chdb"] {
        assert_eq!(told[reader], expected, "{reader}: {told}");
    }
    assert!(told["version"].as_u64() > Some(500), "{told}");
    // What old versions needed is gone, and so are most of the log's entries.
    let entries = fs::read_dir(table.join("_delta_log")).expect("a log").count();
    assert!(entries < 100, "{entries} files in the log");
}

#[test]
fn a_lake_on_s3_is_kept_up() {
    let Some(python) = python() else { return skipped("upkeep on S3") };
    let moto = Moto::start(python);
    let dir = tempfile::tempdir().expect("a folder");
    let logs = dir.path().join("logs").to_str().expect("a path").to_owned();
    let generate = [
        "--log-type",
        "Cloudflare.Firewall",
        "--rows",
        "3000",
        "--files",
        "30",
        "--span",
        "3d",
        "--odd",
        "0",
        "--gzip",
        "--out",
        &logs,
    ];
    assert!(flarelake(&[&["generate"], &generate[..]].concat()).status.success());
    run(Command::new(python).arg(script("s3_setup.py")).arg(&moto.endpoint).arg(&logs));
    let lake = |arguments: &[&str]| {
        let arguments = [&["--lake", "s3://lake/some where"], arguments].concat();
        stdout(&moto.flarelake(&arguments).output().expect("it can be started"))
    };
    for day in ["15", "16", "17", ""] {
        lake(&["backfill", &format!("s3://logs/in/firewall_events/202601{day}")]);
    }
    let once = lake(&["maintain", "--once"]);
    assert!(once.contains("merged:"), "{once}");
    let again = lake(&["maintain", "--once"]);
    assert!(again.contains("nothing to merge") && again.contains("nothing to free"), "{again}");
    let count =
        |sql: &str| lake(&["query", "--format", "csv", sql]).lines().last().expect("a row").to_owned();
    assert_eq!(count("SELECT count(*), count(DISTINCT p_row_id) FROM cloudflare_firewall"), "3000,3000");
    // From noon to noon: four dates.
    assert_eq!(count("SELECT count(*) FROM lake_files WHERE table_name = 'cloudflare_firewall'"), "4");
}

#[test]
fn another_engine_that_writes_loses_and_doubles_nothing_or_is_refused() {
    let Some(python) = python() else { return skipped("another engine that writes") };
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (logs, lake) = (path("logs"), path("lake"));
    let generate = [
        "generate",
        "--log-type",
        "Cloudflare.HttpRequest",
        "--rows",
        "400",
        "--files",
        "8",
        "--odd",
        "0",
        "--out",
        &logs,
    ];
    assert!(flarelake(&generate).status.success());
    let mut objects: Vec<_> =
        fs::read_dir(&logs).expect("logs").map(|entry| entry.expect("a file").path()).collect();
    objects.sort();
    let land = |object: &Path| flarelake(&["--lake", &lake, "backfill", object.to_str().expect("a path")]);
    let engine = |does: &str, table: &str| {
        run(Command::new(python).arg(script("foreign.py")).args([does, &format!("{lake}/{table}")]))
    };
    let count = || {
        query_one(
            Path::new(&lake),
            "SELECT count(*) * 1000 + count(DISTINCT p_row_id) FROM cloudflare_httprequest",
        )
    };
    // Between landings another engine does all that is its right.
    for (n, object) in objects.iter().enumerate() {
        stdout(&land(object));
        for table in ["ingested_objects", "cloudflare_httprequest"] {
            engine(["checkpoint", "optimize", "vacuum"][n % 3], table);
        }
    }
    stdout(&flarelake(&["--lake", &lake, "maintain", "--once"]));
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    assert_eq!(count(), 400 * 1001);
    // Rows of a data table are the user's to delete; they don't come back.
    engine("delete", "cloudflare_httprequest");
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    assert_eq!(count(), 0);
    // Rows of the ledger that are added once more are refused, too, until a repair takes them out.
    let told = || {
        query_one(
            Path::new(&lake),
            "SELECT count(*) * 1000 + count(DISTINCT object_id) FROM ingested_objects",
        )
    };
    let before = told();
    engine("append", "ingested_objects");
    let refused = flarelake(&["--lake", &lake, "backfill", &logs]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1)
            && said.contains("another engine added rows")
            && said.contains("flarelake repair"),
        "{said}"
    );
    assert_ne!(told(), before);
    let mended = stdout(&flarelake(&["--lake", &lake, "repair"]));
    assert!(
        mended.contains("8 rows of objects that others of its rows are of, too, are taken out"),
        "{mended}"
    );
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    assert_eq!((told(), count()), (before, 0.into()));
    // Nor are they anyone's to delete.
    engine("delete", "ingested_objects");
    for hidden in [false, true] {
        if hidden {
            engine("checkpoint", "ingested_objects");
        }
        let refused = flarelake(&["--lake", &lake, "backfill", &logs]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            refused.status.code() == Some(1)
                && said.contains("another engine took rows out")
                && said.contains("flarelake repair"),
            "{said}"
        );
    }
    flarelake(&["--lake", &lake, "repair"]);
    stdout(&flarelake(&["--lake", &lake, "maintain", "--once"]));
    assert_eq!(count(), 0);
}

#[test]
fn times_of_far_centuries_stay_what_they_are_in_files_that_other_engines_rewrote() {
    let Some(python) = python() else { return skipped("times of far centuries") };
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (logs, lake) = (path("logs.json"), path("lake"));
    let written = [
        ("a", "Fri, 31 Dec 9999 23:59:59 GMT"),
        ("b", "Mon, 01 Jan 0001 00:00:00 GMT"),
        ("c", "Sat, 01 Jan 2400 00:00:00 GMT"),
    ];
    let record = |(ray, expires): &(&str, &str)| {
        format!(
            r#"{{"EdgeStartTimestamp":"2026-01-15T12:00:00Z","RayID":"{ray}","ClientRequestHost":"example.com","OriginResponseHTTPExpires":"{expires}"}}"#
        )
    };
    fs::write(&logs, written.iter().map(record).collect::<Vec<_>>().join("\n")).expect("written");
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    let sql = "SELECT RayID, OriginResponseHTTPExpires FROM cloudflare_httprequest ORDER BY RayID";
    let times = || stdout(&flarelake(&["--lake", &lake, "query", "--format", "csv", sql]));
    let wanted = "RayID,OriginResponseHTTPExpires\na,9999-12-31T23:59:59Z\nb,0001-01-01T00:00:00Z\nc,2400-01-01T00:00:00Z\n";
    assert_eq!(times(), wanted);
    run(Command::new(python)
        .arg(script("foreign.py"))
        .args(["int96", &format!("{lake}/cloudflare_httprequest")]));
    assert_eq!(times(), wanted);
    // One more file, so that there is something to merge.
    fs::write(&logs, record(&("d", "Thu, 01 Jan 1800 00:00:00 GMT"))).expect("written");
    stdout(&flarelake(&["--lake", &lake, "backfill", &logs]));
    stdout(&flarelake(&["--lake", &lake, "compact"]));
    assert_eq!(files(&lake, "cloudflare_httprequest").len(), 1, "all are merged");
    assert_eq!(times(), format!("{wanted}d,1800-01-01T00:00:00Z\n"));
}
