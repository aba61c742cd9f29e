//! What the tests share: decoding in memory, stores that fail, and a lake read back without our own code.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use flarelake::base::store::Store;
use flarelake::ingest::decode::{Counts, Decoder, Need, ObjectContext, RecordLimits};
use flarelake::ingest::object::ObjectId;
use flarelake::ingest::reject::Reject;
use flarelake::ingest::split::Place;
use flarelake::schema::Catalog;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde_json::Value;

/// 2026-06-01T00:00:00Z: when every object of these tests was written.
pub const WRITTEN: i64 = 1_780_272_000_000_000;

pub const LIMITS: RecordLimits = RecordLimits { max_record: 1 << 20, max_depth: 32 };

pub fn context(log_type: Option<usize>) -> ObjectContext {
    ObjectContext {
        id: ObjectId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        last_modified: Some(WRITTEN),
        source_id: None,
        source_label: None,
        parse_time: WRITTEN,
        log_type,
    }
}

/// What an object decodes to: rows as JSON, in order, with the log type; and the rejects.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub rows: Vec<Value>,
    pub rejects: Vec<Reject>,
    pub counts: Counts,
}

/// Decodes `bytes` in windows that each bring `step` more bytes.
pub fn decode_in_steps(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Outcome {
    decoder.begin(context(None), Place::START);
    let (mut from, mut to) = (0, 0);
    let (mut batches, mut rejects) = (Vec::new(), Vec::new());
    loop {
        to = bytes.len().min(to + step);
        loop {
            let progress = decoder.decode(&bytes[from..to], from as u64, to == bytes.len());
            from += progress.used;
            if progress.need == Need::Bytes {
                break;
            }
            let decoded = decoder.take();
            batches.extend(decoded.batches);
            rejects.extend(decoded.rejects);
        }
        if to == bytes.len() {
            break;
        }
    }
    let counts = decoder.counts();
    let decoded = decoder.take();
    batches.extend(decoded.batches);
    rejects.extend(decoded.rejects);
    let rows = batches.iter().flat_map(|(_, batch)| json_rows(batch)).collect();
    Outcome { rows, rejects, counts }
}

pub fn decode(bytes: &[u8]) -> Outcome {
    let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
    decode_in_steps(&mut decoder, bytes, bytes.len().max(1))
}

/// A batch as JSON objects, nulls included, written by arrow's own writer.
pub fn json_rows(batch: &arrow::record_batch::RecordBatch) -> Vec<Value> {
    let mut writer = arrow_json::WriterBuilder::new().with_explicit_nulls(true).build::<_, arrow_json::writer::JsonArray>(Vec::new());
    writer.write(batch).expect("rows can be written as JSON");
    writer.finish().expect("rows can be written as JSON");
    serde_json::from_slice(&writer.into_inner()).expect("arrow writes JSON")
}

/// What goes wrong with a [`FaultStore`]. Operations are numbered from 1; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The operation that fails, once.
    pub fails_at: u64,
    /// The operation whose put lands but is reported as failed.
    pub loses_answer_at: u64,
    /// The operation whose put lands, whose answer is lost, and that a client repeats by itself.
    pub repeats_at: u64,
    /// The operation from which on everything fails.
    pub dies_at: u64,
    /// Every operation takes up to this long, by its number.
    pub slow_ms: u64,
}

/// A store in which things go wrong.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<InMemory>,
    /// Operations until it dies; negative: never.
    left: AtomicI64,
    faults: Faults,
    pub operations: AtomicU64,
    /// The numbers of those that put something.
    pub puts: parking_lot::Mutex<Vec<u64>>,
}

impl FaultStore {
    pub fn new(inner: Arc<InMemory>, dies_after: i64, lose_answer: u64) -> Arc<Self> {
        let faults = Faults { loses_answer_at: lose_answer, ..Faults::default() };
        Arc::new(Self { inner, left: AtomicI64::new(dies_after), faults, operations: AtomicU64::new(0), puts: Default::default() })
    }

    pub fn with(inner: Arc<InMemory>, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            inner,
            left: AtomicI64::new(faults.dies_at as i64 - 1),
            faults,
            operations: AtomicU64::new(0),
            puts: Default::default(),
        })
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0 && self.operations.load(Ordering::SeqCst) > 0
    }

    async fn wait(&self, number: u64) {
        if self.faults.slow_ms > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(number * 7919 % (self.faults.slow_ms + 1))).await;
        }
    }

    /// Counts an operation; its number, or the error of a dead store.
    fn step(&self) -> Result<u64> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        if self.left.load(Ordering::SeqCst) >= 0 && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.left.store(0, Ordering::SeqCst);
            return Err(Error::Generic { store: "FaultStore", source: "the store is gone".into() });
        }
        if number == self.faults.fails_at {
            return Err(Error::Generic { store: "FaultStore", source: "it failed this once".into() });
        }
        Ok(number)
    }
}

