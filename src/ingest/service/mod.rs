//! Queues worked off, for months: what messages announce is fetched, decoded and landed, and a message is
//! deleted when every table that it touches is at its ledger version.
//!
//! ```text
//! receive → notice → (ack book) → fetch → work → land → ack
//!              └── leases are kept from receive to ack ──┘
//! ```

mod ack;
mod fetch;
mod land;
mod receive;
mod refusal;
mod task;

pub use refusal::TRIED_EVERY;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::book::{Book, ItemNo, MessageKey};
use super::metrics::Metrics;
use crate::base::aws::FailureKind;
use crate::config::Source;
use crate::decode::object::Object;
use crate::decode::reject::Reason;
use crate::land::batch::{BatchError, Tables};
use crate::land::worker::{Meter, WorkerSettings};
use crate::schema::Catalog;
use crate::source::bucket::Buckets;
use crate::source::notice::Announced;
use crate::source::origin::{Input, WHOLE_BYTES};
use crate::source::queue::{Queue, QueueError};
use crate::table::Lake;

/// What a message costs in memory besides its body.
const MESSAGE_OVERHEAD: usize = 2 << 10;
/// And each thing that it brings.
const ITEM_OVERHEAD: usize = 1 << 10;
/// Kept from a stop's deadline for giving back what has not landed.
const RELEASE_TIME: Duration = Duration::from_secs(3);

/// A source and the ways to it.
#[derive(Debug, Clone)]
pub struct Feed {
    /// What its rows are attributed to, and the buckets that may be read.
    pub source: Source,
    /// Its queue.
    pub queue: Arc<dyn Queue>,
    /// Its buckets.
    pub buckets: Arc<dyn Buckets>,
    /// Its routes' log types, by their place in the source and their index in the catalog.
    pub log_types: Vec<usize>,
}

impl Feed {
    /// The log type of everything below a prefix that fits the key; the longest counts.
    fn log_type(&self, key: &str) -> Option<usize> {
        let routes =
            self.source.route.iter().zip(&self.log_types).filter(|(route, _)| key.starts_with(&route.prefix));
        routes.max_by_key(|(route, _)| route.prefix.len()).map(|(_, log_type)| *log_type)
    }

    /// What trouble with its objects is told under: whatever the source is called, not that of a queue, or of
    /// the lake.
    fn problem(&self) -> String {
        format!("source {}", self.source.id)
    }
}

/// How much of everything at once.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Threads that decode and write.
    pub workers: usize,
    /// Long polls at once, for each queue.
    pub receivers: usize,
    /// Objects fetched at once.
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
    /// The log types.
    pub catalog: Catalog,
    /// Their tables.
    pub tables: Arc<Tables>,
    /// Where rows land.
    pub lake: Arc<Lake>,
    /// For each worker.
    pub settings: WorkerSettings,
    /// How much at once.
    pub pace: Pace,
    /// Where from.
    pub feeds: Vec<Feed>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// What a status line reads.
    pub meter: Arc<Meter>,
}

/// Why an ingest ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A queue can't be read.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Nothing of a source can be read.
    #[error(
        "source {source_id}: {location}: can't be read: {message}; nothing else of this source could be read either: {advice}"
    )]
    Source {
        /// The source's id.
        source_id: String,
        /// An object that could not be read.
        location: String,
        /// What the store said.
        message: String,
        /// What to do.
        advice: &'static str,
    },
    /// The lake can't be written.
    #[error(transparent)]
    Lake(#[from] BatchError),
    /// A fault of this program.
    #[error(
        "{task} panicked: {said}; the run ends, and what it held goes back to its queues: please report this"
    )]
    Panicked {
        /// Which task.
        task: String,
        /// What the panic said.
        said: String,
    },
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

/// An item on its way, and how it went so far.
#[derive(Debug, Clone, Default)]
struct Job {
    no: ItemNo,
    /// How often it was not there.
    misses: u32,
    /// How often reading it failed otherwise.
    failures: u32,
    /// How often of these it was refused.
    refusals: u32,
    first_failure: Option<Instant>,
    /// How often its files were too old to be landed.
    stale: u32,
    /// Whether it was told that it is not what was announced.
    is_told_overwritten: bool,
}

