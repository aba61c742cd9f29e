//! The intake of message queues: what their messages announce is taken in, and a message is deleted when all
//! of that has landed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::queue::{Limits, QueueIntake, Receiver};
use super::{Intake, IntakeContext, RunningIntake};
use crate::base::clock::{self, Instant};
use crate::config::Source;
use crate::ingest::feed::Feed;
use crate::ingest::item::Settle;
use crate::ingest::lasting::Lasting;
use crate::ingest::pipeline::{Entrance, join, stage};
use crate::ingest::settle::ack::{Acks, Complete, Deleter};
use crate::ingest::settle::book::Load;
use crate::ingest::settle::leases::Leases;
use crate::source::bucket::Buckets;
use crate::source::queue::Queue;

/// A source with a queue, and the ways to it.
#[derive(Debug, Clone)]
pub struct QueueSource {
    /// What its rows are attributed to, and the buckets that may be read.
    pub source: Source,
    pub queue: Arc<dyn Queue>,
    pub buckets: Arc<dyn Buckets>,
    /// The log types that its routes name, by their index in the catalog.
    pub log_types: BTreeMap<String, usize>,
}

/// All queues of a run. They share an ack book: an object that several announce is on its way once.
pub struct Queues {
    pub sources: Vec<QueueSource>,
}

impl Intake for Queues {
    fn feeds(&self, first: usize) -> Vec<Feed> {
        let feed = |(no, of): (usize, &QueueSource)| {
            let mut feed = Feed::new(no, Some(of.source.clone()), of.log_types.clone());
            feed.buckets = Some(of.buckets.clone());
            feed
        };
        (first..).zip(&self.sources).map(feed).collect()
    }

    fn open(&self, context: IntakeContext) -> Box<dyn RunningIntake> {
        let queue = |(no, of): (usize, &QueueSource)| {
            Arc::new(QueueIntake::new(no, of.queue.clone(), of.source.clone()))
        };
        let queues: Vec<_> = self.sources.iter().enumerate().map(queue).collect();
        let (acks, complete) = Acks::new(queues.len(), context.metrics.clone());
        let lasting = Lasting::new(context.metrics.clone());
        Box::new(RunningQueues {
            context,
            queues,
            feeds: Vec::new(),
            acks,
            complete,
            receivers: Vec::new(),
            lasting,
        })
    }
}

/// The queues of a run, at work.
struct RunningQueues {
    context: IntakeContext,
    queues: Vec<Arc<QueueIntake>>,
    /// Whose their messages are, in the same order, once they are started.
    feeds: Vec<Arc<Feed>>,
    acks: Arc<Acks>,
    /// For each queue, until it is started.
    complete: Vec<Complete>,
    receivers: Vec<JoinHandle<()>>,
    /// Tasks that hold nothing between two turns: they delete messages, keep leases and gauges.
    lasting: Lasting,
}

impl RunningQueues {
    /// What one queue takes: trouble with it keeps no other waiting.
    fn start_queue(&mut self, intake: Arc<QueueIntake>, entrance: Entrance, complete: Complete) {
        let (no, queue, url) = (intake.no, intake.queue.clone(), intake.queue.url().to_owned());
        let (leases, to_keep) = mpsc::unbounded_channel();
        let complete = tokio::sync::Mutex::new(complete);
        let deleter = Arc::new(Deleter { no, queue: queue.clone(), acks: self.acks.clone(), complete });
        self.lasting.start("deleting", url.clone(), move || deleter.clone().run());
        let IntakeContext { pace, metrics, .. } = &self.context;
        let keeper = Arc::new(Leases {
            no,
            queue,
            acks: self.acks.clone(),
            received: tokio::sync::Mutex::new(to_keep),
            visibility: intake.visibility.clone(),
            metrics: metrics.clone(),
        });
        self.lasting.start("keeping leases", url, move || keeper.clone().run());
        let most = Load { messages: pace.max_messages, bytes: pace.message_bytes };
        let receiver = Receiver {
            intake,
            entrance,
            acks: self.acks.clone(),
            leases,
            limits: Limits { most, queues: self.queues.len() },
            context: self.context.clone(),
        };
        for _ in 0..pace.receivers {
            let receiving = receiver.clone().run();
            self.receivers.push(stage(&self.context.ending, metrics, "receiving", receiving));
        }
    }
}

#[async_trait]
impl RunningIntake for RunningQueues {
    fn settle(&self) -> Arc<dyn Settle> {
        self.acks.clone()
    }

    fn start(&mut self, entrances: Vec<Entrance>) {
        self.feeds = entrances.iter().map(|entrance| entrance.feed().clone()).collect();
        let complete = std::mem::take(&mut self.complete);
        for ((queue, entrance), complete) in self.queues.clone().into_iter().zip(entrances).zip(complete) {
            self.start_queue(queue, entrance, complete);
        }
        let acks = self.acks.clone();
        self.lasting.start("keeping gauges", String::new(), move || acks.clone().keep_gauges());
    }

    async fn opened(&self) {
        let IntakeContext { feeds, ending, .. } = &self.context;
        join_all(self.queues.iter().map(|queue| queue.opened(feeds, &ending.stop))).await;
    }

    fn is_quiet_since(&self, since: Instant) -> bool {
        self.feeds
            .iter()
            .zip(&self.queues)
            .all(|(feed, queue)| feed.is_refused() || queue.is_quiet_since(since))
    }

    fn held(&self) -> usize {
        self.acks.book.lock().len()
    }

    async fn acknowledged(&self) {
        self.acks.all_deleted().await;
    }

    async fn give_back(&mut self, patience: Duration) -> usize {
        self.lasting.end("keeping leases");
        // A poll that is cut off may have been given messages, which then stay hidden: the polls get a
        // moment.
        let _ = clock::timeout(patience, join(&mut self.receivers)).await;
        // Else one would receive what is given back now.
        self.receivers.iter().for_each(JoinHandle::abort);
        let queues: Vec<_> = self.queues.iter().map(|intake| intake.queue.clone()).collect();
        self.acks.release_all(&queues).await
    }
}

impl Drop for RunningQueues {
    fn drop(&mut self) {
        self.receivers.iter().for_each(JoinHandle::abort);
    }
}
