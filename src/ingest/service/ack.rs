//! What is told to the queues: that messages are done with, are still being worked on, or go back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use tokio::sync::{Mutex, mpsc};

use super::{Shared, patience};
use crate::base::now_micros;
use crate::base::panics::caught;
use crate::ingest::book::{Lease, MessageKey};
use crate::source::queue::{BATCH, Entry};

/// Messages that are complete are deleted together with those that follow within this.
const LINGER: Duration = Duration::from_millis(20);
/// Messages deleted together, at most.
const TOGETHER: usize = 500;
/// Batch requests at once: thousands of messages may land, or be due, together.
const REQUESTS: usize = 32;
/// A request for longer leases is given up after this at most.
const HIDE_PATIENCE: Duration = Duration::from_secs(10);
/// A message that can't be deleted so often comes again; the ledger knows that it has landed.
const DELETE_ATTEMPTS: u32 = 6;
/// How often leases are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often the gauges are set.
const GAUGES: Duration = Duration::from_millis(500);
/// How often a queue's visibility timeout is read: someone may change it.
const READ_AGAIN: Duration = Duration::from_secs(300);

impl Shared {
    /// Deletes a queue's messages as they become complete.
    pub(super) async fn delete_all(
        self: Arc<Self>,
        feed: usize,
        complete: Arc<Mutex<mpsc::UnboundedReceiver<MessageKey>>>,
    ) {
        let mut complete = complete.lock().await;
        // Those that one held who panicked.
        let left = self.book.lock().complete(feed);
        if !left.is_empty() {
            self.delete(feed, left).await;
            self.lighter.notify_waiters();
        }
        while let Some(first) = complete.recv().await {
            let mut keys = vec![first];
            tokio::time::sleep(LINGER).await;
            while keys.len() < TOGETHER
                && let Ok(next) = complete.try_recv()
            {
                keys.push(next);
            }
            self.delete(feed, keys).await;
            self.lighter.notify_waiters();
        }
    }

    async fn delete(&self, feed: usize, mut keys: Vec<MessageKey>) {
        for attempt in 1..=DELETE_ATTEMPTS {
            let requests: Vec<_> =
                keys.chunks(BATCH).map(|batch| self.delete_batch(feed, batch.to_vec())).collect();
            keys = stream::iter(requests).buffer_unordered(REQUESTS).concat().await;
            if keys.is_empty() {
                return;
            }
            tokio::time::sleep(patience(attempt)).await;
        }
        tracing::warn!(
            messages = keys.len(),
            "landed, but could not be deleted: they come again, and are recognized then"
        );
        let mut book = self.book.lock();
        for key in keys {
            book.forget(&key);
        }
    }

