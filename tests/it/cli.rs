//! The command line as a user meets it: exit codes, clean stdout, summaries, limits, and what SQL may not do.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use crate::support::{command, flarelake, query_one, stdout};

const GOOD: &str = "{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40Z\",\"ClientIP\":\"192.0.2.1\",\"EdgeResponseStatus\":200}\n";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_and_configuration_exit_with_2() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("flarelake.toml");
    fs::write(&config, "lake = \"x\"\nmemroy = \"1GiB\"\n").expect("written");
    let cases: [(&[&str], &str); 7] = [
        (&["frobnicate"], "unrecognized subcommand"),
        (&["backfill"], "PATH"),
        (&["backfill", "x"], "no lake: give --lake"),
        (&["--lake", "x", "query"], "give a statement"),
        (&["--lake", "x", "ingest"], "no source has a queue"),
        (&["--config", text(&config), "query", "select 1"], "memroy"),
        (
            &["--lake", text(dir.path()), "backfill", "--log-type", "Cloudflare.Nope", text(&config)],
            "Cloudflare.HttpRequest",
        ),
    ];
    for (arguments, expected) in cases {
        let output = flarelake(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn backfill_says_what_became_of_everything() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake) = (dir.path().join("logs"), dir.path().join("lake"));
    fs::create_dir_all(logs.join("a/b")).expect("folders");
    fs::write(logs.join("one.log"), format!("{GOOD}null\n{GOOD}{{\"content\":\"tests\"}}\n"))
        .expect("written");
    fs::write(logs.join("a/b/two.log"), GOOD).expect("written");
    fs::write(logs.join("a/ownership-challenge-1.txt"), "eyJ.x.y").expect("written");
    fs::write(logs.join("empty.log"), "").expect("written");
    let truncated = &gzip(&GOOD.repeat(1000))[..60];
    fs::write(logs.join("broken.log.gz"), truncated).expect("written");
    let run = |more: &[&str]| flarelake(&[&["--lake", text(&lake), "backfill", text(&logs)], more].concat());
    let first = stdout(&run(&[]));
    assert!(first.contains("objects: 3 landed, 0 already there, 2 skipped (no logs), 0 failed"), "{first}");
    assert!(
        first.contains("cloudflare_httprequest 3")
            && first.contains("not_an_object 1")
            && first.contains("corrupt_compression 1"),
        "{first}"
    );
    assert!(first.contains("1 test uploads"), "{first}");
    let second = stdout(&run(&["--fail-on-reject"]));
    assert!(
        second.contains("objects: 0 landed, 3 already there, 2 skipped") && second.contains("nothing new"),
        "{second}"
    );
    assert_eq!(query_one(&lake, "select count(*) from all_logs"), 3);
    // The broken object is one reject that names it; not a byte of it became a row.
    let broken = query_one(
        &lake,
        "select object_key from classification_failures where reason = 'corrupt_compression' and payload is null and record_offset is null",
    );
    assert!(broken.as_str().expect("a path").ends_with("broken.log.gz"));
    assert_eq!(query_one(&lake, "select count(*) from ingested_objects"), 3);
}

#[test]
fn exit_codes_of_rejects_and_of_objects_that_cannot_be_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let (bad, lake) = (dir.path().join("bad.log"), dir.path().join("lake"));
    fs::write(&bad, "nonsense\n").expect("written");
    assert_eq!(flarelake(&["backfill", "--dry-run", text(&bad)]).status.code(), Some(0));
    assert_eq!(flarelake(&["backfill", "--dry-run", "--fail-on-reject", text(&bad)]).status.code(), Some(3));
    let missing = flarelake(&["--lake", text(&lake), "backfill", text(&dir.path().join("nothing-*.gz"))]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("nothing is there"), "{}", stderr(&missing));
    let gone = flarelake(&["--lake", text(&dir.path().join("no-lake")), "query", "select 1"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("there is no lake"), "{}", stderr(&gone));
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake) = (dir.path().join("a.log"), dir.path().join("lake"));
    fs::write(&log, GOOD.repeat(10)).expect("written");
    let report = stdout(&flarelake(&["--lake", text(&lake), "backfill", "--dry-run", text(&log)]));
    assert!(
        report.contains("1 decoded, nothing written") && report.contains("cloudflare_httprequest 10"),
        "{report}"
    );
    assert!(!lake.exists());
}

