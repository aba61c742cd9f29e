//! The long-running service: fetches, decodes and lands what queues' messages announce, and deletes a message
//! when every table that it touches is at its ledger version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::attempts::delay;
use super::ending::Ending;
pub use super::ending::IngestError;
pub use super::feed::REFUSED_RETRY_EVERY;
use super::feed::{Feed, Feeds};
use super::intake::queue::{Limits, QueueIntake, Receiver};
use super::metrics::Metrics;
use super::pipeline::{Entrance, Pipeline, Running, join, stage};
use super::pressure::Pressure;
use super::room::Room;
use super::settle::ack::{Acks, Complete, Deleter};
use super::settle::book::Load;
use super::settle::leases::Leases;
use crate::base::clock::{self, Instant};
use crate::base::jittered;
use crate::base::panics::to_the_end;
use crate::config::Source;
use crate::land::batch::Tables;
use crate::land::worker::{Meter, WorkerSettings};
use crate::schema::Catalog;
use crate::source::bucket::Buckets;
use crate::source::queue::Queue;
use crate::table::Lake;

/// Kept from a stop's deadline for giving back what has not landed.
const RELEASE_TIME: Duration = Duration::from_secs(3);
/// How often a run that ends when nothing comes looks whether that is so.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A source with a queue, and the ways to it.
#[derive(Debug, Clone)]
pub struct QueueSource {
    /// What its rows are attributed to, and the buckets that may be read.
    pub source: Source,
    pub queue: Arc<dyn Queue>,
    pub buckets: Arc<dyn Buckets>,
    /// The log types that its routes name, by their index in the catalog.
    pub log_types: BTreeMap<String, usize>,
}

/// How much of everything at once.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Workers: each decodes and writes on a core.
    pub workers: usize,
    /// Long polls at once, for each queue.
    pub receivers: usize,
    /// Objects fetched at once, for each source.
    pub fetches: usize,
    /// Messages held at most.
    pub max_messages: usize,
    /// Bytes that held messages may cost.
    pub message_bytes: usize,
    /// Bytes of fetched objects that wait to be decoded.
    pub fetched_bytes: usize,
    /// How long a stop may take.
    pub drain: Duration,
    /// How often a source that is refused is tried again.
    pub refused_every: Duration,
    /// Ends the run when nothing was received and nothing held for this long.
    pub until_idle: Option<Duration>,
}

