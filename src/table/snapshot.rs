//! A table as readers see it: the files that its log names, and what the log says of them.

use std::collections::HashMap;

use arrow::array::AsArray as _;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use chrono::DateTime;
use datafusion::error::DataFusionError;
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use deltalake::kernel::{LogicalFileView, Metadata};
use deltalake::{DeltaTable, DeltaTableError};
use futures::future::join_all;
use futures::{FutureExt as _, TryStreamExt as _};
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::commit::TIME_TAGS;
use super::file::DataFile;
use super::ids::{Gathering, Ids};
use super::log::{TableError, log_store};
use super::spec::LEDGER_TABLE;
use crate::base::store::Store;
use crate::schema::Standard;

/// A table at one version of its log, as deltalake has it.
#[derive(Debug, Clone)]
pub struct Snapshot(pub DeltaTable);

impl Snapshot {
    /// A table at its newest version; none if it is not there.
    pub async fn open(store: &Store, name: &str) -> Result<Option<Self>, TableError> {
        if !Self::is_there(store, name).await? {
            return Ok(None);
        }
        let mut table = DeltaTable::new(log_store(store, name));
        let loaded = table.load().await;
        let table = Self(table);
        loaded.map_err(|e| table.not_opened(&e))?;
        table.check()?;
        Ok(Some(table))
    }

    /// A table at one of its versions.
    pub(super) async fn open_at(store: &Store, name: &str, version: u64) -> Result<Self, TableError> {
        let mut table = DeltaTable::new(log_store(store, name));
        let loaded = table.load_version(version).await;
        let table = Self(table);
        loaded.map_err(|e| table.not_opened(&e))?;
        table.check()?;
        Ok(table)
    }

    fn not_opened(&self, error: &DeltaTableError) -> TableError {
        let told = error.to_string();
        // What follows is a trace.
        let told = told.lines().next().unwrap_or_default();
        self.failed("opening the table", format!("{told} (if that stays so, run `flarelake repair`)"))
    }

    /// Whether reading its files as they are gives its rows. Deletion vectors and renamed columns, which
    /// another engine may have brought in, would make that wrong.
    fn check(&self) -> Result<(), TableError> {
        let (reader, _) = self.protocol()?;
        if reader <= 1 {
            return Ok(());
        }
        let message = format!(
            "another engine made it a table of reader version {reader} (deletion vectors or renamed columns), which flarelake does not \
             read; ask that engine, or have it rewritten with version 1"
        );
        Err(TableError::Layout { table: self.0.log_store().root_url().to_string(), message })
    }

    /// Its protocol: reader and writer version.
    pub(super) fn protocol(&self) -> Result<(i64, i64), TableError> {
        let snapshot = self.0.snapshot().map_err(|e| self.failed("reading the log", e))?;
        let protocol = snapshot.protocol();
        Ok((i64::from(protocol.min_reader_version()), i64::from(protocol.min_writer_version())))
    }

    /// Whether there is such a table.
    pub async fn is_there(store: &Store, name: &str) -> Result<bool, TableError> {
        let log_store = log_store(store, name);
        let there = log_store.is_delta_table_location().await;
        there.map_err(|e| TableError::request(log_store.root_url().as_str(), "opening the table", e))
    }

    /// Goes on to the newest version; true if that is another one.
    pub async fn update(&mut self) -> Result<bool, TableError> {
        let before = self.0.version();
        self.0.update_incremental(None).await.map_err(|e| self.failed("reading the log", e))?;
        self.check()?;
        Ok(self.0.version() != before)
    }

    /// The table's columns, as another engine may have extended them.
    pub fn columns(&self) -> Result<Schema, TableError> {
        let snapshot = self.0.snapshot().map_err(|e| self.failed("reading the log", e))?;
        let columns: Result<Schema, _> = snapshot.schema().as_ref().try_into_arrow();
        columns.map_err(|e| self.failed("reading its columns", e))
    }

    /// The names of the columns that stand in its files' paths.
    pub fn partition_columns(&self) -> Result<Vec<String>, TableError> {
        let snapshot = self.0.snapshot().map_err(|e| self.failed("reading the log", e))?;
        Ok(snapshot.metadata().partition_columns().to_vec())
    }

    pub(super) fn layout(&self) -> Result<Metadata, TableError> {
        let snapshot = self.0.snapshot().map_err(|e| self.failed("reading the log", e))?;
        Ok(snapshot.metadata().clone())
    }

    pub fn files(&self) -> Result<Vec<DataFile>, TableError> {
        let snapshot = self.0.snapshot().map_err(|e| self.failed("reading the log", e))?;
        Ok(snapshot.log_data().into_iter().map(|view| file(&view)).collect())
    }

    /// How its log has the names of its files, by their paths.
    pub(super) fn names(&self) -> Result<HashMap<String, String>, TableError> {
        let snapshot = self.0.snapshot().map_err(|e| self.failed("reading the log", e))?;
        let batches =
            snapshot.add_actions_batches(false).map_err(|e| self.failed("reading its files' names", e))?;
        let names =
            batches.iter().filter_map(|batch| cast(batch.column_by_name("path")?, &DataType::Utf8).ok());
        let names = names.flat_map(|names| {
            names.as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        });
        Ok(names.map(|name| (percent_decode_str(&name).decode_utf8_lossy().into_owned(), name)).collect())
    }

