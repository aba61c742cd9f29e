//! From queue to ack book: messages are received, read, and what they bring is set on its way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{BodyObject, Job, MESSAGE_OVERHEAD, RejectedObject, Shared, What, patience};
use crate::base::now_micros;
use crate::decode::object::{ContentHash, ObjectId, is_no_log};
use crate::decode::reject::Reason;
use crate::ingest::book::{Lease, MessageKey};
use crate::ingest::metrics::BySource;
use crate::source::notice::{self, Announced, Notice};
use crate::source::queue::Message;

/// As long as SQS lets a poll wait: the fewest requests, and a message is told at once all the same.
const LONG_POLL: Duration = Duration::from_secs(20);
/// In a run that ends when nothing comes: no poll is cut off by its end, which might take messages with it.
const SHORT_POLL: Duration = Duration::from_secs(1);
/// How often a queue's settings are asked for before it is given up at the start.
const START_ATTEMPTS: u32 = 5;

impl Shared {
    /// Reads every queue's visibility timeout: also finds out whether the queues can be reached.
    pub(super) async fn read_visibility_timeouts(&self) {
        for (n, (feed, state)) in self.run.feeds.iter().zip(&self.state).enumerate() {
            let mut failures = 0;
            loop {
                match feed.queue.visibility_timeout().await {
                    Ok(timeout) => {
                        if timeout < Duration::from_secs(10) {
                            tracing::warn!(
                                queue = feed.queue.url(),
                                "its visibility timeout is {timeout:?}: messages come again before they can land; 60 s or more is better"
                            );
                        }
                        *state.visibility.lock() = timeout;
                        break;
                    }
                    Err(error) => {
                        failures += 1;
                        if self.stop.is_cancelled() {
                            return;
                        }
                        if error.needs_a_person() || failures == START_ATTEMPTS {
                            self.refuse(n, error.into());
                            break;
                        }
                        tracing::warn!("{error}; trying again");
                        tokio::time::sleep(patience(failures)).await;
                    }
                }
            }
        }
    }

