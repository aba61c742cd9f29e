//! A file's lookup index, beside what a walk over all values says.

use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{ListBuilder, RecordBatch, StringViewBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use flarelake::config::Partitioning;
use flarelake::format::value_index::{
    IndexPlace, METADATA_KEY, MOST_BYTES, ValueIndexBuilder, blocks_of, groups_of, is_among,
};
use flarelake::format::write::{FileWriter, ROW_GROUP_ROWS};
use flarelake::schema::{Catalog, Standard, list_element, timestamp_type};
use flarelake::search::Needle;
use flarelake::table::{TableSpec, log_type_spec};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

fn spec() -> TableSpec {
    log_type_spec(&Catalog::embedded().types()[0], Partitioning::Day)
}

/// One row for each value.
fn rows(list: Standard, values: &[String]) -> RecordBatch {
    let mut builder = ListBuilder::new(StringViewBuilder::new()).with_field(list_element());
    for value in values {
        builder.values().append_value(value);
        builder.append(true);
    }
    let schema = Schema::new(vec![Field::new(list.name(), list.kind().arrow(), true)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(builder.finish())]).expect("one column")
}

/// The row groups of a needle by the index of these values, one vector a row group.
fn found(list: Standard, groups: &[Vec<String>], needle: &Needle) -> Vec<usize> {
    let mut builder = ValueIndexBuilder::new(&spec());
    for (n, values) in groups.iter().enumerate() {
        builder.add(&rows(list, values), n);
    }
    let (bytes, places) = builder.finish(1000, usize::MAX);
    let Some(IndexPlace { blocks, directory, end, .. }) = places.first() else { return Vec::new() };
    let part = |from: u64, to: u64| &bytes[(from - 1000) as usize..(to - 1000) as usize];
    let keys = needle.keys().expect("a range");
    let Some(near) = blocks_of(part(*directory, *end), &keys).expect("a directory") else {
        return Vec::new();
    };
    let bits =
        groups_of(part(blocks + near.start, blocks + near.end), |key| needle.is_key(key)).expect("blocks");
    (0..groups.len()).filter(|n| is_among(bits, *n)).collect()
}

fn expected(groups: &[Vec<String>], needle: &Needle) -> Vec<usize> {
    (0..groups.len()).filter(|n| groups[*n].iter().any(|value| needle.is(value))).collect()
}

fn address() -> impl Strategy<Value = String> {
    // Few bits, so that networks are hit; IPv4 and IPv6, and IPv4 in IPv6.
    prop_oneof![
        (0..4_u8, 0..4_u8, any::<u8>()).prop_map(|(b, c, d)| IpAddr::from([192, b, c, d]).to_string()),
        (0..4_u16, 0..4_u16, any::<u16>())
            .prop_map(|(b, c, d)| IpAddr::from([0x2001, b, c, 0, 0, 0, 0, d]).to_string()),
        any::<u8>().prop_map(|d| format!("::ffff:192.0.2.{d}")),
    ]
}

fn host() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["a", "b-a", "example", "my-example", "org", "com"], 1..4)
        .prop_map(|labels| labels.join("."))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn networks_are_found_where_they_are(
        groups in proptest::collection::vec(proptest::collection::vec(address(), 0..400), 1..5),
        (b, c, v4, length) in (0..4_u8, 0..4_u8, any::<bool>(), 0..=32_u8),
    ) {
        let text = if v4 { format!("192.{b}.{c}.0/{length}") } else { format!("2001:{b}:{c}::/{}", u16::from(length) * 4) };
        let needle = Needle::parse(&text).expect("a network");
        prop_assert_eq!(found(Standard::AnyIpAddresses, &groups, &needle), expected(&groups, &needle), "{}", text);
    }

    #[test]
    fn all_below_a_domain_is_found_where_it_is(
        groups in proptest::collection::vec(proptest::collection::vec(host(), 0..60), 1..5), domain in host(),
    ) {
        let needle = Needle::parse(&format!("*.{domain}")).expect("a domain");
        prop_assert_eq!(found(Standard::AnyDomainNames, &groups, &needle), expected(&groups, &needle), "{}", domain);
    }
}

#[test]
fn one_value_of_many_takes_one_block() {
    let mut builder = ValueIndexBuilder::new(&spec());
    let values: Vec<String> =
        (0..100_000_u32).map(|n| IpAddr::from((0x0a00_0000 + n * 7).to_be_bytes()).to_string()).collect();
    builder.add(&rows(Standard::AnyIpAddresses, &values), 3);
    let (bytes, places) = builder.finish(0, usize::MAX);
    let place = &places[0];
    assert!(bytes.len() < 450_000, "{} bytes for 100 000 addresses", bytes.len());
    assert!(place.end - place.directory < 6_000, "a directory of {} bytes", place.end - place.directory);
    let needle = Needle::parse(&format!("{}/32", values[54_321])).expect("a network");
    let directory = &bytes[place.directory as usize..place.end as usize];
    let near = blocks_of(directory, &needle.keys().expect("a range")).expect("a directory").expect("a block");
    assert!(near.end - near.start < 5_000, "{near:?}");
    // One that takes too much of its file is left out, and then lists are read.
    let mut builder = ValueIndexBuilder::new(&spec());
    builder.add(&rows(Standard::AnyIpAddresses, &values), 0);
    assert_eq!(builder.finish(0, bytes.len() - 1), (Vec::new(), Vec::new()));
}

