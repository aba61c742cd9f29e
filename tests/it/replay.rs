//! Rejects decoded again: what was mended becomes the rows that it would have been from the start, once,
//! whoever races or dies.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::moto::{Cloud, Moto, python, skipped};
use crate::support::{flarelake, query_one};

/// A log type that came later.
const LATER: &str = "\
schema: Acme.Dns
match:
  all: [QueryName, Timestamp]
fields:
  - name: Timestamp
    type: timestamp
    required: true
    isEventTime: true
  - name: QueryName
    type: string
    indicators: [hostname]
";

pub fn http(host: &str, padding: usize) -> String {
    let agent = "x".repeat(padding);
    format!(
        "{{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40Z\",\"ClientRequestHost\":\"{host}\",\"ClientIP\":\"192.0.2.1\",\"ClientRequestUserAgent\":\"{agent}\"}}"
    )
}

fn dns(name: &str) -> String {
    format!("{{\"Timestamp\":\"2025-03-25T00:00:00Z\",\"QueryName\":\"{name}\"}}")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A lake's files, and when each was written.
fn files(folder: &Path) -> BTreeSet<String> {
    let entries = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.expect("an entry"))
        .filter(|e| e.file_type().is_file());
    entries
        .map(|entry| {
            format!("{} {:?}", entry.path().display(), entry.metadata().expect("metadata").modified())
        })
        .collect()
}

/// Logs with everything that a limit or a missing schema rejects, and what nothing can mend.
fn write_logs(logs: &Path) {
    fs::create_dir_all(logs).expect("a folder");
    let mut lines = [
        http("good.test", 0),
        dns("one.test"),
        http("long.test", 3000),
        "{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40Z\",".to_owned(),
        "{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40Z\",\"RequestHeaders\":{\"a\":{\"b\":{\"c\":1}}}}"
            .to_owned(),
        // Among lines an array is no array of records, wherever it stands.
        format!("[{}]", http("in-a-list.test", 0)),
        format!("{} {}", dns("two.test"), http("same-line.test", 0)),
        http("time.test", 0).replace("2025-03", "2035-03"),
        "null".to_owned(),
    ]
    .join("\n")
    .into_bytes();
    lines.extend_from_slice(
        b"\n{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40Z\",\"ClientRequestHost\":\"\xff\"}\n",
    );
    fs::write(logs.join("lines.log"), lines).expect("written");
    let pretty = |record: String| {
        let value: Value = serde_json::from_str(&record).expect("JSON");
        serde_json::to_string_pretty(&value).expect("JSON").replace('\n', "\n  ")
    };
    let records = [http("array.test", 0), http("long-in-array.test", 3000), dns("array.test")].map(pretty);
    fs::write(logs.join("array.json.gz"), gzip(format!("[\n  {}\n]", records.join(",\n  ")).as_bytes()))
        .expect("written");
    // More than is kept of a record, twice in one object.
    let long = [http("a.test", 1_500_000), dns("between.test"), http("b.test", 0), http("c.test", 1_200_000)];
    fs::write(logs.join("long.log.gz"), gzip(long.join("\n").as_bytes())).expect("written");
    let large = [http("large.test", 1000).repeat(3000), dns("in-large.test"), "{broken".to_owned()];
    fs::write(logs.join("large.log.gz"), gzip(large.join("\n").as_bytes())).expect("written");
}

