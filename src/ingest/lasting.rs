//! Tasks that last as long as a run.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::attempts::delay;
use super::metrics::Metrics;
use crate::base::jittered;
use crate::base::panics::to_the_end;

/// Tasks that hold nothing between two turns. One that panics is begun again: ending the run would cost every
/// source, and a supervisor's restart no less, for what may be one odd answer of one queue. They end with
/// this.
pub(super) struct Lasting {
    metrics: Arc<Metrics>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

impl Lasting {
    /// Without tasks. `metrics`: where panics are counted.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, tasks: Vec::new() }
    }

    /// `queue`: whose it is, if it is one's.
    pub fn start<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        task: &'static str,
        queue: String,
        work: impl FnMut() -> F + Send + 'static,
    ) {
        let metrics = self.metrics.clone();
        let mut panics = 0;
        let panicked = move |said: String| {
            panics += 1;
            metrics.panics.inc();
            let wait = jittered(delay(panics));
            tracing::error!(
                queue,
                panics,
                "{task} panicked: {said}; it is begun again in {wait:.1?}: please report this"
            );
            wait
        };
        self.tasks.push((task, tokio::spawn(to_the_end(work, panicked))));
    }

    pub fn end(&self, task: &str) {
        self.tasks.iter().filter(|(name, _)| *name == task).for_each(|(_, task)| task.abort());
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}