#[test]
fn the_index_of_a_file_follows_its_row_groups_however_its_rows_came() {
    const ROWS: usize = ROW_GROUP_ROWS + 40_000;
    let fields = vec![
        Field::new(Standard::EventTime.name(), timestamp_type(), false),
        Field::new(Standard::AnyIpAddresses.name(), Standard::AnyIpAddresses.kind().arrow(), true),
    ];
    let spec =
        TableSpec { schema: Arc::new(Schema::new(fields)), partitioning: None, stats: Vec::new(), ..spec() };
    // One for each 4096 rows.
    let address = |row: usize| IpAddr::from((0x0a00_0000 + (row as u32 >> 12)).to_be_bytes()).to_string();
    let written = |threads| {
        let mut bytes = Vec::new();
        let mut writer =
            FileWriter::new(&spec, Default::default(), ROWS, &mut bytes, threads).expect("a writer");
        // As a merge cuts them: no multiple of anything.
        for from in (0..ROWS).step_by(7_001) {
            let some: Vec<usize> = (from..ROWS.min(from + 7_001)).collect();
            let times = TimestampMicrosecondArray::from_iter_values(
                some.iter().map(|row| (row * 1000 + row * 7919 % 1000) as i64),
            )
            .with_timezone("UTC");
            let lists =
                rows(Standard::AnyIpAddresses, &some.iter().map(|row| address(*row)).collect::<Vec<_>>());
            let batch =
                RecordBatch::try_new(spec.schema.clone(), vec![Arc::new(times), lists.column(0).clone()])
                    .expect("a batch");
            writer.write(&batch).expect("written");
        }
        writer.finish().expect("a file");
        bytes
    };
    let bytes = written(None);
    // However many threads encode it, it is the same file.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
    assert!(written(Some(Arc::new(threads))) == bytes);
    let bytes = bytes::Bytes::from(bytes);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).expect("Parquet");
    let metadata = reader.metadata();
    let groups: Vec<i64> = metadata.row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [ROW_GROUP_ROWS as i64, 40_000]);
    let told = metadata.file_metadata().key_value_metadata().expect("metadata");
    let told = told
        .iter()
        .find(|entry| entry.key == METADATA_KEY)
        .and_then(|entry| entry.value.as_ref())
        .expect("an index");
    let places: Vec<IndexPlace> = serde_json::from_str(told).expect("places");
    let part = |from: u64, to: u64| &bytes[from as usize..to as usize];
    for (row, group) in
        [(0, 0), (ROW_GROUP_ROWS - 1, 0), (ROW_GROUP_ROWS, 1), (ROW_GROUP_ROWS + 5_000, 1), (ROWS - 1, 1)]
    {
        let needle = Needle::parse(&format!("{}/32", address(row))).expect("a network");
        let near = blocks_of(part(places[0].directory, places[0].end), &needle.keys().expect("a range"))
            .expect("a directory")
            .expect("a block");
        let bits = groups_of(part(places[0].blocks + near.start, places[0].blocks + near.end), |key| {
            needle.is_key(key)
        })
        .expect("blocks");
        assert_eq!((is_among(bits, 0), is_among(bits, 1)), (group == 0, group == 1), "row {row}");
    }
}

#[test]
fn bytes_that_are_no_index_are_an_error() {
    let keys = Needle::parse("10.0.0.0/8").expect("a network").keys().expect("a range");
    for bytes in [&[5_u8, 1][..], &[0x80], &[0xff; 12]] {
        assert!(blocks_of(bytes, &keys).is_err(), "{bytes:?}");
        assert!(groups_of(bytes, |_| true).is_err(), "{bytes:?}");
    }
}

