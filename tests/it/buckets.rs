//! What a bucket's answer is taken for. The server says word for word what S3 says, or what no S3 should.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use flarelake::base::aws::FailureKind;
use flarelake::ingest::bucket::{Buckets, Wanted};

/// A client of a server that gives this answer to everything.
fn client(answer: String) -> aws_sdk_s3::Client {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            BufReader::new(&connection).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let _ = (&connection).write_all(answer.as_bytes());
        }
    });
    let config = aws_sdk_s3::Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
    let config = config.credentials_provider(Credentials::new("test", "test", None, None, "test")).retry_config(RetryConfig::disabled());
    aws_sdk_s3::Client::from_conf(config.endpoint_url(endpoint).force_path_style(true).build())
}

fn error(status: &str, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
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
    ] {
        let failure = client(answer.clone()).get(&wanted, 1 << 20).await.expect_err(&answer);
        assert!(failure.kind == kind && failure.message.contains(said), "{answer}: {failure:?}");
    }
    let (head, bytes) = client(whole("ETag: \"e\"\r\nContent-Length: 3\r\n", "{}\n")).get(&wanted, 1 << 20).await.expect("an object");
    assert_eq!((head.etag.as_str(), head.size, bytes.as_deref()), ("e", 3, Some(&b"{}\n"[..])));
}
