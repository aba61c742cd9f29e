//! SQL as people type it: names in any case, other engines' functions, saved queries, formats and the shell.
//! What is asked is a lake of a dozen records, all of which stand below; what is expected was worked out from
//! them by hand.

use std::path::Path;

use flarelake::config::Partitioning;
use flarelake::query::{
    Expanded, Format, Renderer, SavedQuery, Session, Value, Vocabulary, built_in, completions, is_complete,
    split,
};
use flarelake::schema::Catalog;
use futures::StreamExt as _;
use serde_json::{Value as Json, json};

use crate::support::{flarelake, stdout};

const RECORDS: &str = r#"{"EdgeStartTimestamp":"2026-01-15T10:00:00Z","ZoneID":1,"ClientIP":"192.0.2.1","ClientCountry":"de","ClientRequestHost":"a.example.com","ClientRequestPath":"/x","CacheCacheStatus":"hit","EdgeResponseStatus":200,"EdgeResponseBytes":100,"BotScore":5,"BotScoreSrc":"Machine Learning","RayID":"r1","OriginIP":"198.51.100.1","OriginResponseStatus":200,"OriginResponseTime":10000000}
{"EdgeStartTimestamp":"2026-01-15T10:10:00Z","ZoneID":1,"ClientIP":"192.0.2.1","ClientCountry":"de","ClientRequestHost":"a.example.com","ClientRequestPath":"/x","CacheCacheStatus":"miss","EdgeResponseStatus":403,"EdgeResponseBytes":50,"BotScore":7,"BotScoreSrc":"Machine Learning","RayID":"r2","OriginIP":"198.51.100.1","OriginResponseStatus":503,"OriginResponseTime":30000000}
{"EdgeStartTimestamp":"2026-01-15T11:00:00Z","ZoneID":1,"ClientIP":"192.0.2.2","ClientCountry":"us","ClientRequestHost":"a.example.com","ClientRequestPath":"/y","CacheCacheStatus":"hit","EdgeResponseStatus":200,"EdgeResponseBytes":25,"BotScore":95,"BotScoreSrc":"Heuristics","RayID":"r3"}
{"EdgeStartTimestamp":"2026-01-16T09:00:00Z","ZoneID":1,"ClientIP":"192.0.2.2","ClientCountry":"us","ClientRequestHost":"b.example.com","ClientRequestPath":"/z","CacheCacheStatus":"miss","EdgeResponseStatus":502,"EdgeResponseBytes":10,"RayID":"r4","OriginIP":"198.51.100.2","OriginResponseStatus":502,"OriginResponseTime":50000000}
{"Datetime":"2026-01-15T10:05:00Z","Action":"block","Source":"waf","RuleID":"rule1","ClientIP":"192.0.2.1","RayID":"r2"}
{"Datetime":"2026-01-15T10:06:00Z","Action":"block","Source":"waf","RuleID":"rule1","ClientIP":"192.0.2.3","RayID":"r5"}
{"Datetime":"2026-01-15T11:00:00Z","Action":"managed_challenge","Source":"firewallManaged","RuleID":"rule2","ClientIP":"192.0.2.3","RayID":"r6"}
{"Datetime":"2026-01-16T09:30:00Z","Action":"log","Source":"waf","RuleID":"rule1","ClientIP":"192.0.2.3","RayID":"r7"}
{"Timestamp":"2026-01-15T10:00:00Z","Application":"app1","Event":"connect","ClientIP":"192.0.2.9","ConnectTimestamp":"2026-01-15T10:00:00Z","ClientBytes":0,"OriginBytes":0,"Status":0}
{"Timestamp":"2026-01-15T10:01:00Z","Application":"app1","Event":"disconnect","ClientIP":"192.0.2.9","ConnectTimestamp":"2026-01-15T10:00:00Z","ClientBytes":10,"OriginBytes":20,"Status":0}
{"Timestamp":"2026-01-16T10:00:00Z","Application":"app1","Event":"disconnect","ClientIP":"192.0.2.8","ConnectTimestamp":"2026-01-16T09:00:00Z","ClientBytes":5,"OriginBytes":6,"Status":0}
{"broken
"#;

pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A lake of the records above, and a session over it.
pub async fn asked() -> (tempfile::TempDir, Session) {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("all.log");
    std::fs::write(&log, RECORDS).expect("written");
    let lake = dir.path().join("lake");
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&log)]));
    let store =
        flarelake::base::store::Store::open(text(&lake), &Default::default()).await.expect("a folder");
    let session =
        Session::open(&store, &Catalog::embedded(), Partitioning::Day, 1 << 28).await.expect("a lake");
    (dir, session)
}

