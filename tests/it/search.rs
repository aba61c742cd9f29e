//! Search: one value in every table. What is found is compared with what SQL counts over the same tables
//! without any of the shortcuts, and what was read with what there is.

use std::path::Path;
use std::sync::Arc;

use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::query::Session;
use flarelake::schema::Catalog;
use flarelake::search::{Found, Needle, Searched, search};
use futures::StreamExt as _;
use serde_json::Value;

use crate::support::{flarelake, stdout};

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

struct Stage {
    dir: tempfile::TempDir,
    store: Store,
    session: Session,
}

impl Stage {
    /// A lake of realistic logs over three days, and of some records of our own.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = dir.path().join("logs");
        for log_type in ["Cloudflare.HttpRequest", "Cloudflare.Firewall", "Cloudflare.Spectrum"] {
            let out = logs.join(log_type);
            stdout(&flarelake(&[
                "generate",
                "--log-type",
                log_type,
                "--rows",
                "12000",
                "--files",
                "3",
                "--seed",
                "11",
                "--out",
                text(&out),
            ]));
        }
        let own = r#"{"EdgeStartTimestamp":"2026-02-01T10:00:00Z","ZoneID":1,"ClientIP":"FD77:DB8:0:0::1","ClientRequestHost":"Deep.Below.Needle.TEST.","RayID":"needle1"}
{"EdgeStartTimestamp":"2026-02-02T10:00:00Z","ZoneID":1,"ClientIP":"fd77:db8:ffff::1","ClientRequestHost":"needle.test:8443","RayID":"needle2"}
{"EdgeStartTimestamp":"2026-02-03T10:00:00Z","ZoneID":1,"ClientIP":"::ffff:203.0.113.77","ClientRequestHost":"notneedle.test","RayID":"needle3"}
{"Datetime":"2026-02-03T11:00:00Z","Action":"block","ClientIP":"203.0.113.77","ClientRequestHost":"a.needle.test","RayID":"needle3"}
"#;
        std::fs::write(logs.join("own.log"), own).expect("written");
        let lake = dir.path().join("lake");
        stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&logs)]));
        let store = Store::open(text(&lake), &Default::default()).await.expect("a folder");
        let session =
            Session::open(&store, &Catalog::embedded(), Partitioning::Day, 1 << 28).await.expect("a lake");
        Self { dir, store, session }
    }

    async fn search(&self, value: &str, since: i64) -> Found {
        self.searched(&[value], since).await.found.remove(0)
    }

    async fn searched(&self, values: &[&str], since: i64) -> Searched {
        let needles: Vec<Needle> =
            values.iter().map(|value| Needle::parse(value).expect("a value")).collect();
        search(&self.store, &Catalog::embedded(), &needles, since, 5).await.expect("an answer")
    }

    /// One value of one row.
    async fn one(&self, sql: &str) -> Option<String> {
        use arrow::util::display::{ArrayFormatter, FormatOptions};
        let mut batches = self.session.query(sql, &[]).await.expect("an answer");
        while let Some(batch) = batches.next().await {
            let batch = batch.expect("rows");
            if batch.num_rows() > 0 {
                let column = batch.column(0);
                return column.is_valid(0).then(|| {
                    ArrayFormatter::try_new(column, &FormatOptions::default())
                        .expect("shown")
                        .value(0)
                        .to_string()
                });
            }
        }
        None
    }
}

