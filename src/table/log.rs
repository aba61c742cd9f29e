//! One table's log: reading it forward from where we are, and putting the next version if it is absent.
//!
//! R1, W2 and so on, here and in its neighbours, are steps of the model in `tests/it/protocol.rs`, which explores every order
//! in which they can happen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel as _;
use deltalake::kernel::transaction::TransactionError;
use deltalake::kernel::{Protocol, StructType, new_metadata};
use deltalake::logstore::{CommitOrBytes, LogStoreRef, StorageConfig, default_logstore};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectMeta, ObjectStore as _};

use super::commit::{self, ReadCommit, TableMetadata};
use super::spec::TableSpec;
use crate::base::store::Store;
use crate::base::{Watch, new_uuid};

/// How many log entries are fetched at once while catching up.
const READ_AHEAD: u64 = 64;
/// Entries are cleaned up when they are a day old. Who saw the log's end less than this ago knows that what is absent
/// beyond it is not yet there; who saw it earlier has to ask whether it is there no more.
const MAX_CURSOR_AGE: Duration = Duration::from_secs(600);
/// For how many days checkpoints keep telling of files that were taken out of a table: vacuum must know of them.
pub const TOMBSTONE_DAYS: u64 = 10;
/// How often a put that may or may not have landed is looked into before giving up.
const MAX_UNKNOWN_PUTS: u32 = 5;

/// Why a table can't be read or written. Each says which table, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A request to the store failed.
    #[error("{table}: {doing} failed: {message}; nothing was lost, run it again")]
    Request {
        /// The table's URL.
        table: String,
        /// What was being done.
        doing: String,
        /// What the store said.
        message: String,
    },
    /// No flarelake ever wrote there.
    #[error("{url}: there is no lake; land something first with `flarelake backfill`, or check --lake")]
    NoLake {
        /// What was given.
        url: String,
    },
    /// The table's log has an entry that we can't read.
    #[error("{table}: log entry {version} can't be used: {message}")]
    Entry {
        /// The table's URL.
        table: String,
        /// The version.
        version: u64,
        /// What is wrong.
        message: String,
    },
    /// The table's layout is not ours.
    #[error("{table}: {message}")]
    Layout {
        /// The table's URL.
        table: String,
        /// How it differs, and what to do.
        message: String,
    },
    /// The log goes on beyond entries that were cleaned up since it was last read: reading has to begin anew.
    #[error("{table}: this process was away so long that its place in the log was cleaned up; nothing was lost, run it again")]
    Outrun {
        /// The table's URL.
        table: String,
    },
}

impl TableError {
    pub(super) fn request(table: &str, doing: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Request { table: table.to_owned(), doing: doing.into(), message: error.to_string() }
    }
}

/// Where a log's reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// There is no log.
    Empty,
    /// With entry 0.
    First,
    /// After this version, up to which only a checkpoint tells.
    After(u64),
}

/// What came of a put.
#[derive(Debug)]
enum Put {
    /// The version is ours.
    Won,
    /// Someone else has it, or perhaps we: read it.
    Lost,
    /// The store failed; it may have landed all the same: read again.
    Unknown(String),
}

/// What a file of a table's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFileKind {
    /// The entry of a version.
    Entry,
    /// All up to a version.
    Checkpoint,
    /// A part of a checkpoint that another engine wrote; whether the others are there is not known.
    Part,
}

/// A file of a table's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The version that it is, or up to which it tells.
    pub version: u64,
    /// What it is.
    pub kind: LogFileKind,
    /// When it was written, in milliseconds since the epoch.
    pub written_ms: i64,
    /// Its path.
    pub location: Path,
}

impl LogFile {
    fn of(meta: ObjectMeta) -> Option<Self> {
        let name = meta.location.filename().unwrap_or_default();
        let (version, rest) = (name.get(..20)?.parse().ok()?, &name[20..]);
        let kind = match rest {
            ".json" => LogFileKind::Entry,
            ".checkpoint.parquet" => LogFileKind::Checkpoint,
            _ if rest.starts_with(".checkpoint.") && rest.ends_with(".parquet") => LogFileKind::Part,
            _ => return None,
        };
        Some(Self { version, kind, written_ms: meta.last_modified.timestamp_millis(), location: meta.location })
    }
}

