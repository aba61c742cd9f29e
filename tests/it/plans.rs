//! How statements are carried out: which files are opened, what is asked of rows, and whether plans can
//! travel. What is expected follows from where the records stand: one file a day and object, times in the
//! objects apart or mixed.

use std::path::Path;
use std::sync::Arc;

use arrow::util::pretty::pretty_format_batches;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion_proto::bytes::{physical_plan_from_bytes, physical_plan_to_bytes};
use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::query::{Session, Value, built_in};
use flarelake::schema::Catalog;
use futures::TryStreamExt as _;

use crate::support::{flarelake, stdout};

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A lake with three days of requests, one object a day: 100 rows each, ten a minute from midnight on.
async fn lake(extra: &[(&str, &str)]) -> (tempfile::TempDir, Session) {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = dir.path().join("lake");
    for day in 1..=3 {
        let line = |n: u32| {
            let (minute, second) = (n / 10, n % 10 * 6);
            format!(
                "{{\"EdgeStartTimestamp\":\"2026-01-0{day}T00:{minute:02}:{second:02}.000123Z\",\"ClientIP\":\"192.0.2.{n}\",\"ClientRequestHost\":\"h.test\",\"EdgeResponseStatus\":{}}}\n",
                200 + n
            )
        };
        land(&dir, &lake, &format!("day{day}.log"), &(0..100).map(line).collect::<String>());
    }
    for (name, lines) in extra {
        land(&dir, &lake, name, lines);
    }
    let store = Store::open(text(&lake), &Default::default()).await.expect("a folder");
    let session =
        Session::open(&store, &Catalog::embedded(), Partitioning::Day, 1 << 28).await.expect("a lake");
    (dir, session)
}

fn land(dir: &tempfile::TempDir, lake: &Path, name: &str, lines: &str) {
    let log = dir.path().join(name);
    std::fs::write(&log, lines).expect("written");
    stdout(&flarelake(&["--lake", text(lake), "backfill", text(&log)]));
}

