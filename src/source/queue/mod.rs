//! The interface to message queues, whatever the service.
//!
//! A received message is hidden from others for a while (its lease): unless it is deleted or its lease
//! extended before that ends, it is delivered again.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use crate::base::failure::{Failure, FailureKind};

pub mod sqs;

/// Messages in one request, at most.
pub const BATCH: usize = 10;

/// A message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The same at each receipt; another after a redrive.
    pub id: String,
    /// What this receipt is answered by.
    pub receipt: String,
    pub body: String,
    /// When it was sent, in microseconds since the epoch.
    pub sent: Option<i64>,
    /// How often it has been received, this time included.
    pub receives: u32,
}

/// Why nothing can be had from a queue.
#[derive(Debug, Clone, thiserror::Error)]
#[error("queue {queue}: {doing} failed: {failure}{}", self.advice())]
pub struct QueueError {
    pub queue: String,
    /// What was being done, with the IAM action that it needs.
    pub doing: &'static str,
    pub failure: Failure,
}

impl QueueError {
    /// Whether it fails again until a person does something.
    pub fn needs_a_person(&self) -> bool {
        matches!(self.failure.kind, FailureKind::Denied | FailureKind::NotFound | FailureKind::Wrong)
    }

    fn advice(&self) -> String {
        match self.failure.kind {
            FailureKind::Denied => format!("; allow {} on this queue", self.doing),
            FailureKind::NotFound => "; check the queue's URL, its region and its account".into(),
            _ => String::new(),
        }
    }
}

/// What became of one message of a batch request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Done,
    /// The receipt is no longer good: the lease has ended, or the message is gone.
    Lost,
    /// The service failed; try again.
    Failed(String),
}

#[async_trait]
pub trait Queue: Send + Sync + Debug {
    fn url(&self) -> &str;

    /// How long a received message stays hidden.
    async fn visibility_timeout(&self) -> Result<Duration, QueueError>;

    /// Up to [`BATCH`] messages, as soon as there is one; none after `wait`. The queue says for how long they
    /// are hidden.
    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError>;

    /// Deletes up to [`BATCH`] messages: what became of each, in the order of `receipts`.
    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError>;

    /// Hides up to [`BATCH`] messages for `timeout` from now; zero gives them back at once. What became of
    /// each, in the order of `receipts`.
    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError>;
}
