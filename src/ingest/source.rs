//! Where objects come from: files, folders, globs and S3 prefixes; and how one is fetched.

use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use tokio::runtime::Handle;

use super::object::{ContentHash, Object, ObjectId, is_no_log};
use crate::base::micros_since_epoch;
use crate::base::store::{Store, StoreError};

/// Objects of at most this many stored bytes are held in memory while they are decoded; larger ones are
/// read as they go.
const WHOLE_BYTES: u64 = 32 << 20;
/// How much of a large S3 object is asked for at once.
const RANGE_BYTES: u64 = 8 << 20;

/// Why input can't be found or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such file, folder or match.
    #[error("{path}: nothing is there; give a file, a folder, a glob in quotes, s3://bucket/prefix, or - for standard input")]
    Nothing {
        /// What was given.
        path: String,
    },
    /// A glob that can't be read.
    #[error("{pattern}: not a glob: {why}")]
    Glob {
        /// What was given.
        pattern: String,
        /// What is wrong.
        why: String,
    },
    /// A file that can't be read.
    #[error("{path}: can't be read: {source}")]
    File {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// An S3 object or listing that can't be read.
    #[error("{location}: can't be read: {source}; check that it is still there and that s3:GetObject and s3:ListBucket are allowed")]
    S3 {
        /// The object or prefix.
        location: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The bucket can't be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Something to fetch.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A local file.
    File(PathBuf),
    /// An S3 object as a listing told of it.
    S3 {
        /// The bucket's store.
        store: Arc<dyn ObjectStore>,
        /// The bucket.
        bucket: String,
        /// Key, size, time, and the ETag of that moment.
        meta: ObjectMeta,
    },
}

impl Origin {
    /// Where it is, as a person would write it.
    pub fn location(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::S3 { bucket, meta, .. } => format!("s3://{bucket}/{}", meta.location),
        }
    }

    /// Bytes as stored, if that is known before fetching.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(path) => std::fs::metadata(path).map_or(0, |m| m.len()),
            Self::S3 { meta, .. } => meta.size,
        }
    }

    /// Whether it holds no records by its very name or size.
    pub fn is_no_log(&self) -> bool {
        match self {
            Self::File(path) => path.file_name().is_some_and(|n| is_no_log(&n.to_string_lossy())),
            Self::S3 { meta, .. } => is_no_log(meta.location.as_ref()) || meta.size == 0,
        }
    }

    /// The id it has unless it is overwritten before it is read: lets a landed object be passed over unread.
    pub fn likely_id(&self) -> Option<ObjectId> {
        match self {
            Self::File(_) => None,
            Self::S3 { bucket, meta, .. } => Some(ObjectId::of_s3(bucket, meta.location.as_ref(), unquoted(meta.e_tag.as_deref()?))),
        }
    }
}

/// An object's stored bytes, or the way to them.
#[derive(Debug)]
pub enum Input {
    /// All of them.
    Memory(Bytes),
    /// A large file, open since it was hashed: replacing it doesn't change what is read.
    File(std::fs::File),
    /// A large S3 object.
    Ranges(RangeReader),
}

impl Input {
    /// The bytes as a stream.
    pub fn reader(self) -> Box<dyn Read + Send> {
        match self {
            Self::Memory(bytes) => Box::new(io::Cursor::new(bytes)),
            Self::File(file) => Box::new(file),
            Self::Ranges(reader) => Box::new(reader),
        }
    }
}

/// What a listing finds: objects, and entries that can't be looked into, which cost themselves only.
pub type Listed = Vec<Result<Origin, SourceError>>;

/// Every object under `path`, which is a file, a folder, a glob or an S3 URL. Ordered by name.
pub async fn list(path: &str, environment: &[(String, String)]) -> Result<Listed, SourceError> {
    if path.starts_with("s3://") || path.starts_with("s3a://") {
        return list_s3(path, environment).await;
    }
    let from_url = url::Url::parse(path).ok().filter(|u| u.scheme() == "file").and_then(|u| u.to_file_path().ok());
    let local = from_url.map_or_else(|| path.to_owned(), |p| p.to_string_lossy().into_owned());
    let task = tokio::task::spawn_blocking(move || list_local(&local));
    task.await.expect("listing files doesn't panic")
}

fn list_local(path: &str) -> Result<Listed, SourceError> {
    let as_is = Path::new(path);
    if as_is.is_dir() {
        return Ok(list_folder(as_is));
    }
    if as_is.symlink_metadata().is_ok() {
        return Ok(vec![Ok(Origin::File(as_is.to_path_buf()))]);
    }
    let matches = glob::glob(path).map_err(|e| SourceError::Glob { pattern: path.to_owned(), why: e.to_string() })?;
    let mut origins = Vec::new();
    for found in matches {
        match found {
            Ok(folder) if folder.is_dir() => origins.extend(list_folder(&folder)),
            Ok(file) => origins.push(Ok(Origin::File(file))),
            Err(e) => origins.push(Err(SourceError::File { path: e.path().display().to_string(), source: e.into() })),
        }
    }
    if origins.is_empty() {
        return Err(SourceError::Nothing { path: path.to_owned() });
    }
    Ok(origins)
}

fn list_folder(folder: &Path) -> Listed {
    let mut origins = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name() {
        match entry {
            Ok(entry) if entry.file_type().is_file() => origins.push(Ok(Origin::File(entry.into_path()))),
            Ok(_) => {}
            Err(e) => {
                let path = e.path().unwrap_or(folder).display().to_string();
                origins.push(Err(SourceError::File { path, source: e.into() }));
            }
        }
    }
    origins
}