#[test]
fn one_object_named_three_times_lands_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, link, lake) = (dir.path().join("a.log"), dir.path().join("link.log"), dir.path().join("lake"));
    fs::write(&log, GOOD.repeat(5)).expect("written");
    std::os::unix::fs::symlink(&log, &link).expect("a link");
    let report =
        stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&log), text(&log), text(&link)]));
    assert!(report.contains("objects: 1 landed, 2 already there"), "{report}");
    assert_eq!(query_one(&lake, "select count(*) from cloudflare_httprequest"), 5);
    // The same path with other bytes is another object.
    fs::write(&log, GOOD.repeat(2)).expect("written");
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&log)]));
    assert_eq!(query_one(&lake, "select count(*) from cloudflare_httprequest"), 7);
}

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn every_form_of_compression_is_told_by_its_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = dir.path().join("lake");
    let line = |n: u32| GOOD.replace("200", &n.to_string());
    let members = [gzip(&line(1)), gzip(&line(2)), gzip(""), gzip(&line(3)), vec![0; 512]].concat();
    let frames = [
        zstd::encode_all(line(4).as_bytes(), 3).expect("memory"),
        zstd::encode_all(line(5).as_bytes(), 3).expect("memory"),
    ]
    .concat();
    // Names say nothing: the suffixes are wrong on purpose.
    let files = [("a.zst", members.clone()), ("b.gz", frames.clone()), ("c.gz", line(6).into_bytes())];
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).expect("written");
    }
    let broken = [
        ("d.gz", [members.clone(), b"garbage".to_vec()].concat()),
        ("e.gz", members[..members.len() - 515].to_vec()),
        ("f.zst", frames[..frames.len() - 3].to_vec()),
        ("g.gz", {
            let mut wrong = gzip(&line(7));
            let at = wrong.len() - 6;
            wrong[at] ^= 1;
            wrong
        }),
    ];
    for (name, bytes) in broken {
        fs::write(dir.path().join(name), bytes).expect("written");
    }
    let pattern = format!("{}/?.*", dir.path().display());
    let report = stdout(&flarelake(&["--lake", text(&lake), "backfill", &pattern]));
    assert!(
        report.contains("objects: 7 landed")
            && report.contains("corrupt_compression 4")
            && report.contains("cloudflare_httprequest 6"),
        "{report}"
    );
    assert_eq!(query_one(&lake, "select sum(EdgeResponseStatus) from cloudflare_httprequest"), 21);
}

#[test]
fn limits_make_clear_rejects() {
    let dir = tempfile::tempdir().expect("a folder");
    let (bomb, large, lake) =
        (dir.path().join("bomb.gz"), dir.path().join("large.log"), dir.path().join("lake"));
    fs::write(&bomb, gzip(&" ".repeat(40 << 20))).expect("written");
    fs::write(&large, GOOD.repeat(20_000)).expect("written");
    let config = dir.path().join("c.toml");
    fs::write(&config, "[limits]\nmax_object = \"1MiB\"\n").expect("written");
    let report = stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&bomb)]));
    assert!(report.contains("inflate_ratio 1"), "{report}");
    let report =
        stdout(&flarelake(&["--config", text(&config), "--lake", text(&lake), "backfill", text(&large)]));
    assert!(report.contains("object_too_large 1") && report.contains("rows:    0"), "{report}");
    let message =
        query_one(&lake, "select message from classification_failures where reason = 'object_too_large'");
    let message = message.as_str().expect("text");
    assert!(message.contains("large.log") && message.contains("limits.max_object"), "{message}");
}

#[test]
fn standard_input_lands_once_however_often_it_is_piped() {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = dir.path().join("lake");
    let pipe = |bytes: &[u8]| {
        let mut child = command(&["--lake", text(&lake), "backfill", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        child.stdin.take().expect("a pipe").write_all(bytes).expect("written");
        stdout(&child.wait_with_output().expect("ended"))
    };
    assert!(pipe(&gzip(&GOOD.repeat(300))).contains("cloudflare_httprequest 300"));
    assert!(pipe(GOOD.repeat(300).as_bytes()).contains("nothing new"));
    assert_eq!(query_one(&lake, "select count(*) from cloudflare_httprequest"), 300);
}

#[test]
fn sql_can_only_read_and_only_the_lake() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake, out) = (dir.path().join("a.log"), dir.path().join("lake"), dir.path().join("out.csv"));
    fs::write(&log, GOOD).expect("written");
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&log)]));
    let copy = format!("COPY (SELECT 1) TO '{}'", out.display());
    let external = format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{}'", log.display());
    let file = format!("SELECT * FROM '{}'", log.display());
    let read_csv = format!("SELECT * FROM read_csv('{}')", log.display());
    let hostile = [
        &copy,
        &external,
        &file,
        &read_csv,
        "INSERT INTO cloudflare_httprequest SELECT * FROM cloudflare_httprequest",
        "DELETE FROM cloudflare_httprequest",
        "UPDATE cloudflare_httprequest SET ClientIP = 'x'",
        "DROP TABLE cloudflare_httprequest",
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "SET datafusion.execution.batch_size = 1",
        "TRUNCATE TABLE cloudflare_httprequest",
        &format!("EXPLAIN ANALYZE {copy}"),
        "SELECT 1; DROP TABLE cloudflare_httprequest",
    ];
    for sql in hostile {
        let output = flarelake(&["--lake", text(&lake), "query", sql]);
        assert_eq!(output.status.code(), Some(1), "{sql}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(
            output.stdout.is_empty() && stderr(&output).starts_with("error: "),
            "{sql}: {}",
            stderr(&output)
        );
    }
    assert!(!out.exists());
    assert_eq!(query_one(&lake, "select count(*) from cloudflare_httprequest"), 1);
}

