//! Reconciling: what the names of Cloudflare's objects tell, and a bucket on the wire whose lake lacks some
//! of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flarelake::decode::object::ObjectId;
use flarelake::recover::{Comparison, State, Streams, Window, is_dated};
use flarelake::source::bucket::{ListedObject, ObjectHead};
use serde_json::{Value, json};

use crate::moto::{Cloud, Moto, python, skipped};
use crate::support::flarelake;

/// Seconds since the epoch.
fn at(text: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp()
}

/// Gaps as (stream, from, until), by keys, until a time.
fn gaps(keys: &[&str], until: Option<&str>, longer_than: Option<i64>) -> Vec<(String, i64, Option<i64>)> {
    let mut streams = Streams::default();
    keys.iter().for_each(|key| streams.add(key));
    streams
        .gaps(until.map(at), longer_than)
        .into_iter()
        .map(|gap| (gap.stream, gap.from, gap.until))
        .collect()
}

/// Ranges of a minute each, that join, over `minutes` of a day.
fn minutes(prefix: &str, minutes: std::ops::Range<u32>) -> Vec<String> {
    let time = |minute: u32| format!("20240501T{:02}{:02}00Z", minute / 60, minute % 60);
    minutes.map(|minute| format!("{prefix}{}_{}_1747b6ef.log.gz", time(minute), time(minute + 1))).collect()
}

#[test]
fn names_tell_streams_and_gaps_in_any_order() {
    // As Cloudflare writes them: in the day's folder, flat, Hive-style, a range of a moment; one is late and
    // overlaps.
    let keys = [
        "http_requests/20210812/20210812T223000Z_20210812T224000Z_9af500e2.log.gz",
        "http_requests/20210813/20210813T031000Z_20210813T032000Z_00000002.log.gz",
        "http_requests/20210812/20210812T223500Z_20210812T233000Z_00000001.log.gz",
        "20240501/20240501T004901Z_20240501T004901Z_1747b6ef.log.gz",
        "20240501/20240501T010000Z_20240501T010030Z_1747b6ef.log.gz",
        "cloudflare/date=20240501/20240501T010000Z_20240501T010030Z_00000003.log.gz",
    ];
    let found = gaps(&keys, None, None);
    let http = ("http_requests/".to_owned(), at("2021-08-12T23:30:00Z"), Some(at("2021-08-13T03:10:00Z")));
    let flat = (String::new(), at("2024-05-01T00:49:01Z"), Some(at("2024-05-01T01:00:00Z")));
    let ended = ("http_requests/".to_owned(), at("2021-08-13T03:20:00Z"), None);
    assert_eq!(found, vec![flat, http.clone(), ended.clone()]);
    // Three hours and more only.
    assert_eq!(gaps(&keys, None, Some(3 * 3600)), vec![http, ended]);
}

