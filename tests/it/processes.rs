//! Real processes over one local lake, killed at random: every line ends up in it once.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::decoding::runs;
use crate::support::{command, flarelake, query_one, stdout};

#[test]
fn two_processes_killed_and_restarted_land_each_line_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake) = (dir.path().join("logs"), dir.path().join("lake"));
    let arguments = [
        "generate",
        "--log-type",
        "Cloudflare.HttpRequest",
        "--rows",
        "4000",
        "--files",
        "40",
        "--odd",
        "0.1",
        "--gzip",
        "--out",
    ];
    assert!(flarelake(&[&arguments[..], &[logs.to_str().expect("a path")]].concat()).status.success());
    let config = dir.path().join("small.toml");
    // A flush for every few objects, so that there is much to interrupt.
    fs::write(&config, "memory = \"64MiB\"\n[flush]\nmax_bytes = \"200KiB\"\n").expect("written");
    let paths =
        [config.to_str().expect("a path"), lake.to_str().expect("a path"), logs.to_str().expect("a path")];
    let start = || {
        let arguments = ["--config", paths[0], "--lake", paths[1], "backfill", paths[2]];
        command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
    };
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..runs(8) {
        let mut two = [start(), start()];
        for child in &mut two {
            std::thread::sleep(Duration::from_millis(random.random_range(20..350)));
            // It may have ended by itself; that is fine too.
            let _ = child.kill();
        }
        for child in &mut two {
            child.wait().expect("it ends");
        }
    }
    for mut child in [start(), start()] {
        assert!(child.wait().expect("it ends").success());
    }
    let again = stdout(&flarelake(&["--lake", paths[1], "backfill", paths[2]]));
    assert!(again.contains("40 already there") && again.contains("nothing new"), "{again}");
    let sql = "SELECT (SELECT count(*) FROM all_logs) + (SELECT count(*) FROM classification_failures)";
    assert_eq!(query_one(&lake, sql), 4000);
    assert_eq!(query_one(&lake, "SELECT count(*) - count(DISTINCT p_row_id) FROM all_logs"), 0);
    assert_eq!(query_one(&lake, "SELECT count(DISTINCT object_id) FROM ingested_objects"), 40);
    assert_eq!(query_one(&lake, "SELECT count(*) FROM ingested_objects"), 40);
}
