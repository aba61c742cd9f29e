//! A queue in memory, with leases that end and messages that come again: for tests of whatever reads a queue.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use flarelake::base::{new_uuid, now_micros};
use flarelake::source::queue::{BATCH, Entry, Message, Queue, QueueError};

/// See the module.
#[derive(Debug)]
pub struct MemoryQueue {
    url: String,
    visibility: Duration,
    held: Mutex<Vec<Held>>,
    /// A message was sent, or given back.
    more: Notify,
}

#[derive(Debug)]
struct Held {
    message: Message,
    /// Nobody receives it before.
    hidden_until: Instant,
}

impl MemoryQueue {
    /// An empty queue whose leases last `visibility`.
    pub fn new(name: &str, visibility: Duration) -> Self {
        Self { url: format!("memory://{name}"), visibility, held: Mutex::default(), more: Notify::new() }
    }

    /// Sends a message.
    pub fn send(&self, body: impl Into<String>) {
        let message = Message {
            id: new_uuid().to_string(),
            receipt: String::new(),
            body: body.into(),
            sent: Some(now_micros()),
            receives: 0,
        };
        self.held.lock().push(Held { message, hidden_until: Instant::now() });
        self.more.notify_waiters();
    }

    /// Messages that are neither deleted nor given up.
    pub fn len(&self) -> usize {
        self.held.lock().len()
    }

    /// Whether every message is deleted.
    pub fn is_empty(&self) -> bool {
        self.held.lock().is_empty()
    }

    /// Messages that could be received now.
    pub fn visible(&self) -> usize {
        let now = Instant::now();
        self.held.lock().iter().filter(|h| h.hidden_until <= now).count()
    }

    fn take(&self) -> Vec<Message> {
        let now = Instant::now();
        let mut held = self.held.lock();
        let visible = held.iter_mut().filter(|h| h.hidden_until <= now).take(BATCH);
        let taken = visible.map(|h| {
            h.hidden_until = now + self.visibility;
            h.message.receipt = new_uuid().to_string();
            h.message.receives += 1;
            h.message.clone()
        });
        taken.collect()
    }

    /// Does something with each message that is still leased under its receipt.
    fn each(&self, receipts: &[String], mut act: impl FnMut(&mut Vec<Held>, usize)) -> Vec<Entry> {
        let now = Instant::now();
        let mut held = self.held.lock();
        let answers = receipts.iter().map(|receipt| {
            let leased = |h: &Held| h.message.receipt == *receipt && h.hidden_until > now;
            match held.iter().position(leased) {
                Some(at) => {
                    act(&mut held, at);
                    Entry::Done
                }
                None => Entry::Lost,
            }
        });
        answers.collect()
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    fn url(&self) -> &str {
        &self.url
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        Ok(self.visibility)
    }

    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        let until = Instant::now() + wait;
        loop {
            let more = self.more.notified();
            let taken = self.take();
            if !taken.is_empty() || Instant::now() >= until {
                return Ok(taken);
            }
            let next = self.held.lock().iter().map(|h| h.hidden_until).min();
            tokio::select! {
                () = more => {}
                () = tokio::time::sleep_until(next.map_or(until, |next| next.min(until))) => {}
            }
        }
    }

    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError> {
        Ok(self.each(receipts, |held, at| drop(held.swap_remove(at))))
    }

    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError> {
        let until = Instant::now() + timeout;
        let answers = self.each(receipts, |held, at| held[at].hidden_until = until);
        self.more.notify_waiters();
        Ok(answers)
    }
}
