//! A source of which nothing can be read: it stops by itself, is told of, and is tried again; the others go
//! on. If all are refused before one of them was ever read, a person has to see it, and the run ends.

use std::time::{Duration, Instant};

use super::{IngestError, Shared};

/// How often a refused source is tried again, unless [`Pace`](super::Pace) says otherwise: a person who mends
/// a policy waits so long at most.
pub const TRIED_EVERY: Duration = Duration::from_secs(60);

impl Shared {
    /// Stops a source. Told once, until it can be read again.
    pub(super) fn refuse(&self, feed: usize, error: IngestError) {
        let of = &self.run.feeds[feed];
        let was_refused = self.state[feed].refused.lock().replace(Instant::now()).is_some();
        self.run.metrics.tell(&of.problem(), Some(error.to_string()));
        self.run.metrics.sources_refused.set(self.refused() as i64);
        let none_was_read = self.state.iter().all(|feed| feed.last_read.lock().is_none());
        if none_was_read && self.refused() == self.run.feeds.len() {
            return self.fail(error);
        }
        if !was_refused {
            let every = self.run.pace.refused_every;
            tracing::error!(
                source = of.source.id,
                "{error}; the other sources go on, and this one is tried again every {every:.0?}"
            );
        }
    }

    /// A source can be read, whatever was before.
    pub(super) fn accept(&self, feed: usize) {
        let of = &self.run.feeds[feed];
        self.run.metrics.tell(&of.problem(), None);
        if self.state[feed].refused.lock().take().is_some() {
            tracing::info!(source = of.source.id, "it can be read again");
            self.run.metrics.sources_refused.set(self.refused() as i64);
        }
    }

    /// How many sources are refused.
    pub(super) fn refused(&self) -> usize {
        self.state.iter().filter(|feed| feed.refused.lock().is_some()).count()
    }

    /// Waits until a source that is refused may be tried again.
    pub(super) async fn wait_while_refused(&self, feed: usize) {
        if self.state[feed].refused.lock().is_some() {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(self.run.pace.refused_every) => {}
            }
        }
    }
}