#[test]
fn every_name_of_a_table_and_every_format() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake) = (dir.path().join("a.log"), dir.path().join("lake"));
    let line = "{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40.5Z\",\"ClientIP\":\"192.0.2.1\",\"ClientRequestPath\":\"/a,\\\"b\\\"\",\"New\":1}\n";
    fs::write(&log, format!("{line}{{\"Datetime\":1653974623,\"Kind\":\"firewall\"}}\nx\n"))
        .expect("written");
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&log)]));
    let counts = [
        ("cloudflare_httprequest", 1),
        ("panther_logs.cloudflare_httprequest", 1),
        ("panther_logs.public.cloudflare_httprequest", 1),
        ("cloudflare_firewall", 1),
        ("panther_logs.public.cloudflare_spectrum", 0),
        ("cloudflare_spectrum", 0),
        ("all_logs", 2),
        ("panther_views.all_logs", 2),
        ("panther_views.public.all_logs", 2),
        ("classification_failures", 1),
        ("panther_monitor.classification_failures", 1),
        ("panther_monitor.public.classification_failures", 1),
        ("ingested_objects", 1),
        ("panther_monitor.ingested_objects", 1),
        ("panther_monitor.public.ingested_objects", 1),
    ];
    for (name, count) in counts {
        assert_eq!(query_one(&lake, &format!("select count(*) from {name}")), count, "{name}");
    }
    let query = |format: &str| {
        let sql = "SELECT ClientIP, ClientRequestPath, EdgeStartTimestamp, p_any_ip_addresses, p_rescued_data, BotScore, p_event_date FROM cloudflare_httprequest";
        stdout(&flarelake(&["--lake", text(&lake), "query", "--format", format, sql]))
    };
    let row = r#"{"ClientIP":"192.0.2.1","ClientRequestPath":"/a,\"b\"","EdgeStartTimestamp":"2025-03-24T19:10:40.500Z","p_any_ip_addresses":["192.0.2.1"],"p_rescued_data":{"New":"1"},"BotScore":null,"p_event_date":"2025-03-24"}"#;
    assert_eq!(query("ndjson"), format!("{row}\n"));
    assert_eq!(query("json"), format!("[{row}]\n"));
    let csv = "ClientIP,ClientRequestPath,EdgeStartTimestamp,p_any_ip_addresses,p_rescued_data,BotScore,p_event_date\n192.0.2.1,\"/a,\"\"b\"\"\",2025-03-24T19:10:40.500Z,\"[\"\"192.0.2.1\"\"]\",\"{\"\"New\"\":\"\"1\"\"}\",,2025-03-24\n";
    assert_eq!(query("csv"), csv);
    assert!(query("table").contains("| 192.0.2.1 | /a,\"b\""));
    let empty = stdout(&flarelake(&[
        "--lake",
        text(&lake),
        "query",
        "--format",
        "json",
        "SELECT * FROM cloudflare_spectrum",
    ]));
    assert_eq!(empty.trim(), "[]");
}

#[test]
fn partitions_are_by_the_events_day_or_hour() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("a.log");
    let at = |time: &str| format!("{{\"EdgeStartTimestamp\":\"{time}\"}}\n");
    fs::write(
        &log,
        [at("2025-03-25T00:00:00Z"), at("2025-03-24T23:59:59.999999Z"), at("2025-03-24T22:00:00Z")].concat(),
    )
    .expect("written");
    let config = dir.path().join("hour.toml");
    fs::write(&config, "partition = \"hour\"\n").expect("written");
    let (days, hours) = (dir.path().join("days"), dir.path().join("hours"));
    stdout(&flarelake(&["--lake", text(&days), "backfill", text(&log)]));
    stdout(&flarelake(&["--config", text(&config), "--lake", text(&hours), "backfill", text(&log)]));
    let files = |lake: &Path, folder: &str| {
        fs::read_dir(lake.join("cloudflare_httprequest").join(folder)).map_or(0, Iterator::count)
    };
    assert_eq!((files(&days, "p_event_date=2025-03-24"), files(&days, "p_event_date=2025-03-25")), (1, 1));
    assert_eq!(
        query_one(&days, "select count(*) from cloudflare_httprequest where p_event_date = '2025-03-24'"),
        2
    );
    for hour in [
        "p_event_date=2025-03-24/p_event_hour=22",
        "p_event_date=2025-03-24/p_event_hour=23",
        "p_event_date=2025-03-25/p_event_hour=0",
    ] {
        assert_eq!(files(&hours, hour), 1, "{hour}");
    }
    assert_eq!(query_one(&hours, "select count(*) from cloudflare_httprequest where p_event_hour = 23"), 1);
    // Another layout later is an error that says so.
    fs::write(&log, at("2025-03-26T00:00:00Z")).expect("written");
    let other = flarelake(&["--lake", text(&hours), "backfill", text(&log)]);
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("partitioned by p_event_date, p_event_hour"), "{}", stderr(&other));
}

