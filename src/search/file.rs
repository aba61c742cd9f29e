//! One file searched: its footer, 32 bytes of each bloom filter, and only where these say "perhaps" the list
//! itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::{BoxFuture, FutureExt as _, try_join_all};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::needle::Needle;
use crate::base::clock::DAY_MICROS;
use crate::format::bloom;
use crate::format::value_index::{self, IndexPlace};
use crate::format::write::footer_guess;
use crate::schema::{Standard, timestamp_type};

/// A file, and how much of it was read.
#[derive(Debug, Clone)]
pub struct Metered {
    pub store: Arc<dyn ObjectStore>,
    /// Its path there.
    pub path: Path,
    /// Bytes.
    pub size: u64,
    pub rows: u64,
    /// Columns of its table.
    pub columns: usize,
    /// Bytes read so far, of all files.
    pub read: Arc<AtomicU64>,
}

impl AsyncFileReader for Metered {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            self.read.fetch_add(range.end - range.start, Ordering::Relaxed);
            self.store.get_range(&self.path, range).await.map_err(|e| ParquetError::External(Box::new(e)))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let own = self.clone();
        // Each as it is: what lies between would be read for nothing.
        async move { try_join_all(ranges.into_iter().map(|range| own.clone().range(range))).await }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move { Ok(self.open(PageIndexPolicy::Skip).await?.metadata().clone()) }.boxed()
    }
}

impl Metered {
    /// The footer; and where pages are, if it is pages that will be read.
    async fn open(&mut self, pages: PageIndexPolicy) -> Result<ArrowReaderMetadata> {
        let size = self.size;
        let guess = footer_guess(self.columns, self.rows);
        let reader = ParquetMetaDataReader::new()
            .with_offset_index_policy(pages)
            .with_column_index_policy(PageIndexPolicy::Skip);
        let metadata = reader
            .with_prefetch_hint(Some(guess.min(size) as usize))
            .load_and_finish(&mut *self, size)
            .await?;
        // By the Parquet types alone: whoever rewrote the file, text is text of one kind.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        ArrowReaderMetadata::try_new(Arc::new(metadata), options)
    }

    async fn range(mut self, range: Range<u64>) -> Result<Bytes> {
        self.get_bytes(range).await
    }
}

/// A row that was found: its time, its row group, and its place in that.
pub type Row = (i64, usize, usize);

/// What was found in a file.
#[derive(Debug, Clone, Default)]
pub struct FileHits {
    /// Rows by day, in days since the epoch.
    pub days: BTreeMap<i64, u64>,
    /// The first and the last time.
    pub times: Option<(i64, i64)>,
    /// The newest rows, newest first.
    pub newest: Vec<Row>,
}

impl FileHits {
    fn add(&mut self, row: Row) {
        *self.days.entry(row.0.div_euclid(DAY_MICROS)).or_default() += 1;
        self.times =
            Some(self.times.map_or((row.0, row.0), |(first, last)| (first.min(row.0), last.max(row.0))));
        self.newest.push(row);
    }

    fn keep_newest(&mut self, most: usize) {
        self.newest.sort_unstable_by(|a, b| b.cmp(a));
        self.newest.truncate(most);
    }
}

/// Searches a file for rows from `since` on, for all values at once: what was found of each, in their order.
/// At most `newest` rows of each are kept one by one.
pub async fn search(
    mut file: Metered,
    needles: &[Needle],
    since: i64,
    newest: usize,
) -> Result<Vec<FileHits>> {
    let metadata = file.open(PageIndexPolicy::Skip).await?;
    let leaf = |name: &str| {
        metadata
            .parquet_schema()
            .columns()
            .iter()
            .position(|c| c.path().parts().first().is_some_and(|p| p == name))
    };
    let mut hits = vec![FileHits::default(); needles.len()];
    let Some(time) = leaf(Standard::EventTime.name()) else { return Ok(hits) };
    // What to look for where: the value, its list, and the row groups that are left for it.
    let mut sought = Vec::new();
    for (n, needle) in needles.iter().enumerate() {
        for list in needle.columns() {
            let Some(leaf) = leaf(list.name()) else { continue };
            sought.push((n, leaf, indexed_groups(&mut file, metadata.metadata(), *list, needle).await?));
        }
    }
    for group in 0..metadata.metadata().num_row_groups() {
        let mut leaves = vec![time];
        let mut wanted = BTreeSet::new();
        for (n, leaf, groups) in &sought {
            if value_index::is_among(*groups, group)
                && may_hold(&mut file, metadata.metadata(), group, *leaf, &needles[*n]).await?
            {
                leaves.push(*leaf);
                wanted.insert(*n);
            }
        }
        if wanted.is_empty() {
            continue;
        }
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file.clone(), metadata.clone());
        let mask = ProjectionMask::leaves(metadata.parquet_schema(), leaves);
        let mut batches = builder.with_row_groups(vec![group]).with_projection(mask).build()?;
        let mut first = 0;
        while let Some(batch) = batches.try_next().await? {
            for n in &wanted {
                let found = matches(&batch, &needles[*n])?;
                found
                    .into_iter()
                    .filter(|(_, time)| *time >= since)
                    .for_each(|(row, time)| hits[*n].add((time, group, first + row)));
                hits[*n].keep_newest(newest);
            }
            first += batch.num_rows();
        }
    }
    Ok(hits)
}

