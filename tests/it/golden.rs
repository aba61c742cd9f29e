//! Every rule of decoding, as data: `tests/data/decode/*.yml`.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::decoding::{LIMITS, Outcome, WRITTEN, context, decode, decode_in_steps};
use flarelake::decode::decoder::Decoder;
use flarelake::decode::json::Scanner;
use flarelake::decode::keys::Keys;
use flarelake::decode::object::ObjectContext;
use flarelake::decode::split::{Piece, Place, Splitter};
use flarelake::schema::Catalog;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    input: String,
    #[serde(default)]
    rows: Vec<Map<String, Value>>,
    #[serde(default)]
    rejects: Vec<ExpectedReject>,
    #[serde(default)]
    skipped: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedReject {
    reason: Option<String>,
    log_type: Option<String>,
    offset: Option<u64>,
    length: Option<u64>,
    payload: Option<String>,
}

const TIME: &str = r#""EdgeStartTimestamp":1653974623"#;

fn cases(text: &str, short_times: bool) -> Vec<Case> {
    let mut cases: Vec<Case> = serde_saphyr::from_str(text).expect("the cases are YAML");
    if short_times {
        let long = |text: &str| {
            text.replace("{T", &format!("{{{TIME}"))
                .replace("  T,", &format!("  {TIME},"))
                .replace("{ T", &format!("{{ {TIME}"))
        };
        for case in &mut cases {
            case.input = long(&case.input);
            for reject in &mut case.rejects {
                reject.payload = reject.payload.as_deref().map(long);
            }
        }
    }
    cases
}

/// Columns that a row need not list: they are in every row, or are the record's time.
fn goes_without_saying(column: &str) -> bool {
    matches!(
        column,
        "p_event_time"
            | "p_parse_time"
            | "p_log_type"
            | "p_row_id"
            | "Datetime"
            | "EdgeStartTimestamp"
            | "Timestamp"
    )
}

fn check(case: &Case, outcome: &Outcome) {
    let name = &case.name;
    assert_eq!(
        outcome.rows.len(),
        case.rows.len(),
        "{name}: rows {:#?}\nrejects {:#?}",
        outcome.rows,
        outcome.rejects
    );
    // Rows come by log type, in the catalog's order, which is the order the cases list them in.
    for (row, expected) in outcome.rows.iter().zip(&case.rows) {
        for (column, value) in row.as_object().expect("a row is an object") {
            match expected.get(column) {
                Some(expected) => assert_eq!(value, expected, "{name}: column {column}"),
                None => assert!(
                    value.is_null() || goes_without_saying(column),
                    "{name}: column {column} is {value}, not null"
                ),
            }
        }
        for column in expected.keys() {
            assert!(row.get(column).is_some(), "{name}: there is no column {column}");
        }
    }
    assert_eq!(outcome.rejects.len(), case.rejects.len(), "{name}: {:#?}", outcome.rejects);
    for (reject, expected) in outcome.rejects.iter().zip(&case.rejects) {
        let payload = String::from_utf8_lossy(reject.payload.as_deref().unwrap_or_default()).into_owned();
        let context = format!("{name}: {reject:?} {payload}");
        assert!(expected.reason.as_deref().is_none_or(|r| r == reject.reason.code()), "{context}");
        assert!(expected.payload.as_deref().is_none_or(|p| p == payload), "{context}");
        assert!(expected.log_type.is_none() || expected.log_type == reject.log_type, "{context}");
        assert!(expected.offset.is_none() || expected.offset == reject.offset, "{context}");
        assert!(expected.length.is_none() || expected.length == reject.length, "{context}");
        assert!(!reject.message.is_empty(), "{context}");
    }
    let counts = outcome.counts;
    assert_eq!(
        (counts.rows, counts.rejects, counts.skipped),
        (case.rows.len() as u64, case.rejects.len() as u64, case.skipped),
        "{name}"
    );
    assert_eq!(counts.records, counts.rows + counts.rejects + counts.skipped, "{name}");
}

fn check_all(text: &str, short_times: bool, at_least: usize) {
    let cases = cases(text, short_times);
    assert!(cases.len() >= at_least);
    for case in &cases {
        let outcome = decode(case.input.as_bytes());
        check(case, &outcome);
        // However the bytes arrive, they are the same records.
        let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
        for step in [1, 2, 3, 7, 64] {
            assert_eq!(
                decode_in_steps(&mut decoder, case.input.as_bytes(), step),
                outcome,
                "{} in steps of {step}",
                case.name
            );
        }
    }
}

#[test]
fn every_rule_of_decoding() {
    check_all(include_str!("../data/decode/rules.yml"), false, 50);
}

#[test]
fn every_rule_of_framing() {
    check_all(include_str!("../data/decode/framing.yml"), true, 20);
}

