//! Messages are received, entered into the ack book, and read; what they announce is handed in.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

use super::IntakeContext;
use crate::base::clock::{self, Instant};
use crate::base::panics::caught_here;
use crate::base::{jittered, now_micros};
use crate::config::Source;
use crate::decode::object::{ContentHash, Object, ObjectId, is_no_log};
use crate::decode::reject::Reason;
use crate::decode::split::Place;
use crate::ingest::attempts::delay;
use crate::ingest::feed::Feeds;
use crate::ingest::item::{Held, ItemKind, Unread};
use crate::ingest::metrics::BySource;
use crate::ingest::pipeline::Entrance;
use crate::ingest::settle::ack::Acks;
use crate::ingest::settle::book::{Holding, Lease, Load, MessageKey};
use crate::source::notice::{self, Announced, Notice};
use crate::source::queue::{Message, Queue};

/// As long as SQS lets a poll wait: the fewest requests, and a message is told at once all the same.
const LONG_POLL: Duration = Duration::from_secs(20);
/// In a run that ends when nothing comes: no poll is cut off by its end, which might take messages with it.
const SHORT_POLL: Duration = Duration::from_secs(1);
/// How often a queue's settings are asked for before it is given up at the start.
const START_ATTEMPTS: u32 = 5;
/// What a message costs in memory besides its body.
const MESSAGE_OVERHEAD: usize = 2 << 10;
/// And each thing that it brings.
const ITEM_OVERHEAD: usize = 1 << 10;

/// One queue, and what is known of it while it is read.
#[derive(Debug)]
pub struct QueueIntake {
    pub no: usize,
    pub queue: Arc<dyn Queue>,
    /// What its messages bring is attributed to.
    pub source: Source,
    /// Its visibility timeout, as it was last read.
    pub visibility: Arc<Mutex<Duration>>,
    /// Its visibility timeout was read, or it is refused.
    opened: OnceCell<()>,
    /// Whether a message was ever received.
    has_answered: AtomicBool,
    /// When the last poll began that brought nothing.
    quiet: Mutex<Option<Instant>>,
}

impl QueueIntake {
    /// Nothing was received of it yet.
    pub fn new(no: usize, queue: Arc<dyn Queue>, source: Source) -> Self {
        let visibility = Arc::new(Mutex::new(Duration::from_secs(30)));
        Self {
            no,
            queue,
            source,
            visibility,
            opened: OnceCell::new(),
            has_answered: false.into(),
            quiet: Mutex::default(),
        }
    }

    /// Whether the queue itself has said, in a poll that began after `since`, that there is nothing: a slow
    /// answer is not an empty one.
    pub fn is_quiet_since(&self, since: Instant) -> bool {
        self.quiet.lock().is_some_and(|began| began > since)
    }

    /// Waits until the queue was reached once, or is refused.
    pub async fn opened(&self, feeds: &Feeds, stop: &CancellationToken) {
        tokio::select! {
            _ = self.opened.get_or_init(|| self.open(feeds, stop)) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Reads the queue's visibility timeout: also finds out whether it can be reached.
    async fn open(&self, feeds: &Feeds, stop: &CancellationToken) {
        let mut failures = 0;
        loop {
            match self.queue.visibility_timeout().await {
                Ok(timeout) => {
                    if timeout < Duration::from_secs(10) {
                        tracing::warn!(
                            queue = self.queue.url(),
                            "visibility timeout {timeout:?} is too short: messages are redelivered before they can land; set 60 s or more"
                        );
                    }
                    *self.visibility.lock() = timeout;
                    return;
                }
                Err(error) => {
                    failures += 1;
                    if stop.is_cancelled() {
                        return;
                    }
                    if error.needs_a_person() || failures == START_ATTEMPTS {
                        return feeds.refuse(&feeds.all[self.no], error.into());
                    }
                    tracing::warn!("{error}; trying again");
                    clock::sleep(jittered(delay(failures))).await;
                }
            }
        }
    }
}

/// What all queues may hold together.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At most this much.
    pub most: Load,
    /// For so many queues.
    pub queues: usize,
}

impl Limits {
    /// Whether a queue may receive more. Half of everything is shared out, so that no queue whose objects
    /// can't be read keeps the others waiting; the other half is for whoever comes.
    pub fn has_room(&self, load: &BTreeMap<usize, Load>, queue: usize) -> bool {
        let shares = if self.queues > 1 { 2 * self.queues } else { 1 };
        let (messages, bytes) = (self.most.messages / shares, self.most.bytes / shares);
        let own = load.get(&queue).copied().unwrap_or_default();
        if own.messages < messages.max(1) && own.bytes < bytes.max(1) {
            return true;
        }
        let beyond = |load: &Load| Load {
            messages: load.messages.saturating_sub(messages),
            bytes: load.bytes.saturating_sub(bytes),
        };
        let common = load.values().map(beyond).fold(Load::default(), |a, b| Load {
            messages: a.messages + b.messages,
            bytes: a.bytes + b.bytes,
        });
        self.queues > 1 && common.messages < self.most.messages / 2 && common.bytes < self.most.bytes / 2
    }

