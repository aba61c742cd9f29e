//! Items: as an intake took them in, as they were fetched, and what became of them.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::attempts::Attempts;
use super::feed::Feed;
use super::identity::{Identified, ItemNo};
use super::room::Taken;
use crate::decode::object::{Object, ObjectId, RowId};
use crate::decode::reject::Reason;
use crate::decode::split::Place;
use crate::land::ledger_rows::ObjectOutcome;
use crate::land::worker::Rejected;
use crate::source::bucket::Wanted;
use crate::source::notice::Announced;
use crate::source::origin::{Input, Origin};

/// Something taken in, and not read yet. A copy is the same item.
#[derive(Debug, Clone)]
pub struct Item {
    /// What its intake knows it by.
    pub no: ItemNo,
    pub feed: Arc<Feed>,
    pub kind: ItemKind,
    /// Receives what becomes of it.
    pub(super) settle: Arc<dyn Settle>,
    pub(super) attempts: Attempts,
    /// Whether it was told that it is not what was announced.
    pub(super) is_told_overwritten: bool,
    /// Landing a batch that held it panicked: it gets one of its own.
    pub(super) is_suspect: bool,
    /// The way back to be fetched again.
    pub(super) again: mpsc::UnboundedSender<(Item, Duration)>,
    /// Counts it as under way, until it is settled.
    #[expect(dead_code, reason = "it is held")]
    pub(super) under_way: TaskTrackerToken,
}

impl Item {
    /// Says what became of it: once, and last.
    pub fn settle(&self, outcome: Outcome<'_>) {
        self.settle.settle(self, outcome);
    }
}

#[derive(Debug, Clone)]
pub enum ItemKind {
    /// An object of a bucket, as a message announces it.
    Announced(Announced),
    /// A file, or an object of a bucket, as a listing has it.
    Listed(Origin),
    /// An object whose bytes came with it.
    Held(Held),
    /// An object that is one reject, unread.
    Unread(Unread),
    /// A reject to be decoded again.
    Replayed(ReplayedReject),
}

/// A reject to be decoded again.
#[derive(Debug, Clone)]
pub struct ReplayedReject {
    pub reject: RowId,
    /// What was rejected, or what the record is of.
    pub object: Object,
    /// The code of why it was rejected.
    pub reason: String,
    /// What every record of it is taken for, by the log type's index in the catalog.
    pub log_type: Option<usize>,
    /// What there is of it; none once it was decoded.
    pub rejected: Arc<Mutex<Option<Rejected>>>,
    /// The room that it takes.
    pub room: Taken,
}

/// An object whose bytes came with it: a message's body, a piece of standard input.
#[derive(Debug, Clone)]
pub struct Held {
    pub object: Object,
    /// Its bytes; none when they were let go.
    pub bytes: Option<Bytes>,
    /// Where in a stream's framing its first record stands.
    pub place: Place,
    /// What its bytes take of the room, where they are let go as soon as they are decoded. None: they are
    /// kept until it has landed.
    pub room: Option<Taken>,
}

/// An object that is one reject.
#[derive(Debug, Clone)]
pub struct Unread {
    pub object: Object,
    /// Why it is a reject.
    pub reason: Reason,
    /// What happened, and what to do.
    pub message: String,
    /// What there is of it.
    pub payload: Option<Bytes>,
}

impl ItemKind {
    /// Where it is, as a person would write it.
    pub fn location(&self) -> String {
        match self {
            Self::Announced(Announced { bucket, key, version, .. }) => {
                Wanted { bucket: bucket.clone(), key: key.clone(), version: version.clone() }.location()
            }
            Self::Listed(origin) => origin.location(),
            Self::Held(Held { object, .. })
            | Self::Unread(Unread { object, .. })
            | Self::Replayed(ReplayedReject { object, .. }) => object.location(),
        }
    }

    /// The bucket that it is read from; empty where it is not.
    pub fn bucket(&self) -> &str {
        match self {
            Self::Announced(announced) => &announced.bucket,
            Self::Listed(Origin::S3 { wanted, .. }) => &wanted.bucket,
            Self::Listed(Origin::File(_)) | Self::Held(_) | Self::Unread(_) | Self::Replayed(_) => "",
        }
    }

    /// Stored bytes, as far as that is known.
    pub fn size(&self) -> u64 {
        match self {
            Self::Announced(announced) => announced.size.unwrap_or_default(),
            Self::Listed(origin) => origin.size(),
            Self::Held(Held { object, .. })
            | Self::Unread(Unread { object, .. })
            | Self::Replayed(ReplayedReject { object, .. }) => object.size,
        }
    }
}

/// An item with its bytes, or the way to them: for a worker.
pub(super) struct Fetched {
    pub item: Item,
    /// What it is known by in the ledger.
    pub entry: ObjectId,
    pub object: Object,
    pub content: Content,
    /// What every record of it is taken for, by the log type's index in the catalog.
    pub log_type: Option<usize>,
    /// The room that its bytes take, until they are decoded.
    pub room: Option<Taken>,
    /// The right to keep a worker waiting for the network, until it is decoded.
    pub remote: Option<OwnedSemaphorePermit>,
}

pub(super) enum Content {
    Input(Input, Place),
    Reject { reason: Reason, message: String, payload: Option<Vec<u8>> },
    Replay { reject: RowId, rejected: Rejected },
}

impl Fetched {
    /// Bytes that it holds in memory.
    pub fn held(&self) -> u64 {
        match &self.content {
            Content::Input(Input::Memory(bytes), _) => bytes.len() as u64,
            Content::Input(..) => self.object.size,
            Content::Reject { payload, .. } => payload.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Content::Replay { rejected, .. } => rejected.held(),
        }
    }
}

/// What became of an item.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// It landed now, as rows and rejects.
    Landed(&'a ObjectOutcome),
    /// It had landed before.
    AlreadyThere,
    /// It holds nothing to land.
    Empty,
    /// It is a reject still, for this reason now; none: it is not one record.
    Rejected(Option<Reason>),
    /// It did not land in this run, for this reason.
    GivenUp(&'a str),
    /// The run was stopped before it was begun, or before it had landed.
    NotBegun,
}

/// Receives what became of an intake's items, which both know by their numbers.
pub trait Settle: Send + Sync + Debug {
    /// An item has turned out to be this object. Asked once more when the item is fetched again.
    fn identify(&self, item: ItemNo, object: ObjectId) -> Identified;

    /// What became of an item: the last that is told of it.
    fn settle(&self, item: &Item, outcome: Outcome<'_>);

    /// What landed beside the items: objects that were rejected unread, each told before the item that
    /// brought it.
    fn landed_beside(&self, _: &ObjectOutcome) {}
}