/// A folder with two configurations: before and after something was mended.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let source = "[[source]]\nid = \"cf\"\nlabel = \"Cloudflare\"\n";
        let strict = "[limits]\nmax_record = \"2KiB\"\nmax_depth = 3\nmax_object = \"3MiB\"\n";
        fs::write(dir.path().join("strict.toml"), format!("{strict}{source}")).expect("written");
        fs::create_dir(dir.path().join("schemas")).expect("a folder");
        fs::write(dir.path().join("schemas/acme_dns.yml"), LATER).expect("written");
        let schemas = format!("schemas = \"{}\"\n", text(&dir.path().join("schemas")));
        fs::write(dir.path().join("mended.toml"), format!("{schemas}{source}")).expect("written");
        Self { dir }
    }

    fn run(&self, config: &str, lake: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let (config, lake) = (self.dir.path().join(config), self.dir.path().join(lake));
        let output = flarelake(&[&["--config", text(&config), "--lake", text(&lake)], arguments].concat());
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), said(&output.stdout), said(&output.stderr))
    }

    /// A table's rows without the time of decoding, by their ids.
    fn rows(&self, lake: &str, table: &str) -> Vec<Value> {
        let sql = format!("SELECT * EXCEPT (p_parse_time) FROM {table} ORDER BY p_row_id");
        let (code, out, err) = self.run("mended.toml", lake, &["query", "--format", "ndjson", &sql]);
        assert_eq!(code, Some(0), "{err}");
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// What the ledger says that there is, and what is there: the sums have to agree.
    fn check_sums(&self, lake: &str) {
        let lake = self.dir.path().join(lake);
        let count = |table: &str| query_one(&lake, &format!("SELECT count(*) FROM {table}"));
        let told =
            |sql: &str| query_one(&lake, &format!("SELECT coalesce(sum({sql}), 0) FROM ingested_objects"));
        assert_eq!(told("rejects"), count("classification_failures"));
        assert_eq!(told("rows['cloudflare_httprequest']"), count("cloudflare_httprequest"));
    }
}

#[test]
fn what_was_mended_becomes_the_rows_that_it_would_have_been_from_the_start() {
    let stage = Stage::new();
    let logs = stage.dir.path().join("logs");
    write_logs(&logs);
    let backfill = ["backfill", "--source", "cf", text(&logs)];
    let (code, out, err) = stage.run("strict.toml", "lake", &backfill);
    assert_eq!(code, Some(0), "{err}");
    // A source of this many rejects, and one of a whole object.
    assert!(
        out.contains("rejects: 15")
            && out.contains("object_too_large 1")
            && out.contains("record_too_large 4"),
        "{out}"
    );
    let before = files(&stage.dir.path().join("lake"));
    // Nothing was mended: nothing changes.
    let (code, out, _) = stage.run("strict.toml", "lake", &["replay"]);
    assert!(
        code == Some(0)
            && out.contains(
                "rejects: 15 looked at\n         0 are rejects no more\n         15 stay rejected\n"
            ),
        "{out}"
    );
    let (code, out, _) = stage.run("mended.toml", "lake", &["replay", "--dry-run"]);
    let told = "rejects: 15 looked at\n         10 would be rejects no more\n         5 stay rejected\nrows:    3 010\n         acme_dns 5\n         cloudflare_httprequest 3 005\n";
    assert!(code == Some(0) && out.contains(told), "{out}");
    assert!(files(&stage.dir.path().join("lake")) == before, "neither changed anything");
    let log = stage.dir.path().join("lake/ingested_objects/_delta_log");
    let commits = fs::read_dir(&log).expect("a log").count();
    let (code, out, err) = stage.run("mended.toml", "lake", &["replay", "--fail-on-reject"]);
    assert_eq!(fs::read_dir(&log).expect("a log").count(), commits + 1, "all of them land together");
    assert_eq!(code, Some(3), "{err}");
    assert!(
        out.contains("10 are rejects no more")
            && out.contains("removed: 10 rejects from classification_failures"),
        "{out}"
    );
    assert!(
        out.contains("stay:    5\n         implausible_event_time 1\n         incomplete_record 1\n         invalid_utf8 1\n"),
        "{out}"
    );
    assert!(out.contains("new:     1 rejects of records of objects\n         invalid_json 1\n"), "{out}");
    // The oracle: a lake that was fed with the mended settings from the start.
    assert_eq!(stage.run("mended.toml", "fresh", &backfill).0, Some(0));
    for (table, rows) in [("acme_dns", 5), ("cloudflare_httprequest", 3009), ("classification_failures", 6)] {
        let (ours, theirs) = (stage.rows("lake", table), stage.rows("fresh", table));
        assert_eq!(ours.len(), rows, "{table}");
        assert!(ours == theirs, "{table} differs: {:?}", ours.iter().zip(&theirs).find(|(a, b)| a != b));
        assert!(ours.iter().all(|row| row["p_source_id"] == "cf" && row["p_source_label"] == "Cloudflare"));
    }
    stage.check_sums("lake");
    // A second replay lands nothing, and neither does a backfill.
    let before = files(&stage.dir.path().join("lake/cloudflare_httprequest"));
    let (code, out, _) = stage.run("mended.toml", "lake", &["replay"]);
    assert!(
        code == Some(0)
            && out.contains("rejects: 6 looked at\n         0 are rejects no more")
            && !out.contains("removed"),
        "{out}"
    );
    let (_, out, _) = stage.run("mended.toml", "lake", &backfill);
    assert!(out.contains("0 landed, 4 already there"), "{out}");
    assert!(files(&stage.dir.path().join("lake/cloudflare_httprequest")) == before);
    stage.check_sums("lake");
}

