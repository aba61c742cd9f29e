//! The configuration: what README shows can be used, and what can't be used is told so that it can be mended.

use std::fs;
use std::path::Path;
use std::time::Duration;

use flarelake::config::{Config, LogFormat};

fn load(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("flarelake.toml");
    fs::write(&path, text).expect("written");
    Config::load(Some(&path)).map_err(|e| e.to_string())
}

#[test]
fn what_readme_shows_is_the_defaults() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let blocks: Vec<&str> = readme.split("```toml\n").skip(1).map(|b| b.split("```").next().expect("an end")).collect();
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
        "lake = \"x\"\nlog = \"json\"\n[flush]\nmax_age = \"5s\"\n[maintenance]\nembedded = false\ncompact_every = \"10m\"\ntarget_file_size = \"256MiB\"\n\
         vacuum_after = \"7d\"\n[retention]\ncloudflare_httprequest = \"90d\"\n[store]\nserver_side_encryption = \"AES256\"\n[http]\nlisten = \"0.0.0.0:0\"\n",
    );
    let config = config.expect("it loads");
    assert_eq!((config.flush.max_age, config.log), (Duration::from_secs(5), LogFormat::Json));
    assert_eq!(config.retention["cloudflare_httprequest"], Duration::from_secs(90 * 86_400));
    assert!(config.maintenance.is_set());
}

#[test]
fn wrong_settings_are_told_so_that_they_can_be_mended() {
    for (text, told) in [
        ("memroy = \"1GiB\"", "unknown key `memroy`: did you mean `memory`?"),
        ("[flush]\nmaxage = \"5s\"", "unknown key `maxage` in [flush]: did you mean `max_age`?"),
        ("[[source]]\nid = \"a\"\nbucket = [\"b\"]", "did you mean `buckets`?"),
        ("[[source]]\nid = \"a\"\n[source.aws]\nrole = \"x\"", "did you mean `role_arn`?"),
        ("zzz = 1", "known are lake, memory,"),
        ("[flush]\nmax_age = \"soon\"", "max_age"),
        ("[[source]]\nid = \"a\"\n[[source]]\nid = \"a\"", "two sources have the id \"a\""),
        ("[[source]]\nid = \"a\"\nqueue = \"cloudflare-logs\"", "is no queue URL, such as https://sqs."),
        ("[[source]]\nid = \"a\"\nbuckets = [\"s3://x\"]", "bare names"),
        ("[[source]]\nid = \"a\"\nqueue = \"https://q/1/x\"\n[[source]]\nid = \"b\"\nqueue = \"https://q/1/x\"", "read the same queue"),
        ("[[source]]\nid = \"a\"\n[source.aws]\nexternal_id = \"x\"", "needs aws.role_arn"),
        ("[store]\nserver_side_encryption = \"kms\"", "\"aws:kms\""),
        ("[store]\nkms_key_id = \"x\"", "needs store.server_side_encryption"),
        ("[ingest]\nfetches = 0", "at least 1"),
        ("[http]\nlisten = \"localhost\"", "listen"),
    ] {
        let error = load(text).expect_err(text);
        assert!(error.contains(told), "{text}\n{error}");
    }
}
