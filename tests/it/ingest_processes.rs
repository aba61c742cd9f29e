//! `flarelake ingest` on the wire while processes are killed and frozen, connections cut, and stops asked for.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::decoding::runs;
use crate::ingest::{Running, configuration, ingest, logs, text};
use crate::moto::{Cloud, Moto, Proxy, python, skipped};
use crate::support::{query_one, stdout};

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_killed_and_frozen_land_every_record_once() {
    let Some(python) = python() else { return skipped("torture of processes") };
    let seed = 20_261_124;
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[("VisibilityTimeout", "2")]).await;
    cloud.bucket("logs", Some(&queue)).await;
    let lake = dir.path().join("lake");
    let more = "memory = \"64MiB\"\n[flush]\nmax_age = \"300ms\"\n[ingest]\ndrain = \"4s\"\n";
    let config = configuration(dir.path(), text(&lake), &queue, more);
    let rounds = runs(6);
    let files = logs(dir.path(), "Cloudflare.HttpRequest", 40 * rounds as u32, 4 * rounds as u32, "0.1");
    let mut objects = BTreeSet::new();
    for (round, part) in files.chunks(4).enumerate() {
        for (name, bytes) in part {
            let key = format!("r{round}/{name}");
            cloud.put("logs", &key, bytes.clone()).await;
            if random.random_bool(0.2) {
                cloud.put("logs", &key, bytes.clone()).await;
            }
            objects.insert(key);
        }
        let mut three: Vec<Running> = (0..3)
            .map(|n| Running::start(&moto, &config, dir.path().join(format!("log-{round}-{n}"))))
            .collect();
        for running in &mut three {
            std::thread::sleep(Duration::from_millis(random.random_range(100..900)));
            match random.random_range(0..3) {
                0 => drop(running.child.kill()),
                1 => {
                    // Past its lease, and on as if nothing had been.
                    running.signal(Signal::SIGSTOP);
                    std::thread::sleep(Duration::from_millis(2500));
                    running.signal(Signal::SIGCONT);
                    std::thread::sleep(Duration::from_millis(300));
                    drop(running.child.kill());
                }
                _ => running.signal(Signal::SIGTERM),
            }
        }
        for running in &mut three {
            running.child.wait().expect("it ends");
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    while cloud.depth(&queue).await != (0, 0) {
        assert!(Instant::now() < end, "the queue is never empty");
        ingest(&moto, &config, "3s");
    }
    let records = 40 * rounds;
    assert_eq!(
        query_one(
            &lake,
            "SELECT (SELECT count(*) FROM all_logs) + (SELECT count(*) FROM classification_failures)"
        ),
        records
    );
    assert_eq!(query_one(&lake, "SELECT count(*) - count(DISTINCT p_row_id) FROM all_logs"), 0);
    assert_eq!(
        query_one(&lake, "SELECT count(*) - count(DISTINCT p_row_id) FROM classification_failures"),
        0
    );
    assert_eq!(query_one(&lake, "SELECT count(*) FROM ingested_objects"), objects.len());
    assert_eq!(query_one(&lake, "SELECT count(DISTINCT key) FROM ingested_objects"), objects.len());
    let disagree = "SELECT count(*) FROM ingested_objects o LEFT JOIN (SELECT substr(p_row_id, 1, 32) AS id, count(*) AS n FROM all_logs GROUP BY 1) r \
         ON r.id = o.object_id LEFT JOIN (SELECT substr(p_row_id, 1, 32) AS id, count(*) AS n FROM classification_failures GROUP BY 1) f ON f.id = o.object_id \
         WHERE coalesce(o.rows['cloudflare_httprequest'], 0) <> coalesce(r.n, 0) OR o.rejects <> coalesce(f.n, 0)";
    assert_eq!(query_one(&lake, disagree), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_and_delayed_lose_and_double_nothing() {
    let Some(python) = python() else { return skipped("cut connections") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[("VisibilityTimeout", "4")]).await;
    cloud.bucket("logs", Some(&queue)).await;
    cloud.bucket("lake", None).await;
    let config = configuration(
        dir.path(),
        "s3://lake/cf",
        &queue,
        "[flush]\nmax_age = \"500ms\"\n[ingest]\ndrain = \"6s\"\n",
    );
    let files = logs(dir.path(), "Cloudflare.Firewall", 600, 30, "0.05");
    let seed = 20_261_125;
    println!("seed {seed}");
    let proxy = Proxy::start(&moto.endpoint, seed);
    for (name, bytes) in &files {
        cloud.put("logs", &format!("f/{name}"), bytes.clone()).await;
    }
    let through = |arguments: &[&str]| {
        let mut command = moto.flarelake(&[&["--config", text(&config)], arguments].concat());
        command.env("AWS_ENDPOINT_URL", &proxy.endpoint);
        command
    };
    let log = dir.path().join("log");
    let mut two: Vec<Child> = Vec::new();
    for _ in 0..2 {
        let stderr = fs::File::options().create(true).append(true).open(&log).expect("a file");
        two.push(through(&["ingest"]).stdout(Stdio::null()).stderr(stderr).spawn().expect("started"));
    }
    std::thread::sleep(Duration::from_secs(12));
    proxy.trouble.store(false, std::sync::atomic::Ordering::SeqCst);
    for child in &mut two {
        // Whoever could not even begin has ended by itself.
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        child.wait().expect("it ends");
    }
    let said = fs::read_to_string(&log).expect("a log");
    assert!(
        said.contains("trying again") || said.contains("tried again") || said.contains("error:"),
        "there was trouble: {said}"
    );
    let end = Instant::now() + Duration::from_secs(60);
    while cloud.depth(&queue).await != (0, 0) {
        assert!(Instant::now() < end, "the queue is never empty");
        ingest(&moto, &config, "2s");
    }
    let ask = |sql: &str| {
        stdout(
            &moto
                .flarelake(&["--config", text(&config), "query", "--format", "ndjson", sql])
                .output()
                .expect("started"),
        )
    };
    assert_eq!(
        ask(
            "SELECT (SELECT count(*) FROM all_logs) + (SELECT count(*) FROM classification_failures) AS records, \
             (SELECT count(DISTINCT p_row_id) FROM all_logs) + (SELECT count(DISTINCT p_row_id) FROM classification_failures) AS ids, \
             (SELECT count(*) FROM ingested_objects) AS objects, (SELECT count(DISTINCT object_id) FROM ingested_objects) AS known"
        ),
        "{\"records\":600,\"ids\":600,\"objects\":30,\"known\":30}\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_in_time_when_nothing_answers_and_at_once_when_told_twice() {
    let Some(python) = python() else { return skipped("stopping without answers") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[]).await;
    cloud.bucket("logs", Some(&queue)).await;
    cloud.bucket("lake", None).await;
    let config = configuration(
        dir.path(),
        "s3://lake/cf",
        &queue,
        "[flush]\nmax_age = \"1s\"\n[ingest]\ndrain = \"4s\"\n",
    );
    let files = logs(dir.path(), "Cloudflare.Spectrum", 100, 10, "0");
    for (signals, code) in [(1, 0), (2, 130)] {
        let mut running = Running::start(&moto, &config, dir.path().join(format!("log-{signals}")));
        running.wait("it becomes ready", |r| r.get("/readyz").is_some_and(|(status, _)| status == 200));
        for (name, bytes) in &files {
            cloud.put("logs", &format!("{signals}/{name}"), bytes.clone()).await;
        }
        running.wait("it holds something", |r| r.metric("flarelake_messages_held") > 0.0);
        let all = Pid::from_raw(moto.child.id() as i32);
        kill(all, Signal::SIGSTOP).expect("it is ours");
        let began = Instant::now();
        running.signal(Signal::SIGTERM);
        if signals == 2 {
            std::thread::sleep(Duration::from_millis(500));
            running.signal(Signal::SIGINT);
        }
        let status = running.child.wait().expect("it ends");
        kill(all, Signal::SIGCONT).expect("it is ours");
        let took = began.elapsed();
        assert_eq!(status.code(), Some(code), "after {took:?}");
        assert!(took < Duration::from_millis(if signals == 2 { 1500 } else { 5500 }), "it took {took:?}");
    }
}