    /// The same for a part of everything.
    fn part(&self, part: usize) -> Self {
        let Load { messages, bytes } = self.most;
        Self { most: Load { messages: messages / part, bytes: bytes / part }, ..*self }
    }
}

/// Receives one queue's messages. A queue may have several.
#[derive(Clone)]
pub struct Receiver {
    pub intake: Arc<QueueIntake>,
    /// Where what its messages bring is handed in.
    pub entrance: Entrance,
    pub acks: Arc<Acks>,
    /// Told of each message, whose lease is to be kept.
    pub leases: mpsc::UnboundedSender<MessageKey>,
    /// How much may be held.
    pub limits: Limits,
    pub context: IntakeContext,
}

impl Receiver {
    /// Until the run is stopped.
    pub async fn run(self) {
        let _stops_all = self.context.ending.stop.clone().drop_guard();
        self.intake.opened(&self.context.feeds, &self.context.ending.stop).await;
        let queue = &self.intake.queue;
        let wait = self.context.pace.until_idle.map_or(LONG_POLL, |idle| idle.min(SHORT_POLL));
        let mut failures = 0;
        while !self.context.ending.stop.is_cancelled() {
            self.context.feeds.wait_while_refused(self.entrance.feed()).await;
            self.wait_for_room().await;
            if self.context.ending.stop.is_cancelled() {
                // What a poll that is cut off was given would stay hidden.
                return;
            }
            let began = clock::now();
            match queue.receive(wait).await {
                Ok(messages) => {
                    failures = 0;
                    let is_first = !self.intake.has_answered.swap(true, Ordering::Relaxed);
                    if is_first || self.entrance.feed().is_refused() {
                        self.answered_again().await;
                    }
                    self.context.metrics.clear_problem(queue.url());
                    if messages.is_empty() {
                        *self.intake.quiet.lock() = Some(began);
                    } else {
                        *self.context.received.lock() = clock::now();
                    }
                    self.admit_all(messages).await;
                }
                Err(error) => {
                    failures += 1;
                    self.context.metrics.count_queue_error(&error);
                    if error.needs_a_person() {
                        let feed = self.entrance.feed();
                        match self.intake.has_answered.load(Ordering::Relaxed) {
                            false => self.context.feeds.refuse(feed, error.into()),
                            true => self.context.feeds.pause(feed, error.into()),
                        }
                        continue;
                    }
                    tracing::warn!(failures, "{error}; trying again");
                    self.context.metrics.set_problem(queue.url(), error.to_string());
                    tokio::select! {
                        () = self.context.ending.stop.cancelled() => {}
                        () = clock::sleep(jittered(delay(failures))) => {}
                    }
                }
            }
        }
    }

    /// A queue can be read that could perhaps not be before: its messages are hidden for as long as it says.
    async fn answered_again(&self) {
        let feed = self.entrance.feed();
        if feed.is_refused()
            && let Ok(timeout) = self.intake.queue.visibility_timeout().await
        {
            *self.intake.visibility.lock() = timeout;
        }
        self.context.feeds.queue_answers(feed);
    }

