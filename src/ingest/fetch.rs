//! Fetches the bytes of items. Each source has its own stage, so that none waits for another. Failures are
//! classified by what they need: a retry, a reject, or a person.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tokio_util::time::DelayQueue;

use super::ending::Ending;
use super::failures::{already_there, item_panicked, read_failed};
use super::feed::{Feed, Feeds};
use super::identity::Identified;
use super::item::{Content, Fetched, Held, Item, ItemKind, Outcome, ReplayedReject, Unread};
use super::metrics::Metrics;
use super::pressure::{Idle, Pressure};
use super::room::{Room, Taken};
use crate::base::failure::{Failure, FailureKind};
use crate::base::panics::caught;
use crate::decode::object::{Object, ObjectId};
use crate::decode::reject::Reason;
use crate::decode::split::Place;
use crate::source::bucket::{Body, Buckets, Wanted, is_same_etag};
use crate::source::local::LocalError;
use crate::source::notice::Announced;
use crate::source::origin::{Input, Origin, of_file, of_s3};
use crate::table::Lake;

/// What is reserved for an object of which nothing tells the size.
const UNKNOWN_SIZE: u64 = 1 << 20;

/// An object that was read, or can be.
struct Got {
    object: Object,
    input: Input,
    room: Taken,
}

/// Why an object was not read.
pub(super) struct NotRead {
    location: String,
    why: WhyNot,
}

enum WhyNot {
    Store(Failure),
    File(LocalError),
}

/// Reads the objects of one source.
pub(super) struct Fetcher {
    pub feed: Arc<Feed>,
    pub feeds: Arc<Feeds>,
    pub lake: Option<Arc<Lake>>,
    pub metrics: Arc<Metrics>,
    pub room: Arc<Room>,
    /// Objects of at most this many stored bytes are held whole.
    pub whole: u64,
    /// Objects that are read while they are decoded, of all sources: they never occupy every worker.
    pub remote: Arc<Semaphore>,
}

impl Fetcher {
    /// Fetches an item. None: it is settled, or set on its way again.
    async fn fetch(&self, mut item: Item) -> Option<Fetched> {
        match &mut item.kind {
            ItemKind::Announced(announced) => {
                let announced = announced.clone();
                self.fetch_announced(item, announced).await
            }
            ItemKind::Listed(origin) => {
                let origin = origin.clone();
                self.fetch_listed(item, origin).await
            }
            ItemKind::Held(held) => {
                let Held { mut object, bytes, place, room } = held.clone();
                if room.is_some() {
                    (held.bytes, held.room) = (None, None);
                }
                let Some(bytes) = bytes else { return self.let_go(&item) };
                self.feed.attribute(&mut object);
                let (content, log_type) =
                    (Content::Input(Input::Memory(bytes), place), self.feed.log_type(""));
                self.admit(item, object, content, log_type, room).await
            }
            ItemKind::Unread(unread) => {
                let Unread { mut object, reason, message, payload } = unread.clone();
                self.feed.attribute(&mut object);
                let content = Content::Reject { reason, message, payload: payload.map(|p| p.to_vec()) };
                self.admit(item, object, content, None, None).await
            }
            ItemKind::Replayed(replayed) => {
                let ReplayedReject { reject, object, log_type, rejected, room, .. } = replayed.clone();
                let Some(rejected) = rejected.lock().take() else { return self.let_go(&item) };
                let (entry, content) = (ObjectId::of_replay(reject), Content::Replay { reject, rejected });
                self.pass(Fetched { item, entry, object, content, log_type, room: Some(room), remote: None })
                    .await
            }
        }
    }

    /// What came with its bytes, which are decoded already.
    fn let_go(&self, item: &Item) -> Option<Fetched> {
        let location = item.kind.location();
        let why = format!("{location}: it did not land, and what was read of it is gone: run it again");
        item.settle(Outcome::GivenUp(&why));
        None
    }

