//! Upkeep of one table's log: replacing files, fences, checkpoints, and removing old entries.
//!
//! This keeps a compaction from duplicating or losing rows: before its commit every newer version is read,
//! and it is abandoned if one of them removed an input. So two compactions do no harm to each other, and
//! projections, which only add, never conflict.

use std::collections::{HashMap, HashSet};

use deltalake::checkpoints::create_checkpoint;
use deltalake::kernel::Metadata;
use futures::TryStreamExt as _;

use super::commit::{self, Change};
use super::fence::Fence;
use super::file::DataFile;
use super::listing::{LogFile, newest_checkpoint, removable_below};
use super::log::{Log, TableError};
use super::snapshot::Snapshot;
use super::spec::LEDGER_TABLE;
use crate::base::store::Store;
use crate::base::{is_uuid, new_uuid};

/// How often a table is opened anew because a checkpoint was written meanwhile.
const MAX_OPENINGS: u32 = 5;

/// What came of putting files in the place of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    Done,
    /// An input was taken out of the table meanwhile, or the table's layout changed: nothing was done.
    Overtaken,
    /// A vacuum came by, and took the new files for a dead writer's or may do so: nothing was done.
    Stale,
}

/// A table under upkeep: the version that was newest when it was opened, and a cursor that goes on from
/// there.
pub struct Upkeep {
    store: Store,
    name: String,
    snapshot: Snapshot,
    log: Log,
    /// Files that were taken out since it was opened.
    gone: HashSet<String>,
    /// The newest fence since.
    fence: Option<Fence>,
    /// Its metaData as it was opened.
    layout: Metadata,
    /// Whether its layout was changed since.
    laid_out_anew: bool,
}