    /// Waits until another batch of messages may be held.
    async fn wait_for_room(&self) {
        let has_room = |limits: Limits| limits.has_room(self.acks.book.lock().load(), self.intake.no);
        if has_room(self.limits) {
            return;
        }
        let _waiting = self.context.pressure.wait(self.entrance.feed().no);
        // Once it is full, half of it has to go: else every few deletions would be followed by a tiny batch.
        loop {
            let lighter = self.acks.lighter.notified();
            if has_room(self.limits.part(2)) {
                return;
            }
            tokio::select! {
                () = self.context.ending.stop.cancelled() => return,
                () = lighter => {}
                () = clock::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    async fn admit_all(&self, messages: Vec<Message>) {
        let source = BySource { source: self.intake.source.id.clone() };
        self.context.metrics.received.get_or_create(&source).inc_by(messages.len() as u64);
        if self.context.ending.stop.is_cancelled() && !messages.is_empty() {
            let receipts: Vec<String> = messages.into_iter().map(|m| m.receipt).collect();
            let _ = self.intake.queue.hide(&receipts, Duration::ZERO).await;
            return;
        }
        // A poll waits long before there is a message: its lease begins when it is handed out.
        let lease = Lease::new(clock::now(), *self.intake.visibility.lock());
        // All are held before the first is read: handing in what it brings may take time.
        let held: Vec<_> =
            messages.into_iter().filter_map(|message| Some((self.hold(&message, lease)?, message))).collect();
        for (holding, message) in held {
            match caught_here(|| self.items(&message)) {
                Ok(items) => self.admit(holding, items).await,
                Err(said) => self.message_panicked(&holding.key, &said),
            }
        }
    }

    /// Enters a message into the book. None: it is held already.
    fn hold(&self, message: &Message, lease: Lease) -> Option<Holding> {
        let key = MessageKey { queue: self.intake.no, id: message.id.clone() };
        let sent = message.sent.unwrap_or_else(now_micros);
        let weight = MESSAGE_OVERHEAD + message.body.len();
        let holding = self.acks.book.lock().hold(key.clone(), message.receipt.clone(), sent, weight, lease);
        if holding.is_none() {
            tracing::debug!(message = key.id, "received again while it was held: its lease had ended");
        }
        // Who keeps leases is there as long as the run.
        let _ = self.leases.send(key);
        holding
    }

    /// The message comes again when its lease ends, and in the end goes to the dead letters.
    fn message_panicked(&self, key: &MessageKey, said: &str) {
        self.context.metrics.panics.inc();
        self.acks.book.lock().forget(key);
        tracing::error!(
            queue = self.intake.queue.url(),
            message = key.id,
            "this program panicked over the message: {said}; it stays in its queue: please report this"
        );
    }

    /// Hands in what a message brings. Once the run is stopped, nothing more of it: it goes back.
    async fn admit(&self, holding: Holding, items: Vec<ItemKind>) {
        for kind in items {
            let no = {
                let mut book = self.acks.book.lock();
                book.weigh(&holding, weight(&kind));
                book.wait_for(&holding, name(&kind))
            };
            match no {
                Some(no) if self.entrance.take_in(no, kind).await.is_err() => return,
                Some(_) => {}
                None => _ = self.context.metrics.duplicates.inc(),
            }
        }
        if self.acks.book.lock().seal(&holding) {
            self.acks.completed(holding.key);
        }
    }

    fn items(&self, message: &Message) -> Vec<ItemKind> {
        let queue = self.intake.queue.url();
        match notice::read(&message.body) {
            Notice::Objects { created, malformed } => {
                let mut items = self.announced(created, message);
                items.extend(malformed.map(|why| self.malformed(message, &why)));
                items
            }
            Notice::Records(text) => {
                let object = self.body(message, &text);
                vec![ItemKind::Held(Held {
                    object,
                    bytes: Some(text.into_bytes().into()),
                    place: Place::START,
                    room: None,
                })]
            }
            Notice::Nothing(why) => {
                tracing::debug!(queue, message = message.id, "acknowledged: {why}");
                self.context.metrics.ignored.inc();
                Vec::new()
            }
            Notice::Subscription { topic } => {
                tracing::warn!(
                    queue,
                    message = message.id,
                    "topic {topic} asks this queue to confirm a subscription; it is not followed: if it is yours, subscribe again and confirm it with `aws sns confirm-subscription`"
                );
                self.context.metrics.ignored.inc();
                Vec::new()
            }
            Notice::Malformed(why) => vec![self.malformed(message, &why)],
        }
    }

    /// A message's body as an object.
    fn body(&self, message: &Message, text: &str) -> Object {
        let hash = ContentHash::of(text.as_bytes()).expect("memory can be read");
        Object {
            id: ObjectId::of_message(&self.intake.source.id, &hash),
            bucket: None,
            key: self.intake.queue.url().to_owned(),
            etag: hash.to_string(),
            size: text.len() as u64,
            last_modified: message.sent,
            source_id: None,
            source_label: None,
        }
    }

    /// A message, or some of its entries, that can't be read: one reject, with the whole body.
    fn malformed(&self, message: &Message, why: &str) -> ItemKind {
        let queue = self.intake.queue.url();
        tracing::warn!(queue, message = message.id, "{why}; that becomes a reject, with the message's body");
        ItemKind::Unread(Unread {
            object: self.body(message, &message.body),
            reason: Reason::InvalidMessage,
            message: format!("{queue}: message {}: {why}", message.id),
            payload: Some(message.body.clone().into_bytes().into()),
        })
    }

    fn announced(&self, announced: Vec<Announced>, message: &Message) -> Vec<ItemKind> {
        let source = &self.intake.source;
        let (listed, foreign): (Vec<_>, Vec<_>) =
            announced.into_iter().partition(|a| source.buckets.contains(&a.bucket));
        if let Some(Announced { bucket, key, .. }) = foreign.first() {
            tracing::warn!(
                source = source.id,
                message = message.id,
                objects = foreign.len(),
                "s3://{bucket}/{key}: not fetched, because the source doesn't list this bucket; each object becomes a reject"
            );
        }
        let (logs, others): (Vec<_>, Vec<_>) = listed.into_iter().partition(|a| !is_no_log(&a.key));
        self.context.metrics.skipped.inc_by(others.len() as u64);
        let logs = logs.into_iter().map(ItemKind::Announced);
        logs.chain(foreign.into_iter().map(|a| self.foreign(a, message))).collect()
    }

    /// An object of a bucket that is not the source's.
    fn foreign(&self, announced: Announced, message: &Message) -> ItemKind {
        let source = &self.intake.source;
        let Announced { bucket, key, etag, .. } = announced;
        let etag = etag.unwrap_or_default();
        let lists =
            if source.buckets.is_empty() { "no bucket".to_owned() } else { source.buckets.join(", ") };
        let why = format!(
            "s3://{bucket}/{key}: not fetched: source {} lists {lists}; add the bucket to it if it is yours",
            source.id
        );
        let object = Object {
            id: ObjectId::of_unread(Reason::ForeignBucket.code(), &bucket, &key, &etag),
            bucket: Some(bucket),
            key,
            etag,
            size: 0,
            last_modified: message.sent,
            source_id: None,
            source_label: None,
        };
        ItemKind::Unread(Unread { object, reason: Reason::ForeignBucket, message: why, payload: None })
    }
}

/// What an item is called in the book: the same for two messages that announce the same.
fn name(kind: &ItemKind) -> u128 {
    match kind {
        ItemKind::Held(Held { object, .. }) | ItemKind::Unread(Unread { object, .. }) => object.id.0,
        ItemKind::Announced(announced) => {
            let half = |salt: u8| {
                let mut hasher = DefaultHasher::new();
                (salt, announced).hash(&mut hasher);
                u128::from(hasher.finish())
            };
            half(0) << 64 | half(1)
        }
        ItemKind::Listed(_) | ItemKind::Replayed(_) => unreachable!("queues announce"),
    }
}

/// What it costs in memory while it is held, besides its message: its names, and copies of them.
fn weight(kind: &ItemKind) -> usize {
    let text = match kind {
        ItemKind::Announced(a) => {
            a.bucket.len() + a.key.len() + a.literal_key.as_ref().map_or(0, String::len)
        }
        ItemKind::Unread(Unread { object, message, payload, .. }) => {
            object.key.len() + message.len() + payload.as_ref().map_or(0, Bytes::len)
        }
        ItemKind::Held(_) | ItemKind::Listed(_) | ItemKind::Replayed(_) => 0,
    };
    ITEM_OVERHEAD + 2 * text
}
