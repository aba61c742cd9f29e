//! A lake under write: landing batches in the ledger, and bringing the tables up to it.
//!
//! The protocol, step by step, is DESIGN §4's: versions of the ledger are a total order, and who puts v+1 has read
//! all up to v; so no object can land twice. What is put into the ledger has landed, whatever happens to
//! the writer: its files are named there, and anyone brings them into the tables.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;

use super::commit::{self, DataFile, Landing, TableMetadata};
use super::ledger::{self, Known};
use super::log::{Beginning, Log, TableError};
use super::snapshot::Snapshot;
use super::spec::{LEDGER_TABLE, TableSpec, ledger_spec};
use crate::base::Watch;
use crate::base::store::Store;

/// Files older than this are not landed: an upkeep that thinks their writer dead may have removed them.
pub const MAX_FILE_AGE: Duration = Duration::from_secs(3600);
/// How many ledger versions are remembered for a table before it is looked at.
const MAX_PENDING: usize = 64;
/// How often the reading of a log begins anew because entries were cleaned up meanwhile.
const MAX_BEGINNINGS: u32 = 3;

/// What came of landing a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum LandOutcome {
    /// All of it has landed, in all tables.
    Landed,
    /// These objects had landed before: nothing was landed; leave them out and try again.
    Duplicates(HashSet<u128>),
    /// The files are too old to be landed: decode again.
    Stale,
}

/// See the module.
pub struct Lake {
    store: Store,
    known: Known,
    ledger: Mutex<Log>,
    tables: SyncMutex<BTreeMap<String, Arc<Mutex<Table>>>>,
}

/// A data table under write.
struct Table {
    log: Log,
    /// The ledger version that it has been brought up to.
    txn: Option<u64>,
    metadata: Option<TableMetadata>,
    /// Reader and writer version.
    protocol: (i64, i64),
    /// What we write into it.
    spec: Option<TableSpec>,
}

impl Lake {
    /// Opens a lake to write to, creating its ledger if there is none; then brings every table up to the ledger.
    pub async fn open(store: Store) -> Result<Self, TableError> {
        let known = Known::default();
        let log = Self::begin(&store, &known).await?;
        let lake = Self { known, tables: SyncMutex::default(), ledger: Mutex::new(log), store };
        lake.project_all().await?;
        Ok(lake)
    }

    /// Reads the ledger from where its reading can begin.
    async fn begin(store: &Store, known: &Known) -> Result<Log, TableError> {
        for _ in 0..MAX_BEGINNINGS {
            let mut log = Log::new(store, LEDGER_TABLE);
            let mut beginning = log.beginning().await?;
            if beginning == Beginning::Empty {
                log.create(&ledger_spec(), None).await?;
                beginning = Beginning::First;
            }
            let mut below = Vec::new();
            if let Beginning::After(version) = beginning {
                // What landed up to there stands in the ledger's own table. All of it is in the data tables: no checkpoint
                // of the ledger is made before.
                let snapshot = Snapshot::open(store, LEDGER_TABLE).await?;
                let snapshot = snapshot.ok_or_else(|| TableError::request(&log.table, "opening its checkpoint", "it is not there"))?;
                below = read_object_ids(&snapshot).await?;
                log.version = Some(version);
            }
            match ledger::catch_up(&mut log, known, None).await {
                // Entries were cleaned up on the way.
                Err(TableError::Outrun { .. }) => {}
                other => {
                    other?;
                    known.extend(below);
                    return Ok(log);
                }
            }
        }
        Err(TableError::Outrun { table: format!("{}{LEDGER_TABLE}/", store.url) })
    }

    /// Reads the ledger's new entries; begins anew if it was away for so long that some of them are gone. True if one of them
    /// is `batch`.
    async fn catch_up(&self, ledger: &mut Log, batch: Option<&str>) -> Result<bool, TableError> {
        match ledger::catch_up(ledger, &self.known, batch).await {
            Err(TableError::Outrun { .. }) => {
                *ledger = Self::begin(&self.store, &self.known).await?;
                Ok(false)
            }
            other => other,
        }
    }

    /// The store that holds it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the object had landed when the ledger was last read.
    pub fn contains(&self, object: u128) -> bool {
        self.known.contains(object)
    }

    /// How many objects had landed when the ledger was last read.
    pub fn objects(&self) -> usize {
        self.known.len()
    }