impl Upkeep {
    /// C1, V1. A table at its newest version; none if it is not there.
    pub async fn open(store: &Store, name: &str) -> Result<Option<Self>, TableError> {
        for _ in 0..MAX_OPENINGS {
            let log = Log::new(store, name);
            let before = log.newest_checkpoint().await?;
            let Some(snapshot) = Snapshot::open(store, name).await? else { return Ok(None) };
            // A checkpoint of meanwhile may have had entries cleaned up while they were being read.
            let files = log.list(before.min(snapshot.0.version())).await?;
            if newest_checkpoint(&files) == before {
                let log = log.at(snapshot.0.version(), &files);
                let (store, name) = (store.clone(), name.to_owned());
                let layout = snapshot.layout()?;
                return Ok(Some(Self {
                    store,
                    name,
                    log,
                    snapshot,
                    gone: HashSet::new(),
                    fence: None,
                    layout,
                    laid_out_anew: false,
                }));
            }
        }
        Err(TableError::request(
            name,
            "opening the table",
            "its log was checkpointed again and again meanwhile",
        ))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table as it was opened.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The version that was opened.
    pub fn version(&self) -> u64 {
        self.snapshot.0.version().unwrap_or_default()
    }

    /// C3 to C6, with C4a. Puts `adds`, which were written since it was opened, in the place of `removes`,
    /// all at once. `now_ms` is the time by the store, in milliseconds since the epoch: readers of older
    /// versions may need `removes` for some time from then on.
    pub async fn replace(
        &mut self,
        change: Change,
        removes: &[DataFile],
        adds: &[DataFile],
        now_ms: i64,
    ) -> Result<Replaced, TableError> {
        if change == Change::Delete
            && self.layout.configuration().get("delta.appendOnly").is_some_and(|only| only == "true")
        {
            let message =
                "delta.appendOnly is set, so no row may be taken out of it; set that property to false first"
                    .to_owned();
            return Err(TableError::Layout { table: self.log.table.clone(), message });
        }
        let run = new_uuid().to_string();
        let (mut unknown, mut fenced) = (0, None);
        loop {
            match self.read_on(&run).await {
                Ok(true) => return Ok(Replaced::Done),
                Ok(false) => {}
                // Whether what is gone by now took an input out is not known any more.
                Err(TableError::Outrun { .. }) => return Ok(Replaced::Overtaken),
                Err(error) => return Err(error),
            }
            if self.laid_out_anew || removes.iter().any(|file| self.gone.contains(&file.path)) {
                return Ok(Replaced::Overtaken);
            }
            if let Some(fence) = self.fence.filter(|_| self.fence != fenced) {
                let files = adds.iter().map(|file| file.location(&self.store, &self.name)).collect();
                if !fence.spares(&self.store, files).await? {
                    return Ok(Replaced::Stale);
                }
                fenced = self.fence;
            }
            let bytes = self.bytes(&run, change, removes, adds, now_ms)?;
            match self.log.try_put(bytes, &mut unknown).await {
                Ok(true) => return Ok(Replaced::Done),
                Ok(false) => {}
                Err(TableError::Outrun { .. }) => return Ok(Replaced::Overtaken),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the newer versions. True if one of them is of `run`.
    async fn read_on(&mut self, run: &str) -> Result<bool, TableError> {
        let Self { log, gone, fence, layout, laid_out_anew, .. } = self;
        let mut is_there = false;
        log.catch_up(|version, commit, written_ms| {
            is_there |= commit.run.as_deref() == Some(run);
            // Compactions have it once more.
            let is_other = commit.metadata.is_some() && commit.layout.as_ref() != Some(layout);
            *laid_out_anew |= is_other || commit.protocol.is_some();
            if commit.fence {
                *fence = Some(Fence { version, written_ms });
            }
            gone.extend(commit.removed);
        })
        .await?;
        Ok(is_there)
    }

    /// V3, V4. Commits an empty version. Who has not read it can't commit before it has, and then looks after
    /// its files. When the store says that it was put, in milliseconds since the epoch.
    pub async fn fence(&mut self, keep_ms: i64) -> Result<i64, TableError> {
        let (change, mut unknown) = (Change::Fence { keep_ms }, 0);
        loop {
            // A fence of which nobody knows whether it was put is put once more.
            self.read_on("").await?;
            let bytes = self.bytes(&new_uuid().to_string(), change, &[], &[], 0)?;
            if self.log.try_put(bytes, &mut unknown).await? {
                return Ok(self.log.written_ms.unwrap_or_default());
            }
        }
    }

    fn bytes(
        &self,
        run: &str,
        change: Change,
        removes: &[DataFile],
        adds: &[DataFile],
        now_ms: i64,
    ) -> Result<bytes::Bytes, TableError> {
        let is_ours = |file: &DataFile| {
            file.path.rsplit('/').next().is_some_and(|name| is_uuid(name.trim_end_matches(".parquet")))
        };
        let spelled = if removes.iter().all(is_ours) { HashMap::new() } else { self.snapshot.names()? };
        let bytes = commit::replacement(run, change, removes, adds, now_ms, &self.layout, &spelled);
        bytes.map_err(|message| TableError::Layout { table: self.log.table.clone(), message })
    }

    /// The paths of files that were taken out of the table, and when, in milliseconds since the epoch, as far
    /// back as checkpoints tell.
    pub async fn tombstones(&self) -> Result<HashMap<String, i64>, TableError> {
        let failed = |e: deltalake::DeltaTableError| self.failed("reading which files were taken out", e);
        let state = self.snapshot.0.snapshot().map_err(failed)?;
        let store = self.snapshot.0.log_store();
        let views: Vec<_> = state.all_tombstones(store.as_ref()).try_collect().await.map_err(failed)?;
        Ok(views
            .iter()
            .map(|view| (view.path().into_owned(), view.deletion_timestamp().unwrap_or_default()))
            .collect())
    }

    /// K2. Writes a checkpoint of the version that was opened. The version.
    pub async fn checkpoint(&self) -> Result<u64, TableError> {
        create_checkpoint(&self.snapshot.0, None)
            .await
            .map_err(|e| self.failed("writing a checkpoint", e))?;
        Ok(self.version())
    }

    /// The newest checkpoint's version.
    pub async fn checkpointed(&self) -> Result<Option<u64>, TableError> {
        self.log.newest_checkpoint().await
    }

    /// What can go from the log, see [`removable_below`]. Of the ledger nothing goes that the checkpoint does
    /// not tell to be settled: who begins there reads the rest.
    pub async fn old_log(&self, before_ms: i64) -> Result<Vec<LogFile>, TableError> {
        let mut files = self.log.list(None).await?;
        let Some(base) = removable_below(&files, before_ms) else { return Ok(Vec::new()) };
        files.retain(|file| file.version < base);
        if self.name == LEDGER_TABLE && !files.is_empty() {
            let mut at_base = self.snapshot.clone();
            at_base.0.load_version(base).await.map_err(|e| self.failed("reading a checkpoint", e))?;
            let settled = at_base.transaction(commit::APP).await?;
            files.retain(|file| Some(file.version) <= settled);
        }
        Ok(files)
    }

    /// K3. Removes what can go from the log. How many files.
    pub async fn clean_log(&self, before_ms: i64) -> Result<usize, TableError> {
        self.log.remove(self.old_log(before_ms).await?).await
    }

    fn failed(&self, doing: &str, error: impl std::fmt::Display) -> TableError {
        TableError::request(&self.log.table, doing, error)
    }
}
