//! `flarelake query` and its shell: what they take, and where results go.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::queries::{asked, text};
use crate::support::{command, flarelake, stdout};

#[tokio::test(flavor = "multi_thread")]
async fn the_command_takes_files_parameters_and_standard_input() {
    let (dir, _session) = asked().await;
    let lake = dir.path().join("lake");
    let ask = |arguments: &[&str]| flarelake(&[&["--lake", text(&lake), "query"], arguments].concat());
    let top =
        stdout(&ask(&["-f", "top_talkers", "-p", "since=2026-01-01", "-p", "limit=1", "--format", "csv"]));
    assert_eq!(top, "client,country,requests,refused\n192.0.2.1,de,2,1\n");
    let counted = stdout(&ask(&[
        "SELECT count(*) AS n FROM cloudflare_httprequest WHERE EdgeResponseStatus >= $least",
        "-p",
        "least=400",
        "--format",
        "ndjson",
    ]));
    assert_eq!(counted, "{\"n\":2}\n");
    let listed = stdout(&ask(&["--list"]));
    assert!(
        listed.contains("top_talkers: Top talkers\n")
            && listed.contains("-p limit (integer) = 20: how many addresses"),
        "{listed}"
    );
    for (arguments, said) in [
        (&["-f", "top_talkers", "-p", "limit=x"][..], "limit = `x` is no integer"),
        (&["-f", "indicator"], "needs a value: -p value"),
        (&["SELECT 1", "-p", "novalue"], "NAME=VALUE"),
        (&["SELECT 1", "-p", "typo=1"], "has no parameter `typo`"),
        (&[], "give a statement"),
    ] {
        let output = ask(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(said), "{arguments:?}: {stderr}");
    }
    // What a parameter is, the statement tells.
    for (sql, value, expected) in [
        ("SELECT count(*) AS n FROM cloudflare_httprequest WHERE RayID <> $a", "007", "{\"n\":4}\n"),
        ("SELECT count(*) AS n FROM cloudflare_httprequest WHERE RayID = $a", "r1", "{\"n\":1}\n"),
        (
            "SELECT count(*) AS n FROM cloudflare_httprequest WHERE p_event_time >= $a",
            "2026-01-16T00:00:00Z",
            "{\"n\":1}\n",
        ),
        ("SELECT 1 AS n FROM cloudflare_httprequest LIMIT $a", "1", "{\"n\":1}\n"),
    ] {
        assert_eq!(
            stdout(&ask(&[sql, "-p", &format!("a={value}"), "--format", "ndjson"])),
            expected,
            "{sql}"
        );
    }
    // A link means what it points to.
    let (target, link) = (dir.path().join("target.csv"), dir.path().join("link.csv"));
    std::fs::write(&target, "old").expect("written");
    std::os::unix::fs::symlink(&target, &link).expect("linked");
    stdout(&ask(&["SELECT 1 AS a", "--format", "csv", "-o", text(&link)]));
    assert_eq!(std::fs::read_to_string(&target).expect("there"), "a\n1\n");
    assert!(link.is_symlink());
    // What is replaced keeps its mode; what is new has that of any new file.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for kept in [0o600, 0o640, 0o604, 0o666, 0o400] {
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(kept)).expect("set");
        stdout(&ask(&["SELECT 2 AS a", "--format", "csv", "-o", text(&link)]));
        assert_eq!(
            (mode(&target), std::fs::read_to_string(&target).expect("there")),
            (kept, "a\n2\n".to_owned())
        );
    }
    let (fresh, usual) = (dir.path().join("fresh.csv"), dir.path().join("usual"));
    stdout(&ask(&["SELECT 2 AS a", "--format", "csv", "-o", text(&fresh)]));
    std::fs::write(&usual, "").expect("written");
    assert_eq!(mode(&fresh), mode(&usual));
    // A statement of thousands of terms is no reason to fall.
    let long = format!("SELECT {} AS n", vec!["1"; 1500].join(" + "));
    assert_eq!(stdout(&ask(&[&long, "--format", "csv"])), "n\n1500\n");
    // Parquet, whole or not at all.
    let file = dir.path().join("out.parquet");
    stdout(&ask(&[
        "SELECT RayID, p_any_ip_addresses, p_event_time FROM cloudflare_httprequest",
        "--format",
        "parquet",
        "-o",
        text(&file),
    ]));
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
        std::fs::File::open(&file).expect("written"),
    );
    let read: usize =
        reader.and_then(|b| b.build()).expect("Parquet").map(|batch| batch.expect("rows").num_rows()).sum();
    assert_eq!(read, 4);
    let none = dir.path().join("none.csv");
    assert_eq!(
        ask(&[
            "SELECT 1 / (BotScore - BotScore) FROM cloudflare_httprequest",
            "--format",
            "csv",
            "-o",
            text(&none)
        ])
        .status
        .code(),
        Some(1)
    );
    assert!(!none.exists());
    // Statements on standard input, one after the other.
    let mut child = command(&["--lake", text(&lake), "query", "--format", "ndjson"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    std::io::Write::write_all(
        &mut child.stdin.take().expect("a pipe"),
        b"SELECT 1 AS a; -- one\nselect 2 as B;\n",
    )
    .expect("written");
    assert_eq!(stdout(&child.wait_with_output().expect("ends")), "{\"a\":1}\n{\"B\":2}\n");
}

/// What is no file is written to as it is; what others write to goes on where we end; and a link stays one.
#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_no_file_is_written_to_and_never_replaced() {
    use std::os::unix::fs::FileTypeExt as _;
    use std::os::unix::net::UnixStream;
    let (dir, _session) = asked().await;
    let lake = dir.path().join("lake");
    let binary = env!("CARGO_BIN_EXE_flarelake");
    // As a shell has it: others write before and after to the same descriptor.
    let shell = |script: &str| {
        let query = format!("{binary} --lake {} query 'SELECT 1 AS a' --format csv -o", text(&lake));
        let output = Command::new("sh")
            .args(["-c", &script.replace("QUERY", &query)])
            .current_dir(dir.path())
            .output()
            .expect("started");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let all = "before\na\n1\nafter\n";
    for own in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"] {
        assert_eq!(
            shell(&format!("{{ echo before; QUERY {own}; echo after; }} > out; cat out")),
            all,
            "{own}"
        );
        assert_eq!(
            shell(&format!("echo before > out; QUERY {own} >> out; echo after >> out; cat out")),
            all,
            "{own}"
        );
        assert_eq!(shell(&format!("{{ echo before; QUERY {own}; echo after; }} | cat")), all, "{own}");
    }
    assert_eq!(shell("{ echo before >&2; QUERY /dev/stderr; echo after >&2; } 2> out; cat out"), all);
    assert_eq!(shell("{ echo before >&3; QUERY /dev/fd/3; } 3> out; echo after >> out; cat out"), all);
    assert_eq!(
        shell(
            "ln -s /dev/stdout ours; { echo before; QUERY ours; echo after; } > out; test -L ours; cat out"
        ),
        all
    );
    // A file that has no name any more.
    assert_eq!(
        shell("exec 3>gone 4<gone; rm gone; QUERY /dev/fd/3; cat <&4; ls gone* 2>/dev/null || true"),
        "a\n1\n"
    );
    // A FIFO, and a link to one.
    assert_eq!(
        shell("mkfifo fifo; ln -s fifo link; cat fifo & QUERY link; wait; test -p fifo && test -L link"),
        "a\n1\n"
    );
    let kind = |name: &str| dir.path().join(name).symlink_metadata().expect("there").file_type();
    assert!(kind("fifo").is_fifo() && kind("link").is_symlink());
    assert_eq!(shell("QUERY /dev/null"), "");
    assert!(std::fs::metadata("/dev/null").expect("there").file_type().is_char_device());
    // A link to what is not there yet.
    assert_eq!(
        shell("mkdir sub; ln -s sub/new dangling; QUERY dangling; test -L dangling; cat sub/new"),
        "a\n1\n"
    );
    // A device that takes nothing is said.
    let full = command(&["--lake", text(&lake), "query", "SELECT 1 AS a", "-o", "/dev/full"])
        .output()
        .expect("started");
    assert_eq!(full.status.code(), Some(1));
    // A socket can't be opened by its name.
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    let mut child =
        command(&["--lake", text(&lake), "query", "SELECT 1 AS a", "--format", "csv", "-o", "/dev/stdout"]);
    let status = child.stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs))).status().expect("started");
    drop(child);
    assert!(status.success());
    assert_eq!(std::io::read_to_string(ours).expect("text"), "a\n1\n");
    let loops = dir.path().join("loops");
    std::os::unix::fs::symlink(&loops, &loops).expect("linked");
    let looped = command(&["--lake", text(&lake), "query", "SELECT 1 AS a", "-o", text(&loops)])
        .output()
        .expect("started");
    assert_eq!(looped.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&looped.stderr).contains("too many links"), "{looped:?}");
}

