//! The pipeline: items in, rows in the lake, and whoever took them in is told what became of each.
//!
//! ```text
//! intake → fetch (a stage for each source) → work (a batch for each worker) → settle
//!            └────────────── what failed comes again ──────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempts::Attempts;
use super::ending::{Ending, IngestError};
use super::feed::{Feed, Feeds};
use super::fetch::{FetchStage, Fetcher};
use super::identity::ItemNo;
use super::item::{Item, ItemKind, Settle};
use super::metrics::Metrics;
use super::pressure::Pressure;
use super::room::Room;
use super::work::{WorkStage, Working};
use crate::base::panics::caught;
use crate::land::batch::Tables;
use crate::land::worker::{Meter, WorkerSettings};
use crate::schema::Catalog;
use crate::source::origin::WHOLE_BYTES;
use crate::table::Lake;

/// Objects that were fetched and wait for a worker, at most: small ones are decoded several at a time.
const MAX_READY: usize = 64;

/// What a pipeline works with.
#[derive(Clone)]
pub struct Pipeline {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    /// Where rows land; without it everything is decoded and counted, and nothing written.
    pub lake: Option<Arc<Lake>>,
    pub settings: WorkerSettings,
    /// Workers: each decodes and writes on a core.
    pub workers: usize,
    /// Objects of one source that are fetched at once.
    pub fetches: usize,
    /// How often in a row landing may fail before the run ends; none: however often.
    pub landing_attempts: Option<u32>,
    pub metrics: Arc<Metrics>,
    /// What a progress display reads.
    pub meter: Arc<Meter>,
}

/// Where an intake hands in the items of one source. When all copies are dropped, nothing more is taken in.
#[derive(Debug, Clone)]
pub struct Entrance {
    feed: Arc<Feed>,
    settle: Arc<dyn Settle>,
    fresh: mpsc::Sender<Item>,
    again: mpsc::UnboundedSender<(Item, Duration)>,
    under_way: TaskTracker,
    stop: CancellationToken,
}

/// The run is stopped: nothing is taken in any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// A pipeline at work.
pub struct Running {
    /// One stage for each source.
    fetching: Vec<JoinHandle<()>>,
    working: Vec<JoinHandle<()>>,
}

impl Entrance {
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Hands an item in, when there is room for it.
    pub async fn take_in(&self, no: ItemNo, kind: ItemKind) -> Result<(), Stopped> {
        let item = Item {
            no,
            feed: self.feed.clone(),
            kind,
            settle: self.settle.clone(),
            attempts: Attempts::default(),
            is_told_overwritten: false,
            is_suspect: false,
            again: self.again.clone(),
            under_way: self.under_way.token(),
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            sent = self.fresh.send(item) => sent.map_err(|_| Stopped),
        }
    }
}

/// A task without which the run makes no sense: its panic ends the run, and what is held lands or goes back.
pub(super) fn stage(
    ending: &Arc<Ending>,
    metrics: &Arc<Metrics>,
    task: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let (ending, metrics) = (ending.clone(), metrics.clone());
    tokio::spawn(async move {
        if let Err(said) = caught(work).await {
            metrics.panics.inc();
            ending.fail(IngestError::Panicked { task: task.to_owned(), said });
        }
    })
}

impl Pipeline {
    /// Starts it, with an entrance for each feed, in their order. `settle`: who receives what becomes of a
    /// feed's items, by the feed's number.
    pub fn start(
        &self,
        feeds: &Arc<Feeds>,
        room: &Arc<Room>,
        settle: impl Fn(usize) -> Arc<dyn Settle>,
        ending: &Arc<Ending>,
        pressure: &Arc<Pressure>,
    ) -> (Running, Vec<Entrance>) {
        let Self { metrics, lake, .. } = self;
        let (ready, fetched) = mpsc::channel(MAX_READY);
        let fetched = Arc::new(tokio::sync::Mutex::new(fetched));
        let whole = WHOLE_BYTES.min(room.bytes() / 2);
        // One source has all workers to itself.
        let remote = if feeds.all.len() > 1 { self.workers.saturating_sub(1) } else { self.workers };
        let remote = Arc::new(Semaphore::new(remote.max(1)));
        let (mut fetching, mut entrances) = (Vec::new(), Vec::new());
        for feed in &feeds.all {
            let (fresh, to_fetch) = mpsc::channel(1);
            let (again, to_fetch_again) = mpsc::unbounded_channel();
            let under_way = TaskTracker::new();
            let fetcher = Fetcher {
                feed: feed.clone(),
                feeds: feeds.clone(),
                lake: lake.clone(),
                metrics: metrics.clone(),
                room: room.clone(),
                whole,
                remote: remote.clone(),
            };
            let stop = ending.stop.clone();
            entrances.push(Entrance {
                feed: feed.clone(),
                settle: settle(feed.no),
                fresh,
                again,
                under_way: under_way.clone(),
                stop,
            });
            let fetch = FetchStage {
                fetcher: Arc::new(fetcher),
                at_once: self.fetches.max(1),
                fresh: to_fetch,
                again: to_fetch_again,
                ready: ready.clone(),
                under_way,
                ending: ending.clone(),
                pressure: pressure.clone(),
            };
            fetching.push(stage(ending, metrics, "fetching", fetch.run()));
        }
        let working = Working {
            catalog: self.catalog.clone(),
            tables: self.tables.clone(),
            lake: lake.clone(),
            settings: self.settings.clone(),
            meter: self.meter.clone(),
            metrics: metrics.clone(),
            feeds: feeds.clone(),
            ending: ending.clone(),
            pressure: pressure.clone(),
            landing_attempts: self.landing_attempts,
        };
        let work = |_| {
            let work = WorkStage::new(working.clone()).run(fetched.clone());
            stage(ending, metrics, "a worker", work)
        };
        let working = (0..self.workers.max(1)).map(work).collect();
        (Running { fetching, working }, entrances)
    }
}

impl Running {
    /// Waits until nothing is fetched any more.
    pub async fn fetched(&mut self) {
        join(&mut self.fetching).await;
    }

    /// And until everything that was fetched has landed, or could not.
    pub async fn landed(&mut self) {
        self.fetched().await;
        // The last fetcher took the way to the workers with it: they flush and end.
        join(&mut self.working).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.fetching.iter().chain(&self.working).for_each(JoinHandle::abort);
    }
}

/// Waits until all have ended. What a panic of theirs means was told when it happened.
pub(super) async fn join(tasks: &mut Vec<JoinHandle<()>>) {
    while let Some(task) = tasks.last_mut() {
        let _ = task.await;
        tasks.pop();
    }
}