#[test]
fn midnight_is_no_gap_wherever_the_day_is_in_the_path() {
    let ranges = [
        "20240430T235900Z_20240430T235930Z",
        "20240430T235930Z_20240501T000005Z",
        "20240501T000005Z_20240501T000035Z",
    ];
    for days in [
        ["a/20240430/", "a/20240430/", "a/20240501/"],
        // Pushed after midnight.
        ["a/20240501/", "a/20240501/", "a/20240501/"],
        ["a/date=20240430/b/", "a/date=20240501/b/", "a/date=20240501/b/"],
        ["a/2024/04/30/23/", "a/2024/05/01/00/", "a/2024/05/01/0/"],
        ["a/year=2024/month=04/day=30/", "a/year=2024/month=04/day=30/", "a/year=2024/month=05/day=01/"],
        ["logs-20240430/", "logs-20240430/", "logs-20240501/"],
        ["a/2024-04-30/zone-", "a/2024-04-30/zone-", "a/2024-05-01/zone-"],
    ] {
        let keys: Vec<String> =
            days.iter().zip(ranges).map(|(day, range)| format!("{day}{range}_1747b6ef.log.gz")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        assert_eq!(gaps(&keys, None, Some(0)), vec![], "{days:?}");
        // It is one stream: what is missing in the middle is a gap of it.
        assert_eq!(gaps(&[keys[0], keys[2]], None, Some(0)).len(), 1, "{days:?}");
    }
}

#[test]
fn names_without_a_time_range_are_counted() {
    let mut streams = Streams::default();
    for key in [
        "http/other.log.gz",
        "http/20240501T004901Z_1747b6ef.log.gz",
        "http/20241301T004901Z_20241301T004901Z_1747b6ef.log.gz",
        "http/20240501T010000Z_20240501T004901Z_ends-before-it-starts.log.gz",
        "20240501T004901Z_20240501T004901Z/folder.log",
        "ü/T20240501é",
        "",
    ] {
        streams.add(key);
    }
    assert_eq!((streams.unnamed, streams.is_empty()), (7, true));
    assert_eq!(streams.gaps(Some(0), None), vec![]);
}

#[test]
fn a_gap_is_longer_than_the_streams_own_habit() {
    // A busy stream of a day, without the hour from 10 to 11, and without six minutes.
    let busy = [minutes("busy/", 0..600), minutes("busy/", 660..700), minutes("busy/", 706..1439)].concat();
    // A quiet one: one minute in twenty all day; and five hours of nothing.
    let quiet: Vec<String> = (0..72)
        .filter(|n| !(30..45).contains(n))
        .flat_map(|n| minutes("quiet/", n * 20..n * 20 + 1))
        .collect();
    let keys: Vec<&str> = busy.iter().chain(&quiet).map(String::as_str).collect();
    let found = gaps(&keys, Some("2024-05-02T00:10:00Z"), None);
    let expected = [
        ("busy/", "2024-05-01T10:00:00Z", Some("2024-05-01T11:00:00Z")),
        ("busy/", "2024-05-01T11:40:00Z", Some("2024-05-01T11:46:00Z")),
        ("busy/", "2024-05-01T23:59:00Z", None),
        ("quiet/", "2024-05-01T09:41:00Z", Some("2024-05-01T15:00:00Z")),
    ];
    assert_eq!(found, expected.map(|(stream, from, until)| (stream.to_owned(), at(from), until.map(at))));
    // By day joined, by night one minute in half an hour: nights are no gaps, whatever most distances are.
    let mut nightly = minutes("zone/", 360..1440 - 1);
    nightly.extend((0..12).flat_map(|n| minutes("zone/", n * 30..n * 30 + 1)));
    let keys: Vec<&str> = nightly.iter().map(String::as_str).collect();
    assert_eq!(gaps(&keys, None, None), vec![]);
    // Nothing at all until now.
    assert_eq!(
        gaps(&keys, Some("2024-05-03T00:00:00Z"), None),
        vec![("zone/".to_owned(), at("2024-05-01T23:59:00Z"), None)]
    );
}

#[test]
fn a_day_that_is_over_is_no_silence() {
    for (prefix, dated) in [
        ("s3://logs/http_requests/", false),
        ("s3://logs/http_requests/20240501/", true),
        ("s3://logs/http_requests/date=2024", true),
        ("s3://logs/*/202405*/*.gz", true),
        ("s3://logs/20/zone-77", false),
    ] {
        assert_eq!(is_dated(prefix), dated, "{prefix}");
    }
}

#[test]
fn an_object_is_what_the_ledger_says_of_its_name_and_content() {
    let hour = 3_600_000_000;
    let object = |key: &str, size: u64, written: i64| ListedObject {
        key: key.to_owned(),
        head: ObjectHead { etag: "new".into(), size, last_modified: Some(written * hour) },
    };
    let names = [
        "a-missing",
        "b-unread",
        "c-changed",
        "d-landed",
        "e-young",
        "f-young-landed",
        "g-empty",
        "h-old",
        "i-changed-back",
    ];
    let listed = names.map(|name| {
        object(
            name,
            if name == "g-empty" { 0 } else { 10 },
            match &name[2..] {
                "young" | "young-landed" => 9,
                "old" => 1,
                _ => 5,
            },
        )
    });
    let mut comparison = Comparison::new("logs", listed.to_vec());
    let mut landed = |key: &str, etag: &str| comparison.landed(ObjectId::of_s3("logs", key, etag), key, etag);
    for (key, etag) in [
        ("c-changed", "old"),
        ("d-landed", "new"),
        ("f-young-landed", "new"),
        ("i-changed-back", "new"),
        ("i-changed-back", "old"),
        ("gone", "new"),
    ] {
        landed(key, etag);
    }
    comparison.landed(ObjectId::of_unread("missing", "logs", "b-unread", "new"), "b-unread", "new");
    // Rejected when it was announced, and landed when it came.
    comparison.landed(ObjectId::of_unread("missing", "logs", "d-landed", "new"), "d-landed", "new");
    let found = comparison.finish(Window { from: Some(2 * hour), settled: 8 * hour });
    let absent: Vec<(State, &str)> =
        found.absent.iter().map(|absent| (absent.state, absent.object.key.as_str())).collect();
    assert_eq!(
        absent,
        [(State::Missing, "a-missing"), (State::Unread, "b-unread"), (State::Changed, "c-changed")]
    );
    let counts: Vec<(State, u64)> =
        found.tallies.iter().map(|(state, tally)| (*state, tally.objects)).collect();
    let expected = [
        (State::Missing, 1),
        (State::Unread, 1),
        (State::Changed, 1),
        (State::Landed, 3),
        (State::OnItsWay, 1),
        (State::NoLog, 1),
        (State::Older, 1),
    ];
    assert_eq!(counts, expected);
}

fn record(host: &str) -> Vec<u8> {
    format!("{{\"EdgeStartTimestamp\":\"2026-08-10T00:00:30Z\",\"ClientIP\":\"192.0.2.1\",\"ClientRequestHost\":\"{host}\",\"EdgeResponseStatus\":200}}\n").into_bytes()
}

fn files(folder: &Path) -> BTreeSet<String> {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.expect("an entry").path().display().to_string())
        .collect()
}

