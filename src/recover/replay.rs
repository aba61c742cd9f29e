//! Rejects decoded again, after a schema, a limit or a route was mended.
//!
//! ```text
//! classification_failures → what is meant → its bytes again → worker, batch → lake
//!                         └───── the rejects that the ledger says were replayed ────→ gone
//! ```
//!
//! What becomes of a reject lands under an entry of its own in the ledger, told by the reject's id: so it
//! lands once, however many replay at once, and wherever they die. Only then the reject is taken out of its
//! table; whoever finds one whose entry is in the ledger takes it out and lands nothing. In between, both are
//! there. The entry counts the reject as minus one: so the ledger's sums are what the tables hold. Nothing
//! here needs the maintainers' lease: landing is every writer's right, and the removal is given up and begun
//! again where a compaction was faster.
//!
//! A record that is rejected again stays as it is, under its old reason; so does an object that is broken as
//! a whole again. An object that can be decoded lands with such rejects of its records as it has.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::AsArray as _;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::errors::ParquetError;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::again::{Lost, Objects};
use super::rejects::{Chosen, Kept, kept};
use crate::base::store::Store;
use crate::decode::object::{ObjectId, RowId};
use crate::decode::reject::Reason;
use crate::format::read;
use crate::land::batch::{Flushed, Tables};
use crate::land::worker::{Meter, Rejected, Replayed, WorkError, Worker, WorkerSettings};
use crate::maintain::remove::{Removal, Removed};
use crate::maintain::rewrite::RewriteError;
use crate::query::{QueryError, Session};
use crate::schema::Catalog;
use crate::source::routing::Sources;
use crate::table::{DataFile, Gathering, Ids, Lake, TableError, open_tables};

/// Of the memory, the part for rejects that were read and wait to be decoded.
const READING: usize = 4;

/// What a replay works with.
#[derive(Clone)]
pub struct Replay {
    /// The log types.
    pub catalog: Catalog,
    /// Their tables.
    pub tables: Arc<Tables>,
    /// Where the lake is.
    pub store: Store,
    /// The lake to land in; without it everything is decoded and counted, and nothing written.
    pub lake: Option<Arc<Lake>>,
    /// For the worker.
    pub settings: WorkerSettings,
    /// Bytes that reading may take beside the worker.
    pub memory: usize,
    /// Bytes that a file is meant to have.
    pub target: u64,
    /// Which objects are whose, and of which log type.
    pub sources: Sources,
    /// Which rejects.
    pub chosen: Chosen,
    /// What a progress display reads: its objects are rejects.
    pub meter: Arc<Meter>,
    /// Set from outside: no further reject is begun; those at hand land.
    pub stop: CancellationToken,
}

/// What became of the rejects.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Rejects that were meant.
    pub found: u64,
    /// Those that landed now.
    pub landed: u64,
    /// Those that another replay had landed.
    pub already_there: u64,
    /// Those that stay, by the code of what is wrong with them now.
    pub rejected: BTreeMap<String, u64>,
    /// Those whose objects could not be read, or are not what they were.
    pub unreadable: u64,
    /// Those that were not begun because the run was stopped.
    pub not_begun: u64,
    /// Rows that landed, by table.
    pub rows: BTreeMap<String, u64>,
    /// New rejects, of records of objects that landed, by reason code.
    pub new_rejects: BTreeMap<&'static str, u64>,
    /// Rejects that were taken out of their table.
    pub removed: Removed,
}

/// Why a replay stopped. What had landed stays landed, and the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The lake's tables can't be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The ledger can't be read.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A file of rejects can't be read.
    #[error("{location}: can't be read: {source}; run it again")]
    Read {
        /// The file's path in the store.
        location: String,
        /// What the reader said.
        source: ParquetError,
    },
    /// The lake can't be written.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// Rejects that were replayed could not be taken out of their table.
    #[error("{0}; the rejects that became rows are taken out of classification_failures by the next replay")]
    Remove(#[from] RewriteError),
    /// Rejects that are meant to go could not be looked through, or not be taken out.
    #[error("{0}; run it again to take out the rest")]
    Discard(RewriteError),
}

