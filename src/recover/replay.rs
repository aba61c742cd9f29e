//! Decodes rejects again, after a schema, a limit or a route was fixed.
//!
//! ```text
//! classification_failures → selected rejects → their bytes → pipeline → lake
//!                         └── those that the ledger says were replayed → removed
//! ```
//!
//! A replayed reject lands under a ledger entry of its own, derived from the reject's id: so it lands once,
//! however many replays run at once, and wherever they die. Only then is the reject removed from its table; a
//! replay that finds its entry in the ledger removes it and lands nothing. In between, both are there. The
//! entry counts the reject as minus one, so the ledger's sums match the tables. Nothing here needs the
//! maintainers' lease: any writer may land, and a removal that loses to a compaction starts again.
//!
//! A record that is rejected again stays as it is, under its old reason; so does an object that is still
//! broken as a whole. An object that can be decoded lands, with whatever rejects its records yield.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::AsArray as _;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use parquet::errors::ParquetError;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::again::{Lost, Objects};
use super::rejects::{Chosen, KeptReject, kept};
use crate::base::store::Store;
use crate::decode::object::{Object, ObjectId, RowId};
use crate::decode::reject::Reason;
use crate::format::read;
use crate::ingest::ending::{Ending, IngestError};
use crate::ingest::feed::{Feed, Feeds};
use crate::ingest::identity::{Identified, ItemNo};
use crate::ingest::item::{Item, ItemKind, Outcome, ReplayedReject, Settle};
use crate::ingest::metrics::Metrics;
use crate::ingest::pipeline::{Entrance, Pipeline, Stopped};
use crate::ingest::pressure::Pressure;
use crate::ingest::room::Room;
use crate::land::batch::Tables;
use crate::land::ledger_rows::ObjectOutcome;
use crate::land::worker::{Meter, Rejected, WorkerSettings};
use crate::maintain::remove::{Removal, Removed};
use crate::maintain::rewrite::RewriteError;
use crate::query::{QueryError, Session};
use crate::schema::Catalog;
use crate::source::routing::Sources;
use crate::table::{DataFile, Gathering, Ids, Lake, TableError, open_tables};

/// Of the memory, the part for rejects that are read.
const READ_PART: usize = 4;
/// And for what there is of those that wait to be decoded.
const HELD_PART: usize = 8;