/// A part counts: who asks wants to know whether something may have been cleaned up.
fn newest_checkpoint(files: &[LogFile]) -> Option<u64> {
    files.iter().filter(|file| file.kind != LogFileKind::Entry).map(|file| file.version).max()
}

/// A cursor over a table's log.
pub struct Log {
    /// The table's URL, for messages.
    pub table: String,
    store: LogStoreRef,
    /// The last version read; none if the table has none yet.
    pub version: Option<u64>,
    /// When the end of the log was last seen.
    read: Watch,
    /// Before the first reading: the newest checkpoint there was when it began.
    cold: Option<Option<u64>>,
}

/// The table's log store in a lake's store.
pub fn log_store(store: &Store, table: &str) -> LogStoreRef {
    let url = store.url.join(&format!("{table}/")).expect("a table's name is a plain word");
    let prefixed = Arc::new(PrefixStore::new(store.objects.clone(), store.root.clone().join(table)));
    default_logstore(prefixed, store.objects.clone(), &url, &StorageConfig::default())
}

impl Log {
    /// A cursor before the log's first entry.
    pub fn new(store: &Store, table: &str) -> Self {
        let log_store = log_store(store, table);
        Self { table: log_store.root_url().to_string(), store: log_store, version: None, read: Watch::start(), cold: None }
    }

    /// The cursor on a version that was read elsewhere; `read` was started before.
    pub fn at(self, version: Option<u64>, read: Watch) -> Self {
        Self { version, read, ..self }
    }

    fn next_version(&self) -> u64 {
        self.version.map_or(0, |v| v + 1)
    }

    async fn entry(&self, version: u64) -> Result<Option<ReadCommit>, TableError> {
        let read = self.store.read_commit_entry(version).await;
        let bytes = read.map_err(|e| TableError::request(&self.table, format!("reading log entry {version}"), e))?;
        let parse = |bytes: Bytes| commit::read(&bytes);
        bytes.map(parse).transpose().map_err(|message| TableError::Entry { table: self.table.clone(), version, message })
    }

    /// R2, R3. Reads every entry beyond the cursor, in order, into `each`. After an error that says [`TableError::Outrun`] nothing was
    /// read, and the reading has to begin anew.
    ///
    /// Who was away for long may read a ghost: an entry that someone as long away put under a number that was cleaned up. So
    /// at the end it is asked whether there is a checkpoint beyond where the reading began: only then can something be gone.
    pub async fn catch_up(&mut self, mut each: impl FnMut(u64, ReadCommit)) -> Result<(), TableError> {
        let began_at = match self.cold {
            Some(checkpoint) => Some(checkpoint),
            None if self.read.elapsed() > MAX_CURSOR_AGE => Some(self.version),
            None => None,
        };
        let (mut found, mut ahead) = (Vec::new(), 1);
        let read = loop {
            let read = Watch::start();
            let from = self.next_version() + found.len() as u64;
            let this = &*self;
            let entries = futures::stream::iter(from..from + ahead).map(|version| this.entry(version)).buffered(ahead as usize);
            let entries: Vec<_> = entries.collect().await;
            let before = found.len();
            for entry in entries {
                match entry? {
                    Some(entry) => found.push(entry),
                    None => break,
                }
            }
            if ((found.len() - before) as u64) < ahead {
                break read;
            }
            ahead = READ_AHEAD;
        };
        if let Some(began_at) = began_at
            && self.newest_checkpoint().await? > began_at
        {
            return Err(TableError::Outrun { table: self.table.clone() });
        }
        for entry in found {
            let version = self.next_version();
            self.version = Some(version);
            each(version, entry);
        }
        (self.read, self.cold) = (read, None);
        Ok(())
    }

