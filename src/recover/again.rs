//! Gets a reject's bytes again: those that were kept, or from its object, if that is unchanged.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::rejects::KeptReject;
use crate::base::aws::Access;
use crate::base::failure::FailureKind;
use crate::config;
use crate::decode::foreign::is_foreign;
use crate::decode::inflate::{InflateError, Inflater, cause};
use crate::decode::object::{Object, ObjectId};
use crate::decode::reject::Reason;
use crate::land::worker::{Rejected, WorkerSettings};
use crate::source::bucket::{Buckets, ObjectHead, Wanted};
use crate::source::local::{Links, LocalFile};
use crate::source::origin::{Input, Origin, SourceError, fetch};
use crate::source::routing::Sources;

/// Why a reject can't be decoded again.
pub enum Lost {
    /// It stays, for this reason now; none: for that which it has.
    Stays(Option<Reason>),
    /// Its object can't be read, or is not what it was.
    Unreadable(String),
}

impl From<SourceError> for Lost {
    fn from(error: SourceError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// An object's inflated bytes from some place on.
struct Stream {
    object: ObjectId,
    reader: Box<dyn Read + Send>,
    at: u64,
}

/// The ways to what rejects are of. Blocking: for a thread of its own.
pub struct Objects<'a> {
    sources: &'a Sources,
    settings: &'a WorkerSettings,
    buckets: HashMap<Access, Arc<dyn Buckets>>,
    /// The object of the last record that was cut: the next one is further on in it, most often.
    stream: Option<Stream>,
    /// The last object that could not be read: not to be asked for again for each of its records.
    unreadable: Option<(ObjectId, String)>,
}

impl<'a> Objects<'a> {
    /// Of these sources.
    pub fn new(sources: &'a Sources, settings: &'a WorkerSettings) -> Self {
        Self { sources, settings, buckets: HashMap::new(), stream: None, unreadable: None }
    }

    /// What there is of a reject. `has_landed` tells of an object whether it has.
    pub fn find(
        &mut self,
        kept: &KeptReject<'_>,
        has_landed: impl Fn(ObjectId) -> bool,
    ) -> Result<Rejected, Lost> {
        let reason = kept.reason();
        match (reason, kept.length, kept.cut()) {
            // A notification: it holds no record, and what it announces is found by reconciling.
            (Some(Reason::InvalidMessage), ..) => Err(Lost::Stays(None)),
            (_, Some(_), None) => Ok(Rejected::Record(Bytes::copy_from_slice(kept.payload))),
            // It may be as long as its object, and what was kept tells as much as all of it.
            (Some(Reason::ForeignFormat), Some(_), Some(_)) if is_foreign(kept.payload) => {
                Err(Lost::Stays(None))
            }
            (_, Some(_), Some(length)) if length > self.settings.records.max_record as u64 => {
                Err(Lost::Stays(Some(Reason::RecordTooLarge)))
            }
            (_, Some(_), Some(length)) => self.record(kept, length),
            (Some(Reason::Missing | Reason::ForeignBucket), None, _) => self.unread(kept, reason, has_landed),
            (_, None, _) => Ok(Rejected::Object(self.object(kept)?)),
        }
    }

    /// A record of which only the beginning was kept.
    fn record(&mut self, kept: &KeptReject<'_>, length: u64) -> Result<Rejected, Lost> {
        let known = self.unreadable.as_ref().filter(|(id, _)| *id == kept.id.object);
        if let Some((_, why)) = known {
            return Err(Lost::Unreadable(why.clone()));
        }
        let read = self.read_record(kept, length);
        if let Err(Lost::Unreadable(why)) = &read {
            self.unreadable = Some((kept.id.object, why.clone()));
        }
        Ok(Rejected::Record(read?.into()))
    }