async fn list_s3(url: &str, environment: &[(String, String)]) -> Result<Listed, SourceError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (bucket, wanted) = rest.split_once('/').unwrap_or((rest, ""));
    let store = Store::open(&format!("s3://{bucket}/"), environment)?;
    // A listing is by whole folders; a name cut short or a pattern is compared below.
    let fixed = wanted.find(['*', '?', '[']).map_or(wanted, |at| &wanted[..at]);
    let folder = fixed.rsplit_once('/').map_or("", |(folder, _)| folder);
    let pattern = (fixed.len() < wanted.len()).then(|| glob::Pattern::new(wanted)).transpose();
    let pattern = pattern.map_err(|e| SourceError::Glob { pattern: url.to_owned(), why: e.to_string() })?;
    // A key that is named as it is, is meant, whatever signs it holds.
    let fits = |key: &str| key == wanted || pattern.as_ref().map_or_else(|| key.starts_with(wanted), |p| p.matches(key));
    let failed = |source| SourceError::S3 { location: url.to_owned(), source };
    let prefix = object_store::path::Path::parse(folder).map_err(|e| failed(e.into()))?;
    let listed: Vec<ObjectMeta> = store.objects.list((!folder.is_empty()).then_some(&prefix)).try_collect().await.map_err(failed)?;
    let mut found: Vec<ObjectMeta> = listed.into_iter().filter(|meta| fits(meta.location.as_ref())).collect();
    if found.is_empty() {
        return Err(SourceError::Nothing { path: url.to_owned() });
    }
    found.sort_by(|a, b| a.location.cmp(&b.location));
    let origin = |meta| Origin::S3 { store: store.objects.clone(), bucket: bucket.to_owned(), meta };
    Ok(found.into_iter().map(|meta| Ok(origin(meta))).collect())
}

/// Fetches an object and finds out what it is.
pub async fn fetch(origin: Origin) -> Result<(Object, Input), SourceError> {
    match origin {
        Origin::File(path) => {
            let task = tokio::task::spawn_blocking(move || fetch_file(&path));
            task.await.expect("reading a file doesn't panic")
        }
        Origin::S3 { store, bucket, meta } => fetch_s3(store, bucket, meta).await,
    }
}

fn fetch_file(path: &Path) -> Result<(Object, Input), SourceError> {
    let failed = |source| SourceError::File { path: path.display().to_string(), source };
    let canonical = path.canonicalize().map_err(failed)?;
    let mut file = std::fs::File::open(&canonical).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let last_modified = metadata.modified().ok().map(micros_since_epoch);
    let (hash, size, input) = if metadata.len() <= WHOLE_BYTES {
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        file.read_to_end(&mut bytes).map_err(failed)?;
        (ContentHash::of(&bytes[..]).map_err(failed)?, bytes.len() as u64, Input::Memory(bytes.into()))
    } else {
        let hash = ContentHash::of(&mut file).map_err(failed)?;
        file.rewind().map_err(failed)?;
        (hash, metadata.len(), Input::File(file))
    };
    let object = Object {
        id: ObjectId::of_file(&canonical, &hash),
        bucket: None,
        key: canonical.to_string_lossy().into_owned(),
        etag: hash.to_string(),
        size,
        last_modified,
        source_id: None,
        source_label: None,
    };
    Ok((object, input))
}

async fn fetch_s3(store: Arc<dyn ObjectStore>, bucket: String, meta: ObjectMeta) -> Result<(Object, Input), SourceError> {
    let key = meta.location.to_string();
    let failed = |source| SourceError::S3 { location: format!("s3://{bucket}/{key}"), source };
    // The listing's ETag is a hint; the response's is what the object is known by.
    let response =
        store.get_opts(&meta.location, GetOptions { head: meta.size > WHOLE_BYTES, ..GetOptions::default() }).await.map_err(failed)?;
    let read = response.meta.clone();
    let etag = unquoted(read.e_tag.as_deref().unwrap_or_default()).to_owned();
    let input = if meta.size > WHOLE_BYTES {
        let reader = RangeReader { store, meta: read.clone(), at: 0, chunk: Bytes::new(), runtime: Handle::current() };
        Input::Ranges(reader)
    } else {
        Input::Memory(response.bytes().await.map_err(failed)?)
    };
    let object = Object {
        id: ObjectId::of_s3(&bucket, &key, &etag),
        etag,
        size: read.size,
        last_modified: Some(read.last_modified.timestamp_micros()),
        source_id: None,
        source_label: None,
        key: key.clone(),
        bucket: Some(bucket),
    };
    Ok((object, input))
}

fn unquoted(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

/// Reads a large S3 object range by range, all of one ETag. Not to be read on an async thread.
#[derive(Debug)]
pub struct RangeReader {
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
    at: u64,
    chunk: Bytes,
    runtime: Handle,
}

impl Read for RangeReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && self.at < self.meta.size {
            let range = self.at..self.meta.size.min(self.at + RANGE_BYTES);
            let options =
                GetOptions { range: Some(GetRange::Bounded(range.clone())), if_match: self.meta.e_tag.clone(), ..GetOptions::default() };
            let get = async { self.store.get_opts(&self.meta.location, options).await?.bytes().await };
            let chunk = self.runtime.block_on(get).map_err(io::Error::other)?;
            if chunk.len() as u64 != range.end - range.start {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the store's answer was cut short"));
            }
            self.at = range.end;
            self.chunk = chunk;
        }
        let n = to.len().min(self.chunk.len());
        to[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}