    /// Of the ledger: the ids of every object, and how many rows are of one that another row is of.
    pub(super) async fn object_ids(&self) -> Result<(Ids, usize), TableError> {
        match self.gather_object_ids().boxed().await {
            Err(error @ TableError::Request { .. }) => match self.gone().await? {
                Some(path) => {
                    let what = format!("its file {path} is gone: it was removed, or not copied");
                    Err(TableError::damaged("the ledger", what))
                }
                None => Err(error),
            },
            gathered => gathered,
        }
    }

    async fn gather_object_ids(&self) -> Result<(Ids, usize), TableError> {
        use datafusion::prelude::{SessionContext, col};
        let failed = |e: DataFusionError| TableError::request("the ledger", "reading object ids", e);
        let provider = self.0.table_provider().await;
        let provider = provider.map_err(|e| TableError::request("the ledger", "reading object ids", e))?;
        let frame = SessionContext::new().read_table(provider).map_err(failed)?;
        let frame = frame.select(vec![col("object_id")]).map_err(failed)?;
        let mut batches = frame.execute_stream().await.map_err(failed)?;
        let mut gathering = Gathering::default();
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            let texts = cast(batch.column(0), &DataType::Utf8).map_err(|e| failed(e.into()))?;
            for text in texts.as_string::<i32>().iter().flatten() {
                let id = u128::from_str_radix(text, 16).map_err(|_| {
                    let what = format!("`{text}` in its rows is no object id: another engine wrote it");
                    TableError::damaged("the ledger", what)
                })?;
                gathering.push(id);
            }
        }
        Ok(gathering.finish())
    }

    /// The first of its files that is not there.
    pub(super) async fn gone(&self) -> Result<Option<String>, TableError> {
        use object_store::ObjectStoreExt as _;
        let objects = self.0.log_store().object_store(None);
        for file in self.files()? {
            match objects.head(&object_store::path::Path::from(file.path.as_str())).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(Some(file.path)),
                other => other.map_err(|e| self.failed("looking for its files", e))?,
            };
        }
        Ok(None)
    }

    /// The version of an app's `txn`.
    pub(super) async fn transaction(&self, app: &str) -> Result<Option<u64>, TableError> {
        let failed = |e| self.failed("reading the log", e);
        let snapshot = self.0.snapshot().map_err(failed)?;
        let version = snapshot.transaction_version(self.0.log_store().as_ref(), app).await.map_err(failed)?;
        Ok(version.map(|version| version as u64))
    }

    fn failed(&self, doing: &str, error: impl std::fmt::Display) -> TableError {
        TableError::request(self.0.log_store().root_url().as_str(), doing, error)
    }
}

/// Tables of a lake as readers see them now, in the order of `names`; none for those that nothing has landed
/// in yet.
pub async fn open_tables(store: &Store, names: &[String]) -> Result<Vec<Option<Snapshot>>, TableError> {
    // A task each: to read a log takes time and a core.
    let open = |name: &str| {
        let (store, name) = (store.clone(), name.to_owned());
        tokio::spawn(async move { Snapshot::open(&store, &name).await })
    };
    let tables: Vec<_> = names.iter().map(|name| open(name)).collect();
    if !Snapshot::is_there(store, LEDGER_TABLE).await? {
        return Err(TableError::NoLake { url: store.url.to_string() });
    }
    join_all(tables).await.into_iter().map(|table| table.expect("opening a table doesn't panic")).collect()
}

fn file(view: &LogicalFileView) -> DataFile {
    // Only the whole action has the tags.
    #[expect(deprecated)]
    let add = view.add_action();
    DataFile {
        path: view.path().into_owned(),
        partition_values: add
            .partition_values
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect(),
        size: add.size as u64,
        rows: view.num_records().unwrap_or_default() as u64,
        modified_ms: add.modification_time,
        stats: add.stats.unwrap_or_default(),
        times: add.tags.as_ref().and_then(tagged),
    }
}

/// Where a file of `table` is in the store, by its path below the table.
pub fn file_location(store: &Store, table: &str, path: &str) -> Path {
    let table = store.root.clone().join(table);
    // As the log names it, whatever characters another engine may have put in.
    let path = Path::parse(path).unwrap_or_else(|_| Path::from(path));
    table.parts().chain(path.parts()).collect()
}

fn tagged(tags: &HashMap<String, Option<String>>) -> Option<(i64, i64)> {
    let time = |tag: &str| tags.get(tag)?.as_ref()?.parse().ok();
    Some((time(TIME_TAGS[0])?, time(TIME_TAGS[1])?))
}

impl DataFile {
    /// Where it is in the store, as a file of `table`.
    pub fn location(&self, store: &Store, table: &str) -> Path {
        file_location(store, table, &self.path)
    }

    /// When the last of its rows was decoded, in microseconds since the epoch: as its statistics tell, else
    /// when it was written.
    pub fn last_landed(&self) -> i64 {
        let stats: Value = serde_json::from_str(&self.stats).unwrap_or_default();
        let greatest = stats["maxValues"][Standard::ParseTime.name()]
            .as_str()
            .and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        greatest.map_or(self.modified_ms * 1000, |time| time.timestamp_micros())
    }
}
