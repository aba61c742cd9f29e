//! Intakes worked off, for months: what they take in is fetched, decoded and landed, and acknowledged when
//! every table that it touches is at its ledger version.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::ending::Ending;
pub use super::ending::IngestError;
use super::feed::Feeds;
pub use super::feed::REFUSED_RETRY_EVERY;
pub use super::intake::Pace;
use super::intake::{Intake, IntakeContext, RunningIntake};
use super::metrics::Metrics;
use super::pipeline::{Pipeline, Running};
use super::pressure::Pressure;
use super::room::Room;
use crate::base::clock;
use crate::land::batch::Tables;
use crate::land::worker::{Meter, WorkerSettings};
use crate::schema::Catalog;
use crate::table::Lake;

/// Kept from a stop's deadline for giving back what has not landed.
const RELEASE_TIME: Duration = Duration::from_secs(3);
/// How often a run that ends when nothing comes looks whether that is so.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What an ingest works with.
#[derive(Clone)]
pub struct Ingest {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    /// Where rows land.
    pub lake: Arc<Lake>,
    pub settings: WorkerSettings,
    pub pace: Pace,
    pub intakes: Vec<Arc<dyn Intake>>,
    pub metrics: Arc<Metrics>,
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Messages that were still held, and given back to their queue.
    pub released: usize,
    /// Objects that were given up for now: their messages come again.
    pub given_up: u64,
    /// Sources that could not be read at the end.
    pub refused: usize,
}

impl Ingest {
    /// Works until `stop` is cancelled, or nothing comes any more; then lands what was fetched and gives back
    /// the rest.
    pub async fn run(self, stop: CancellationToken) -> Result<Ended, IngestError> {
        let ending = Arc::new(Ending::new(stop));
        let service = Service::start(self, ending);
        tokio::select! {
            () = service.until_stopped() => {}
            () = service.tell_opened() => {}
        }
        service.drain().await
    }

    fn pipeline(&self) -> Pipeline {
        Pipeline {
            catalog: self.catalog.clone(),
            tables: self.tables.clone(),
            lake: Some(self.lake.clone()),
            settings: self.settings.clone(),
            workers: self.pace.workers,
            fetches: self.pace.fetches,
            landing_attempts: None,
            metrics: self.metrics.clone(),
            meter: Arc::<Meter>::default(),
        }
    }
}

struct Service {
    context: IntakeContext,
    intakes: Vec<Box<dyn RunningIntake>>,
    pipeline: Running,
}

impl Service {
    fn start(run: Ingest, ending: Arc<Ending>) -> Self {
        let (mut feeds, mut of_intakes) = (Vec::new(), Vec::new());
        for (n, intake) in run.intakes.iter().enumerate() {
            let own = intake.feeds(feeds.len());
            of_intakes.extend(own.iter().map(|_| n));
            feeds.extend(own.into_iter().map(Arc::new));
        }
        let count = feeds.len();
        let every = Some(run.pace.refused_every);
        let context = IntakeContext {
            pace: run.pace.clone(),
            feeds: Arc::new(Feeds::new(feeds, run.metrics.clone(), ending.clone(), every)),
            pressure: Arc::new(Pressure::new(count)),
            received: Arc::new(Mutex::new(clock::now())),
            ending,
            metrics: run.metrics.clone(),
        };
        let mut intakes: Vec<_> = run.intakes.iter().map(|intake| intake.open(context.clone())).collect();
        let room = Arc::new(Room::new(run.pace.fetched_bytes, count));
        let settle = |feed: usize| intakes[of_intakes[feed]].settle();
        let IntakeContext { feeds, ending, pressure, .. } = &context;
        let (pipeline, entrances) = run.pipeline().start(feeds, &room, settle, ending, pressure);
        let mut entrances = entrances.into_iter().zip(&of_intakes).peekable();
        for (n, intake) in intakes.iter_mut().enumerate() {
            let own = std::iter::from_fn(|| entrances.next_if(|(_, of)| **of == n));
            intake.start(own.map(|(entrance, _)| entrance).collect());
        }
        drop(entrances);
        Self { context, intakes, pipeline }
    }

    fn held(&self) -> usize {
        self.intakes.iter().map(|intake| intake.held()).sum()
    }

    /// Tells when everything was reached once. It never ends.
    async fn tell_opened(&self) {
        join_all(self.intakes.iter().map(|intake| intake.opened())).await;
        self.context.metrics.started();
        std::future::pending().await
    }

    /// Waits for a reason to stop: from outside, from inside, or that nothing comes any more.
    async fn until_stopped(&self) {
        let stop = &self.context.ending.stop;
        let Some(idle) = self.context.pace.until_idle else { return stop.cancelled().await };
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = clock::sleep(LOOK_EVERY.min(idle)) => {
                    if !self.nothing_comes(idle) {
                        continue;
                    }
                    if self.held() == 0 {
                        stop.cancel();
                    } else {
                        // Nothing comes, so nothing is gained by waiting for more.
                        self.context.pressure.hurry();
                        clock::sleep(idle.min(Duration::from_secs(1))).await;
                    }
                }
            }
        }
    }

    /// Whether nothing was received for so long, and everything that can be read has said so itself.
    fn nothing_comes(&self, idle: Duration) -> bool {
        let received = *self.context.received.lock();
        received.elapsed() >= idle && self.intakes.iter().all(|intake| intake.is_quiet_since(received))
    }

    /// Lets every stage finish what it has begun, one after the other; what has not landed by then is given
    /// back.
    async fn drain(mut self) -> Result<Ended, IngestError> {
        let IntakeContext { metrics, pace, ending, feeds, .. } = self.context.clone();
        let drain = pace.drain;
        metrics.stopping();
        ending.tell();
        let began = clock::now();
        let held = self.held();
        if held > 0 {
            tracing::info!(messages = held, "stopping: nothing more is received; what was begun lands first");
        }
        let (intakes, pipeline) = (&self.intakes, &mut self.pipeline);
        let told = |what: &str| {
            if held > 0 {
                let messages: usize = intakes.iter().map(|intake| intake.held()).sum();
                tracing::info!(messages, "stopping: {what}");
            }
        };
        let landing = async {
            pipeline.fetched().await;
            told("fetching has ended");
            pipeline.landed().await;
            told("what was fetched has landed");
            join_all(intakes.iter().map(|intake| intake.acknowledged())).await;
            told("what landed is deleted from the queues");
        };
        if clock::timeout(drain - RELEASE_TIME.min(drain / 4), landing).await.is_err() {
            tracing::warn!("stopping: not everything landed in time; what did not goes back to its queue");
        }
        let patience = Duration::from_secs(2).min(drain / 4);
        let releasing = join_all(self.intakes.iter_mut().map(|intake| intake.give_back(patience)));
        let released =
            clock::timeout(drain.saturating_sub(began.elapsed()), releasing).await.unwrap_or_default();
        let ended = Ended {
            released: released.into_iter().sum(),
            given_up: metrics.given_up.get(),
            refused: feeds.refused(),
        };
        ending.why().map_or(Ok(ended), Err)
    }
}
