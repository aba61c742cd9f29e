//! What the tests share: decoding in memory, stores that fail, and a lake read back without our own code.

use std::collections::{BTreeMap, HashMap};
use std::path::Path as FilePath;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use flarelake::base::store::Store;
use flarelake::base::{Clock, now_micros};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde_json::Value;

/// What goes wrong with a [`FaultStore`]. Operations are numbered from 1; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The operation that fails, once.
    pub fails_at: u64,
    /// The operation whose put lands but is reported as failed.
    pub loses_answer_at: u64,
    /// The operation whose put is reported as failed, and lands this many operations later if what it creates
    /// is still absent.
    pub late_at: (u64, u64),
    /// The operation whose put lands, whose answer is lost, and that a client repeats by itself.
    pub repeats_at: u64,
    /// The operation from which on everything fails.
    pub dies_at: u64,
    /// Every operation takes up to this long, by its number.
    pub slow_ms: u64,
}

/// What happens in the world before an operation is done: the process that asked for it is paused meanwhile.
pub type Meanwhile = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// A put that is still under way.
type Late = (u64, Path, PutPayload, PutOptions);

/// A store in which things go wrong.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    /// Operations until it dies; negative: never.
    left: AtomicI64,
    faults: Faults,
    meanwhile: Option<(u64, Meanwhile)>,
    late: parking_lot::Mutex<Option<Late>>,
    pub operations: AtomicU64,
    /// The numbers of those that put something.
    pub puts: parking_lot::Mutex<Vec<u64>>,
}

impl std::fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultStore")
    }
}

impl FaultStore {
    pub fn new(inner: Arc<dyn ObjectStore>, dies_after: i64, lose_answer: u64) -> Arc<Self> {
        let dies_at = (dies_after + 1) as u64;
        Self::with(inner, Faults { loses_answer_at: lose_answer, dies_at, ..Faults::default() })
    }

    pub fn with(inner: Arc<dyn ObjectStore>, faults: Faults) -> Arc<Self> {
        Arc::new(Self::of(inner, faults, None))
    }

    /// Something happens before an operation; nothing fails.
    pub fn meanwhile(inner: Arc<dyn ObjectStore>, operation: u64, meanwhile: Meanwhile) -> Arc<Self> {
        Arc::new(Self::of(inner, Faults::default(), Some((operation, meanwhile))))
    }

    fn of(inner: Arc<dyn ObjectStore>, faults: Faults, meanwhile: Option<(u64, Meanwhile)>) -> Self {
        let left = AtomicI64::new(faults.dies_at as i64 - 1);
        Self {
            inner,
            left,
            faults,
            meanwhile,
            late: Default::default(),
            operations: AtomicU64::new(0),
            puts: Default::default(),
        }
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0 && self.operations.load(Ordering::SeqCst) > 0
    }

    /// What has to happen before an operation is done.
    fn before(&self, number: u64) -> BoxFuture<'static, ()> {
        let slow = if self.faults.slow_ms > 0 { number * 7919 % (self.faults.slow_ms + 1) } else { 0 };
        let meanwhile =
            self.meanwhile.as_ref().filter(|(at, _)| *at == number).map(|(_, meanwhile)| meanwhile.clone());
        let late = self.late.lock().take_if(|(at, ..)| *at <= number);
        let inner = self.inner.clone();
        async move {
            if let Some((_, location, payload, options)) = late {
                // Whether it still does anything is nobody's answer.
                drop(inner.put_opts(&location, payload, options).await);
            }
            if slow > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(slow)).await;
            }
            if let Some(meanwhile) = meanwhile {
                // The world goes on, also when the one who is paused is ended in the middle of it.
                tokio::spawn(meanwhile()).await.expect("the world goes on");
            }
        }
        .boxed()
    }

    /// Counts an operation; its number, or the error of a dead store.
    fn step(&self) -> Result<u64> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        if self.left.load(Ordering::SeqCst) >= 0 && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.left.store(0, Ordering::SeqCst);
            return Err(failed("the store is gone"));
        }
        if number == self.faults.fails_at {
            return Err(failed("it failed this once"));
        }
        Ok(number)
    }
}