/// What has to land for a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum What {
    /// An object of a bucket, with the feed that announced it.
    Announced(usize, Announced),
    /// The records of a message's body.
    Body(usize, BodyObject),
    /// What became a reject, unread.
    Reject(usize, RejectedObject),
}

impl What {
    /// What it costs in memory while it is held, besides its message: its names, in the book twice.
    fn weight(&self) -> usize {
        let text = match self {
            Self::Announced(_, a) => {
                a.bucket.len() + a.key.len() + a.literal_key.as_ref().map_or(0, String::len)
            }
            Self::Body(..) => 0,
            Self::Reject(_, r) => r.key.len() + r.message.len() + r.payload.as_ref().map_or(0, Bytes::len),
        };
        ITEM_OVERHEAD + 2 * text
    }
}

/// A message's body as an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BodyObject {
    hash: String,
    id: u128,
    sent: Option<i64>,
    bytes: Bytes,
}

/// An object that is one reject.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RejectedObject {
    id: u128,
    reason: Reason,
    message: String,
    bucket: Option<String>,
    key: String,
    etag: String,
    sent: Option<i64>,
    payload: Option<Bytes>,
}

/// Something for a worker.
struct Ready {
    job: Job,
    object: Object,
    content: Content,
    log_type: Option<usize>,
    /// The room that its bytes take, until they are decoded.
    room: Option<tokio::sync::OwnedSemaphorePermit>,
}

enum Content {
    Input(Input),
    Reject { reason: Reason, message: String, payload: Option<Vec<u8>> },
}

/// What receivers, fetchers, workers and keepers share.
struct Shared {
    run: Ingest,
    book: Mutex<Book<What>>,
    jobs: mpsc::UnboundedSender<Job>,
    /// For each queue.
    complete: Vec<mpsc::UnboundedSender<MessageKey>>,
    /// No message is received any more.
    stop: CancellationToken,
    /// What nobody can do anything about but a person.
    fatal: Mutex<Option<IngestError>>,
    /// The book has become lighter.
    lighter: Notify,
    /// Goes up when whatever is held should land soon.
    hurry: AtomicU64,
    /// Receivers that wait until the book has become lighter.
    waiting_for_room: AtomicUsize,
    /// Room for fetched bytes, in KiB.
    room: Arc<Semaphore>,
    /// Objects of at most this size are held whole.
    whole: u64,
    state: Vec<FeedState>,
    /// When a message was last received.
    received: Mutex<Instant>,
}

/// What is known of a feed while it runs.
struct FeedState {
    /// The queue's visibility timeout.
    visibility: Mutex<Duration>,
    /// Whether a message was ever received.
    heard: std::sync::atomic::AtomicBool,
    /// When the last poll began that brought nothing.
    quiet: Mutex<Option<Instant>>,
    /// When an object was last read.
    last_read: Mutex<Option<Instant>>,
    /// Objects that could not be read since then.
    denied: AtomicUsize,
    /// Since when nothing of it can be read.
    refused: Mutex<Option<Instant>>,
}

/// How long to wait after the n-th failure in a row: shorter at first, with a bit of chance in it, and up to
/// a minute.
fn patience(failures: u32) -> Duration {
    let delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(60))
        .with_jitter()
        .without_max_times();
    delays.build().nth(failures.saturating_sub(1).min(20) as usize).unwrap_or(Duration::from_secs(60))
}

impl Ingest {
    /// Works until `stop` is cancelled, or nothing comes any more; then lands what was fetched and gives back
    /// the rest.
    pub async fn run(self, stop: CancellationToken) -> Result<Ended, IngestError> {
        let (jobs, to_fetch) = mpsc::unbounded_channel();
        let (complete, to_delete): (Vec<_>, Vec<_>) =
            self.feeds.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let (ready, to_work) = mpsc::channel(1);
        let shared = Arc::new(Shared::new(self, jobs, complete, stop));
        tokio::select! {
            () = shared.read_visibility_timeouts() => {}
            () = shared.stop.cancelled() => return Ok(Ended { released: 0, given_up: 0, refused: 0 }),
        }
        shared.run.metrics.started();
        let stages = Stages::start(&shared, to_fetch, to_work, to_delete, ready);
        shared.until_stopped().await;
        let ended = stages.drain(&shared).await;
        let fatal = shared.fatal.lock().take();
        fatal.map_or(Ok(ended), Err)
    }
}

