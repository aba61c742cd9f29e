//! Compares a bucket's listing with the ledger: what never arrived, and what has changed since it did.
//!
//! The ledger is read after the listing, so what lands in between counts as landed. The listing is kept in
//! memory, some 200 bytes per object (200 MB for a million); the ledger's rows are streamed, and leave one
//! byte per object.

use std::collections::BTreeMap;

use arrow::array::AsArray as _;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use futures::TryStreamExt as _;

use super::gaps::Streams;
use crate::decode::object::{ObjectId, is_no_log};
use crate::query::{QueryError, Session, Value};
use crate::source::bucket::ListedObject;

/// The ledger's rows of a part of a bucket.
const LEDGER: &str = "SELECT object_id, key, etag FROM ingested_objects WHERE bucket = $bucket AND key >= $first AND key <= $last";

/// What became of an object that a listing names. What is known of it grows in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing of this name has landed.
    Missing,
    /// It was announced, and became a reject without having been read: it was not there, or of a bucket that
    /// no source listed.
    Unread,
    /// It was overwritten: another content of this name has landed, and this one has not.
    Changed,
    Landed,
    /// It has not landed, and is so young that it may be on its way.
    OnItsWay,
    /// It holds no records, by its name or size.
    NoLog,
    /// It was written before the time that is looked at.
    Older,
}

impl State {
    /// Whether the lake lacks it.
    pub fn is_absent(self) -> bool {
        self <= Self::Changed
    }
}

/// Objects, and how much they are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub objects: u64,
    /// Bytes as stored.
    pub bytes: u64,
}

impl Tally {
    /// Counts so many more.
    pub fn add(&mut self, objects: u64, bytes: u64) {
        (self.objects, self.bytes) = (self.objects + objects, self.bytes + bytes);
    }
}

/// Which objects are looked at, by when they were written, in microseconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Not those before.
    pub from: Option<i64>,
    /// Those after may be on their way.
    pub settled: i64,
}

/// An object that the lake lacks, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Missing, unread or changed.
    pub state: State,
    /// What the listing says of it.
    pub object: ListedObject,
}

/// What came of a comparison.
#[derive(Debug)]
pub struct Reconciled {
    /// The objects of each state.
    pub tallies: BTreeMap<State, Tally>,
    /// What the lake lacks, by key.
    pub absent: Vec<Absent>,
    /// What the names of all logs tell.
    pub streams: Streams,
}

/// A listing that is being compared with the ledger.
#[derive(Debug)]
pub struct Comparison {
    bucket: String,
    listed: Vec<ListedObject>,
    /// What the ledger says of each.
    known: Vec<State>,
}

impl Comparison {
    /// Of what `bucket` lists, by key.
    pub fn new(bucket: &str, listed: Vec<ListedObject>) -> Self {
        Self { bucket: bucket.to_owned(), known: vec![State::Missing; listed.len()], listed }
    }

    /// Takes note of a row of the ledger.
    pub fn landed(&mut self, id: ObjectId, key: &str, etag: &str) {
        let Ok(at) = self.listed.binary_search_by(|object| object.key.as_str().cmp(key)) else { return };
        let state = if id != ObjectId::of_s3(&self.bucket, key, etag) {
            State::Unread
        } else if self.listed[at].head.etag == etag {
            State::Landed
        } else {
            State::Changed
        };
        self.known[at] = self.known[at].max(state);
    }

    /// What became of every object.
    pub fn finish(self, window: Window) -> Reconciled {
        let mut found =
            Reconciled { tallies: BTreeMap::new(), absent: Vec::new(), streams: Streams::default() };
        for (object, known) in self.listed.into_iter().zip(self.known) {
            let state = window.state(&object, known);
            found.tallies.entry(state).or_default().add(1, object.head.size);
            if !matches!(state, State::NoLog | State::Older) {
                found.streams.add(&object.key);
            }
            if state.is_absent() {
                found.absent.push(Absent { state, object });
            }
        }
        found
    }
}

impl Window {
    fn state(&self, object: &ListedObject, known: State) -> State {
        let written = object.head.last_modified;
        if written.zip(self.from).is_some_and(|(written, from)| written < from) {
            State::Older
        } else if object.head.size == 0 || is_no_log(&object.key) {
            State::NoLog
        } else if known.is_absent() && written.is_some_and(|written| written > self.settled) {
            State::OnItsWay
        } else {
            known
        }
    }
}

/// Compares what `bucket` lists, by key, with the lake's ledger.
pub async fn reconcile(
    session: &Session,
    bucket: &str,
    listed: Vec<ListedObject>,
    window: Window,
) -> Result<Reconciled, QueryError> {
    let ends = listed.first().zip(listed.last()).map(|(first, last)| (first.key.clone(), last.key.clone()));
    let mut comparison = Comparison::new(bucket, listed);
    if let Some((first, last)) = ends {
        let values = [("bucket", bucket.to_owned()), ("first", first), ("last", last)];
        let values = values.map(|(name, value)| (name.to_owned(), Value::Text(value)));
        let mut rows = session.query(LEDGER, &values).await?;
        while let Some(batch) = rows.try_next().await? {
            let texts = batch
                .columns()
                .iter()
                .map(|column| cast(column, &DataType::Utf8))
                .collect::<Result<Vec<_>, _>>();
            let texts = texts.map_err(|e| QueryError::Sql(e.to_string()))?;
            let [ids, keys, etags] = [0, 1, 2].map(|n| texts[n].as_string::<i32>());
            for ((id, key), etag) in ids.iter().zip(keys).zip(etags) {
                if let (Some(id), Some(key), Some(etag)) = (id.and_then(ObjectId::parse), key, etag) {
                    comparison.landed(id, key, etag);
                }
            }
        }
    }
    Ok(comparison.finish(window))
}
