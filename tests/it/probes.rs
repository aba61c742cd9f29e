//! The start-up probe: a store that lets two writers create one key is found out, whatever else goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flarelake::base::store::StoreError;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support::{FaultStore, Faults, memory_lake};

/// A store that looks whether a key is there, and puts then; and whose client panics over the first listings.
#[derive(Debug, Default)]
pub struct OddStore {
    pub inner: Arc<InMemory>,
    pub listings_panic: AtomicU64,
    /// Puts of files of HTTP requests.
    pub files_panic: AtomicU64,
    /// Puts of keys that hold this text are refused.
    pub refuses: Option<&'static str>,
}

impl std::fmt::Display for OddStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OddStore")
    }
}

#[async_trait]
impl ObjectStore for OddStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if self.refuses.is_some_and(|text| location.as_ref().contains(text)) {
            return Err(Error::PermissionDenied {
                path: location.to_string(),
                source: "AccessDenied".into(),
            });
        }
        if opts.mode == PutMode::Create && self.inner.head(location).await.is_ok() {
            return Err(Error::AlreadyExists { path: location.to_string(), source: "it is there".into() });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        if location.as_ref().contains("cloudflare_httprequest/p_event_date") {
            let left =
                self.files_panic.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            assert!(left.is_err(), "a fault of the store's client");
        }
        self.inner.put(location, payload).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let left =
            self.listings_panic.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "a fault of the store's client");
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_looks_first_and_puts_then_is_refused() {
    let store = memory_lake(Arc::new(OddStore::default()));
    // One after the other, nothing is to be seen.
    let key = Path::from("lake/x");
    let create = || store.objects.put_opts(&key, "x".into(), PutMode::Create.into());
    create().await.expect("it is new");
    assert!(matches!(create().await, Err(Error::AlreadyExists { .. })));
    assert!(matches!(store.probe().await, Err(StoreError::Unguarded { .. })));
    let found = store.permissions().await;
    let (_, guarded) =
        found.iter().find(|(right, _)| right.starts_with("put-if-absent")).expect("it is tried");
    assert!(
        guarded.as_ref().is_err_and(|why| why.contains("lets two writers create the same key")),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_decides_nothing() {
    // By the store itself, or for good; at each put of the first two races.
    for at in 1..=16 {
        let lost = [
            Faults { repeats_at: at, ..Faults::default() },
            Faults { loses_answer_at: at, ..Faults::default() },
            Faults { fails_at: at, ..Faults::default() },
        ];
        for faults in lost {
            let inner = Arc::new(InMemory::new());
            let store = memory_lake(FaultStore::with(inner.clone(), faults));
            store.probe().await.unwrap_or_else(|e| panic!("{faults:?}: {e}"));
            let left = inner.list_with_delimiter(Some(&Path::from("lake"))).await.expect("listed").objects;
            assert!(left.len() <= 1, "{faults:?}: {left:?}");
        }
    }
    let repeats = FaultStore::with(Arc::new(InMemory::new()), Faults { repeats_at: 1, ..Faults::default() });
    let found = memory_lake(repeats).permissions().await;
    assert!(found.iter().all(|(_, result)| result.is_ok()), "{found:?}");
    // Where nothing can be put, that is what is said.
    let dead =
        memory_lake(FaultStore::with(Arc::new(InMemory::new()), Faults { dies_at: 1, ..Faults::default() }));
    let error = dead.probe().await.expect_err("nothing can be put").to_string();
    assert!(error.contains("can't write to") && error.contains("the store is gone"), "{error}");
}