const FIRST: &str = "http/20260810/20260810T000000Z_20260810T000100Z_00000001.log";
const CHANGED: &str = "http/20260810/20260810T000100Z_20260810T000200Z_00000002.log";
const LOST: &str = "http/20260810/20260810T000200Z_20260810T000300Z_00000003.log";
const AFTER_A_GAP: &str = "http/20260810/20260810T030000Z_20260810T030100Z_00000004.log";
const ANNOUNCED: &str = "http/20260810/20260810T030100Z_20260810T030200Z_00000005.log";
const UNNAMED: &str = "http/by hand.log";

#[tokio::test(flavor = "multi_thread")]
async fn what_never_arrived_is_named_and_landed() {
    let Some(python) = python() else { return skipped("reconciling a bucket") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[]).await;
    cloud.bucket("logs", None).await;
    let lake = dir.path().join("lake");
    let config = dir.path().join("flarelake.toml");
    let source = format!(
        "[[source]]\nid = \"cf\"\nlabel = \"Cloudflare\"\nqueue = \"{queue}\"\nbuckets = [\"logs\"]\n"
    );
    fs::write(&config, format!("lake = \"{}\"\n{source}", lake.display())).expect("written");
    let run = |arguments: &[&str]| {
        let output = moto
            .flarelake(&[&["--config", config.to_str().expect("text")], arguments].concat())
            .output()
            .expect("started");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        (output.status.code(), out, err)
    };
    // Without a lake nothing can be compared.
    cloud.put("logs", FIRST, record("first.test")).await;
    let (code, _, err) = run(&["reconcile", "s3://logs/http/"]);
    assert!(code == Some(1) && err.contains("there is no lake") && !lake.exists(), "{code:?} {err}");
    // Two objects land. One is overwritten, one was announced before it was there, others were never
    // announced.
    cloud.put("logs", CHANGED, record("before.test")).await;
    assert_eq!(run(&["backfill", "s3://logs/http/"]).0, Some(0));
    let notice = json!({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "logs"}, "object": {"key": ANNOUNCED, "eTag": "e"}}}]});
    cloud.send(&queue, notice.to_string()).await;
    assert_eq!(run(&["ingest", "--until-idle", "1s"]).0, Some(0));
    cloud.put("logs", CHANGED, record("after.test")).await;
    for (n, key) in [LOST, AFTER_A_GAP, ANNOUNCED, UNNAMED].into_iter().enumerate() {
        cloud.put("logs", key, record(&format!("{n}.test"))).await;
    }
    cloud.put("logs", "http/ownership-challenge.txt", b"token".to_vec()).await;
    cloud.put("logs", "http/empty.log", Vec::new()).await;
    cloud
        .put("logs", "firewall/20260810T000000Z_20260810T000100Z_00000006.log", record("elsewhere.test"))
        .await;
    // All of it may still be on its way.
    let (code, out, _) = run(&["reconcile", "s3://logs/http/"]);
    assert!(
        code == Some(0)
            && out.contains("5 on their way: younger than 15m")
            && out.ends_with("nothing is missing\n"),
        "{out}"
    );
    // Or it never arrived. To look changes nothing.
    let before = files(&lake);
    let (code, out, _) = run(&["reconcile", "s3://logs/http/", "--grace", "0s", "--format", "json"]);
    assert_eq!(code, Some(1), "{out}");
    let told: Value = serde_json::from_str(&out).expect("one JSON document");
    let absent: Vec<(&str, &str)> = told["absent"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|o| (o["state"].as_str().expect("a state"), o["key"].as_str().expect("a key")))
        .collect();
    let expected = [
        ("changed", CHANGED),
        ("missing", LOST),
        ("missing", AFTER_A_GAP),
        ("rejected_unread", ANNOUNCED),
        ("missing", UNNAMED),
    ];
    assert_eq!(absent, expected);
    assert_eq!(
        (&told["listed"]["objects"], &told["landed"]["objects"], &told["no_log"]["objects"]),
        (&json!(8), &json!(1), &json!(2))
    );
    assert_eq!(told["absent"][1]["bytes"], record("0.test").len());
    assert_eq!((&told["without_time_range"], &told["repaired"]), (&json!(1), &Value::Null));
    let gap = json!({"stream": "http/", "from": "2026-08-10T00:03:00Z", "until": "2026-08-10T03:00:00Z", "seconds": 177 * 60});
    assert_eq!(told["gaps"][0], gap);
    assert_eq!(
        (&told["gaps"][1]["from"], &told["gaps"][1]["until"]),
        (&json!("2026-08-10T03:02:00Z"), &Value::Null)
    );
    let (_, out, _) = run(&["reconcile", "s3://logs/http/20260810", "--grace", "0s"]);
    assert!(
        out.contains("2026-08-10T00:03:00Z to 2026-08-10T03:00:00Z, 2h 57m")
            && !out.contains("nothing since"),
        "{out}"
    );
    assert!(out.contains("run the same with --repair") && !out.contains(UNNAMED), "{out}");
    assert_eq!(files(&lake), before);
    // Nothing was written in the last moment.
    let (code, out, _) = run(&["reconcile", "s3://logs/http/", "--grace", "0s", "--since", "0s"]);
    assert!(code == Some(0) && out.contains("8 older than --since"), "{out}");
    repair_and_look_again(&run);
}

