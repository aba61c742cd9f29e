//! Classifies a message by its body alone: created objects, records, or neither.
//!
//! Recognized are S3's notifications (also MinIO's), the same in an SNS envelope or delivered raw by SNS,
//! EventBridge's "Object Created", and R2's events. Any other reference to an object in a bucket is reported
//! as malformed, and never taken for records. Everything else is records, and decoded like any object's
//! bytes.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

/// Envelopes inside envelopes, at most: SNS in SNS is possible, more is an attack.
const MAX_ENVELOPES: usize = 4;

/// An object that a message announces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Announced {
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Objects were created. Events that bring no object (removals, tags) are left out.
    Objects {
        created: Vec<Announced>,
        /// What is wrong with the entries that can't be read, if there are any.
        malformed: Option<String>,
    },
    /// The records themselves: the bytes to decode.
    Records(String),
    /// Nothing to land, and why.
    Nothing(&'static str),
    /// Someone wants to subscribe this queue to a topic: reported, never followed.
    Subscription { topic: String },
    /// A notification that doesn't say what it has to.
    Malformed(String),
}

pub fn read(body: &str) -> Notice {
    let mut inner = body.to_owned();
    for _ in 0..MAX_ENVELOPES {
        // What is no JSON at all is records, too: each of them is told by itself.
        let Some(values) = values(&inner) else { return Notice::Records(inner) };
        let [Value::Object(map)] = values.as_slice() else {
            return several(&values).unwrap_or(Notice::Records(inner));
        };
        match unwrap_sns(map) {
            Some(Ok(message)) => inner = message,
            Some(Err(notice)) => return notice,
            None => return one(map).unwrap_or(Notice::Records(inner)),
        }
    }
    Notice::Malformed(format!("more than {MAX_ENVELOPES} SNS envelopes, one in the other"))
}

/// The JSON values that a body is made of, an array's one by one. Of several, none if nothing in them could
/// tell of an object: bodies of many records are only looked through.
fn values(body: &str) -> Option<Vec<Value>> {
    if let Ok(map) = serde_json::from_str::<Map<String, Value>>(body) {
        return Some(vec![Value::Object(map)]);
    }
    if !TELLING.iter().any(|word| body.contains(word)) {
        return None;
    }
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(body).into_iter() {
        match value.ok()? {
            Value::Array(elements) => values.extend(elements),
            value => values.push(value),
        }
    }
    Some(values)
}

/// What an announcement in any shape says somewhere.
const TELLING: [&str; 5] = ["ucket", "s3:", "aws.s3", "storage#object", "Microsoft.Storage."];

/// The announcement that a value is; none if it is none.
fn one(map: &Map<String, Value>) -> Option<Notice> {
    s3(map).or_else(|| event_bridge(map)).or_else(|| r2(map)).or_else(|| unknown(map))
}

/// Several values in one body: announcements, if one of them is.
fn several(values: &[Value]) -> Option<Notice> {
    let read: Vec<Option<Notice>> = values.iter().map(|value| value.as_object().and_then(one)).collect();
    if read.iter().all(Option::is_none) {
        return None;
    }
    let (mut created, mut wrong) = (Vec::new(), Vec::new());
    for notice in read {
        match notice {
            Some(Notice::Objects { created: some, malformed }) => {
                created.extend(some);
                wrong.extend(malformed);
            }
            Some(Notice::Malformed(why)) => wrong.push(why),
            Some(_) => {}
            None => wrong.push("among announcements of objects stands what is none".to_owned()),
        }
    }
    Some(objects(created.into_iter().map(Ok).chain(wrong.into_iter().map(Err))))
}

/// What is in SNS' envelope; none if it isn't one.
fn unwrap_sns(map: &Map<String, Value>) -> Option<Result<String, Notice>> {
    let topic = text(map, "TopicArn")?;
    match text(map, "Type")? {
        "Notification" => Some(
            text(map, "Message")
                .map(str::to_owned)
                .ok_or_else(|| Notice::Malformed(missing("SNS envelope", "Message"))),
        ),
        "SubscriptionConfirmation" => Some(Err(Notice::Subscription { topic: topic.to_owned() })),
        "UnsubscribeConfirmation" => {
            Some(Err(Notice::Nothing("an SNS topic says that a subscription has ended")))
        }
        _ => None,
    }
}

/// S3's events that bring no object, by how their names begin; also MinIO's and Ceph's.
const BRINGS_NOTHING: [&str; 15] = [
    "ObjectRemoved",
    "ObjectRestore",
    "ObjectTagging",
    "ObjectAcl",
    "ObjectAccessed",
    "ObjectTransition",
    "ObjectLifecycle",
    "LifecycleExpiration",
    "LifecycleTransition",
    "IntelligentTiering",
    "ReducedRedundancyLostObject",
    "Replication",
    "BucketCreated",
    "BucketRemoved",
    "Scanner",
];
/// EventBridge's.
const DETAILS_BRING_NOTHING: [&str; 9] = [
    "Object Deleted",
    "Object Restore Initiated",
    "Object Restore Completed",
    "Object Restore Expired",
    "Object Storage Class Changed",
    "Object Access Tier Changed",
    "Object ACL Updated",
    "Object Tags Added",
    "Object Tags Deleted",
];

