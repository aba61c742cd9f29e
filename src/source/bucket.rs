//! Reads objects from buckets, one request at a time; failures say what to do.

use std::error::Error;
use std::fmt::Debug;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::primitives::ByteStream;
use backon::{BlockingRetryable as _, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::runtime::Handle;

use crate::base::clock;
use crate::base::failure::{Failure, FailureKind};
use crate::base::store::Permission;
use crate::decode::inflate::Encoding;

/// How much of a large object is asked for at once.
const RANGE_BYTES: u64 = 8 << 20;

/// No further try for a range is begun after this.
const RANGE_PATIENCE: Duration = Duration::from_secs(20);

/// What is to be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub bucket: String,
    /// The key, as it is.
    pub key: String,
    /// The version; none is the newest.
    pub version: Option<String>,
}

impl Wanted {
    /// As a person would write it.
    pub fn location(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }
}

/// The head of an answer: what the object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Without quotes.
    pub etag: String,
    /// Bytes, of the whole object; 0 where only reading it tells ([`Body::Unmeasured`]).
    pub size: u64,
    /// In microseconds since the epoch.
    pub last_modified: Option<i64>,
}

/// What an answer brings of an object's bytes.
#[derive(Debug)]
pub enum Body {
    Whole(Bytes),
    /// None: there are more than were wanted at once.
    Larger,
    /// One after the other, as the store tells no length.
    Unmeasured(Unmeasured),
}

/// The bytes of an answer that tells no length: the first ones, and those that are still to come.
#[derive(Debug)]
pub struct Unmeasured {
    first: Bytes,
    rest: Option<ByteStream>,
    has_end: bool,
}

/// A line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    pub key: String,
    /// What the listing says of it.
    pub head: ObjectHead,
}

/// Buckets of one account.
#[async_trait]
pub trait Buckets: Send + Sync + Debug {
    /// The object, its bytes at once if they are at most `whole`.
    async fn get(&self, wanted: &Wanted, whole: u64) -> Result<(ObjectHead, Body), Failure>;

    /// A range of the object, if it still has this ETag.
    async fn range(&self, wanted: &Wanted, range: Range<u64>, etag: &str) -> Result<Bytes, Failure>;

    /// Every object whose key begins with `prefix`, by key. An error is the last that comes.
    fn list(&self, bucket: &str, prefix: &str) -> BoxStream<'static, Result<ListedObject, Failure>>;
}

#[async_trait]
impl Buckets for Client {
    async fn get(&self, wanted: &Wanted, whole: u64) -> Result<(ObjectHead, Body), Failure> {
        let request =
            self.get_object().bucket(&wanted.bucket).key(&wanted.key).set_version_id(wanted.version.clone());
        let has_end = Arc::new(AtomicBool::new(false));
        let answer = request
            .customize()
            .interceptor(OwnEnd(has_end.clone()))
            .send()
            .await
            .map_err(|e| Failure::from(&e))?;
        // An object is known by its ETag.
        let etag = answer.e_tag().map(unquoted).filter(|e| !e.is_empty()).ok_or_else(|| headless("ETag"))?;
        let head =
            ObjectHead { etag: etag.to_owned(), size: 0, last_modified: answer.last_modified().map(micros) };
        let Some(size) = answer.content_length() else {
            return unmeasured(wanted, head, answer.body, whole, has_end.load(Ordering::Relaxed)).await;
        };
        let head = ObjectHead { size: size as u64, ..head };
        if head.size > whole {
            return Ok((head, Body::Larger));
        }
        let bytes = answer.body.collect().await.map_err(|e| Failure::on_the_way(&e))?.into_bytes();
        if bytes.len() as u64 != head.size {
            return Err(cut_short(bytes.len() as u64, head.size));
        }
        Ok((head, Body::Whole(bytes)))
    }

    async fn range(&self, wanted: &Wanted, range: Range<u64>, etag: &str) -> Result<Bytes, Failure> {
        let length = range.end - range.start;
        let request =
            self.get_object().bucket(&wanted.bucket).key(&wanted.key).set_version_id(wanted.version.clone());
        let request =
            request.range(format!("bytes={}-{}", range.start, range.end - 1)).if_match(format!("\"{etag}\""));
        let answer = request.send().await.map_err(|e| Failure::from(&e))?;
        let bytes = answer.body.collect().await.map_err(|e| Failure::on_the_way(&e))?.into_bytes();
        if bytes.len() as u64 != length {
            return Err(cut_short(bytes.len() as u64, length));
        }
        Ok(bytes)
    }

