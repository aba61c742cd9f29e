//! A count of rows and a hash of their ids: what a merge is checked by.

use arrow::array::Array as _;
use arrow::record_batch::RecordBatch;
use twox_hash::XxHash64;

use crate::format::read::ids;
use crate::table::TableSpec;

/// A table's rows have no id of the expected kind.
#[derive(Debug, thiserror::Error)]
#[error(
    "{table}: the column {column} is missing or of another type; without it a merge can't be verified, so it is skipped"
)]
pub struct NoId {
    table: String,
    column: String,
}

/// A count of rows and a hash of their ids in whatever order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    pub rows: u64,
    /// The sum of the hashes of their ids.
    pub ids: u64,
}

impl Checksum {
    pub fn add(&mut self, spec: &TableSpec, batch: &RecordBatch) -> Result<(), NoId> {
        let ids = ids(spec, batch).filter(|ids| ids.null_count() == 0);
        let ids =
            ids.ok_or_else(|| NoId { table: spec.name.clone(), column: spec.id_column().to_owned() })?;
        ids.iter().flatten().for_each(|id| self.add_id(id));
        Ok(())
    }

    pub fn add_id(&mut self, id: &str) {
        self.rows += 1;
        self.ids = self.ids.wrapping_add(XxHash64::oneshot(0, id.as_bytes()));
    }

    /// Of these rows and the other's.
    pub fn and(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, ids: self.ids.wrapping_add(other.ids) }
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows (ids {:016x})", self.rows, self.ids)
    }
}
