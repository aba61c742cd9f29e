//! From what is announced to its bytes. A failure is told apart by what it asks for: another try soon, a
//! longer wait, a reject, or a person.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc};

use super::{BodyObject, Content, IngestError, Job, Ready, RejectedObject, Shared, What, patience};
use crate::base::aws::{Failure, FailureKind};
use crate::base::panics::caught;
use crate::decode::object::{Object, ObjectId};
use crate::decode::reject::Reason;
use crate::source::bucket::{Body, Head, Wanted, is_same_etag};
use crate::source::notice::Announced;
use crate::source::origin::{Input, of_s3};

/// An object that is not there so often is missing.
const MISSES: u32 = 3;
/// Reads of one object that fail while others of its source succeed: it is given up for now.
const FAILURES: u32 = 8;
/// The same where a person has to change something.
const REFUSALS: u32 = 3;
/// Objects refused, and none read in between: the source as a whole is refused.
const REFUSED_OBJECTS: usize = 3;
/// What is reserved for an object whose notice tells no size.
const UNKNOWN_SIZE: u64 = 1 << 20;

/// An answer: the key that was there, what it is, and the bytes if there was room for them.
type Got = (Wanted, Head, Body, OwnedSemaphorePermit);

impl Shared {
    /// A fetcher's life. On a stop, what waits to be fetched goes back to its queue.
    pub(super) async fn fetch_all(
        self: Arc<Self>,
        jobs: Arc<Mutex<mpsc::UnboundedReceiver<Job>>>,
        ready: mpsc::Sender<Ready>,
    ) {
        let _stops_all = self.stop.clone().drop_guard();
        loop {
            let job = async { jobs.lock().await.recv().await };
            let job = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                job = job => job,
            };
            let Some(job) = job else { return };
            match caught(self.fetch(job.clone())).await {
                Ok(Some(found)) => {
                    if ready.send(found).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(said) => self.object_panicked(job, &said),
            }
        }
    }

