//! One table's log: reading it forward from where we are, and putting the next version if it is absent.
//!
//! R1, W2 and so on, here and in its neighbours, are steps of the model in `tests/it/protocol.rs`, which
//! explores every order in which they can happen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel as _;
use deltalake::kernel::transaction::TransactionError;
use deltalake::kernel::{Protocol, StructField, StructType, new_metadata};
use deltalake::logstore::{CommitOrBytes, LogStoreRef, StorageConfig, default_logstore};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore as _;
use object_store::prefix::PrefixStore;

use super::commit::{self, ReadCommit, TableMetadata, Unreadable};
use super::file::DataFile;
use super::listing::{LogFile, LogFileKind, Standing, base, newest_checkpoint, standing};
use super::spec::TableSpec;
use crate::base::clock;
use crate::base::new_uuid;
use crate::base::store::Store;

/// How many log entries are fetched at once while catching up.
const READ_AHEAD: u64 = 64;
/// For how many days checkpoints keep telling of files that were taken out of a table: vacuum must know of
/// them.
pub const TOMBSTONE_DAYS: u64 = 10;
/// How often the reading of a log begins anew because entries were cleaned up meanwhile.
pub(super) const MAX_BEGINNINGS: u32 = 3;
/// How often a put that may or may not have landed is looked into before giving up.
const MAX_UNKNOWN_PUTS: u32 = 5;

/// Why a table can't be read or written. Each says which table, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A request to the store failed.
    #[error("{table}: {doing} failed: {message}; nothing was lost, run it again")]
    Request { table: String, doing: String, message: String },
    /// No flarelake ever wrote there.
    #[error(
        "{url}: there is no lake; land something first with `flarelake backfill`, or check --lake; if its tables are there, run `flarelake repair`"
    )]
    NoLake { url: String },
    /// The table's log has an entry that we can't read.
    #[error(
        "{table}: log entry {version} can't be used: {message}; restore it from a copy, or stop what writes to the lake and run `flarelake repair`"
    )]
    Entry { table: String, version: u64, message: String },
    /// The table's layout is not ours.
    #[error("{table}: {message}")]
    Layout {
        table: String,
        /// How it differs, and what to do.
        message: String,
    },
    /// No commit of a table tells which version of the ledger it was brought up to.
    #[error(
        "{table}: no commit records its ledger version: a repair was interrupted, another engine's checkpoint dropped it (unset \
         delta.setTransactionRetentionDuration), or flarelake did not create this table; run `flarelake repair`, or move it away"
    )]
    Unmarked { table: String },
    /// The lake's parts don't fit together: something was removed, restored, or copied while it was written.
    #[error("{table}: {what}; nothing was landed: stop what writes to the lake, then run `flarelake repair`")]
    Damaged {
        table: String,
        /// What was found, and where it may come from.
        what: String,
    },
    /// The log goes on beyond entries that were cleaned up since it was last read: reading has to begin anew.
    #[error(
        "{table}: log entries were cleaned up before this process could read them; nothing was lost, run it again"
    )]
    Outrun { table: String },
}

impl TableError {
    /// What is wrong, without where and what to do.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Damaged { what, .. } => what.clone(),
            Self::Entry { version, message, .. } => format!("log entry {version} can't be used: {message}"),
            other => other.to_string(),
        }
    }

    pub(super) fn request(table: &str, doing: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Request { table: table.to_owned(), doing: doing.into(), message: error.to_string() }
    }

    pub(super) fn damaged(table: &str, what: impl Into<String>) -> Self {
        Self::Damaged { table: table.to_owned(), what: what.into() }
    }
}

/// Where a log's reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// There is no log.
    Empty,
    /// With entry 0.
    First,
    /// After this version, up to which only a checkpoint tells, and when that was written, in milliseconds
    /// since the epoch.
    After(u64, i64),
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

