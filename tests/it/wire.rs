//! Real parts: S3's wire, by moto's server, and the readers people use, Python deltalake, DuckDB, Polars and PyArrow. Their
//! packages go into a virtual environment below target/, made here, with pinned versions.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::{command, flarelake, stdout};

const PACKAGES: [&str; 5] = ["moto[server]==5.2.5", "deltalake==1.6.6", "duckdb==2.0.0", "polars==2.1.0", "pyarrow==26.0.1"];

/// The environment's Python; none if the machine has no Python, which is said out loud.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let found = Command::new("python3").arg("--version").output();
            if !found.is_ok_and(|o| o.status.success()) {
                return None;
            }
            let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
            let python = home.join("bin/python");
            let stamp = home.join(format!("ready-{}", PACKAGES.join("-").replace(['[', ']', '='], "_")));
            if !stamp.exists() {
                run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
                run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES));
                fs::write(stamp, "").expect("written");
            }
            Some(python)
        })
        .as_deref()
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Says past the test harness, which swallows what passing tests print, that tests were skipped.
fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "\n1 skipped: {what}: there is no python3 on this machine; install it to run this test");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name)
}

/// moto's server on a free loopback port, ended when dropped.
struct Moto {
    child: Child,
    endpoint: String,
}

impl Moto {
    fn start(python: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let mut child = Command::new(python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto can be started");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if lines.next().expect("moto goes on").expect("text").contains("Running on") {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, endpoint: format!("http://127.0.0.1:{port}") }
    }

    fn flarelake(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "us-east-1");
        command
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_same_journey_over_s3() {
    let Some(python) = python() else { return skipped("the journey over S3") };
    let dir = tempfile::tempdir().expect("a folder");
    let logs = dir.path().join("logs");
    for (log_type, rows) in [("Cloudflare.HttpRequest", "900"), ("Cloudflare.Spectrum", "300")] {
        let arguments = [
            "generate",
            "--log-type",
            log_type,
            "--rows",
            rows,
            "--files",
            "6",
            "--odd",
            "0",
            "--gzip",
            "--out",
            logs.to_str().expect("a path"),
        ];
        assert!(flarelake(&arguments).status.success());
    }
    let moto = Moto::start(python);
    run(Command::new(python).arg(script("s3_setup.py")).arg(&moto.endpoint).arg(&logs));
    let lake = "s3://lake/some/prefix";
    let backfill = |path: &str| stdout(&moto.flarelake(&["--lake", lake, "backfill", path]).output().expect("started"));
    // A prefix cut short, then a pattern, then all: each object lands once.
    let part = backfill("s3://logs/in/http_re");
    assert!(part.contains("objects: 6 landed") && part.contains("cloudflare_httprequest 900"), "{part}");
    let pattern = backfill("s3://logs/in/*_events/*/*.gz");
    assert!(pattern.contains("objects: 6 landed") && pattern.contains("cloudflare_spectrum 300"), "{pattern}");
    let all = backfill("s3://logs");
    assert!(all.contains("0 landed, 12 already there, 2 skipped"), "{all}");
    let sql = "SELECT p_log_type, count(*) AS n, count(DISTINCT p_row_id) AS d FROM all_logs GROUP BY p_log_type ORDER BY n";
    let rows = stdout(&moto.flarelake(&["--lake", lake, "query", "--format", "ndjson", sql]).output().expect("started"));
    assert_eq!(
        rows,
        "{\"p_log_type\":\"Cloudflare.Spectrum\",\"n\":300,\"d\":300}\n{\"p_log_type\":\"Cloudflare.HttpRequest\",\"n\":900,\"d\":900}\n"
    );
    let object = stdout(
        &moto
            .flarelake(&[
                "--lake",
                lake,
                "query",
                "--format",
                "ndjson",
                "SELECT bucket, max(length(etag)) AS etag FROM ingested_objects GROUP BY bucket",
            ])
            .output()
            .expect("started"),
    );
    assert_eq!(object, "{\"bucket\":\"logs\",\"etag\":32}\n");
    // Two processes at once into a new lake.
    let other = "s3://lake/raced";
    let children: Vec<Child> = (0..2)
        .map(|_| moto.flarelake(&["--lake", other, "backfill", "s3://logs/in/"]).stdout(Stdio::null()).spawn().expect("started"))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    let sql = "SELECT count(*) AS n, count(DISTINCT p_row_id) AS d FROM all_logs";
    let rows = stdout(&moto.flarelake(&["--lake", other, "query", "--format", "ndjson", sql]).output().expect("started"));
    assert_eq!(rows, "{\"n\":1200,\"d\":1200}\n");
    let missing = moto.flarelake(&["--lake", lake, "backfill", "s3://no-such-bucket/x"]).output().expect("started");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-bucket"));
}

#[test]
fn other_engines_read_the_same_types_and_values() {
    let Some(python) = python() else { return skipped("reading the tables with other engines") };
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake) = (dir.path().join("a.log"), dir.path().join("lake"));
    fs::copy(script("../data/readers.ndjson"), &log).expect("copied");
    stdout(&flarelake(&["--lake", lake.to_str().expect("a path"), "backfill", log.to_str().expect("a path")]));
    let said = run(Command::new(python).arg(script("readers.py")).arg(&lake));
    assert!(said.contains("all readers agree"), "{said}");
}
