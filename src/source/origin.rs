//! Where objects come from: files, folders, globs and S3 prefixes; and how one is fetched.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _, future};
use tokio::runtime::Handle;

use super::bucket::{Body, Buckets, ListedObject, ObjectHead, RangeReader, StreamReader, Wanted};
use super::local::{self, Content, HashedFile, Links, LocalError, LocalFile, PassedOver};
use crate::base::failure::Failure;
use crate::base::micros_since_epoch;
use crate::decode::inflate::InflateError;
use crate::decode::object::{Object, ObjectId, is_no_log};

/// Objects of at most this many stored bytes are held in memory while they are decoded; larger ones are
/// read as they go.
pub const WHOLE_BYTES: u64 = 32 << 20;

/// Why input can't be found or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such file, folder or match.
    #[error(
        "{path}: nothing is there; give a file, a folder, a glob in quotes, s3://bucket/prefix, or - for standard input"
    )]
    Nothing { path: String },
    /// A glob that can't be read.
    #[error("{pattern}: not a glob: {why}")]
    Glob { pattern: String, why: String },
    /// A file that is not read.
    #[error(transparent)]
    File(#[from] LocalError),
    /// An S3 object or listing that can't be read.
    #[error(
        "{location}: can't be read: {source}; check that it is still there and that s3:GetObject and s3:ListBucket are allowed"
    )]
    S3 {
        /// The object or prefix.
        location: String,
        source: Failure,
    },
}

impl SourceError {
    /// Whether it is of one entry of a listing, whose other entries can be read.
    pub fn costs_itself_only(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

#[derive(Debug, Clone)]
pub enum Origin {
    File(LocalFile),
    /// An S3 object as a listing told of it.
    S3 {
        buckets: Arc<dyn Buckets>,
        wanted: Wanted,
        /// Size, time, and the ETag of that moment.
        head: ObjectHead,
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
            Self::File(file) => file.path.display().to_string(),
            Self::S3 { wanted, .. } => wanted.location(),
        }
    }

    /// Bytes as stored, if that is known before fetching.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(file) => std::fs::metadata(&file.path).map_or(0, |m| m.len()),
            Self::S3 { head, .. } => head.size,
        }
    }

    /// Whether it holds no records by its very name or size.
    pub fn is_no_log(&self) -> bool {
        match self {
            Self::File(file) => file.path.file_name().is_some_and(|n| is_no_log(&n.to_string_lossy())),
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
    Memory(Bytes),
    /// A large file.
    File(HashedFile),
    /// A large S3 object.
    Ranges(RangeReader),
    /// An S3 object whose size nothing tells.
    Stream(StreamReader),
}

impl Read for Input {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => {
                let n = to.len().min(bytes.len());
                to[..n].copy_from_slice(&bytes.split_to(n));
                Ok(n)
            }
            Self::File(file) => file.read(to),
            Self::Ranges(reader) => reader.read(to),
            Self::Stream(reader) => reader.read(to),
        }
    }
}

impl Input {
    /// Whether reading it waits for the network.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Ranges(_) | Self::Stream(_))
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Memory(bytes) if bytes.is_empty())
    }

    /// Makes sure, after decoding, that what was decoded is what the object is known by: before that, what is
    /// wrong with the bytes is nothing that the object is to blame for.
    pub fn finish(&mut self, decoded: Result<(), InflateError>) -> Result<(), InflateError> {
        match (&mut *self, &decoded) {
            (_, Err(InflateError::Read(_))) => decoded,
            (Self::File(_), _) => {
                io::copy(self, &mut io::sink()).map_err(InflateError::Read)?;
                decoded
            }
            (Self::Stream(reader), Err(InflateError::Corrupt { .. })) if !reader.has_end() => {
                let why = "the answer may have been cut short: it told neither its length nor its end, and the compressed data have none";
                Err(InflateError::Read(io::Error::other(why)))
            }
            _ => decoded,
        }
    }

    /// How many bytes it had, where only having read them tells.
    pub fn counted(&self) -> Option<u64> {
        match self {
            Self::Stream(reader) => Some(reader.bytes()),
            _ => None,
        }
    }
}

/// What a listing finds: objects, and entries that can't be looked into, which cost themselves only.
pub type Listing = BoxStream<'static, Result<Origin, SourceError>>;

/// What an S3 listing finds, by key.
pub type ListedObjects = BoxStream<'static, Result<ListedObject, SourceError>>;

/// The bucket that an S3 URL names; none if it is no such URL.
pub fn bucket_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("s3://").or_else(|| path.strip_prefix("s3a://"))?;
    Some(rest.split_once('/').map_or(rest, |(bucket, _)| bucket))
}

