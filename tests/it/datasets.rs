//! Which dataset a record is of, told by its fields: random choices of the fields of every dataset that
//! Cloudflare has.

use std::collections::{BTreeMap, BTreeSet};

use flarelake::decode::decoder::Decoder;
use flarelake::schema::Catalog;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::decoding::{LIMITS, decode, decode_in_steps, runs};

/// Dataset, field, and `time` beside the one that holds the event's time: written down from Cloudflare's
/// lists of fields.
const FIELDS: &str = include_str!("../data/datasets.tsv");

struct Dataset {
    time: &'static str,
    others: BTreeSet<&'static str>,
}

fn datasets() -> BTreeMap<&'static str, Dataset> {
    let mut datasets: BTreeMap<&str, Dataset> = BTreeMap::new();
    for line in FIELDS.lines() {
        let cells: Vec<&str> = line.split('\t').collect();
        let dataset = datasets.entry(cells[0]).or_insert(Dataset { time: "", others: BTreeSet::new() });
        match cells[2] {
            "time" => dataset.time = cells[1],
            _ => drop(dataset.others.insert(cells[1])),
        }
    }
    assert_eq!((datasets.len(), FIELDS.lines().count()), (37, 1033));
    datasets
}

/// The fields that no other dataset with the same time has.
fn own(datasets: &BTreeMap<&str, Dataset>, name: &str) -> BTreeSet<&'static str> {
    let this = &datasets[name];
    let others = datasets.iter().filter(|(other, dataset)| **other != name && dataset.time == this.time);
    let shared: BTreeSet<&str> = others.flat_map(|(_, dataset)| &dataset.others).copied().collect();
    this.others.difference(&shared).copied().collect()
}

fn record(time: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!(",\"{field}\":\"1\"")).collect();
    format!("{{\"{time}\":\"2026-05-01T10:00:00Z\"{fields}}}")
}

#[test]
fn the_match_rules_name_what_no_other_dataset_has() {
    let datasets = datasets();
    let catalog = Catalog::embedded();
    let matches = |name: &str| &catalog.types()[catalog.index_of(name).expect("it is embedded")].matches;
    for (name, dataset) in
        [("Cloudflare.Firewall", "firewall_events"), ("Cloudflare.Spectrum", "spectrum_events")]
    {
        let any: BTreeSet<&str> = matches(name).any.iter().map(String::as_str).collect();
        assert_eq!(any, own(&datasets, dataset), "{name}");
        assert_eq!(matches(name).all, [datasets[dataset].time]);
    }
    let none: BTreeSet<&str> = matches("Cloudflare.HttpRequest").none.iter().map(String::as_str).collect();
    assert_eq!(none, own(&datasets, "websocket_analytics"));
}

#[test]
fn random_choices_of_fields_are_told_apart() {
    let datasets = datasets();
    let seed = runs(0x5eed);
    println!("seed {seed}; FLARE_TEST_RUNS sets another");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
    const CHOICES: usize = 1000;
    for (name, dataset) in &datasets {
        let own = own(&datasets, name);
        let (mut input, mut has_own) = (String::new(), Vec::new());
        for _ in 0..CHOICES {
            let count = random.random_range(4..=12);
            let chosen: Vec<&str> = dataset.others.iter().copied().sample(&mut random, count);
            has_own.push(chosen.iter().any(|field| own.contains(field)));
            input += &record(dataset.time, &chosen);
            input.push('\n');
        }
        let outcome = decode_in_steps(&mut decoder, input.as_bytes(), input.len());
        let rows = |log_type: &str| outcome.rows.iter().filter(|row| row["p_log_type"] == log_type).count();
        let told = (rows("Cloudflare.Firewall"), rows("Cloudflare.HttpRequest"), rows("Cloudflare.Spectrum"));
        let right = match *name {
            "firewall_events" => told.0,
            "http_requests" => told.1,
            "spectrum_events" => told.2,
            "websocket_analytics" => {
                // What both have, and no more, is taken for the one that has a table.
                assert_eq!(told, (0, has_own.iter().filter(|has| !**has).count(), 0), "{name}");
                continue;
            }
            _ => {
                assert_eq!(told, (0, 0, 0), "{name}: rows of another dataset");
                continue;
            }
        };
        assert_eq!(told.0 + told.1 + told.2, right, "{name} {told:?}");
        assert!(right >= CHOICES * 99 / 100, "{name}: only {right} of {CHOICES} were told");
    }
}

/// A record that has no table is a reject that says whose it looks like, and what to do.
#[test]
fn an_unclassified_record_says_what_it_looks_like() {
    let datasets = datasets();
    for (name, dataset) in &datasets {
        if ["firewall_events", "http_requests", "spectrum_events"].contains(name) {
            continue;
        }
        let fields: Vec<&str> = dataset.others.iter().copied().collect();
        let reject = &decode(record(dataset.time, &fields).as_bytes()).rejects[0];
        assert_eq!(reject.reason.code(), "unclassified");
        for said in [&format!("({name})"), "--log-type", "route", "--schemas"] {
            assert!(reject.message.contains(said), "{name}: {}", reject.message);
        }
    }
    let message = |record: &str| decode(record.as_bytes()).rejects[0].message.clone();
    let few = message(r#"{"Datetime":"2026-05-01T10:00:00Z","SourceIP":"192.0.2.1","DestinationPort":1}"#);
    assert!(few.contains("gateway_http, gateway_network"), "{few}");
    let one = message(r#"{"Datetime":"2026-05-01T10:00:00Z"}"#);
    assert!(one.contains("8 datasets"), "{one}");
    let none = message(r#"{"time":"2026-05-01T10:00:00Z","Action":"block"}"#);
    assert!(none.contains("no dataset of Cloudflare's"), "{none}");
}

/// Every dataset at once can be told by rules as the built-in ones are: there is room for as many.
#[test]
fn schemas_for_every_other_dataset_can_be_told_apart() {
    let datasets = datasets();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, dataset) in &datasets {
        if ["firewall_events", "http_requests", "spectrum_events"].contains(name) {
            continue;
        }
        let own: Vec<&str> = own(&datasets, name).into_iter().collect();
        let time = dataset.time;
        let text = format!(
            "schema: Other.{name}\nmatch:\n  all: [{time}]\n  any: [{}]\nfields:\n  - {{ name: {time}, type: timestamp, required: true, isEventTime: true }}\n",
            own.join(", ")
        );
        std::fs::write(dir.path().join(format!("{name}.yml")), text).expect("written");
    }
    let catalog = Catalog::with_dir(dir.path()).expect("room for every dataset");
    let mut decoder = Decoder::new(&catalog, LIMITS);
    for (name, dataset) in &datasets {
        let fields: Vec<&str> = dataset.others.iter().copied().collect();
        let input = record(dataset.time, &fields);
        let outcome = decode_in_steps(&mut decoder, input.as_bytes(), input.len());
        let expected = match *name {
            "firewall_events" => "Cloudflare.Firewall".to_owned(),
            "http_requests" => "Cloudflare.HttpRequest".to_owned(),
            "spectrum_events" => "Cloudflare.Spectrum".to_owned(),
            other => format!("Other.{other}"),
        };
        assert_eq!(outcome.rows.len(), 1, "{name}: {:?}", outcome.rejects);
        assert_eq!(outcome.rows[0]["p_log_type"], expected);
    }
}
