//! Where items come from. An intake passes them to a pipeline's entrance, under numbers that its settle
//! knows; the rest of the pipeline does not know the intake.
//!
//! A new intake of the service is a file here that implements [`Intake`] and [`RunningIntake`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::ending::Ending;
use super::feed::{Feed, Feeds};
use super::item::Settle;
use super::metrics::Metrics;
use super::pipeline::Entrance;
use super::pressure::Pressure;
use crate::base::clock::Instant;

pub mod listing;
pub mod queue;
pub mod queues;
pub mod stdin;

/// How much of everything at once.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Workers: each decodes and writes on a core.
    pub workers: usize,
    /// Long polls at once, for each queue.
    pub receivers: usize,
    /// Objects fetched at once, for each source.
    pub fetches: usize,
    /// Messages held at most.
    pub max_messages: usize,
    /// Bytes that held messages may cost.
    pub message_bytes: usize,
    /// Bytes of fetched objects that wait to be decoded.
    pub fetched_bytes: usize,
    /// How long a stop may take.
    pub drain: Duration,
    /// How often a source that is refused is tried again.
    pub refused_every: Duration,
    /// Ends the run when nothing was received and nothing held for this long.
    pub until_idle: Option<Duration>,
}

/// What every intake of a run works with.
#[derive(Debug, Clone)]
pub struct IntakeContext {
    pub pace: Pace,
    pub feeds: Arc<Feeds>,
    /// Raised while there is no room.
    pub pressure: Arc<Pressure>,
    /// When something was last taken in, by any intake.
    pub received: Arc<Mutex<Instant>>,
    /// Stops the run, and is told of what ends it.
    pub ending: Arc<Ending>,
    pub metrics: Arc<Metrics>,
}

/// An intake that lasts as long as the run, not yet at work.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Its sources, numbered from `first` on.
    fn feeds(&self, first: usize) -> Vec<Feed>;

    /// Prepares it for a run.
    fn open(&self, context: IntakeContext) -> Box<dyn RunningIntake>;
}

/// An intake in a run.
#[async_trait]
pub trait RunningIntake: Send + Sync {
    /// Receives what becomes of its items.
    fn settle(&self) -> Arc<dyn Settle>;

    /// Starts handing items in: an entrance for each of its feeds, in their order. It ends when the run is
    /// stopped.
    fn start(&mut self, entrances: Vec<Entrance>);

    /// Waits until everything that it reads was reached once, or is refused.
    async fn opened(&self);

    /// Whether everything that it reads has said, when asked after `since`, that there is nothing.
    fn is_quiet_since(&self, since: Instant) -> bool;

    /// What was taken in and is not settled: messages, for queues.
    fn held(&self) -> usize;

    /// Waits until all that has landed is acknowledged.
    async fn acknowledged(&self);

    /// Gives back what has not landed, and ends: how much that was. `patience`: for requests that are under
    /// way.
    async fn give_back(&mut self, patience: Duration) -> usize;
}
