//! Real parts: S3's wire, by moto's server, and the readers people use, Python deltalake, DuckDB, Polars,
//! chDB and PyArrow.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::moto::{Moto, python, readers, run, script, skipped};
use crate::support::{flarelake, stdout};

#[test]
fn the_same_journey_over_s3() {
    let Some(python) = python() else { return skipped("the journey over S3") };
    let dir = tempfile::tempdir().expect("a folder");
    let logs = dir.path().join("logs");
    for (log_type, rows) in [("Cloudflare.HttpRequest", "900"), ("Cloudflare.Spectrum", "300")] {
        let arguments = [
            "generate",
            "--log-type",
            log_type,
            "--rows",
            rows,
            "--files",
            "6",
            "--odd",
            "0",
            "--gzip",
            "--out",
            logs.to_str().expect("a path"),
        ];
        assert!(flarelake(&arguments).status.success());
    }
    let moto = Moto::start(python);
    run(Command::new(python).arg(script("s3_setup.py")).arg(&moto.endpoint).arg(&logs));
    let lake = "s3://lake/some/prefix";
    let backfill =
        |path: &str| stdout(&moto.flarelake(&["--lake", lake, "backfill", path]).output().expect("started"));
    // A prefix cut short, then a pattern, then all: each object lands once.
    let part = backfill("s3://logs/in/http_re");
    assert!(part.contains("objects: 6 landed") && part.contains("cloudflare_httprequest 900"), "{part}");
    let pattern = backfill("s3://logs/in/*_events/*/*.gz");
    assert!(
        pattern.contains("objects: 6 landed") && pattern.contains("cloudflare_spectrum 300"),
        "{pattern}"
    );
    let all = backfill("s3://logs");
    assert!(all.contains("0 landed, 12 already there, 2 skipped"), "{all}");
    let sql = "SELECT p_log_type, count(*) AS n, count(DISTINCT p_row_id) AS d FROM all_logs GROUP BY p_log_type ORDER BY n";
    let rows = stdout(
        &moto.flarelake(&["--lake", lake, "query", "--format", "ndjson", sql]).output().expect("started"),
    );
    assert_eq!(
        rows,
        "{\"p_log_type\":\"Cloudflare.Spectrum\",\"n\":300,\"d\":300}\n{\"p_log_type\":\"Cloudflare.HttpRequest\",\"n\":900,\"d\":900}\n"
    );
    let object = stdout(
        &moto
            .flarelake(&[
                "--lake",
                lake,
                "query",
                "--format",
                "ndjson",
                "SELECT bucket, max(length(etag)) AS etag FROM ingested_objects GROUP BY bucket",
            ])
            .output()
            .expect("started"),
    );
    assert_eq!(object, "{\"bucket\":\"logs\",\"etag\":32}\n");
    // Two processes at once into a new lake.
    let other = "s3://lake/raced";
    let children: Vec<Child> = (0..2)
        .map(|_| {
            moto.flarelake(&["--lake", other, "backfill", "s3://logs/in/"])
                .stdout(Stdio::null())
                .spawn()
                .expect("started")
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    let sql = "SELECT count(*) AS n, count(DISTINCT p_row_id) AS d FROM all_logs";
    let rows = stdout(
        &moto.flarelake(&["--lake", other, "query", "--format", "ndjson", sql]).output().expect("started"),
    );
    assert_eq!(rows, "{\"n\":1200,\"d\":1200}\n");
    let missing =
        moto.flarelake(&["--lake", lake, "backfill", "s3://no-such-bucket/x"]).output().expect("started");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-bucket"));
}

#[test]
fn other_engines_read_the_same_types_and_values() {
    let Some(python) = python() else { return skipped("reading the tables with other engines") };
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake) = (dir.path().join("a.log"), dir.path().join("lake"));
    fs::copy(script("../data/readers.ndjson"), &log).expect("copied");
    stdout(&flarelake(&[
        "--lake",
        lake.to_str().expect("a path"),
        "backfill",
        log.to_str().expect("a path"),
    ]));
    let said = run(readers(python, &script("readers.py")).arg(&lake));
    assert!(said.contains("all readers agree"), "{said}");
    // What README shows runs as it stands there, next to a folder of that name.
    let readme = include_str!("../../README.md");
    let snippet = readme
        .split("```python\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("README has a snippet");
    assert!(
        ["DeltaTable(", "scan_delta(", "duckdb.sql("].iter().all(|reader| snippet.contains(reader)),
        "{snippet}"
    );
    let shown = dir.path().join("shown.py");
    fs::write(&shown, snippet).expect("written");
    run(readers(python, &shown).current_dir(dir.path()));
}