    /// Makes sure that the table is there and that files made for `spec` fit it. Before the first landing that
    /// names the table.
    pub async fn ensure_table(&self, spec: &TableSpec) -> Result<(), TableError> {
        if self.tables.lock().contains_key(&spec.name) {
            return Ok(());
        }
        let mut table = match Table::open(&self.store, &spec.name).await? {
            Some(table) => table,
            None => {
                // Its txn is the ledger's version of a moment in which no entry named it.
                let mut ledger = self.ledger.lock().await;
                self.catch_up(&mut ledger, None).await?;
                let txn = ledger.version.unwrap_or(0);
                drop(ledger);
                Log::new(&self.store, &spec.name).create(spec, Some(txn)).await?;
                let created = Table::open(&self.store, &spec.name).await?;
                created.ok_or_else(|| TableError::request(&spec.name, "reading the table just created", "it is not there"))?
            }
        };
        table.spec = Some(spec.clone());
        table.check()?;
        self.tables.lock().entry(spec.name.clone()).or_insert_with(|| Arc::new(Mutex::new(table)));
        Ok(())
    }

    /// W2 to W5. Lands a batch whose files are uploaded: `ledger_file` holds its objects' rows for the ledger, `made` was
    /// started before the first file was written. On success every table that it touches has its rows.
    pub async fn land(&self, landing: &Landing, ledger_file: &DataFile, made: Watch) -> Result<LandOutcome, TableError> {
        let bytes =
            |log: &Log| commit::landing(landing, ledger_file).map_err(|message| TableError::Layout { table: log.table.clone(), message });
        let mut ledger = self.ledger.lock().await;
        let mut unknown = 0;
        loop {
            if self.catch_up(&mut ledger, Some(&landing.batch)).await? {
                break;
            }
            let there: HashSet<u128> = landing.objects.iter().copied().filter(|o| self.known.contains(*o)).collect();
            if !there.is_empty() {
                return Ok(LandOutcome::Duplicates(there));
            }
            if made.elapsed() > MAX_FILE_AGE {
                return Ok(LandOutcome::Stale);
            }
            let bytes = bytes(&ledger)?;
            if ledger.try_put(bytes, &mut unknown).await? {
                self.known.apply(ledger.version.unwrap_or_default(), landing.clone());
                break;
            }
        }
        drop(ledger);
        for table in landing.adds.keys() {
            self.project(table).await?;
        }
        // Tables that only others land in are looked at now and then: what is remembered of them stays small.
        for table in self.known.lagging(MAX_PENDING) {
            self.project(&table).await?;
        }
        Ok(LandOutcome::Landed)
    }

    /// P1 to P3. Brings every table up to the ledger as it was last read: what a writer that died has left is finished here.
    pub async fn project_all(&self) -> Result<(), TableError> {
        for table in self.known.lagging(1) {
            self.project(&table).await?;
        }
        Ok(())
    }

    /// K1. Reads the ledger to its end, and brings every table up to it. The version of the ledger up to which nothing is left to
    /// be brought into a table, for ever: what a checkpoint of the ledger may stand for.
    pub async fn settle(&self) -> Result<u64, TableError> {
        let mut ledger = self.ledger.lock().await;
        self.catch_up(&mut ledger, None).await?;
        let version = ledger.version.unwrap_or(0);
        drop(ledger);
        self.project_all().await?;
        Ok(version)
    }

    /// What the ledger gives to tables and they have not got yet, by table: [`Lake::settle`] would bring it there. Nothing is
    /// written; without a ledger nothing is missing.
    pub async fn missing(store: &Store) -> Result<BTreeMap<String, Vec<DataFile>>, TableError> {
        let mut missing = BTreeMap::new();
        if Log::new(store, LEDGER_TABLE).beginning().await? == Beginning::Empty {
            return Ok(missing);
        }
        let known = Known::default();
        Self::begin(store, &known).await?;
        for name in known.lagging(1) {
            let has = Table::reopen(store, &name).await?.txn.unwrap_or(0);
            missing.extend(known.missing(&name, has).map(|(_, files)| (name, files)));
        }
        Ok(missing)
    }

    async fn project(&self, name: &str) -> Result<(), TableError> {
        let known = self.tables.lock().get(name).cloned();
        let table = match known {
            Some(table) => table,
            // Not kept: whether it fits its schema is checked when something is to be landed in it.
            None => Arc::new(Mutex::new(Table::reopen(&self.store, name).await?)),
        };
        let mut table = table.lock().await;
        let mut unknown = 0;
        loop {
            match table.catch_up().await {
                Err(TableError::Outrun { .. }) => {
                    let spec = table.spec.take();
                    *table = Table { spec, ..Table::reopen(&self.store, name).await? };
                    table.check()?;
                }
                other => other?,
            }
            let Some((to, files)) = self.known.missing(name, table.txn.unwrap_or(0)) else { return Ok(()) };
            let bytes = commit::projection(&files, to).map_err(|message| TableError::Layout { table: table.log.table.clone(), message })?;
            if table.log.try_put(bytes, &mut unknown).await? {
                table.txn = Some(to);
            }
        }
    }
}