#[test]
fn only_the_rejects_that_are_meant_are_replayed() {
    let stage = Stage::new();
    let logs = stage.dir.path().join("logs");
    write_logs(&logs);
    let (code, _, err) = stage.run("mended.toml", "lake", &["replay"]);
    assert!(code == Some(1) && err.contains("there is no lake"), "{code:?} {err}");
    assert!(!stage.dir.path().join("lake/ingested_objects").exists(), "looking for a lake made none");
    stage.run("strict.toml", "lake", &["backfill", text(&logs)]);
    let (code, _, err) = stage.run("mended.toml", "lake", &["replay", "--reason", "record_to_large"]);
    assert!(code == Some(2) && err.contains("did you mean `record_too_large`?"), "{err}");
    let (code, _, err) = stage.run("mended.toml", "lake", &["replay", "--reason", "?"]);
    assert!(code == Some(2) && err.contains("unclassified, ambiguous"), "{err}");
    let (code, out, _) = stage.run("mended.toml", "lake", &["replay", "--since", "0s"]);
    assert!(code == Some(0) && out.contains("rejects: 0 looked at"), "{out}");
    let (code, out, _) = stage.run(
        "mended.toml",
        "lake",
        &["replay", "--since", "1h", "--reason", "too_deep", "--reason", "unclassified"],
    );
    assert!(
        code == Some(0)
            && out.contains("rejects: 5 looked at\n         5 are rejects no more")
            && out.contains("acme_dns 4"),
        "{out}"
    );
    let left = stage.rows("lake", "classification_failures");
    assert!(
        left.len() == 10
            && left.iter().all(|row| row["reason"] != "too_deep" && row["reason"] != "unclassified")
    );
    stage.check_sums("lake");
    // What no rule tells is told by the caller.
    let odd = stage.dir.path().join("odd.log");
    fs::write(&odd, "{\"Timestamp\":\"2025-03-25T00:00:00Z\",\"Name\":\"odd.test\"}\n").expect("written");
    stage.run("mended.toml", "lake", &["backfill", text(&odd)]);
    let (_, out, _) =
        stage.run("mended.toml", "lake", &["replay", "--reason", "unclassified", "--log-type", "Acme.Dns"]);
    assert!(out.contains("1 are rejects no more") && out.contains("acme_dns 1"), "{out}");
}