/// The shell on a terminal of its own, typed to by Python.
#[tokio::test(flavor = "multi_thread")]
async fn the_shell_remembers_completes_and_goes_on_after_errors() {
    let (dir, _session) = asked().await;
    let script = dir.path().join("type.py");
    std::fs::write(
        &script,
        r#"
import os, pty, select, sys, time
program, lake, home = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.environ.update(HOME=home, XDG_STATE_HOME=home, TERM="xterm", PAGER="cat", COLUMNS="200", LINES="50")
    os.execv(program, [program, "--lake", lake, "query"])
import fcntl, struct, termios
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
seen = b""
def until(what, least=0):
    global seen
    end = time.time() + 60
    while what not in seen:
        if time.time() > end:
            sys.exit(f"no {what!r} in {seen.decode(errors='replace')}")
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                break
    before, _, seen = seen.partition(what)
    return before
def say(text):
    # What is typed before the shell listens is thrown away by the terminal.
    until(b"\x1b[?2004h")
    os.write(terminal, text.encode())
say("select count(*)\n"); time.sleep(0.3)
os.write(terminal, b"from cloudflare_ht\t;\n")
until(b"|        4 |")
say("select nothing from cloudflare_firewall;\n")
until(b"error: there is no column `nothing`")
say("\\d cloudflare_spec\t\n")
until(b"ConnectTimestamp")
say("\\run top_talkers limit=1 since=2026-01-01\n")
until(b"| 192.0.2.1 |")
say("select * from cloudflare_httprequest limit 1;\n")
until(b"-[ RECORD 1 ]")
say("\\timing\n")
say("select 7 * 6;\n")
until(b"42"); until(b"Time: ")
say("\\d\n")
until(b"lake_files")
say("select count(*) from cloudflare_httprequest a, cloudflare_httprequest b, generate_series(1, 100000000) c, generate_series(1, 1000) d;\n")
time.sleep(2); os.write(terminal, b"\x03")
until(b"cancelled")
say("\\q\n")
os.waitpid(pid, 0)
print(open(os.path.join(home, "flarelake", "history")).read())
"#,
    )
    .expect("written");
    let lake = dir.path().join("lake");
    let output = Command::new("python3")
        .arg(&script)
        .args([env!("CARGO_BIN_EXE_flarelake"), text(&lake), text(dir.path())])
        .output()
        .expect("Python");
    let history = stdout(&output);
    assert!(
        history.contains("select 7 * 6;") && history.contains("from cloudflare_httprequest"),
        "{history}"
    );
}