    fn read_record(&mut self, kept: &KeptReject<'_>, length: u64) -> Result<Vec<u8>, Lost> {
        let (object, offset) = (kept.id.object, kept.id.offset);
        let mut stream =
            match self.stream.take().filter(|stream| stream.object == object && stream.at <= offset) {
                Some(stream) => stream,
                None => {
                    let stored = self.object(kept)?;
                    let reader =
                        Inflater::stream(stored, self.settings.objects).map_err(|e| failed(kept, e))?;
                    Stream { object, reader, at: 0 }
                }
            };
        let mut passed = (&mut stream.reader).take(offset - stream.at);
        io::copy(&mut passed, &mut io::sink()).map_err(|e| failed(kept, e))?;
        let mut bytes = Vec::with_capacity(length as usize);
        (&mut stream.reader).take(length).read_to_end(&mut bytes).map_err(|e| failed(kept, e))?;
        if bytes.len() as u64 != length || !bytes.starts_with(kept.payload) {
            let what =
                "the record is not where it was; was the object written by another hand? The reject stays";
            return Err(Lost::Unreadable(format!("{}: {what}", kept.object.location())));
        }
        stream.at = offset + length;
        self.stream = Some(stream);
        Ok(bytes)
    }

    /// An object that was read before, if it is still what it was.
    fn object(&mut self, kept: &KeptReject<'_>) -> Result<Input, Lost> {
        let origin = self.origin(&kept.object).ok_or(Lost::Stays(None))?;
        let (object, input) = Handle::current().block_on(fetch(origin))?;
        if object.id == kept.id.object { Ok(input) } else { Err(changed(&kept.object, &object.etag)) }
    }

    /// An object that was announced, and not read.
    fn unread(
        &mut self,
        kept: &KeptReject<'_>,
        reason: Option<Reason>,
        has_landed: impl Fn(ObjectId) -> bool,
    ) -> Result<Rejected, Lost> {
        let told = &kept.object;
        let bucket = told.bucket.as_deref().ok_or(Lost::Stays(None))?;
        if has_landed(ObjectId::of_s3(bucket, &told.key, &told.etag)) {
            return Ok(Rejected::Landed);
        }
        let source = self.sources.of_object(told);
        if reason == Some(Reason::ForeignBucket) && source.is_none() {
            return Err(Lost::Stays(None));
        }
        let origin = self.origin(told).ok_or(Lost::Stays(None))?;
        let (mut object, input) = match Handle::current().block_on(fetch(origin)) {
            Err(SourceError::S3 { source, .. })
                if source.kind == FailureKind::NotFound && reason == Some(Reason::Missing) =>
            {
                return Err(Lost::Stays(None));
            }
            other => other?,
        };
        if has_landed(object.id) || input.is_empty() {
            return Ok(Rejected::Landed);
        }
        // Announcements without an ETag mean whatever is there.
        if !told.etag.is_empty() && told.etag != object.etag {
            return Err(changed(told, &object.etag));
        }
        (object.source_id, object.source_label) = match source {
            Some(source) => (Some(source.id.clone()), source.label.clone()),
            None => (told.source_id.clone(), told.source_label.clone()),
        };
        Ok(Rejected::Unread(object, input))
    }

    /// Where an object was read; none if it can be read only once: standard input, a message's body.
    fn origin(&mut self, object: &Object) -> Option<Origin> {
        let Some(bucket) = &object.bucket else {
            let path = Path::new(&object.key);
            // It was canonical when it was read: a link in it leads to something else.
            return path
                .is_absolute()
                .then(|| Origin::File(LocalFile { path: path.to_owned(), links: Links::PassOver }));
        };
        let access = self.sources.of_object(object).map(|source| source.aws.clone()).unwrap_or_default();
        let open = || -> Arc<dyn Buckets> {
            Arc::new(Handle::current().block_on(access.s3(config::s3_has_custom_endpoint())))
        };
        let buckets = self.buckets.entry(access.clone()).or_insert_with(open).clone();
        let wanted = Wanted { bucket: bucket.clone(), key: object.key.clone(), version: None };
        Some(Origin::S3 {
            buckets,
            wanted,
            head: ObjectHead { etag: object.etag.clone(), size: 0, last_modified: None },
        })
    }
}

fn failed(kept: &KeptReject<'_>, error: io::Error) -> Lost {
    let error: InflateError = cause(error);
    match error.reason() {
        Some(reason) => Lost::Stays(Some(reason)),
        None => Lost::Unreadable(format!("{}: can't be read: {error}", kept.object.location())),
    }
}

fn changed(told: &Object, etag: &str) -> Lost {
    Lost::Unreadable(format!(
        "{}: it was {} when it was rejected, and is {etag} now: another object, which `flarelake backfill` lands; the reject stays",
        told.location(),
        told.etag
    ))
}
