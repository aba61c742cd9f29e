//! Statements that were written for Panther's lake, as its public documentation has them, and what people
//! make of these. What is asked is a lake of the records below; what is expected was worked out from them by
//! hand.

use std::path::Path;

use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::query::{Format, Renderer, Session};
use flarelake::schema::Catalog;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{flarelake, stdout};

const RECORDS: &str = r#"{"EdgeStartTimestamp":"2021-01-01T10:00:00Z","ZoneID":1,"ClientIP":"1.2.3.4","OriginIP":"198.51.100.1","RayID":"r1","EdgeStartTimestampX":"a"}
{"EdgeStartTimestamp":"2021-01-01T11:00:00Z","ZoneID":2,"ClientIP":"1.2.3.4","RayID":"r2","ClientRequestUserAgent":"curl/8"}
{"EdgeStartTimestamp":"2021-01-03T10:00:00Z","ZoneID":3,"ClientIP":"1.2.3.4","RayID":"r3","ClientRequestUserAgent":"Wget"}
{"Datetime":"2021-01-01T12:00:00Z","Action":"block","Source":"waf","RuleID":"rule1","ClientIP":"1.2.3.4","RayID":"r1"}
{"Datetime":"2021-01-01T13:00:00Z","Action":"log","Source":"waf","RuleID":"rule2","ClientIP":"203.0.113.9","RayID":"r9"}
{"Timestamp":"2021-01-02T00:00:00Z","Application":"app1","Event":"connect","ClientIP":"203.0.113.9","ConnectTimestamp":"2021-01-02T00:00:00Z","ClientBytes":0,"OriginBytes":0,"Status":0}
{"EdgeStartTimestamp":"2020-01-31T23:59:59Z","ZoneID":4,"ClientIP":"95.123.145.92","RayID":"r4"}
{"EdgeStartTimestamp":"2020-02-01T00:00:00Z","ZoneID":5,"ClientIP":"95.123.145.92","RayID":"r5"}
{"EdgeStartTimestamp":"2021-01-31T05:00:00Z","ZoneID":6,"ClientIP":"95.123.145.92","RayID":"r6"}
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

async fn asked() -> (tempfile::TempDir, Session) {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("all.log");
    std::fs::write(&log, RECORDS).expect("written");
    let lake = dir.path().join("lake");
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&log)]));
    let store = Store::open(text(&lake), &Default::default()).await.expect("a folder");
    let session =
        Session::open(&store, &Catalog::embedded(), Partitioning::Day, 1 << 28).await.expect("a lake");
    (dir, session)
}

async fn rows(session: &Session, sql: &str) -> Result<Vec<Value>, String> {
    let mut batches = session.query(sql, &[]).await.map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let mut renderer = Renderer::new(Format::Ndjson, batches.schema(), &mut bytes).expect("memory");
    while let Some(batch) = batches.next().await {
        renderer.write(batch.map_err(|e| e.to_string())?).expect("memory");
    }
    renderer.finish().expect("memory");
    let mut rows: Vec<Value> = String::from_utf8(bytes)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    // Where a statement says no order, or not all of it, there is none.
    rows.sort_by_key(ToString::to_string);
    Ok(rows)
}

