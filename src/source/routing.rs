//! The source of an object, and the log type of its records.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::Source;
use crate::decode::object::Object;

/// The log type of everything below a prefix that fits the key; the longest counts. `log_types`: those that
/// routes name, by their index in the catalog.
pub fn routed(source: &Source, key: &str, log_types: &BTreeMap<String, usize>) -> Option<usize> {
    let routes = source.route.iter().filter(|r| key.starts_with(&r.prefix));
    routes.max_by_key(|r| r.prefix.len()).and_then(|r| log_types.get(&r.log_type).copied())
}

/// Which objects are whose, and of which log type.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configured sources, found by bucket.
    pub configured: Vec<Source>,
    /// The source of everything, if the caller named one.
    pub named: Option<Source>,
    /// The log type of everything, if the caller named one.
    pub log_type: Option<usize>,
    /// Log type names of the routes, by their index in the catalog.
    pub log_types: BTreeMap<String, usize>,
}

impl Sources {
    /// The source whose the bucket is.
    pub fn of_bucket(&self, bucket: &str) -> Option<&Source> {
        self.named.as_ref().or_else(|| self.configured.iter().find(|s| s.buckets.iter().any(|b| b == bucket)))
    }

    /// The source whose an object is now that was decoded before: the one that it had then, unless another
    /// one lists its bucket.
    pub fn of_object(&self, object: &Object) -> Option<&Source> {
        let before = self.configured.iter().find(|s| object.source_id.as_ref() == Some(&s.id));
        match &object.bucket {
            Some(bucket) => before.filter(|s| s.buckets.contains(bucket)).or_else(|| self.of_bucket(bucket)),
            None => before,
        }
    }

    /// The log type of that object's records, if that is configured.
    pub fn log_type_of(&self, object: &Object) -> Option<usize> {
        // A message's body, which has its queue for a key, has no prefix.
        let is_named = object.bucket.is_some() || Path::new(&object.key).is_absolute();
        let key = if is_named { &object.key } else { "" };
        self.log_type.or_else(|| routed(self.of_object(object)?, key, &self.log_types))
    }
}