impl std::fmt::Display for FaultStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultStore")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let number = self.step()?;
        self.puts.lock().push(number);
        self.wait(number).await;
        let again = (payload.clone(), opts.clone());
        let put = self.inner.put_opts(location, payload, opts).await;
        if number == self.faults.repeats_at {
            return self.inner.put_opts(location, again.0, again.1).await;
        }
        if number == self.faults.loses_answer_at {
            return Err(Error::Generic { store: "FaultStore", source: "the answer was lost".into() });
        }
        // Others get a turn between any two writes.
        tokio::task::yield_now().await;
        put
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.step()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let number = self.step()?;
        self.wait(number).await;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.step() {
            Ok(_) => self.inner.delete_stream(locations),
            Err(e) => futures::stream::once(async { Err(e) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.step() {
            Ok(_) => self.inner.list(prefix),
            Err(e) => futures::stream::once(async { Err(e) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.step()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.step()?;
        self.inner.copy_opts(from, to, options).await
    }
}

pub fn memory_lake(objects: Arc<dyn ObjectStore>) -> Store {
    Store { objects, url: "memory:///lake/".parse().expect("a URL"), root: Path::from("lake") }
}

/// A table read by its log alone: the live files, each with its rows' ids.
pub async fn read_table(store: &dyn ObjectStore, table: &str) -> BTreeMap<String, Vec<String>> {
    let mut files = BTreeMap::new();
    for version in 0.. {
        let path = Path::from(format!("lake/{table}/_delta_log/{version:020}.json"));
        let Ok(entry) = store.get(&path).await else { break };
        let text = entry.bytes().await.expect("an entry can be read");
        for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let action: Value = serde_json::from_slice(line).expect("an entry is JSON");
            if let Some(path) = action["add"]["path"].as_str() {
                let bytes =
                    store.get(&Path::from(format!("lake/{table}/{path}"))).await.unwrap_or_else(|e| panic!("{table} names {path}: {e}"));
                let ids = row_ids(bytes.bytes().await.expect("a file can be read"));
                assert!(files.insert(path.to_owned(), ids).is_none(), "{path} was added to {table} twice");
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                assert!(files.remove(path).is_some(), "{path} was taken out of {table} without being in it");
            }
        }
    }
    files
}

/// What the ledger's own rows say of each object: rows of every table, and rejects.
pub async fn read_ledger(store: &dyn ObjectStore) -> BTreeMap<String, (BTreeMap<String, i64>, i64)> {
    use arrow::array::AsArray as _;
    use arrow::datatypes::Int64Type;
    let mut objects = BTreeMap::new();
    for path in read_table(store, "ingested_objects").await.into_keys() {
        let path = Path::from(format!("lake/ingested_objects/{path}"));
        let bytes = store.get(&path).await.expect("a file").bytes().await.expect("bytes");
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|b| b.build());
        for batch in reader.expect("a Parquet file") {
            let batch = batch.expect("rows");
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let (ids, rows, rejects) = (column("object_id"), column("rows"), column("rejects"));
            for n in 0..batch.num_rows() {
                let entries = rows.as_map().value(n);
                let tables = entries.column(0).as_string::<i32>().iter().map(|t| t.expect("a name").to_owned());
                let counts = entries.column(1).as_primitive::<Int64Type>().values().iter().copied();
                let told = (tables.zip(counts).collect(), rejects.as_primitive::<Int64Type>().value(n));
                let id = ids.as_string::<i32>().value(n).to_owned();
                assert!(objects.insert(id.clone(), told).is_none(), "{id} stands in the ledger twice");
            }
        }
    }
    objects
}

pub fn row_ids(bytes: Bytes) -> Vec<String> {
    use arrow::array::AsArray as _;
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|b| b.build()).expect("a Parquet file");
    let mut ids = Vec::new();
    for batch in reader {
        let batch = batch.expect("rows");
        let column = batch.column_by_name("p_row_id").or(batch.column_by_name("object_id")).expect("an id column");
        ids.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    ids
}

/// Runs the program; panics only if it can't be started.
pub fn flarelake(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program can be started")
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flarelake"));
    command.args(arguments).env_remove("FLARELAKE_LAKE").env_remove("RUST_LOG");
    command
}

pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The one value of a one-row, one-column query.
pub fn query_one(lake: &FilePath, sql: &str) -> Value {
    let lake = lake.to_str().expect("a path in UTF-8");
    let rows: Vec<BTreeMap<String, Value>> =
        serde_json::from_str(&stdout(&flarelake(&["--lake", lake, "query", "--format", "json", sql]))).expect("JSON");
    rows[0].values().next().expect("a column").clone()
}

/// How many seeded runs: more with FLARE_TEST_RUNS.
pub fn runs(by_default: u64) -> u64 {
    std::env::var("FLARE_TEST_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(by_default)
}
