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

use std::sync::Arc;

use arrow::array::Array as _;
use futures::StreamExt as _;
use parquet::errors::ParquetError;

use crate::base::store::{Store, StoreError};
use crate::format::read;
use crate::format::write::FileError;
use crate::maintain::MaintainError;
use crate::maintain::plan::{Bin, Why};
use crate::maintain::rewrite::{RewriteError, Rewriter};
use crate::table::{DataFile, TableError, TableSpec};

/// Bytes of rows that are read at once.
const READ_BYTES: usize = 64 << 20;

/// Why a repair stopped. It can be begun again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A table can't be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No such table is there to be looked through.
    #[error("there is no table {name} in this lake; there are: {there}")]
    NoTable {
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
        source: object_store::Error,
    },
}

/// Goes through the ids of a file's rows; none for those that have none.
async fn each_id(
    store: &Store,
    spec: &TableSpec,
    file: &DataFile,
    mut each: impl FnMut(Option<&str>),
) -> Result<(), ParquetError> {
    let id = spec.id_column();
    let mut batches = read::stream(store, spec, file, None, READ_BYTES, |name| name == id).await?;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        match read::ids(spec, &batch) {
            Some(ids) => {
                (0..ids.len()).for_each(|row| each(ids.is_valid(row).then(|| ids.value(row))));
            }
            None => (0..batch.num_rows()).for_each(|_| each(None)),
        }
    }
    Ok(())
}

/// How files are written anew without some of their rows.
#[derive(Clone)]
struct Anew {
    store: Store,
    spec: Arc<TableSpec>,
    /// Bytes that a file is meant to have.
    target: u64,
    /// Bytes that it may take.
    memory: usize,
}

impl Anew {
    /// Files of one partition without the rows whose ids go. Each row is asked for once.
    async fn without(
        &self,
        files: Vec<DataFile>,
        drop_rows: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<Vec<DataFile>, RewriteError> {
        let Self { store, spec, target, memory } = self.clone();
        let drop_rows = Some(Arc::new(drop_rows) as _);
        let rewriter =
            Rewriter { store, spec, target, memory, progress: Arc::default(), threads: None, drop_rows };
        let partition = files.first().map(|file| file.partition_values.clone()).unwrap_or_default();
        rewriter.run(&Bin { partition, inputs: files, cuts: Vec::new(), why: Why::Small }, ()).await
    }
}