#[test]
fn rejects_that_nobody_will_mend_are_discarded_and_nothing_brings_them_again() {
    let stage = Stage::new();
    let logs = stage.dir.path().join("logs");
    write_logs(&logs);
    let good = stage.dir.path().join("good.log");
    fs::write(&good, http("good.test", 0)).expect("written");
    let backfill = ["backfill", text(&logs)];
    // Of a lake that has never had a reject there is nothing to discard.
    assert_eq!(stage.run("strict.toml", "lake", &["backfill", text(&good)]).0, Some(0));
    let (code, out, err) = stage.run("strict.toml", "lake", &["replay", "--discard"]);
    assert!(code == Some(0) && out == "rejects: 0 discarded\n", "{out}{err}");
    stage.run("strict.toml", "lake", &backfill);
    let count = || stage.rows("lake", "classification_failures").len();
    assert_eq!(count(), 15);
    let before = files(&stage.dir.path().join("lake"));
    let (code, out, _) = stage.run(
        "strict.toml",
        "lake",
        &["replay", "--discard", "--dry-run", "--reason", "record_too_large"],
    );
    assert!(
        code == Some(0) && out == "rejects: 4 would be discarded\n         record_too_large 4\n",
        "{out}"
    );
    let (code, _, err) =
        stage.run("strict.toml", "lake", &["replay", "--discard", "--log-type", "Cloudflare.Firewall"]);
    assert!(code == Some(2) && err.contains("--log-type"), "{err}");
    let (code, out, _) = stage.run("strict.toml", "lake", &["replay", "--discard", "--since", "0s"]);
    assert!(code == Some(0) && out == "rejects: 0 discarded\n", "{out}");
    assert!(files(&stage.dir.path().join("lake")) == before, "none of them changed anything");
    // Some, and then all.
    let (code, out, err) = stage.run(
        "strict.toml",
        "lake",
        &["replay", "--discard", "--reason", "record_too_large", "--reason", "too_deep"],
    );
    assert!(
        code == Some(0) && out == "rejects: 5 discarded\n         record_too_large 4\n         too_deep 1\n",
        "{out}{err}"
    );
    assert!(
        count() == 10
            && stage.rows("lake", "classification_failures").iter().all(|row| row["reason"] != "too_deep")
    );
    let (code, out, _) = stage.run("strict.toml", "lake", &["replay", "--discard"]);
    assert!(code == Some(0) && out.starts_with("rejects: 10 discarded\n"), "{out}");
    assert_eq!(count(), 0);
    // What was seen stays seen, and everything else goes on.
    let (_, out, _) = stage.run("strict.toml", "lake", &backfill);
    assert!(out.contains("0 landed, 4 already there"), "{out}");
    assert_eq!(stage.run("strict.toml", "lake", &["replay", "--discard"]).1, "rejects: 0 discarded\n");
    let (code, _, err) = stage.run("mended.toml", "lake", &["replay"]);
    assert_eq!(code, Some(0), "{err}");
    for command in [&["compact"][..], &["maintain", "--once"], &["tables"]] {
        let (code, _, err) = stage.run("strict.toml", "lake", command);
        assert_eq!(code, Some(0), "{command:?}: {err}");
    }
}

