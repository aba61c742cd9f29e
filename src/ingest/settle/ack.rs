//! Messages whose objects have landed are deleted from their queue; those whose objects can't land for now
//! stay in it; those that are held when the run ends go back.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::book::{Book, MessageKey};
use crate::base::panics::caught;
use crate::base::{clock, jittered, now_micros};
use crate::decode::object::ObjectId;
use crate::ingest::attempts::delay;
use crate::ingest::identity::{Identified, ItemNo};
use crate::ingest::item::{Item, Outcome, Settle};
use crate::ingest::metrics::Metrics;
use crate::source::queue::{BATCH, Entry, Queue};

/// Messages that are complete are deleted together with those that follow within this.
const LINGER: Duration = Duration::from_millis(20);
/// Messages deleted together, at most.
const MAX_DELETED_AT_ONCE: usize = 500;
/// Batch requests at once: thousands of messages may land, or be due, together.
pub(super) const REQUESTS_AT_ONCE: usize = 32;
/// A message that can't be deleted so often comes again; the ledger knows that it has landed.
const DELETE_ATTEMPTS: u32 = 6;
/// How often the gauges are set.
const GAUGES_EVERY: Duration = Duration::from_millis(500);

/// The ack book, and the way to those who delete what is complete.
#[derive(Debug)]
pub struct Acks {
    /// See [`Book`]. Items are called by a hash of what they are.
    pub book: Mutex<Book<u128>>,
    /// The book has become lighter.
    pub lighter: Notify,
    /// For each queue.
    complete: Vec<mpsc::UnboundedSender<MessageKey>>,
    metrics: Arc<Metrics>,
}

/// The messages of one queue that are complete.
pub type Complete = mpsc::UnboundedReceiver<MessageKey>;

impl Acks {
    /// An empty book for so many queues.
    pub fn new(queues: usize, metrics: Arc<Metrics>) -> (Arc<Self>, Vec<Complete>) {
        let (complete, to_delete) = (0..queues).map(|_| mpsc::unbounded_channel()).unzip();
        (Arc::new(Self { book: Mutex::default(), lighter: Notify::new(), complete, metrics }), to_delete)
    }

    /// Everything that a message announces has landed.
    pub fn completed(&self, key: MessageKey) {
        // Who deletes is there as long as the run.
        let _ = self.complete[key.queue].send(key);
    }

    /// Those that are still held, with their receipts.
    fn receipts(&self, keys: Vec<MessageKey>) -> (Vec<MessageKey>, Vec<String>) {
        let book = self.book.lock();
        keys.into_iter().filter_map(|key| book.receipt(&key).map(|receipt| (key, receipt))).unzip()
    }

    /// Keeps the gauges, until the task is ended.
    pub async fn keep_gauges(self: Arc<Self>) {
        loop {
            {
                let book = self.book.lock();
                self.metrics.held.set(book.len() as i64);
                let age = book.oldest().map_or(0, |sent| (now_micros() - sent).max(0));
                self.metrics.oldest.set(age as f64 / 1e6);
            }
            clock::sleep(GAUGES_EVERY).await;
        }
    }

    /// Waits until every message that is complete is deleted.
    pub async fn all_deleted(&self) {
        while self.book.lock().any_complete() {
            clock::sleep(LINGER).await;
        }
    }

    /// Gives every held message back to its queue, to be received at once: how many.
    pub async fn release_all(&self, queues: &[Arc<dyn Queue>]) -> usize {
        let held = self.book.lock().held();
        let mut released = 0;
        for (n, queue) in queues.iter().enumerate() {
            let (keys, receipts) = self.receipts(held.iter().filter(|key| key.queue == n).cloned().collect());
            if keys.is_empty() {
                continue;
            }
            let requests: Vec<_> =
                receipts.chunks(BATCH).map(|batch| queue.hide(batch, Duration::ZERO)).collect();
            // Whatever one queue's client does, the others' messages go back.
            match caught(stream::iter(requests).buffer_unordered(REQUESTS_AT_ONCE).collect::<Vec<_>>()).await
            {
                Ok(answers) => {
                    if let Some(error) = answers.iter().find_map(|answer| answer.as_ref().err()) {
                        tracing::warn!("{error}; messages come again when their leases end");
                    }
                }
                Err(said) => {
                    tracing::error!(
                        queue = queue.url(),
                        "giving back panicked: {said}; messages come again when their leases end"
                    )
                }
            }
            released += keys.len();
            let mut book = self.book.lock();
            keys.iter().for_each(|key| drop(book.forget(key)));
        }
        if released > 0 {
            self.metrics.released.inc_by(released as u64);
            tracing::info!(messages = released, "given back to their queue, to be received again");
        }
        released
    }
}

