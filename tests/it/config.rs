//! The configuration: what README shows can be used, and what can't be used is told so that it can be mended.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use flarelake::config::{Config, Every, LogFormat};

use crate::support::command;

fn load(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("flarelake.toml");
    fs::write(&path, text).expect("written");
    Config::load(Some(&path)).map_err(|e| e.to_string())
}

#[test]
fn what_readme_shows_is_the_defaults() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).map(|b| b.split("```").next().expect("an end")).collect();
    assert!(blocks.len() >= 2);
    let loaded: Vec<Config> = blocks.iter().map(|b| load(b).unwrap_or_else(|e| panic!("{e}\n{b}"))).collect();
    let whole = loaded.last().expect("the whole of it");
    let default = Config::default();
    assert_eq!(
        (whole.memory, whole.flush.max_age, whole.flush.max_bytes),
        (default.memory, default.flush.max_age, default.flush.max_bytes)
    );
    assert_eq!(
        format!("{:?}{:?}{:?}{:?}", whole.ingest, whole.limits, whole.http, whole.flush),
        format!("{:?}{:?}{:?}{:?}", default.ingest, default.limits, default.http, default.flush)
    );
    assert_eq!(whole.source[0].aws.role_arn.as_deref(), Some("arn:aws:iam::123456789012:role/read-logs"));
    assert_eq!(whole.store.server_side_encryption.as_deref(), Some("aws:kms"));
}

#[test]
fn every_key_can_be_set() {
    let config = load(
        "lake = \"x\"\nlog = \"json\"\n[flush]\nmax_age = \"5s\"\n[maintenance]\nembedded = false\ncompact_every = \"10m\"\nvacuum_every = \"0 3 * * *\"\n\
         target_file_size = \"256MiB\"\nvacuum_after = \"7d\"\n[retention]\ncloudflare_httprequest = \"90d\"\n[store]\nserver_side_encryption = \"AES256\"\n[http]\nlisten = \"0.0.0.0:0\"\n",
    );
    let config = config.expect("it loads");
    assert_eq!((config.flush.max_age, config.log), (Duration::from_secs(5), LogFormat::Json));
    assert_eq!(config.retention["cloudflare_httprequest"], Duration::from_secs(90 * 86_400));
    assert!(!config.maintenance.embedded);
    assert!(
        matches!(config.maintenance.compact_every, Every::Interval(every) if every == Duration::from_secs(600))
    );
    let Every::Cron(cron) = config.maintenance.vacuum_every else { panic!("a cron expression") };
    let noon = "2026-11-24T12:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().expect("a time");
    assert_eq!(
        cron.find_next_occurrence(&noon, false).expect("a time").to_rfc3339(),
        "2026-11-25T03:00:00+00:00"
    );
}

#[test]
fn wrong_settings_are_told_so_that_they_can_be_mended() {
    for (text, told) in [
        ("memroy = \"1GiB\"", "unknown key `memroy`: did you mean `memory`?"),
        ("[flush]\nmaxage = \"5s\"", "unknown key `maxage` in [flush]: did you mean `max_age`?"),
        (
            "[flush]\nmax_bytes = \"0B\"",
            "flush.max_bytes, flush.max_rows and flush.max_age must be more than 0",
        ),
        ("[[source]]\nid = \"a\"\nbucket = [\"b\"]", "did you mean `buckets`?"),
        ("[[source]]\nid = \"a\"\n[source.aws]\nrole = \"x\"", "did you mean `role_arn`?"),
        ("zzz = 1", "known are lake, memory,"),
        ("[flush]\nmax_age = \"soon\"", "max_age"),
        ("[[source]]\nid = \"a\"\n[[source]]\nid = \"a\"", "two sources have the id \"a\""),
        ("[[source]]\nid = \"a\"\nqueue = \"cloudflare-logs\"", "is no queue URL, such as https://sqs."),
        ("[[source]]\nid = \"a\"\nbuckets = [\"s3://x\"]", "bare names"),
        (
            "[[source]]\nid = \"a\"\nqueue = \"https://q/1/x\"\n[[source]]\nid = \"b\"\nqueue = \"https://q/1/x\"",
            "read the same queue",
        ),
        ("[[source]]\nid = \"a\"\n[source.aws]\nexternal_id = \"x\"", "needs aws.role_arn"),
        ("[store]\nserver_side_encryption = \"kms\"", "\"aws:kms\""),
        ("[store]\nkms_key_id = \"x\"", "needs store.server_side_encryption"),
        ("[ingest]\nfetches = 0", "at least 1"),
        ("[maintenance]\ncompact_every = \"often\"", "neither a time, such as 10m, nor a cron expression"),
        ("[maintenance]\ncompact_every = \"0s\"", "an interval of nothing"),
        ("[maintenance]\nvacuum_after = \"30d\"", "at most 10 days"),
        ("[maintenance]\ntarget_file_size = \"1KiB\"", "at least 1 MiB"),
        ("[retention]\ncloudflare_firewall = \"0d\"", "kept for ever"),
        ("[http]\nlisten = \"localhost\"", "listen"),
    ] {
        let error = load(text).expect_err(text);
        assert!(error.contains(told), "{text}\n{error}");
    }
}