#[test]
fn objects_that_are_not_what_they_were_stay_rejected() {
    let stage = Stage::new();
    let logs = stage.dir.path().join("logs");
    fs::create_dir(&logs).expect("a folder");
    let whole = gzip(http("whole.test", 0).repeat(3).as_bytes());
    fs::write(logs.join("cut.log.gz"), &whole[..whole.len() - 9]).expect("written");
    fs::write(logs.join("gone.log.gz"), gzip(http("gone.test", 0).repeat(40_000).as_bytes()))
        .expect("written");
    fs::write(logs.join("long.log"), http("long.test", 1_500_000)).expect("written");
    let (_, out, _) = stage.run("strict.toml", "lake", &["backfill", text(&logs)]);
    assert!(
        out.contains("corrupt_compression 1")
            && out.contains("object_too_large 1")
            && out.contains("record_too_large 1"),
        "{out}"
    );
    // Broken as it was, it stays, and nothing is wrong with that.
    let (code, out, _) = stage.run("mended.toml", "lake", &["replay", "--reason", "corrupt_compression"]);
    assert!(code == Some(0) && out.contains("stay:    1\n         corrupt_compression 1\n"), "{out}");
    let before = stage.rows("lake", "classification_failures");
    // Repaired, it is another object.
    fs::write(logs.join("cut.log.gz"), &whole).expect("written");
    fs::write(logs.join("long.log"), http("other.test", 1_500_000)).expect("written");
    fs::remove_file(logs.join("gone.log.gz")).expect("removed");
    let (code, out, err) = stage.run("mended.toml", "lake", &["replay"]);
    assert!(
        code == Some(1) && out.contains("3 could not be read again") && out.contains("rows:    0\n"),
        "{out}"
    );
    assert!(
        err.contains("cut.log.gz: it was ")
            && err.contains("long.log: it was ")
            && err.contains("gone.log.gz: can't be read"),
        "{err}"
    );
    assert_eq!(stage.rows("lake", "classification_failures"), before);
    let (_, out, _) = stage.run("mended.toml", "lake", &["backfill", text(&logs)]);
    assert!(out.contains("objects: 2 landed"), "{out}");
    stage.check_sums("lake");
}

/// A table's first lines tell that it is one: its object, which may be large, is not read again for that.
#[test]
fn what_is_foreign_still_stays_without_being_read_again() {
    let stage = Stage::new();
    let logs = stage.dir.path().join("logs");
    fs::create_dir(&logs).expect("a folder");
    let table =
        |rows: usize| format!("time,host,status\n{}", "2025-03-24T19:10:40Z,table.test,200\n".repeat(rows));
    // Of one all is kept, of one the first MiB, and one is longer than a record may be, too.
    for (name, rows) in [("small.csv", 10), ("large.csv", 60_000), ("larger.csv", 600_000)] {
        fs::write(logs.join(name), table(rows)).expect("written");
    }
    let (_, out, err) = stage.run("mended.toml", "lake", &["backfill", text(&logs)]);
    assert!(out.contains("rejects: 3") && out.contains("foreign_format 3"), "{out}{err}");
    fs::remove_dir_all(&logs).expect("removed");
    let (code, out, err) = stage.run("mended.toml", "lake", &["replay"]);
    assert!(
        code == Some(0) && out.contains("stay:    3\n") && !out.contains("could not be read"),
        "{code:?} {out}{err}"
    );
    assert!(out.contains("         foreign_format 3\n"), "{out}");
    assert_eq!(stage.rows("lake", "classification_failures").len(), 3);
}

