//! Schemas that grow: a column that a log type's schema has got is added to the tables of before, by whoever
//! comes first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::datatypes::{DataType, Field, Schema};
use flarelake::config::Partitioning;
use flarelake::land::batch::Tables;
use flarelake::schema::Catalog;
use flarelake::table::{Lake, TableError, TableSpec, open_tables};
use futures::future::join_all;
use object_store::memory::InMemory;

use crate::damage::lake_of;
use crate::ledger::life;
use crate::support::{FaultStore, Faults, flarelake, memory_lake, stdout};
use crate::upkeep::{check, maintainer, rows};

/// The requests' table, with more columns.
fn with_columns(columns: &[(&str, DataType)]) -> TableSpec {
    let tables = Tables::new(&Catalog::embedded(), Partitioning::Day);
    let spec = tables.named("cloudflare_httprequest");
    let more = columns.iter().map(|(name, of)| Arc::new(Field::new(*name, of.clone(), true)));
    let fields: Vec<_> = spec.schema.fields().iter().cloned().chain(more).collect();
    TableSpec { schema: Arc::new(Schema::new(fields)), ..spec }
}

async fn columns(inner: &Arc<InMemory>) -> Vec<String> {
    let table = open_tables(&memory_lake(inner.clone()), &["cloudflare_httprequest".into()])
        .await
        .expect("opens")
        .remove(0);
    let schema = table.expect("is there").columns().expect("columns");
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_that_race_add_each_column_once() {
    for kept_up in [false, true] {
        let inner = lake_of(0..3).await;
        if kept_up {
            maintainer(memory_lake(inner.clone()), Default::default())
                .await
                .expect("a lake")
                .once()
                .await
                .expect("upkeep");
        }
        let before = columns(&inner).await;
        // One that does not know of any of them goes on meanwhile.
        let older = Lake::open(memory_lake(inner.clone())).await.expect("opens");
        older.ensure_table(&with_columns(&[])).await.expect("fits");
        let writer = async |n: usize| {
            let lake = Lake::open(memory_lake(inner.clone())).await.expect("opens");
            let own = ["Alpha", "Beta"][n % 2];
            lake.ensure_table(&with_columns(&[("Both", DataType::Int64), (own, DataType::Utf8View)])).await
        };
        for done in join_all((0..6).map(writer)).await {
            done.expect("each finds its columns there, or adds them");
        }
        let mut after = columns(&inner).await;
        assert_eq!(after[..before.len()], before, "what was there stays where it was");
        let mut added = after.split_off(before.len());
        added.sort();
        assert_eq!(added, ["Alpha", "Beta", "Both"]);
        older.ensure_table(&with_columns(&[])).await.expect("what it writes still fits");
        life(memory_lake(inner.clone()), vec![3], 3).await.expect("lands");
        check(&inner, &rows(&[0, 1, 2, 3].into()), "beside them").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_is_added_once_whatever_fails() {
    let inner = lake_of(0..3).await;
    let spec = with_columns(&[("New", DataType::Int64)]);
    let counting = FaultStore::with(Arc::new(inner.fork()), Faults::default());
    let lake = Lake::open(memory_lake(counting.clone())).await.expect("opens");
    let opened = counting.operations.load(Ordering::SeqCst);
    lake.ensure_table(&spec).await.expect("is added");
    let all = counting.operations.load(Ordering::SeqCst);
    assert!(all > opened + 1, "it takes a put and a listing");
    for at in opened + 1..=all {
        for faults in [
            Faults { fails_at: at, ..Faults::default() },
            Faults { loses_answer_at: at, ..Faults::default() },
            Faults { late_at: (at, 2), ..Faults::default() },
            Faults { repeats_at: at, ..Faults::default() },
            Faults { dies_at: at, ..Faults::default() },
        ] {
            let copy = Arc::new(inner.fork());
            let lake = Lake::open(memory_lake(FaultStore::with(copy.clone(), faults))).await.expect("opens");
            // It may go on, or say what failed: the next one does what is left.
            drop(lake.ensure_table(&spec).await);
            let lake = Lake::open(memory_lake(copy.clone())).await.expect("opens");
            lake.ensure_table(&spec).await.unwrap_or_else(|e| panic!("{faults:?}: {e}"));
            let added = columns(&copy).await.iter().filter(|name| *name == "New").count();
            assert_eq!(added, 1, "{faults:?}");
            life(memory_lake(copy.clone()), vec![3], 3).await.expect("lands");
            check(&copy, &rows(&[0, 1, 2, 3].into()), &format!("{faults:?}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_an_error() {
    let inner = lake_of(0..1).await;
    let lake = Lake::open(memory_lake(inner.clone())).await.expect("opens");
    lake.ensure_table(&with_columns(&[("New", DataType::Int64)])).await.expect("it is added");
    drop(lake);
    let lake = Lake::open(memory_lake(inner)).await.expect("opens");
    let error = lake.ensure_table(&with_columns(&[("New", DataType::Utf8View)])).await.expect_err("refused");
    assert!(
        matches!(error, TableError::Layout { .. })
            && error.to_string().contains("its column New is of type long"),
        "{error}"
    );
}

#[test]
fn rows_of_before_have_no_value_in_a_column_that_came_later() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (lake, schemas, logs, newer) = (path("lake"), path("schemas"), path("a.json"), path("b.json"));
    std::fs::create_dir(&schemas).expect("made");
    let schema = |fields: &str| {
        let text = format!(
            "schema: Other.Log\nmatch: {{ all: [When, Kind] }}\nfields:\n  - {{ name: When, type: timestamp, required: true, isEventTime: true }}\n  - {{ name: Kind, type: string }}\n{fields}"
        );
        std::fs::write(format!("{schemas}/other.yml"), text).expect("written");
    };
    std::fs::write(&logs, r#"{"When":"2026-01-15T12:00:00Z","Kind":"a","Size":1}"#).expect("written");
    std::fs::write(&newer, r#"{"When":"2026-01-15T12:00:01Z","Kind":"b","Size":2}"#).expect("written");
    let land = |file: &str| {
        stdout(&flarelake(&[
            "--lake",
            &lake,
            "--schemas",
            &schemas,
            "backfill",
            "--log-type",
            "Other.Log",
            file,
        ]))
    };
    schema("");
    land(&logs);
    schema("  - { name: Size, type: bigint }\n");
    land(&newer);
    let ask = |sql: &str| {
        stdout(&flarelake(&["--lake", &lake, "--schemas", &schemas, "query", "--format", "csv", sql]))
    };
    let wanted = "Kind,Size,p_rescued_data\na,,\"{\"\"Size\"\":\"\"1\"\"}\"\nb,2,\n";
    let sql = "SELECT Kind, Size, p_rescued_data FROM other_log ORDER BY Kind";
    assert_eq!(ask(sql), wanted);
    stdout(&flarelake(&["--lake", &lake, "--schemas", &schemas, "compact"]));
    assert_eq!(ask(sql), wanted);
}
