//! What a bucket's answer is taken for. The server says word for word what S3 says, or what no S3 should.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use flarelake::base::failure::{Failure, FailureKind};
use flarelake::config::Partitioning;
use flarelake::decode::inflate::ObjectLimits;
use flarelake::decode::split::Place;
use flarelake::ingest::backfill::Backfill;
use flarelake::land::batch::Tables;
use flarelake::land::worker::{Worker, WorkerSettings};
use flarelake::schema::Catalog;
use flarelake::source::bucket::{Body, Buckets, ListedObject, ObjectHead, Wanted, is_same_etag};
use flarelake::source::origin::{Origin, of_s3};
use flarelake::source::routing::Sources;
use flarelake::table::Lake;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::decoding::{LIMITS, WRITTEN};
use crate::support::{memory_lake, read_ledger};

/// A client of a server that gives this answer to everything.
fn client(answer: impl Into<Vec<u8>>) -> aws_sdk_s3::Client {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            BufReader::new(&connection)
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .for_each(drop);
            let _ = (&connection).write_all(&answer);
        }
    });
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"));
    let config = config
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .retry_config(RetryConfig::disabled());
    aws_sdk_s3::Client::from_conf(config.endpoint_url(endpoint).force_path_style(true).build())
}

fn error(status: &str, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_told_by_what_it_asks_for() {
    let wanted = Wanted { bucket: "b".into(), key: "k".into(), version: None };
    let whole = |head: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{head}Connection: close\r\n\r\n{body}");
    for (answer, kind, said) in [
        (error("403 Forbidden", "AccessDenied"), FailureKind::Denied, "AccessDenied"),
        (error("403 Forbidden", "InvalidObjectState"), FailureKind::Unreadable, "InvalidObjectState"),
        (error("400 Bad Request", "KeyTooLongError"), FailureKind::Unreadable, "KeyTooLongError"),
        (error("404 Not Found", "NoSuchKey"), FailureKind::NotFound, "NoSuchKey"),
        (error("503 Slow Down", "SlowDown"), FailureKind::Throttled, "SlowDown"),
        (error("500 Internal Server Error", "InternalError"), FailureKind::Unavailable, "InternalError"),
        (error("301 Moved Permanently", "PermanentRedirect"), FailureKind::Wrong, "PermanentRedirect"),
        // What can't be known, and what can't be told from an answer that was cut short.
        (whole("Content-Length: 3\r\n", "{}\n"), FailureKind::Unavailable, "no ETag"),
        (whole("ETag: \"e\"\r\n", ""), FailureKind::Unavailable, "no Content-Length"),
        (whole("ETag: \"e\"\r\nContent-Length: 30\r\n", "{}\n"), FailureKind::Unavailable, ""),
        (whole(CHUNKED, "3\r\n{}\n\r\n"), FailureKind::Unavailable, ""),
        (whole(CHUNKED, "30\r\n{}\n\r\n"), FailureKind::Unavailable, ""),
    ] {
        let failure = client(answer.clone()).get(&wanted, 1 << 20).await.expect_err(&answer);
        assert!(failure.kind == kind && failure.message.contains(said), "{answer}: {failure:?}");
    }
    // With a length, with an end, or without either.
    for answer in [
        whole("ETag: \"e\"\r\nContent-Length: 3\r\n", "{}\n"),
        whole(CHUNKED, "2\r\n{}\r\n1\r\n\n\r\n0\r\n\r\n"),
        whole("ETag: \"e\"\r\n", "{}\n"),
    ] {
        let (head, body) = client(answer).get(&wanted, 1 << 20).await.expect("an object");
        assert_eq!((head.etag.as_str(), head.size), ("e", 3));
        assert!(matches!(&body, Body::Whole(bytes) if bytes == &b"{}\n"[..]), "{body:?}");
    }
    // An empty object has an end, too.
    let (head, body) = client(whole(CHUNKED, "0\r\n\r\n")).get(&wanted, 1 << 20).await.expect("an object");
    assert!(head.size == 0 && matches!(&body, Body::Whole(bytes) if bytes.is_empty()));
}

const CHUNKED: &str = "ETag: \"e\"\r\nTransfer-Encoding: chunked\r\n";

const LINE: &str = "{\"EdgeStartTimestamp\":1653974623,\"ClientIP\":\"192.0.2.1\",\"ZoneID\":7}\n";

/// Bytes as chunks, and whether the last one follows.
fn chunks(bytes: &[u8], is_whole: bool) -> Vec<u8> {
    let mut chunked = Vec::new();
    for chunk in bytes.chunks(10_000) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
    }
    if is_whole {
        chunked.extend(*b"0\r\n\r\n");
    }
    chunked
}

