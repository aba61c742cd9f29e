//! Where objects come from: files, folders, globs and S3 prefixes; and how one is fetched.

use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::bucket::{Buckets, Head, ListedObject, RangeReader, Wanted};
use super::object::{ContentHash, Object, ObjectId, is_no_log};
use crate::base::aws::Failure;
use crate::base::micros_since_epoch;

/// Objects of at most this many stored bytes are held in memory while they are decoded; larger ones are
/// read as they go.
pub const WHOLE_BYTES: u64 = 32 << 20;

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
        source: Failure,
    },
}

/// Something to fetch.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A local file.
    File(PathBuf),
    /// An S3 object as a listing told of it.
    S3 {
        /// Its account's buckets.
        buckets: Arc<dyn Buckets>,
        /// Bucket and key.
        wanted: Wanted,
        /// Size, time, and the ETag of that moment.
        head: Head,
    },
}

impl Origin {
    /// An object that `bucket` lists.
    pub fn listed(buckets: Arc<dyn Buckets>, bucket: &str, object: ListedObject) -> Self {
        let ListedObject { key, head } = object;
        Self::S3 { buckets, wanted: Wanted { bucket: bucket.to_owned(), key, version: None }, head }
    }

    /// Where it is, as a person would write it.
    pub fn location(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::S3 { wanted, .. } => wanted.location(),
        }
    }

    /// Bytes as stored, if that is known before fetching.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(path) => std::fs::metadata(path).map_or(0, |m| m.len()),
            Self::S3 { head, .. } => head.size,
        }
    }

    /// Whether it holds no records by its very name or size.
    pub fn is_no_log(&self) -> bool {
        match self {
            Self::File(path) => path.file_name().is_some_and(|n| is_no_log(&n.to_string_lossy())),
            Self::S3 { wanted, head, .. } => is_no_log(&wanted.key) || head.size == 0,
        }
    }

    /// The id it has unless it is overwritten before it is read: lets a landed object be passed over unread.
    pub fn likely_id(&self) -> Option<ObjectId> {
        match self {
            Self::File(_) => None,
            Self::S3 { wanted, head, .. } => Some(ObjectId::of_s3(&wanted.bucket, &wanted.key, &head.etag)),
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

/// The bucket that an S3 URL names; none if it is no such URL.
pub fn bucket_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("s3://").or_else(|| path.strip_prefix("s3a://"))?;
    Some(rest.split_once('/').map_or(rest, |(bucket, _)| bucket))
}

/// Every file under `path`, which is a file, a folder or a glob. Ordered by name.
pub async fn list_files(path: &str) -> Result<Listed, SourceError> {
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

/// Every object under an S3 URL, as something to fetch. Ordered by key.
pub async fn list_bucket(url: &str, buckets: Arc<dyn Buckets>) -> Result<Listed, SourceError> {
    let (bucket, listed) = list_objects(url, buckets.as_ref()).await?;
    Ok(listed.into_iter().map(|object| Ok(Origin::listed(buckets.clone(), &bucket, object))).collect())
}

/// The bucket that an S3 URL names, and every object under the URL: a key, the beginning of keys, or a glob. Ordered by key.
pub async fn list_objects(url: &str, buckets: &dyn Buckets) -> Result<(String, Vec<ListedObject>), SourceError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (bucket, named) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = named.find(['*', '?', '[']).map_or(named, |at| &named[..at]);
    let pattern = (prefix.len() < named.len()).then(|| glob::Pattern::new(named)).transpose();
    let pattern = pattern.map_err(|e| SourceError::Glob { pattern: url.to_owned(), why: e.to_string() })?;
    // A key that is named as it is, is meant, whatever signs it holds.
    let fits = |key: &str| key == named || pattern.as_ref().is_none_or(|p| p.matches(key));
    let mut listed = buckets.list(bucket, prefix).await.map_err(|source| SourceError::S3 { location: url.to_owned(), source })?;
    listed.retain(|o| fits(&o.key));
    if listed.is_empty() {
        return Err(SourceError::Nothing { path: url.to_owned() });
    }
    Ok((bucket.to_owned(), listed))
}

/// Fetches an object and finds out what it is.
pub async fn fetch(origin: Origin) -> Result<(Object, Input), SourceError> {
    match origin {
        Origin::File(path) => {
            let task = tokio::task::spawn_blocking(move || fetch_file(&path));
            task.await.expect("reading a file doesn't panic")
        }
        Origin::S3 { buckets, wanted, head } => fetch_s3(buckets, wanted, head).await,
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

async fn fetch_s3(buckets: Arc<dyn Buckets>, wanted: Wanted, listed: Head) -> Result<(Object, Input), SourceError> {
    let whole = if listed.size > WHOLE_BYTES { 0 } else { WHOLE_BYTES };
    let got = buckets.get(&wanted, whole).await;
    // The listing's ETag is a hint; the response's is what the object is known by.
    let (head, bytes) = got.map_err(|source| SourceError::S3 { location: wanted.location(), source })?;
    Ok(of_s3(buckets, wanted, head, bytes))
}

/// An S3 object by the head of its answer, and its bytes, which are read as they go if they are not at hand.
pub fn of_s3(buckets: Arc<dyn Buckets>, wanted: Wanted, head: Head, bytes: Option<Bytes>) -> (Object, Input) {
    let object = Object {
        id: ObjectId::of_s3(&wanted.bucket, &wanted.key, &head.etag),
        bucket: Some(wanted.bucket.clone()),
        key: wanted.key.clone(),
        etag: head.etag.clone(),
        size: head.size,
        last_modified: head.last_modified,
        source_id: None,
        source_label: None,
    };
    let input = match bytes {
        Some(bytes) => Input::Memory(bytes),
        None => Input::Ranges(RangeReader::new(buckets, wanted, head, Handle::current())),
    };
    (object, input)
}
