//! What strangers choose: text that would steer a terminal, requests that never end, statements that a
//! program wrote, and a stderr that nobody reads. Each is answered or refused, and ends nothing but itself.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use flarelake::base::printable::{JsonWriter, printable, printable_lines};
use flarelake::ingest::metrics::Metrics;
use flarelake::query::{Cells, Format, Renderer};
use flarelake::serve::serve;
use serde_json::{Value, json};

use crate::support::{command, flarelake, query_one, stdout};

/// A title for the terminal's window, red, an erased screen, C1's way to say the same, and text from right to
/// left.
const AGENT: &str = "\u{1b}]0;pwned\u{7}\u{1b}[31mred\u{1b}[2J\u{9b}31m\u{202e}gnp.exe";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_raw(text: &str) -> bool {
    text.chars().any(|c| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)))
}

/// A lake with requests of these user agents.
fn lake(dir: &Path, agents: &[&str]) -> String {
    let log = dir.join("agents.log");
    let line = |agent: &&str| {
        format!(
            "{}\n",
            json!({"EdgeStartTimestamp": "2026-01-15T10:00:00Z", "ClientRequestUserAgent": agent, "ZoneID": 1})
        )
    };
    std::fs::write(&log, agents.iter().map(line).collect::<String>()).expect("written");
    let lake = text(&dir.join("lake")).to_owned();
    stdout(&flarelake(&["--lake", &lake, "backfill", text(&log)]));
    lake
}

#[test]
fn strangers_text_is_printed_so_that_it_steers_nothing() {
    for (text, shown) in [
        ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
        ("a\nERROR b\r\t", "a\\nERROR b\\r\\t"),
        ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
        ("x\u{202e}y\u{2066}\u{2028}", "x\\u{202e}y\\u{2066}\\u{2028}"),
        ("Grüße, 世界 👩\u{200d}🚀", "Grüße, 世界 👩\u{200d}🚀"),
    ] {
        assert_eq!(printable(text), shown);
    }
    assert_eq!(printable_lines("a\nb\u{1b}"), "a\nb\\u{1b}");
    // JSON says the same, however its bytes come.
    let value = json!({"a": "\u{9b}\u{202e}\u{7f}\u{e0041}ü\u{1b}", "b": [1, "世"]});
    let text = value.to_string();
    for step in 1..text.len() {
        let mut bytes = Vec::new();
        let mut writer = JsonWriter::new(&mut bytes);
        text.as_bytes().chunks(step).for_each(|part| writer.write_all(part).expect("memory"));
        let written = String::from_utf8(bytes).expect("text");
        assert!(written.contains("\\u009b\\u202e\\u007f\\udb40\\udc41ü"), "{written}");
        assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), value);
    }
}

