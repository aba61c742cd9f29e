//! Local files as others leave them: links, FIFOs and sockets in folders, and files that are being written
//! while they are read.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flarelake::base::failure::FailureKind;
use flarelake::config::Partitioning;
use flarelake::decode::inflate::ObjectLimits;
use flarelake::decode::object::{ContentHash, Object, ObjectId};
use flarelake::decode::split::Place;
use flarelake::land::batch::Tables;
use flarelake::land::worker::{WorkError, Worker, WorkerSettings};
use flarelake::schema::Catalog;
use flarelake::source::local::{Content, Links, LocalError, LocalFile};
use flarelake::source::origin::Input;
use flarelake::table::Lake;
use object_store::memory::InMemory;
use tokio::runtime::Handle;

use crate::decoding::{LIMITS, WRITTEN};
use crate::support::{command, memory_lake, query_one, read_ledger, read_table};

const LINE: &str = "{\"EdgeStartTimestamp\":\"2025-03-24T19:10:40Z\",\"ClientIP\":\"192.0.2.1\",\"EdgeResponseStatus\":200}\n";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs the program, which has to end by itself.
fn ends(arguments: &[&str]) -> Output {
    let mut child =
        command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let end = Instant::now() + Duration::from_secs(30);
    while child.try_wait().expect("its state").is_none() {
        if Instant::now() > end {
            child.kill().expect("it is ours");
            panic!("{arguments:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().expect("its output")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("started").success());
}

/// A folder into which others drop logs, with a log, two links to what is elsewhere, a FIFO and a socket; and
/// a log that is elsewhere.
fn drop_folder(dir: &Path) -> (PathBuf, UnixListener) {
    let (logs, elsewhere) = (dir.join("logs"), dir.join("elsewhere"));
    fs::create_dir_all(logs.join("sub")).expect("a folder");
    fs::create_dir_all(&elsewhere).expect("a folder");
    fs::write(logs.join("sub/own.log"), LINE).expect("written");
    fs::write(elsewhere.join("secret.log"), LINE.repeat(2)).expect("written");
    fs::write(dir.join("shadow"), LINE.repeat(3)).expect("written");
    symlink(dir.join("shadow"), logs.join("sub/a.log")).expect("a link");
    symlink(&elsewhere, logs.join("linked")).expect("a link");
    fifo(&logs.join("sub/pipe.log"));
    let socket = UnixListener::bind(logs.join("socket.log")).expect("a socket");
    (logs, socket)
}

#[test]
fn links_and_what_is_no_file_are_passed_over_in_folders_and_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, _socket) = drop_folder(dir.path());
    let lake = dir.path().join("lake");
    let told = "2 symbolic links passed over (--follow-links reads what they lead to)";
    let dry = ends(&["backfill", "--dry-run", text(&logs)]);
    assert!(
        dry.status.success() && said(&dry).contains("objects: 1 decoded") && said(&dry).contains(told),
        "{}",
        said(&dry)
    );
    let run = |more: &[&str]| ends(&[&["--lake", text(&lake), "backfill"], more].concat());
    let output = run(&[text(&logs)]);
    assert!(output.status.success() && said(&output).contains("objects: 1 landed"), "{}", said(&output));
    assert!(
        said(&output).contains(told) && said(&output).contains("2 passed over that are no files"),
        "{}",
        said(&output)
    );
    assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_httprequest"), 1);
    // A folder that is named is meant, also if it is a link itself; what is in it is treated as ever.
    symlink(&logs, dir.path().join("named")).expect("a link");
    let output = run(&[text(&dir.path().join("named"))]);
    assert!(
        output.status.success() && said(&output).contains("0 landed, 1 already there"),
        "{}",
        said(&output)
    );
    let output = run(&["--follow-links", text(&logs)]);
    assert!(
        output.status.success() && said(&output).contains("objects: 2 landed, 1 already there"),
        "{}",
        said(&output)
    );
    assert!(
        !said(&output).contains("symbolic links")
            && said(&output).contains("2 passed over that are no files"),
        "{}",
        said(&output)
    );
    assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_httprequest"), 6);
}

#[test]
fn a_glob_passes_over_the_same_and_never_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, _socket) = drop_folder(dir.path());
    let run = |pattern: &str, more: &[&str]| {
        let pattern = dir.path().join(pattern);
        ends(&[&["backfill", "--dry-run", text(&pattern)], more].concat())
    };
    for (pattern, more, objects, links, others) in [
        ("logs/sub/*.log", &[][..], 1, 1, 1),
        ("logs/s*/own.log", &[], 1, 0, 0),
        // A folder that a pattern brings is looked through; a link to one is passed over, and so is what is
        // behind it.
        ("logs/*", &[], 1, 2, 2),
        ("logs/*/secret.log", &[], 0, 1, 0),
        ("logs/*/secret.log", &["--follow-links"], 1, 0, 0),
        // What stands before the pattern was named.
        ("logs/linked/*.log", &[], 1, 0, 0),
        ("logs/sub/p*", &[], 0, 0, 1),
        ("logs/sub/p*", &["--follow-links"], 0, 0, 1),
    ] {
        let output = run(pattern, more);
        let told = said(&output);
        assert!(
            output.status.success() && told.contains(&format!("objects: {objects} decoded")),
            "{pattern} {more:?}: {told}"
        );
        assert_eq!(
            told.contains(&format!("{links} symbolic links passed over")),
            links > 0,
            "{pattern} {more:?}: {told}"
        );
        assert_eq!(
            told.contains(&format!("{others} passed over that are no files")),
            others > 0,
            "{pattern} {more:?}: {told}"
        );
    }
    assert!(said(&run("logs/none*", &[])).contains("nothing is there"));
    // Who names a FIFO is told what to do; nobody waits for it.
    let output = ends(&["backfill", "--dry-run", text(&logs.join("sub/pipe.log"))]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("pipe.log: not read: it is a FIFO") && said(&output).contains("backfill -"),
        "{}",
        said(&output)
    );
    // A link that is named is meant.
    let output = ends(&["backfill", "--dry-run", text(&logs.join("sub/a.log"))]);
    assert!(said(&output).contains("cloudflare_httprequest 3"), "{}", said(&output));
}

