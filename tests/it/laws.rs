//! The laws of the code: imports point one way in every folder, no room is too large, files and functions are
//! short, third parties stay behind their doors, and the README's code map is the tree.

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
    let name = |line: &str| {
        Some(line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    };
    text.lines().filter_map(name).collect()
}

/// Below which module of `order` a path's file is, if any.
fn place(order: &[String], path: &Path, below: &Path) -> Option<usize> {
    let relative = path.strip_prefix(below).ok()?;
    let first = relative.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    order.iter().position(|m| *m == first)
}

/// The folders of src that have modules, each with its modules in their order.
fn rooms() -> Vec<(PathBuf, Vec<String>)> {
    let sources = sources();
    let roots = sources.iter().filter(|(path, _)| path.ends_with("mod.rs") || path.ends_with("lib.rs"));
    roots.map(|(path, text)| (path.parent().expect("a folder").to_owned(), modules(text))).collect()
}

/// The first word of each path below `prefix` that a text names, in lists within braces, too.
fn named_below(text: &str, prefix: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(list) => {
                let mut depth = 0;
                for item in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        names.push(word(item.trim_start()));
                    }
                    depth += i32::from(item.ends_with('{')) - i32::from(item.ends_with('}'));
                    if depth < 0 {
                        break;
                    }
                }
            }
        }
    }
    names
}

#[test]
fn imports_point_to_what_is_declared_above_in_every_folder() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = sources();
    let mut wrong = Vec::new();
    for (room, order) in rooms() {
        let of_crate =
            room.strip_prefix(&src).expect("below src").to_str().expect("a name").replace('/', "::");
        let absolute =
            if of_crate.is_empty() { "crate::".to_owned() } else { format!("crate::{of_crate}::") };
        for (path, text) in &sources {
            let Some(own) = place(&order, path, &room) else { continue };
            let mut named = named_below(text, &absolute);
            if path.parent() == Some(&room) {
                named.extend(named_below(text, "super::"));
            }
            for name in named {
                if order.iter().position(|module| *module == name).is_some_and(|imported| imported > own) {
                    wrong.push(format!("{}: uses {name}, which is declared below it", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_room_has_more_than_fifteen_percent_of_the_lines() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = sources();
    let lines = |of: &Path| {
        sources
            .iter()
            .filter(|(path, _)| path.starts_with(of))
            .map(|(_, text)| text.lines().count())
            .sum::<usize>()
    };
    let all = lines(&src);
    for room in modules(&fs::read_to_string(src.join("lib.rs")).expect("lib.rs")) {
        let own = lines(&src.join(&room));
        assert!(own * 100 <= all * 15, "{room}: {own} of {all} lines");
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
            let words = words
                .split_once(')')
                .filter(|_| words.starts_with("pub("))
                .map_or(words, |(_, rest)| rest.trim_start());
            let words = ["pub ", "default ", "const ", "async ", "unsafe "]
                .iter()
                .fold(words, |words, of| words.strip_prefix(of).unwrap_or(words));
            if !words.starts_with("fn ") || words.ends_with(';') {
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
        ("datafusion::", &["sql/", "query/", "table/"]),
        ("figment::", &["config/"]),
        ("std::env::", &["config/"]),
        ("SystemTime::now", &["base/"]),
        ("Utc::now", &["base/"]),
        ("Uuid::", &["base/"]),
        ("aws_config::", &["base/aws.rs"]),
        ("aws_sdk_sqs::", &["base/aws.rs", "source/queue/sqs.rs"]),
        ("aws_sdk_s3::", &["base/aws.rs", "source/bucket.rs"]),
        ("axum::", &["serve/"]),
        ("prometheus_client::", &["ingest/metrics.rs", "serve/"]),
        ("println!", &[]),
    ];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, text) in sources() {
        let relative = path.strip_prefix(&src).expect("below src").to_str().expect("a name").to_owned();
        for (what, allowed) in doors {
            let found =
                text.lines().any(|l| l.contains(what) && !(what == "println!" && l.contains("eprintln!")));
            assert!(
                !found || allowed.iter().any(|a| relative.starts_with(a)),
                "{relative}: {what} belongs in {allowed:?}"
            );
        }
    }
}

#[test]
fn the_readmes_code_map_is_the_tree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let library = fs::read_to_string(root.join("src/lib.rs")).expect("lib.rs");
    let rows: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `src/")?.split_once("/` |"))
        .map(|(room, _)| room)
        .collect();
    assert_eq!(rows, modules(&library), "README's code map, and the modules in their order");
    let told: Vec<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`")?.split_once("`] |"))
        .map(|(room, _)| room)
        .collect();
    assert_eq!(told, rows, "what lib.rs says of its modules");
}

#[test]
fn lines_are_no_longer_than_a_reader_takes_in_at_once() {
    // But for text that is told as it stands, and what holds it.
    let is_text = |line: &str| line.contains('"') || line.contains("│") || line.contains("http");
    for (path, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            let is_long = line.chars().count() > 110;
            assert!(
                !is_long || is_text(line),
                "{}:{}: {} characters",
                path.display(),
                at + 1,
                line.chars().count()
            );
        }
    }
}