    async fn fetch(self: &Arc<Self>, job: Job) -> Option<Ready> {
        let what = self.book.lock().what(job.no)?;
        match what {
            What::Announced(feed, announced) => self.fetch_announced(job, feed, announced).await,
            What::Body(feed, body) => {
                let key = self.run.feeds[feed].queue.url().to_owned();
                let BodyObject { hash, id, sent, bytes } = body;
                let object = self.object(feed, ObjectId(id), None, key, hash, bytes.len() as u64, sent);
                let log_type = self.run.feeds[feed].log_type("");
                self.admit_object(job, object, Content::Input(Input::Memory(bytes)), log_type, None).await
            }
            What::Reject(feed, rejected) => {
                let RejectedObject { id, reason, message, bucket, key, etag, sent, payload } = rejected;
                let size = payload.as_ref().map_or(0, |p| p.len() as u64);
                let object = self.object(feed, ObjectId(id), bucket, key, etag, size, sent);
                let content = Content::Reject { reason, message, payload: payload.map(|p| p.to_vec()) };
                self.admit_object(job, object, content, None, None).await
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "they are an object's fields")]
    fn object(
        &self,
        feed: usize,
        id: ObjectId,
        bucket: Option<String>,
        key: String,
        etag: String,
        size: u64,
        last_modified: Option<i64>,
    ) -> Object {
        let source = &self.run.feeds[feed].source;
        let (source_id, source_label) = (Some(source.id.clone()), source.label.clone());
        Object { id, bucket, key, etag, size, last_modified, source_id, source_label }
    }

    async fn fetch_announced(
        self: &Arc<Self>,
        mut job: Job,
        feed: usize,
        announced: Announced,
    ) -> Option<Ready> {
        if let (Some(etag), None) = (&announced.etag, &announced.version)
            && self.run.lake.contains(ObjectId::of_s3(&announced.bucket, &announced.key, etag).0)
        {
            self.already_there(job).await;
            return None;
        }
        let (wanted, head, body, room) = match self.get(feed, &announced).await {
            Ok(got) => got,
            Err((wanted, failure)) => {
                return self.fetch_failed(job, feed, &announced, &wanted, failure).await;
            }
        };
        let state = &self.state[feed];
        *state.last_read.lock() = Some(Instant::now());
        state.denied.store(0, Ordering::Relaxed);
        let of = &self.run.feeds[feed];
        self.accept(feed);
        self.note_overwritten(&mut job, &announced, &wanted, &head);
        let log_type = of.log_type(&wanted.key);
        let (mut object, input) = of_s3(of.buckets.clone(), wanted, head, body);
        if input.is_empty() {
            self.run.metrics.skipped.inc();
            self.landed(job.no);
            return None;
        }
        (object.source_id, object.source_label) = (Some(of.source.id.clone()), of.source.label.clone());
        self.admit_object(job, object, Content::Input(input), log_type, Some(room)).await
    }

    /// What is there lands, whatever was announced. That this is not what was announced is told once: unless
    /// its bucket keeps versions, nobody ever reads that.
    fn note_overwritten(&self, job: &mut Job, announced: &Announced, wanted: &Wanted, head: &Head) {
        let Some(told) = announced.etag.as_ref().filter(|_| announced.version.is_none()) else { return };
        if job.is_told_overwritten || is_same_etag(told, &head.etag) {
            return;
        }
        job.is_told_overwritten = true;
        self.run.metrics.overwritten.inc();
        tracing::warn!(
            bucket = wanted.bucket,
            key = wanted.key,
            announced = told,
            found = head.etag,
            "overwritten before it was read: what is there now lands, what was announced can't be read any more; let keys be written once"
        );
    }

    /// Lets an object pass once: what is on its way already is waited for, and what has landed is
    /// acknowledged.
    async fn admit_object(
        self: &Arc<Self>,
        job: Job,
        object: Object,
        content: Content,
        log_type: Option<usize>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Option<Ready> {
        if !self.book.lock().identify(job.no, object.id) {
            self.run.metrics.duplicates.inc();
            return None;
        }
        if self.run.lake.contains(object.id.0) {
            self.already_there(job).await;
            return None;
        }
        Some(Ready { job, object, content, log_type, room })
    }

    /// An object had landed before. Its messages go when the tables that it touches are at the ledger's
    /// version: whoever landed it may have died in between.
    pub(super) async fn already_there(self: &Arc<Self>, mut job: Job) {
        match self.run.lake.project_all().await {
            Ok(()) => {
                self.run.metrics.duplicates.inc();
                self.landed(job.no);
            }
            Err(error) => {
                tracing::warn!("{error}; trying again");
                job.failures += 1;
                let delay = patience(job.failures);
                self.later(vec![job], delay);
            }
        }
    }

    /// The object by its decoded key, or by its literal one if there is none of the decoded.
    async fn get(&self, feed: usize, announced: &Announced) -> Result<Got, (Wanted, Failure)> {
        let wanted = |key: &String| Wanted {
            bucket: announced.bucket.clone(),
            key: key.clone(),
            version: announced.version.clone(),
        };
        let first = self.get_in_room(feed, wanted(&announced.key), announced.size).await;
        match (first, &announced.literal_key) {
            (Err((_, failure)), Some(literal)) if failure.kind == FailureKind::NotFound => {
                let second = self.get_in_room(feed, wanted(literal), announced.size).await;
                second.map_err(|(tried, other)| {
                    // Of two that are not there, the decoded key is the one to tell of.
                    if other.kind == FailureKind::NotFound {
                        (wanted(&announced.key), failure)
                    } else {
                        (tried, other)
                    }
                })
            }
            (first, _) => first,
        }
    }

    async fn get_in_room(
        &self,
        feed: usize,
        wanted: Wanted,
        hint: Option<u64>,
    ) -> Result<Got, (Wanted, Failure)> {
        let mut reserve = hint.unwrap_or(UNKNOWN_SIZE).clamp(1 << 10, self.whole);
        loop {
            let kib = reserve.div_ceil(1 << 10) as u32;
            let room = self.room.clone().acquire_many_owned(kib).await.expect("it is never closed");
            match self.run.feeds[feed].buckets.get(&wanted, reserve).await {
                Err(failure) => return Err((wanted, failure)),
                // The notice was wrong: again, with room enough.
                Ok((head, Body::Larger)) if head.size > reserve && head.size <= self.whole => {
                    reserve = head.size
                }
                Ok((head, body)) => return Ok((wanted, head, body, room)),
            }
        }
    }

    async fn fetch_failed(
        self: &Arc<Self>,
        mut job: Job,
        feed: usize,
        announced: &Announced,
        wanted: &Wanted,
        failure: Failure,
    ) -> Option<Ready> {
        self.count_fetch_error(failure.kind);
        if names_nothing(&failure, announced) {
            return self
                .unread(
                    job,
                    feed,
                    announced,
                    Reason::InvalidMessage,
                    &format!("no object can have this name: {failure}"),
                )
                .await;
        }
        if failure.kind == FailureKind::NotFound && !failure.message.starts_with("NoSuchBucket") {
            job.misses += 1;
            if job.misses < MISSES {
                let delay = Duration::from_secs(u64::from(job.misses));
                self.later(vec![job], delay);
                return None;
            }
            let why = format!("announced, and not there at {MISSES} tries: {failure}");
            return self.unread(job, feed, announced, Reason::Missing, &why).await;
        }
        self.read_failed(job, feed, &wanted.location(), &failure).await;
        None
    }

    /// An object that there is nothing to read of becomes a reject.
    async fn unread(
        self: &Arc<Self>,
        job: Job,
        feed: usize,
        announced: &Announced,
        reason: Reason,
        why: &str,
    ) -> Option<Ready> {
        let Announced { bucket, key, etag, size, version, .. } = announced.clone();
        let etag = etag.or(version).unwrap_or_default();
        let id = ObjectId::of_unread(reason.code(), &bucket, &key, &etag);
        let message = format!("s3://{bucket}/{key}: {why}");
        tracing::warn!("{message}; it becomes a reject");
        let object = self.object(feed, id, Some(bucket), key, etag, size.unwrap_or(0), None);
        self.admit_object(job, object, Content::Reject { reason, message, payload: None }, None, None).await
    }

    /// An object can't be read: soon again, later again, given up for now, or reason to stop.
    pub(super) async fn read_failed(
        self: &Arc<Self>,
        mut job: Job,
        feed: usize,
        location: &str,
        failure: &Failure,
    ) {
        let of = &self.run.feeds[feed];
        let state = &self.state[feed];
        job.failures += 1;
        let first = *job.first_failure.get_or_insert_with(Instant::now);
        // The same answer for every object of the source, or for this one alone.
        let refused =
            matches!(failure.kind, FailureKind::Denied | FailureKind::NotFound | FailureKind::Wrong);
        let is_final = refused || failure.kind == FailureKind::Unreadable;
        job.refusals += u32::from(is_final);
        let advice = match failure.kind {
            FailureKind::Denied => {
                "allow s3:GetObject (and kms:Decrypt, for keys of KMS) on it to the role that reads this source"
            }
            FailureKind::NotFound => "check the bucket's name, its region and its endpoint",
            FailureKind::Unreadable => {
                "restore it if it is archived; what is encrypted with a key that the reader has to bring can't be read"
            }
            FailureKind::Wrong => "check the source's region and endpoint",
            _ => "it is tried again",
        };
        tracing::warn!(
            source = of.source.id,
            failures = job.failures,
            "{location}: can't be read: {failure}; {advice}"
        );
        if refused {
            self.run.metrics.tell(&of.problem(), Some(format!("{location}: {failure}; {advice}")));
        }
        let others_are_read = state.last_read.lock().is_some_and(|at| at > first);
        let give_up =
            if is_final { job.refusals >= REFUSALS } else { job.failures >= FAILURES && others_are_read };
        if !give_up {
            let delay = patience(job.failures);
            return self.later(vec![job], delay);
        }
        self.give_up(job, location);
        if refused && state.denied.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSED_OBJECTS {
            let (source_id, location, message) =
                (of.source.id.clone(), location.to_owned(), failure.to_string());
            self.refuse(feed, IngestError::Source { source_id, location, message, advice });
        }
    }

    /// Leaves an object's messages to their queue: they come again when their leases end, or go where its
    /// redrive policy says.
    pub(super) fn give_up(&self, job: Job, location: &str) {
        let messages = self.book.lock().give_up(job.no);
        tracing::error!(
            messages = messages.len(),
            "{location}: given up for now; its messages stay in their queue and come again"
        );
        self.run.metrics.given_up.inc();
        self.lighter.notify_waiters();
    }
}

/// Whether no object can be what the notice names: it is S3 that says so.
fn names_nothing(failure: &Failure, announced: &Announced) -> bool {
    let version = announced.version.is_some() && failure.message.to_lowercase().contains("version id");
    failure.message.starts_with("KeyTooLongError")
        || (failure.message.starts_with("InvalidArgument") && version)
}