impl Shared {
    fn new(
        run: Ingest,
        jobs: mpsc::UnboundedSender<Job>,
        complete: Vec<mpsc::UnboundedSender<MessageKey>>,
        stop: CancellationToken,
    ) -> Self {
        let state = |_: &Feed| FeedState {
            visibility: Mutex::new(Duration::from_secs(30)),
            heard: false.into(),
            quiet: Mutex::default(),
            last_read: Mutex::default(),
            denied: AtomicUsize::new(0),
            refused: Mutex::default(),
        };
        Self {
            book: Mutex::default(),
            jobs,
            complete,
            stop,
            fatal: Mutex::default(),
            lighter: Notify::new(),
            hurry: AtomicU64::new(0),
            waiting_for_room: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(run.pace.fetched_bytes >> 10)),
            whole: WHOLE_BYTES.min(run.pace.fetched_bytes as u64 / 2),
            state: run.feeds.iter().map(state).collect(),
            received: Mutex::new(Instant::now()),
            run,
        }
    }

    /// Waits for a reason to stop: from outside, from inside, or that nothing comes any more.
    async fn until_stopped(&self) {
        let Some(idle) = self.run.pace.until_idle else { return self.stop.cancelled().await };
        let look = Duration::from_millis(50).min(idle);
        while !self.stop.is_cancelled() {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(look) => {
                    if !self.nothing_comes(idle) {
                        continue;
                    }
                    if self.book.lock().is_empty() {
                        self.stop.cancel();
                    } else {
                        // Nothing comes, so nothing is gained by waiting for more.
                        self.hurry.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(idle.min(Duration::from_secs(1))).await;
                    }
                }
            }
        }
    }

    /// Whether nothing was received for so long, and every queue that can be read has said so itself: a slow
    /// answer is not an empty one.
    fn nothing_comes(&self, idle: Duration) -> bool {
        let received = *self.received.lock();
        let is_quiet = |feed: &FeedState| {
            feed.refused.lock().is_some() || feed.quiet.lock().is_some_and(|began| began > received)
        };
        received.elapsed() >= idle && self.state.iter().all(is_quiet)
    }

    /// Ends the run: no one but a person can help.
    fn fail(&self, error: IngestError) {
        tracing::error!("{error}");
        self.fatal.lock().get_or_insert(error);
        self.stop.cancel();
    }

    /// Sets items on their way again after a while.
    fn later(self: &Arc<Self>, jobs: Vec<Job>, delay: Duration) {
        let shared = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = tokio::time::sleep(delay) => {
                    jobs.into_iter().for_each(|job| drop(shared.jobs.send(job)));
                }
            }
        });
    }

    /// An item has landed: messages that are complete with it are deleted.
    fn landed(&self, no: ItemNo) {
        for key in self.book.lock().landed(no) {
            self.completed(key);
        }
    }

    fn completed(&self, key: MessageKey) {
        let _ = self.complete[key.queue].send(key);
    }

    fn count_fetch_error(&self, kind: FailureKind) {
        let label = super::metrics::ByReason { reason: kind.code().to_owned() };
        self.run.metrics.fetch_errors.get_or_create(&label).inc();
    }

    fn count_queue_error(&self, error: &QueueError) {
        let label = super::metrics::ByReason { reason: error.failure.kind.code().to_owned() };
        self.run.metrics.queue_errors.get_or_create(&label).inc();
    }
}

/// The tasks of each stage, in the order of the journey.
struct Stages {
    receivers: Vec<JoinHandle<()>>,
    fetchers: Vec<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    deleters: Vec<JoinHandle<()>>,
    keepers: Vec<JoinHandle<()>>,
    gauges: JoinHandle<()>,
}