    async fn fetch_announced(&self, mut item: Item, announced: Announced) -> Option<Fetched> {
        if let (Some(etag), None) = (&announced.etag, &announced.version)
            && self.has_landed(ObjectId::of_s3(&announced.bucket, &announced.key, etag))
        {
            self.already_there(item).await;
            return None;
        }
        let got = match &self.feed.buckets {
            Some(buckets) => self.get(buckets, &announced).await,
            None => unreachable!("only queues announce, and theirs are sources with buckets"),
        };
        match got {
            Ok(got) => {
                self.note_overwritten(&mut item, &announced, &got.object);
                self.fetched(item, got).await
            }
            Err(not_read) => match not_read.names_nothing(&announced) {
                Some(why) => self.unread(item, &announced, Reason::InvalidMessage, &why).await,
                None => match self.read_failed(item, not_read) {
                    Some((item, why)) => self.unread(item, &announced, Reason::Missing, &why).await,
                    None => None,
                },
            },
        }
    }

    async fn fetch_listed(&self, item: Item, origin: Origin) -> Option<Fetched> {
        if origin.likely_id().is_some_and(|id| self.has_landed(id)) {
            self.already_there(item).await;
            return None;
        }
        let got = match origin {
            Origin::File(file) => {
                let location = file.path.display().to_string();
                let size = self.whole.min(file.path.metadata().map_or(UNKNOWN_SIZE, |m| m.len()));
                let (room, granted) = self.room.take_patiently(self.feed.no, size).await;
                let whole = if granted < size { granted } else { self.whole };
                let reading = tokio::task::spawn_blocking(move || of_file(&file, whole));
                match reading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                    Ok((object, input)) => Ok(Got { object, input, room }),
                    Err(error) => Err(NotRead { location, why: WhyNot::File(error) }),
                }
            }
            Origin::S3 { buckets, wanted, head } => self.get_in_room(&buckets, wanted, Some(head.size)).await,
        };
        match got {
            Ok(got) => self.fetched(item, got).await,
            Err(not_read) => {
                let location = not_read.location.clone();
                if let Some((item, why)) = self.read_failed(item, not_read) {
                    item.settle(Outcome::GivenUp(&format!("{location}: {why}")));
                }
                None
            }
        }
    }

    async fn fetched(&self, item: Item, got: Got) -> Option<Fetched> {
        let Got { mut object, input, room } = got;
        self.feeds.was_read(&self.feed, object.bucket.as_deref().unwrap_or_default());
        if input.is_empty() {
            self.metrics.skipped.inc();
            item.settle(Outcome::Empty);
            return None;
        }
        self.feed.attribute(&mut object);
        let log_type = self.feed.log_type(&object.key);
        self.admit(item, object, Content::Input(input, Place::START), log_type, Some(room)).await
    }

    /// What is there lands, whatever was announced. That this is not what was announced is told once: unless
    /// its bucket keeps versions, nobody ever reads that.
    fn note_overwritten(&self, item: &mut Item, announced: &Announced, object: &Object) {
        let Some(told) = announced.etag.as_ref().filter(|_| announced.version.is_none()) else { return };
        if item.is_told_overwritten || is_same_etag(told, &object.etag) {
            return;
        }
        item.is_told_overwritten = true;
        self.metrics.overwritten.inc();
        tracing::warn!(
            bucket = announced.bucket,
            key = object.key,
            announced = told,
            found = object.etag,
            "overwritten before it was read: the current content lands, the announced content is lost; write each key only once"
        );
    }

    fn has_landed(&self, id: ObjectId) -> bool {
        self.lake.as_ref().is_some_and(|lake| lake.contains(id.0))
    }

    async fn admit(
        &self,
        item: Item,
        object: Object,
        content: Content,
        log_type: Option<usize>,
        room: Option<Taken>,
    ) -> Option<Fetched> {
        let entry = object.id;
        self.pass(Fetched { item, entry, object, content, log_type, room, remote: None }).await
    }

    /// Lets an object pass once: what is on its way already is waited for, and what has landed is settled.
    async fn pass(&self, fetched: Fetched) -> Option<Fetched> {
        if fetched.item.settle.identify(fetched.item.no, fetched.entry) == Identified::OnItsWay {
            return None;
        }
        if self.has_landed(fetched.entry) {
            self.already_there(fetched.item).await;
            return None;
        }
        let remote = match &fetched.content {
            Content::Input(input, _) if input.is_remote() => {
                Some(self.remote.clone().acquire_owned().await.expect("it is never closed"))
            }
            _ => None,
        };
        Some(Fetched { remote, ..fetched })
    }

    async fn already_there(&self, item: Item) {
        already_there(item, self.lake.as_deref(), &self.feeds, &self.metrics).await;
    }

    /// The object by its decoded key, or by its literal one if there is none of the decoded.
    async fn get(&self, buckets: &Arc<dyn Buckets>, announced: &Announced) -> Result<Got, NotRead> {
        let wanted = |key: &String| Wanted {
            bucket: announced.bucket.clone(),
            key: key.clone(),
            version: announced.version.clone(),
        };
        let first = self.get_in_room(buckets, wanted(&announced.key), announced.size).await;
        match (first, &announced.literal_key) {
            (Err(failed), Some(literal)) if failed.kind() == Some(FailureKind::NotFound) => {
                let second = self.get_in_room(buckets, wanted(literal), announced.size).await;
                // Of two that are not there, the decoded key is the one to tell of.
                let is_there = |other: &NotRead| other.kind() != Some(FailureKind::NotFound);
                second.map_err(|other| if is_there(&other) { other } else { failed })
            }
            (first, _) => first,
        }
    }

    async fn get_in_room(
        &self,
        buckets: &Arc<dyn Buckets>,
        wanted: Wanted,
        size: Option<u64>,
    ) -> Result<Got, NotRead> {
        let mut reserve = size.unwrap_or(UNKNOWN_SIZE).clamp(1 << 10, self.whole);
        loop {
            let (room, granted) = self.room.take_patiently(self.feed.no, reserve).await;
            match buckets.get(&wanted, granted).await {
                Err(failure) => {
                    return Err(NotRead { location: wanted.location(), why: WhyNot::Store(failure) });
                }
                // What told the size was wrong: again, with room enough. Where there is none, it is read in
                // parts.
                Ok((head, Body::Larger))
                    if granted == reserve && (reserve + 1..=self.whole).contains(&head.size) =>
                {
                    reserve = head.size
                }
                Ok((head, body)) => {
                    let (object, input) = of_s3(buckets.clone(), wanted, head, body);
                    return Ok(Got { object, input, room });
                }
            }
        }
    }

    /// An object can't be read: it is set on its way again, or given up. Otherwise nothing is there, and why
    /// that is believed.
    fn read_failed(&self, item: Item, not_read: NotRead) -> Option<(Item, String)> {
        let NotRead { location, why } = not_read;
        match why {
            WhyNot::Store(failure) => {
                self.metrics.count_fetch_error(failure.kind);
                read_failed(item, &location, &failure, &self.feeds)
            }
            WhyNot::File(error @ LocalError::Changed { .. }) => {
                let failure = Failure { kind: FailureKind::Changed, message: error.to_string() };
                read_failed(item, &location, &failure, &self.feeds)
            }
            WhyNot::File(error) => {
                item.settle(Outcome::GivenUp(&error.to_string()));
                None
            }
        }
    }

    /// An announced object that there is nothing to read of becomes a reject.
    async fn unread(&self, item: Item, announced: &Announced, reason: Reason, why: &str) -> Option<Fetched> {
        let Announced { bucket, key, etag, size, version, .. } = announced.clone();
        let etag = etag.or(version).unwrap_or_default();
        let message = format!("s3://{bucket}/{key}: {why}");
        tracing::warn!("{message}; it becomes a reject");
        let mut object = Object {
            id: ObjectId::of_unread(reason.code(), &bucket, &key, &etag),
            bucket: Some(bucket),
            key,
            etag,
            size: size.unwrap_or(0),
            last_modified: None,
            source_id: None,
            source_label: None,
        };
        self.feed.attribute(&mut object);
        self.admit(item, object, Content::Reject { reason, message, payload: None }, None, None).await
    }
}

