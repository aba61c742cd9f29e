//! Why a run ends before its time.

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::land::batch::BatchError;
use crate::source::queue::QueueError;

/// Why a run ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A queue can't be read.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Nothing of a source, or of one of its buckets, can be read.
    #[error(
        "source {source_id}: {location}: can't be read: {message}; nor could anything else there: {advice}"
    )]
    Source {
        source_id: String,
        /// An object that could not be read.
        location: String,
        message: String,
        /// What to do.
        advice: &'static str,
    },
    /// The lake can't be written.
    #[error(transparent)]
    Lake(#[from] BatchError),
    /// A fault of this program.
    #[error(
        "{task} panicked: {said}; the run ends, and what it held goes back to its queues: please report this"
    )]
    Panicked { task: String, said: String },
}

/// What stops a run: told once, by whoever notices it first.
#[derive(Debug, Default)]
pub struct Ending {
    /// Nothing more is taken in.
    pub stop: CancellationToken,
    why: Mutex<Option<IngestError>>,
}

impl Ending {
    /// By what stops the run from outside.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, why: Mutex::default() }
    }

    /// Ends the run: no one but a person can help.
    pub fn fail(&self, error: IngestError) {
        self.why.lock().get_or_insert(error);
        self.stop.cancel();
    }

    /// Tells why it ends, if it ends by itself.
    pub fn tell(&self) {
        if let Some(error) = &*self.why.lock() {
            tracing::error!("{error}");
        }
    }

    /// Why it ended; none if it was stopped, or nothing was left to do.
    pub fn why(&self) -> Option<IngestError> {
        self.why.lock().take()
    }
}
