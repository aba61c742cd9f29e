//! Looks one value up in every table: how often, since when, on which days, and the newest rows.
//!
//! Little is read: the log gives the files of the requested time, a file's footer the positions of its bloom
//! filters, and 32 bytes of a filter whether a row group may hold the value; only then are that row group's
//! list and times read. A filter can't answer for a network or all below a domain: a file's value index does.

mod needle;
mod file;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, NaiveDate};
use futures::{StreamExt as _, stream};
use parquet::errors::ParquetError;
use serde_json::{Map, Value};

use crate::base::store::Store;
use crate::schema::{Catalog, Standard};
use crate::table::{DataFile, FAILURES_TABLE, TableError, open_tables};

use file::{FileHits, Metered, Row};
pub use needle::{Needle, NeedleError};

/// Files searched at once.
const AT_ONCE: usize = 16;

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A table can't be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A file can't be read.
    #[error("{path}: can't be read: {source}")]
    File {
        path: String,
        /// What the store or the reader said.
        source: ParquetError,
    },
}

/// What was found in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHits {
    pub table: String,
    pub rows: u64,
    /// The first and the last time, in microseconds since the epoch.
    pub times: (i64, i64),
    pub days: BTreeMap<NaiveDate, u64>,
}

/// A row that holds the value.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundRow {
    pub table: String,
    /// Its columns that are not null.
    pub row: Map<String, Value>,
}

/// What was found of a value.
#[derive(Debug, Clone)]
pub struct Found {
    /// By table, most rows first; those without a hit are not in it.
    pub tables: Vec<TableHits>,
    /// The newest rows, newest first.
    pub newest: Vec<FoundRow>,
}

/// What a search found, and what it took.
#[derive(Debug, Clone)]
pub struct Searched {
    /// What was found of each value, in their order.
    pub found: Vec<Found>,
    pub bytes_read: u64,
    /// Bytes of the files of the time that was asked for.
    pub bytes_total: u64,
    /// How many files these are.
    pub files: usize,
}

/// A file of a table.
#[derive(Clone)]
struct Place {
    table: String,
    reader: Metered,
}

/// Searches every table for rows from `since` (microseconds since the epoch) on; `newest` of each value are
/// read in full. All values are searched for at once: each file is opened once.
pub async fn search(
    store: &Store,
    catalog: &Catalog,
    needles: &[Needle],
    since: i64,
    newest: usize,
) -> Result<Searched, SearchError> {
    let read = Arc::new(AtomicU64::new(0));
    let mut places = Vec::new();
    let tables = catalog.types().iter().map(|t| t.table_name()).chain([FAILURES_TABLE.to_owned()]);
    let tables: Vec<String> = tables.collect();
    let snapshots = open_tables(store, &tables).await?;
    for (table, snapshot) in tables.into_iter().zip(snapshots) {
        let Some(snapshot) = snapshot else { continue };
        let columns = snapshot.columns()?.fields().len();
        for file in snapshot.files()?.into_iter().filter(|file| is_recent(file, since)) {
            let reader = Metered {
                store: store.objects.clone(),
                path: file.location(store, &table),
                size: file.size,
                rows: file.rows,
                columns,
                read: read.clone(),
            };
            places.push(Place { table: table.clone(), reader });
        }
    }
    let mut found = Vec::new();
    for hits in search_all(&places, needles, since, newest).await? {
        found.push(Found { tables: by_table(&hits), newest: newest_rows(&hits, newest).await? });
    }
    let bytes_total = places.iter().map(|place| place.reader.size).sum();
    Ok(Searched { found, bytes_read: read.load(Ordering::Relaxed), bytes_total, files: places.len() })
}

/// Whether a file may hold rows from `since` on, by what the log says of it.
fn is_recent(file: &DataFile, since: i64) -> bool {
    file.time_bounds().is_none_or(|times| times.greatest >= since)
}

/// For each value the files that it is in.
async fn search_all(
    places: &[Place],
    needles: &[Needle],
    since: i64,
    newest: usize,
) -> Result<Vec<Vec<(Place, FileHits)>>, SearchError> {
    let all: Arc<[Needle]> = needles.into();
    let searches = places.iter().cloned().map(|place| {
        let needles = all.clone();
        let work = async move {
            let found = file::search(place.reader.clone(), &needles, since, newest).await;
            (place, found)
        };
        // A task each: decoding takes a core.
        async move { tokio::spawn(work).await.expect("a search doesn't panic") }
    });
    let searches: Vec<_> = searches.collect();
    let mut searched = stream::iter(searches).buffer_unordered(AT_ONCE);
    let mut hits = vec![Vec::new(); needles.len()];
    while let Some((place, result)) = searched.next().await {
        let found =
            result.map_err(|source| SearchError::File { path: place.reader.path.to_string(), source })?;
        for (hits, found) in hits.iter_mut().zip(found).filter(|(_, found)| found.times.is_some()) {
            hits.push((place.clone(), found));
        }
    }
    Ok(hits)
}

fn by_table(hits: &[(Place, FileHits)]) -> Vec<TableHits> {
    let mut tables: BTreeMap<&str, TableHits> = BTreeMap::new();
    for (place, found) in hits {
        let Some((first, last)) = found.times else { continue };
        let table = tables.entry(&place.table).or_insert_with(|| TableHits {
            table: place.table.clone(),
            rows: 0,
            times: (first, last),
            days: BTreeMap::new(),
        });
        table.times = (table.times.0.min(first), table.times.1.max(last));
        for (day, rows) in &found.days {
            let day = NaiveDate::from_epoch_days(*day as i32).unwrap_or_default();
            *table.days.entry(day).or_default() += rows;
            table.rows += rows;
        }
    }
    let mut tables: Vec<TableHits> = tables.into_values().collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.rows));
    tables
}

async fn newest_rows(hits: &[(Place, FileHits)], most: usize) -> Result<Vec<FoundRow>, SearchError> {
    let mut all: Vec<(Row, usize)> = hits
        .iter()
        .enumerate()
        .flat_map(|(n, (_, found))| found.newest.iter().map(move |row| (*row, n)))
        .collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.truncate(most);
    let mut by_file: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
    all.into_iter().for_each(|(row, file)| by_file.entry(file).or_default().push(row));
    let mut found = Vec::new();
    for (file, rows) in by_file {
        let place = &hits[file].0;
        let failed = |source| SearchError::File { path: place.reader.path.to_string(), source };
        for batch in file::rows(place.reader.clone(), &rows).await.map_err(failed)? {
            let rows = json(&batch).map_err(|e| failed(ParquetError::ArrowError(e)))?;
            found.extend(rows.into_iter().map(|row| FoundRow { table: place.table.clone(), row }));
        }
    }
    let time = |found: &FoundRow| {
        found.row.get(Standard::EventTime.name()).and_then(Value::as_str).map(str::to_owned)
    };
    found.sort_by_key(|row| std::cmp::Reverse(time(row).and_then(|t| DateTime::parse_from_rfc3339(&t).ok())));
    Ok(found)
}

/// Rows as JSON objects without their nulls.
fn json(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let mut bytes = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut bytes);
    writer.write(batch).and_then(|()| writer.finish()).map_err(|e| e.to_string())?;
    drop(writer);
    let rows = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    rows.map(|line| serde_json::from_slice(line).map_err(|e| e.to_string())).collect()
}