#[test]
fn invalid_utf8_costs_its_own_record_only() {
    let good = format!("{{{TIME},\"ZoneID\":1}}\n");
    let bad =
        [b"{\"EdgeStartTimestamp\":1653974623,\"ClientIP\":\"".as_slice(), b"\xff\xfe", b"\"}\n"].concat();
    let outcome = decode(&[good.as_bytes(), &bad, good.as_bytes(), &bad, good.as_bytes()].concat());
    assert_eq!(outcome.rows.len(), 3);
    assert_eq!(outcome.rejects.len(), 2);
    assert!(outcome.rejects.iter().all(|r| r.reason.code() == "invalid_utf8"));
    assert_eq!(outcome.rejects[0].payload.as_deref(), Some(bad.trim_ascii_end()));
}

#[test]
fn a_record_over_the_limit_costs_itself_only_and_keeps_its_beginning() {
    let good = format!("{{{TIME},\"ZoneID\":1}}\n");
    let long = format!("{{{TIME},\"ClientIP\":\"{}\"}}", "x".repeat(3 << 20));
    // One that is whole, and one that is broken at its very end.
    for long in [long.clone(), long[..long.len() - 2].to_owned()] {
        let input = format!("{good}{long}\n{good}");
        for step in [input.len(), 1 << 19, 100_001] {
            let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
            let outcome = decode_in_steps(&mut decoder, input.as_bytes(), step);
            assert_eq!(outcome.rows.len(), 2, "steps of {step}");
            let [reject] = outcome.rejects.as_slice() else {
                panic!("one reject, not {}", outcome.rejects.len())
            };
            assert_eq!(reject.reason.code(), "record_too_large");
            assert_eq!(
                (reject.offset, reject.length),
                (Some(good.len() as u64), Some(long.len() as u64)),
                "steps of {step}"
            );
            assert_eq!(reject.payload.as_deref(), Some(&long.as_bytes()[..1 << 20]));
        }
    }
}

#[test]
fn an_object_of_ten_thousand_fields_is_a_row() {
    let fields: String = (0..10_000).map(|n| format!(",\"Field{n}\":{n}")).collect();
    let twice = format!("{{{TIME}{fields}{fields}}}");
    let outcome = decode(twice.as_bytes());
    let rescued = outcome.rows[0]["p_rescued_data"].as_object().expect("a map");
    assert_eq!(rescued.len(), 10_000);
    assert_eq!(rescued["Field9999"], "9999");
    // The next record is read as ever, though the table of names is full.
    let next = decode(format!("{twice}\n{{{TIME},\"Brand\":\"new\",\"ZoneID\":1}}").as_bytes());
    assert_eq!(next.rows[1]["p_rescued_data"], serde_json::json!({"Brand": "new"}));
    assert_eq!(next.rows[1]["ZoneID"], 1);
}

/// However a record over the limit stands among others, they are all there.
#[test]
fn a_record_over_the_limit_costs_no_neighbour_in_an_array_either() {
    let good = |n: usize| format!("{{{TIME},\"ZoneID\":{n}}}");
    let long = format!("{{{TIME},\"ClientIP\":\"{}\"}}", "{[x".repeat(700_000));
    for broken in [long.clone(), long.replace(":1653974623", ":tru")] {
        let pretty =
            |record: &str| format!("  {}", record.replacen(',', ",\n    ", 1).replacen('}', "\n  }", 1));
        let inputs = [
            format!("[{},{broken},{},{}]", good(1), good(2), good(3)),
            format!("{}{broken}{}{}", good(1), good(2), good(3)),
            format!(
                "[\n{},\n{},\n{},\n{}\n]\n",
                pretty(&good(1)),
                pretty(&broken),
                pretty(&good(2)),
                pretty(&good(3))
            ),
        ];
        for input in inputs {
            for step in [input.len(), 300_001] {
                let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
                let outcome = decode_in_steps(&mut decoder, input.as_bytes(), step);
                let zones: Vec<_> = outcome.rows.iter().filter_map(|r| r["ZoneID"].as_u64()).collect();
                assert_eq!(zones, [1, 2, 3], "steps of {step}: {:?}", &input[..60]);
                assert_eq!(outcome.rejects.len(), 1);
                assert_eq!(outcome.rejects[0].reason.code(), "record_too_large");
            }
        }
    }
}

