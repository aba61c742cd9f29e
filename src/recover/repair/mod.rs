//! A lake whose parts don't fit together any more, made whole as far as it can be.
//!
//! ```text
//! mender:  doubles (out of the ledger) → refill (the ledger, from tables and old files)
//!                                      → salvage (tables, from the files in their folders)
//! ```

mod salvage;
mod doubles;
mod refill;
mod mender;

pub use mender::Mender;

use crate::base::store::StoreError;
use crate::format::write::FileError;
use crate::maintain::MaintainError;
use crate::maintain::rewrite::RewriteError;
use crate::table::TableError;

/// Bytes of rows that are read at once.
const READING: usize = 64 << 20;

/// Why a repair stopped. It can be begun again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A table can't be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No such table is there to be looked through.
    #[error("there is no table {name} in this lake; there are: {there}")]
    NoTable {
        /// What was asked for.
        name: String,
        /// The tables that are there.
        there: String,
    },
    /// Another process keeps the lake up.
    #[error("another process writes to this lake: stop every maintainer and writer, then run it again")]
    Busy,
    /// The lease can't be taken, or a folder not be listed.
    #[error(transparent)]
    Maintain(#[from] MaintainError),
    /// Rows can't be written anew.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The store doesn't tell what time it is.
    #[error(transparent)]
    Time(#[from] StoreError),
    /// A file of a table can't be read.
    #[error(
        "{location}: can't be read: {source}; restore it, or take it out of the table, then run it again"
    )]
    Read {
        /// The file's path in the store.
        location: String,
        /// What the reader said.
        source: parquet::errors::ParquetError,
    },
    /// The ledger's rows can't be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// A file can't be uploaded.
    #[error("uploading {location} failed: {source}; nothing was lost, run it again")]
    Upload {
        /// The file's path in the store.
        location: String,
        /// What the store said.
        source: object_store::Error,
    },
}