    /// The newest checkpoint that there is. The hint at it may be of an older one, and a listing tells those after.
    pub async fn newest_checkpoint(&self) -> Result<Option<u64>, TableError> {
        let hint = self.checkpoint_hint().await?;
        Ok(newest_checkpoint(&self.list(hint).await?))
    }

    /// W4, W5. Puts the version after the cursor, if it is absent. True: it is ours, and the cursor is on it. False: it is someone
    /// else's, or perhaps ours: read it and decide again. `unknown` counts the puts of which nothing is known.
    pub async fn try_put(&mut self, bytes: Bytes, unknown: &mut u32) -> Result<bool, TableError> {
        match self.put(bytes).await {
            Put::Won => {
                let version = self.version.unwrap_or_default();
                if self.read.elapsed() > MAX_CURSOR_AGE && newest_checkpoint(&self.list(Some(version)).await?) >= Some(version) {
                    // The number had been cleaned up before: nobody reads what was put under it.
                    return Err(TableError::Outrun { table: self.table.clone() });
                }
                Ok(true)
            }
            Put::Lost => Ok(false),
            Put::Unknown(message) => {
                *unknown += 1;
                if *unknown == MAX_UNKNOWN_PUTS {
                    return Err(TableError::request(&self.table, "putting a log entry", message));
                }
                tokio::time::sleep(Duration::from_millis(50 << *unknown)).await;
                Ok(false)
            }
        }
    }

    async fn put(&mut self, bytes: Bytes) -> Put {
        let version = self.next_version();
        match self.store.write_commit_entry(version, CommitOrBytes::LogBytes(bytes), new_uuid()).await {
            Ok(()) => {
                self.version = Some(version);
                Put::Won
            }
            Err(TransactionError::VersionAlreadyExists(_)) => Put::Lost,
            Err(e) => Put::Unknown(e.to_string()),
        }
    }

    /// The log's entries and checkpoints, from a version on.
    pub async fn list(&self, from: Option<u64>) -> Result<Vec<LogFile>, TableError> {
        let objects = self.store.object_store(None);
        let path = self.store.log_path();
        let listing = match from {
            // Names of this version are longer than the digits alone, and so come after them.
            Some(version) => objects.list_with_offset(Some(path), &path.clone().join(format!("{version:020}"))),
            None => objects.list(Some(path)),
        };
        let listed = listing.try_filter_map(async |meta| Ok(LogFile::of(meta)));
        listed.try_collect().await.map_err(|e| TableError::request(&self.table, "listing the log", e))
    }

    /// Removes entries and checkpoints; those that are gone already are no error. How many.
    pub async fn remove(&self, files: Vec<LogFile>) -> Result<usize, TableError> {
        let paths = futures::stream::iter(files.into_iter().map(|file| Ok(file.location))).boxed();
        let objects = self.store.object_store(None);
        let mut deleting = objects.delete_stream(paths);
        let mut removed = 0;
        while let Some(deleted) = deleting.next().await {
            match deleted {
                Ok(_) => removed += 1,
                // Another maintainer was faster.
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(TableError::request(&self.table, "removing old log entries", e)),
            }
        }
        Ok(removed)
    }

    /// R1. Where reading can begin: at the newest checkpoint, below which entries may have been cleaned up. A gap anywhere else
    /// would be taken for the log's end, and filled: it is an error.
    pub async fn beginning(&mut self) -> Result<Beginning, TableError> {
        let files = self.list(self.checkpoint_hint().await?).await?;
        let versions: BTreeSet<u64> = files.iter().filter(|file| file.kind == LogFileKind::Entry).map(|file| file.version).collect();
        let checkpoint = newest_checkpoint(&files);
        self.cold = Some(checkpoint);
        let Some(last) = versions.last().copied().max(checkpoint) else {
            return Ok(Beginning::Empty);
        };
        let (beginning, first) = checkpoint.map_or((Beginning::First, 0), |c| (Beginning::After(c), c + 1));
        match (first..=last).rev().find(|version| !versions.contains(version)) {
            None => Ok(beginning),
            Some(missing) => Err(TableError::Layout {
                table: self.table.clone(),
                message: format!(
                    "its log has a gap before version {} and no checkpoint there; restore the missing entries from a copy",
                    missing + 1
                ),
            }),
        }
    }

