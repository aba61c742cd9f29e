//! Files on their way into the store, several at once, while the next one is being encoded.

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::base::store::Store;

/// Uploads at once: each waits for the store most of the time.
pub const UPLOADS_AT_ONCE: usize = 16;
/// Bytes of the files that are on their way, at most; one that is larger goes alone.
const BYTES_AT_ONCE: usize = 64 << 20;

/// A file that could not be uploaded.
#[derive(Debug, thiserror::Error)]
#[error("uploading {location} failed: {source}; nothing was lost, run it again")]
pub struct UploadError {
    location: String,
    source: object_store::Error,
}

/// Uploads under way. Those that have not ended when it is dropped are given up.
pub struct Uploads {
    store: Store,
    runtime: Handle,
    running: JoinSet<Result<usize, UploadError>>,
    bytes: usize,
}

impl Uploads {
    /// None yet.
    pub fn new(store: &Store, runtime: &Handle) -> Self {
        Self { store: store.clone(), runtime: runtime.clone(), running: JoinSet::new(), bytes: 0 }
    }

    /// Sets a file on its way, once there is room for it. Blocks.
    pub fn put(&mut self, location: Path, bytes: Vec<u8>) -> Result<(), UploadError> {
        while self.running.len() >= UPLOADS_AT_ONCE
            || self.bytes > 0 && self.bytes + bytes.len() > BYTES_AT_ONCE
        {
            self.next()?;
        }
        self.bytes += bytes.len();
        let objects = self.store.objects.clone();
        let upload = async move {
            let size = bytes.len();
            let put = objects.put(&location, PutPayload::from(bytes)).await;
            put.map(|_| size).map_err(|source| UploadError { location: location.to_string(), source })
        };
        self.running.spawn_on(upload, &self.runtime);
        Ok(())
    }

    /// Waits until all are there. Blocks.
    pub fn finish(mut self) -> Result<(), UploadError> {
        while !self.running.is_empty() {
            self.next()?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(), UploadError> {
        let Some(ended) = self.runtime.block_on(self.running.join_next()) else { return Ok(()) };
        self.bytes -= ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        Ok(())
    }
}