fn notice(bucket: &str, key: &str, etag: &str) -> String {
    let object = json!({"key": key, "eTag": etag});
    json!({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": object}}]})
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_buckets_are_read_again_as_what_they_are() {
    let Some(python) = python() else { return skipped("replaying objects of a bucket") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[]).await;
    for bucket in ["logs", "other"] {
        cloud.bucket(bucket, None).await;
    }
    let config = dir.path().join("flarelake.toml");
    let lake = dir.path().join("lake");
    let write = |limits: &str, buckets: &str| {
        let source = format!("[[source]]\nid = \"cf\"\nqueue = \"{queue}\"\nbuckets = [{buckets}]\n");
        let route = "[[source.route]]\nprefix = \"routed/\"\nlog_type = \"Cloudflare.HttpRequest\"\n";
        fs::write(&config, format!("lake = \"{}\"\n[limits]\n{limits}\n{source}{route}", lake.display()))
            .expect("written");
    };
    let run = |arguments: &[&str]| {
        let output =
            moto.flarelake(&[&["--config", text(&config)], arguments].concat()).output().expect("started");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), said(&output.stdout), said(&output.stderr))
    };
    // What becomes a reject: too much in all, too long, announced before it was there (twice), of another
    // bucket, a notification that says nothing, and a message's body with a record that is too long.
    write("max_object = \"100KB\"\nmax_record = \"2KiB\"", "\"logs\"");
    cloud
        .put("logs", "routed/large.log", format!("{}\n", http("large.test", 100)).repeat(1000).into_bytes())
        .await;
    cloud.put("logs", "routed/long.log", http("long.test", 3000).into_bytes()).await;
    cloud.put("other", "foreign.log", http("foreign.test", 0).into_bytes()).await;
    for (bucket, key, etag) in [
        ("logs", "routed/large.log", ""),
        ("logs", "routed/long.log", ""),
        ("logs", "late.log", ""),
        ("logs", "late.log", "a09a6a3e02f0b5a2d5e5d2a0b7f3b1c4"),
        ("other", "foreign.log", ""),
        ("other", "never-there.log", ""),
    ] {
        cloud.send(&queue, notice(bucket, key, etag)).await;
    }
    cloud.send(&queue, "{\"Records\": [{\"eventSource\": \"aws:s3\"}]}").await;
    cloud.send(&queue, http("body.test", 3000)).await;
    assert_eq!(run(&["ingest", "--until-idle", "1s"]).0, Some(0));
    let reasons = "SELECT reason, count(*) AS n FROM classification_failures GROUP BY reason ORDER BY reason";
    let told = |expected: &[(&str, u64)]| {
        let lines = expected
            .iter()
            .map(|(reason, n)| format!("{{\"reason\":\"{reason}\",\"n\":{n}}}\n"))
            .collect::<String>();
        assert_eq!(run(&["query", "--format", "ndjson", reasons]).1, lines);
    };
    told(&[
        ("foreign_bucket", 2),
        ("invalid_message", 1),
        ("missing", 2),
        ("object_too_large", 1),
        ("record_too_large", 2),
    ]);
    // Mended; but what was announced is not there yet, and the other bucket is not the source's: nothing of
    // it is fetched.
    write("", "\"logs\"");
    let (code, out, err) = run(&["replay"]);
    assert!(code == Some(0) && out.contains("3 are rejects no more\n         5 stay rejected"), "{out}{err}");
    told(&[("foreign_bucket", 2), ("invalid_message", 1), ("missing", 2)]);
    // Now it is, and the bucket is. What was announced with another ETag is another object.
    write("", "\"logs\", \"other\"");
    cloud.put("logs", "late.log", http("late.test", 0).into_bytes()).await;
    let (code, out, err) = run(&["replay"]);
    assert!(code == Some(1) && out.contains("2 are rejects no more"), "{out}{err}");
    assert!(
        err.contains("late.log: it was a09a6a3e02f0b5a2d5e5d2a0b7f3b1c4 when it was rejected")
            && err.contains("never-there.log"),
        "{err}"
    );
    told(&[("foreign_bucket", 1), ("invalid_message", 1), ("missing", 1)]);
    // They landed as themselves: nothing brings them again.
    let (_, out, _) = run(&["backfill", "s3://logs/", "s3://other/"]);
    assert!(out.contains("objects: 0 landed, 4 already there"), "{out}");
    let sql = "SELECT ClientRequestHost AS host, count(*) AS n, min(p_source_id) AS source FROM cloudflare_httprequest GROUP BY host ORDER BY host";
    let hosts =
        [("body.test", 1), ("foreign.test", 1), ("large.test", 1000), ("late.test", 1), ("long.test", 1)];
    let lines =
        hosts.map(|(host, n)| format!("{{\"host\":\"{host}\",\"n\":{n},\"source\":\"cf\"}}\n")).concat();
    assert_eq!(run(&["query", "--format", "ndjson", sql]).1, lines);
    assert_eq!(query_one(&lake, "SELECT sum(rejects) FROM ingested_objects"), 3);
    assert_eq!(query_one(&lake, "SELECT sum(rows['cloudflare_httprequest']) FROM ingested_objects"), 1004);
}