/// What a replay works with.
#[derive(Clone)]
pub struct Replay {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    pub store: Store,
    /// The lake to land in; without it everything is decoded and counted, and nothing written.
    pub lake: Option<Arc<Lake>>,
    pub settings: WorkerSettings,
    /// Bytes that reading may take beside the worker.
    pub memory: usize,
    /// Bytes that a file is meant to have.
    pub target: u64,
    /// Which objects are whose, and of which log type.
    pub sources: Sources,
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
        source: ParquetError,
    },
    /// The lake can't be written, or a fault of this program.
    #[error(transparent)]
    Ingest(#[from] IngestError),
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
        let counting = Arc::new(RejectCounting::default());
        let (send, receive) = mpsc::channel(1);
        let (own, counted) = (self.clone(), counting.clone());
        let taking_in = self.pass(&counting, move |entrance, room| {
            RejectIntake::new(&own, landed, entrance, room, counted).take_in_all(receive)
        });
        let (read, postponed) = tokio::join!(self.read(files, send), taking_in);
        let postponed = postponed?;
        if !postponed.is_empty() {
            let (own, counted) = (self.clone(), counting.clone());
            self.pass(&counting, move |entrance, room| {
                own.take_in_postponed(postponed, &entrance, &room, &counted)
            })
            .await?;
        }
        let mut summary = counting.summary.lock().clone();
        if summary.landed + summary.already_there > 0 {
            summary.removed = self.remove().await?;
        }
        read?;
        Ok(summary)
    }

    /// Lands what an intake takes in, on a thread of its own, to its end.
    async fn pass<T: Send + 'static>(
        &self,
        counting: &Arc<RejectCounting>,
        intake: impl FnOnce(Entrance, Arc<Room>) -> T + Send + 'static,
    ) -> Result<T, ReplayError> {
        let metrics = Arc::new(Metrics::new().0);
        let ending = Arc::new(Ending::new(self.stop.clone()));
        // Each object's own source is known; whose the rejects are is nobody's question.
        let feed = Arc::new(Feed::new(0, None, BTreeMap::new()));
        let feeds = Arc::new(Feeds::new(vec![feed], metrics.clone(), ending.clone(), None));
        let room = Arc::new(Room::new(self.memory / HELD_PART, 1));
        let pipeline = Pipeline {
            catalog: self.catalog.clone(),
            tables: self.tables.clone(),
            lake: self.lake.clone(),
            settings: self.settings.clone(),
            // Records of one kind are decoded one after the other.
            workers: 1,
            fetches: 1,
            landing_attempts: Some(1),
            metrics,
            meter: self.meter.clone(),
        };
        let (mut running, mut entrances) =
            pipeline.start(&feeds, &room, |_| counting.clone(), &ending, &Arc::new(Pressure::new(1)));
        let entrance = entrances.remove(0);
        let taken = tokio::task::spawn_blocking(move || intake(entrance, room)).await;
        let taken = taken.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        running.landed().await;
        match ending.why() {
            Some(error) => Err(error.into()),
            None => Ok(taken),
        }
    }

    /// Rejects of objects that others had brought already: they are none any more if those have landed.
    fn take_in_postponed(
        &self,
        postponed: Vec<Postponed>,
        entrance: &Entrance,
        room: &Room,
        counting: &RejectCounting,
    ) {
        let runtime = Handle::current();
        for (no, Postponed { reject, object, reason, waits_for }) in (0..).zip(postponed) {
            if self.lake.as_ref().is_some_and(|lake| !lake.contains(waits_for.0)) {
                counting.unreadable(&format!("{}: it did not land; run it again", object.location()));
                continue;
            }
            let rejected = Arc::new(Mutex::new(Some(Rejected::Landed)));
            let room = runtime.block_on(room.take(0, 0));
            let replayed = ReplayedReject { reject, object, reason, log_type: None, rejected, room };
            if runtime.block_on(entrance.take_in(no, ItemKind::Replayed(replayed))).is_err() {
                counting.summary.lock().not_begun += 1;
            }
        }
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
            let mut batches = read::stream(&self.store, spec, &file, None, self.memory / READ_PART, is_ours)
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
        let drop_rows =
            move |id: &str| RowId::parse(id).is_some_and(|id| lake.contains(ObjectId::of_replay(id).0));
        let (store, spec) = (self.store.clone(), self.tables.failures.clone());
        Removal { store, spec, target: self.target, memory: self.memory, drop_rows: Arc::new(drop_rows) }
            .run()
            .await
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

/// A reject of an object that another reject has brought already.
struct Postponed {
    reject: RowId,
    object: Object,
    reason: String,
    waits_for: ObjectId,
}

/// Rejects, as they are read from their table, and what there is of them. Blocking.
struct RejectIntake<'a> {
    replay: &'a Replay,
    landed: Landed,
    objects: Objects<'a>,
    entrance: Entrance,
    room: Arc<Room>,
    counting: Arc<RejectCounting>,
    runtime: Handle,
    /// Objects that had been rejected unread, and were handed in as themselves.
    unread: HashSet<ObjectId>,
    postponed: Vec<Postponed>,
    taken_in: ItemNo,
}

impl<'a> RejectIntake<'a> {
    fn new(
        replay: &'a Replay,
        landed: Landed,
        entrance: Entrance,
        room: Arc<Room>,
        counting: Arc<RejectCounting>,
    ) -> Self {
        Self {
            replay,
            landed,
            objects: Objects::new(&replay.sources, &replay.settings),
            entrance,
            room,
            counting,
            runtime: Handle::current(),
            unread: HashSet::new(),
            postponed: Vec::new(),
            taken_in: 0,
        }
    }