    fn list(&self, bucket: &str, prefix: &str) -> BoxStream<'static, Result<ListedObject, Failure>> {
        let pages = self.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
        let pages = stream::unfold(pages, |mut pages| async move { Some((pages.next().await?, pages)) });
        let pages = pages.map_err(|e| Failure::from(&e));
        let objects = pages.map_ok(|page| {
            let found = page.contents.unwrap_or_default().into_iter().filter_map(listed);
            stream::iter(found.map(Ok).collect::<Vec<_>>())
        });
        objects.try_flatten().boxed()
    }
}

fn listed(object: aws_sdk_s3::types::Object) -> Option<ListedObject> {
    let head = ObjectHead {
        etag: unquoted(object.e_tag().unwrap_or_default()).to_owned(),
        size: object.size().unwrap_or_default() as u64,
        last_modified: object.last_modified().map(micros),
    };
    Some(ListedObject { key: object.key?, head })
}

/// Finds out whether an answer without a length that was cut off can be told from a whole one: where its last
/// chunk, or the end of its TLS connection or HTTP/2 stream, says that it is the end.
#[derive(Debug)]
struct OwnEnd(Arc<AtomicBool>);

impl Intercept for OwnEnd {
    fn name(&self) -> &'static str {
        "OwnEnd"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.0.store(context.request().uri().starts_with("https:"), Ordering::Relaxed);
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let encoding = context.response().headers().get("transfer-encoding");
        self.0.fetch_or(
            encoding.is_some_and(|e| e.to_ascii_lowercase().contains("chunked")),
            Ordering::Relaxed,
        );
        Ok(())
    }
}

/// The body of an answer that tells no length, such as a store's that decompresses objects on their way.
async fn unmeasured(
    wanted: &Wanted,
    head: ObjectHead,
    mut body: ByteStream,
    whole: u64,
    has_end: bool,
) -> Result<(ObjectHead, Body), Failure> {
    let mut first = BytesMut::new();
    let rest = loop {
        match body.next().await {
            None => break None,
            Some(chunk) => first.extend_from_slice(&chunk.map_err(|e| Failure::on_the_way(&e))?),
        }
        if first.len() as u64 > whole {
            break Some(body);
        }
    };
    let first = first.freeze();
    // Compressed data tells its end itself.
    let is_plain = Encoding::of(&first) == Encoding::Plain;
    if !has_end && first.is_empty() {
        return Err(headless(
            "Content-Length, no end of its own, and no byte: an empty object can't be told from one that was cut off",
        ));
    }
    if !has_end && is_plain {
        tracing::warn!(
            "{}: the response has no Content-Length and no other end marker, and the object is not compressed: if the connection was cut, \
             missing records go unnoticed; have the store send lengths, or compress objects",
            wanted.location()
        );
    }
    match rest {
        None if has_end || is_plain => {
            Ok((ObjectHead { size: first.len() as u64, ..head }, Body::Whole(first)))
        }
        rest => Ok((head, Body::Unmeasured(Unmeasured { first, rest, has_end: has_end || is_plain }))),
    }
}

/// Tries each right that reading a bucket needs: by IAM action.
pub async fn permissions(client: &Client, bucket: &str) -> Vec<Permission> {
    let told = |failure: Failure| failure.to_string();
    let listed =
        client.list_objects_v2().bucket(bucket).max_keys(1).send().await.map_err(|e| Failure::from(&e));
    let first = listed.as_ref().ok().and_then(|page| page.contents().first()?.key().map(str::to_owned));
    // Without a key to read: one that isn't there is answered by 404 to whom may read it.
    let key = first.clone().unwrap_or_else(|| "flarelake-check".to_owned());
    let read = client.get_object().bucket(bucket).key(key).range("bytes=0-0").send().await.map(drop);
    let read = match read.map_err(|e| Failure::from(&e)) {
        Err(failure)
            if failure.kind == FailureKind::NotFound && !failure.message.starts_with("NoSuchBucket") =>
        {
            Ok(())
        }
        // An empty object has no first byte.
        Err(failure) if failure.message.starts_with("InvalidRange") => Ok(()),
        other => other.map_err(told),
    };
    // It is what tells an object that is gone from one that may not be read.
    vec![("s3:ListBucket", listed.map(drop).map_err(told)), ("s3:GetObject", read)]
}