#[test]
fn what_is_not_written_is_an_error_in_every_format_and_a_reader_that_has_seen_enough_is_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let lake = dir.path().join("lake");
    let logs = dir.path().join("a.json");
    std::fs::write(
        &logs,
        r#"{"EdgeStartTimestamp":"2026-01-15T12:00:00Z","RayID":"a","ClientRequestHost":"example.com"}"#,
    )
    .expect("written");
    stdout(&flarelake(&["--lake", text(&lake), "backfill", text(&logs)]));
    let shell = |script: &str| {
        let binary = env!("CARGO_BIN_EXE_flarelake");
        let script =
            script.replace("QUERY", &format!("'{binary}' --lake '{}' query --format", lake.display()));
        std::process::Command::new("bash").args(["-c", &script]).output().expect("started")
    };
    for format in ["table", "json", "ndjson", "csv", "parquet"] {
        // So few bytes that they are only written at the end.
        let full = shell(&format!("QUERY {format} 'SELECT RayID FROM cloudflare_httprequest' > /dev/full"));
        assert_eq!(full.status.code(), Some(1), "{format}: {full:?}");
        assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{format}: {full:?}");
        let seen = shell(&format!(
            "QUERY {format} 'SELECT unnest(range(0, 1000000)) AS n' | head -c 10; exit ${{PIPESTATUS[0]}}"
        ));
        assert_eq!(seen.status.code(), Some(0), "{format}: {seen:?}");
        assert!(seen.stderr.is_empty(), "{format}: {seen:?}");
    }
}