/// A cursor over a table's log.
pub struct Log {
    /// The table's URL, for messages.
    pub table: String,
    store: LogStoreRef,
    /// The last version read; none if the table has none yet.
    pub version: Option<u64>,
    /// When that version was written, by the store's time, in milliseconds since the epoch, as it was when it
    /// was read.
    pub written_ms: Option<i64>,
    /// Before the first reading: what there was of the version with which it began.
    cold: Option<Vec<LogFile>>,
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
        Self {
            table: log_store.root_url().to_string(),
            store: log_store,
            version: None,
            written_ms: None,
            cold: None,
        }
    }

    /// The cursor on a version that was read elsewhere, by a listing of the log that was made after it.
    pub fn at(self, version: Option<u64>, files: &[LogFile]) -> Self {
        Self { version, written_ms: written(files, version), ..self }
    }

    fn next_version(&self) -> u64 {
        self.version.map_or(0, |v| v + 1)
    }

    async fn entry(&self, version: u64) -> Result<Option<ReadCommit>, TableError> {
        let read = self.store.read_commit_entry(version).await;
        let bytes =
            read.map_err(|e| TableError::request(&self.table, format!("reading log entry {version}"), e))?;
        let parse = |bytes: Bytes| commit::read(&bytes);
        bytes.map(parse).transpose().map_err(|error| match error {
            Unreadable::Broken(message) => TableError::Entry { table: self.table.clone(), version, message },
            Unreadable::Newer(message) => TableError::Layout {
                table: self.table.clone(),
                message: format!("log entry {version}: {message}"),
            },
        })
    }

    /// R2, R3. Reads every entry beyond the cursor, in order, into `each`, with the time at which the store
    /// says that it was written, in milliseconds since the epoch. After an error nothing was read; after
    /// [`TableError::Outrun`] the reading has to begin anew.
    ///
    /// Who was away for long may read a ghost: an entry that someone as long away put under a number that was
    /// cleaned up. So what was found counts only by a listing that is made after it, see [`standing`]. Where
    /// nothing was found nothing is asked: that there is really nothing is found out by the put that follows.
    pub async fn catch_up(&mut self, mut each: impl FnMut(u64, ReadCommit, i64)) -> Result<(), TableError> {
        let found = self.read_on().await?;
        if found.is_empty() && self.cold.is_none() {
            return Ok(());
        }
        // A reading that begins goes by all that came since it began.
        let from = self.cold.as_ref().map_or(self.version, |base| newest_checkpoint(base).min(self.version));
        let files = self.list(from).await?;
        let standing = match &self.cold {
            Some(before) if *before != base(&files) => Standing::Outrun,
            Some(_) => Standing::Sure,
            None => standing(self.version, self.written_ms, &files),
        };
        self.counts(standing)?;
        let last = self.next_version() + found.len() as u64;
        if (self.next_version()..last).any(|version| written(&files, Some(version)).is_none()) {
            return Err(self.outrun());
        }
        for entry in found {
            self.version = Some(self.next_version());
            self.written_ms = written(&files, self.version);
            each(self.version.unwrap_or_default(), entry, self.written_ms.unwrap_or_default());
        }
        if self.written_ms.is_none() {
            self.written_ms = written(&files, self.version);
        }
        self.cold = None;
        Ok(())
    }

    /// The entries beyond the cursor, up to the first that is absent.
    async fn read_on(&self) -> Result<Vec<ReadCommit>, TableError> {
        let (mut found, mut ahead) = (Vec::new(), 1);
        loop {
            let from = self.next_version() + found.len() as u64;
            let entries = futures::stream::iter(from..from + ahead)
                .map(|version| self.entry(version))
                .buffered(ahead as usize);
            let entries: Vec<_> = entries.collect().await;
            for entry in entries {
                match entry? {
                    Some(entry) => found.push(entry),
                    None => return Ok(found),
                }
            }
            ahead = READ_AHEAD;
        }
    }

    /// Whether all entries beyond a version can be read.
    pub async fn check_beyond(&mut self, version: u64) -> Result<(), TableError> {
        self.version = Some(version);
        self.read_on().await.map(drop)
    }

    fn counts(&self, standing: Standing) -> Result<(), TableError> {
        match standing {
            Standing::Sure => Ok(()),
            Standing::Outrun => Err(self.outrun()),
            Standing::Gone => {
                let version = self.version.unwrap_or_default();
                let what = format!(
                    "log entry {version}, which was there, is gone and no checkpoint stands for it: its log was removed or restored"
                );
                Err(TableError::damaged(&self.table, what))
            }
        }
    }

    fn outrun(&self) -> TableError {
        TableError::Outrun { table: self.table.clone() }
    }

    /// The newest checkpoint that there is. The hint at it may be of an older one, and a listing tells those
    /// after.
    pub async fn newest_checkpoint(&self) -> Result<Option<u64>, TableError> {
        let hint = self.checkpoint_hint().await?;
        Ok(newest_checkpoint(&self.list(hint).await?))
    }

    /// W4, W5. Puts the version after the cursor, if it is absent. True: it is ours for certain, and the
    /// cursor is on it. False: it is someone else's, or perhaps ours: read it and decide again. `unknown`
    /// counts the puts of which nothing is certain.
    ///
    /// After an error, too, the put may have won: the cursor is still before it, so that whoever goes on
    /// reads it.
    pub async fn try_put(&mut self, bytes: Bytes, unknown: &mut u32) -> Result<bool, TableError> {
        let failed = match self.put(bytes).await {
            Put::Lost => return Ok(false),
            Put::Unknown(message) => TableError::request(&self.table, "putting a log entry", message),
            // The number may have been cleaned up before: then nobody reads what was put under it.
            Put::Won => match self.list(self.version).await {
                Ok(files) => {
                    self.counts(standing(self.version, self.written_ms, &files))?;
                    let version = Some(self.next_version());
                    // Who cleans up late may have taken it for what had been there.
                    let Some(written_ms) = written(&files, version) else { return Err(self.outrun()) };
                    (self.version, self.written_ms) = (version, Some(written_ms));
                    return Ok(true);
                }
                Err(error) => error,
            },
        };
        *unknown += 1;
        if *unknown == MAX_UNKNOWN_PUTS {
            return Err(failed);
        }
        clock::sleep(Duration::from_millis(50 << *unknown)).await;
        Ok(false)
    }

    async fn put(&self, bytes: Bytes) -> Put {
        let version = self.next_version();
        match self.store.write_commit_entry(version, CommitOrBytes::LogBytes(bytes), new_uuid()).await {
            Ok(()) => Put::Won,
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
            Some(version) => {
                objects.list_with_offset(Some(path), &path.clone().join(format!("{version:020}")))
            }
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

    /// R1. Where reading can begin: at the newest checkpoint, below which entries may have been cleaned up. A
    /// gap anywhere else would be taken for the log's end, and filled: it is an error.
    pub async fn beginning(&mut self) -> Result<Beginning, TableError> {
        let hint = self.checkpoint_hint().await?;
        let mut files = self.list(hint).await?;
        if hint.is_some() && newest_checkpoint(&files).is_none() {
            // The hint may be wrong; the log is not.
            files = self.list(None).await?;
        }
        let versions: BTreeSet<u64> =
            files.iter().filter(|file| file.kind == LogFileKind::Entry).map(|file| file.version).collect();
        let checkpoint = newest_checkpoint(&files);
        let last = versions.last().copied().max(checkpoint);
        if hint > last {
            let hint = hint.unwrap_or_default();
            let ends =
                last.map_or("holds no version at all".into(), |last| format!("ends at version {last}"));
            let what = format!(
                "its _last_checkpoint tells of version {hint}, and its log {ends}: it was copied while it was written, or restored"
            );
            return Err(TableError::damaged(&self.table, what));
        }
        self.cold = Some(base(&files));
        let Some(last) = last else { return Ok(Beginning::Empty) };
        let after = |version| {
            let written = files
                .iter()
                .filter(|file| file.kind != LogFileKind::Entry && file.version == version)
                .map(|file| file.written_ms);
            Beginning::After(version, written.max().unwrap_or_default())
        };
        let (beginning, first) = checkpoint.map_or((Beginning::First, 0), |c| (after(c), c + 1));
        match (first..=last).rev().find(|version| !versions.contains(version)) {
            None => Ok(beginning),
            Some(missing) => {
                let what = format!(
                    "its log has a gap before version {} and no checkpoint there: entries were removed, or not copied",
                    missing + 1
                );
                Err(TableError::damaged(&self.table, what))
            }
        }
    }

    /// A checkpoint's version, as `_last_checkpoint` tells it; there may be newer ones.
    pub async fn checkpoint_hint(&self) -> Result<Option<u64>, TableError> {
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
    pub async fn create(
        &self,
        spec: &TableSpec,
        txn: Option<u64>,
        files: &[DataFile],
    ) -> Result<(), TableError> {
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
            serde_json::from_value(serde_json::json!({"minReaderVersion": 1, "minWriterVersion": 2}))
                .map_err(|e| layout(e.to_string()))?;
        let bytes =
            commit::creation(self.store.root_url(), protocol, metadata, txn, files).map_err(layout)?;
        match self.put(bytes).await {
            // Whoever made it, its first entry is read like any other.
            Put::Won | Put::Lost => {}
            Put::Unknown(message) => {
                if self.entry(0).await?.is_none() {
                    return Err(TableError::request(&self.table, "creating the table", message));
                }
            }
        }
        Ok(())
    }

    /// Checks that files made for `spec` fit the table as it is, but for the columns that it lacks. Those.
    pub fn check(&self, spec: &TableSpec, metadata: &TableMetadata) -> Result<Vec<StructField>, TableError> {
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
        let Ok(wanted) = delta_schema(spec) else {
            return layout("its schema can't be expressed in Delta".into());
        };
        let mut missing = Vec::new();
        for field in wanted.fields() {
            match theirs.field(field.name()) {
                None => missing.push(field.clone()),
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
        Ok(missing)
    }
}

/// When an entry was written, by the store's time.
fn written(files: &[LogFile], version: Option<u64>) -> Option<i64> {
    files
        .iter()
        .find(|file| file.kind == LogFileKind::Entry && Some(file.version) == version)
        .map(|file| file.written_ms)
}

/// The Delta schema of a table. Text has one type there, however it is held in memory.
fn delta_schema(spec: &TableSpec) -> Result<StructType, String> {
    let schema = spec.full_schema();
    schema.as_ref().try_into_kernel().map_err(|e: arrow::error::ArrowError| e.to_string())
}