fn s3(map: &Map<String, Value>) -> Option<Notice> {
    let Some(records) = map.get("Records") else {
        return (text(map, "Event") == Some("s3:TestEvent")).then_some(Notice::Nothing("S3's test message"));
    };
    let records = records.as_array()?;
    let of_s3 = |r: &Value| {
        r["eventSource"].as_str().is_some_and(|s| s == "aws:s3" || s.ends_with(":s3")) || r["s3"].is_object()
    };
    if !records.iter().any(of_s3) {
        return None;
    }
    Some(objects(records.iter().filter_map(|r| s3_record(r).transpose())))
}

/// None for an event that brings no object.
fn s3_record(record: &Value) -> Result<Option<Announced>, String> {
    let event = word(&record["eventName"]).ok_or_else(|| missing("S3 notification", "eventName"))?;
    // MinIO puts a prefix before the names.
    let event = event.strip_prefix("s3:").unwrap_or(&event);
    if BRINGS_NOTHING.iter().any(|known| event.starts_with(known)) {
        return Ok(None);
    }
    if !event.starts_with("ObjectCreated") {
        return Err(format!("whether the S3 event `{event}` brings an object isn't known"));
    }
    let object = &record["s3"]["object"];
    let bucket =
        word(&record["s3"]["bucket"]["name"]).ok_or_else(|| missing("S3 notification", "s3.bucket.name"))?;
    let literal = word(&object["key"]).ok_or_else(|| missing("S3 notification", "s3.object.key"))?;
    let key = form_decoded(&literal).unwrap_or_else(|| literal.clone());
    Ok(Some(Announced {
        bucket,
        literal_key: (literal != key).then_some(literal),
        key,
        version: version(&object["versionId"]),
        etag: word(&object["eTag"]).map(|e| e.trim_matches('"').to_owned()),
        size: object["size"].as_u64(),
    }))
}

fn event_bridge(map: &Map<String, Value>) -> Option<Notice> {
    if text(map, "source")? != "aws.s3" {
        return None;
    }
    let kind = text(map, "detail-type")?;
    let detail = map.get("detail")?;
    if DETAILS_BRING_NOTHING.contains(&kind) {
        return Some(Notice::Nothing("an event that brings no object"));
    }
    if kind != "Object Created" {
        return Some(Notice::Malformed(format!(
            "of EventBridge's events, `Object Created` brings an object; this one is `{kind}`"
        )));
    }
    let announced = || {
        Ok(Announced {
            bucket: word(&detail["bucket"]["name"])
                .ok_or_else(|| missing("EventBridge event", "detail.bucket.name"))?,
            // Keys are not encoded here.
            key: word(&detail["object"]["key"])
                .ok_or_else(|| missing("EventBridge event", "detail.object.key"))?,
            literal_key: None,
            version: version(&detail["object"]["version-id"]),
            etag: word(&detail["object"]["etag"]).map(|e| e.trim_matches('"').to_owned()),
            size: detail["object"]["size"].as_u64(),
        })
    };
    Some(objects(std::iter::once_with(announced)))
}

/// R2's events that create an object, and those that bring none.
const R2_CREATES: [&str; 3] = ["PutObject", "CompleteMultipartUpload", "CopyObject"];
const R2_BRINGS_NOTHING: [&str; 2] = ["DeleteObject", "LifecycleDeletion"];

/// What R2 tells a queue, and whoever forwards it from there tells this one.
fn r2(map: &Map<String, Value>) -> Option<Notice> {
    let (bucket, object) =
        (map.get("bucket").filter(|bucket| bucket.is_string())?, map.get("object")?.as_object()?);
    let action = map.get("action").unwrap_or(&Value::Null);
    let is_known = action
        .as_str()
        .is_some_and(|action| R2_CREATES.contains(&action) || R2_BRINGS_NOTHING.contains(&action));
    if !is_known && !object.contains_key("key") {
        return None;
    }
    let announced = || {
        let action = word(action).ok_or_else(|| missing("R2 event", "action"))?;
        if R2_BRINGS_NOTHING.contains(&action.as_str()) {
            return Ok(None);
        }
        if !R2_CREATES.contains(&action.as_str()) {
            return Err(format!("whether the R2 action `{action}` brings an object isn't known"));
        }
        let part = |name: &str| object.get(name).unwrap_or(&Value::Null);
        Ok(Some(Announced {
            bucket: word(bucket).ok_or_else(|| missing("R2 event", "bucket"))?,
            // Keys are not encoded here.
            key: word(part("key")).ok_or_else(|| missing("R2 event", "object.key"))?,
            literal_key: None,
            version: version(part("version")),
            etag: word(part("eTag")).map(|e| e.trim_matches('"').to_owned()),
            size: part("size").as_u64(),
        }))
    };
    Some(objects(std::iter::once_with(announced).filter_map(Result::transpose)))
}

