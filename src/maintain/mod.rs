//! Upkeep of a lake that is read and written meanwhile.
//!
//! ```text
//! lease → bring tables up to the ledger → retention → compaction → checkpoints → vacuum → log clean-up
//!
//! compaction:  plan (pure) → rewrite: input → merge (pure) → files → commit (table::Upkeep)
//! ```
//!
//! Any step may fail or be killed anywhere: what is not committed is not visible, and what was written for it
//! is an orphan that vacuum finds. A second run with nothing new does nothing.

pub mod plan;
pub mod merge;
pub mod checksum;
pub mod input;
pub mod rewrite;
pub mod compact;
pub mod remove;
pub mod vacuum;
pub mod lease;
mod schedule;
mod maintainer;

pub use maintainer::{Maintainer, Tidied, UpkeepPreview};

use crate::table::TableError;

/// Why upkeep stopped. What it had committed stays, and is whole.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// A table can't be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The store can't be listed, or something not be deleted.
    #[error("{doing} {location} failed: {source}; the next run goes on from there")]
    Store { doing: &'static str, location: String, source: object_store::Error },
    /// What dead writers left in a local lake can't be removed.
    #[error(
        "removing unfinished files failed: {source}; remove what is named put*#* by hand, or run it again"
    )]
    Unfinished { source: std::io::Error },
    /// A retention for a table that is not there to be cut.
    #[error("retention: there is no table {name} whose rows could be dropped; it has to be one of {known}")]
    Retention {
        name: String,
        /// The tables that have partitions.
        known: String,
    },
    /// This machine's clock is not that of the store.
    #[error(
        "{store} says it is {theirs}, and this machine's clock says {ours}: upkeep deletes by age, so it does nothing until the two agree \
         within {most:?}; set this machine's clock"
    )]
    Clock {
        store: String,
        theirs: String,
        /// This machine's.
        ours: String,
        /// How much they may differ.
        most: std::time::Duration,
    },
    /// A stop was asked for while another maintainer was at work.
    #[error("stopped while waiting for another maintainer; nothing was done")]
    Stopped,
    /// The lease went to someone else in the middle.
    #[error("another maintainer took over; what was done is committed, and it goes on with the rest")]
    Overtaken,
}
