//! Statements that a program wrote, or a stranger: thousands of terms, macros in macros, functions that make much of little. Each
//! is answered, or refused at once with what to do, and the process goes on.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{command, flarelake, stdout};

/// A debug build plans some twenty times slower than a release; nothing may take minutes.
const AT_ONCE: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A lake of three requests.
fn lake() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("a.log");
    let line = |n: u32| json!({"EdgeStartTimestamp": format!("2026-01-15T10:00:0{n}Z"), "ClientRequestUserAgent": format!("agent x{n}y"), "ZoneID": n, "RayID": format!("r{n}")});
    std::fs::write(&log, (1..=3).map(|n| format!("{}\n", line(n))).collect::<String>()).expect("written");
    let lake = text(&dir.path().join("lake")).to_owned();
    stdout(&flarelake(&["--lake", &lake, "backfill", text(&log)]));
    (dir, lake)
}

/// Asks by a file: a command line has its own limit.
fn ask(dir: &Path, lake: &str, sql: &str) -> (Output, Duration) {
    let file = dir.join("statement.sql");
    std::fs::write(&file, sql).expect("written");
    let began = Instant::now();
    let output = command(&["--lake", lake, "query", "--format", "ndjson", "-f", text(&file)]).env("FLARELAKE_MEMORY", "64MiB").output();
    (output.expect("started"), began.elapsed())
}

fn answered(dir: &Path, lake: &str, sql: &str) -> Value {
    let (output, took) = ask(dir, lake, sql);
    let shown = &sql[..sql.len().min(80)];
    assert!(took < AT_ONCE, "{shown}: {took:?}");
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{shown}: {e}"))
}

fn refused(dir: &Path, lake: &str, sql: &str) -> String {
    let (output, took) = ask(dir, lake, sql);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = &sql[..sql.len().min(80)];
    assert!(took < AT_ONCE, "{shown}: {took:?}");
    assert_eq!(output.status.code(), Some(1), "{shown}: {}", &told[..told.len().min(500)]);
    assert!(told.len() < 2000, "{shown}: an error of {} bytes", told.len());
    told
}

#[test]
fn thousands_of_terms_are_answered() {
    let (dir, lake) = lake();
    let terms =
        |many: u32, what: &str, between: &str| (0..many).map(|n| what.replace('#', &n.to_string())).collect::<Vec<_>>().join(between);
    for (condition, expected) in [
        (terms(20_000, "ClientRequestUserAgent LIKE '%x#y%'", " OR "), 3),
        (terms(4_000, "ClientRequestUserAgent NOT LIKE '%x#z%'", " AND "), 3),
        (format!("RayID = 'r2' AND {}", terms(2_000, "RayID <> 'x#'", " AND ")), 1),
        (format!("ClientRequestUserAgent LIKE ANY ({})", terms(4_000, "'%x#y%'", ", ")), 3),
        (format!("RayID IN ({})", terms(20_000, "'r#'", ", ")), 3),
    ] {
        let sql = format!("SELECT count(*) AS n FROM cloudflare_httprequest WHERE {condition}");
        assert_eq!(answered(dir.path(), &lake, &sql), json!({"n": expected}), "{}", &condition[..60]);
    }
    // 1 + 1 + …, and the largest of 1 + 1 + …, 2 + 2 + … and 3 + 3 + ….
    assert_eq!(answered(dir.path(), &lake, &format!("SELECT {} AS n", terms(4_000, "1", " + "))), json!({"n": 4_000}));
    let sum = format!("SELECT max({}) AS n FROM cloudflare_httprequest", terms(4_000, "ZoneID", " + "));
    assert_eq!(answered(dir.path(), &lake, &sum), json!({"n": 12_000}));
}