#[test]
fn a_new_log_type_is_a_file_and_sources_label_their_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake, schemas, config) = (
        dir.path().join("a.log"),
        dir.path().join("lake"),
        dir.path().join("schemas"),
        dir.path().join("c.toml"),
    );
    fs::create_dir(&schemas).expect("a folder");
    fs::write(schemas.join("dns.yml"), "schema: Cloudflare.Dns\nmatch: { all: [Timestamp, QueryName] }\nfields:\n  - { name: Timestamp, type: timestamp, required: true, isEventTime: true }\n  - { name: QueryName, type: string, indicators: [hostname] }\n").expect("written");
    fs::write(&log, "{\"Timestamp\":\"2025-03-24T19:10:40Z\",\"QueryName\":\"WWW.example.com.\"}\n")
        .expect("written");
    fs::write(
        &config,
        format!(
            "lake = \"{}\"\nschemas = \"{}\"\n[[source]]\nid = \"cf-prod\"\nlabel = \"Production\"\n",
            lake.display(),
            schemas.display()
        ),
    )
    .expect("written");
    stdout(&flarelake(&["--config", text(&config), "backfill", "--source", "cf-prod", text(&log)]));
    let sql =
        "SELECT p_log_type, p_source_id, p_source_label, QueryName, p_any_domain_names FROM cloudflare_dns";
    let row = stdout(&flarelake(&["--config", text(&config), "query", "--format", "ndjson", sql]));
    let expected = r#"{"p_log_type":"Cloudflare.Dns","p_source_id":"cf-prod","p_source_label":"Production","QueryName":"WWW.example.com.","p_any_domain_names":["www.example.com"]}"#;
    assert_eq!(row.trim(), expected);
}

#[test]
fn generate_is_seeded_and_the_demo_holds_its_own_sums() {
    let dir = tempfile::tempdir().expect("a folder");
    let make = |out: &str, seed: &str| {
        let out = dir.path().join(out);
        let arguments = [
            "generate",
            "--log-type",
            "Cloudflare.Firewall",
            "--rows",
            "200",
            "--files",
            "2",
            "--seed",
            seed,
            "--odd",
            "0.3",
            "--timestamps",
            "mixed",
            "--out",
            text(&out),
        ];
        assert_eq!(flarelake(&arguments).status.code(), Some(0));
        let mut files: Vec<_> = walkdir::WalkDir::new(&out)
            .into_iter()
            .filter_map(Result::ok)
            .filter(|e| e.file_type().is_file())
            .collect();
        files.sort_by_key(|e| e.path().to_owned());
        files.iter().map(|f| fs::read_to_string(f.path()).expect("text")).collect::<Vec<_>>()
    };
    let (one, same, other) = (make("a", "5"), make("b", "5"), make("c", "6"));
    assert_eq!(one.len(), 2);
    assert_eq!(one.iter().map(|f| f.lines().count()).sum::<usize>(), 200);
    assert_eq!(one, same);
    assert_ne!(one, other);
    let demo = stdout(&flarelake(&["demo", "--rows", "3000", "--dir", text(&dir.path().join("demo"))]));
    assert!(
        demo.contains("nothing new") && demo.contains("each once") && demo.contains("Rejects by reason"),
        "{demo}"
    );
}

#[test]
fn the_schema_command_lists_and_shows() {
    let listed = stdout(&flarelake(&["schema", "list"]));
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains("Cloudflare.Spectrum  cloudflare_spectrum  "), "{listed}");
    for name in ["cloudflare.httprequest", "cloudflare_httprequest"] {
        let shown = stdout(&flarelake(&["schema", "show", name]));
        assert!(
            shown.lines().any(
                |l| l.trim_start().starts_with("EdgeStartTimestamp") && l.contains("timestamp, required")
            ),
            "{shown}"
        );
    }
    let output = flarelake(&["schema", "show", "Cloudflare.Nothing"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("known: Cloudflare.Firewall"), "{output:?}");
}
