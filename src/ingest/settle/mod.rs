//! What becomes of items: messages are acknowledged, or a summary counts.

pub mod book;
pub mod ack;
pub mod leases;
pub mod summary;

pub use book::Identified;

use super::item::{Item, ItemNo};
use crate::decode::object::ObjectId;
use crate::decode::reject::Reason;
use crate::land::ledger_rows::ObjectOutcome;

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

/// Who is told what became of items. An intake and its settle know each other's items by their numbers.
pub trait Settle: Send + Sync {
    /// An item has turned out to be this object. Asked once more when the item is fetched again.
    fn identify(&self, item: ItemNo, object: ObjectId) -> Identified;

    /// What became of an item: the last that is told of it.
    fn settle(&self, item: &Item, outcome: Outcome<'_>);

    /// What landed beside the items: objects that were rejected unread, each told before the item that
    /// brought it.
    fn landed_beside(&self, _: &ObjectOutcome) {}
}