/// One line of half a million broken values is read in one go, not once for each of them.
#[test]
fn many_broken_values_on_one_line_take_no_time() {
    let input = "{x},".repeat(500_000);
    let began = std::time::Instant::now();
    let outcome = decode(input.as_bytes());
    assert_eq!((outcome.counts.rejects, outcome.rejects.len()), (500_000, 500_000));
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

/// No name in the DNS has more than 253 bytes: what is longer is no host, and stays in its column.
#[test]
fn a_host_has_at_most_253_bytes() {
    for (length, is_host) in [(1, true), (253, true), (254, false), (8_000, false)] {
        let host = "h".repeat(length);
        for referrer in [format!("https://{host}/x"), format!("https://{host}.:443/x"), host.clone()] {
            let row = decode(format!("{{{TIME},\"ClientRequestReferer\":\"{referrer}\"}}").as_bytes())
                .rows
                .remove(0);
            assert_eq!(row["ClientRequestReferer"], referrer);
            assert_eq!(
                row["p_any_domain_names"],
                if is_host { serde_json::json!([host]) } else { Value::Null },
                "{length}"
            );
        }
    }
}

/// What an object says of its own age is a bound only if it can be true: archives and file systems give it
/// any time.
#[test]
fn a_time_that_no_object_was_written_at_makes_no_record_implausible() {
    const DAY: i64 = 86_400_000_000;
    let year = |micros: i64| format!("{{\"EdgeStartTimestamp\":{}}}", micros);
    // 2010-01-01, 2026-06-01 and the last moment of 2099, as microseconds.
    let (first, usual, last) = (1_262_304_000_000_000, WRITTEN, 4_102_444_799_999_999);
    let input = [first - 1, first, usual, usual + 2 * DAY, last, last + 1].map(year).join("\n");
    let rows = |last_modified: Option<i64>| {
        let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
        decoder.begin(ObjectContext { last_modified, ..context(None) }, Place::START);
        decoder.decode(input.as_bytes(), 0, true);
        let decoded = decoder.take();
        assert!(
            decoded.rejects.iter().all(|reject| reject.reason.code() == "implausible_event_time"),
            "{:?}",
            decoded.rejects
        );
        decoder.counts().rows
    };
    assert_eq!(rows(Some(WRITTEN)), 2);
    // None, 1970, before it, 2009, the year 12345.
    for untold in [
        None,
        Some(0),
        Some(-DAY),
        Some(i64::MIN),
        Some(first - 1),
        Some(327_403_382_400_000_000),
        Some(i64::MAX),
    ] {
        assert_eq!(rows(untold), 4, "{untold:?}");
    }
}

/// What is no JSON is said to be what it is, and its first bytes are kept.
#[test]
fn a_table_is_one_reject_however_large_it_is() {
    let table = "192.0.2.1,1506702504433000200,GET\n".repeat(100_000);
    for step in [table.len(), 1 << 16, 777_777] {
        let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
        let outcome = decode_in_steps(&mut decoder, table.as_bytes(), step);
        let [reject] = outcome.rejects.as_slice() else {
            panic!("one reject, not {}", outcome.rejects.len())
        };
        assert!(reject.message.contains("CSV") && reject.message.contains("ndjson"), "{}", reject.message);
        assert_eq!((reject.offset, reject.length), (Some(0), Some(table.len() as u64 - 1)));
        assert_eq!(reject.payload.as_deref(), Some(&table.as_bytes()[..1 << 20]));
    }
}

/// Lines that open brackets and never close them, so that every one begins inside the one before: each byte
/// is read a few times, not once for every level.
#[test]
fn nested_storms_are_read_in_proportion_to_their_length() {
    let deep = |line: &str| line.repeat(20_000);
    let broken = |line: &str| format!("{}!\n", line.repeat(30)).repeat(600);
    for (name, input) in [
        ("two brackets a line", deep(" {\"a\":[\n")),
        ("three brackets a line", deep(" {\"a\":{\"b\":[\n")),
        ("fields before them", deep(" {\"EdgeStartTimestamp\":1653974623,\"b\":[1,2],\"a\":[\n")),
        ("an error behind thirty", broken(" {\"a\":[\n")),
        (
            "a long list behind thirty",
            format!("{}{}", " {\"a\":[\n".repeat(30), " {\"b\":1},\n".repeat(20_000)),
        ),
        ("closed at the end", format!("{}1{}", " {\"a\":[\n".repeat(15), " ]}\n".repeat(15)).repeat(600)),
    ] {
        let mut scanner = Scanner::new(Keys::new(["EdgeStartTimestamp"]), 64);
        let mut splitter = Splitter::new(1 << 20, Place::START);
        let (mut fields, mut pieces) = (Vec::new(), 0_u64);
        while splitter.next(&mut scanner, input.as_bytes(), 0, true, &mut fields) != Piece::Done {
            pieces += 1;
        }
        assert!(pieces >= 600, "{name}: {pieces} pieces");
        let work = scanner.work() + splitter.work();
        assert!(work < 4 * input.len() as u64, "{name}: {work} bytes read of {}", input.len());
        // However its bytes arrive, the same is made of them.
        let some = &input.as_bytes()[..input.len().min(20_000)];
        let whole = decode(some);
        for step in [100, 4_096] {
            let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
            assert_eq!(decode_in_steps(&mut decoder, some, step), whole, "{name} in steps of {step}");
        }
    }
}
