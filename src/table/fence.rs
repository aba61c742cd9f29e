//! Fences: behind one, files that no version named may be deleted. Whoever reads one checks again the files
//! that it has written and not yet committed.

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _};

use super::log::TableError;
use crate::base::store::Store;

/// A file that is older than this at a fence is not committed any more. Who deletes behind the fence leaves
/// files of a day: so what is committed is never deleted, whatever the order of the two. In milliseconds.
const MAX_AGE_MS: i64 = 3_600_000;
/// Files that are asked for at once.
const AT_ONCE: usize = 16;

/// A version of a log behind which files that no version named may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    pub version: u64,
    /// When it was put, by the store's time, in milliseconds since the epoch.
    pub written_ms: i64,
}

impl Fence {
    /// W3a. Whether all these files can still be committed: they are there, and were young at the fence. Both
    /// times are the store's: a process that was paused, or whose clock is wrong, is told right.
    pub async fn spares(self, store: &Store, files: Vec<Path>) -> Result<bool, TableError> {
        let head = |file: Path| async move { (store.objects.head(&file).await, file) }.boxed();
        let heads: Vec<_> = files.into_iter().map(head).collect();
        let mut heads = stream::iter(heads).buffer_unordered(AT_ONCE);
        while let Some((head, file)) = heads.next().await {
            match head {
                Ok(meta) if self.written_ms - meta.last_modified.timestamp_millis() <= MAX_AGE_MS => {}
                Ok(_) | Err(Error::NotFound { .. }) => return Ok(false),
                Err(e) => {
                    return Err(TableError::request(store.url.as_str(), format!("looking after {file}"), e));
                }
            }
        }
        Ok(true)
    }
}