/// Every file under `path`, which is a file, a folder or a glob, ordered by name; and how much else was met
/// there.
pub async fn list_files(path: &str, links: Links) -> Result<(Listing, PassedOver), SourceError> {
    let from_url =
        url::Url::parse(path).ok().filter(|u| u.scheme() == "file").and_then(|u| u.to_file_path().ok());
    let local = from_url.map_or_else(|| path.to_owned(), |p| p.to_string_lossy().into_owned());
    let task = tokio::task::spawn_blocking(move || local::list(&local, links));
    let listing = task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let listing = listing.map_err(|e| SourceError::Glob { pattern: path.to_owned(), why: e.to_string() })?;
    let listing = listing.ok_or_else(|| SourceError::Nothing { path: path.to_owned() })?;
    let origins = listing.files.into_iter().map(|file| Ok(Origin::File(file?)));
    Ok((stream::iter(origins).boxed(), listing.passed_over))
}

/// Every object under an S3 URL, as something to fetch. Ordered by key.
pub async fn list_bucket(url: &str, buckets: Arc<dyn Buckets>) -> Result<Listing, SourceError> {
    let (bucket, listed) = list_objects(url, buckets.as_ref()).await?;
    Ok(listed.map_ok(move |object| Origin::listed(buckets.clone(), &bucket, object)).boxed())
}

/// The bucket that an S3 URL names, and every object under the URL: a key, the beginning of keys, or a glob.
/// Ordered by key. That there is at least one was seen.
pub async fn list_objects(url: &str, buckets: &dyn Buckets) -> Result<(String, ListedObjects), SourceError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (bucket, named) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = named.find(['*', '?', '[']).map_or(named, |at| &named[..at]);
    let pattern = (prefix.len() < named.len()).then(|| glob::Pattern::new(named)).transpose();
    let pattern = pattern.map_err(|e| SourceError::Glob { pattern: url.to_owned(), why: e.to_string() })?;
    // A key that is named as it is, is meant, whatever signs it holds.
    let (key, location) = (named.to_owned(), url.to_owned());
    let fits = move |object: &ListedObject| {
        let fits = object.key == key || pattern.as_ref().is_none_or(|p| p.matches(&object.key));
        future::ready(fits)
    };
    let failed = move |source| SourceError::S3 { location: location.clone(), source };
    let listed = buckets.list(bucket, prefix).try_filter(fits).map_err(failed);
    let mut listed = Box::pin(listed.peekable());
    match listed.as_mut().peek().await {
        None => Err(SourceError::Nothing { path: url.to_owned() }),
        Some(Ok(_)) => Ok((bucket.to_owned(), listed)),
        // It is the last, too.
        Some(Err(_)) => {
            Err(listed.try_next().await.err().unwrap_or(SourceError::Nothing { path: url.to_owned() }))
        }
    }
}

/// Fetches an object and finds out what it is. One that is larger than [`WHOLE_BYTES`] is read as it goes.
pub async fn fetch(origin: Origin) -> Result<(Object, Input), SourceError> {
    match origin {
        Origin::File(file) => {
            let task = tokio::task::spawn_blocking(move || of_file(&file, WHOLE_BYTES));
            Ok(task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
        }
        Origin::S3 { buckets, wanted, head: listed } => {
            let whole = if listed.size > WHOLE_BYTES { 0 } else { WHOLE_BYTES };
            let got = buckets.get(&wanted, whole).await;
            // The listing's ETag is a hint; the response's is what the object is known by.
            let (head, body) =
                got.map_err(|source| SourceError::S3 { location: wanted.location(), source })?;
            Ok(of_s3(buckets, wanted, head, body))
        }
    }
}

/// A local file, and its bytes; those of one that has more than `whole` are read as they go.
pub fn of_file(file: &LocalFile, whole: u64) -> Result<(Object, Input), LocalError> {
    let read = file.read(whole)?;
    let object = Object {
        id: ObjectId::of_file(&read.path, &read.hash),
        bucket: None,
        key: read.path.to_string_lossy().into_owned(),
        etag: read.hash.to_string(),
        size: read.size,
        last_modified: read.modified.map(micros_since_epoch),
        source_id: None,
        source_label: None,
    };
    let input = match read.content {
        Content::Whole(bytes) => Input::Memory(bytes),
        Content::Hashed(file) => Input::File(file),
    };
    Ok((object, input))
}

/// An S3 object by the head of its answer, and its bytes, which are read as they go if they are not at hand.
pub fn of_s3(buckets: Arc<dyn Buckets>, wanted: Wanted, head: ObjectHead, body: Body) -> (Object, Input) {
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
    let input = match body {
        Body::Whole(bytes) => Input::Memory(bytes),
        Body::Larger => Input::Ranges(RangeReader::new(buckets, wanted, head, Handle::current())),
        Body::Unmeasured(body) => Input::Stream(StreamReader::new(body, Handle::current())),
    };
    (object, input)
}