impl NotRead {
    fn kind(&self) -> Option<FailureKind> {
        match &self.why {
            WhyNot::Store(failure) => Some(failure.kind),
            WhyNot::File(_) => None,
        }
    }

    /// Whether no object can be what the notice names: it is S3 that says so.
    fn names_nothing(&self, announced: &Announced) -> Option<String> {
        let WhyNot::Store(failure) = &self.why else { return None };
        let version = announced.version.is_some() && failure.message.to_lowercase().contains("version id");
        let is_so = failure.message.starts_with("KeyTooLongError")
            || (failure.message.starts_with("InvalidArgument") && version);
        is_so.then(|| format!("no object can have this name: {failure}"))
    }
}

/// One source's items, fetched several at once.
pub(super) struct FetchStage {
    pub fetcher: Arc<Fetcher>,
    /// Items fetched at once.
    pub at_once: usize,
    pub fresh: mpsc::Receiver<Item>,
    /// What is to be fetched once more, and after how long.
    pub again: mpsc::UnboundedReceiver<(Item, Duration)>,
    /// To the workers.
    pub ready: mpsc::Sender<Fetched>,
    /// Items that are not settled.
    pub under_way: TaskTracker,
    pub ending: Arc<Ending>,
    pub pressure: Arc<Pressure>,
}

