//! Upkeep of one table's log: putting files in the place of others, fences, checkpoints, and removing old entries.
//!
//! What keeps a compaction from doubling or losing rows is here: before its commit every newer version is read, and it is
//! given up if one of them took an input out of the table. So two compactors do no harm to each other, and projections,
//! which only add, never stand in the way.

use std::collections::{HashMap, HashSet};

use deltalake::checkpoints::create_checkpoint;
use futures::TryStreamExt as _;

use super::commit::{self, Change, DataFile};
use super::lake::MAX_FILE_AGE;
use super::log::{Log, LogFile, LogFileKind, TableError};
use super::snapshot::Snapshot;
use crate::base::store::Store;
use crate::base::{Watch, new_uuid, now_micros};

/// How often a table is opened anew because a checkpoint was written meanwhile.
const MAX_OPENINGS: u32 = 5;

/// What came of putting files in the place of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// It is done.
    Done,
    /// An input was taken out of the table meanwhile, or the table's layout changed: nothing was done.
    Overtaken,
    /// The new files are so old that a vacuum may have taken them for a dead writer's: nothing was done.
    Stale,
}

/// What can go from a log: all that is below a checkpoint, if the checkpoint was there before `before_ms` and is no newer than any
/// version of since then. So every version that was the newest at that time or later can still be read, and there is no gap.
pub fn removable(files: &[LogFile], before_ms: i64) -> Vec<LogFile> {
    let is_old = |file: &&LogFile| file.written_ms < before_ms;
    let least_young = files.iter().filter(|file| !is_old(file)).map(|file| file.version).min();
    let bases = files.iter().filter(is_old).filter(|file| file.kind == LogFileKind::Checkpoint);
    let base = bases.map(|file| file.version).filter(|base| least_young.is_none_or(|least| *base <= least)).max();
    files.iter().filter(|file| Some(file.version) < base).cloned().collect()
}

/// A table under upkeep: the version that was newest when it was opened, and a cursor that goes on from there.
pub struct Upkeep {
    name: String,
    snapshot: Snapshot,
    log: Log,
    /// Files that were taken out since it was opened.
    gone: HashSet<String>,
    /// Whether its layout was changed since.
    laid_out_anew: bool,
}

impl Upkeep {
    /// C1, V1. A table at its newest version; none if it is not there.
    pub async fn open(store: &Store, name: &str) -> Result<Option<Self>, TableError> {
        for _ in 0..MAX_OPENINGS {
            let (log, read) = (Log::new(store, name), Watch::start());
            let before = log.newest_checkpoint().await?;
            let Some(snapshot) = Snapshot::open(store, name).await? else { return Ok(None) };
            // A checkpoint of meanwhile may have had entries cleaned up while they were being read.
            if log.newest_checkpoint().await? == before {
                let log = log.at(snapshot.0.version(), read);
                return Ok(Some(Self { name: name.to_owned(), log, snapshot, gone: HashSet::new(), laid_out_anew: false }));
            }
        }
        Err(TableError::request(name, "opening the table", "its log was checkpointed again and again meanwhile"))
    }

    /// The table's name.
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

    /// C3 to C6. Puts `adds` in the place of `removes`, all at once. `made` was started before the first of `adds` was written.
    pub async fn replace(&mut self, change: Change, removes: &[DataFile], adds: &[DataFile], made: Watch) -> Result<Replaced, TableError> {
        let run = new_uuid().to_string();
        let mut unknown = 0;
        loop {
            let mut is_ours = false;
            let read = self.log.catch_up(|_, commit| {
                is_ours |= commit.run.as_ref() == Some(&run);
                self.laid_out_anew |= commit.metadata.is_some() || commit.protocol.is_some();
                self.gone.extend(commit.removed);
            });
            match read.await {
                // Whether what is gone by now took an input out is not known any more.
                Err(TableError::Outrun { .. }) => return Ok(Replaced::Overtaken),
                other => other?,
            }
            if is_ours {
                return Ok(Replaced::Done);
            }
            if self.laid_out_anew || removes.iter().any(|file| self.gone.contains(&file.path)) {
                return Ok(Replaced::Overtaken);
            }
            if made.elapsed() > MAX_FILE_AGE {
                return Ok(Replaced::Stale);
            }
            let bytes = self.bytes(&run, change, removes, adds)?;
            if self.log.try_put(bytes, &mut unknown).await? {
                return Ok(Replaced::Done);
            }
        }
    }

    /// V3, V4. Commits an empty version. Who has not read it can't commit before it has, and then sees whether its files are too old.
    pub async fn fence(&mut self, keep_ms: i64) -> Result<(), TableError> {
        let change = Change::Fence { keep_ms };
        let mut unknown = 0;
        loop {
            // A fence of which nobody knows whether it was put is put once more.
            self.log.catch_up(|_, commit| self.gone.extend(commit.removed)).await?;
            let bytes = self.bytes(&new_uuid().to_string(), change, &[], &[])?;
            if self.log.try_put(bytes, &mut unknown).await? {
                return Ok(());
            }
        }
    }

    fn bytes(&self, run: &str, change: Change, removes: &[DataFile], adds: &[DataFile]) -> Result<bytes::Bytes, TableError> {
        commit::replacement(run, change, removes, adds, now_micros() / 1000)
            .map_err(|message| TableError::Layout { table: self.log.table.clone(), message })
    }

    /// The paths of files that were taken out of the table, and when, in milliseconds since the epoch, as far back as
    /// checkpoints tell.
    pub async fn tombstones(&self) -> Result<HashMap<String, i64>, TableError> {
        let failed = |e: deltalake::DeltaTableError| self.failed("reading which files were taken out", e);
        let state = self.snapshot.0.snapshot().map_err(failed)?;
        let store = self.snapshot.0.log_store();
        let views: Vec<_> = state.all_tombstones(store.as_ref()).try_collect().await.map_err(failed)?;
        Ok(views.iter().map(|view| (view.path().into_owned(), view.deletion_timestamp().unwrap_or_default())).collect())
    }

    /// K2. Writes a checkpoint of the version that was opened, or of `at_most` if that is less. The version.
    pub async fn checkpoint(&self, at_most: u64) -> Result<u64, TableError> {
        let failed = |e: deltalake::DeltaTableError| self.failed("writing a checkpoint", e);
        let version = self.version().min(at_most);
        let mut table = self.snapshot.0.clone();
        if version < self.version() {
            table.load_version(version).await.map_err(failed)?;
        }
        create_checkpoint(&table, None).await.map_err(failed)?;
        Ok(version)
    }

    /// The newest checkpoint's version.
    pub async fn checkpointed(&self) -> Result<Option<u64>, TableError> {
        self.log.newest_checkpoint().await
    }

    /// What can go from the log, see [`removable`].
    pub async fn old_log(&self, before_ms: i64) -> Result<Vec<LogFile>, TableError> {
        Ok(removable(&self.log.list(None).await?, before_ms))
    }

    /// K3. Removes what can go from the log. How many files.
    pub async fn clean_log(&self, before_ms: i64) -> Result<usize, TableError> {
        self.log.remove(self.old_log(before_ms).await?).await
    }

    fn failed(&self, doing: &str, error: impl std::fmt::Display) -> TableError {
        TableError::request(&self.log.table, doing, error)
    }
}
