//! Statements that a program wrote, or a stranger: thousands of terms, macros in macros, functions that make
//! much of little. Each is answered, or refused at once with what to do, and the process goes on.

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
    let output = command(&["--lake", lake, "query", "--format", "ndjson", "-f", text(&file)])
        .env("FLARELAKE_MEMORY", "64MiB")
        .output();
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
    let terms = |many: u32, what: &str, between: &str| {
        (0..many).map(|n| what.replace('#', &n.to_string())).collect::<Vec<_>>().join(between)
    };
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
    assert_eq!(
        answered(dir.path(), &lake, &format!("SELECT {} AS n", terms(4_000, "1", " + "))),
        json!({"n": 4_000})
    );
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
    let doubling: String =
        (1..40).map(|n| format!(", t{n} AS (SELECT a.x FROM t{} a, t{} b)", n - 1, n - 1)).collect();
    for (sql, said) in [
        (format!("SELECT {} {of}", nested("any_value", 30, "")), "compute the arguments in a subquery"),
        (
            format!(
                "SELECT {} {of}",
                nested("datediff", 30, ", p_event_time").replace("datediff(", "datediff('month', ")
            ),
            "compute the arguments",
        ),
        (format!("SELECT {} {of}", repeated("ZoneID", " - ", 20_000)), "more than 1600 operators"),
        (format!("SELECT {}", repeated("'a'", " || ", 20_000)), "more than 1600 operators"),
        (format!("SELECT RayID{} {of}", "::text".repeat(20_000)), "more than 1600 operators"),
        (repeated("SELECT 1", " UNION ALL ", 20_000), "more than 256 tables and subqueries"),
        (
            format!("SELECT 1 FROM {}", repeated("cloudflare_httprequest", ", ", 20_000)),
            "more than 256 tables",
        ),
        (
            format!("WITH t0 AS (SELECT 1 AS x){doubling} SELECT count(*) FROM t39"),
            "reads more than 1000 tables",
        ),
        (format!("SELECT '{}'", "x".repeat(5 << 20)), "longer than 4 MiB"),
        (format!("SELECT {}1{}", "(".repeat(20_000), ")".repeat(20_000)), "RecursionLimitExceeded"),
        (format!("SELECT {}1", "NOT ".repeat(20_000)), "error"),
        (format!("SELECT {}", "iff(".repeat(20_000)), "error"),
        (format!("SELECT {}", "CASE WHEN 1 = 1 THEN ".repeat(20_000)), "CASE, CAST, iff and the like"),
        (
            format!("SELECT {}1{}", "iff(1 = 1, ".repeat(30), ", 2)".repeat(30)),
            "CASE, CAST, iff and the like",
        ),
        (format!("SELECT {}", "CAST(".repeat(40)), "CASE, CAST, iff and the like"),
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
        "SELECT cardinality(range(timestamp '2000-01-01', timestamp '2026-01-01', interval '1 second'))"
            .to_owned(),
        "SELECT length(lpad('x', 2000000000))".to_owned(),
        format!("SELECT length(rpad(RayID, 2000000000, 'ab')) {of}"),
        "SELECT cardinality(array_repeat(1, 1000000000))".to_owned(),
        "SELECT cardinality(array_repeat(array_repeat('abcdefgh', 30000), 30000))".to_owned(),
        "SELECT cardinality(array_resize([1], 1000000000))".to_owned(),
        "SELECT length(replace(repeat('x', 1000000), 'x', repeat('y', 1000000)))".to_owned(),
        "SELECT length(regexp_replace(repeat('x', 1000000), 'x', repeat('y', 1000000), 'g'))".to_owned(),
        "SELECT length(array_to_string(range(1, 100000), repeat('y', 1000000)))".to_owned(),
        "SELECT length(string_agg(repeat('x', 1000000), '')) FROM generate_series(1, 3000)".to_owned(),
        format!(
            "SELECT max(length({})) {of}",
            (0..24).fold("RayID".to_owned(), |x, _| format!("encode({x}, 'hex')"))
        ),
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

/// A WITH of so many steps, each made of the one before, `s`.
fn steps(first: &str, each: &str, many: usize, last: &str) -> String {
    let steps: String =
        (1..=many).map(|n| format!(", t{n} AS (SELECT {each} AS s FROM t{})", n - 1)).collect();
    format!("WITH t0 AS ({first}){steps} SELECT {last} AS n FROM t{many}")
}

#[test]
fn what_doubles_again_and_again_keeps_to_the_memory() {
    let (dir, lake) = lake();
    let of = "FROM cloudflare_httprequest";
    let rows = format!("SELECT RayID AS s {of}");
    let many = |what: &str, times: usize, between: &str| {
        (0..times).map(|n| what.replace('#', &n.to_string())).collect::<Vec<_>>().join(between)
    };
    for sql in [
        // What operators and brackets make, which are no functions of ours.
        steps("SELECT repeat('x', 1000000) AS s", "s || s", 12, "length(s)"),
        steps(&rows, "s || s", 30, "max(length(s))"),
        steps("SELECT [1, 2, 3] AS s", "s || s", 30, "cardinality(s)"),
        steps("SELECT [1, 2, 3] AS s", "[s, s]", 30, "cardinality(s)"),
        steps(&format!("SELECT [RayID] AS s {of}"), "make_array(s, s)", 30, "max(cardinality(s))"),
        format!("SELECT length({}) AS n", many("repeat('x', 1000000#)", 60, " || ")),
        format!("SELECT max(length({})) AS n {of}", many("repeat(RayID, 1000000#)", 60, " || ")),
        "WITH RECURSIVE t(n, s) AS (SELECT 1, 'x' UNION ALL SELECT n + 1, s || s FROM t WHERE n < 40) SELECT max(length(s)) AS n FROM t".to_owned(),
        // Many that are none too large by themselves.
        format!("SELECT cardinality(make_array({})) AS n", many("range(1, 100000#)", 40, ", ")),
        format!("SELECT named_struct({}) AS n", many("'a#', repeat('x', 1000000#)", 40, ", ")),
        format!("SELECT {}", many("repeat('x', 1000000#) AS a#", 40, ", ")),
        format!("SELECT {} {of}", many("repeat(RayID, 50000#) AS a#", 40, ", ")),
        many("SELECT length(repeat('x', 1000000#)) AS n", 100, " UNION ALL "),
        format!("SELECT count(*) AS n FROM (VALUES {})", many("(repeat('x', 100000#))", 200, ", ")),
        format!("SELECT count(*) AS n {of} WHERE RayID IN ({})", many("repeat('x', 100000#)", 200, ", ")),
        format!("SELECT count(*) AS n {of} WHERE {}", many("RayID LIKE repeat('x', 100000#)", 100, " OR ")),
        // One thing in the place of many.
        "SELECT length(array_to_string(range(1, 1900000), '-----------------------')) AS n".to_owned(),
        format!("SELECT length(concat_ws(repeat('y', 1000000), {})) AS n", many("'x#'", 100, ", ")),
        "SELECT cardinality(array_replace_all(array_repeat('x', 100000), 'x', repeat('y', 1000000))) AS n".to_owned(),
        "SELECT length(to_char(timestamp '2026-01-01', repeat('%c', 4000000))) AS n".to_owned(),
        // Aggregates: of groups, and of each row all rows before it.
        "SELECT max(length(s)) AS n FROM (SELECT string_agg(repeat('x', 1000), '') AS s FROM generate_series(1, 300000) GROUP BY value % 10)".to_owned(),
        "SELECT max(length(s)) AS n FROM (SELECT string_agg('xxxxxxxxxxxx', '') OVER (ORDER BY value) AS s FROM generate_series(1, 20000))".to_owned(),
        "SELECT sum(cardinality(s)) AS n FROM (SELECT array_agg(value) OVER (ORDER BY value) AS s FROM generate_series(1, 20000))".to_owned(),
    ] {
        let told = refused(dir.path(), &lake, &sql);
        assert!(told.contains("needs more memory than it may take"), "{}: {told}", &sql[..sql.len().min(120)]);
    }
    for each in ["named_struct('a', s, 'b', s)", "struct(s, s)", "{'a': s, 'b': s}"] {
        let told = refused(dir.path(), &lake, &steps(&rows, each, 30, "s"));
        assert!(told.contains("more than 10000 fields"), "{each}: {told}");
    }
    // What is not too much is what it was.
    let answers = [
        ("SELECT 'a' || 'b' || 1 AS n", json!("ab1")),
        ("SELECT 'a' || NULL AS n", json!(null)),
        ("SELECT [1] || [2, 3] AS n", json!([1, 2, 3])),
        ("SELECT [RayID, 'x'] AS n FROM cloudflare_httprequest WHERE ZoneID = 2", json!(["r2", "x"])),
        (
            "SELECT named_struct('a', RayID, 'b', [1]) AS n FROM cloudflare_httprequest WHERE ZoneID = 1",
            json!({"a": "r1", "b": [1]}),
        ),
        (
            "SELECT {'a': RayID, 'b': 2} AS n FROM cloudflare_httprequest WHERE ZoneID = 1",
            json!({"a": "r1", "b": 2}),
        ),
        (
            "SELECT struct(RayID, 2) AS n FROM cloudflare_httprequest WHERE ZoneID = 1",
            json!({"c0": "r1", "c1": 2}),
        ),
        (
            "SELECT named_struct('a', RayID)['a'] AS n FROM cloudflare_httprequest WHERE ZoneID = 1",
            json!("r1"),
        ),
        (
            "SELECT array_has([RayID, 'x'], 'r1') AS n FROM cloudflare_httprequest WHERE RayID || 'y' = 'r1y'",
            json!(true),
        ),
        (
            "SELECT max(RayID || 'x') AS n FROM cloudflare_httprequest GROUP BY RayID || 'x' HAVING RayID || 'x' > 'r2y' ORDER BY RayID || 'x'",
            json!("r3x"),
        ),
        (
            "SELECT count(*) AS n FROM (SELECT RayID || 'x', count(*) FROM cloudflare_httprequest GROUP BY ROLLUP (RayID || 'x'))",
            json!(4),
        ),
        (
            "SELECT string_agg(RayID, '+' ORDER BY RayID DESC) AS n FROM cloudflare_httprequest",
            json!("r3+r2+r1"),
        ),
        (
            "SELECT array_agg(DISTINCT ZoneID ORDER BY ZoneID) AS n FROM cloudflare_httprequest",
            json!([1, 2, 3]),
        ),
        (
            "SELECT array_agg(ZoneID ORDER BY ZoneID DESC) FILTER (WHERE ZoneID > 1) AS n FROM cloudflare_httprequest",
            json!([3, 2]),
        ),
        (
            "SELECT max(s) AS n FROM (SELECT string_agg(RayID, '+') OVER (ORDER BY RayID) AS s FROM cloudflare_httprequest)",
            json!("r1+r2+r3"),
        ),
        (
            "SELECT length(string_agg(repeat('x', 100), '')) AS n FROM generate_series(1, 10000)",
            json!(1_000_000),
        ),
        ("SELECT to_char(timestamp '2026-01-02', '%Y-%m-%d') AS n", json!("2026-01-02")),
        ("SELECT CASE WHEN 1 = 2 THEN repeat('x', 2000000000) ELSE 'y' END AS n", json!("y")),
    ];
    for (sql, expected) in answers {
        assert_eq!(answered(dir.path(), &lake, sql), json!({"n": expected}), "{sql}");
    }
}
