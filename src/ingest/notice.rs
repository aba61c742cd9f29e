//! What a message says, told from its body alone: objects that were created, records, or nothing of either.
//!
//! Known are S3's notifications (also MinIO's), the same inside SNS' envelope or delivered raw by it, and EventBridge's
//! "Object Created". Everything else is taken for records, and decoded like any object's bytes.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

/// Envelopes inside envelopes, at most: SNS in SNS is possible, more is an attack.
const MAX_ENVELOPES: usize = 4;

/// An object that a message announces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Announced {
    /// The bucket.
    pub bucket: String,
    /// The key, decoded where the envelope encodes keys.
    pub key: String,
    /// The key as it stands in the message, where that is another: tried when the decoded one is missing.
    pub literal_key: Option<String>,
    /// The version, in a bucket that keeps them.
    pub version: Option<String>,
    /// What the message says the ETag is: a hint.
    pub etag: Option<String>,
    /// What it says the size is: a hint.
    pub size: Option<u64>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Objects were created. Events that bring no object (removals, tags) are left out.
    Objects(Vec<Announced>),
    /// The records themselves: the bytes to decode.
    Records(String),
    /// Nothing to land, and why.
    Nothing(&'static str),
    /// Someone wants to subscribe this queue to a topic: reported, never followed.
    Subscription {
        /// The topic's ARN.
        topic: String,
    },
    /// A notification that doesn't say what it has to.
    Malformed(String),
}

/// Reads a message's body.
pub fn read(body: &str) -> Notice {
    let mut inner = body.to_owned();
    for _ in 0..MAX_ENVELOPES {
        // Several values, or what is no JSON at all, are records.
        let Ok(Value::Object(map)) = serde_json::from_str(&inner) else { return Notice::Records(inner) };
        match unwrap_sns(&map) {
            Some(Ok(message)) => inner = message,
            Some(Err(notice)) => return notice,
            None => return s3(&map).or_else(|| event_bridge(&map)).unwrap_or(Notice::Records(inner)),
        }
    }
    Notice::Malformed(format!("more than {MAX_ENVELOPES} SNS envelopes, one in the other"))
}

/// What is in SNS' envelope; none if it isn't one.
fn unwrap_sns(map: &Map<String, Value>) -> Option<Result<String, Notice>> {
    let topic = text(map, "TopicArn")?;
    match text(map, "Type")? {
        "Notification" => Some(text(map, "Message").map(str::to_owned).ok_or_else(|| missing("SNS envelope", "Message"))),
        "SubscriptionConfirmation" => Some(Err(Notice::Subscription { topic: topic.to_owned() })),
        "UnsubscribeConfirmation" => Some(Err(Notice::Nothing("an SNS topic says that a subscription has ended"))),
        _ => None,
    }
}

fn s3(map: &Map<String, Value>) -> Option<Notice> {
    if text(map, "Event") == Some("s3:TestEvent") {
        return Some(Notice::Nothing("S3's test message"));
    }
    let records = map.get("Records")?.as_array()?;
    let of_s3 = |r: &Value| r["eventSource"].as_str().is_some_and(|s| s == "aws:s3" || s.ends_with(":s3")) || r["s3"].is_object();
    if records.is_empty() || !records.iter().all(of_s3) {
        return None;
    }
    let created = records.iter().filter(|r| {
        // MinIO puts a prefix before the names.
        let name = r["eventName"].as_str().unwrap_or_default();
        name.strip_prefix("s3:").unwrap_or(name).starts_with("ObjectCreated")
    });
    Some(objects(created.map(s3_record).collect()))
}

fn s3_record(record: &Value) -> Result<Announced, Notice> {
    let object = &record["s3"]["object"];
    let bucket = word(&record["s3"]["bucket"]["name"]).ok_or_else(|| missing("S3 notification", "s3.bucket.name"))?;
    let literal = word(&object["key"]).ok_or_else(|| missing("S3 notification", "s3.object.key"))?;
    let key = form_decoded(&literal).unwrap_or_else(|| literal.clone());
    Ok(Announced {
        bucket,
        literal_key: (literal != key).then_some(literal),
        key,
        version: version(&object["versionId"]),
        etag: word(&object["eTag"]).map(|e| e.trim_matches('"').to_owned()),
        size: object["size"].as_u64(),
    })
}

fn event_bridge(map: &Map<String, Value>) -> Option<Notice> {
    if text(map, "source")? != "aws.s3" {
        return None;
    }
    let kind = text(map, "detail-type")?;
    let detail = map.get("detail")?;
    if kind != "Object Created" {
        return Some(Notice::Nothing("an event that brings no object"));
    }
    let announced = || {
        Ok(Announced {
            bucket: word(&detail["bucket"]["name"]).ok_or_else(|| missing("EventBridge event", "detail.bucket.name"))?,
            // Keys are not encoded here.
            key: word(&detail["object"]["key"]).ok_or_else(|| missing("EventBridge event", "detail.object.key"))?,
            literal_key: None,
            version: version(&detail["object"]["version-id"]),
            etag: word(&detail["object"]["etag"]).map(|e| e.trim_matches('"').to_owned()),
            size: detail["object"]["size"].as_u64(),
        })
    };
    Some(objects(vec![announced()]))
}

/// One entry that can't be read makes the message a reject: half of it must not be forgotten.
fn objects(read: Vec<Result<Announced, Notice>>) -> Notice {
    if read.is_empty() {
        return Notice::Nothing("an event that brings no object");
    }
    read.into_iter().collect::<Result<Vec<_>, _>>().map_or_else(|malformed| malformed, Notice::Objects)
}

fn missing(envelope: &str, what: &str) -> Notice {
    Notice::Malformed(format!("the {envelope} has no {what}"))
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key)?.as_str()
}

/// Text that says something.
fn word(value: &Value) -> Option<String> {
    value.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}

/// A bucket without versions says nothing, "", or "null".
fn version(value: &Value) -> Option<String> {
    word(value).filter(|v| v != "null")
}

/// `+` is a space, `%3D` is `=`; none if the bytes are no text.
fn form_decoded(key: &str) -> Option<String> {
    let spaced = key.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}
