//! What stands in a table's files: sorted, compressed, and with what lets a reader skip.

use std::fs;

use arrow::array::AsArray as _;
use arrow::datatypes::TimestampMicrosecondType;
use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::decode::object::{Object, ObjectId};
use flarelake::decode::reject::{Reason, Reject};
use flarelake::format::write::encode;
use flarelake::land::ledger_rows::{ObjectOutcome, ledger_rows, reject_rows};
use flarelake::table::{failures_spec, ledger_spec};
use futures::TryStreamExt as _;
use object_store::ObjectMeta;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;

use crate::decoding::{WRITTEN, json_rows};
use crate::support::{flarelake, stdout};

#[test]
fn files_are_sorted_compressed_and_indexed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, lake) = (dir.path().join("a.log"), dir.path().join("lake"));
    // Times in no order.
    let line = |n: i64| {
        let time = 1_767_225_600 + (n * 7919) % 86_400;
        format!(
            "{{\"EdgeStartTimestamp\":{time},\"RayID\":\"{n:016x}\",\"ClientIP\":\"192.0.2.{}\",\"ClientRequestHost\":\"h{}.example.com\"}}\n",
            n % 250,
            n % 9
        )
    };
    fs::write(&log, (0..40_000).map(line).collect::<String>()).expect("written");
    stdout(&flarelake(&[
        "--lake",
        lake.to_str().expect("a path"),
        "backfill",
        log.to_str().expect("a path"),
    ]));
    let folder = lake.join("cloudflare_httprequest/p_event_date=2026-01-01");
    let files: Vec<_> =
        fs::read_dir(folder).expect("the day's folder").map(|f| f.expect("a file").path()).collect();
    assert_eq!(files.len(), 1);

    let mut last = i64::MIN;
    let open = || fs::File::open(&files[0]).expect("a file");
    for batch in
        ParquetRecordBatchReaderBuilder::try_new(open()).and_then(|b| b.build()).expect("a Parquet file")
    {
        let batch = batch.expect("rows");
        for time in batch
            .column_by_name("p_event_time")
            .expect("the column")
            .as_primitive::<TimestampMicrosecondType>()
            .values()
        {
            assert!(*time >= last, "rows are sorted by p_event_time");
            last = *time;
        }
    }

    let properties = ReaderProperties::builder().set_read_bloom_filter(true).build();
    let options = ReadOptionsBuilder::new().with_page_index().with_reader_properties(properties).build();
    let reader =
        SerializedFileReader::new_with_options(open(), options).expect("a Parquet file with a page index");
    let metadata = reader.metadata();
    assert!(metadata.column_index().is_some() && metadata.offset_index().is_some());
    let group = metadata.row_group(0);
    let path = |n: usize| group.column(n).column_path().string();
    let sorting = group.sorting_columns().expect("the file says how it is sorted");
    assert_eq!(
        (path(sorting[0].column_idx as usize).as_str(), sorting[0].descending),
        ("p_event_time", false)
    );
    let with_bloom: Vec<String> = (0..group.num_columns())
        .filter(|n| group.column(*n).bloom_filter_offset().is_some())
        .map(path)
        .collect();
    let lists = [
        "p_any_ip_addresses.list.element",
        "p_any_domain_names.list.element",
        "p_any_trace_ids.list.element",
    ];
    assert_eq!(with_bloom, [&["ClientIP", "RayID"][..], &lists].concat());
    let bloom = reader.get_row_group(0).expect("a row group");
    let ray = (0..group.num_columns()).find(|n| path(*n) == "RayID").expect("the column");
    let filter = bloom.get_column_bloom_filter(ray);
    assert!(
        filter.is_some_and(|f| f.check(&"0000000000000001") && !f.check(&"not there")),
        "the filter tells what is there"
    );
    assert!(group.columns().iter().all(|c| matches!(c.compression(), Compression::ZSTD(_))));
    let told = metadata.file_metadata().key_value_metadata().expect("the footer tells more");
    let calendar = told
        .iter()
        .find(|entry| entry.key == "org.apache.spark.version")
        .and_then(|entry| entry.value.as_deref());
    assert_eq!(calendar, Some("3.0.0"), "Spark reads times before 1900 as they are");
    assert!(metadata.file_metadata().created_by().is_some_and(|by| by.starts_with("flarelake ")));
}