#[test]
fn neither_errors_nor_results_steer_a_terminal() {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = lake(dir.path(), &[AGENT]);
    let ask = |arguments: &[&str]| flarelake(&[&["--lake", &lake, "query"], arguments].concat());
    for expression in [
        "cast(ClientRequestUserAgent as bigint)",
        "to_timestamp(ClientRequestUserAgent)",
        "cast(ClientRequestUserAgent as date)",
    ] {
        let output = ask(&[&format!("select {expression} from cloudflare_httprequest")]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{expression}");
        assert!(
            told.contains("pwned") && told.contains("\\u{1b}") && !is_raw(&told),
            "{expression}: {told:?}"
        );
    }
    let sql = "select ClientRequestUserAgent as a, map {ClientRequestUserAgent: 1} as m from cloudflare_httprequest";
    for format in ["table", "json", "ndjson"] {
        let shown = stdout(&ask(&[sql, "--format", format]));
        assert!(!is_raw(&shown) && shown.contains("pwned"), "{format}: {shown:?}");
    }
    let row: Value = serde_json::from_str(&stdout(&ask(&[sql, "--format", "ndjson"]))).expect("JSON");
    assert_eq!(row["a"], AGENT, "and says the same");
    // Not to a terminal: every byte is as it was.
    assert!(
        stdout(&ask(&["select ClientRequestUserAgent as a from cloudflare_httprequest", "--format", "csv"]))
            .contains(AGENT)
    );
    let found = flarelake(&["--lake", &lake, "search", "--since", "9000d", &format!("x{AGENT}")]);
    assert!(!is_raw(&stdout(&found)), "{:?}", stdout(&found));
    for arguments in [
        &["--lake", &lake, "query", AGENT][..],
        &["--lake", &lake, "query", "-f", AGENT],
        &["--lake", AGENT, "tables"],
    ] {
        let output = flarelake(arguments);
        assert!(!output.status.success() && !is_raw(&stderr(&output)), "{:?}", stderr(&output));
    }
}

#[test]
fn csv_is_escaped_for_a_terminal_and_safe_for_a_spreadsheet_if_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = lake(dir.path(), &[AGENT, "=cmd|'/C calc'!A0", "+1", "-1", "@x", "\tx", "'x", "x=1"]);
    let sql = "select ClientRequestUserAgent as a, -1 as n from cloudflare_httprequest order by p_row_id";
    let plain = stdout(&flarelake(&["--lake", &lake, "query", "--format", "csv", sql]));
    let cells = |csv: &str| {
        csv.lines()
            .skip(1)
            .map(|line| line.rsplit_once(',').expect("two cells").0.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(cells(&plain), [AGENT, "=cmd|'/C calc'!A0", "+1", "-1", "@x", "\tx", "'x", "x=1"]);
    let safe = stdout(&flarelake(&["--lake", &lake, "query", "--format", "csv", "--csv-safe", sql]));
    assert_eq!(cells(&safe), [AGENT, "'=cmd|'/C calc'!A0", "'+1", "'-1", "'@x", "'\tx", "'x", "x=1"]);
    assert!(safe.lines().skip(1).all(|line| line.ends_with(",-1")), "numbers are numbers: {safe}");
    assert!(stdout(&flarelake(&["query", "--help"])).contains("--csv-safe"));
    // On a terminal, which Python makes.
    let script = "import os, pty, sys\nout = b''\ndef read(fd):\n    global out\n    data = os.read(fd, 65536)\n    out += data\n    return b'.'\npty.spawn(sys.argv[1:], read)\nsys.stdout.write(ascii(out.decode()))";
    let program = env!("CARGO_BIN_EXE_flarelake");
    let output = Command::new("python3")
        .args(["-c", script, program, "--lake", &lake, "query", "--format", "csv", sql])
        .output();
    let shown = stdout(&output.expect("Python"));
    assert!(
        shown.contains("pwned")
            && !shown.contains("\\x1b]0")
            && !shown.contains("\\x9b")
            && !shown.contains("\\u202e"),
        "{shown}"
    );
}

#[test]
fn cells_of_every_kind_are_made_safe() {
    let schema = std::sync::Arc::new(Schema::new(vec![
        Field::new("=name", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
    ]));
    let columns: Vec<ArrayRef> = vec![
        std::sync::Arc::new(StringArray::from(vec![Some("\r=1"), None])),
        std::sync::Arc::new(Int64Array::from(vec![-5, 5])),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).expect("a batch");
    let mut bytes = Vec::new();
    let mut renderer =
        Renderer::new(Format::Csv(Cells { shown: true, no_formulas: true }), schema, &mut bytes)
            .expect("memory");
    renderer.write(batch).expect("memory");
    renderer.finish().expect("memory");
    assert_eq!(String::from_utf8(bytes).expect("text"), "'=name,n\n'\\r=1,-5\n,5\n");
}

#[test]
fn a_name_forges_no_line_of_the_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).expect("a folder");
    // Broken compression is told with the object's name.
    std::fs::write(
        logs.join("a\u{1b}[31mb\nERROR fake \u{202e}"),
        [0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    )
    .expect("written");
    let lake = dir.path().join("lake");
    let output = flarelake(&["--lake", text(&lake), "backfill", text(&logs)]);
    let told = stderr(&output);
    assert!(told.contains("\\u{1b}[31mb\\nERROR fake \\u{202e}") && !is_raw(&told), "{told:?}");
    assert!(!told.lines().any(|line| line.starts_with("ERROR")), "{told}");
    let mut json_log = command(&["--lake", text(&dir.path().join("other")), "backfill", text(&logs)]);
    let told = stderr(&json_log.env("FLARELAKE_LOG", "json").output().expect("started"));
    assert!(
        told.lines().all(|line| serde_json::from_str::<Value>(line).is_ok())
            && !is_raw(&told)
            && told.contains("fake"),
        "{told:?}"
    );
}

#[test]
fn a_stderr_that_nobody_reads_ends_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake) = (dir.path().join("logs"), dir.path().join("lake"));
    std::fs::create_dir(&logs).expect("a folder");
    for n in 0..20 {
        let good = format!("{{\"EdgeStartTimestamp\":\"2026-01-15T10:00:{n:02}Z\",\"ZoneID\":1}}\n");
        std::fs::write(logs.join(format!("{n}.log")), good).expect("written");
        std::fs::write(logs.join(format!("{n}.gz")), [0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7, n])
            .expect("written");
    }
    let program = env!("CARGO_BIN_EXE_flarelake");
    // The reader has gone before the first line is written; a full disk; and no stderr at all.
    for broken in ["2>&1 >/dev/null | true", "2>/dev/full >/dev/null", "2>&- >/dev/null"] {
        let lake = format!("{}-{}", lake.display(), broken.len());
        let rc = dir.path().join("rc");
        let line = format!(
            "(RUST_LOG=debug {program} --lake {lake} backfill {}; echo $? > {}) {broken}",
            logs.display(),
            rc.display()
        );
        assert!(Command::new("sh").args(["-c", &line]).status().expect("a shell").success());
        assert_eq!(std::fs::read_to_string(&rc).expect("it ended").trim(), "0", "{broken}");
        assert_eq!(
            query_one(Path::new(&lake), "select count(*) from cloudflare_httprequest"),
            20,
            "{broken}"
        );
        // And an error is still an error.
        let line =
            format!("({program} --lake {lake} query 'select nothing'; echo $? > {}) {broken}", rc.display());
        assert!(Command::new("sh").args(["-c", &line]).status().expect("a shell").success());
        assert_eq!(std::fs::read_to_string(&rc).expect("it ended").trim(), "1", "{broken}");
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut connection = TcpStream::connect(address).expect("connected");
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer, and the end");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_never_finish_a_request_keep_nobody_from_metrics() {
    let (metrics, registry) = Metrics::new();
    let metrics = std::sync::Arc::new(metrics);
    let address =
        serve("127.0.0.1:0".parse().expect("an address"), metrics.clone(), registry).await.expect("served");
    let asking = tokio::task::spawn_blocking(move || {
        let slow: Vec<TcpStream> = (0..200)
            .map(|_| {
                let mut connection = TcpStream::connect(address).expect("connected");
                connection.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").expect("sent");
                connection
            })
            .collect();
        let began = Instant::now();
        let answer = get(address, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "it waited for none of them: {:?}",
            began.elapsed()
        );
        // Most are gone already, and the others soon, whatever they still send.
        for mut connection in slow {
            connection.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
            let mut rest = Vec::new();
            let ended = connection.read_to_end(&mut rest);
            assert!(
                ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
                "it is still open"
            );
        }
        assert!(get(address, "/metrics").contains("flarelake_ready"));
        metrics.started();
        assert!(get(address, "/readyz").ends_with("ready\n"));
        // Who asks is not told where the logs come from.
        let queue = "https://sqs.eu-west-1.amazonaws.com/123456789012/cloudflare-logs";
        metrics.set_problem(queue, format!("{queue}: access denied; allow sqs:ReceiveMessage"));
        metrics
            .set_problem("cf", "s3://acme-cloudflare-logs/http_requests/x.log.gz: access denied".to_owned());
        let answer = get(address, "/readyz");
        assert!(
            answer.starts_with("HTTP/1.1 503") && !answer.contains("amazonaws") && !answer.contains("acme"),
            "{answer}"
        );
    });
    asking.await.expect("no panic");
}

#[test]
fn as_many_files_may_be_open_as_the_system_allows() {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = lake(dir.path(), &["x"]);
    let line = format!("ulimit -Sn 64; exec {} --lake {lake} query", env!("CARGO_BIN_EXE_flarelake"));
    let mut shell = Command::new("bash")
        .args(["-c", &line])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("a shell");
    let id = shell.id();
    let soft = || {
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line").to_owned();
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        (words[3].clone(), words[4].clone())
    };
    let until = Instant::now() + Duration::from_secs(30);
    while soft().0 == "64" && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (soft, hard) = soft();
    assert_eq!(soft, hard);
    shell.stdin.take().expect("a pipe").write_all(b"select 1;").expect("sent");
    assert!(shell.wait().expect("it ends").success());
}