impl Stages {
    fn start(
        shared: &Arc<Shared>,
        to_fetch: mpsc::UnboundedReceiver<Job>,
        to_work: mpsc::Receiver<Ready>,
        to_delete: Vec<mpsc::UnboundedReceiver<MessageKey>>,
        ready: mpsc::Sender<Ready>,
    ) -> Self {
        let (pace, feeds) = (&shared.run.pace, 0..shared.run.feeds.len());
        let to_fetch = Arc::new(tokio::sync::Mutex::new(to_fetch));
        let to_work = Arc::new(tokio::sync::Mutex::new(to_work));
        let receivers = feeds.clone().flat_map(|feed| (0..pace.receivers).map(move |_| feed));
        let fetchers = (0..pace.fetches).map(|_| shared.clone().fetch_all(to_fetch.clone(), ready.clone()));
        // One for each queue: trouble with one keeps no other waiting.
        let to_delete = to_delete.into_iter().map(|keys| Arc::new(tokio::sync::Mutex::new(keys)));
        Self {
            receivers: receivers
                .map(|feed| shared.stage("receiving", shared.clone().receive_all(feed)))
                .collect(),
            fetchers: fetchers.map(|fetching| shared.stage("fetching", fetching)).collect(),
            workers: (0..pace.workers)
                .map(|_| shared.blocking_stage("a worker", to_work.clone(), Shared::work_all))
                .collect(),
            deleters: feeds
                .clone()
                .zip(to_delete)
                .map(|(feed, keys)| {
                    shared.lasting("deleting", feed, move |shared| shared.delete_all(feed, keys.clone()))
                })
                .collect(),
            keepers: feeds
                .map(|feed| shared.lasting("keeping leases", feed, move |shared| shared.keep_leases(feed)))
                .collect(),
            gauges: shared.lasting("keeping gauges", None, Shared::keep_gauges),
        }
    }

    /// Lets every stage finish what it has begun, one after the other; what has not landed by then is given
    /// back.
    async fn drain(mut self, shared: &Arc<Shared>) -> Ended {
        shared.run.metrics.stopping();
        let deadline = tokio::time::Instant::now() + shared.run.pace.drain;
        let held = shared.book.lock().len();
        if held > 0 {
            tracing::info!(messages = held, "stopping: nothing more is received; what was begun lands first");
        }
        let told = |what: &str| {
            if held > 0 {
                tracing::info!(messages = shared.book.lock().len(), "stopping: {what}");
            }
        };
        let landing = async {
            join(&mut self.fetchers).await;
            told("fetching has ended");
            // The last fetcher took the way to the workers with it: they flush and end.
            join(&mut self.workers).await;
            told("what was fetched has landed");
            shared.all_deleted().await;
            told("what landed is deleted from the queues");
        };
        if tokio::time::timeout_at(deadline - RELEASE_TIME.min(shared.run.pace.drain / 4), landing)
            .await
            .is_err()
        {
            tracing::warn!("stopping: not everything landed in time; what did not goes back to its queue");
        }
        self.keepers.iter().for_each(JoinHandle::abort);
        // A poll that is cut off may have been given messages, which then stay hidden: the polls get a
        // moment.
        let polls = Duration::from_secs(2).min(shared.run.pace.drain / 4);
        let _ = tokio::time::timeout(polls, join(&mut self.receivers)).await;
        // Else one would receive what is given back now.
        self.receivers.iter().for_each(JoinHandle::abort);
        let released = tokio::time::timeout_at(deadline, shared.release_all()).await.unwrap_or_default();
        self.deleters.iter().for_each(JoinHandle::abort);
        self.gauges.abort();
        Ended { released, given_up: shared.run.metrics.given_up.get(), refused: shared.refused() }
    }
}

/// Waits until all have ended. What a panic of theirs means was told when it happened.
async fn join(tasks: &mut Vec<JoinHandle<()>>) {
    while let Some(task) = tasks.last_mut() {
        let _ = task.await;
        tasks.pop();
    }
}