    /// Those that are to be tried again.
    async fn delete_batch(&self, feed: usize, keys: Vec<MessageKey>) -> Vec<MessageKey> {
        let queue = &self.run.feeds[feed].queue;
        let (keys, receipts) = self.receipts(keys);
        if keys.is_empty() {
            return keys;
        }
        let answers = match queue.delete(&receipts).await {
            Ok(answers) => answers,
            Err(error) => {
                self.count_queue_error(&error);
                tracing::warn!("{error}; trying again");
                return keys;
            }
        };
        let mut again = Vec::new();
        let mut book = self.book.lock();
        for ((key, receipt), answer) in keys.into_iter().zip(receipts).zip(answers) {
            match answer {
                Entry::Done => {
                    book.forget(&key);
                    self.run.metrics.deleted.inc();
                }
                // Received again meanwhile: that receipt is the good one.
                Entry::Lost if book.receipt(&key).is_some_and(|now| now != receipt) => again.push(key),
                Entry::Lost => {
                    if book.lost(&key, &receipt) {
                        self.run.metrics.leases_lost.inc();
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

    /// Those that are still held, with their receipts.
    fn receipts(&self, keys: Vec<MessageKey>) -> (Vec<MessageKey>, Vec<String>) {
        let book = self.book.lock();
        keys.into_iter().filter_map(|key| book.receipt(&key).map(|receipt| (key, receipt))).unzip()
    }

    /// Keeps the gauges, until the task is ended.
    pub(super) async fn keep_gauges(self: Arc<Self>) {
        loop {
            {
                let book = self.book.lock();
                self.run.metrics.held.set(book.len() as i64);
                let age = book.oldest().map_or(0, |sent| (now_micros() - sent).max(0));
                self.run.metrics.oldest.set(age as f64 / 1e6);
            }
            tokio::time::sleep(GAUGES).await;
        }
    }

    /// Extends the lease of every message of a queue that is held, until the task is ended.
    pub(super) async fn keep_leases(self: Arc<Self>, feed: usize) {
        let mut read = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            if read.elapsed() > READ_AGAIN {
                read = Instant::now();
                match self.run.feeds[feed].queue.visibility_timeout().await {
                    Ok(timeout) => *self.state[feed].visibility.lock() = timeout,
                    Err(error) => tracing::debug!("{error}; the visibility timeout known so far holds"),
                }
            }
            let due = self.book.lock().due(feed, Instant::now());
            self.extend(feed, due).await;
        }
    }

    /// Batch by batch, many at once: one that fails or hangs costs its own leases a try, and no others.
    async fn extend(&self, feed: usize, due: Vec<(MessageKey, String)>) {
        let timeout = *self.state[feed].visibility.lock();
        let requests: Vec<_> =
            due.chunks(BATCH).map(|batch| self.extend_batch(feed, batch.to_vec(), timeout)).collect();
        let answers: Vec<_> = stream::iter(requests).buffer_unordered(REQUESTS).collect().await;
        if let Some(why) = answers.into_iter().flatten().next() {
            tracing::warn!("{why}; leases could not be extended, trying again");
            // Not as patient as others: leases are worth more tries.
            tokio::time::sleep((timeout / 20).min(Duration::from_secs(1))).await;
        }
    }

    /// What kept a batch of leases from being extended.
    async fn extend_batch(
        &self,
        feed: usize,
        due: Vec<(MessageKey, String)>,
        timeout: Duration,
    ) -> Option<String> {
        let queue = &self.run.feeds[feed].queue;
        let began = Instant::now();
        let (keys, receipts): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        // There has to be time for another try.
        let patience = (timeout / 4).clamp(LOOK, HIDE_PATIENCE);
        let answers = match tokio::time::timeout(patience, queue.hide(&receipts, timeout)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                self.count_queue_error(&error);
                return Some(error.to_string());
            }
            Err(_) => return Some(format!("queue {}: no answer within {patience:.1?}", queue.url())),
        };
        let (mut lost, mut failed) = (0, None);
        let mut book = self.book.lock();
        for ((key, receipt), answer) in keys.into_iter().zip(receipts).zip(answers) {
            match answer {
                Entry::Done => book.extended(&key, &receipt, Lease::new(began, timeout)),
                Entry::Lost => lost += u64::from(book.lost(&key, &receipt)),
                Entry::Failed(message) => {
                    failed = Some(format!("queue {}: message {}: {message}", queue.url(), key.id))
                }
            }
        }
        drop(book);
        if lost > 0 {
            self.run.metrics.leases_lost.inc_by(lost);
            tracing::warn!(
                messages = lost,
                "leases had ended before they could be extended; whatever others do with these messages, each object lands once"
            );
        }
        failed
    }

    /// Waits until every message that is complete is deleted.
    pub(super) async fn all_deleted(&self) {
        while self.book.lock().any_complete() {
            tokio::time::sleep(LINGER).await;
        }
    }

    /// Gives every held message back to its queue, to be received at once: how many.
    pub(super) async fn release_all(&self) -> usize {
        let held = self.book.lock().held();
        let mut released = 0;
        for (feed, of) in self.run.feeds.iter().enumerate() {
            let (keys, receipts) =
                self.receipts(held.iter().filter(|key| key.queue == feed).cloned().collect());
            if keys.is_empty() {
                continue;
            }
            let requests: Vec<_> =
                receipts.chunks(BATCH).map(|batch| of.queue.hide(batch, Duration::ZERO)).collect();
            // Whatever one queue's client does, the others' messages go back.
            match caught(stream::iter(requests).buffer_unordered(REQUESTS).collect::<Vec<_>>()).await {
                Ok(answers) => {
                    if let Some(error) = answers.iter().find_map(|answer| answer.as_ref().err()) {
                        tracing::warn!("{error}; messages come again when their leases end");
                    }
                }
                Err(said) => {
                    tracing::error!(
                        queue = of.queue.url(),
                        "giving back panicked: {said}; messages come again when their leases end"
                    )
                }
            }
            released += keys.len();
            let mut book = self.book.lock();
            keys.iter().for_each(|key| drop(book.forget(key)));
        }
        if released > 0 {
            self.run.metrics.released.inc_by(released as u64);
            tracing::info!(messages = released, "given back to their queue, to be received again");
        }
        released
    }
}