/// Envelopes' members in which announcements stand, in shapes that are not read.
const ENVELOPES: [&str; 10] =
    ["body", "Body", "message", "Message", "messages", "payload", "data", "detail", "event", "events"];

/// What tells of an object in a bucket, by itself or in an envelope, in a shape that isn't known. Where it
/// has a time, only what stores are known to say: whatever else has one may be a record of some log type.
fn unknown(map: &Map<String, Value>) -> Option<Notice> {
    let is_timed =
        map.keys().any(|name| ["time", "date", "when"].iter().any(|word| name.to_lowercase().contains(word)));
    let is_meant = |map: &Map<String, Value>| is_of_other_store(map) || (!is_timed && tells_of_object(map));
    let in_envelope = ENVELOPES
        .into_iter()
        .find(|name| map.get(*name).is_some_and(|value| holds(value, MAX_ENVELOPES, &is_meant)));
    let what = match in_envelope {
        _ if is_meant(map) => "it seems to announce".to_owned(),
        Some(name) => format!("its `{name}` seems to announce"),
        None => return None,
    };
    Some(Notice::Malformed(format!(
        "{what} an object in a bucket, in a shape that isn't known; S3's notifications, EventBridge's `Object Created` and R2's events are, also in SNS' envelope"
    )))
}

/// Whether an announcement stands somewhere in a value.
fn holds(value: &Value, deeper: usize, is_meant: &impl Fn(&Map<String, Value>) -> bool) -> bool {
    match value {
        _ if deeper == 0 => false,
        Value::Object(map) => {
            let is_known = || s3(map).or_else(|| event_bridge(map)).or_else(|| r2(map)).is_some();
            let inside = |name: &&str| map.get(*name).is_some_and(|value| holds(value, deeper - 1, is_meant));
            is_known() || is_meant(map) || ENVELOPES.iter().any(inside)
        }
        Value::Array(some) => some.iter().any(|value| holds(value, deeper - 1, is_meant)),
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
            serde_json::from_str(text).is_ok_and(|value: Value| holds(&value, deeper - 1, is_meant))
        }
        _ => false,
    }
}

/// What other stores and Panther's forwarder say.
fn is_of_other_store(map: &Map<String, Value>) -> bool {
    let begins = |name: &str, with: &str| text(map, name).is_some_and(|text| text.starts_with(with));
    let has = |names: &[&str]| names.iter().all(|name| map.contains_key(*name));
    begins("eventType", "Microsoft.Storage.")
        || begins("type", "Microsoft.Storage.")
        || (begins("kind", "storage#object") && has(&["bucket", "name"]))
        || has(&["s3Bucket", "s3ObjectKey"])
}

/// Whether a bucket and a key in it are named, as stores and those who forward their events name them.
fn tells_of_object(map: &Map<String, Value>) -> bool {
    let named = |names: &[&str]| {
        names.iter().any(|name| match map.get(*name) {
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Object(inner)) => inner.contains_key("name") || inner.contains_key("key"),
            Some(Value::Array(some)) => some.iter().any(Value::is_string),
            _ => false,
        })
    };
    let bucket =
        named(&["bucket", "Bucket", "bucketName", "BucketName", "bucket_name", "s3Bucket", "s3_bucket"]);
    bucket
        && named(&[
            "object",
            "Object",
            "key",
            "Key",
            "objectKey",
            "ObjectKey",
            "object_key",
            "s3ObjectKey",
            "s3_key",
            "s3Key",
        ])
}

/// An entry that can't be read costs itself only.
fn objects(read: impl Iterator<Item = Result<Announced, String>>) -> Notice {
    let (mut created, mut wrong) = (Vec::new(), Vec::new());
    for entry in read {
        match entry {
            Ok(announced) => created.push(announced),
            Err(why) => wrong.push(why),
        }
    }
    let others = wrong.len().saturating_sub(1);
    let malformed = wrong
        .into_iter()
        .next()
        .map(|first| if others > 0 { format!("{first}, and {others} more like it") } else { first });
    match malformed {
        None if created.is_empty() => Notice::Nothing("an event that brings no object"),
        Some(why) if created.is_empty() => Notice::Malformed(why),
        malformed => Notice::Objects { created, malformed },
    }
}

fn missing(envelope: &str, what: &str) -> String {
    format!("the {envelope} has no {what}")
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