    /// A receiver's life.
    pub(super) async fn receive_all(self: Arc<Self>, feed: usize) {
        let _stops_all = self.stop.clone().drop_guard();
        let Some(of) = self.run.feeds.get(feed) else { return };
        let wait = self.run.pace.until_idle.map_or(LONG_POLL, |idle| idle.min(SHORT_POLL));
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            self.wait_while_refused(feed).await;
            self.wait_for_room().await;
            if self.stop.is_cancelled() {
                // What a poll that is cut off was given would stay hidden.
                return;
            }
            let began = Instant::now();
            match of.queue.receive(wait).await {
                Ok(messages) => {
                    failures = 0;
                    if !self.state[feed].heard.swap(true, Ordering::Relaxed) {
                        self.heard_first(feed).await;
                    }
                    self.run.metrics.tell(of.queue.url(), None);
                    if messages.is_empty() {
                        *self.state[feed].quiet.lock() = Some(began);
                    } else {
                        *self.received.lock() = Instant::now();
                    }
                    self.admit_all(feed, messages).await;
                }
                Err(error) => {
                    failures += 1;
                    self.count_queue_error(&error);
                    if error.needs_a_person() && !self.state[feed].heard.load(Ordering::Relaxed) {
                        self.refuse(feed, error.into());
                        continue;
                    }
                    tracing::warn!(failures, "{error}; trying again");
                    self.run.metrics.tell(of.queue.url(), Some(error.to_string()));
                    tokio::select! {
                        () = self.stop.cancelled() => {}
                        () = tokio::time::sleep(patience(failures)) => {}
                    }
                }
            }
        }
    }

    /// A queue can be read that could not be when the run began: its messages are hidden for as long as it
    /// says.
    async fn heard_first(&self, feed: usize) {
        let was_refused = self.state[feed].refused.lock().is_some();
        if was_refused && let Ok(timeout) = self.run.feeds[feed].queue.visibility_timeout().await {
            *self.state[feed].visibility.lock() = timeout;
        }
        // Whether its objects can be read is another question, which reading them answers.
        if self.state[feed].denied.load(Ordering::Relaxed) == 0 {
            self.accept(feed);
        }
    }

    /// Waits until another batch of messages may be held.
    async fn wait_for_room(&self) {
        let pace = &self.run.pace;
        let has_room = |share: usize| {
            let book = self.book.lock();
            book.len() < pace.max_messages / share && book.weight() < pace.message_bytes / share
        };
        if has_room(1) {
            return;
        }
        self.waiting_for_room.fetch_add(1, Ordering::Relaxed);
        // Once it is full, half of it has to go: else every few deletions would be followed by a tiny batch.
        loop {
            let lighter = self.lighter.notified();
            if has_room(2) {
                break;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = lighter => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        self.waiting_for_room.fetch_sub(1, Ordering::Relaxed);
    }

    async fn admit_all(&self, feed: usize, messages: Vec<Message>) {
        let of = &self.run.feeds[feed];
        self.run
            .metrics
            .received
            .get_or_create(&BySource { source: of.source.id.clone() })
            .inc_by(messages.len() as u64);
        if self.stop.is_cancelled() && !messages.is_empty() {
            let receipts: Vec<String> = messages.into_iter().map(|m| m.receipt).collect();
            let _ = of.queue.hide(&receipts, Duration::ZERO).await;
            return;
        }
        // A poll waits long before there is a message: its lease begins when it is handed out.
        let lease = Lease::new(Instant::now(), *self.state[feed].visibility.lock());
        for message in messages {
            self.admit(feed, message, lease);
        }
    }

    /// Enters a message into the book, and sets what it brings on its way.
    fn admit(&self, feed: usize, message: Message, lease: Lease) {
        let key = MessageKey { queue: feed, id: message.id.clone() };
        let sent = message.sent.unwrap_or_else(now_micros);
        let weight = MESSAGE_OVERHEAD + message.body.len();
        let mut book = self.book.lock();
        if !book.hold(key.clone(), message.receipt.clone(), sent, weight, lease) {
            tracing::debug!(message = key.id, "received again while it was held: its lease had ended");
            return;
        }
        drop(book);
        let items = self.items(feed, &message);
        let mut book = self.book.lock();
        for what in items {
            book.weigh(&key, what.weight());
            match book.wait_for(&key, what) {
                Some(no) => _ = self.jobs.send(Job { no, ..Job::default() }),
                None => _ = self.run.metrics.duplicates.inc(),
            }
        }
        if book.seal(&key) {
            self.completed(key);
        }
    }

    /// What a message brings.
    fn items(&self, feed: usize, message: &Message) -> Vec<What> {
        let queue = self.run.feeds[feed].queue.url();
        match notice::read(&message.body) {
            Notice::Objects { created, malformed } => {
                let mut items = self.announced_all(feed, created, message);
                items.extend(malformed.map(|why| self.malformed(feed, message, &why)));
                items
            }
            Notice::Records(text) => {
                let (hash, id) = self.identity(feed, &text);
                vec![What::Body(
                    feed,
                    BodyObject { hash, id, sent: message.sent, bytes: text.into_bytes().into() },
                )]
            }
            Notice::Nothing(why) => {
                tracing::debug!(queue, message = message.id, "acknowledged: {why}");
                self.run.metrics.ignored.inc();
                Vec::new()
            }
            Notice::Subscription { topic } => {
                tracing::warn!(
                    queue,
                    message = message.id,
                    "topic {topic} asks this queue to confirm a subscription; it is not followed: if it is yours, subscribe again and confirm it with `aws sns confirm-subscription`"
                );
                self.run.metrics.ignored.inc();
                Vec::new()
            }
            Notice::Malformed(why) => vec![self.malformed(feed, message, &why)],
        }
    }

    /// A message, or some of its entries, that can't be read: one reject, with the whole body.
    fn malformed(&self, feed: usize, message: &Message, why: &str) -> What {
        let queue = self.run.feeds[feed].queue.url();
        tracing::warn!(queue, message = message.id, "{why}; that becomes a reject, with the message's body");
        let (etag, id) = self.identity(feed, &message.body);
        let rejected = RejectedObject {
            id,
            reason: Reason::InvalidMessage,
            message: format!("{queue}: message {}: {why}", message.id),
            bucket: None,
            key: queue.to_owned(),
            etag,
            sent: message.sent,
            payload: Some(message.body.clone().into_bytes().into()),
        };
        What::Reject(feed, rejected)
    }

    /// The hash and the object id of a message's body.
    fn identity(&self, feed: usize, body: &str) -> (String, u128) {
        let hash = ContentHash::of(body.as_bytes()).expect("memory can be read");
        let id = ObjectId::of_message(&self.run.feeds[feed].source.id, &hash);
        (hash.to_string(), id.0)
    }

    fn announced_all(&self, feed: usize, announced: Vec<Announced>, message: &Message) -> Vec<What> {
        let source = &self.run.feeds[feed].source;
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
        self.run.metrics.skipped.inc_by(others.len() as u64);
        let logs = logs.into_iter().map(|a| What::Announced(feed, a));
        logs.chain(foreign.into_iter().map(|a| self.foreign(feed, a, message))).collect()
    }

    fn foreign(&self, feed: usize, announced: Announced, message: &Message) -> What {
        let source = &self.run.feeds[feed].source;
        let Announced { bucket, key, etag, .. } = announced;
        let etag = etag.unwrap_or_default();
        let lists =
            if source.buckets.is_empty() { "no bucket".to_owned() } else { source.buckets.join(", ") };
        let rejected = RejectedObject {
            id: ObjectId::of_unread(Reason::ForeignBucket.code(), &bucket, &key, &etag).0,
            reason: Reason::ForeignBucket,
            message: format!(
                "s3://{bucket}/{key}: not fetched: source {} lists {lists}; add the bucket to it if it is yours",
                source.id
            ),
            bucket: Some(bucket),
            key,
            etag,
            sent: message.sent,
            payload: None,
        };
        What::Reject(feed, rejected)
    }
}