#[test]
fn a_source_with_a_profile_uses_its_keys_and_no_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let credentials = dir.path().join("credentials");
    std::fs::write(
        &credentials,
        "[logs]\naws_access_key_id = OFTHEPROFILE\naws_secret_access_key = secret\n",
    )
    .expect("written");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
    let (told, heard) = mpsc::channel();
    // Refuses everything, after it has seen who asks.
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut lines =
                BufReader::new(&connection).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let line =
                lines.find(|line| line.to_lowercase().starts_with("authorization:")).unwrap_or_default();
            lines.for_each(drop);
            let _ = told.send(line);
            let _ = (&connection)
                .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    let config = dir.path().join("flarelake.toml");
    let lake = dir.path().join("lake");
    let text = format!(
        "lake = {lake:?}\n[[source]]\nid = \"a\"\nbuckets = [\"logs\"]\nqueue = \"{endpoint}/1/q\"\n[source.aws]\nprofile = \"logs\"\nregion = \"eu-west-1\"\nendpoint = \"{endpoint}\"\n"
    );
    std::fs::write(&config, text).expect("written");
    let mut check = command(&["--config", config.to_str().expect("text"), "check"]);
    check
        .env("AWS_SHARED_CREDENTIALS_FILE", &credentials)
        .env("AWS_ACCESS_KEY_ID", "OFTHEENVIRONMENT")
        .env("AWS_SECRET_ACCESS_KEY", "x");
    let output = check.output().expect("started");
    assert_eq!(
        output.status.code(),
        Some(1),
        "everything is refused: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let asked: Vec<String> = heard.try_iter().collect();
    assert!(asked.len() >= 5, "{asked:?}");
    assert!(asked.iter().all(|line| line.contains("Credential=OFTHEPROFILE/")), "{asked:?}");
}

#[test]
fn a_kubernetes_service_named_flarelake_is_no_setting() {
    let list = |variables: &[(&str, &str)]| {
        let mut command = command(&["schema", "list"]);
        command.env("RUST_LOG", "flarelake=debug").envs(variables.iter().copied()).output().expect("started")
    };
    // As the kubelet sets them, for a Service of two ports of which one has a name.
    let output = list(&[
        ("FLARELAKE_SERVICE_HOST", "10.96.0.17"),
        ("FLARELAKE_SERVICE_PORT", "9464"),
        ("FLARELAKE_SERVICE_PORT_METRICS", "9464"),
        ("FLARELAKE_PORT", "tcp://10.96.0.17:9464"),
        ("FLARELAKE_PORT_9464_TCP", "tcp://10.96.0.17:9464"),
        ("FLARELAKE_PORT_9464_TCP_PROTO", "tcp"),
        ("FLARELAKE_PORT_9464_TCP_PORT", "9464"),
        ("FLARELAKE_PORT_9464_TCP_ADDR", "10.96.0.17"),
        ("FLARELAKE_PORT_53_UDP_ADDR", "10.96.0.17"),
    ]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("FLARELAKE_PORT_9464_TCP_ADDR is no setting: Kubernetes sets it"), "{told}");
    for (name, value) in [
        ("FLARELAKE_PORT", "9464"),
        ("FLARELAKE_PORTS", "tcp://10.96.0.17:9464"),
        ("FLARELAKE_HOST", "10.96.0.17"),
        ("FLARELAKE_SERVICE", "x"),
        ("FLARELAKE_PORT_METRICS_TCP", "x"),
        ("FLARELAKE_PORT_9464_TCP_NAME", "x"),
        ("FLARELAKE_PORT_9464_TCP_ADDR_X", "x"),
        ("FLARELAKE_MEMROY", "1GiB"),
    ] {
        let output = list(&[(name, value)]);
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        let key = name.trim_start_matches("FLARELAKE_").to_lowercase();
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(&key),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // And settings are settings beside them.
    let output = list(&[("FLARELAKE_PORT", "tcp://10.96.0.17:9464"), ("FLARELAKE_FLUSH__MAX_AGE", "soon")]);
    let told = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(output.status.code() == Some(2) && told.contains("max_age"), "{told}");
}