    fn take_in_all(mut self, mut receive: mpsc::Receiver<RecordBatch>) -> Vec<Postponed> {
        while let Some(batch) = receive.blocking_recv() {
            for kept in kept(&batch, &self.replay.chosen) {
                self.counting.summary.lock().found += 1;
                if self.replay.stop.is_cancelled() || self.take_in(&kept).is_err() {
                    self.counting.summary.lock().not_begun += 1;
                }
            }
            Meter::add(&self.replay.meter.objects_done, batch.num_rows() as u64);
        }
        self.postponed
    }

    fn take_in(&mut self, kept: &KeptReject<'_>) -> Result<(), Stopped> {
        if self.landed.contains(ObjectId::of_replay(kept.id)) {
            self.counting.summary.lock().already_there += 1;
            return Ok(());
        }
        let rejected = match self.objects.find(kept, |id| self.landed.contains(id)) {
            Ok(rejected) => rejected,
            Err(Lost::Stays(reason)) => {
                self.counting.stays(kept.reason, reason);
                return Ok(());
            }
            Err(Lost::Unreadable(why)) => {
                self.counting.unreadable(&why);
                return Ok(());
            }
        };
        let (reject, object, reason) = (kept.id, kept.object.clone(), kept.reason.to_owned());
        if let Rejected::Unread(unread, _) = &rejected
            && !self.unread.insert(unread.id)
        {
            self.postponed.push(Postponed { reject, object, reason, waits_for: unread.id });
            return Ok(());
        }
        let room = self.runtime.block_on(self.room.take(0, rejected.held()));
        let log_type = self.replay.sources.log_type_of(&kept.object);
        let rejected = Arc::new(Mutex::new(Some(rejected)));
        let replayed = ReplayedReject { reject, object, reason, log_type, rejected, room };
        self.taken_in += 1;
        self.runtime.block_on(self.entrance.take_in(self.taken_in, ItemKind::Replayed(replayed)))
    }
}

/// Counts what becomes of rejects.
#[derive(Debug, Default)]
struct RejectCounting {
    summary: Mutex<Summary>,
    /// Those that are on their way.
    begun: Mutex<HashSet<ObjectId>>,
}

impl RejectCounting {
    fn stays(&self, was: &str, reason: Option<Reason>) {
        let code = reason.map_or(was, |reason| reason.code());
        *self.summary.lock().rejected.entry(code.to_owned()).or_default() += 1;
    }

    fn unreadable(&self, why: &str) {
        tracing::error!("{why}");
        self.summary.lock().unreadable += 1;
    }

    fn count(&self, outcome: &ObjectOutcome) {
        let mut summary = self.summary.lock();
        for (table, rows) in &outcome.rows {
            *summary.rows.entry(table.clone()).or_default() += rows;
        }
        for (reason, count) in &outcome.rejects {
            *summary.new_rejects.entry(reason.code()).or_default() += count;
        }
    }
}

impl Settle for RejectCounting {
    fn identify(&self, _: ItemNo, entry: ObjectId) -> Identified {
        if self.begun.lock().insert(entry) {
            return Identified::First;
        }
        self.summary.lock().already_there += 1;
        Identified::OnItsWay
    }

    fn settle(&self, item: &Item, outcome: Outcome<'_>) {
        match outcome {
            Outcome::Landed(outcome) => {
                self.count(outcome);
                self.summary.lock().landed += 1;
            }
            Outcome::AlreadyThere | Outcome::Empty => self.summary.lock().already_there += 1,
            Outcome::Rejected(reason) => match &item.kind {
                ItemKind::Replayed(replayed) => self.stays(&replayed.reason, reason),
                _ => unreachable!("nothing else is taken in"),
            },
            Outcome::GivenUp(why) => self.unreadable(why),
            Outcome::NotBegun => self.summary.lock().not_begun += 1,
        }
    }

    fn landed_beside(&self, outcome: &ObjectOutcome) {
        self.count(outcome);
    }
}
