//! What a message says, told from its body alone. The bodies are those that AWS documents and that others
//! send.

use flarelake::source::notice::{Announced, Notice, read};
use proptest::prelude::*;
use serde_json::json;

fn announced(bucket: &str, key: &str) -> Announced {
    Announced {
        bucket: bucket.into(),
        key: key.into(),
        literal_key: None,
        version: None,
        etag: None,
        size: None,
    }
}

/// S3's own example, with every field that it documents.
const S3: &str = r#"{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","awsRegion":"us-west-2","eventTime":"1970-01-01T00:00:00.000Z",
"eventName":"ObjectCreated:Put","userIdentity":{"principalId":"AIDAJDPLRKLG7UEXAMPLE"},"requestParameters":{"sourceIPAddress":"127.0.0.1"},
"responseElements":{"x-amz-request-id":"C3D13FE58DE4C810","x-amz-id-2":"FMyUVURIY8/IgAtTv8xRjskZQpcIZ9KG4V5Wp6S7S/JRWeUWerMUE5JgHvANOjpD"},
"s3":{"s3SchemaVersion":"1.0","configurationId":"testConfigRule","bucket":{"name":"amzn-s3-demo-bucket","ownerIdentity":{"principalId":"A3NL1KOZZKExample"},
"arn":"arn:aws:s3:::amzn-s3-demo-bucket"},"object":{"key":"logs/red+flower%3D1.log.gz","size":1024,"eTag":"d41d8cd98f00b204e9800998ecf8427e",
"versionId":"096fKKXTRTtl3on89fVO.nfljtsv6qko","sequencer":"0055AED6DCD90281E5"}}}]}"#;

fn s3_object() -> Announced {
    Announced {
        literal_key: Some("logs/red+flower%3D1.log.gz".into()),
        version: Some("096fKKXTRTtl3on89fVO.nfljtsv6qko".into()),
        etag: Some("d41d8cd98f00b204e9800998ecf8427e".into()),
        size: Some(1024),
        ..announced("amzn-s3-demo-bucket", "logs/red flower=1.log.gz")
    }
}

/// Objects, and nothing wrong.
fn objects(created: Vec<Announced>) -> Notice {
    Notice::Objects { created, malformed: None }
}

fn in_sns(message: &str) -> String {
    json!({"Type": "Notification", "MessageId": "95df01b4-ee98-5cb9-9903-4c221d41eb5e", "TopicArn": "arn:aws:sns:us-west-2:123456789012:logs",
        "Subject": "Amazon S3 Notification", "Message": message, "Timestamp": "2026-11-23T17:43:27.123Z", "SignatureVersion": "1",
        "Signature": "EXAMPLE", "SigningCertURL": "EXAMPLE", "UnsubscribeURL": "EXAMPLE"})
    .to_string()
}

#[test]
fn s3_alone_and_in_sns() {
    assert_eq!(read(S3), objects(vec![s3_object()]));
    assert_eq!(read(&in_sns(S3)), objects(vec![s3_object()]));
    assert_eq!(read(&in_sns(&in_sns(S3))), objects(vec![s3_object()]), "a topic that feeds a topic");
}

#[test]
fn every_record_of_a_notification_counts_and_removals_do_not() {
    let record = |name: &str, key: &str| json!({"eventSource": "aws:s3", "eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": key, "versionId": null, "eTag": ""}}});
    let body = json!({"Records": [record("ObjectCreated:Put", "a"), record("ObjectRemoved:Delete", "b"),
        record("ObjectCreated:CompleteMultipartUpload", "c"), record("LifecycleExpiration:Delete", "d"), record("s3:ObjectCreated:Copy", "e")]});
    assert_eq!(
        read(&body.to_string()),
        objects(vec![announced("b", "a"), announced("b", "c"), announced("b", "e")])
    );
    let removal = json!({"Records": [record("ObjectRemoved:DeleteMarkerCreated", "b")]});
    assert!(matches!(read(&removal.to_string()), Notice::Nothing(_)));
}