/// The row groups, as bits, in which a network or something below a domain stands, by the file's value
/// index; all of them where there is none, or where a bloom filter tells.
async fn indexed_groups(
    file: &mut Metered,
    metadata: &ParquetMetaData,
    list: Standard,
    needle: &Needle,
) -> Result<u64> {
    const ALL: u64 = u64::MAX;
    let entries = metadata.file_metadata().key_value_metadata().into_iter().flatten();
    let text = entries
        .filter(|entry| entry.key == value_index::METADATA_KEY)
        .find_map(|entry| entry.value.as_deref());
    let places: Vec<IndexPlace> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let (Some(keys), Some(place)) = (needle.keys(), places.iter().find(|place| place.column == list.name()))
    else {
        return Ok(ALL);
    };
    let directory = file.get_bytes(place.directory..place.end).await?;
    let malformed = |e: value_index::Malformed| ParquetError::External(Box::new(e));
    let Some(blocks) = value_index::blocks_of(&directory, &keys).map_err(malformed)? else { return Ok(0) };
    let blocks = file.get_bytes(place.blocks + blocks.start..place.blocks + blocks.end).await?;
    value_index::groups_of(&blocks, |key| needle.is_key(key)).map_err(malformed)
}

/// Whether a row group's list may hold the value, by its bloom filter; it may, where there is none to ask.
async fn may_hold(
    file: &mut Metered,
    metadata: &ParquetMetaData,
    group: usize,
    leaf: usize,
    needle: &Needle,
) -> Result<bool> {
    let column = metadata.row_group(group).column(leaf);
    let Some(values) = needle.exact() else { return Ok(true) };
    for value in values {
        let hash = bloom::hash(value);
        let Some(block) = bloom::block_of(column, hash) else { return Ok(true) };
        if bloom::may_hold(&file.get_bytes(block).await?, hash) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The rows of a batch whose lists hold the value, with their times.
fn matches(batch: &RecordBatch, needle: &Needle) -> Result<Vec<(usize, i64)>> {
    let Some(times) = batch.column_by_name(Standard::EventTime.name()) else { return Ok(Vec::new()) };
    // Other engines write other units.
    let times = arrow::compute::cast(times, &timestamp_type())?;
    let times = times.as_primitive::<TimestampMicrosecondType>().values();
    let mut found = vec![false; batch.num_rows()];
    for name in needle.columns().iter().map(|c| c.name()) {
        let Some(list) = batch.column_by_name(name).and_then(|c| c.as_list_opt::<i32>()) else { continue };
        let Some(values) = list.values().as_string_opt::<i32>() else { continue };
        for (row, ends) in list.value_offsets().windows(2).enumerate() {
            found[row] |=
                list.is_valid(row) && (ends[0]..ends[1]).any(|at| needle.is(values.value(at as usize)));
        }
    }
    Ok(found.iter().enumerate().filter(|(_, found)| **found).map(|(row, _)| (row, times[row])).collect())
}

/// Reads rows of a file in full, in the order in which they stand in it: of each column the pages that they
/// are in.
pub async fn rows(mut file: Metered, wanted: &[Row]) -> Result<Vec<RecordBatch>> {
    let metadata = file.open(PageIndexPolicy::Optional).await?;
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    wanted.iter().for_each(|(_, group, row)| groups.entry(*group).or_default().push(*row));
    let mut read = Vec::new();
    for (group, mut rows) in groups {
        rows.sort_unstable();
        let total = metadata.metadata().row_group(group).num_rows() as usize;
        let selection =
            RowSelection::from_consecutive_ranges(rows.into_iter().map(|row| row..row + 1), total);
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file.clone(), metadata.clone());
        let batches = builder.with_row_groups(vec![group]).with_row_selection(selection).build()?;
        read.extend(batches.try_collect::<Vec<_>>().await?);
    }
    Ok(read)
}
