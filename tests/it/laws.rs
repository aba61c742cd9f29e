//! The laws of the code: imports point one way, files and functions are short, third parties stay behind their
//! doors, and the README's code map is the tree.

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let path = entry.expect("a source file").into_path();
        if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            files.push((path, text));
        }
    }
    assert!(files.len() > 30);
    files
}

fn modules(text: &str) -> Vec<String> {
    let name = |line: &str| Some(line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned());
    text.lines().filter_map(name).collect()
}

/// Below which module of `order` a path's file is, if any.
fn place(order: &[String], path: &Path, below: &Path) -> Option<usize> {
    let relative = path.strip_prefix(below).ok()?;
    let first = relative.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    order.iter().position(|m| *m == first)
}

#[test]
fn imports_point_to_what_is_declared_above() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let top = modules(&fs::read_to_string(src.join("lib.rs")).expect("lib.rs"));
    let ingest = modules(&fs::read_to_string(src.join("ingest/mod.rs")).expect("ingest/mod.rs"));
    assert!(top.len() >= 8 && ingest.len() >= 10);
    for (path, text) in sources() {
        for (order, below, prefix) in
            [(&top, src.clone(), "crate::"), (&ingest, src.join("ingest"), "crate::ingest::"), (&ingest, src.join("ingest"), "super::")]
        {
            let Some(own) = place(order, &path, &below) else { continue };
            if prefix == "super::" && path.parent() != Some(&below) {
                continue;
            }
            for (at, _) in text.match_indices(prefix) {
                let module: String = text[at + prefix.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(imported) = order.iter().position(|m| *m == module) else { continue };
                assert!(imported <= own, "{}: uses {prefix}{module}, which is declared below it", path.display());
            }
        }
    }
}

#[test]
fn files_are_below_600_lines_and_functions_below_70() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{}: a file begins by saying what it is", path.display());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() <= 600, "{}: {} lines", path.display(), lines.len());
        for (at, line) in lines.iter().enumerate() {
            let words = line.trim_start();
            let indent = line.len() - words.len();
            let is_function =
                ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn "].iter().any(|f| words.starts_with(f));
            if !is_function || words.ends_with(';') {
                continue;
            }
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[at..].iter().position(|l| *l == end).unwrap_or(0);
            assert!(length <= 70, "{}:{}: a function of {length} lines", path.display(), at + 1);
        }
    }
}

#[test]
fn third_parties_stay_behind_their_doors() {
    let doors = [
        ("clap::", &["cli/"][..]),
        ("anyhow::", &["cli/"]),
        ("indicatif::", &["cli/"]),
        ("deltalake::", &["table/"]),
        ("datafusion::", &["query/", "table/"]),
        ("figment::", &["config/"]),
        ("std::env::", &["config/"]),
        ("SystemTime::now", &["base/"]),
        ("Utc::now", &["base/"]),
        ("Uuid::", &["base/"]),
        ("aws_config::", &["base/aws.rs"]),
        ("aws_sdk_sqs::", &["base/aws.rs", "ingest/queue/sqs.rs"]),
        ("aws_sdk_s3::", &["base/aws.rs", "ingest/bucket.rs"]),
        ("axum::", &["serve/"]),
        ("prometheus_client::", &["ingest/metrics.rs", "serve/"]),
        ("println!", &[]),
    ];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, text) in sources() {
        let relative = path.strip_prefix(&src).expect("below src").to_str().expect("a name").to_owned();
        for (what, allowed) in doors {
            let found = text.lines().any(|l| l.contains(what) && !(what == "println!" && l.contains("eprintln!")));
            assert!(!found || allowed.iter().any(|a| relative.starts_with(a)), "{relative}: {what} belongs in {allowed:?}");
        }
    }
}

#[test]
fn the_readmes_code_map_is_the_tree() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, _) in sources() {
        let relative = path.strip_prefix(&src).expect("below src").to_str().expect("a name").to_owned();
        let name = path.file_name().expect("a name").to_str().expect("a name");
        let said = if name == "mod.rs" { relative.trim_end_matches("mod.rs").to_owned() } else { name.to_owned() };
        assert!(readme.contains(&said), "README's code map does not name src/{relative}");
    }
}
