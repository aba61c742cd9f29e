//! What a landing costs: requests that wait for each other, and files that are on their way at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flarelake::config::Partitioning;
use flarelake::decode::object::{Object, ObjectId};
use flarelake::decode::split::Place;
use flarelake::land::batch::Tables;
use flarelake::schema::Catalog;
use flarelake::source::origin::Input;
use flarelake::table::{DataFile, Lake, LandOutcome, Landing};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};

use crate::ledger::worker;
use crate::support::{memory_lake, read_table};

/// A store that takes so long for any request, whatever else it does.
fn slow(inner: InMemory, each: Duration) -> Arc<ThrottledStore<InMemory>> {
    let waits = ThrottleConfig {
        wait_get_per_call: each,
        wait_put_per_call: each,
        wait_list_per_call: each,
        wait_delete_per_call: each,
        wait_list_with_delimiter_per_call: each,
        ..ThrottleConfig::default()
    };
    Arc::new(ThrottledStore::new(inner, waits))
}

fn file(path: &str) -> DataFile {
    let partition_values = BTreeMap::from([("p_event_date".to_owned(), "2026-01-15".to_owned())]);
    DataFile {
        path: path.to_owned(),
        partition_values,
        size: 1,
        rows: 1,
        modified_ms: 0,
        stats: r#"{"numRecords":1}"#.to_owned(),
        times: None,
    }
}

/// How many requests a landing makes one after the other that gives files to so many tables.
async fn requests(tables: usize) -> u32 {
    let each = Duration::from_millis(150);
    let all = Tables::new(&Catalog::embedded(), Partitioning::Day);
    let specs: Vec<_> = all.log_types.iter().chain([&all.failures]).take(tables).collect();
    let lake = Lake::open(memory_lake(slow(InMemory::new(), each))).await.expect("opens");
    for spec in &specs {
        lake.ensure_table(spec).await.expect("is made");
    }
    let mut least = Duration::MAX;
    for n in 0..3 {
        let adds = specs
            .iter()
            .map(|spec| (spec.name.clone(), vec![file(&format!("p_event_date=2026-01-15/{n}.parquet"))]))
            .collect();
        let landing = Landing { batch: n.to_string(), objects: vec![n], adds };
        let ledger_file = DataFile { partition_values: BTreeMap::new(), ..file(&format!("{n}.parquet")) };
        let (begun, began) = (lake.begun(), Instant::now());
        assert!(matches!(lake.land(&landing, &ledger_file, begun).await, Ok(LandOutcome::Landed)));
        least = least.min(began.elapsed());
    }
    // A request that is made takes a wait; a machine that is busy takes less than one, three times out of
    // three.
    (least.as_millis() / each.as_millis()) as u32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_landing_waits_for_six_requests_however_many_tables_it_gives_to() {
    // Whether anyone was faster, the put, and the listing that confirms it: of the ledger, and then of all
    // tables at once.
    assert_eq!(requests(1).await, 6);
    assert_eq!(requests(4).await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_many_days_wait_for_the_store_together() {
    let days = 60;
    let line = |day: i64| {
        format!("{{\"EdgeStartTimestamp\":{},\"RayID\":\"{day:016x}\"}}\n", 1_767_225_600 + day * 86_400)
    };
    let bytes: String = (0..days).map(line).collect();
    let each = Duration::from_millis(100);
    let store = slow(InMemory::new(), each);
    let lake = Arc::new(Lake::open(memory_lake(store.clone())).await.expect("opens"));
    let took = tokio::task::spawn_blocking(move || {
        let mut worker = worker(lake, usize::MAX);
        let object = Object {
            id: ObjectId(7),
            bucket: None,
            key: "a".into(),
            etag: String::new(),
            size: bytes.len() as u64,
            last_modified: None,
            source_id: None,
            source_label: None,
        };
        worker.work(object, Input::Memory(bytes.into_bytes().into()), Place::START, None).expect("decodes");
        let began = Instant::now();
        worker.flush().expect("lands");
        began.elapsed()
    });
    let took = took.await.expect("a writer doesn't panic");
    let ids = read_table(store.as_ref(), "cloudflare_httprequest").await;
    assert_eq!(
        (ids.len(), ids.values().flatten().count()),
        (days as usize, days as usize),
        "a file for each day"
    );
    // One after the other they would take days * each for the puts alone.
    assert!(took < each * days as u32 / 2, "{took:?}");
}