impl Table {
    /// Opens a table at its newest version; none if it is not there.
    async fn open(store: &Store, name: &str) -> Result<Option<Self>, TableError> {
        for _ in 0..MAX_BEGINNINGS {
            let mut log = Log::new(store, name);
            let mut table = match log.beginning().await? {
                Beginning::Empty => return Ok(None),
                Beginning::First => Self { log, txn: None, metadata: None, protocol: (0, 0), spec: None },
                Beginning::After(_) => Self::open_checkpointed(store, name, log).await?,
            };
            match table.catch_up().await {
                // Entries were cleaned up on the way.
                Err(TableError::Outrun { .. }) => continue,
                other => other?,
            }
            if table.txn.is_none() {
                let message = "no commit of it tells its ledger version: it was not made by flarelake; move it away".to_owned();
                return Err(TableError::Layout { table: table.log.table, message });
            }
            return Ok(Some(table));
        }
        Err(TableError::Outrun { table: format!("{}{name}/", store.url) })
    }

    /// A table that the ledger gives files.
    async fn reopen(store: &Store, name: &str) -> Result<Self, TableError> {
        Self::open(store, name).await?.ok_or_else(|| TableError::Layout {
            table: format!("{}{name}/", store.url),
            message: "the ledger gives it files, but it is not there; restore it from a copy".into(),
        })
    }

    /// What the log's beginning said stands in a checkpoint.
    async fn open_checkpointed(store: &Store, name: &str, mut log: Log) -> Result<Self, TableError> {
        let failed = |e: deltalake::DeltaTableError| TableError::request(name, "reading the table's checkpoint", e);
        let table = Snapshot::open(store, name).await?;
        let table = table.ok_or_else(|| TableError::request(name, "opening its checkpoint", "it is not there"))?;
        let table = table.0;
        let snapshot = table.snapshot().map_err(failed)?;
        let txn = snapshot.transaction_version(table.log_store().as_ref(), commit::APP).await.map_err(failed)?;
        let metadata = serde_json::to_value(snapshot.metadata()).and_then(serde_json::from_value);
        let metadata =
            metadata.map_err(|e| TableError::Layout { table: log.table.clone(), message: format!("its metaData can't be read: {e}") })?;
        let protocol = snapshot.protocol();
        let protocol = (i64::from(protocol.min_reader_version()), i64::from(protocol.min_writer_version()));
        log.version = table.version();
        Ok(Self { log, txn: txn.map(|v| v as u64), metadata: Some(metadata), protocol, spec: None })
    }

    /// Whether what we write still fits the table.
    fn check(&self) -> Result<(), TableError> {
        let (reader, writer) = self.protocol;
        if reader > 1 || writer > 2 {
            let message = format!("its protocol is ({reader},{writer}), which another engine set; flarelake writes protocol (1,2) only");
            return Err(TableError::Layout { table: self.log.table.clone(), message });
        }
        match (&self.spec, &self.metadata) {
            (Some(spec), Some(metadata)) => self.log.check(spec, metadata),
            _ => Ok(()),
        }
    }

    async fn catch_up(&mut self) -> Result<(), TableError> {
        let Self { log, txn, metadata, protocol, .. } = self;
        let mut layout_changed = false;
        log.catch_up(|_, entry| {
            layout_changed |= entry.metadata.is_some() || entry.protocol.is_some();
            *txn = entry.txn.or(*txn);
            *protocol = entry.protocol.unwrap_or(*protocol);
            if entry.metadata.is_some() {
                *metadata = entry.metadata;
            }
        })
        .await?;
        if layout_changed { self.check() } else { Ok(()) }
    }
}

/// The ids of every object in a snapshot of the ledger.
async fn read_object_ids(ledger: &Snapshot) -> Result<Vec<u128>, TableError> {
    use datafusion::prelude::{SessionContext, col};
    let failed = |e: String| TableError::request("the ledger", "reading object ids", e);
    let context = SessionContext::new();
    let provider = ledger.0.table_provider().await.map_err(|e| failed(e.to_string()))?;
    let frame = context.read_table(provider).and_then(|f| f.select(vec![col("object_id")])).map_err(|e| failed(e.to_string()))?;
    let batches = frame.collect().await.map_err(|e| failed(e.to_string()))?;
    let mut ids = Vec::new();
    for batch in batches {
        let texts = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).map_err(|e| failed(e.to_string()))?;
        for text in arrow::array::AsArray::as_string::<i32>(&texts).iter().flatten() {
            ids.push(u128::from_str_radix(text, 16).map_err(|e| failed(format!("`{text}` is no object id: {e}")))?);
        }
    }
    Ok(ids)
}