/// A listing from a name on tells what a whole one does from there on, whatever lies in the folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_listing_from_a_name_on_is_the_rest_of_a_whole_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let store =
        Store::open(dir.path().to_str().expect("a path"), &Default::default()).await.expect("a folder");
    let (log, folder) = (dir.path().join("_delta_log"), store.root.clone().join("_delta_log"));
    fs::create_dir(&log).expect("a folder");
    let check = async |context: &str| {
        let sorted = |mut found: Vec<ObjectMeta>| {
            found.sort_by(|a, b| a.location.cmp(&b.location));
            found
        };
        let all: Vec<ObjectMeta> = store.objects.list(Some(&folder)).try_collect().await.expect("a listing");
        let mut offsets: Vec<Path> = all.iter().map(|meta| meta.location.clone()).collect();
        offsets.extend(
            [
                "",
                "0",
                "00000000000000000150",
                "00000000000000000150.json.x",
                "A",
                "_",
                "_last_checkpoint/x",
                "a-b.c",
                "~",
            ]
            .map(|name| folder.clone().join(name)),
        );
        offsets.extend([
            folder.clone(),
            store.root.clone().join("A"),
            store.root.clone().join("zzz"),
            store.root.clone().join("_delta_logs"),
        ]);
        for offset in offsets {
            let after: Vec<_> = store
                .objects
                .list_with_offset(Some(&folder), &offset)
                .try_collect()
                .await
                .expect("a listing");
            let expected: Vec<_> = all.iter().filter(|meta| meta.location > offset).cloned().collect();
            assert_eq!(sorted(after), sorted(expected), "{context}: from {offset}");
        }
    };
    check("nothing").await;
    for version in 0..200 {
        fs::write(log.join(format!("{version:020}.json")), vec![b'x'; version]).expect("written");
    }
    fs::write(log.join("_last_checkpoint"), "{}").expect("written");
    fs::write(log.join("put123#0"), "staging").expect("written");
    fs::write(log.join("00000000000000000199.json#7"), "staging").expect("written");
    check("a log").await;
    fs::create_dir(log.join("a-b")).expect("a folder");
    fs::write(log.join("a-b/x.parquet"), "x").expect("written");
    check("a folder").await;
    fs::write(log.join("00000000000000000150.#x.json"), "x").expect("written");
    fs::write(log.join("\u{fc}ber 1%.json"), "x").expect("written");
    check("odd names").await;
    for name in ["0", "A", "_sidecars", "a", "00000000000000000150"] {
        fs::create_dir(log.join(name)).expect("a folder");
        fs::write(log.join(name).join("x.parquet"), "x").expect("written");
    }
    check("folders").await;
    std::os::unix::fs::symlink(log.join("A/x.parquet"), log.join("00000000000000000198.link"))
        .expect("linked");
    std::os::unix::fs::symlink(log.join("nowhere"), log.join("00000000000000000197.link")).expect("linked");
    check("links").await;
}

/// A reject is in the partition of its object's time: a folder that every reader can take for a date.
#[test]
fn rejects_of_absurd_times_stand_in_dates_that_can_be_read() {
    let spec = failures_spec(Partitioning::Day);
    let reject = Reject {
        reason: Reason::InvalidJson,
        message: "x".into(),
        log_type: None,
        offset: Some(0),
        length: Some(1),
        payload: None,
    };
    for (last_modified, date) in [
        (WRITTEN, "2026-06-01"),
        (0, "1970-01-01"),
        (-1, "1970-01-01"),
        (i64::MIN, "1970-01-01"),
        // The year 12345.
        (327_403_382_400_000_000, "2099-12-31"),
        (i64::MAX, "2099-12-31"),
    ] {
        let object = Object {
            id: ObjectId(1),
            bucket: None,
            key: "k".into(),
            etag: "e".into(),
            size: 1,
            last_modified: Some(last_modified),
            source_id: None,
            source_label: None,
        };
        let rows = reject_rows(&spec, &object, std::slice::from_ref(&reject), WRITTEN);
        let files =
            encode(&spec, std::slice::from_ref(&rows)).collect::<Result<Vec<_>, _>>().expect("a file");
        assert_eq!(files[0].file.partition_values["p_event_date"], date);
        let time = json_rows(&rows)[0]["p_event_time"].as_str().expect("a time").to_owned();
        assert!(time.starts_with(date), "{time} in {date}");
        let outcome = ObjectOutcome {
            object,
            replayed: None,
            rows: Default::default(),
            rejects: Default::default(),
            skipped: 0,
            event_times: None,
        };
        let line = &json_rows(&ledger_rows(&ledger_spec(), &[outcome], WRITTEN))[0];
        assert!(line["last_modified"].as_str().expect("a time").starts_with(date), "{line}");
    }
}

#[test]
fn a_flush_ends_where_it_touches_too_many_partitions() {
    let dir = tempfile::tempdir().expect("a folder");
    let (logs, lake) = (dir.path().join("logs"), dir.path().join("lake"));
    fs::create_dir(&logs).expect("a folder");
    // Of 400 hours each: three of them touch more than a thousand.
    for n in 0..4 {
        let line = |hour: i64| format!("{{\"EdgeStartTimestamp\":{}}}\n", 1_653_974_623 + hour * 3600);
        let text: String = (n * 400..(n + 1) * 400).map(line).collect();
        fs::write(logs.join(format!("{n}.log")), text).expect("written");
    }
    let mut backfill = crate::support::command(&[
        "--lake",
        lake.to_str().expect("UTF-8"),
        "backfill",
        "--workers",
        "1",
        logs.to_str().expect("UTF-8"),
    ]);
    stdout(&backfill.env("FLARELAKE_PARTITION", "hour").output().expect("started"));
    let one = |sql: &str| crate::support::query_one(&lake, sql);
    assert_eq!(one("SELECT count(*) FROM cloudflare_httprequest"), 1600);
    assert_eq!(one("SELECT count(DISTINCT landed_at) FROM ingested_objects"), 2, "landings");
}