/// What comes of an answer: the rejects' reasons and the rows, and the object's size as it is known then; or
/// why it could not be read.
async fn decoded(head: &str, body: Vec<u8>, whole: u64) -> Result<(Vec<&'static str>, u64, u64), String> {
    let answer = [format!("HTTP/1.1 200 OK\r\n{head}Connection: close\r\n\r\n").into_bytes(), body].concat();
    let buckets: Arc<dyn Buckets> = Arc::new(client(answer));
    let wanted = Wanted { bucket: "b".into(), key: "k".into(), version: None };
    let (head, body) = buckets.get(&wanted, whole).await.map_err(|e| e.to_string())?;
    let (object, input) = of_s3(buckets, wanted, head, body);
    let work = move || {
        let catalog = Catalog::embedded();
        let tables = Arc::new(Tables::new(&catalog, Partitioning::Day));
        let objects = ObjectLimits { max_object: 1 << 30, max_ratio: 500, max_window: 8 << 20 };
        let (flush_bytes, flush_rows, max_age) = (usize::MAX, u64::MAX, Duration::MAX);
        let settings = WorkerSettings {
            records: LIMITS,
            objects,
            flush_bytes,
            flush_rows,
            max_age,
            whole_bytes: 1 << 20,
        };
        let mut worker = Worker::new(&catalog, tables, None, settings, Arc::default(), Handle::current());
        worker.work(object, input, Place::START, None).map_err(|e| e.to_string())?;
        let outcome = worker.flush().expect("nothing is written").landed.remove(0);
        Ok((
            outcome.rejects.keys().map(|r| r.code()).collect(),
            outcome.rows.values().sum(),
            outcome.object.size,
        ))
    };
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_length_nothing_tells_is_read_to_its_end_and_a_cut_is_noticed() {
    let plain = LINE.repeat(3000).into_bytes();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(&plain).expect("memory");
    let zipped = encoder.finish().expect("memory");
    let bare = "ETag: \"e\"\r\n";
    // At once, and as it comes.
    for whole in [1 << 20, 1000] {
        for bytes in [&plain, &zipped] {
            let size = bytes.len() as u64;
            assert_eq!(decoded(CHUNKED, chunks(bytes, true), whole).await, Ok((vec![], 3000, size)));
            assert_eq!(decoded(bare, bytes.clone(), whole).await, Ok((vec![], 3000, size)));
            let cut = &bytes[..bytes.len() - 5000];
            let failed = decoded(CHUNKED, chunks(cut, false), whole).await;
            assert!(failed.is_err(), "a cut is no end: {failed:?}");
        }
        // Its own end is all that can tell: what has none may have been cut, and is no reject.
        let failed =
            decoded(bare, zipped[..zipped.len() - 5000].to_vec(), whole).await.expect_err("a cut is noticed");
        assert!(failed.contains("may have been cut short"), "{failed}");
        // Where the answer was whole, the object is to blame.
        let broken = decoded(CHUNKED, chunks(&zipped[..zipped.len() - 5000], true), whole).await;
        assert!(matches!(&broken, Ok((reasons, 0, _)) if reasons == &["corrupt_compression"]), "{broken:?}");
    }
}

#[test]
fn one_etag_is_written_in_many_ways() {
    let etag = "9b2cf535f27731c974343645a3985328";
    for same in [
        etag.to_owned(),
        format!("\"{etag}\""),
        format!("W/\"{etag}\""),
        etag.to_uppercase(),
        format!("&quot;{etag}&quot;"),
    ] {
        assert!(is_same_etag(&same, etag) && is_same_etag(etag, &same), "{same}");
    }
    assert!(is_same_etag(&format!("{etag}-2"), &format!("\"{etag}-2\"")));
    assert!(is_same_etag(&format!("{etag}-2"), etag), "some notices leave the number of parts out");
    assert!(!is_same_etag(&format!("{etag}-2"), &format!("{etag}-3")));
    assert!(!is_same_etag("0cc175b9c0f1b6a831c399e269772661", etag));
}

/// A bucket with one large object, which is overwritten so many times while its ranges are read.
#[derive(Debug)]
struct Overwritten(AtomicU64);

#[async_trait]
impl Buckets for Overwritten {
    async fn get(&self, _: &Wanted, _: u64) -> Result<(ObjectHead, Body), Failure> {
        let left = self.0.load(Ordering::SeqCst);
        let head =
            ObjectHead { etag: format!("e{left}"), size: LINE.len() as u64, last_modified: Some(WRITTEN) };
        Ok((head, Body::Larger))
    }

    async fn range(&self, _: &Wanted, _: Range<u64>, etag: &str) -> Result<Bytes, Failure> {
        if self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(Failure {
                kind: FailureKind::Changed,
                message: "PreconditionFailed: If-Match".into(),
            });
        }
        assert_eq!(etag, "e0");
        Ok(LINE.into())
    }

    fn list(&self, _: &str, _: &str) -> BoxStream<'static, Result<ListedObject, Failure>> {
        stream::empty().boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_overwritten_while_it_is_read_is_read_again_from_its_beginning() {
    for (times, landed) in [(2, 1), (9, 0)] {
        let inner = Arc::new(InMemory::new());
        let catalog = Catalog::embedded();
        let objects = ObjectLimits { max_object: 1 << 30, max_ratio: 500, max_window: 8 << 20 };
        let (flush_bytes, flush_rows, max_age) = (usize::MAX, u64::MAX, Duration::MAX);
        let backfill = Backfill {
            tables: Arc::new(Tables::new(&catalog, Partitioning::Day)),
            catalog,
            lake: Some(Arc::new(Lake::open(memory_lake(inner.clone())).await.expect("opens"))),
            settings: WorkerSettings {
                records: LIMITS,
                objects,
                flush_bytes,
                flush_rows,
                max_age,
                whole_bytes: 1 << 20,
            },
            workers: 1,
            fetches: 1,
            fetched_bytes: 1 << 20,
            sources: Sources::default(),
            meter: Arc::default(),
            stop: CancellationToken::new(),
        };
        let head = ObjectHead { etag: "listed".into(), size: LINE.len() as u64, last_modified: None };
        let listed = ListedObject { key: "large.log".into(), head };
        let origin = Origin::listed(Arc::new(Overwritten(times.into())), "bucket", listed);
        let summary = backfill.origins(vec![origin]).await.expect("works");
        assert_eq!((summary.landed, summary.failed.len() as u64), (landed, 1 - landed), "{summary:?}");
        assert!(
            summary
                .failed
                .iter()
                .all(|why| why.contains("s3://bucket/large.log: it changed while it was read, 3 times")),
            "{summary:?}"
        );
        assert_eq!(read_ledger(inner.as_ref()).await.len() as u64, landed);
    }
}
