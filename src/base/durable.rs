//! A local file system whose writes are on the disk before they are acknowledged.
//!
//! `object_store`'s own writes atomically but syncs nothing: after a power loss, a file that a log names
//! could be empty. Here a put writes a staging file, syncs it, links or renames it to its name, and syncs the
//! folders that changed. Reads and other listings are passed through.
//!
//! Every put of a log entry lists its folder from a given name on, and there may be tens of thousands of
//! entries: the folder is read, but names before that one cost no further work.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryFutureExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

const STORE: &str = "DurableFileSystem";
/// Files that are asked for one by one.
const MOST_ASKED: usize = 64;

#[derive(Debug, Clone)]
pub struct DurableFileSystem {
    inner: LocalFileSystem,
}

impl DurableFileSystem {
    /// The whole local file system; paths are absolute.
    pub fn new() -> Self {
        Self { inner: LocalFileSystem::new() }
    }
}

impl DurableFileSystem {
    /// What there is to tell of a file that a folder named; nothing if it is gone again.
    async fn found(&self, location: Path) -> Result<Option<ObjectMeta>> {
        match self.inner.head(&location).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The files of a folder that come after a name; none if something else there may come after it, too: a
/// folder, a link.
fn names_after(folder: &FilePath, prefix: &Path, offset: &Path) -> Option<Vec<Path>> {
    let after = offset.as_ref().strip_prefix(prefix.as_ref())?.strip_prefix('/')?;
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let name = name.to_str()?;
        let (kind, folder) = (entry.file_type().ok()?, format!("{name}/"));
        // Staging files are no objects.
        if kind.is_file()
            && name
                .split_once('#')
                .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        {
            continue;
        }
        // Names with other signs are spelled differently in a path.
        let is_plain =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'='));
        let is_before = kind.is_file() && name <= after
            || kind.is_dir() && *folder < *after && !after.starts_with(&folder);
        if is_plain && is_before {
            continue;
        }
        if !is_plain || !kind.is_file() {
            return None;
        }
        names.push(prefix.clone().join(name));
    }
    Some(names)
}

impl std::fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{STORE}")
    }
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return self.inner.put_opts(location, payload, opts).await,
        };
        let target = self.inner.path_to_filesystem(location)?;
        let task = tokio::task::spawn_blocking(move || put(&target, &payload, create));
        match task.await.map_err(|e| Error::Generic { store: STORE, source: e.into() })? {
            Ok(()) => Ok(PutResult { e_tag: None, version: None }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyExists { path: location.to_string(), source: e.into() })
            }
            Err(e) => Err(Error::Generic { store: STORE, source: format!("writing {location}: {e}").into() }),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.inner.path_to_filesystem(location)?;
        let folder = target.parent().unwrap_or(&target).to_owned();
        blocking(location, move || make_folders(&folder)).await?;
        Ok(Box::new(DurableUpload {
            inner: self.inner.put_multipart_opts(location, opts).await?,
            location: location.clone(),
            target,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let Some(prefix) = prefix.cloned() else { return self.inner.list_with_offset(None, offset) };
        let (folder, offset) = (self.inner.path_to_filesystem(&prefix), offset.clone());
        let own = self.clone();
        let listing = async move {
            let folder = folder?;
            let names = {
                let (prefix, offset) = (prefix.clone(), offset.clone());
                let task = tokio::task::spawn_blocking(move || names_after(&folder, &prefix, &offset));
                task.await.map_err(|e| Error::Generic { store: STORE, source: e.into() })?
            };
            // Of many, and of what is no plain file, the walk that is passed on tells as much in less time.
            Ok::<_, Error>(match names {
                Some(names) if names.len() <= MOST_ASKED => stream::iter(names)
                    .filter_map(move |name| {
                        let own = own.clone();
                        async move { own.found(name).await.transpose() }
                    })
                    .boxed(),
                _ => own.inner.list_with_offset(Some(&prefix), &offset),
            })
        };
        listing.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A large file that is written in parts; it has its name when it is whole and on the disk.
#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    location: Path,
    target: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let target = self.target.clone();
        blocking(&self.location, move || {
            File::open(&target)?.sync_all()?;
            sync_folder(target.parent().unwrap_or(&target))
        })
        .await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

async fn blocking(location: &Path, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Generic {
        store: STORE,
        source: format!("writing {location}: {e}").into(),
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
}

/// Removes what was begun before a time and has not got its name: `put…#0` of ours, `….parquet#1` of
/// object_store's.
pub fn remove_unfinished(folder: &FilePath, before: i64, dry_run: bool) -> io::Result<u64> {
    let is_unfinished = |name: &str| {
        let Some((name, digits)) = name.rsplit_once('#') else { return false };
        let is_ours = name.starts_with("put")
            || [".parquet", ".json", "_last_checkpoint"].iter().any(|end| name.ends_with(end));
        is_ours && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let mut removed = 0;
    for entry in walkdir::WalkDir::new(folder) {
        let remove = || {
            let entry = entry?;
            if !entry.file_type().is_file() || !is_unfinished(&entry.file_name().to_string_lossy()) {
                return Ok(0);
            }
            if super::micros_since_epoch(entry.metadata()?.modified()?) >= before {
                return Ok(0);
            }
            if !dry_run {
                fs::remove_file(entry.path())
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", entry.path().display())))?;
            }
            Ok::<_, io::Error>(1)
        };
        match remove() {
            Ok(count) => removed += count,
            // Its writer has finished it, or someone else removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", folder.display()))),
        }
    }
    Ok(removed)
}

fn put(target: &FilePath, payload: &PutPayload, create: bool) -> io::Result<()> {
    let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_folders(folder)?;
    // The name ends in `#` and digits, which object_store takes for an unfinished write and never lists.
    // Others may read a lake as far as the umask lets them: the default for temporary files is nobody.
    let mode = fs::Permissions::from_mode(0o666);
    let mut staging =
        tempfile::Builder::new().prefix("put").suffix("#0").permissions(mode).tempfile_in(folder)?;
    for chunk in payload {
        staging.write_all(chunk)?;
    }
    staging.as_file().sync_all()?;
    if create {
        fs::hard_link(staging.path(), target)?;
        staging.close()?;
    } else {
        staging.persist(target).map_err(|e| e.error)?;
    }
    sync_folder(folder)
}

/// Makes the folder and those above it, and syncs every folder that got a new entry.
fn make_folders(folder: &FilePath) -> io::Result<()> {
    let missing: Vec<PathBuf> =
        folder.ancestors().take_while(|f| !f.exists()).map(FilePath::to_path_buf).collect();
    fs::create_dir_all(folder)?;
    for made in missing.iter().rev() {
        sync_folder(made.parent().unwrap_or(made))?;
    }
    Ok(())
}

fn sync_folder(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