#[test]
fn what_is_too_large_is_refused_with_what_to_do() {
    let (dir, lake) = lake();
    let nested = |name: &str, depth: usize, rest: &str| {
        format!("{}{}{}", format!("{name}(").repeat(depth), "RayID", format!("{rest})").repeat(depth))
    };
    let of = "FROM cloudflare_httprequest";
    let repeated = |what: &str, between: &str, times: usize| vec![what; times].join(between);
    let doubling: String = (1..40).map(|n| format!(", t{n} AS (SELECT a.x FROM t{} a, t{} b)", n - 1, n - 1)).collect();
    for (sql, said) in [
        (format!("SELECT {} {of}", nested("any_value", 30, "")), "compute what stands in them in a subquery"),
        (
            format!("SELECT {} {of}", nested("datediff", 30, ", p_event_time").replace("datediff(", "datediff('month', ")),
            "compute what stands",
        ),
        (format!("SELECT {} {of}", repeated("ZoneID", " - ", 20_000)), "more than 1600 operators"),
        (format!("SELECT {}", repeated("'a'", " || ", 20_000)), "more than 1600 operators"),
        (format!("SELECT RayID{} {of}", "::text".repeat(20_000)), "more than 1600 operators"),
        (repeated("SELECT 1", " UNION ALL ", 20_000), "more than 256 tables and subqueries"),
        (format!("SELECT 1 FROM {}", repeated("cloudflare_httprequest", ", ", 20_000)), "more than 256 tables"),
        (format!("WITH t0 AS (SELECT 1 AS x){doubling} SELECT count(*) FROM t39"), "reads more than 1000 tables"),
        (format!("SELECT '{}'", "x".repeat(5 << 20)), "longer than 4 MiB"),
        (format!("SELECT {}1{}", "(".repeat(20_000), ")".repeat(20_000)), "RecursionLimitExceeded"),
        (format!("SELECT {}1", "NOT ".repeat(20_000)), "error"),
        (format!("SELECT {}", "iff(".repeat(20_000)), "error"),
        (format!("SELECT {}", "CASE WHEN 1 = 1 THEN ".repeat(20_000)), "CASE, CAST, iff and such one in the other"),
        (format!("SELECT {}1{}", "iff(1 = 1, ".repeat(30), ", 2)".repeat(30)), "CASE, CAST, iff and such one in the other"),
        (format!("SELECT {}", "CAST(".repeat(40)), "CASE, CAST, iff and such one in the other"),
    ] {
        let told = refused(dir.path(), &lake, &sql);
        assert!(told.contains(said), "{}: {told}", &sql[..sql.len().min(80)]);
    }
}

#[test]
fn functions_make_no_more_than_the_memory_allows() {
    let (dir, lake) = lake();
    let of = "FROM cloudflare_httprequest";
    for sql in [
        "SELECT length(repeat('x', 2000000000))".to_owned(),
        format!("SELECT length(repeat(RayID, 1000000000)) {of}"),
        "SELECT cardinality(range(1, 1000000000))".to_owned(),
        format!("SELECT cardinality(range(0, ZoneID * 1000000000)) {of}"),
        "SELECT cardinality(generate_series(1, 1000000000))".to_owned(),
        "SELECT cardinality(range(timestamp '2000-01-01', timestamp '2026-01-01', interval '1 second'))".to_owned(),
        "SELECT length(lpad('x', 2000000000))".to_owned(),
        format!("SELECT length(rpad(RayID, 2000000000, 'ab')) {of}"),
        "SELECT cardinality(array_repeat(1, 1000000000))".to_owned(),
        "SELECT cardinality(array_repeat(array_repeat('abcdefgh', 30000), 30000))".to_owned(),
        "SELECT cardinality(array_resize([1], 1000000000))".to_owned(),
        "SELECT length(replace(repeat('x', 1000000), 'x', repeat('y', 1000000)))".to_owned(),
        "SELECT length(regexp_replace(repeat('x', 1000000), 'x', repeat('y', 1000000), 'g'))".to_owned(),
        "SELECT length(array_to_string(range(1, 100000), repeat('y', 1000000)))".to_owned(),
        "SELECT length(string_agg(repeat('x', 1000000), '')) FROM generate_series(1, 3000)".to_owned(),
        format!("SELECT max(length({})) {of}", (0..24).fold("RayID".to_owned(), |x, _| format!("encode({x}, 'hex')"))),
    ] {
        let told = refused(dir.path(), &lake, &sql);
        assert!(told.contains("needs more memory than it may take"), "{sql}: {told}");
    }
    // What is not too much is answered.
    for (sql, expected) in [
        ("SELECT length(repeat('x', 100000)) AS n", 100_000),
        ("SELECT cardinality(range(1, 100000)) AS n", 99_999),
        ("SELECT sum(length(repeat('x', 1000000))) AS n FROM generate_series(1, 300)", 300_000_000),
        ("SELECT max(length(lpad(RayID, 10000))) AS n FROM cloudflare_httprequest", 10_000),
        ("SELECT length(concat(repeat('x', 1000), 'y', repeat('z', 10))) AS n", 1011),
        ("SELECT length(replace('aXbXc', 'X', '--')) AS n", 7),
        ("SELECT cardinality(range(date '2026-01-01', date '2026-02-01', interval '1 day')) AS n", 31),
    ] {
        assert_eq!(answered(dir.path(), &lake, sql), json!({"n": expected}), "{sql}");
    }
}