impl Replay {
    /// Decodes every reject that is meant, lands what is none any more, and takes those out of their table.
    pub async fn run(&self) -> Result<Summary, ReplayError> {
        let spec = &self.tables.failures;
        let Some(table) = open_tables(&self.store, std::slice::from_ref(&spec.name)).await?.remove(0) else {
            return Ok(Summary::default());
        };
        let mut files = table.files()?;
        files.retain(|file| self.chosen.may_be_in(file));
        Meter::add(&self.meter.objects_total, files.iter().map(|file| file.rows).sum());
        let landed = match self.lake.clone() {
            Some(lake) => Landed::Lake(lake),
            None => Landed::Ids(self.landed().await?),
        };
        let (send, receive) = mpsc::channel(1);
        let own = self.clone();
        let working = tokio::task::spawn_blocking(move || Run::new(&own, landed).work_all(receive));
        let read = self.read(files, send).await;
        let worked = working.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let mut summary = worked?;
        if summary.landed + summary.already_there > 0 {
            summary.removed = self.remove().await?;
        }
        read?;
        Ok(summary)
    }

    /// The ledger's ids, where there is no lake that knows them.
    async fn landed(&self) -> Result<Ids, ReplayError> {
        let partitioning = self.tables.failures.partitioning.unwrap_or_default();
        let session = Session::open(&self.store, &self.catalog, partitioning, self.memory).await?;
        let mut rows = session.query("SELECT object_id FROM ingested_objects", &[]).await?;
        let mut landed = Gathering::default();
        while let Some(batch) = rows.try_next().await.map_err(QueryError::from)? {
            let ids = cast(batch.column(0), &DataType::Utf8).map_err(|e| QueryError::Sql(e.to_string()))?;
            let ids = ids.as_string::<i32>().iter().flatten().filter_map(ObjectId::parse);
            ids.for_each(|id| landed.push(id.0));
        }
        Ok(landed.finish().0)
    }

