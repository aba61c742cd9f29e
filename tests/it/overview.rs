//! What is there, how fresh it is, and what the schemas don't know: `tables` and `schema drift`.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{flarelake, stdout};

const RECORDS: &str = r#"{"EdgeStartTimestamp":"2026-01-15T10:00:00.5Z","ClientIP":"192.0.2.1","EdgeResponseStatus":200,"JA4":"t13d"}
{"EdgeStartTimestamp":"2026-01-16T10:00:00Z","ClientIP":"192.0.2.1","EdgeResponseStatus":70000,"JA4":null,"BotTags":["a"]}
{"EdgeStartTimestamp":"2026-01-17T10:00:00Z","ClientIP":"192.0.2.1","EdgeResponseStatus":"many","JA4":"q\u0027x","BotTags":["b",{"c":1}],"New":1.5}
{"EdgeStartTimestamp":"2026-01-18T10:00:00Z","ClientIP":"192.0.2.1","SecurityAction":"block","WAFAction":"log","New":17}
{"Datetime":"2026-01-15T10:05:00Z","Source":"waf","RuleID":"r","New":{"a":true}}
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn lake() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("all.log"), RECORDS).expect("written");
    stdout(&flarelake(&[
        "--lake",
        text(&dir.path().join("lake")),
        "backfill",
        text(&dir.path().join("all.log")),
    ]));
    dir
}

fn ask(dir: &tempfile::TempDir, arguments: &[&str]) -> Vec<Value> {
    let said = stdout(&flarelake(
        &[&["--lake", text(&dir.path().join("lake"))], arguments, &["--format", "ndjson"]].concat(),
    ));
    said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn tables_tell_rows_files_bytes_and_times() {
    let dir = lake();
    let tables = ask(&dir, &["tables"]);
    let of = |name: &str| {
        tables.iter().find(|t| t["table_name"] == name).unwrap_or_else(|| panic!("{name}: {tables:?}"))
    };
    let http = of("cloudflare_httprequest");
    assert_eq!((&http["kind"], &http["rows"], &http["files"]), (&json!("table"), &json!(4), &json!(4)));
    assert_eq!(
        (&http["oldest"], &http["newest"]),
        (&json!("2026-01-15T10:00:00.500Z"), &json!("2026-01-18T10:00:00Z"))
    );
    let files = walkdir::WalkDir::new(dir.path().join("lake/cloudflare_httprequest")).into_iter().flatten();
    let sizes = files
        .filter(|f| f.path().extension().is_some_and(|e| e == "parquet"))
        .map(|f| f.metadata().expect("a file").len());
    assert_eq!(http["bytes"], json!(sizes.sum::<u64>()));
    assert!(http["last_written"].as_str().expect("a time") > "2026-01-18", "{http}");
    assert_eq!((&of("cloudflare_spectrum")["rows"], &of("ingested_objects")["rows"]), (&json!(0), &json!(1)));
    assert_eq!((&of("all_logs")["kind"], &of("all_logs")["rows"]), (&json!("view"), &Value::Null));
}

#[test]
fn drift_tells_fields_that_no_column_took() {
    let dir = lake();
    let drift = ask(&dir, &["schema", "drift", "--since", "9000d"]);
    let told = |row: &Value| {
        let part = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {}: {}",
            part("log_type"),
            part("field"),
            part("documented"),
            row["values"],
            part("looks_like")
        )
    };
    assert_eq!(
        drift.iter().map(told).collect::<Vec<_>>(),
        [
            "Cloudflare.Firewall New - 1: object 1",
            "Cloudflare.HttpRequest JA4 - 3: string 2, null 1",
            "Cloudflare.HttpRequest BotTags - 2: array 2",
            "Cloudflare.HttpRequest EdgeResponseStatus smallint 2: integer 1, string 1",
            "Cloudflare.HttpRequest New - 2: integer 1, number 1",
            "Cloudflare.HttpRequest SecurityAction string 1: string 1",
        ]
    );
    let status = drift.iter().find(|row| row["field"] == "EdgeResponseStatus").expect("the field");
    assert_eq!(
        (&status["first_seen"], &status["last_seen"]),
        (&json!("2026-01-16T10:00:00Z"), &json!("2026-01-17T10:00:00Z"))
    );
    assert_eq!(status["example"], json!("70000"));
    assert_eq!(ask(&dir, &["schema", "drift", "cloudflare_firewall", "--since", "9000d"]).len(), 1);
    assert_eq!(ask(&dir, &["schema", "drift", "--since", "1d"]), Vec::<Value>::new());
}

#[test]
fn plans_are_shown_line_by_line() {
    let dir = lake();
    let plan = stdout(&flarelake(&[
        "--lake",
        text(&dir.path().join("lake")),
        "query",
        "EXPLAIN SELECT ClientIP FROM cloudflare_httprequest",
    ]));
    assert!(
        plan.starts_with("logical_plan:\n")
            && plan.contains("\nphysical_plan:\nDataSourceExec: file_groups={"),
        "{plan}"
    );
}