fn cut_short(got: u64, wanted: u64) -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: format!("the answer was cut short: {got} of {wanted} bytes"),
    }
}

fn headless(header: &str) -> Failure {
    Failure { kind: FailureKind::Unavailable, message: format!("the answer has no {header}") }
}

fn micros(time: &aws_sdk_s3::primitives::DateTime) -> i64 {
    (time.as_nanos() / 1000) as i64
}

/// An ETag without its quotes: what objects are known by.
pub fn unquoted(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

/// Whether two ETags are of one content, however notices and answers write them: with quotes that are
/// escaped, in capitals, or, of an object of several parts, without the number of these.
pub fn is_same_etag(one: &str, other: &str) -> bool {
    let bare = |etag: &str| {
        let etag = etag.trim().replace("&quot;", "\"").replace("%22", "\"");
        unquoted(&etag).to_ascii_lowercase()
    };
    let (one, other) = (bare(one), bare(other));
    let hash = |etag: &str| etag.split_once('-').map_or(etag, |(hash, _)| hash).to_owned();
    one == other || one.contains('-') != other.contains('-') && hash(&one) == hash(&other)
}

/// Reads a large object range by range, all of one ETag. A range that fails is asked for again. Not to be
/// read on an async thread.
#[derive(Debug)]
pub struct RangeReader {
    buckets: Arc<dyn Buckets>,
    wanted: Wanted,
    head: ObjectHead,
    at: u64,
    chunk: Bytes,
    runtime: Handle,
}

impl RangeReader {
    /// From the object's first byte.
    pub fn new(buckets: Arc<dyn Buckets>, wanted: Wanted, head: ObjectHead, runtime: Handle) -> Self {
        Self { buckets, wanted, head, at: 0, chunk: Bytes::new(), runtime }
    }

    fn next_range(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        let get = || self.runtime.block_on(self.buckets.range(&self.wanted, range.clone(), &self.head.etag));
        // A long object is worth waiting for, but not at the cost of all others: after this the whole object
        // is tried again later.
        let began = clock::now();
        let patience = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_times(7)
            .with_jitter();
        let retryable = |e: &Failure| {
            matches!(e.kind, FailureKind::Unavailable | FailureKind::Throttled)
                && began.elapsed() < RANGE_PATIENCE
        };
        let runtime = self.runtime.clone();
        let pause = move |time| runtime.block_on(clock::sleep(time));
        get.retry(patience).sleep(pause).when(retryable).call()
    }
}

impl Read for RangeReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && self.at < self.head.size {
            let range = self.at..self.head.size.min(self.at + RANGE_BYTES);
            self.chunk = self.next_range(range.clone()).map_err(io::Error::other)?;
            self.at = range.end;
        }
        let n = to.len().min(self.chunk.len());
        to[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}

/// Reads an object whose length nothing tells, to its end. Not to be read on an async thread.
#[derive(Debug)]
pub struct StreamReader {
    chunk: Bytes,
    rest: Option<ByteStream>,
    has_end: bool,
    bytes: u64,
    runtime: Handle,
}

impl StreamReader {
    /// From the object's first byte.
    pub fn new(Unmeasured { first, rest, has_end }: Unmeasured, runtime: Handle) -> Self {
        Self { chunk: first, rest, has_end, bytes: 0, runtime }
    }

    /// Whether a cut is noticed by reading. Else only the object's own format may tell.
    pub fn has_end(&self) -> bool {
        self.has_end
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Read for StreamReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty()
            && let Some(rest) = &mut self.rest
        {
            match self.runtime.block_on(rest.next()) {
                Some(chunk) => self.chunk = chunk.map_err(|e| io::Error::other(Failure::on_the_way(&e)))?,
                None => self.rest = None,
            }
        }
        let n = to.len().min(self.chunk.len());
        to[..n].copy_from_slice(&self.chunk.split_to(n));
        self.bytes += n as u64;
        Ok(n)
    }
}