/// Whoever sends requests chooses hosts and addresses: however many and however long they are, they take no
/// more than is theirs.
#[test]
fn an_index_is_given_up_before_it_takes_much_memory() {
    let mut builder = ValueIndexBuilder::new(&spec());
    builder.add(&rows(Standard::AnyIpAddresses, &["192.0.2.1".to_owned()]), 0);
    let few = builder.held_bytes();
    let (mut most, mut is_given_up) = (0, false);
    for part in 0..100 {
        let hosts: Vec<String> =
            (0..1000).map(|n| format!("{}{part:03}{n:04}.example", "a".repeat(237))).collect();
        builder.add(&rows(Standard::AnyDomainNames, &hosts), 0);
        let held = builder.held_bytes();
        most = most.max(held);
        assert!(held <= few + MOST_BYTES, "{held} bytes are held");
        assert!(!is_given_up || held == few, "{held} bytes are held of a list that was given up");
        is_given_up |= part > 0 && held == few;
    }
    assert!(is_given_up && most > MOST_BYTES / 2, "{most}");
    // The other list keeps its own.
    let (_, places) = builder.finish(0, usize::MAX);
    assert_eq!(
        places.iter().map(|place| place.column.as_str()).collect::<Vec<_>>(),
        [Standard::AnyIpAddresses.name()]
    );

    // Far more than a file has as a rule are indexed.
    let mut builder = ValueIndexBuilder::new(&spec());
    for part in 0..300_u32 {
        let values: Vec<String> =
            (0..1000).map(|n| IpAddr::from((part * 7_000 + n).to_be_bytes()).to_string()).collect();
        builder.add(&rows(Standard::AnyIpAddresses, &values), 0);
    }
    assert!((300_000 * 24..MOST_BYTES).contains(&builder.held_bytes()), "{}", builder.held_bytes());
    assert_eq!(builder.finish(0, usize::MAX).1.len(), 1);
}

#[test]
fn what_is_no_address_leaves_its_list_without_an_index() {
    let mut builder = ValueIndexBuilder::new(&spec());
    builder.add(
        &rows(
            Standard::AnyIpAddresses,
            &["192.0.2.1".to_owned(), "one of another program".to_owned(), "192.0.2.2".to_owned()],
        ),
        0,
    );
    assert_eq!((builder.held_bytes(), builder.finish(0, usize::MAX)), (0, (Vec::new(), Vec::new())));
}

/// A referrer may be as long as a request's header: thousands of them, all different, make no process large.
#[cfg(target_os = "linux")]
#[test]
fn compacting_long_referrers_stays_within_the_budget() {
    const REQUESTS: usize = 12_000;
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake, config) =
        (dir.path().join("logs"), dir.path().join("lake"), dir.path().join("small.toml"));
    std::fs::create_dir(&logs).expect("a folder");
    let filling = "a".repeat(7_900);
    for file in 0..4 {
        let line = |n: usize| {
            format!(
                "{{\"EdgeStartTimestamp\":{},\"ClientRequestReferer\":\"http://{filling}{n:07}.example/\"}}\n",
                1_653_974_623 + n / 100
            )
        };
        let text: String = (0..REQUESTS / 4).map(|n| line(file * REQUESTS / 4 + n)).collect();
        std::fs::write(logs.join(format!("{file}.log")), text).expect("written");
    }
    std::fs::write(&config, "memory = \"64MiB\"\n").expect("written");
    let paths =
        [config.to_str().expect("a path"), lake.to_str().expect("a path"), logs.to_str().expect("a path")];
    let landed = crate::support::flarelake(&["--config", paths[0], "--lake", paths[1], "backfill", paths[2]]);
    assert!(landed.status.success(), "{landed:?}");
    let peak = crate::support::peak_mib(crate::support::command(&[
        "--config", paths[0], "--lake", paths[1], "compact",
    ]));
    assert!(peak < 64 + 300, "{peak} MiB at the peak");
    let sql = "SELECT count(*) FROM cloudflare_httprequest WHERE p_any_domain_names IS NULL AND length(ClientRequestReferer) > 7900";
    assert_eq!(crate::support::query_one(&lake, sql), REQUESTS);
}

/// Whoever sends broken logs chooses what rejects hold: thousands that are long and equal take next to
/// nothing where they are stored, and no more than that is counted of them before they are read.
#[cfg(target_os = "linux")]
#[test]
fn compacting_long_rejects_stays_within_the_budget() {
    const REJECTS: usize = 1_200;
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake, config) =
        (dir.path().join("logs"), dir.path().join("lake"), dir.path().join("small.toml"));
    std::fs::create_dir(&logs).expect("a folder");
    std::fs::write(&config, "memory = \"64MiB\"\n").expect("written");
    let paths = [config.to_str().expect("a path"), lake.to_str().expect("a path")];
    let line = format!("{{\"broken {}\n", "x".repeat(100_000));
    for file in 0..2 {
        let log = logs.join(format!("{file}.log"));
        std::fs::write(&log, format!("{file}\n") + &line.repeat(REJECTS)).expect("written");
        let landed = crate::support::flarelake(&[
            "--config",
            paths[0],
            "--lake",
            paths[1],
            "backfill",
            log.to_str().expect("a path"),
        ]);
        assert!(landed.status.success(), "{landed:?}");
    }
    let peak = crate::support::peak_mib(crate::support::command(&[
        "--config", paths[0], "--lake", paths[1], "compact",
    ]));
    assert!(peak < 64 + 300, "{peak} MiB at the peak");
    let sql = "SELECT count(*) FROM classification_failures WHERE length(payload) > 100000";
    assert_eq!(crate::support::query_one(&lake, sql), 2 * REJECTS);
}
