//! What is told to the queues: that messages are done with, are still being worked on, or go back.

use std::collections::BTreeMap;
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
/// How often a queue's visibility timeout is read: someone may change it.
const READ_AGAIN: Duration = Duration::from_secs(300);

impl Shared {
    /// Deletes messages as they become complete.
    pub(super) async fn delete_all(self: Arc<Self>, mut complete: mpsc::UnboundedReceiver<MessageKey>) {
        while let Some(first) = complete.recv().await {
            let mut keys = vec![first];
            tokio::time::sleep(LINGER).await;
            while keys.len() < TOGETHER
                && let Ok(next) = complete.try_recv()
            {
                keys.push(next);
            }
            self.delete(keys).await;
            self.lighter.notify_waiters();
        }
    }

    async fn delete(&self, mut keys: Vec<MessageKey>) {
        for attempt in 1..=DELETE_ATTEMPTS {
            keys = self.delete_once(keys).await;
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
    async fn delete_once(&self, keys: Vec<MessageKey>) -> Vec<MessageKey> {
        let mut again = Vec::new();
        for (feed, (keys, receipts)) in self.by_queue(keys) {
            let answers = match self.run.feeds[feed].queue.delete(&receipts).await {
                Ok(answers) => answers,
                Err(error) => {
                    self.count_queue_error(&error);
                    tracing::warn!("{error}; trying again");
                    again.extend(keys);
                    continue;
                }
            };
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
                        tracing::warn!(queue = self.run.feeds[feed].queue.url(), message = key.id, "not deleted: {message}; trying again");
                        again.push(key);
                    }
                }
            }
        }
        again
    }

    /// Held messages with their receipts, by queue.
    fn by_queue(&self, keys: Vec<MessageKey>) -> BTreeMap<usize, (Vec<MessageKey>, Vec<String>)> {
        let book = self.book.lock();
        let mut queues: BTreeMap<usize, (Vec<MessageKey>, Vec<String>)> = BTreeMap::new();
        for key in keys {
            if let Some(receipt) = book.receipt(&key) {
                let (keys, receipts) = queues.entry(key.queue).or_default();
                keys.push(key);
                receipts.push(receipt);
            }
        }
        queues
    }

    /// Extends the lease of every message that is held, until the task is ended; and keeps the gauges.
    pub(super) async fn keep_leases(self: Arc<Self>) {
        let mut read = Instant::now();
        let mut failures = 0;
        loop {
            tokio::time::sleep(LOOK).await;
            if read.elapsed() > READ_AGAIN {
                read = Instant::now();
                self.read_timeouts_again().await;
            }
            let (due, expired) = {
                let mut book = self.book.lock();
                let now = Instant::now();
                self.run.metrics.held.set(book.len() as i64);
                let age = book.oldest().map_or(0, |sent| (now_micros() - sent).max(0));
                self.run.metrics.oldest.set(age as f64 / 1e6);
                let expired = book.expire(now);
                (book.due(now), expired)
            };
            if expired > 0 {
                self.run.metrics.leases_lost.inc_by(expired as u64);
                tracing::warn!(
                    messages = expired,
                    "leases have ended before they could be extended; whatever others do with these messages, each object lands once"
                );
            }
            if self.extend(due).await {
                failures = 0;
            } else {
                failures += 1;
                // Leases are worth more tries than other requests.
                tokio::time::sleep(patience(failures).min(Duration::from_secs(2))).await;
            }
        }
    }

    async fn read_timeouts_again(&self) {
        for (feed, state) in self.run.feeds.iter().zip(&self.state) {
            match feed.queue.visibility_timeout().await {
                Ok(timeout) => *state.visibility.lock() = timeout,
                Err(error) => tracing::debug!("{error}; the visibility timeout known so far holds"),
            }
        }
    }

    /// False if a request failed.
    async fn extend(&self, due: Vec<(MessageKey, String)>) -> bool {
        let mut all_well = true;
        let mut queues: BTreeMap<usize, Vec<(MessageKey, String)>> = BTreeMap::new();
        for (key, receipt) in due {
            queues.entry(key.queue).or_default().push((key, receipt));
        }
        for (feed, due) in queues {
            let timeout = *self.state[feed].visibility.lock();
            let began = Instant::now();
            let receipts: Vec<String> = due.iter().map(|(_, receipt)| receipt.clone()).collect();
            let answers = match self.run.feeds[feed].queue.hide(&receipts, timeout).await {
                Ok(answers) => answers,
                Err(error) => {
                    self.count_queue_error(&error);
                    tracing::warn!("{error}; trying again");
                    all_well = false;
                    continue;
                }
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
        all_well
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
        for (feed, (keys, receipts)) in self.by_queue(held) {
            let queue = &self.run.feeds[feed].queue;
            if let Err(error) = queue.hide(&receipts, Duration::ZERO).await {
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
