//! What is told to the queues: that messages are done with, are still being worked on, or go back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Shared, patience};
use crate::base::now_micros;
use crate::ingest::acks::{Lease, MessageKey};
use crate::ingest::queue::Entry;

/// Messages that are complete are deleted together with those that follow within this.
const LINGER: Duration = Duration::from_millis(20);
/// Messages deleted together, at most.
const TOGETHER: usize = 500;
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
    pub(super) async fn delete_all(self: Arc<Self>, feed: usize, mut complete: mpsc::UnboundedReceiver<MessageKey>) {
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
            keys = self.delete_once(feed, keys).await;
            if keys.is_empty() {
                return;
            }
            tokio::time::sleep(patience(attempt)).await;
        }
        tracing::warn!(messages = keys.len(), "landed, but could not be deleted: they come again, and are recognized then");
        let mut book = self.book.lock();
        for key in keys {
            book.forget(&key);
        }
    }

    /// Those that are to be tried again.
    async fn delete_once(&self, feed: usize, keys: Vec<MessageKey>) -> Vec<MessageKey> {
        let queue = &self.run.feeds[feed].queue;
        let (keys, receipts) = self.receipts(keys);
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
                    tracing::warn!(queue = queue.url(), message = key.id, "not deleted: {message}; trying again");
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
            let (due, expired) = {
                let mut book = self.book.lock();
                let now = Instant::now();
                let expired = book.expire(feed, now);
                (book.due(feed, now), expired)
            };
            if expired > 0 {
                self.run.metrics.leases_lost.inc_by(expired as u64);
                tracing::warn!(
                    messages = expired,
                    "leases have ended before they could be extended; whatever others do with these messages, each object lands once"
                );
            }
            self.extend(feed, due).await;
        }
    }

    async fn extend(&self, feed: usize, due: Vec<(MessageKey, String)>) {
        if due.is_empty() {
            return;
        }
        let queue = &self.run.feeds[feed].queue;
        let timeout = *self.state[feed].visibility.lock();
        let began = Instant::now();
        let receipts: Vec<String> = due.iter().map(|(_, receipt)| receipt.clone()).collect();
        // A request that hangs must not cost the leases: there is time for another.
        let asked = tokio::time::timeout((timeout / 4).max(LOOK), queue.hide(&receipts, timeout)).await;
        let answers = match asked {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                self.count_queue_error(&error);
                tracing::warn!("{error}; trying again");
                // Not as patient as others: leases are worth more tries.
                return tokio::time::sleep((timeout / 20).min(Duration::from_secs(1))).await;
            }
            Err(_) => return tracing::warn!(queue = queue.url(), messages = due.len(), "extending leases takes too long; trying again"),
        };
        let mut book = self.book.lock();
        for ((key, receipt), answer) in due.into_iter().zip(answers) {
            match answer {
                Entry::Done => book.extended(&key, &receipt, Lease::new(began, timeout)),
                Entry::Lost => {
                    if book.lost(&key, &receipt) {
                        self.run.metrics.leases_lost.inc();
                    }
                }
                Entry::Failed(message) => tracing::debug!(message = key.id, "its lease was not extended: {message}; trying again"),
            }
        }
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
            let (keys, receipts) = self.receipts(held.iter().filter(|key| key.queue == feed).cloned().collect());
            if keys.is_empty() {
                continue;
            }
            if let Err(error) = of.queue.hide(&receipts, Duration::ZERO).await {
                tracing::warn!("{error}; the messages come again when their leases end");
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
