//! Leases of held messages, extended before they end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::time::delay_queue::{DelayQueue, Key};

use super::ack::{Acks, REQUESTS_AT_ONCE};
use super::book::{Due, Lease, MessageKey};
use crate::base::clock::{self, Instant};
use crate::ingest::metrics::Metrics;
use crate::source::queue::{BATCH, Entry, Queue};

/// A request for longer leases is given up after this at most.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(10);
/// Leases that are due within this of one another are extended together.
const DUE_TOGETHER: Duration = Duration::from_millis(50);
/// How often a queue's visibility timeout is read: someone may change it.
const READ_TIMEOUT_EVERY: Duration = Duration::from_secs(300);

/// Extends the leases of one queue's messages.
pub struct Leases {
    pub no: usize,
    pub queue: Arc<dyn Queue>,
    pub acks: Arc<Acks>,
    /// Messages that were received. Kept here when one panics who keeps their leases.
    pub received: tokio::sync::Mutex<mpsc::UnboundedReceiver<MessageKey>>,
    /// The queue's visibility timeout, as it was last read.
    pub visibility: Arc<Mutex<Duration>>,
    pub metrics: Arc<Metrics>,
}

impl Leases {
    /// Keeps them, until the task is ended.
    pub async fn run(self: Arc<Self>) {
        let mut received = self.received.lock().await;
        let mut timers = Timers::default();
        // Those that one kept who panicked.
        let held = self.acks.book.lock().held();
        let left: Vec<_> = held.into_iter().filter(|key| key.queue == self.no).collect();
        self.set_all(&mut timers, left, Duration::ZERO);
        let mut read = clock::now();
        loop {
            let read_again = READ_TIMEOUT_EVERY.saturating_sub(read.elapsed());
            tokio::select! {
                Some(key) = received.recv() => self.set_all(&mut timers, vec![key], Duration::ZERO),
                Some(first) = timers.next() => {
                    let visibility = *self.visibility.lock();
                    clock::sleep(DUE_TOGETHER.min(visibility / 100)).await;
                    let mut due = vec![first];
                    while let Some(Some(next)) = timers.next().now_or_never() {
                        due.push(next);
                    }
                    let pause = self.extend(&due).await;
                    self.set_all(&mut timers, due, pause);
                }
                () = clock::sleep(read_again) => {
                    self.read_visibility_timeout().await;
                    read = clock::now();
                }
            }
        }
    }

    /// Sets the timers of messages, unless there is nothing to extend any more. `pause`: before a lease that
    /// is due is tried again.
    fn set_all(&self, timers: &mut Timers, keys: Vec<MessageKey>, pause: Duration) {
        let now = clock::now();
        for key in keys {
            match self.acks.book.lock().due(&key, now) {
                Due::At(at) => timers.set(key, at),
                Due::Now(_) => timers.set(key, now + pause),
                Due::Never => {}
            }
        }
    }

    async fn read_visibility_timeout(&self) {
        // Leases wait meanwhile.
        match clock::timeout(MAX_REQUEST_TIME, self.queue.visibility_timeout()).await {
            Ok(Ok(timeout)) => *self.visibility.lock() = timeout,
            Ok(Err(error)) => tracing::debug!("{error}; the visibility timeout known so far holds"),
            Err(_) => tracing::debug!(
                queue = self.queue.url(),
                "no answer; the visibility timeout known so far holds"
            ),
        }
    }

    /// Batch by batch, many at once: one that fails or hangs costs its own leases a try, and no others. How
    /// long to wait before those are tried again.
    async fn extend(&self, keys: &[MessageKey]) -> Duration {
        let due: Vec<(MessageKey, String)> = {
            let (book, now) = (self.acks.book.lock(), clock::now());
            let receipt = |key: &MessageKey| match book.due(key, now) {
                Due::Now(receipt) => Some((key.clone(), receipt)),
                Due::At(_) | Due::Never => None,
            };
            keys.iter().filter_map(receipt).collect()
        };
        let timeout = *self.visibility.lock();
        let requests: Vec<_> =
            due.chunks(BATCH).map(|batch| self.extend_batch(batch.to_vec(), timeout)).collect();
        let answers: Vec<_> = stream::iter(requests).buffer_unordered(REQUESTS_AT_ONCE).collect().await;
        if let Some(why) = answers.into_iter().flatten().next() {
            tracing::warn!("{why}; leases could not be extended, trying again");
        }
        // Not as patient as others: leases are worth more tries.
        (timeout / 20).clamp(DUE_TOGETHER, Duration::from_secs(1))
    }

    /// What kept a batch of leases from being extended.
    async fn extend_batch(&self, due: Vec<(MessageKey, String)>, timeout: Duration) -> Option<String> {
        let began = clock::now();
        let (keys, receipts): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        // There has to be time for another try.
        let patience = (timeout / 4).clamp(DUE_TOGETHER, MAX_REQUEST_TIME);
        let answers = match clock::timeout(patience, self.queue.hide(&receipts, timeout)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                self.metrics.count_queue_error(&error);
                return Some(error.to_string());
            }
            Err(_) => return Some(format!("queue {}: no answer within {patience:.1?}", self.queue.url())),
        };
        let (mut lost, mut failed) = (0, None);
        let mut book = self.acks.book.lock();
        for ((key, receipt), answer) in keys.into_iter().zip(receipts).zip(answers) {
            match answer {
                Entry::Done => book.extended(&key, &receipt, Lease::new(began, timeout)),
                Entry::Lost => lost += u64::from(book.lost(&key, &receipt)),
                Entry::Failed(message) => {
                    failed = Some(format!("queue {}: message {}: {message}", self.queue.url(), key.id))
                }
            }
        }
        drop(book);
        if lost > 0 {
            self.metrics.leases_lost.inc_by(lost);
            tracing::warn!(
                messages = lost,
                "leases ended before they could be extended; others may receive these messages, but each object lands once"
            );
        }
        failed
    }
}

/// One timer for each message.
#[derive(Default)]
struct Timers {
    queue: DelayQueue<MessageKey>,
    keys: HashMap<MessageKey, Key>,
}

impl Timers {
    fn set(&mut self, message: MessageKey, at: Instant) {
        match self.keys.get(&message) {
            Some(key) => self.queue.reset_at(key, at),
            None => _ = self.keys.insert(message.clone(), self.queue.insert_at(message, at)),
        }
    }

    /// The next that has ended; none while there is no timer.
    async fn next(&mut self) -> Option<MessageKey> {
        let message = self.queue.next().await?.into_inner();
        self.keys.remove(&message);
        Some(message)
    }
}
