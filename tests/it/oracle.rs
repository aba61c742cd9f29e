//! Random records against a plain oracle over `serde_json::Value`, and random bytes against the laws that
//! hold for any input. Failing cases are printed with their seed by proptest.

use flarelake::decode::decoder::Decoder;
use flarelake::schema::{Catalog, ColumnType, LogType};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::decoding::{LIMITS, Outcome, decode, decode_in_steps};

/// Any JSON value whose text serde_json writes as it reads it.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-70_000i64..70_000).prop_map(Value::from),
        (-1000i32..1000).prop_map(|n| json!(f64::from(n) + 0.5)),
        (-1000i32..1000).prop_map(|n| json!(f64::from(n))),
        "[ -~\u{e9}\u{1F600}\n\t\u{1}\"\\\\]{0,24}".prop_map(Value::from),
        (-40_000i64..40_000).prop_map(|n| json!(n.to_string())),
        prop_oneof![
            Just(""),
            Just("true"),
            Just("0"),
            Just("F"),
            Just("1.0"),
            Just("1e3"),
            Just("+5"),
            Just("-"),
            Just("0x1"),
            Just("1e400")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c\"é]{0,2}", inner, 0..4)
                .prop_map(|m| Value::from(Map::from_iter(m))),
        ]
    })
}

fn record(log_type: &LogType) -> impl Strategy<Value = Map<String, Value>> + use<> {
    let names: Vec<String> = log_type
        .columns
        .iter()
        .filter(|c| !c.required)
        .map(|c| c.name.clone())
        .chain(["New".into(), "né\"w".into()])
        .collect();
    prop::collection::vec((prop::sample::select(names), value()), 0..12).prop_map(Map::from_iter)
}

/// A whole number written in any way, by exact decimal arithmetic on its text.
fn whole(text: &str) -> Option<i64> {
    if let Ok(plain) = text.strip_prefix('+').unwrap_or(text).parse::<i64>() {
        return (!text.starts_with("+-") && !text.starts_with("++")).then_some(plain);
    }
    let as_float: f64 = text.parse().ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
        && text.bytes().any(|b| b.is_ascii_digit());
    (plain && as_float.fract() == 0.0 && as_float.abs() < 9e15).then_some(as_float as i64)
}

/// What a column holds of a value; none: it can't, and the value is rescued.
fn expected(kind: ColumnType, value: &Value) -> Option<Value> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    if value.is_null() {
        return Some(Value::Null);
    }
    let scalar = (value.is_number() || value.is_string()).then(|| text(value));
    let empty = value == "";
    let integer = |least: i64, most: i64| match &scalar {
        Some(_) if empty => Some(Value::Null),
        Some(text) => whole(text).filter(|n| (least..=most).contains(n)).map(Value::from),
        None => None,
    };
    match kind {
        ColumnType::BigInt => integer(i64::MIN, i64::MAX),
        ColumnType::Int => integer(i32::MIN.into(), i32::MAX.into()),
        ColumnType::SmallInt => integer(i16::MIN.into(), i16::MAX.into()),
        ColumnType::Float if empty => Some(Value::Null),
        ColumnType::Float => scalar
            .filter(|t| {
                t.strip_prefix(['+', '-']).unwrap_or(t).starts_with(|c: char| c.is_ascii_digit())
                    && !t.starts_with("0x")
            })
            .and_then(|t| t.parse::<f32>().ok())
            .filter(|f| f.is_finite())
            .map(|f| json!(f)),
        ColumnType::Boolean if empty => Some(Value::Null),
        ColumnType::Boolean => match text(value).as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(json!(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(json!(false)),
            _ => None,
        },
        ColumnType::String => Some(json!(text(value))),
        ColumnType::StringList => match value {
            Value::Object(_) => None,
            Value::Array(items) => {
                Some(items.iter().map(|i| if i.is_null() { Value::Null } else { json!(text(i)) }).collect())
            }
            one => Some(json!([text(one)])),
        },
        ColumnType::StringMap => value.as_object().map(|members| {
            members
                .iter()
                .map(|(k, v)| (k.clone(), if v.is_null() { Value::Null } else { json!(text(v)) }))
                .collect::<Map<_, _>>()
                .into()
        }),
        // Times have their own cases, written by hand.
        ColumnType::Timestamp => None,
    }
}