impl Settle for Acks {
    fn identify(&self, item: ItemNo, object: ObjectId) -> Identified {
        let identified = self.book.lock().identify(item, object);
        if identified == Identified::OnItsWay {
            self.metrics.duplicates.inc();
        }
        identified
    }

    fn settle(&self, item: &Item, outcome: Outcome<'_>) {
        match outcome {
            Outcome::Landed(_) | Outcome::AlreadyThere | Outcome::Empty => {
                let complete = self.book.lock().landed(item.no);
                complete.into_iter().for_each(|key| self.completed(key));
            }
            Outcome::GivenUp(why) => {
                let messages = self.book.lock().give_up(item.no);
                self.metrics.given_up.inc();
                tracing::error!(
                    messages = messages.len(),
                    why,
                    "{}: given up for now; its messages stay in their queue and come again",
                    item.kind.location()
                );
                self.lighter.notify_waiters();
            }
            // Its messages are given back with all that are held. Rejects come from no queue.
            Outcome::NotBegun | Outcome::Rejected(_) => {}
        }
    }
}

/// Deletes one queue's messages as they become complete.
pub struct Deleter {
    pub no: usize,
    pub queue: Arc<dyn Queue>,
    pub acks: Arc<Acks>,
    /// What is to be deleted. Kept here when one panics who works it off.
    pub complete: tokio::sync::Mutex<Complete>,
}

impl Deleter {
    /// Until the task is ended.
    pub async fn run(self: Arc<Self>) {
        let mut complete = self.complete.lock().await;
        // Those that one held who panicked.
        let left = self.acks.book.lock().complete(self.no);
        if !left.is_empty() {
            self.delete(left).await;
        }
        while let Some(first) = complete.recv().await {
            let mut keys = vec![first];
            clock::sleep(LINGER).await;
            while keys.len() < MAX_DELETED_AT_ONCE
                && let Ok(next) = complete.try_recv()
            {
                keys.push(next);
            }
            self.delete(keys).await;
        }
    }

    async fn delete(&self, mut keys: Vec<MessageKey>) {
        for attempt in 1..=DELETE_ATTEMPTS {
            let requests: Vec<_> =
                keys.chunks(BATCH).map(|batch| self.delete_batch(batch.to_vec())).collect();
            keys = stream::iter(requests).buffer_unordered(REQUESTS_AT_ONCE).concat().await;
            if keys.is_empty() {
                break;
            }
            clock::sleep(jittered(delay(attempt))).await;
        }
        if !keys.is_empty() {
            tracing::warn!(
                messages = keys.len(),
                "landed, but could not be deleted: they are redelivered, and recognized then"
            );
            let mut book = self.acks.book.lock();
            keys.iter().for_each(|key| drop(book.forget(key)));
        }
        self.acks.lighter.notify_waiters();
    }

    /// Those that are to be tried again.
    async fn delete_batch(&self, keys: Vec<MessageKey>) -> Vec<MessageKey> {
        let Self { queue, acks, .. } = self;
        let (keys, receipts) = acks.receipts(keys);
        if keys.is_empty() {
            return keys;
        }
        let answers = match queue.delete(&receipts).await {
            Ok(answers) => answers,
            Err(error) => {
                acks.metrics.count_queue_error(&error);
                tracing::warn!("{error}; trying again");
                return keys;
            }
        };
        let mut again = Vec::new();
        let mut book = acks.book.lock();
        for ((key, receipt), answer) in keys.into_iter().zip(receipts).zip(answers) {
            match answer {
                Entry::Done => {
                    book.forget(&key);
                    acks.metrics.deleted.inc();
                }
                // Received again meanwhile: that receipt is the good one.
                Entry::Lost if book.receipt(&key).is_some_and(|now| now != receipt) => again.push(key),
                Entry::Lost => {
                    if book.lost(&key, &receipt) {
                        acks.metrics.leases_lost.inc();
                    }
                    book.forget(&key);
                }
                Entry::Failed(message) => {
                    tracing::warn!(
                        queue = queue.url(),
                        message = key.id,
                        "not deleted: {message}; trying again"
                    );
                    again.push(key);
                }
            }
        }
        again
    }
}