/// What an ingest works with.
#[derive(Clone)]
pub struct Ingest {
    pub catalog: Catalog,
    pub tables: Arc<Tables>,
    /// Where rows land.
    pub lake: Arc<Lake>,
    pub settings: WorkerSettings,
    /// How much at once.
    pub pace: Pace,
    /// Where from.
    pub sources: Vec<QueueSource>,
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
        let feeds = Arc::new(Feeds::new(
            self.feeds(),
            self.metrics.clone(),
            ending.clone(),
            Some(self.pace.refused_every),
        ));
        let intake = |(no, of): (usize, &QueueSource)| {
            Arc::new(QueueIntake::new(no, of.queue.clone(), of.source.clone()))
        };
        let intakes: Vec<_> = self.sources.iter().enumerate().map(intake).collect();
        self.metrics.started();
        let service = Service::start(self, ending, feeds, intakes);
        service.until_stopped().await;
        service.drain().await
    }

    fn feeds(&self) -> Vec<Arc<Feed>> {
        let feed = |(no, of): (usize, &QueueSource)| {
            let mut feed = Feed::new(no, Some(of.source.clone()), of.log_types.clone());
            feed.buckets = Some(of.buckets.clone());
            Arc::new(feed)
        };
        self.sources.iter().enumerate().map(feed).collect()
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

/// An ingest at work.
struct Service {
    run: Ingest,
    ending: Arc<Ending>,
    feeds: Arc<Feeds>,
    intakes: Vec<Arc<QueueIntake>>,
    acks: Arc<Acks>,
    pressure: Arc<Pressure>,
    /// When a message was last received.
    received: Arc<Mutex<Instant>>,
    pipeline: Running,
    receivers: Vec<JoinHandle<()>>,
    /// Tasks that hold nothing between two turns: they delete messages, keep leases and gauges.
    lasting: Lasting,
}

impl Service {
    fn start(run: Ingest, ending: Arc<Ending>, feeds: Arc<Feeds>, intakes: Vec<Arc<QueueIntake>>) -> Self {
        let (acks, complete) = Acks::new(intakes.len(), run.metrics.clone());
        let pressure = Arc::new(Pressure::new(intakes.len()));
        let room = Arc::new(Room::new(run.pace.fetched_bytes, intakes.len()));
        let (pipeline, entrances) = run.pipeline().start(&feeds, &room, |_| acks.clone(), &ending, &pressure);
        let mut service = Self {
            received: Arc::new(Mutex::new(clock::now())),
            lasting: Lasting { metrics: run.metrics.clone(), tasks: Vec::new() },
            receivers: Vec::new(),
            run,
            ending,
            feeds,
            intakes,
            acks,
            pressure,
            pipeline,
        };
        for ((intake, entrance), complete) in service.intakes.clone().iter().zip(entrances).zip(complete) {
            service.start_queue(intake, entrance, complete);
        }
        let acks = service.acks.clone();
        service.lasting.start("keeping gauges", String::new(), move || acks.clone().keep_gauges());
        service
    }

    /// What one queue takes: trouble with it keeps no other waiting.
    fn start_queue(&mut self, intake: &Arc<QueueIntake>, entrance: Entrance, complete: Complete) {
        let (no, queue, url) = (intake.no, intake.queue.clone(), intake.queue.url().to_owned());
        let (leases, to_keep) = mpsc::unbounded_channel();
        let complete = tokio::sync::Mutex::new(complete);
        let deleter = Arc::new(Deleter { no, queue: queue.clone(), acks: self.acks.clone(), complete });
        self.lasting.start("deleting", url.clone(), move || deleter.clone().run());
        let keeper = Arc::new(Leases {
            no,
            queue,
            acks: self.acks.clone(),
            received: tokio::sync::Mutex::new(to_keep),
            visibility: intake.visibility.clone(),
            metrics: self.run.metrics.clone(),
        });
        self.lasting.start("keeping leases", url, move || keeper.clone().run());
        let pace = &self.run.pace;
        let receiver = Receiver {
            intake: intake.clone(),
            entrance,
            acks: self.acks.clone(),
            leases,
            feeds: self.feeds.clone(),
            pressure: self.pressure.clone(),
            limits: Limits {
                most: Load { messages: pace.max_messages, bytes: pace.message_bytes },
                queues: self.intakes.len(),
            },
            received: self.received.clone(),
            until_idle: pace.until_idle,
            metrics: self.run.metrics.clone(),
            stop: self.ending.stop.clone(),
        };
        for _ in 0..pace.receivers {
            let receiving = receiver.clone().run();
            self.receivers.push(stage(&self.ending, &self.run.metrics, "receiving", receiving));
        }
    }

    /// Waits for a reason to stop: from outside, from inside, or that nothing comes any more.
    async fn until_stopped(&self) {
        let stop = &self.ending.stop;
        let Some(idle) = self.run.pace.until_idle else { return stop.cancelled().await };
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = clock::sleep(LOOK_EVERY.min(idle)) => {
                    if !self.nothing_comes(idle) {
                        continue;
                    }
                    if self.acks.book.lock().is_empty() {
                        stop.cancel();
                    } else {
                        // Nothing comes, so nothing is gained by waiting for more.
                        self.pressure.hurry();
                        clock::sleep(idle.min(Duration::from_secs(1))).await;
                    }
                }
            }
        }
    }

    /// Whether nothing was received for so long, and every queue that can be read has said so itself.
    fn nothing_comes(&self, idle: Duration) -> bool {
        let received = *self.received.lock();
        let is_quiet = |intake: &Arc<QueueIntake>| {
            self.feeds.all[intake.no].is_refused() || intake.is_quiet_since(received)
        };
        received.elapsed() >= idle && self.intakes.iter().all(is_quiet)
    }

    /// Lets every stage finish what it has begun, one after the other; what has not landed by then is given
    /// back.
    async fn drain(mut self) -> Result<Ended, IngestError> {
        let (metrics, drain) = (self.run.metrics.clone(), self.run.pace.drain);
        metrics.stopping();
        self.ending.tell();
        let began = clock::now();
        let held = self.acks.book.lock().len();
        if held > 0 {
            tracing::info!(messages = held, "stopping: nothing more is received; what was begun lands first");
        }
        let (acks, pipeline) = (self.acks.clone(), &mut self.pipeline);
        let told = |what: &str| {
            if held > 0 {
                tracing::info!(messages = acks.book.lock().len(), "stopping: {what}");
            }
        };
        let landing = async {
            pipeline.fetched().await;
            told("fetching has ended");
            pipeline.landed().await;
            told("what was fetched has landed");
            acks.all_deleted().await;
            told("what landed is deleted from the queues");
        };
        if clock::timeout(drain - RELEASE_TIME.min(drain / 4), landing).await.is_err() {
            tracing::warn!("stopping: not everything landed in time; what did not goes back to its queue");
        }
        self.lasting.end("keeping leases");
        // A poll that is cut off may have been given messages, which then stay hidden: the polls get a
        // moment.
        let polls = Duration::from_secs(2).min(drain / 4);
        let _ = clock::timeout(polls, join(&mut self.receivers)).await;
        // Else one would receive what is given back now.
        self.receivers.iter().for_each(JoinHandle::abort);
        let queues: Vec<_> = self.intakes.iter().map(|intake| intake.queue.clone()).collect();
        let releasing = self.acks.release_all(&queues);
        let released = clock::timeout(drain.saturating_sub(began.elapsed()), releasing).await;
        let ended = Ended {
            released: released.unwrap_or_default(),
            given_up: metrics.given_up.get(),
            refused: self.feeds.refused(),
        };
        self.ending.why().map_or(Ok(ended), Err)
    }
}

/// Tasks that hold nothing between two turns. One that panics is begun again: ending the run would cost every
/// source, and a supervisor's restart no less, for what may be one odd answer of one queue. They end with
/// this.
struct Lasting {
    metrics: Arc<Metrics>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

impl Lasting {
    /// `queue`: whose it is, if it is one's.
    fn start<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        task: &'static str,
        queue: String,
        work: impl FnMut() -> F + Send + 'static,
    ) {
        let metrics = self.metrics.clone();
        let mut panics = 0;
        let panicked = move |said: String| {
            panics += 1;
            metrics.panics.inc();
            let wait = jittered(delay(panics));
            tracing::error!(
                queue,
                panics,
                "{task} panicked: {said}; it is begun again in {wait:.1?}: please report this"
            );
            wait
        };
        self.tasks.push((task, tokio::spawn(to_the_end(work, panicked))));
    }

    fn end(&self, task: &str) {
        self.tasks.iter().filter(|(name, _)| *name == task).for_each(|(_, task)| task.abort());
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}
