//! Landing what exists already: listings and standard input, through the same pipeline as everything else.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::{Stream, stream};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ending::{Ending, IngestError};
use super::feed::{Feed, Feeds};
use super::intake::listing::ListingIntake;
use super::intake::stdin::Cutter;
use super::metrics::Metrics;
use super::pipeline::{Entrance, Pipeline};
use super::pressure::Pressure;
use super::room::Room;
use super::settle::summary::Counting;
pub use super::settle::summary::Summary;
use crate::decode::inflate::InflateError;
use crate::land::batch::Tables;
use crate::land::worker::{Meter, WorkerSettings};
use crate::schema::Catalog;
use crate::source::origin::{Origin, SourceError};
use crate::source::routing::Sources;
use crate::table::Lake;

/// How often in a row landing may fail: each try has been patient already.
const LANDING_ATTEMPTS: u32 = 3;

/// What a backfill works with.
#[derive(Clone)]
pub struct Backfill {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    /// Where rows land; without it everything is decoded and counted, and nothing written.
    pub lake: Option<Arc<Lake>>,
    pub settings: WorkerSettings,
    pub workers: usize,
    pub fetches: usize,
    /// Bytes of fetched objects that wait to be decoded.
    pub fetched_bytes: usize,
    /// Which objects are whose, and of which log type.
    pub sources: Sources,
    /// What a progress display reads.
    pub meter: Arc<Meter>,
    /// Cancelled from outside: no further object is begun; those at hand land.
    pub stop: CancellationToken,
}

/// Why a backfill stopped. What had landed stays landed.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The lake can't be written, or a fault of this program.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// A listing broke off.
    #[error("{0}; what was listed before has landed")]
    Listing(SourceError),
    /// Standard input can't be inflated to its end.
    #[error("standard input: {0}; the pieces before it have landed")]
    Stdin(#[from] InflateError),
}

impl Backfill {
    pub async fn origins(&self, origins: Vec<Origin>) -> Result<Summary, BackfillError> {
        self.run(stream::iter(origins.into_iter().map(Ok)), None::<std::io::Empty>).await
    }

    /// Lands a stream, cut into objects.
    pub async fn stdin(&self, input: impl Read + Send + 'static) -> Result<Summary, BackfillError> {
        self.run(stream::empty(), Some(input)).await
    }

    /// Lands what is listed, then a stream. An entry that can't be looked into costs itself only; a listing
    /// that breaks off ends the run.
    pub async fn run(
        &self,
        listed: impl Stream<Item = Result<Origin, SourceError>>,
        stdin: Option<impl Read + Send + 'static>,
    ) -> Result<Summary, BackfillError> {
        let metrics = Arc::new(Metrics::new().0);
        let ending = Arc::new(Ending::new(self.stop.clone()));
        let feeds = Arc::new(Feeds::new(self.feeds(), metrics.clone(), ending.clone(), None));
        let counting = Arc::new(Counting::new(self.meter.clone(), self.lake.is_none()));
        let room = Arc::new(Room::new(self.fetched_bytes, 1));
        let pressure = Arc::new(Pressure::new(feeds.all.len()));
        let (mut running, entrances) =
            self.pipeline(metrics).start(&feeds, &room, |_| counting.clone(), &ending, &pressure);
        let numbers = Arc::new(AtomicU64::new(0));
        let listing = ListingIntake {
            entrances: &entrances,
            of: &|origin| self.feed_of(origin),
            counting: &counting,
            numbers: &numbers,
            meter: &self.meter,
        };
        let mut ended = listing.take_in(listed).await.map_err(BackfillError::Listing);
        if let Some(input) = stdin.filter(|_| ended.is_ok()) {
            ended = self.cut(input, entrances[0].clone(), &room, numbers).await;
        }
        drop(entrances);
        running.landed().await;
        if let Some(error) = ending.why() {
            return Err(error.into());
        }
        ended.map(|()| counting.summary())
    }

    async fn cut(
        &self,
        input: impl Read + Send + 'static,
        entrance: Entrance,
        room: &Arc<Room>,
        numbers: Arc<AtomicU64>,
    ) -> Result<(), BackfillError> {
        let cutter = Cutter {
            entrance,
            room: room.clone(),
            numbers,
            records: self.settings.records,
            max_ratio: self.settings.objects.max_ratio,
            meter: self.meter.clone(),
        };
        let runtime = Handle::current();
        let cutting = tokio::task::spawn_blocking(move || cutter.run(input, &runtime));
        tokio::select! {
            cut = cutting => Ok(cut.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?),
            // It may be waiting for input that never comes.
            () = self.stop.cancelled() => Ok(()),
        }
    }

    /// The source that was named or none, and then every configured one.
    fn feeds(&self) -> Vec<Arc<Feed>> {
        let Sources { configured, named, log_type, log_types } = &self.sources;
        let sources = std::iter::once(named.as_ref()).chain(configured.iter().map(Some));
        let feed = |(no, source): (usize, Option<&_>)| {
            let mut feed = Feed::new(no, source.cloned(), log_types.clone());
            feed.log_type = *log_type;
            Arc::new(feed)
        };
        sources.enumerate().map(feed).collect()
    }

    /// The number of the feed whose an origin is.
    fn feed_of(&self, origin: &Origin) -> usize {
        let Origin::S3 { wanted, .. } = origin else { return 0 };
        let Sources { configured, named, .. } = &self.sources;
        let found = configured.iter().position(|source| source.buckets.contains(&wanted.bucket));
        found.filter(|_| named.is_none()).map_or(0, |n| n + 1)
    }

    fn pipeline(&self, metrics: Arc<Metrics>) -> Pipeline {
        Pipeline {
            catalog: self.catalog.clone(),
            tables: self.tables.clone(),
            lake: self.lake.clone(),
            settings: self.settings.clone(),
            workers: self.workers,
            fetches: self.fetches,
            landing_attempts: Some(LANDING_ATTEMPTS),
            metrics,
            meter: self.meter.clone(),
        }
    }
}