    /// Reads files of rejects, until the end or until nobody listens.
    async fn read(&self, files: Vec<DataFile>, send: mpsc::Sender<RecordBatch>) -> Result<(), ReplayError> {
        let spec = &self.tables.failures;
        for file in files {
            let failed = |source| ReplayError::Read {
                location: file.location(&self.store, &spec.name).to_string(),
                source,
            };
            let is_ours = |name: &str| spec.schema.column_with_name(name).is_some();
            let mut batches = read::stream(&self.store, spec, &file, None, self.memory / READING, is_ours)
                .await
                .map_err(failed)?;
            while let Some(batch) = batches.next().await {
                let batch = batch.and_then(|batch| read::adapt(&batch, &spec.schema)).map_err(failed)?;
                if send.send(batch).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes every reject out of its table that the ledger says was replayed: also those that another run did
    /// not come to.
    async fn remove(&self) -> Result<Removed, RewriteError> {
        let Some(lake) = self.lake.clone() else { return Ok(Removed::default()) };
        let goes =
            move |id: &str| RowId::parse(id).is_some_and(|id| lake.contains(ObjectId::of_replay(id).0));
        let (store, spec) = (self.store.clone(), self.tables.failures.clone());
        Removal { store, spec, target: self.target, memory: self.memory, goes: Arc::new(goes) }.run().await
    }
}

/// What has landed.
enum Landed {
    /// The lake that is landed in knows.
    Lake(Arc<Lake>),
    /// The ids that the ledger held.
    Ids(Ids),
}

impl Landed {
    fn contains(&self, id: ObjectId) -> bool {
        match self {
            Self::Lake(lake) => lake.contains(id.0),
            Self::Ids(ids) => ids.contains(id.0),
        }
    }
}

/// The worker's side of a replay. Blocking.
struct Run<'a> {
    replay: &'a Replay,
    landed: Landed,
    objects: Objects<'a>,
    worker: Worker,
    /// Replays in the worker's batch, by their entries.
    begun: HashSet<ObjectId>,
    /// Objects that had been rejected unread, and were put into the batch as themselves.
    unread: HashSet<ObjectId>,
    summary: Summary,
}

impl<'a> Run<'a> {
    fn new(replay: &'a Replay, landed: Landed) -> Self {
        let Replay { catalog, tables, lake, settings, meter, .. } = replay;
        let worker = Worker::new(
            catalog,
            tables.clone(),
            lake.clone(),
            settings.clone(),
            meter.clone(),
            Handle::current(),
        );
        let objects = Objects::new(&replay.sources, settings);
        Self {
            replay,
            landed,
            objects,
            worker,
            begun: HashSet::new(),
            unread: HashSet::new(),
            summary: Summary::default(),
        }
    }

    fn work_all(mut self, mut receive: mpsc::Receiver<RecordBatch>) -> Result<Summary, WorkError> {
        while let Some(batch) = receive.blocking_recv() {
            for kept in kept(&batch, &self.replay.chosen) {
                self.summary.found += 1;
                if self.replay.stop.is_cancelled() {
                    self.summary.not_begun += 1;
                } else {
                    self.replay(&kept)?;
                }
            }
            Meter::add(&self.replay.meter.objects_done, batch.num_rows() as u64);
        }
        self.flush()?;
        Ok(self.summary)
    }

    fn replay(&mut self, kept: &Kept<'_>) -> Result<(), WorkError> {
        let entry = ObjectId::of_replay(kept.id);
        if self.landed.contains(entry) {
            self.summary.already_there += 1;
            return Ok(());
        }
        let mut found = match self.objects.find(kept, |id| self.landed.contains(id)) {
            Ok(found) => found,
            Err(Lost::Stays(reason)) => {
                self.stays(kept, reason);
                return Ok(());
            }
            Err(Lost::Unreadable(why)) => {
                self.unreadable(&why);
                return Ok(());
            }
        };
        let unread = match &found {
            Rejected::Unread(object, _) => Some(object.id),
            _ => None,
        };
        if let Some(id) = unread.filter(|id| self.unread.contains(id)) {
            // Announced twice: this one goes only when the first has landed the object.
            self.flush()?;
            if self.replay.lake.is_some() && !self.landed.contains(id) {
                self.unreadable(&format!("{}: it did not land; run it again", kept.object.location()));
                return Ok(());
            }
            found = Rejected::Landed;
        }
        let log_type = self.replay.sources.log_type_of(&kept.object);
        match self.worker.replay(kept.id, kept.object.clone(), found, log_type) {
            Ok(Replayed::Accepted) => {
                self.begun.insert(entry);
                self.unread.extend(unread);
            }
            Ok(Replayed::Rejected(reason)) => self.stays(kept, reason),
            Err(error @ WorkError::Read { .. }) => self.unreadable(&error.to_string()),
            Err(error) => return Err(error),
        }
        self.account();
        Ok(())
    }

    fn stays(&mut self, kept: &Kept<'_>, reason: Option<Reason>) {
        let code = reason.map_or(kept.reason, |reason| reason.code());
        *self.summary.rejected.entry(code.to_owned()).or_default() += 1;
    }

    fn unreadable(&mut self, why: &str) {
        tracing::error!("{why}");
        self.summary.unreadable += 1;
    }

    fn flush(&mut self) -> Result<(), WorkError> {
        let flushed = self.worker.flush()?;
        self.account_for(flushed);
        Ok(())
    }

    /// Takes note of what the worker landed on its own.
    fn account(&mut self) {
        let flushed = self.worker.flushed();
        self.account_for(flushed);
    }

    fn account_for(&mut self, flushed: Flushed) {
        let summary = &mut self.summary;
        for outcome in &flushed.landed {
            summary.landed += u64::from(self.begun.remove(&outcome.entry()));
            for (table, rows) in &outcome.rows {
                *summary.rows.entry(table.clone()).or_default() += rows;
            }
            for (reason, count) in &outcome.rejects {
                *summary.new_rejects.entry(reason.code()).or_default() += count;
            }
        }
        summary.already_there +=
            flushed.already_there.iter().filter(|id| self.begun.remove(id)).count() as u64;
        let stale = flushed.stale.iter().filter(|id| self.begun.remove(id)).count() as u64;
        if stale > 0 {
            tracing::error!(
                rejects = stale,
                "decoding and landing them took over an hour; run it again, with a faster line or more memory"
            );
            summary.unreadable += stale;
        }
    }
}