/// The rows that are expected, in the same order.
fn expected(rows: &Value) -> Result<Vec<Value>, String> {
    let mut rows = rows.as_array().expect("rows").clone();
    rows.sort_by_key(ToString::to_string);
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_statements_over_all_logs_run_as_they_are_published() {
    let (_dir, session) = asked().await;
    let seen = json!([{"p_log_type": "Cloudflare.Firewall", "row_count": 1}, {"p_log_type": "Cloudflare.HttpRequest", "row_count": 2}]);
    let totals = json!([{"ip": "1.2.3.4", "total_rows": 3}, {"ip": "198.51.100.1", "total_rows": 1}, {"ip": "203.0.113.9", "total_rows": 2}]);
    let datasets = json!([{"ip": "1.2.3.4", "datasets": 2}, {"ip": "198.51.100.1", "datasets": 1}, {"ip": "203.0.113.9", "datasets": 2}]);
    let day = json!([{"p_log_type": "Cloudflare.HttpRequest", "row_count": 1}]);
    let statements = [
        (
            "-- Athena
SELECT
 p_log_type, count(1) AS row_count
FROM panther_views.all_logs
WHERE p_occurs_between('2021-01-01', '2021-01-02')
     AND contains(p_any_ip_addresses, '1.2.3.4')
GROUP BY p_log_type
LIMIT 100",
            &seen,
        ),
        (
            "-- Snowflake
SELECT
 p_log_type, count(1) AS row_count
FROM panther_views.public.all_logs
WHERE p_occurs_between('2021-01-01', '2021-01-02')
     AND array_contains('1.2.3.4'::variant, p_any_ip_addresses)
GROUP BY p_log_type
LIMIT 100",
            &seen,
        ),
        (
            "SELECT
  ip,
  count(1) as total_rows
FROM panther_views.all_logs
CROSS JOIN UNNEST(p_any_ip_addresses) AS t(ip)
WHERE p_occurs_between('2021-01-01', '2021-01-02')
GROUP BY ip
ORDER BY  total_rows DESC
LIMIT 100",
            &totals,
        ),
        (
            "SELECT
  ip.value as ip,
  count(1) as total_rows
FROM panther_views.public.all_logs, LATERAL FLATTEN(input => p_any_ip_addresses) ip
WHERE p_occurs_between('2021-01-01', '2021-01-02')
GROUP BY ip.value
ORDER BY  total_rows DESC
LIMIT 100",
            &totals,
        ),
        (
            "SELECT
  ip,
  count(distinct p_log_type) as datasets
FROM
(
SELECT
  p_log_type,
  ip
FROM panther_views.all_logs
CROSS JOIN UNNEST(p_any_ip_addresses) AS t(ip)
WHERE p_occurs_between('2021-01-01', '2021-01-02')
GROUP BY ip, p_log_type
)
GROUP BY ip
ORDER BY  datasets DESC
LIMIT 100",
            &datasets,
        ),
        (
            "SELECT
  ip,
  count(distinct p_log_type) as datasets
FROM
(
SELECT
  p_log_type,
  ip. value as ip
FROM panther_views.public.all_logs, LATERAL FLATTEN(input => p_any_ip_addresses) ip
WHERE p_occurs_between('2021-01-01', '2021-01-02')
GROUP BY ip.value, p_log_type
)
GROUP BY ip
ORDER BY  datasets DESC
LIMIT 100",
            &datasets,
        ),
        (
            "SELECT
 p_log_type, count(1) AS row_count
FROM panther_views.all_logs
WHERE year=2020 AND month=1 AND day=31 AND contains(p_any_ip_addresses, '95.123.145.92')
GROUP BY p_log_type",
            &day,
        ),
    ];
    for (sql, answer) in statements {
        assert_eq!(rows(&session, sql).await, expected(answer), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_joined_to_their_rows() {
    let (_dir, session) = asked().await;
    let of = "FROM cloudflare_httprequest";
    for (sql, answer) in [
        // Under an alias, in any case, with what only the table has.
        (format!("SELECT H.RayID, T.Ip {of} h CROSS JOIN UNNEST(H.P_ANY_IP_ADDRESSES) AS t(ip) WHERE rayid = 'r1' AND t.ip LIKE '198%'"), json!([{"RayID": "r1", "Ip": "198.51.100.1"}])),
        (format!("SELECT ip, RayID {of}, UNNEST(p_any_ip_addresses) AS ip WHERE RayID = 'r2'"), json!([{"ip": "1.2.3.4", "RayID": "r2"}])),
        (format!("SELECT f.index, f.value {of}, LATERAL FLATTEN(p_any_ip_addresses) f WHERE RayID = 'r1'"), json!([{"index": 0, "value": "1.2.3.4"}, {"index": 1, "value": "198.51.100.1"}])),
        (format!("SELECT value {of}, TABLE(FLATTEN(input => p_any_ip_addresses)) WHERE RayID = 'r2'"), json!([{"value": "1.2.3.4"}])),
        (format!("SELECT n, ip {of} CROSS JOIN UNNEST(p_any_ip_addresses) WITH ORDINALITY AS t(ip, n) WHERE RayID = 'r1' AND n = 2"), json!([{"n": 2, "ip": "198.51.100.1"}])),
        // Two lists, and one in a joined table.
        (format!("SELECT a.value AS ip, b.value {of}, LATERAL FLATTEN(input => p_any_ip_addresses) a, LATERAL FLATTEN(input => p_any_trace_ids) b WHERE RayID = 'r2'"), json!([{"ip": "1.2.3.4", "value": "r2"}])),
        ("SELECT h.RayID, x.value FROM cloudflare_httprequest h JOIN cloudflare_firewall f ON h.RayID = f.RayID CROSS JOIN UNNEST(f.p_any_ip_addresses) AS x(value)".to_owned(), json!([{"RayID": "r1", "value": "1.2.3.4"}])),
        // A row without values goes, or stays where that is asked for.
        (format!("SELECT RayID, d.value {of}, LATERAL FLATTEN(input => p_any_domain_names) d"), json!([])),
        (format!("SELECT count(*) AS n, count(d.value) AS m {of}, LATERAL FLATTEN(input => p_any_domain_names, outer => true) d"), json!([{"n": 6, "m": 0}])),
        (format!("SELECT count(*) AS n, count(d) AS m {of} LEFT JOIN UNNEST(p_any_domain_names) AS t(d) ON true"), json!([{"n": 6, "m": 0}])),
        // A map.
        (format!("SELECT k, v {of} CROSS JOIN UNNEST(p_rescued_data) AS t(k, v)"), json!([{"k": "EdgeStartTimestampX", "v": "a"}])),
        (format!("SELECT r.key, r.value::string AS v {of}, LATERAL FLATTEN(input => p_rescued_data) r"), json!([{"key": "EdgeStartTimestampX", "v": "a"}])),
        // In a WITH, in a subquery, sorted by it, and the whole row.
        (format!("WITH ips AS (SELECT ip {of} CROSS JOIN UNNEST(p_any_ip_addresses) AS t(ip)) SELECT count(DISTINCT ip) AS n FROM ips"), json!([{"n": 3}])),
        (format!("SELECT t.ip {of} CROSS JOIN UNNEST(p_any_ip_addresses) AS t(ip) ORDER BY t.ip DESC LIMIT 1"), json!([{"ip": "95.123.145.92"}])),
        (format!("SELECT count(*) AS n FROM (SELECT * {of} CROSS JOIN UNNEST(p_any_ip_addresses) AS t(ip)) WHERE ip = '1.2.3.4'"), json!([{"n": 3}])),
        // What stands alone always did.
        ("SELECT x FROM UNNEST(make_array(1, 2)) AS t(x) WHERE x > 1".to_owned(), json!([{"x": 2}])),
    ] {
        assert_eq!(rows(&session, &sql).await, expected(&answer), "{sql}");
    }
    for (sql, said) in [
        (
            format!("SELECT 1 {of} a, cloudflare_firewall b CROSS JOIN UNNEST(p_any_ip_addresses) AS t(ip)"),
            "write whose column",
        ),
        (
            format!("SELECT f.this {of}, LATERAL FLATTEN(input => p_any_ip_addresses) f"),
            "FLATTEN has value, index, key here",
        ),
        (
            format!("SELECT 1 {of}, LATERAL FLATTEN(input => p_any_ip_addresses, recursive => true) f"),
            "without path and recursive",
        ),
        (
            format!("SELECT 1 {of} JOIN UNNEST(p_any_ip_addresses) AS t(ip) ON t.ip = ClientIP"),
            "belongs into WHERE",
        ),
    ] {
        let error = rows(&session, &sql).await.expect_err(&sql);
        assert!(error.contains(said), "{sql}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_rows_time_are_columns_where_nothing_else_is() {
    let (_dir, session) = asked().await;
    let of = "FROM cloudflare_httprequest";
    for (sql, answer) in [
        (format!("SELECT RayID {of} WHERE year = 2020 AND month = 1 AND day = 31 AND hour = 23"), json!([{"RayID": "r4"}])),
        (
            format!("SELECT YEAR, Month, count(*) AS n {of} GROUP BY year, month HAVING count(*) = 1"),
            json!([{"YEAR": 2020, "Month": 1, "n": 1}, {"YEAR": 2020, "Month": 2, "n": 1}]),
        ),
        (format!("SELECT count(*) AS n {of} GROUP BY year ORDER BY year"), json!([{"n": 2}, {"n": 4}])),
        (format!("SELECT h.day AS d {of} h WHERE h.RayID = 'r3'"), json!([{"d": 3}])),
        // A name that the statement gives is what it gives.
        (
            format!("SELECT ZoneID AS year, count(*) AS n {of} WHERE year = 2020 GROUP BY ZoneID ORDER BY year"),
            json!([{"year": 4, "n": 1}, {"year": 5, "n": 1}]),
        ),
        (
            format!("SELECT date_part('month', p_event_time) + 100 AS month, count(*) AS n {of} GROUP BY month HAVING month = 102"),
            json!([{"month": 102, "n": 1}]),
        ),
        (format!("WITH x AS (SELECT ZoneID AS year {of}) SELECT max(year) AS m FROM x"), json!([{"m": 6}])),
        (format!("SELECT max(year) AS m FROM (SELECT *, ZoneID * 2 AS year {of}) t"), json!([{"m": 12}])),
        (format!("SELECT x.year {of} h JOIN (SELECT 7 AS year) x ON h.RayID = 'r1'"), json!([{"year": 7}])),
        (format!("WITH cloudflare_httprequest AS (SELECT 3 AS year) SELECT year {of}"), json!([{"year": 3}])),
        (format!("SELECT RayID {of} WHERE RayID IN (SELECT RayID FROM cloudflare_firewall WHERE hour = 12)"), json!([{"RayID": "r1"}])),
        // Words that are no columns.
        (format!("SELECT count(*) AS n {of} WHERE date_trunc(month, p_event_time) = timestamp '2020-02-01'"), json!([{"n": 1}])),
        (format!("SELECT extract(year FROM p_event_time) AS y {of} WHERE RayID = 'r4'"), json!([{"y": 2020}])),
        (
            format!(
                "SELECT count(*) AS n {of} WHERE date(p_event_time) = date '2020-01-31' AND date('2020-01-31T10:00:00Z') = '2020-01-31'"
            ),
            json!([{"n": 1}]),
        ),
        // Of each its own, where two tables are joined.
        (
            "SELECT h.hour AS a, f.hour AS b FROM cloudflare_httprequest h JOIN cloudflare_firewall f ON h.RayID = f.RayID".to_owned(),
            json!([{"a": 10, "b": 12}]),
        ),
    ] {
        assert_eq!(rows(&session, &sql).await, expected(&answer), "{sql}");
    }
    // A day's column tells files apart.
    let (plan, _) = session
        .physical(&format!("SELECT RayID {of} WHERE year = 2020 AND month = 2 AND day = 1"), &[])
        .await
        .expect("a plan");
    let plan = datafusion::physical_plan::displayable(plan.as_ref()).indent(true).to_string();
    assert_eq!(plan.matches(".parquet").count(), 1, "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_compared_with_any_or_all_of_several_patterns() {
    let (_dir, session) = asked().await;
    for (condition, expected) in [
        ("ClientRequestUserAgent LIKE ANY ('curl%', 'Python%')", 1),
        ("ClientRequestUserAgent ILIKE ANY ('CURL%', 'wget')", 2),
        ("ClientRequestUserAgent LIKE ANY ('wget')", 0),
        ("ClientRequestUserAgent LIKE ALL ('%u%', '%l%')", 1),
        ("NOT (ClientRequestUserAgent LIKE ANY ('curl%', 'x'))", 1),
        ("ClientRequestUserAgent NOT LIKE ALL ('curl%', 'x')", 1),
        ("ZoneID = 4 OR ClientRequestUserAgent LIKE ANY ('curl%', 'Wget%') AND ZoneID = 3", 2),
    ] {
        let sql = format!("SELECT count(*) AS n FROM cloudflare_httprequest WHERE {condition}");
        assert_eq!(rows(&session, &sql).await, Ok(vec![json!({"n": expected})]), "{condition}");
    }
    let sql = "SELECT 1 FROM cloudflare_httprequest WHERE RayID NOT LIKE ANY ('a', 'b')";
    assert!(rows(&session, sql).await.expect_err("unclear").contains("write NOT (x LIKE ANY (…))"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_may_begin_with_a_comment() {
    let (dir, _session) = asked().await;
    let lake = dir.path().join("lake");
    for sql in [
        "-- a comment\nSELECT 1 AS n",
        "--a comment\nSELECT 1 AS n",
        "---\nSELECT 1 AS n",
        "/* a comment */ SELECT 1 AS n",
        "-- a = b\n-- c\nSELECT 1 AS n -- d",
    ] {
        assert_eq!(
            stdout(&flarelake(&["--lake", text(&lake), "query", "--format", "ndjson", sql])),
            "{\"n\":1}\n",
            "{sql}"
        );
        assert_eq!(
            stdout(&flarelake(&["--lake", text(&lake), "query", sql, "--format=ndjson"])),
            "{\"n\":1}\n",
            "{sql}"
        );
    }
    // Options are still options, and wrong ones are told.
    let wrong = flarelake(&["--lake", text(&lake), "query", "--formt", "csv", "SELECT 1"]);
    assert!(
        wrong.status.code() == Some(2) && String::from_utf8_lossy(&wrong.stderr).contains("--formt"),
        "{wrong:?}"
    );
    let both = flarelake(&[
        "--lake",
        text(&lake),
        "query",
        "SELECT $a AS n",
        "--param=a=x\ny",
        "--format",
        "ndjson",
    ]);
    assert_eq!(stdout(&both), "{\"n\":\"x\\ny\"}\n");
}