fn repair_and_look_again(run: &impl Fn(&[&str]) -> (Option<i32>, String, String)) {
    let (code, out, err) = run(&["reconcile", "s3://logs/http/", "--grace", "0s", "--repair"]);
    assert!(code == Some(0) && out.contains("repaired\nobjects: 5 landed, 0 already there"), "{out}{err}");
    let sql =
        "SELECT ClientRequestHost AS host, p_source_id AS source FROM cloudflare_httprequest ORDER BY host";
    let (_, out, _) = run(&["query", "--format", "ndjson", sql]);
    let hosts = ["0.test", "1.test", "2.test", "3.test", "after.test", "before.test", "first.test"];
    assert_eq!(out, hosts.map(|host| format!("{{\"host\":\"{host}\",\"source\":\"cf\"}}\n")).concat());
    for more in [&[][..], &["--repair"]] {
        let (code, out, _) = run(&[&["reconcile", "s3://logs/http/", "--grace", "0s"], more].concat());
        assert!(
            code == Some(0) && out.contains("6 landed") && out.ends_with("nothing is missing\n"),
            "{out}"
        );
    }
}

#[test]
fn only_buckets_are_reconciled() {
    let output = flarelake(&["--lake", "x", "reconcile", "logs"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("flarelake backfill"), "{said}");
}
