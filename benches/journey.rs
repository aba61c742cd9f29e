//! The journey stage by stage, over one seeded corpus: `cargo bench`. Throughput is in bytes of raw JSON, so
//! the stages can be compared with each other and with the whole.
//!
//! * `inflate`: gzip to bytes
//! * `decode`: bytes to record batches with every p_ column
//! * `decode/arrow-json`: the same bytes by arrow's own JSON reader, without the p_ columns: the reference
//! * `write`: record batches to sorted Parquet files
//! * `journey`: gzip files to a landed lake, one worker

use std::hint::black_box;
use std::io::{Cursor, Write as _};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::decode::decoder::{Decoder, RecordLimits};
use flarelake::decode::inflate::{Inflater, ObjectLimits};
use flarelake::decode::object::{ContentHash, Object, ObjectContext, ObjectId};
use flarelake::decode::split::Place;
use flarelake::format::write;
use flarelake::generate::{Dataset, Spec, Timestamps};
use flarelake::land::batch::Tables;
use flarelake::land::worker::{Worker, WorkerSettings};
use flarelake::schema::Catalog;
use flarelake::source::origin::Input;
use flarelake::table::{Lake, log_type_spec};
use object_store::memory::InMemory;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: RecordLimits = RecordLimits { max_record: 16 << 20, max_depth: 64 };
const OBJECTS: ObjectLimits = ObjectLimits { max_object: 1 << 33, max_ratio: 500, max_window: 8 << 20 };

/// 24 MB of `http_requests` in one file; the seed is 1.
fn corpus() -> (Vec<u8>, Vec<u8>) {
    let spec = Spec {
        dataset: Dataset::HttpRequest,
        rows: 12_000,
        files: 1,
        seed: 1,
        timestamps: Timestamps::UnixNano,
        start: 1_768_478_400,
        span: 3600,
        odd: 0.0,
    };
    let raw = spec.file(0).bytes;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&raw).expect("memory");
    (raw, encoder.finish().expect("memory"))
}

fn context() -> ObjectContext {
    ObjectContext {
        id: ObjectId(1),
        last_modified: None,
        source_id: None,
        source_label: None,
        parse_time: 0,
        log_type: None,
    }
}

/// The record's own columns as arrow-json reads them.
fn reference_schema(catalog: &Catalog) -> SchemaRef {
    let http = &catalog.types()[1];
    let plain = |t: DataType| match t {
        // Its reader takes no numbers as text here; only what it can read is asked of it.
        DataType::Timestamp(..) => DataType::Utf8,
        DataType::List(_) => DataType::List(Arc::new(Field::new("element", DataType::Utf8, true))),
        DataType::Utf8View => DataType::Utf8,
        other => other,
    };
    Arc::new(Schema::new(
        http.columns.iter().map(|c| Field::new(&c.name, plain(c.kind.arrow()), true)).collect::<Vec<_>>(),
    ))
}

fn stages(criterion: &mut Criterion) {
    let (raw, stored) = corpus();
    let catalog = Catalog::embedded();
    let mut group = criterion.benchmark_group("stage");
    group.throughput(Throughput::Bytes(raw.len() as u64)).sampling_mode(SamplingMode::Flat).sample_size(20);

    let mut inflater = Inflater::new(OBJECTS, 1 << 30);
    group.bench_function("inflate", |b| {
        b.iter(|| black_box(inflater.whole(&stored).expect("intact").map(<[u8]>::len)))
    });

    let mut decoder = Decoder::new(&catalog, RECORDS);
    let mut decode = || {
        decoder.begin(context(), Place::START);
        decoder.decode(&raw, 0, true);
        decoder.take()
    };
    group.bench_function("decode", |b| b.iter(|| black_box(decode().batches.len())));

    let schema = reference_schema(&catalog);
    group.bench_function("decode/arrow-json", |b| {
        b.iter(|| {
            let builder = arrow_json::ReaderBuilder::new(schema.clone())
                .with_coerce_primitive(true)
                .with_batch_size(8192);
            let reader = builder.build(Cursor::new(&raw)).expect("a reader");
            black_box(reader.map(|batch| batch.expect("rows").num_rows()).sum::<usize>())
        });
    });

    let spec = log_type_spec(&catalog.types()[1], Partitioning::Day);
    let batches: Vec<_> = decode().batches.into_iter().map(|(_, batch)| batch).collect();
    group.bench_function("write", |b| {
        b.iter(|| {
            black_box(
                write::encode(&spec, &batches).map(|file| file.expect("written").bytes.len()).sum::<usize>(),
            )
        })
    });
    group.finish();
}

fn journey(criterion: &mut Criterion) {
    let (raw, stored) = corpus();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut group = criterion.benchmark_group("whole");
    group.throughput(Throughput::Bytes(raw.len() as u64)).sampling_mode(SamplingMode::Flat).sample_size(20);
    let catalog = Catalog::embedded();
    let tables = Arc::new(Tables::new(&catalog, Partitioning::Day));
    let hash = ContentHash::of(&stored[..]).expect("memory");
    group.bench_function("journey", |b| {
        b.iter(|| {
            let store = Store {
                objects: Arc::new(InMemory::new()),
                url: "memory:///lake/".parse().expect("a URL"),
                root: "lake".into(),
                clock: Default::default(),
            };
            let lake = Arc::new(runtime.block_on(Lake::open(store)).expect("opens"));
            let settings = WorkerSettings {
                records: RECORDS,
                objects: OBJECTS,
                flush_bytes: 1 << 30,
                flush_rows: u64::MAX,
                max_age: std::time::Duration::MAX,
                whole_bytes: 1 << 30,
            };
            let mut worker = Worker::new(
                &catalog,
                tables.clone(),
                Some(lake),
                settings,
                Arc::default(),
                runtime.handle().clone(),
            );
            let object = Object {
                id: ObjectId::of_stdin(&hash),
                bucket: None,
                key: "-".into(),
                etag: hash.to_string(),
                size: stored.len() as u64,
                last_modified: None,
                source_id: None,
                source_label: None,
            };
            worker.work(object, Input::Memory(stored.clone().into()), Place::START, None).expect("decodes");
            black_box(worker.flush().expect("lands").landed.len())
        });
    });
    group.finish();
}

criterion_group!(benches, stages, journey);
criterion_main!(benches);