fn check_record(log_type: &LogType, fields: &Map<String, Value>) -> Result<(), TestCaseError> {
    let mut whole_record = fields.clone();
    whole_record.insert(log_type.event_column().name.clone(), json!(1_653_974_623));
    whole_record.insert(log_type.matches.any.first().cloned().unwrap_or("RayID".into()), json!("abc"));
    let outcome = decode(serde_json::to_string(&whole_record).expect("JSON").as_bytes());
    prop_assert_eq!(outcome.rejects.len(), 0, "{:?}", outcome.rejects);
    let row = &outcome.rows[0];
    let mut rescued = Map::new();
    for (name, value) in &whole_record {
        let held = match log_type.columns.iter().find(|c| c.name == *name) {
            Some(column) if column.kind == ColumnType::Timestamp => continue,
            Some(column) => expected(column.kind, value),
            None => None,
        };
        match held {
            // As text a float is the shortest that means it, which is another number to whoever reads it as a
            // double.
            Some(held) if held.is_f64() => {
                let float = |value: &Value| value.as_f64().map(|number| number as f32);
                prop_assert_eq!(float(&row[name]), float(&held), "column {} of {}", name, value);
            }
            Some(held) => prop_assert_eq!(&row[name], &held, "column {} of {}", name, value),
            None => {
                rescued.insert(
                    name.clone(),
                    value.as_str().map_or_else(
                        || if value.is_null() { Value::Null } else { json!(value.to_string()) },
                        Value::from,
                    ),
                );
            }
        }
    }
    let times =
        |name: &String| log_type.columns.iter().any(|c| c.name == *name && c.kind == ColumnType::Timestamp);
    let mut ours = row["p_rescued_data"].as_object().cloned().unwrap_or_default();
    ours.retain(|name, _| !times(name));
    prop_assert_eq!(ours, rescued);
    Ok(())
}

fn windows_agree(bytes: &[u8], step: usize) -> Result<Outcome, TestCaseError> {
    let whole = decode(bytes);
    let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
    let stepped = decode_in_steps(&mut decoder, bytes, step);
    prop_assert_eq!(&whole, &stepped);
    let counts = whole.counts;
    prop_assert_eq!(counts.rows + counts.rejects + counts.skipped, counts.records);
    Ok(whole)
}

/// Bytes that look like records often enough to reach every path.
fn jumble() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => Just(b"{\"EdgeStartTimestamp\":1653974623,\"ZoneID\":1}".to_vec()),
        1 => Just(b"{\"Datetime\":1653974623,\"Action\":\"x\",\"Metadata\":{\"a\":[1,{}]}}".to_vec()),
        3 => prop::sample::select(vec!["{", "}", "[", "]", ",", ":", "\"", "\\", "\n", "\n", " ", "\r\n", "1", "-", "e", ".", "true", "nul", "\"a\":1", "\\u", "\u{feff}", "\0"]).prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::decoding::runs(256) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_http_request_is_what_the_oracle_says(fields in record(&Catalog::embedded().types()[1])) {
        check_record(&Catalog::embedded().types()[1], &fields)?;
    }

    #[test]
    fn any_firewall_event_is_what_the_oracle_says(fields in record(&Catalog::embedded().types()[0])) {
        check_record(&Catalog::embedded().types()[0], &fields)?;
    }

    #[test]
    fn any_bytes_are_cut_the_same_however_they_arrive(bytes in jumble(), step in 1usize..50) {
        let outcome = windows_agree(&bytes, step)?;
        // Every byte that is not white space, a bracket or a comma of framing is in a row or in a reject.
        let kept: u64 = outcome.rejects.iter().filter_map(|r| r.length).sum();
        prop_assert!(kept <= bytes.len() as u64);
    }

    #[test]
    fn a_broken_line_never_takes_its_neighbour(at in 0usize..44, byte in any::<u8>(), after in 0usize..3) {
        prop_assume!(byte != b'\n');
        let good = b"{\"EdgeStartTimestamp\":1653974623,\"ZoneID\":7}".to_vec();
        let mut lines = vec![good.clone(); 4];
        lines[after][at] = byte;
        let text = lines.join(&b'\n');
        let outcome = windows_agree(&text, 13)?;
        let whole = outcome.rows.iter().filter(|r| r["ZoneID"] == 7 && r["p_event_time"] == "2022-05-31T05:23:43Z" && r["p_rescued_data"].is_null()).count();
        prop_assert!(whole >= 3, "{} rows are left of three good lines: {}", whole, String::from_utf8_lossy(&text));
        prop_assert!(outcome.counts.records >= 4);
    }

    #[test]
    fn a_line_cut_short_never_takes_its_neighbour(cut in 1usize..44, place in 0usize..4) {
        let good = b"{\"EdgeStartTimestamp\":1653974623,\"ZoneID\":7}".to_vec();
        let mut lines = vec![good.clone(); 4];
        lines[place].truncate(cut);
        let outcome = windows_agree(&lines.join(&b'\n'), 9)?;
        prop_assert_eq!((outcome.counts.rows, outcome.counts.rejects), (3, 1));
        prop_assert_eq!(outcome.rejects[0].payload.as_deref(), Some(&good[..cut]));
    }
}

#[test]
fn a_float_between_two_is_the_nearer_one() {
    let fields = Map::from_iter([("EdgeResponseCompressionRatio".to_owned(), json!(-87_481_964))]);
    check_record(&Catalog::embedded().types()[1], &fields).expect("the oracle agrees");
}