impl FetchStage {
    /// Until nothing is taken in any more and everything is settled; or until it is stopped: then what is
    /// being fetched goes on to the workers, and what waits is not begun.
    pub async fn run(mut self) {
        let (mut waiting, mut running) = (DelayQueue::new(), JoinSet::new());
        let mut is_open = true;
        loop {
            let has_room = running.len() < self.at_once;
            let is_idle = !is_open && running.is_empty() && waiting.is_empty() && self.again.is_empty();
            let idle = is_idle.then(|| self.pressure.idle());
            tokio::select! {
                biased;
                () = self.ending.stop.cancelled() => break,
                Some(_) = running.join_next(), if !running.is_empty() => {}
                Some((item, after)) = self.again.recv() => drop(waiting.insert(item, after)),
                Some(item) = waiting.next(), if has_room => {
                    running.spawn(self.fetch(item.into_inner()));
                }
                item = self.fresh.recv(), if is_open && has_room => match item {
                    Some(item) => _ = running.spawn(self.fetch(item)),
                    None => {
                        is_open = false;
                        self.under_way.close();
                    }
                },
                () = self.under_way.wait(), if is_idle => {
                    idle.into_iter().for_each(Idle::for_good);
                    return;
                }
            }
            drop(idle);
        }
        // What the workers hold lands now: a fetch that hangs keeps nothing of the others waiting.
        self.pressure.wait(self.fetcher.feed.no).for_good();
        self.again.close();
        self.fresh.close();
        while let Some((item, _)) = self.again.recv().await {
            waiting.insert(item, Duration::ZERO);
        }
        let mut left: Vec<Item> = Vec::new();
        while let Ok(item) = self.fresh.try_recv() {
            left.push(item);
        }
        while let Some(key) = waiting.peek() {
            left.push(waiting.remove(&key).into_inner());
        }
        left.iter().for_each(|item| item.settle(Outcome::NotBegun));
        while running.join_next().await.is_some() {}
    }

    /// Fetches an item and hands it to the workers.
    fn fetch(&self, item: Item) -> impl Future<Output = ()> + use<> {
        let (fetcher, ready) = (self.fetcher.clone(), self.ready.clone());
        async move {
            match caught(fetcher.fetch(item.clone())).await {
                Ok(Some(fetched)) => drop(ready.send(fetched).await),
                Ok(None) => {}
                Err(said) => item_panicked(&item, &said, &fetcher.metrics),
            }
        }
    }
}