#[test]
fn minio_encodes_slashes_and_prefixes_names() {
    let body = json!({"EventName": "s3:ObjectCreated:Put", "Key": "logs/a/b.gz", "Records": [{"eventVersion": "2.0", "eventSource": "minio:s3",
        "eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": "logs"}, "object": {"key": "a%2Fb.gz", "size": 5}}}]});
    let expected =
        Announced { literal_key: Some("a%2Fb.gz".into()), size: Some(5), ..announced("logs", "a/b.gz") };
    assert_eq!(read(&body.to_string()), objects(vec![expected]));
}

#[test]
fn event_bridge_does_not_encode_keys() {
    let event = |kind: &str| {
        json!({"version": "0", "id": "17793124-05d4-b198-2fde-7ededc63b103", "detail-type": kind, "source": "aws.s3", "account": "111122223333",
            "time": "2021-11-12T00:00:00Z", "region": "ca-central-1", "resources": ["arn:aws:s3:::amzn-s3-demo-bucket1"],
            "detail": {"version": "0", "bucket": {"name": "amzn-s3-demo-bucket1"}, "object": {"key": "a+b%3D.log", "size": 5,
            "etag": "b57f9512698f4b09e608f4f2a65852e5", "version-id": "N4N7GDK58NMKJ12R", "sequencer": "00617F08299329D189"},
            "request-id": "N4N7GDK58NMKJ12R", "requester": "123456789012", "source-ip-address": "1.2.3.4", "reason": "PutObject"}})
        .to_string()
    };
    let expected = Announced {
        version: Some("N4N7GDK58NMKJ12R".into()),
        etag: Some("b57f9512698f4b09e608f4f2a65852e5".into()),
        size: Some(5),
        ..announced("amzn-s3-demo-bucket1", "a+b%3D.log")
    };
    assert_eq!(read(&event("Object Created")), objects(vec![expected]));
    assert!(matches!(read(&event("Object Deleted")), Notice::Nothing(_)));
    // Another rule of EventBridge, which sends S3's calls instead: it may be about a new object.
    let notice = read(&event("AWS API Call via CloudTrail"));
    assert!(
        matches!(&notice, Notice::Malformed(why) if why.contains("`AWS API Call via CloudTrail`")),
        "{notice:?}"
    );
}

#[test]
fn what_brings_nothing_says_so() {
    let test = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2014-10-13T15:57:02.089Z","Bucket":"bucketname","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE"}"#;
    assert!(matches!(read(test), Notice::Nothing(_)));
    assert!(matches!(read(&in_sns(test)), Notice::Nothing(_)));
    let confirm = json!({"Type": "SubscriptionConfirmation", "TopicArn": "arn:aws:sns:us-west-2:123456789012:logs", "Token": "secret",
        "SubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&Token=secret", "Message": "You have chosen to subscribe"});
    assert_eq!(
        read(&confirm.to_string()),
        Notice::Subscription { topic: "arn:aws:sns:us-west-2:123456789012:logs".into() }
    );
}