fn rows(found: &Found) -> Vec<(&str, u64)> {
    found.tables.iter().map(|t| (t.table.as_str(), t.rows)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_what_sql_counts() {
    let stage = Stage::new().await;
    let common = stage
        .one("SELECT ClientIP FROM cloudflare_httprequest GROUP BY ClientIP ORDER BY count(*) DESC, ClientIP LIMIT 1")
        .await
        .expect("an address");
    let rare =
        stage.one("SELECT RayID FROM cloudflare_firewall ORDER BY RayID LIMIT 1").await.expect("a ray");
    let host = stage
        .one("SELECT ClientRequestHost FROM cloudflare_httprequest WHERE ClientRequestHost LIKE '%.%.%' LIMIT 1")
        .await
        .expect("a host");
    let domain = host.split_once('.').expect("a domain").1.to_owned();
    let network = format!("{}.0.0/16", common.split('.').take(2).collect::<Vec<_>>().join("."));
    let pattern = common.split('.').take(2).collect::<Vec<_>>().join(r"\.");
    let list = |column: &str| format!("' ' || array_to_string({column}, ' ') || ' '");
    let (ips, hosts, rays) =
        (list("p_any_ip_addresses"), list("p_any_domain_names"), list("p_any_trace_ids"));
    for (value, condition) in [
        (common.clone(), format!("{ips} LIKE '% {common} %'")),
        (rare.clone(), format!("{rays} LIKE '% {rare} %'")),
        (host.to_uppercase(), format!("{hosts} LIKE '% {host} %'")),
        (format!("*.{domain}"), format!("({hosts} LIKE '% {domain} %' OR {hosts} LIKE '%.{domain} %')")),
        (network, format!(r"{ips} ~ ' {pattern}\.'")),
    ] {
        let found = stage.search(&value, 0).await;
        assert!(!found.tables.is_empty(), "{value}");
        let mut total = 0;
        for table in &found.tables {
            let of = |what: &str| format!("SELECT {what} FROM {} WHERE {condition}", table.table);
            assert_eq!(
                stage.one(&of("count(*)")).await,
                Some(table.rows.to_string()),
                "{value} in {}",
                table.table
            );
            let times = (
                stage.one(&of("arrow_cast(min(p_event_time), 'Int64')")).await,
                stage.one(&of("arrow_cast(max(p_event_time), 'Int64')")).await,
            );
            assert_eq!(
                times,
                (Some(table.times.0.to_string()), Some(table.times.1.to_string())),
                "{value} in {}",
                table.table
            );
            for (day, rows) in &table.days {
                let counted =
                    stage.one(&of(&format!("count(*) FILTER (WHERE p_event_date = date '{day}')"))).await;
                assert_eq!(counted, Some(rows.to_string()), "{value} in {} on {day}", table.table);
            }
            assert_eq!(table.days.values().sum::<u64>(), table.rows);
            total += table.rows;
        }
        assert_eq!(
            stage.one(&format!("SELECT count(*) FROM all_logs WHERE {condition}")).await,
            Some(total.to_string()),
            "{value}"
        );
        let newest = stage
            .one(&format!("SELECT arrow_cast(max(p_event_time), 'Utf8') FROM all_logs WHERE {condition}"))
            .await
            .expect("a time");
        let first = &found.newest[0].row["p_event_time"];
        assert!(newest.starts_with(&first.as_str().expect("text")[..19]), "{value}: {first}, not {newest}");
        assert_eq!(found.newest.len() as u64, total.min(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_found_in_any_spelling() {
    let stage = Stage::new().await;
    for value in ["fd77:db8::1", "FD77:0DB8:0000::0001", "[fd77:db8::1]"] {
        assert_eq!(rows(&stage.search(value, 0).await), [("cloudflare_httprequest", 1)], "{value}");
    }
    for value in [
        "203.0.113.77",
        "::ffff:203.0.113.77",
        "203.0.113.77:443",
        "http://203.0.113.77/x",
        "::ffff:203.0.113.0/120",
        "203.0.113.0/24",
    ] {
        assert_eq!(stage.search(value, 0).await.tables.len(), 2, "{value}");
    }
    assert_eq!(rows(&stage.search("fd77:db8::/32", 0).await), [("cloudflare_httprequest", 2)]);
    assert_eq!(rows(&stage.search("fd77:db8::/64", 0).await), [("cloudflare_httprequest", 1)]);
    assert_eq!(rows(&stage.search("DEEP.below.needle.test", 0).await), [("cloudflare_httprequest", 1)]);
    assert_eq!(rows(&stage.search("https://needle.test/path", 0).await), [("cloudflare_httprequest", 1)]);
    let below = stage.search("*.Needle.test", 0).await;
    assert_eq!(
        rows(&below),
        [("cloudflare_httprequest", 2), ("cloudflare_firewall", 1)],
        "not notneedle.test"
    );
    assert_eq!(below.newest[0].row["RayID"], Value::from("needle3"));
    assert_eq!(
        below.newest.iter().map(|n| n.table.as_str()).collect::<Vec<_>>(),
        ["cloudflare_firewall", "cloudflare_httprequest", "cloudflare_httprequest"]
    );
    // Only what is recent enough.
    assert_eq!(rows(&stage.search("needle3", 1_770_112_800_000_001).await), [("cloudflare_firewall", 1)]);
    assert!(stage.search("needle3", 1_900_000_000_000_000).await.tables.is_empty());
    for wrong in ["", "a*b.needle.test", "*.*.org", "192.0.2.0/33"] {
        assert!(Needle::parse(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nowhere_costs_footers_and_a_few_bytes_a_filter() {
    let stage = Stage::new().await;
    let values = ["198.18.7.7", "nowhere.needle.test", "0123456789abcdef"];
    for value in values {
        let searched = stage.searched(&[value], 0).await;
        assert!(searched.found[0].tables.is_empty());
        let footers = searched.files as u64 * (14 << 10);
        let (read, total) = (searched.bytes_read, searched.bytes_total);
        assert!(read <= footers + searched.files as u64 * 256, "{value}: {read} bytes of {total}");
    }
    // Of what a filter can't be asked, an index of a few kilobytes a file tells.
    for value in ["198.18.0.0/15", "fd00:dead::/32", "*.nowhere.test"] {
        let searched = stage.searched(&[value], 0).await;
        assert!(searched.found[0].tables.is_empty());
        let most = searched.files as u64 * (24 << 10);
        assert!(
            searched.bytes_read <= most,
            "{value}: {} bytes of {}",
            searched.bytes_read,
            searched.bytes_total
        );
    }
    // Several values at once: each footer is read once.
    let (one, all) = (stage.searched(&values[..1], 0).await, stage.searched(&values, 0).await);
    assert!(
        all.bytes_read < one.bytes_read + one.files as u64 * 256,
        "{} bytes, and {} for one",
        all.bytes_read,
        one.bytes_read
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_people_and_machines_the_same() {
    let stage = Arc::new(Stage::new().await);
    let lake = stage.dir.path().join("lake");
    let ask = |arguments: &[&str]| {
        flarelake(&[&["--lake", text(&lake), "search", "--since", "3000d"], arguments].concat())
    };
    let shown = stdout(&ask(&["needle3", "--rows", "1"]));
    assert!(
        shown
            .contains("cloudflare_httprequest          1 rows  2026-02-03T10:00:00Z to 2026-02-03T10:00:00Z"),
        "{shown}"
    );
    assert!(
        shown.contains(
            "2026-02-03T11:00:00Z  cloudflare_firewall  Action=block ClientIP=203.0.113.77 ClientRequestHost=a.needle.test RayID=needle3"
        ),
        "{shown}"
    );
    assert!(!shown.contains("Action=block ClientIP=::ffff"), "{shown}");
    let told: Value =
        serde_json::from_str(&stdout(&ask(&["needle3", "nothing", "--format", "json"]))).expect("JSON");
    assert_eq!(
        (told[0]["tables"].as_array().map(Vec::len), told[1]["tables"].as_array().map(Vec::len)),
        (Some(2), Some(0))
    );
    assert_eq!(told[0]["tables"][0]["days"], serde_json::json!([{"day": "2026-02-03", "rows": 1}]));
    assert_eq!(told[0]["newest"][0]["row"]["Action"], Value::from("block"));
    assert_eq!(stdout(&ask(&["a", "b", "--format", "ndjson"])).lines().count(), 2);
    assert_eq!(ask(&["192.0.2.0/33"]).status.code(), Some(2));
    let nowhere = flarelake(&["--lake", text(&stage.dir.path().join("nowhere")), "search", "x"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("there is no lake"), "{nowhere:?}");
}
