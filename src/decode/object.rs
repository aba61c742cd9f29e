//! Objects: the units of input that land atomically, and their permanent ids.

use std::fmt;

use sha2::{Digest, Sha256};

/// A 128-bit hash of an object's identity. Two objects with one id are the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u128);

impl ObjectId {
    /// Of the parts that identify the object; the first says what kind of identity it is.
    fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // Lengths keep ("a", "bc") and ("ab", "c") apart.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(u128::from_be_bytes(hash.finalize()[..16].try_into().expect("16 of 32 bytes")))
    }

    /// An S3 object: bucket, key, and the ETag of the response that was read, without quotes.
    pub fn of_s3(bucket: &str, key: &str, etag: &str) -> Self {
        Self::of(&[b"s3", bucket.as_bytes(), key.as_bytes(), etag.as_bytes()])
    }

    /// A local file: canonical path, and the hash of its bytes.
    pub fn of_file(path: &std::path::Path, content: &ContentHash) -> Self {
        // By the path's bytes: names that are no UTF-8 may look alike and be different.
        Self::of(&[b"file", path.as_os_str().as_encoded_bytes(), &content.0])
    }

    /// A piece of standard input: the hash of its bytes.
    pub fn of_stdin(content: &ContentHash) -> Self {
        Self::of(&[b"stdin", &content.0])
    }

    /// A message's body: the source that it came to, and the hash of its bytes. A redriven message has a new
    /// message id.
    pub fn of_message(source: &str, content: &ContentHash) -> Self {
        Self::of(&[b"message", source.as_bytes(), &content.0])
    }

    /// An object that was announced, and became a reject without having been read: why, and what the
    /// announcement said of it. Not the id that it has once it is read.
    pub fn of_unread(reason: &str, bucket: &str, key: &str, etag: &str) -> Self {
        Self::of(&[b"unread", reason.as_bytes(), bucket.as_bytes(), key.as_bytes(), etag.as_bytes()])
    }

    /// What became of a reject when it was decoded again: known apart from the object that it was a part of,
    /// which had landed.
    pub fn of_replay(reject: RowId) -> Self {
        Self::of(&[b"replay", reject.to_string().as_bytes()])
    }

    /// The id that the text of [`Display`](fmt::Display) stands for.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A row's `p_row_id`, or a reject's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowId {
    pub object: ObjectId,
    /// The record's byte offset in the inflated object, or [`WHOLE_OBJECT`](Self::WHOLE_OBJECT).
    pub offset: u64,
}

impl RowId {
    /// The offset in the id of a reject that is a whole object: no record's offset.
    pub const WHOLE_OBJECT: u64 = 0xffff_ffff_ffff;

    /// The id that the text of [`Display`](fmt::Display) stands for.
    pub fn parse(text: &str) -> Option<Self> {
        let offset = text.get(32..).filter(|digits| digits.len() == 12)?;
        Some(Self {
            object: ObjectId::parse(text.get(..32)?)?,
            offset: u64::from_str_radix(offset, 16).ok()?,
        })
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:012x}", self.object, self.offset)
    }
}

/// SHA-256 of an object's bytes as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Hashes everything that `reader` gives.
    pub fn of(mut reader: impl std::io::Read) -> std::io::Result<Self> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Self(hash.finalize().into())),
                n => hash.update(&buffer[..n]),
            }
        }
    }
}

/// The hash of bytes as they pass by.
#[derive(Debug, Clone, Default)]
pub struct PassingHash(Sha256);

impl PassingHash {
    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all that passed.
    pub fn finish(self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// 1970-01-01T00:00:00Z and the last microsecond of 2099: times that every reader of dates can read, and the
/// least and greatest that the lake keeps. Microseconds.
pub const EARLIEST_TIME: i64 = 0;
pub const LATEST_TIME: i64 = 4_102_444_800_000_000 - 1;

/// Everything the lake keeps about where an object came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is known by.
    pub id: ObjectId,
    /// The bucket; none for a file or standard input.
    pub bucket: Option<String>,
    /// The key, the canonical path, or `-`.
    pub key: String,
    /// The ETag without quotes, or the hash of the bytes.
    pub etag: String,
    /// Bytes as stored.
    pub size: u64,
    /// When it was written, in microseconds since the epoch, as it was told; none if nothing tells.
    pub last_modified: Option<i64>,
    /// The source it belongs to.
    pub source_id: Option<String>,
    pub source_label: Option<String>,
}

impl Object {
    /// Where it is, as a person would write it.
    pub fn location(&self) -> String {
        match &self.bucket {
            Some(bucket) => format!("s3://{bucket}/{}", self.key),
            None => self.key.clone(),
        }
    }

    /// When it was written, as the lake keeps it: file systems and archives hold times that no calendar
    /// reads.
    pub fn written(&self) -> Option<i64> {
        self.last_modified.map(|written| written.clamp(EARLIEST_TIME, LATEST_TIME))
    }
}

/// Objects that hold no records by their very name: Cloudflare's proof of ownership, and directory markers.
pub fn is_no_log(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or(key);
    name.is_empty() || (name.starts_with("ownership-challenge") && name.ends_with(".txt"))
}

/// What the rows of an object have in common.
#[derive(Debug, Clone)]
pub struct ObjectContext {
    /// The object's id, which begins every row's `p_row_id`.
    pub id: ObjectId,
    /// When the object was written, in microseconds; the latest plausible event is a day later.
    pub last_modified: Option<i64>,
    pub source_id: Option<String>,
    pub source_label: Option<String>,
    /// `p_parse_time`, in microseconds.
    pub parse_time: i64,
    /// The log type every record is taken for, by its index in the catalog; else each is told by its own
    /// fields.
    pub log_type: Option<usize>,
}