#[test]
fn an_entry_that_cannot_be_read_costs_itself_only() {
    let good = json!({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": "k"}}});
    let mut bad = good.clone();
    bad["s3"]["object"] = json!({});
    let notice = read(&json!({"Records": [good, bad, {"Datetime": 1}, good]}).to_string());
    let Notice::Objects { created, malformed: Some(why) } = &notice else { panic!("{notice:?}") };
    assert_eq!(created, &[announced("b", "k"), announced("b", "k")]);
    assert!(why.contains("s3.object.key") && why.contains("1 more"), "{why}");
    let notice = read(&json!({"Records": [bad]}).to_string());
    assert!(matches!(&notice, Notice::Malformed(why) if why.contains("s3.object.key")), "{notice:?}");
    // What nobody knows is not taken for nothing.
    for (event, known) in
        [(json!("ObjectCloned:Put"), "ObjectCloned:Put"), (json!(null), "eventName"), (json!(7), "eventName")]
    {
        bad["eventName"] = event;
        let notice = read(&json!({"Records": [bad]}).to_string());
        assert!(matches!(&notice, Notice::Malformed(why) if why.contains(known)), "{notice:?}");
    }
    let notice = read(&json!({"Event": "s3:TestEvent", "Records": [good]}).to_string());
    assert_eq!(notice, objects(vec![announced("b", "k")]), "an object is no test");
    let mut body = S3.to_owned();
    for _ in 0..9 {
        body = in_sns(&body);
    }
    assert!(matches!(read(&body), Notice::Malformed(_)), "envelopes without end");
}

/// As Cloudflare documents it.
fn r2_event(action: &str, key: &str) -> serde_json::Value {
    json!({"account": "3f4b7e3dcab231cbfdaa90a6a28bd548", "action": action, "bucket": "my-bucket",
        "object": {"key": key, "size": 65536, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"}, "eventTime": "2024-05-24T19:36:44.379Z"})
}

#[test]
fn r2_events_are_announcements() {
    let object = |key: &str| Announced {
        etag: Some("c846ff7a18f28c2e262116d6e8719ef0".into()),
        size: Some(65536),
        ..announced("my-bucket", key)
    };
    for action in ["PutObject", "CompleteMultipartUpload", "CopyObject"] {
        // Keys are not encoded.
        assert_eq!(
            read(&r2_event(action, "a/b+c%3D1.log.gz").to_string()),
            objects(vec![object("a/b+c%3D1.log.gz")])
        );
    }
    assert_eq!(read(&in_sns(&r2_event("PutObject", "k").to_string())), objects(vec![object("k")]));
    for action in ["DeleteObject", "LifecycleDeletion"] {
        assert!(matches!(read(&r2_event(action, "k").to_string()), Notice::Nothing(_)));
    }
    let notice = read(&r2_event("RestoreObject", "k").to_string());
    assert!(matches!(&notice, Notice::Malformed(why) if why.contains("`RestoreObject`")), "{notice:?}");
    let mut event = r2_event("PutObject", "");
    assert!(matches!(read(&event.to_string()), Notice::Malformed(why) if why.contains("object.key")));
    event["object"] = json!({});
    assert!(matches!(read(&event.to_string()), Notice::Malformed(_)));
    event = r2_event("PutObject", "k");
    event.as_object_mut().expect("an object").remove("action");
    assert!(matches!(read(&event.to_string()), Notice::Malformed(why) if why.contains("action")));
    // A forwarder may send several at once.
    let (one, other, gone) =
        (r2_event("PutObject", "a"), r2_event("CopyObject", "b"), r2_event("DeleteObject", "c"));
    for body in [json!([one, gone, other]).to_string(), format!("{one}\n{gone}\n{other}\n")] {
        assert_eq!(read(&body), objects(vec![object("a"), object("b")]), "{body}");
    }
    let Notice::Objects { created, malformed: Some(why) } =
        read(&json!([one, {"Datetime": 1653974623}]).to_string())
    else {
        panic!("objects")
    };
    assert!(created == [object("a")] && why.contains("what is none"), "{why}");
}

#[test]
fn what_has_the_shape_of_an_announcement_is_never_taken_for_records() {
    let event = r2_event("PutObject", "k");
    for body in [
        // A queue's own envelopes.
        json!({"id": "1", "timestamp": 1, "body": event}),
        json!({"messages": [{"id": "1", "body": event}]}),
        json!({"messages": [{"id": "1", "body": event.to_string()}]}),
        json!({"Message": S3}),
        // Other stores, and other people's forwarders.
        json!({"kind": "storage#object", "id": "b/k/1", "name": "k", "bucket": "b", "size": "5", "timeCreated": "2026-05-01T10:00:00Z"}),
        json!([{"topic": "t", "subject": "s", "eventType": "Microsoft.Storage.BlobCreated", "eventTime": "2026-05-01T10:00:00Z", "data": {"url": "u"}}]),
        json!({"s3Bucket": "b", "s3ObjectKey": ["k"]}),
        json!({"bucket": "b", "key": "k"}),
        json!({"Bucket": "b", "Key": "k", "Size": 5}),
        json!({"version": "0", "source": "acme.forwarder", "detail-type": "new", "detail": {"bucket": {"name": "b"}, "object": {"key": "k"}}}),
        json!([{"bucketName": "b", "objectKey": "k"}]),
    ] {
        let notice = read(&body.to_string());
        assert!(
            matches!(&notice, Notice::Malformed(why) if why.contains("in a shape that isn't known")),
            "{body}: {notice:?}"
        );
    }
}

#[test]
fn everything_else_is_records() {
    let nested = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    for body in [
        r#"{"Datetime":1653974623,"Action":"block"}"#,
        "{\"Datetime\":1653974623}\n{\"Datetime\":1653974624}",
        r#"[{"Datetime":1653974623}]"#,
        r#"{"Records":[{"Datetime":1653974623}]}"#,
        r#"{"Records":[]}"#,
        r#"{"Type":"Notification","Message":"a record may say so too"}"#,
        // Of such words records may be full.
        r#"{"Datetime":1653974623,"Source":"waf","ClientRequestPath":"/bucket/key","ClientRequestQuery":"?bucket=b&key=k&s3:=1"}"#,
        "{\"Datetime\":1,\"ClientRequestPath\":\"/bucket\"}\n{\"Datetime\":2,\"ClientRequestPath\":\"s3:\"}",
        r#"{"EventTimestampMs":1653974623000,"Event":{"bucket":"b","object":{"key":"k"}},"Outcome":"ok"}"#,
        r#"{"object":"page","action":"view"}"#,
        r#"{"at_time":1653974623,"action":"view","bucket":"b","object":"page"}"#,
        r#"{"time":"2026-05-01T10:00:00Z","bucket":"b","key":"k","operation":"REST.GET.OBJECT"}"#,
        r#"{"time":"2026-05-01T10:00:00Z","detail-type":"mine","detail":{"bucket":{"name":"b"},"object":{"key":"k"}}}"#,
        r#"{"key":"no bucket"}"#,
        r#"{"message":"text of a log","bucket":""}"#,
        "not JSON at all, but a bucket",
        "not JSON at all",
        &nested,
    ] {
        assert_eq!(read(body), Notice::Records(body.into()), "{body}");
    }
    assert_eq!(
        read(&in_sns("{\"Datetime\":1}\n{\"Datetime\":2}")),
        Notice::Records("{\"Datetime\":1}\n{\"Datetime\":2}".into()),
        "the envelope is no record"
    );
}

#[test]
fn a_key_that_decodes_to_no_text_is_taken_as_it_is() {
    let body = S3.replace("logs/red+flower%3D1.log.gz", "a%FFb");
    let Notice::Objects { created: objects, .. } = read(&body) else { panic!("objects") };
    assert_eq!((objects[0].key.as_str(), &objects[0].literal_key), ("a%FFb", &None));
}

proptest! {
    #[test]
    fn any_key_survives_form_encoding(key in "\\PC{1,40}") {
        // Encoded by another library, as S3 does it.
        let encoded: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let body = json!({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "b"}, "object": {"key": encoded}}}]});
        let Notice::Objects { created: objects, .. } = read(&body.to_string()) else { panic!("objects") };
        prop_assert_eq!(&objects[0].key, &key);
    }

    #[test]
    fn no_body_panics(body in "\\PC*") {
        let _ = read(&body);
    }
}