#[test]
fn what_takes_a_files_place_after_it_was_listed_is_neither_followed_nor_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().canonicalize().expect("there");
    fs::create_dir_all(root.join("logs/sub")).expect("a folder");
    fs::create_dir_all(root.join("elsewhere")).expect("a folder");
    fs::write(root.join("elsewhere/x.log"), LINE).expect("written");
    let path = root.join("logs/sub/x.log");
    fs::write(&path, LINE).expect("written");
    let listed = LocalFile { path: path.clone(), links: Links::PassOver };
    assert_eq!(listed.read(1 << 20).expect("a file").hash, ContentHash::of(LINE.as_bytes()).expect("memory"));
    fs::remove_file(&path).expect("removed");
    symlink(root.join("elsewhere/x.log"), &path).expect("a link");
    assert!(matches!(listed.read(1 << 20), Err(LocalError::Link { .. })));
    fs::remove_file(&path).expect("removed");
    fifo(&path);
    assert!(matches!(listed.read(1 << 20), Err(LocalError::NoFile { what: "a FIFO", .. })));
    // The same of a folder above it.
    fs::rename(root.join("logs/sub"), root.join("logs/old")).expect("renamed");
    symlink(root.join("elsewhere"), root.join("logs/sub")).expect("a link");
    assert!(matches!(listed.read(1 << 20), Err(LocalError::Link { .. })));
}

fn settings() -> WorkerSettings {
    WorkerSettings {
        records: LIMITS,
        objects: ObjectLimits { max_object: 1 << 30, max_ratio: 500, max_window: 8 << 20 },
        // Rows are written to files long before the object's end.
        flush_bytes: 256 << 10,
        flush_rows: u64::MAX,
        max_age: Duration::MAX,
        whole_bytes: 64 << 10,
    }
}

/// Gzip that takes as many bytes as it holds.
fn stored_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Decodes a file that `change` writes to after it was hashed.
async fn decoded_after(bytes: &[u8], change: impl FnOnce(&Path)) -> (Result<(), WorkError>, Arc<InMemory>) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("large.log");
    fs::write(&path, bytes).expect("written");
    // As one of more than 32 MiB is read.
    let read = LocalFile { path: path.clone(), links: Links::Follow }.read(1 << 20).expect("a file");
    let Content::Hashed(file) = read.content else { panic!("it is read twice") };
    let object = Object {
        id: ObjectId::of_file(&read.path, &read.hash),
        bucket: None,
        key: text(&read.path).to_owned(),
        etag: read.hash.to_string(),
        size: read.size,
        last_modified: Some(WRITTEN),
        source_id: None,
        source_label: None,
    };
    let input = Input::File(file);
    change(&path);
    let inner = Arc::new(InMemory::new());
    let lake = Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"));
    let work = move || {
        let catalog = Catalog::embedded();
        let tables = Arc::new(Tables::new(&catalog, Partitioning::Day));
        let mut worker =
            Worker::new(&catalog, tables, Some(lake), settings(), Arc::default(), Handle::current());
        let worked = worker.work(object, input, Place::START, None);
        worker.flush().expect("lands");
        worked
    };
    (tokio::task::spawn_blocking(work).await.expect("no panic"), inner)
}