fn failed(message: &str) -> Error {
    Error::Generic { store: "FaultStore", source: message.into() }
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
        self.before(number).await;
        if number == self.faults.late_at.0 {
            *self.late.lock() = Some((number + self.faults.late_at.1, location.clone(), payload, opts));
            return Err(failed("no answer came"));
        }
        let again = (payload.clone(), opts.clone());
        let put = self.inner.put_opts(location, payload, opts).await;
        if number == self.faults.repeats_at {
            return self.inner.put_opts(location, again.0, again.1).await;
        }
        if number == self.faults.loses_answer_at {
            return Err(failed("the answer was lost"));
        }
        // Others get a turn between any two writes.
        tokio::task::yield_now().await;
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let number = self.step()?;
        self.before(number).await;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let number = self.step()?;
        self.before(number).await;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.step() {
            Ok(number) => {
                let (before, inner) = (self.before(number), self.inner.clone());
                let deleting = async move {
                    before.await;
                    inner.delete_stream(locations)
                };
                futures::stream::once(deleting).flatten().boxed()
            }
            Err(e) => futures::stream::once(async { Err(e) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.step() {
            Ok(number) => {
                let (before, inner, prefix) = (self.before(number), self.inner.clone(), prefix.cloned());
                let listing = async move {
                    before.await;
                    inner.list(prefix.as_ref())
                };
                futures::stream::once(listing).flatten().boxed()
            }
            Err(e) => futures::stream::once(async { Err(e) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let number = self.step()?;
        self.before(number).await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let number = self.step()?;
        self.before(number).await;
        self.inner.copy_opts(from, to, options).await
    }
}

pub fn memory_lake(objects: Arc<dyn ObjectStore>) -> Store {
    Store {
        objects,
        url: "memory:///lake/".parse().expect("a URL"),
        root: Path::from("lake"),
        clock: Clock::system(),
    }
}

/// A store as it is at another time: what is put through it is of that time, and so is the machine's clock.
pub fn at(store: Store, now: i64) -> Store {
    let clock = Clock::movable();
    clock.step(now - now_micros());
    Store { objects: TimedStore::new(store.objects, clock.clone()), clock, ..store }
}

/// A store that has a clock of its own.
#[derive(Debug)]
pub struct TimedStore {
    inner: Arc<dyn ObjectStore>,
    pub clock: Clock,
    written: parking_lot::Mutex<HashMap<Path, i64>>,
}

impl TimedStore {
    pub fn new(inner: Arc<dyn ObjectStore>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { inner, clock, written: Default::default() })
    }

    /// Says that an object was written at another time, in microseconds since the epoch.
    pub fn set_written(&self, location: &Path, at: i64) {
        self.written.lock().insert(location.clone(), at);
    }

    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(written) = self.written.lock().get(&meta.location) {
            meta.last_modified = chrono::DateTime::from_timestamp_micros(*written).expect("a time");
        }
        meta
    }
}

impl std::fmt::Display for TimedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TimedStore")
    }
}

#[async_trait]
impl ObjectStore for TimedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.set_written(location, self.clock.now_micros());
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        self.set_written(location, self.clock.now_micros());
        Ok(upload)
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut found = self.inner.get_opts(location, options).await?;
        found.meta = self.dated(found.meta);
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let written = self.written.lock().clone();
        let dated = move |mut meta: ObjectMeta| {
            if let Some(written) = written.get(&meta.location) {
                meta.last_modified = chrono::DateTime::from_timestamp_micros(*written).expect("a time");
            }
            meta
        };
        self.inner.list(prefix).map(move |meta| meta.map(&dated)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects = listed.objects.into_iter().map(|meta| self.dated(meta)).collect();
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
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
                let bytes = store
                    .get(&Path::from(format!("lake/{table}/{path}")))
                    .await
                    .unwrap_or_else(|e| panic!("{table} names {path}: {e}"));
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
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes)
            .and_then(|b| b.build());
        for batch in reader.expect("a Parquet file") {
            let batch = batch.expect("rows");
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let (ids, rows, rejects) = (column("object_id"), column("rows"), column("rejects"));
            for n in 0..batch.num_rows() {
                let entries = rows.as_map().value(n);
                let tables =
                    entries.column(0).as_string::<i32>().iter().map(|t| t.expect("a name").to_owned());
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
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(|b| b.build())
        .expect("a Parquet file");
    let mut ids = Vec::new();
    for batch in reader {
        let batch = batch.expect("rows");
        let column =
            batch.column_by_name("p_row_id").or(batch.column_by_name("object_id")).expect("an id column");
        // Other engines write text in other forms.
        let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).expect("text");
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
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The one value of a one-row, one-column query.
pub fn query_one(lake: &FilePath, sql: &str) -> Value {
    let lake = lake.to_str().expect("a path in UTF-8");
    let rows: Vec<BTreeMap<String, Value>> =
        serde_json::from_str(&stdout(&flarelake(&["--lake", lake, "query", "--format", "json", sql])))
            .expect("JSON");
    rows[0].values().next().expect("a column").clone()
}

/// The most memory, in MiB, that a command takes, which succeeds.
#[cfg(target_os = "linux")]
pub fn peak_mib(mut command: Command) -> u64 {
    let mut child = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("started");
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kb = 0;
    let ended = loop {
        // The system keeps the peak; it is gone with the process.
        let told = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = told
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        peak_kb = peak_kb.max(peak.unwrap_or(0_u64));
        match child.try_wait().expect("it can be waited for") {
            Some(ended) => break ended,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    assert!(ended.success() && peak_kb > 0);
    peak_kb >> 10
}