    /// A checkpoint's version, as `_last_checkpoint` tells it; there may be newer ones.
    async fn checkpoint_hint(&self) -> Result<Option<u64>, TableError> {
        use object_store::ObjectStoreExt as _;
        let path = self.store.log_path().clone().join("_last_checkpoint");
        let failed = |e: object_store::Error| TableError::request(&self.table, "reading _last_checkpoint", e);
        let bytes = match self.store.object_store(None).get(&path).await {
            Ok(found) => found.bytes().await.map_err(failed)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let hint: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(hint["version"].as_u64())
    }

    /// Creates the table unless it is there. `txn`: see [`commit::creation`].
    pub async fn create(&mut self, spec: &TableSpec, txn: Option<u64>) -> Result<(), TableError> {
        let layout = |message: String| TableError::Layout { table: self.table.clone(), message };
        let schema = delta_schema(spec).map_err(layout)?;
        let partitions = spec.partitioning.map_or(&[][..], |p| p.columns());
        let properties = [
            ("delta.appendOnly", "false".to_owned()),
            // Log clean-up is decided by what the ledger and its projections still need.
            ("delta.enableExpiredLogCleanup", "false".to_owned()),
            ("delta.deletedFileRetentionDuration", format!("interval {TOMBSTONE_DAYS} days")),
            ("delta.dataSkippingStatsColumns", spec.stats.join(",")),
        ];
        let metadata = new_metadata(&schema, partitions, properties).map_err(|e| layout(e.to_string()))?;
        let protocol: Protocol =
            serde_json::from_value(serde_json::json!({"minReaderVersion": 1, "minWriterVersion": 2})).map_err(|e| layout(e.to_string()))?;
        let bytes = commit::creation(self.store.root_url(), protocol, metadata, txn).map_err(layout)?;
        match self.put(bytes).await {
            // Whoever made it, its first entry is read like any other.
            Put::Won => self.version = None,
            Put::Lost => {}
            Put::Unknown(message) => {
                if self.entry(0).await?.is_none() {
                    return Err(TableError::request(&self.table, "creating the table", message));
                }
            }
        }
        Ok(())
    }

    /// Checks that files made for `spec` fit the table as it is.
    pub fn check(&self, spec: &TableSpec, metadata: &TableMetadata) -> Result<(), TableError> {
        let layout = |message: String| Err(TableError::Layout { table: self.table.clone(), message });
        let ours: Vec<&str> = spec.partitioning.map_or(&[][..], |p| p.columns()).to_vec();
        if metadata.partition_columns != ours {
            return layout(format!(
                "it is partitioned by {}, and the configuration says by {}; the choice is made when a table is created: set partition accordingly, or use a new lake",
                metadata.partition_columns.join(", "),
                ours.join(", ")
            ));
        }
        let theirs: StructType = match serde_json::from_str(&metadata.schema_string) {
            Ok(schema) => schema,
            Err(e) => return layout(format!("its schema can't be read: {e}")),
        };
        let Ok(wanted) = delta_schema(spec) else { return layout("its schema can't be expressed in Delta".into()) };
        for field in wanted.fields() {
            match theirs.field(field.name()) {
                None => {
                    return layout(format!(
                        "it has no column {}; its log type's schema has changed since it was created: use a new lake, or add the column first",
                        field.name()
                    ));
                }
                Some(there) if there.data_type() != field.data_type() => {
                    return layout(format!(
                        "its column {} is of type {}, and the schema says {}; use the schema that it was created with",
                        field.name(),
                        there.data_type(),
                        field.data_type()
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The Delta schema of a table. Text has one type there, however it is held in memory.
fn delta_schema(spec: &TableSpec) -> Result<StructType, String> {
    let schema = spec.full_schema();
    schema.as_ref().try_into_kernel().map_err(|e: arrow::error::ArrowError| e.to_string())
}