type Change<'a> = &'a dyn Fn(&Path);

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_file_that_changes_after_it_was_hashed_nothing_lands() {
    let plain = LINE.repeat((3 << 20) / LINE.len());
    let zipped = stored_gzip(plain.as_bytes());
    let append = |path: &Path| {
        fs::File::options()
            .append(true)
            .open(path)
            .and_then(|mut f| f.write_all(LINE.as_bytes()))
            .expect("written")
    };
    let shorten = |path: &Path| {
        fs::File::options().write(true).open(path).and_then(|f| f.set_len(2 << 20)).expect("cut")
    };
    let overwrite = |path: &Path| {
        use std::os::unix::fs::FileExt as _;
        fs::File::options()
            .write(true)
            .open(path)
            .and_then(|f| f.write_all_at(b"9", 2 << 20))
            .expect("written");
    };
    let changes: [(&str, &[u8], Change<'_>); 4] = [
        ("appended to", plain.as_bytes(), &append),
        ("cut", plain.as_bytes(), &shorten),
        ("overwritten", plain.as_bytes(), &overwrite),
        // What is broken by that is not what the file was.
        ("broken", &zipped, &overwrite),
    ];
    for (what, bytes, change) in changes {
        let (worked, inner) = decoded_after(bytes, change).await;
        let error = worked.expect_err(what);
        assert!(
            error.failure().kind == FailureKind::Changed
                && error.to_string().contains("it changed while it was read"),
            "{what}: {error}"
        );
        assert!(read_ledger(inner.as_ref()).await.is_empty(), "{what}");
    }
    // Unchanged, it lands, and so does what is broken from the start, as a reject.
    for (bytes, table, rows) in [
        (plain.as_bytes(), "cloudflare_httprequest", plain.len() / LINE.len()),
        (&zipped[..zipped.len() - 9], "classification_failures", 1),
    ] {
        let (worked, inner) = decoded_after(bytes, |_| {}).await;
        worked.expect("decodes");
        assert_eq!(read_table(inner.as_ref(), table).await.values().flatten().count(), rows, "{table}");
        assert_eq!(read_ledger(inner.as_ref()).await.len(), 1);
    }
}

/// Appends lines to a file until it is told to stop. How many there are.
fn writer(path: &Path, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (mut file, stop) = (fs::File::options().append(true).open(path).expect("a file"), stop.clone());
    std::thread::spawn(move || {
        let mut lines = 0;
        while !stop.load(Ordering::SeqCst) {
            file.write_all(LINE.as_bytes()).expect("written");
            lines += 1;
            std::thread::sleep(Duration::from_millis(3));
        }
        lines
    })
}

#[test]
fn a_file_that_is_being_written_is_left_out_and_lands_once_when_it_is_done() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake) = (dir.path().join("logs"), dir.path().join("lake"));
    fs::create_dir(&logs).expect("a folder");
    let first = (33 << 20) / LINE.len();
    fs::write(logs.join("growing.log"), LINE.repeat(first)).expect("written");
    fs::write(logs.join("done.log"), LINE.repeat(7)).expect("written");
    let stop = Arc::new(AtomicBool::new(false));
    let writing = writer(&logs.join("growing.log"), &stop);
    let run = || command(&["--lake", text(&lake), "backfill", text(&logs)]).output().expect("started");
    let output = run();
    stop.store(true, Ordering::SeqCst);
    let lines = first as u64 + writing.join().expect("no panic");
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("objects: 1 landed") && told.contains("1 failed"), "{told}");
    assert!(
        told.contains(
            "growing.log: it changed while it was read, 3 times: nothing of it landed; run it again when"
        ),
        "{told}"
    );
    assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_httprequest"), 7);
    for landed in ["1 landed, 1 already there", "0 landed, 2 already there"] {
        let output = run();
        assert!(output.status.success() && said(&output).contains(landed), "{}", said(&output));
        assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_httprequest"), 7 + lines);
        assert_eq!(query_one(&lake, "SELECT count(*) FROM classification_failures"), 0);
    }
}
