//! The files that a table's log names: what there is to read, and what the log says of it.

use deltalake::DeltaTable;
use deltalake::kernel::LogicalFileView;
use object_store::path::Path;
use serde_json::Value;

use super::commit::DataFile;
use super::log::TableError;
use crate::base::store::Store;

/// Every file of a table that was opened.
pub fn live_files(table: &DeltaTable) -> Result<Vec<DataFile>, TableError> {
    let failed = |e: deltalake::DeltaTableError| TableError::request(table.log_store().root_url().as_str(), "reading the log", e);
    let snapshot = table.snapshot().map_err(failed)?;
    let file = |view: LogicalFileView| DataFile {
        path: view.path().into_owned(),
        partition_values: view.partition_values_map().into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        size: view.size() as u64,
        rows: view.num_records().unwrap_or_default() as u64,
        modified_ms: view.modification_time(),
        stats: view.stats().unwrap_or_default(),
    };
    Ok(snapshot.log_data().into_iter().map(file).collect())
}

fn parsed(stats: &str) -> Value {
    serde_json::from_str(stats).unwrap_or_default()
}

impl DataFile {
    /// Where it is in the store, as a file of `table`.
    pub fn location(&self, store: &Store, table: &str) -> Path {
        let table = store.root.clone().join(table);
        table.parts().chain(Path::from(self.path.as_str()).parts()).collect()
    }

    /// The least and the greatest value of a column of times, as the log tells them: RFC 3339.
    pub fn time_range(&self, column: &str) -> Option<(String, String)> {
        let stats = parsed(&self.stats);
        let of = |which: &str| stats[which][column].as_str().map(str::to_owned);
        Some((of("minValues")?, of("maxValues")?))
    }
}