async fn plan(session: &Session, sql: &str) -> String {
    let (plan, _) = session.physical(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    displayable(plan.as_ref()).indent(true).to_string()
}

fn files(plan: &str) -> usize {
    plan.matches(".parquet").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_of_the_time_that_is_asked_for_are_opened() {
    let (_dir, session) = lake(&[]).await;
    for (condition, opened, asks_rows) in [
        // Whole days: the files decide, and rows are not asked.
        ("p_event_time >= '2026-01-02T00:00:00Z'", 2, false),
        ("p_event_time < timestamp '2026-01-02T00:00:00Z'", 1, false),
        ("p_event_time BETWEEN '2026-01-02T00:00:00Z' AND '2026-01-02T23:59:59Z'", 1, false),
        ("p_event_date = date '2026-01-03'", 1, false),
        ("p_event_date <> '2026-01-03'", 2, false),
        ("extract(day FROM p_event_date) = 2", 1, false),
        ("p_event_date >= '2026-01-02' AND p_event_time < '2026-01-03T00:00:00Z'", 1, false),
        // To the microsecond: the last row is at 00:09:54.000123.
        ("p_event_time > '2026-01-03T00:09:54.000123Z'", 0, false),
        ("p_event_time >= '2026-01-03T00:09:54.000123Z'", 1, true),
        // Part of a day: its file is opened, and its rows are asked.
        ("p_event_time >= '2026-01-02T00:05:00Z'", 2, true),
        ("p_event_time >= '2026-01-02T00:05:00Z' AND p_event_date = date '2026-01-02'", 1, true),
        ("p_event_time >= '2026-01-02T00:00:00Z' AND ClientIP = '192.0.2.7'", 2, true),
        ("p_event_time < '2020-01-01' OR p_event_time > '2026-01-03'", 1, false),
        ("p_event_time < '2020-01-01' OR p_event_time > '2026-01-03T00:00:01Z'", 1, true),
        ("NOT (p_event_time < '2026-01-02T00:00:00Z')", 2, false),
        ("p_event_time IN ('2026-01-02T00:00:00.000123Z')", 1, true),
        ("p_event_date = date '2025-01-01'", 0, false),
    ] {
        let plan =
            plan(&session, &format!("SELECT ClientIP FROM cloudflare_httprequest WHERE {condition}")).await;
        assert_eq!((files(&plan), plan.contains("predicate=")), (opened, asks_rows), "{condition}\n{plan}");
        // And the rows are those that the condition means, whatever decided: a cast hides the column from the
        // planner.
        let hidden = condition
            .replace("p_event_time", "(p_event_time + INTERVAL '0 seconds')")
            .replace("p_event_date", "(p_event_date + INTERVAL '0 days')");
        let count =
            |condition: &str| format!("SELECT count(*) FROM cloudflare_httprequest WHERE {condition}");
        assert_eq!(
            answer(&session, &count(condition)).await,
            answer(&session, &count(&hidden)).await,
            "{condition}"
        );
    }
}

async fn answer(session: &Session, sql: &str) -> String {
    let (plan, context) = session.physical(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    shown(plan, context).await
}

async fn shown(plan: Arc<dyn ExecutionPlan>, context: Arc<datafusion::execution::TaskContext>) -> String {
    let rows: Vec<_> = collect(plan, context)
        .await
        .expect("rows")
        .iter()
        .map(|batch| batch.columns().to_vec())
        .collect::<Vec<_>>()
        .concat();
    rows.iter().map(|column| format!("{column:?}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_knows_is_not_read() {
    let (_dir, session) = lake(&[]).await;
    for sql in [
        "SELECT count(*) FROM cloudflare_httprequest",
        "SELECT count(*) FROM cloudflare_httprequest WHERE p_event_date = date '2026-01-02'",
        "SELECT min(p_event_time), max(p_event_time) FROM cloudflare_httprequest WHERE p_event_time >= '2026-01-02T00:00:00Z'",
    ] {
        let plan = plan(&session, sql).await;
        assert!(files(&plan) == 0, "{sql}\n{plan}");
    }
    let last =
        answer(&session, "SELECT arrow_cast(max(p_event_time), 'Int64') FROM cloudflare_httprequest").await;
    assert!(last.contains("1767398994000123"), "to the microsecond: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stand_in_order_are_not_sorted() {
    let (_dir, session) = lake(&[]).await;
    let sql = "SELECT p_event_time, ClientIP FROM cloudflare_httprequest ORDER BY p_event_time";
    let ordered = plan(&session, sql).await;
    assert!(!ordered.contains("SortExec") && ordered.contains("output_ordering"), "{ordered}");
    // Two objects whose times are mixed can't be read one after the other.
    let mixed = |n: u32| {
        format!(
            "{{\"EdgeStartTimestamp\":\"2026-01-0{}T00:05:00.5Z\",\"ClientIP\":\"198.51.100.{n}\"}}\n",
            n % 3 + 1
        )
    };
    let extra: Vec<(String, String)> =
        (0..4).map(|n| (format!("mixed{n}.log"), (n * 10..n * 10 + 3).map(mixed).collect())).collect();
    let extra: Vec<(&str, &str)> =
        extra.iter().map(|(name, lines)| (name.as_str(), lines.as_str())).collect();
    let (_dir, session) = lake(&extra).await;
    assert!(plan(&session, sql).await.contains("SortExec"));
    for order in ["p_event_time", "p_event_time DESC"] {
        let sql = format!(
            "SELECT arrow_cast(p_event_time, 'Int64') AS t FROM cloudflare_httprequest ORDER BY {order}"
        );
        let (plan, context) = session.physical(&sql, &[]).await.expect("a plan");
        let times: Vec<i64> = collect(plan, context)
            .await
            .expect("rows")
            .iter()
            .flat_map(|batch| {
                arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(batch.column(0))
                    .values()
                    .to_vec()
            })
            .collect();
        assert_eq!(times.len(), 312);
        assert!(
            if order.ends_with("DESC") { times.is_sorted_by(|a, b| a >= b) } else { times.is_sorted() },
            "{order}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_sees_what_has_landed_when_it_begins() {
    let (dir, session) = lake(&[]).await;
    let count = "SELECT count(*) FROM cloudflare_httprequest";
    let before = answer(&session, count).await;
    assert!(before.contains("300"), "{before}");
    land(
        &dir,
        &dir.path().join("lake"),
        "late.log",
        "{\"EdgeStartTimestamp\":\"2026-01-02T12:00:00Z\",\"ClientIP\":\"192.0.2.1\"}\n",
    );
    let after = answer(&session, count).await;
    assert!(after.contains("301"), "{after}");
    // A table that nothing had landed in.
    assert!(answer(&session, "SELECT count(*) FROM cloudflare_spectrum").await.contains('0'));
    land(
        &dir,
        &dir.path().join("lake"),
        "s.log",
        "{\"Timestamp\":\"2026-01-02T12:00:00Z\",\"Application\":\"a\",\"Event\":\"connect\"}\n",
    );
    assert!(
        answer(&session, "SELECT count(*) + 40 FROM all_logs WHERE p_log_type = 'Cloudflare.Spectrum'")
            .await
            .contains("41")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_travel_to_other_processes() {
    let (_dir, session) = lake(&[(
        "s.log",
        "{\"Timestamp\":\"2026-01-02T12:00:00Z\",\"Application\":\"a\",\"Event\":\"connect\"}\n",
    )])
    .await;
    for saved in built_in() {
        // What is asked of the list of files is answered where the log was read.
        if saved.name == "files_and_sizes" {
            continue;
        }
        let given = [("since", "2020-01-01"), ("value", "192.0.2.7"), ("late_minutes", "1")];
        let given = given.iter().filter(|(name, _)| saved.parameters.iter().any(|p| p.name == *name));
        let given: Vec<(String, String)> =
            given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let values: Vec<(String, Value)> = saved.arguments(&given).expect("arguments");
        let (plan, context) =
            session.physical(&saved.sql, &values).await.unwrap_or_else(|e| panic!("{}: {e}", saved.name));
        let bytes = physical_plan_to_bytes(plan.clone()).unwrap_or_else(|e| panic!("{}: {e}", saved.name));
        let back =
            physical_plan_from_bytes(&bytes, &context).unwrap_or_else(|e| panic!("{}: {e}", saved.name));
        let rows = |plan| {
            let context = context.clone();
            async move {
                pretty_format_batches(&collect(plan, context).await.expect("rows")).expect("text").to_string()
            }
        };
        assert_eq!(rows(back).await, rows(plan).await, "{}", saved.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_more_than_its_memory_goes_on_on_disk_or_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake) = (dir.path().join("logs"), dir.path().join("lake"));
    stdout(&flarelake(&[
        "generate",
        "--log-type",
        "Cloudflare.HttpRequest",
        "--rows",
        "40000",
        "--odd",
        "0",
        "--out",
        text(&logs),
    ]));
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&logs)]));
    let store = Store::open(text(&lake), &Default::default()).await.expect("a folder");
    let ask = async |memory: usize, sql: &str| {
        let session =
            Session::open(&store, &Catalog::embedded(), Partitioning::Day, memory).await.expect("a lake");
        let rows = session.query(sql, &[]).await.map_err(|e| e.to_string())?;
        let rows: Vec<_> = rows.try_collect().await.map_err(|e| e.to_string())?;
        Ok::<_, String>(pretty_format_batches(&rows).expect("text").to_string())
    };
    // 40 000 rows of 80 columns are some 60 MB.
    let sql = "SELECT * FROM cloudflare_httprequest ORDER BY RayID";
    let sorted = ask(32 << 20, sql).await.expect("rows");
    assert_eq!(sorted.lines().count(), 40_004);
    assert!(
        sorted == ask(4 << 30, sql).await.expect("rows"),
        "the same rows in the same order, with memory and without"
    );
    let joined = "SELECT a.*, b.ClientRequestURI FROM cloudflare_httprequest a JOIN cloudflare_httprequest b ON a.p_row_id = b.p_row_id";
    for memory in [72 << 20, 80 << 20] {
        assert_eq!(ask(memory, joined).await.expect("rows").lines().count(), 40_004, "{memory} bytes");
    }
    let refused = ask(1 << 20, sql).await.expect_err("too little");
    assert!(
        refused.contains("needs more memory than it may take") && refused.contains("FLARELAKE_MEMORY"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stand_twice_are_found() {
    let (dir, session) = lake(&[]).await;
    let duplicates = built_in().into_iter().find(|q| q.name == "duplicates").expect("a saved query");
    let values = duplicates.arguments(&[("since".to_owned(), "2020-01-01".to_owned())]).expect("arguments");
    let found = async |session: &Session| {
        let (plan, context) = session.physical(&duplicates.sql, &values).await.expect("a plan");
        collect(plan, context).await.expect("rows").iter().map(|batch| batch.num_rows()).sum::<usize>()
    };
    assert_eq!(found(&session).await, 0);
    // As another engine's faulty compaction would leave them: one file's rows once more under another name.
    let table = dir.path().join("lake/cloudflare_httprequest");
    let log = |version: u32| table.join(format!("_delta_log/{version:020}.json"));
    let last = (0..).take_while(|version| log(*version).exists()).last().expect("a log");
    let commit = std::fs::read_to_string(log(last)).expect("a commit");
    let add = commit.lines().find(|line| line.starts_with("{\"add\"")).expect("a file");
    let mut add: serde_json::Value = serde_json::from_str(add).expect("JSON");
    let path = add["add"]["path"].as_str().expect("a path").to_owned();
    let other = path.replace(".parquet", "-again.parquet");
    std::fs::copy(table.join(&path), table.join(&other)).expect("copied");
    add["add"]["path"] = other.into();
    std::fs::write(log(last + 1), format!("{add}\n")).expect("written");
    assert_eq!(found(&session).await, 20, "the first twenty of a hundred");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_the_value_are_told_by_their_bloom_filters() {
    let spectrum = "{\"Timestamp\":\"2026-01-02T12:00:00Z\",\"Application\":\"a\",\"Event\":\"connect\",\"ClientIP\":\"192.0.2.7\"}\n";
    let own = "{\"EdgeStartTimestamp\":\"2026-01-02T12:00:00Z\",\"ClientIP\":\"203.0.113.9\",\"RayID\":\"abcdef\",\"ClientRequestHost\":\"b.test\"}\n";
    let (_dir, session) = lake(&[("own.log", own), ("s.log", spectrum)]).await;
    for (table, condition, opened, rows) in [
        ("cloudflare_httprequest", "array_has(p_any_ip_addresses, '203.0.113.9')", 1, 1),
        ("cloudflare_httprequest", "array_contains('203.0.113.9'::variant, p_any_ip_addresses)", 1, 1),
        ("cloudflare_httprequest", "array_has(p_any_domain_names, 'nowhere.test')", 0, 0),
        (
            "cloudflare_httprequest",
            "array_has(p_any_domain_names, 'h.test') AND array_has(p_any_ip_addresses, '203.0.113.9')",
            0,
            0,
        ),
        (
            "cloudflare_httprequest",
            "array_has(p_any_domain_names, 'h.test') OR array_has(p_any_ip_addresses, '203.0.113.9')",
            4,
            301,
        ),
        (
            "cloudflare_httprequest",
            "array_has(p_any_domain_names, 'b.test') OR EdgeResponseStatus = 207",
            4,
            4,
        ),
        ("cloudflare_httprequest", "NOT array_has(p_any_domain_names, 'h.test')", 4, 1),
        ("cloudflare_httprequest", "'abcdef' = RayID", 1, 1),
        ("cloudflare_httprequest", "RayID IN ('abcdef', 'nothing', 'else')", 1, 1),
        ("cloudflare_httprequest", "RayID <> 'abcdef'", 4, 0),
        (
            "all_logs",
            "array_has(p_any_ip_addresses, '192.0.2.7') OR array_has(p_any_trace_ids, '192.0.2.7')",
            4,
            4,
        ),
    ] {
        let plan = plan(&session, &format!("SELECT p_row_id FROM {table} WHERE {condition}")).await;
        assert_eq!(files(&plan), opened, "{condition}\n{plan}");
        let counted = answer(&session, &format!("SELECT count(*) FROM {table} WHERE {condition}")).await;
        assert!(counted.contains(&format!("\n  {rows},")), "{condition}: {counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_that_the_planner_or_a_partition_fails_on_are_asked_of_rows() {
    let (_dir, session) = lake(&[]).await;
    for (condition, expected) in [
        ("p_event_date = CAST(p_event_time AS date)", 300),
        ("cast(p_event_time as date) <= p_event_date", 300),
        ("p_event_time > '2026-01-02T00:00:00Z' AND 1 / (extract(day FROM p_event_date) - 1) > 0", 100),
    ] {
        let rows = session
            .query(&format!("SELECT count(*) AS n FROM cloudflare_httprequest WHERE {condition}"), &[])
            .await;
        let rows: Vec<_> = rows.expect(condition).try_collect().await.expect(condition);
        let shown = pretty_format_batches(&rows).expect("text").to_string();
        assert!(shown.contains(&format!("| {expected} ")), "{condition}: {shown}");
    }
    // Digits are text where the statement does not tell.
    let values = [("v".to_owned(), Value::Untyped("1234567890123456".to_owned()))];
    let rows = session
        .query("SELECT 1 AS one FROM cloudflare_httprequest WHERE array_has(p_any_ip_addresses, $v)", &values)
        .await;
    let rows: Vec<_> = rows.expect("an answer").try_collect().await.expect("rows");
    assert_eq!(rows.iter().map(arrow::record_batch::RecordBatch::num_rows).sum::<usize>(), 0);
    let values = [("n".to_owned(), Value::Untyped("7".to_owned()))];
    let rows = session.query("SELECT ClientIP FROM cloudflare_httprequest LIMIT $n", &values).await;
    let rows: Vec<_> = rows.expect("an answer").try_collect().await.expect("rows");
    assert_eq!(rows.iter().map(arrow::record_batch::RecordBatch::num_rows).sum::<usize>(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_needs_more_than_its_files_is_refused() {
    let (dir, session) = lake(&[]).await;
    let table = dir.path().join("lake/cloudflare_httprequest");
    let log = |version: u32| table.join(format!("_delta_log/{version:020}.json"));
    let next = (0..).find(|version| !log(*version).exists()).expect("an end");
    let protocol = r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]}}"#;
    std::fs::write(log(next), format!("{protocol}\n")).expect("written");
    let error = session
        .query("SELECT count(*) FROM cloudflare_httprequest", &[])
        .await
        .map(drop)
        .expect_err("it is refused")
        .to_string();
    assert!(
        error.contains("reader version 3 (deletion vectors or renamed columns)")
            && error.contains("cloudflare_httprequest"),
        "{error}"
    );
    let searched = flarelake(&["--lake", text(&dir.path().join("lake")), "search", "192.0.2.1"]);
    assert!(
        !searched.status.success() && String::from_utf8_lossy(&searched.stderr).contains("reader version 3"),
        "{searched:?}"
    );
}