async fn rows(session: &Session, sql: &str, values: &[(String, Value)]) -> Result<Vec<Json>, String> {
    let mut batches = session.query(sql, values).await.map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let mut renderer = Renderer::new(Format::Ndjson, batches.schema(), &mut bytes).expect("memory");
    while let Some(batch) = batches.next().await {
        renderer.write(batch.map_err(|e| e.to_string())?).expect("memory");
    }
    renderer.finish().expect("memory");
    Ok(String::from_utf8(bytes)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect())
}

async fn one(session: &Session, sql: &str) -> Json {
    let mut rows = rows(session, sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_be_written_in_any_case_in_every_clause() {
    let (_dir, session) = asked().await;
    for (sql, expected) in [
        ("select clientip from cloudflare_httprequest where RAYID = 'r1'", json!({"ClientIP": "192.0.2.1"})),
        (
            "SELECT CLIENTIP FROM CLOUDFLARE_HTTPREQUEST H WHERE h.rayid = 'r1'",
            json!({"ClientIP": "192.0.2.1"}),
        ),
        (
            r#"SELECT "ClientIP" FROM "cloudflare_httprequest" WHERE "RayID" = 'r1'"#,
            json!({"ClientIP": "192.0.2.1"}),
        ),
        (
            "SELECT clientip FROM Panther_Logs.PUBLIC.Cloudflare_HttpRequest ORDER BY edgestarttimestamp LIMIT 1",
            json!({"ClientIP": "192.0.2.1"}),
        ),
        (
            "select CLIENTCOUNTRY, COUNT(*) as Many from cloudflare_httprequest group by clientcountry having MANY > 1 order by many, ClientCountry limit 1",
            json!({"ClientCountry": "de", "Many": 2}),
        ),
        (
            "with Foo (A, b) as (select clientip, Count(*) from cloudflare_httprequest group by CLIENTIP) select a, B from FOO order by b, A limit 1",
            json!({"A": "192.0.2.1", "b": 2}),
        ),
        (
            "select T.Total from (select SUM(edgeresponsebytes) as total from cloudflare_httprequest) t",
            json!({"Total": 185}),
        ),
        (
            "select F.action, h.edgeresponsestatus from cloudflare_firewall f join cloudflare_httprequest H using (rayid)",
            json!({"Action": "block", "EdgeResponseStatus": 403}),
        ),
        (
            "select h.rayid, f.rayid from cloudflare_httprequest h join cloudflare_firewall f on H.RayId = F.rayID",
            json!({"RayID": "r2", "RayID_2": "r2"}),
        ),
        (
            "select max(BOTSCORE) from cloudflare_httprequest where P_EVENT_DATE = date '2026-01-15'",
            json!({"max(BotScore)": 95}),
        ),
        (
            "select rayid, rank() over (partition by clientip order by EDGESTARTTIMESTAMP) as R from cloudflare_httprequest qualify r = 2 and clientip = '192.0.2.2'",
            json!({"RayID": "r4", "R": 2}),
        ),
        (
            "select P_LOG_TYPE from ALL_LOGS where P_ANY_TRACE_IDS = make_array('r4')",
            json!({"p_log_type": "Cloudflare.HttpRequest"}),
        ),
        (
            "select TABLE_NAME from INFORMATION_SCHEMA.TABLES where Table_Name = 'lake_files' and TABLE_CATALOG = 'flarelake' and table_schema = 'public'",
            json!({"table_name": "lake_files"}),
        ),
        ("select COUNT_IF(botscore < 30) from cloudflare_httprequest", json!({"COUNT_IF(BotScore < 30)": 2})),
        ("with t as (select 1 as a, 2 as \"A\") select a, \"A\" from t", json!({"a": 1, "A": 2})),
        ("with Rank(x) as (select 1) select * from rank", json!({"x": 1})),
        ("select max(BOTSCORE) from cloudflare_httprequest union select 95", json!({"max(BotScore)": 95})),
        (
            "select count(*) as n from cloudflare_httprequest -- CLIENTIP\n where /* ; */ clientip = 'CLIENTIP'",
            json!({"n": 0}),
        ),
    ] {
        assert_eq!(one(&session, sql).await, expected, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_is_told_with_the_one_that_was_meant() {
    let (_dir, session) = asked().await;
    for (sql, hint) in [
        (
            "select ClientIPx from cloudflare_httprequest",
            "there is no column `ClientIPx`; did you mean `ClientIP`?",
        ),
        (
            "select h.cleintip from cloudflare_httprequest h",
            "there is no column `cleintip`; did you mean `ClientIP`?",
        ),
        (
            "select 1 from cloudflare_htprequest",
            "there is no table `cloudflare_htprequest`; did you mean `cloudflare_httprequest`?",
        ),
        (
            "select cuont(*) from cloudflare_httprequest",
            "there is no function `cuont`; did you mean `count`?",
        ),
    ] {
        assert_eq!(rows(&session, sql, &[]).await, Err(hint.to_owned()), "{sql}");
    }
    let error = rows(&session, "select 'open", &[]).await.expect_err("an open quote");
    assert!(error.contains("Unterminated"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_where_no_column_is_asked_for() {
    let (_dir, session) = asked().await;
    for (sql, expected) in [
        ("SELECT 1 AS n FROM cloudflare_spectrum LIMIT 2", 2),
        ("SELECT 1 AS n FROM cloudflare_httprequest LIMIT 1", 1),
        ("SELECT 1 AS n FROM cloudflare_spectrum LIMIT 1 OFFSET 1", 1),
        ("SELECT 1 AS n FROM cloudflare_spectrum", 3),
        ("SELECT 1 AS n FROM cloudflare_spectrum WHERE Event = 'disconnect' LIMIT 1", 1),
    ] {
        assert_eq!(rows(&session, sql, &[]).await.expect("an answer").len(), expected, "{sql}");
    }
    assert_eq!(
        one(&session, "SELECT count(*) AS n FROM (SELECT 1 FROM cloudflare_spectrum LIMIT 2)").await,
        json!({"n": 2})
    );
    assert_eq!(one(&session, "SELECT count(*) AS n FROM cloudflare_spectrum").await, json!({"n": 3}));
}

#[test]
fn of_two_columns_that_differ_in_case_the_one_that_is_written_is_meant() {
    let mut names = Vocabulary::default();
    names.add_table("a", ["ClientASN".to_owned()]);
    names.add_table("b", ["ClientAsn".to_owned()]);
    let spelled = |sql: &str| names.spell(sql, &datafusion::sql::sqlparser::dialect::GenericDialect {});
    assert_eq!(spelled("SELECT CLIENTASN FROM A"), "SELECT ClientASN FROM a");
    assert_eq!(spelled("SELECT CLIENTASN FROM B"), "SELECT ClientAsn FROM b");
    assert_eq!(spelled("SELECT b.ClientAsn FROM a, b"), "SELECT b.ClientAsn FROM a, b");
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_snowflake_athena_and_panther_run() {
    let (_dir, session) = asked().await;
    let of = "from cloudflare_httprequest";
    for (what, of, expected) in [
        ("count_if(botscore < 30)", of, json!(2)),
        ("sum(IFF(clientip = '192.0.2.1', 10, 1))", of, json!(22)),
        (
            "count(*)",
            "from cloudflare_httprequest where P_Occurs_Between('2026-01-15', '2026-01-15T10:30:00Z')",
            json!(2),
        ),
        ("count(*)", "from cloudflare_httprequest h where p_occurs_after('2026-01-16', h)", json!(1)),
        ("count(*)", "from cloudflare_httprequest where p_occurs_before('2026-01-15T10:05:00Z')", json!(1)),
        (
            "count(*)",
            "from cloudflare_httprequest where p_occurs_around('2026-01-15T10:05:00Z', '5 m')",
            json!(2),
        ),
        ("count(*)", "from cloudflare_httprequest where p_occurs_since('10000 days')", json!(4)),
        ("count(*)", "from cloudflare_httprequest where p_occurs_since('1 s')", json!(0)),
        (
            "count(*)",
            "from cloudflare_httprequest where array_contains('192.0.2.1'::VARIANT, p_any_ip_addresses)",
            json!(2),
        ),
        ("count(*)", "from cloudflare_httprequest where contains(p_any_ip_addresses, '192.0.2.1')", json!(2)),
        ("count(*)", "from cloudflare_httprequest where contains(clientrequesthost, 'b.ex')", json!(1)),
        ("max(array_size(p_any_ip_addresses))", of, json!(2)),
        ("max_by(rayid, edgestarttimestamp)", of, json!("r4")),
        ("min_by(rayid, edgestarttimestamp)", of, json!("r1")),
        ("date_diff('hour', min(p_event_time), max(p_event_time))", of, json!(23)),
        ("datediff(day, '2026-01-15T23:59:00Z', '2026-01-16T00:01:00Z')", "", json!(1)),
        ("date_diff('day', '2026-01-15T23:59:00Z', '2026-01-16T00:01:00Z')", "", json!(0)),
        ("datediff('month', '2025-12-31', '2026-02-01')", "", json!(2)),
        ("dateadd(hour, 5, date '2026-01-01')", "", json!("2026-01-01T05:00:00Z")),
        ("regexp_extract('abc123', '[a-z]+([0-9]+)')", "", json!("abc123")),
        ("regexp_extract('abc123', '[a-z]+([0-9]+)', 1)", "", json!("123")),
        ("arbitrary(a)", "from (values (cast(null as int)), (1)) t(a)", json!(1)),
        ("iff (true, 1 -- yes\n, 2)", "", json!(1)),
        ("'iff(1, 2, 3)'", "", json!("iff(1, 2, 3)")),
        ("array_size(element_at(map {'k': make_array(1, 2)}, 'k'))", "", json!(2)),
        ("dateadd(day, -1, '2026-01-15T10:00:00Z')", "", json!("2026-01-14T10:00:00Z")),
        ("date_add('quarter', 1, '2026-01-15')", "", json!("2026-04-15T00:00:00Z")),
        ("max(regexp_extract(clientrequesthost, '^([a-z])'))", of, json!("b")),
        ("approx_count_distinct(clientip)", of, json!(2)),
        (
            "listagg(distinct clientcountry, '+')",
            "from cloudflare_httprequest where clientip = '192.0.2.1'",
            json!("de"),
        ),
        ("from_iso8601_timestamp('2026-01-15T10:00:00Z') = timestamp '2026-01-15T10:00:00'", "", json!(true)),
        ("element_at(make_array('a', 'b'), 2)", "", json!("b")),
        ("zeroifnull(null)", "", json!(0)),
        ("dateadd(day, -7 * 2, '2026-01-15T10:00:00Z')", "", json!("2026-01-01T10:00:00Z")),
        (
            "dateadd('hour', edgeresponsestatus - 200, edgestarttimestamp)",
            "from cloudflare_httprequest where rayid = 'r2'",
            json!("2026-01-23T21:10:00Z"),
        ),
        ("listagg(rayid, '+') within group (order by rayid desc)", of, json!("r4+r3+r2+r1")),
        ("rows['cloudflare_httprequest']", "from ingested_objects", json!(4)),
        ("count(*)", "from cloudflare_httprequest where p_rescued_data['JA4'] is null", json!(4)),
        ("count(*)", "from cloudflare_httprequest where p_any_ip_addresses[1] = '192.0.2.1'", json!(2)),
        (
            "current_timestamp() > p_event_time and sysdate() > p_event_time",
            "from cloudflare_httprequest where rayid = 'r1'",
            json!(true),
        ),
    ] {
        let sql = format!("select {what} as x {of}");
        assert_eq!(one(&session, &sql).await["x"], expected, "{sql}");
    }
}

/// A saved query, what is given to it besides `since`, and what it answers: some of its columns, all of its
/// rows.
type Answer = (&'static str, Vec<(&'static str, &'static str)>, Json);

fn answers() -> Vec<Answer> {
    let day = |n: u32| format!("2026-01-{n}T00:00:00Z");
    vec![
        ("blocked_by_rule", vec![], json!([{"product": "waf", "rule": "rule1", "blocked": 2, "clients": 2}])),
        (
            "bot_scores",
            vec![],
            json!([{"score_from": 0, "told_by": "Machine Learning", "requests": 2, "clients": 1, "refused_percent": 50.0},
                {"score_from": 90, "told_by": "Heuristics", "requests": 1, "clients": 1, "refused_percent": 0.0}]),
        ),
        (
            "cache_ratio_by_host",
            vec![],
            json!([{"host": "a.example.com", "requests": 3, "cached_percent": 66.7, "bytes": 175},
                {"host": "b.example.com", "requests": 1, "cached_percent": 0.0, "bytes": 10}]),
        ),
        ("duplicates", vec![], json!([])),
        (
            "errors_by_origin",
            vec![],
            json!([{"origin": "198.51.100.1", "status": 503, "errors": 1, "mean_ms": 30.0, "first_seen": "2026-01-15T10:10:00Z"},
                {"origin": "198.51.100.2", "status": 502, "errors": 1, "mean_ms": 50.0, "last_seen": "2026-01-16T09:00:00Z"}]),
        ),
        (
            "events_by_log_type",
            vec![("since", "2026-01-16")],
            json!([{"log_type": "Cloudflare.Firewall", "day": day(16), "events": 1},
                {"log_type": "Cloudflare.HttpRequest", "day": day(16), "events": 1},
                {"log_type": "Cloudflare.Spectrum", "day": day(16), "events": 1}]),
        ),
        (
            "freshness",
            vec![],
            json!([{"source": "files", "objects": 1, "newest_event": "2026-01-16T10:00:00Z"}]),
        ),
        (
            "indicator",
            vec![("value", "192.0.2.1")],
            json!([{"log_type": "Cloudflare.HttpRequest", "events": 2, "first_seen": "2026-01-15T10:00:00Z", "last_seen": "2026-01-15T10:10:00Z"},
                {"log_type": "Cloudflare.Firewall", "events": 1}]),
        ),
        (
            "late_data",
            vec![],
            json!([{"log_type": "Cloudflare.Firewall", "rows": 4, "late": 4}, {"log_type": "Cloudflare.HttpRequest", "rows": 4, "late": 4},
                {"log_type": "Cloudflare.Spectrum", "rows": 3, "late": 3}]),
        ),
        ("rejects_by_reason", vec![], json!([{"reason": "invalid_json", "rejects": 1, "objects": 1}])),
        (
            "slow_paths",
            vec![("at_least", "1"), ("host", "b.example.com")],
            json!([{"host": "b.example.com", "path": "/z", "requests": 1, "mean_ms": 50.0, "p95_ms": 50.0}]),
        ),
        (
            "spectrum_connections",
            vec![],
            json!([{"Application": "app1", "Event": "disconnect", "events": 2, "clients": 2, "bytes_in": 15, "bytes_out": 26},
                {"Application": "app1", "Event": "connect", "events": 1, "clients": 1, "bytes_in": 0, "bytes_out": 0}]),
        ),
        (
            "top_talkers",
            vec![("limit", "1")],
            json!([{"client": "192.0.2.1", "country": "de", "requests": 2, "refused": 1}]),
        ),
        (
            "waf_timeline",
            vec![],
            json!([{"hour": "2026-01-15T10:00:00Z", "events": 2, "blocked": 2, "challenged": 0, "logged": 0, "clients": 2},
                {"hour": "2026-01-15T11:00:00Z", "events": 1, "blocked": 0, "challenged": 1, "logged": 0, "clients": 1},
                {"hour": "2026-01-16T09:00:00Z", "events": 1, "blocked": 0, "challenged": 0, "logged": 1, "clients": 1}]),
        ),
        (
            "files_and_sizes",
            vec![("since", "2026-01-16")],
            json!([{"table_name": "classification_failures", "files": 1, "rows": 1}, {"table_name": "cloudflare_firewall", "day": "2026-01-16", "files": 1, "below_32_mib": 1, "rows": 1},
                {"table_name": "cloudflare_httprequest", "day": "2026-01-16", "files": 1, "rows": 1},
                {"table_name": "cloudflare_spectrum", "day": "2026-01-16", "files": 1, "rows": 1},
                {"table_name": "ingested_objects", "day": null, "files": 1, "rows": 1}]),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_queries_answer_what_they_say() {
    let (_dir, session) = asked().await;
    let answers = answers();
    let folder =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("queries")).expect("the folder");
    let mut files: Vec<String> = folder
        .map(|f| f.expect("a file").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(
        built_in().iter().map(|q| q.name.clone()).collect::<Vec<_>>(),
        files,
        "each file is in the program"
    );
    assert!(files.len() >= 12);
    for query in built_in() {
        assert!(
            !query.title.is_empty() && query.title != query.name && query.answers.len() > 40,
            "{}",
            query.name
        );
        assert!(
            query.parameters.iter().all(|p| p.help.len() > 5 && query.sql.contains(&format!("${}", p.name))),
            "{}",
            query.name
        );
        let (_, given, expected) = answers
            .iter()
            .find(|(name, ..)| *name == query.name)
            .unwrap_or_else(|| panic!("{}: no answer", query.name));
        let mut given: Vec<(String, String)> =
            given.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        given.insert(0, ("since".to_owned(), "2026-01-01".to_owned()));
        let values = query.arguments(&given).expect("arguments");
        let found =
            rows(&session, &query.sql, &values).await.unwrap_or_else(|e| panic!("{}: {e}", query.name));
        let expected = expected.as_array().expect("rows");
        assert_eq!(found.len(), expected.len(), "{}: {found:#?}", query.name);
        for (found, expected) in found.iter().zip(expected) {
            for (column, value) in expected.as_object().expect("a row") {
                assert_eq!(found.get(column), Some(value), "{}: {column} of {found}", query.name);
            }
        }
        // With its defaults it runs as well, if it has them all.
        if let Ok(values) = query.arguments(&[]) {
            rows(&session, &query.sql, &values)
                .await
                .unwrap_or_else(|e| panic!("{} with its defaults: {e}", query.name));
        }
    }
}

#[test]
fn arguments_are_checked_by_their_types() {
    let text = "-- title: T\n-- param: since time = 7d: when\n-- param: limit integer: how many\n-- What it says.\nSELECT $limit";
    let query = SavedQuery::parse("t", text).expect("a header");
    let given = |pairs: &[(&str, &str)]| {
        query
            .arguments(&pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>())
            .map_err(|e| e.to_string())
    };
    assert_eq!(given(&[]), Err("t needs a value: -p limit=… (how many)".to_owned()));
    assert_eq!(given(&[("limit", "many")]), Err("t: limit = `many` is no integer".to_owned()));
    assert_eq!(
        given(&[("limit", "1"), ("lmit", "2")]),
        Err("t has no parameter `lmit`; it has since, limit".to_owned())
    );
    assert!(
        given(&[("limit", "1"), ("since", "soon")]).expect_err("no time").contains("7d for seven days ago")
    );
    let values = given(&[("limit", "1"), ("since", "2026-01-15T10:00:00+01:00")]).expect("arguments");
    assert_eq!(
        values,
        [("since".to_owned(), Value::Time(1_768_467_600_000_000)), ("limit".to_owned(), Value::Integer(1))]
    );
    assert!(SavedQuery::parse("t", "-- param: x number: y\nSELECT 1").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_values_and_never_part_of_the_statement() {
    let (_dir, session) = asked().await;
    let hostile = Value::Text("x' OR '1' = '1".to_owned());
    let sql = "SELECT count(*) AS n FROM cloudflare_httprequest WHERE ClientIP = $ip";
    let found = rows(&session, sql, &[("ip".to_owned(), hostile)]).await.expect("an answer");
    assert_eq!(found, [json!({"n": 0})]);
    let found = rows(&session, sql, &[("ip".to_owned(), Value::Text("192.0.2.1".to_owned()))])
        .await
        .expect("an answer");
    assert_eq!(found, [json!({"n": 2})]);
}

#[test]
fn statements_are_cut_at_semicolons_that_stand_alone() {
    assert_eq!(split("SELECT ';' ; -- ;\n SELECT 2;\n-- the end;\n"), ["SELECT ';'", "-- ;\n SELECT 2"]);
    for (text, complete) in [
        ("SELECT 1;", true),
        ("SELECT 1", false),
        ("SELECT ';", false),
        ("SELECT 1; -- done", true),
        ("SELECT 1 -- ;", false),
    ] {
        assert_eq!(is_complete(text), complete, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_follow_is_offered() {
    let (_dir, session) = asked().await;
    let offered = |text: &str| completions(session.vocabulary(), text, text.len());
    assert_eq!(offered("SELECT 1 FROM cloudflare_h"), (14..26, vec!["cloudflare_httprequest".to_owned()]));
    assert_eq!(
        offered("select clientreq").1,
        [
            "ClientRequestBytes",
            "ClientRequestHost",
            "ClientRequestMethod",
            "ClientRequestPath",
            "ClientRequestProtocol",
            "ClientRequestQuery",
            "ClientRequestReferer",
            "ClientRequestScheme",
            "ClientRequestURI",
            "ClientRequestUserAgent"
        ]
    );
    assert_eq!(
        offered("SELECT 1 FROM cloudflare_spectrum WHERE clienttls").1.len(),
        4,
        "of the table that is mentioned"
    );
    assert!(offered("SELECT approx_dist").1.contains(&"approx_distinct(".to_owned()));
    assert!(offered("SELECT p_occ").1.contains(&"p_occurs_since(".to_owned()));
    assert!(offered("SELECT 1 fr").1.contains(&"FROM".to_owned()));
}

#[test]
fn tables_are_framed_or_records_and_hold_no_control_characters() {
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    let schema = std::sync::Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
    ]));
    let columns: Vec<arrow::array::ArrayRef> = vec![
        std::sync::Arc::new(StringArray::from(vec![Some("ä\u{1b}[31m"), None])),
        std::sync::Arc::new(Int64Array::from(vec![Some(5), Some(1234)])),
    ];
    let batch = arrow::record_batch::RecordBatch::try_new(schema.clone(), columns).expect("a batch");
    let shown = |expanded: Expanded| {
        let mut bytes = Vec::new();
        let mut renderer =
            Renderer::new(Format::Table(expanded), schema.clone(), &mut bytes).expect("memory");
        renderer.write(batch.clone()).expect("memory");
        renderer.finish().expect("memory");
        String::from_utf8(bytes).expect("text")
    };
    let frame = "\
+-------------+------+
| name        | n    |
+-------------+------+
| ä\\u{1b}[31m |    5 |
| NULL        | 1234 |
+-------------+------+
";
    assert_eq!(shown(Expanded::Off), frame);
    assert_eq!(shown(Expanded::WiderThan(22)), frame);
    let records = "\
-[ RECORD 1 ]------------
name | ä\\u{1b}[31m
n    | 5
-[ RECORD 2 ]------------
name | NULL
n    | 1234
";
    assert_eq!(shown(Expanded::WiderThan(21)), records);
    assert_eq!(shown(Expanded::On), records);
}
