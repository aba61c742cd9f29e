//! A worker's batch: whole objects on their way into the lake, landed together.
//!
//! Rows of the object at hand are kept apart until it is known to be whole. If it grows too large for memory,
//! its rows are written to files early (spilled); no log names them before the object's end is verified.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use object_store::ObjectStoreExt as _;
use rustc_hash::FxHashSet;
use tokio::runtime::Handle;

use super::ledger_rows::{ObjectOutcome, ledger_rows, reject_rows};
use super::upload::{UploadError, Uploads};
use crate::base::{Clock, Watch, new_uuid};
use crate::config::Partitioning;
use crate::decode::decoder::{Counts, Decoded};
use crate::decode::object::{Object, ObjectId, RowId};
use crate::decode::reject::{Reason, Reject};
use crate::format::partition;
use crate::format::write::{self, EncodedFile, FileError};
use crate::schema::Catalog;
use crate::table::{
    Begun, DataFile, Lake, LandOutcome, Landing, TableError, TableSpec, failures_spec, ledger_spec,
    log_type_spec,
};

/// Why a batch could not be landed.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A fault of this program.
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Table(#[from] TableError),
    /// A file could not be uploaded.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A file that was uploaded could not be read back.
    #[error("reading back {location} failed: {source}; nothing was lost, run it again")]
    ReadBack {
        /// The file's path in the store.
        location: String,
        source: object_store::Error,
    },
}

impl BatchError {
    /// Whether it fails again until a person does something.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Table(error) => matches!(
                error,
                TableError::Layout { .. } | TableError::Unmarked { .. } | TableError::Entry { .. }
            ),
            Self::Upload(_) | Self::ReadBack { .. } => false,
        }
    }
}

/// The tables that rows go into.
#[derive(Debug)]
pub struct Tables {
    /// By the log type's index in the catalog.
    pub log_types: Vec<TableSpec>,
    /// `classification_failures`.
    pub failures: TableSpec,
    /// `ingested_objects`.
    pub ledger: TableSpec,
}

impl Tables {
    /// The tables of a catalog's log types.
    pub fn new(catalog: &Catalog, partitioning: Partitioning) -> Self {
        Self {
            log_types: catalog.types().iter().map(|t| log_type_spec(t, partitioning)).collect(),
            failures: failures_spec(partitioning),
            ledger: ledger_spec(),
        }
    }

    fn spec(&self, name: &str) -> &TableSpec {
        self.log_types.iter().find(|s| s.name == name).unwrap_or(&self.failures)
    }

    /// The table of this name. One of a log type that is not configured has the standard columns, as all
    /// have.
    pub fn named(&self, name: &str) -> TableSpec {
        TableSpec { name: name.to_owned(), ..self.spec(name).clone() }
    }
}

/// Rows in memory, by table.
#[derive(Debug, Default)]
struct Rows {
    tables: BTreeMap<String, Vec<RecordBatch>>,
    bytes: usize,
    count: u64,
}

impl Rows {
    fn push(&mut self, table: &str, batch: RecordBatch) {
        self.bytes += batch.get_array_memory_size();
        self.count += batch.num_rows() as u64;
        self.tables.entry(table.to_owned()).or_default().push(batch);
    }

    fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.count += other.count;
        for (table, batches) in other.tables {
            self.tables.entry(table).or_default().extend(batches);
        }
    }
}

/// What was written early of the object at hand, and what is known of its rows so far.
#[derive(Debug, Default)]
struct OpenObject {
    rows: Rows,
    partitions: Partitions,
    files: BTreeMap<String, Vec<DataFile>>,
    counts: BTreeMap<String, u64>,
    rejects: BTreeMap<Reason, u64>,
    event_times: Option<(i64, i64)>,
}

/// Partitions, by the log type's index in the catalog and their numbers.
type Partitions = FxHashSet<(usize, i64)>;

pub struct Batch {
    lake: Option<Arc<Lake>>,
    tables: Arc<Tables>,
    runtime: Handle,
    /// Of before the first file was written.
    begun: Option<Begun>,
    /// Started with the first whole object.
    since: Option<Watch>,
    open: OpenObject,
    rows: Rows,
    /// Of the whole objects.
    partitions: Partitions,
    files: BTreeMap<String, Vec<DataFile>>,
    outcomes: Vec<ObjectOutcome>,
}

/// What became of a batch's objects.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Landed now.
    pub landed: Vec<ObjectOutcome>,
    /// Another writer had landed them meanwhile.
    pub already_there: Vec<ObjectId>,
    /// Not landed, because a vacuum may have taken their files: decode them again.
    pub stale: Vec<ObjectId>,
    /// How long each flush took, and of that the commits.
    pub took: Vec<(Duration, Duration)>,
}

impl Batch {
    /// An empty batch for `lake`; without one, objects are decoded and counted, and nothing is written.
    pub fn new(lake: Option<Arc<Lake>>, tables: Arc<Tables>, runtime: Handle) -> Self {
        Self {
            lake,
            tables,
            runtime,
            begun: None,
            since: None,
            open: OpenObject::default(),
            rows: Rows::default(),
            partitions: Partitions::default(),
            files: BTreeMap::new(),
            outcomes: Vec::new(),
        }
    }

    /// The clock that stamps what lands.
    pub fn clock(&self) -> Clock {
        self.lake.as_ref().map_or_else(Clock::system, |lake| lake.store().clock.clone())
    }

    /// Bytes of rows held in memory.
    pub fn bytes(&self) -> usize {
        self.rows.bytes + self.open.rows.bytes
    }

    /// Rows and rejects held in memory.
    pub fn rows(&self) -> u64 {
        self.rows.count + self.open.rows.count
    }

    /// Partitions that its whole objects have rows in.
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// Whether it holds no object.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// How long its oldest object has waited to be landed.
    pub fn age(&self) -> Duration {
        self.since.as_ref().map_or(Duration::ZERO, Watch::elapsed)
    }

    /// Adds rows and rejects of the object at hand.
    pub fn add(&mut self, object: &Object, decoded: Decoded, parse_time: i64) {
        let open = &mut self.open;
        for (log_type, batch) in decoded.batches {
            let name = &self.tables.log_types[log_type].name;
            *open.counts.entry(name.clone()).or_default() += batch.num_rows() as u64;
            open.event_times = [open.event_times, event_times(&batch)]
                .into_iter()
                .flatten()
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            touch(&mut open.partitions, &self.tables, log_type, &batch);
            open.rows.push(name, batch);
        }
        if decoded.rejects.is_empty() {
            return;
        }
        for reject in &decoded.rejects {
            *open.rejects.entry(reject.reason).or_default() += 1;
        }
        let failures = &self.tables.failures;
        open.rows.push(&failures.name, reject_rows(failures, object, &decoded.rejects, parse_time));
    }

    /// Writes the rows of the object at hand to files that nothing names yet.
    pub fn spill(&mut self) -> Result<(), BatchError> {
        let rows = std::mem::take(&mut self.open.rows);
        let Some(lake) = self.lake.clone() else { return Ok(()) };
        let mut uploads = Uploads::new(lake.store(), &self.runtime);
        let written = self.write(&lake, rows, &mut uploads)?;
        uploads.finish()?;
        for (table, files) in written {
            self.open.files.entry(table).or_default().extend(files);
        }
        Ok(())
    }

    /// The object at hand is whole: it belongs to the batch.
    pub fn close(&mut self, object: Object, counts: Counts) {
        self.close_as(object, counts, None);
    }

    /// The object at hand is what was a reject: it belongs to the batch under an entry of its own.
    pub fn close_replayed(&mut self, object: Object, counts: Counts, reject: RowId) {
        self.close_as(object, counts, Some(reject));
    }

    fn close_as(&mut self, object: Object, counts: Counts, replayed: Option<RowId>) {
        let open = std::mem::take(&mut self.open);
        self.rows.append(open.rows);
        self.partitions.extend(open.partitions);
        let clock = self.clock();
        self.since.get_or_insert_with(|| clock.watch());
        for (table, files) in open.files {
            self.files.entry(table).or_default().extend(files);
        }
        self.outcomes.push(ObjectOutcome {
            object,
            replayed,
            rows: open.counts,
            rejects: open.rejects,
            skipped: counts.skipped,
            event_times: open.event_times,
        });
    }

    /// Records that were rejects, with what they were rejected of. Each belongs to the batch under an entry
    /// of its own.
    pub fn close_records(&mut self, mut rejects: HashMap<RowId, Object>, decoded: Decoded) {
        let clock = self.clock();
        self.since.get_or_insert_with(|| clock.watch());
        let mut outcome = |object: Object, reject: RowId, row: Option<(&String, i64)>| {
            self.outcomes.push(ObjectOutcome {
                object,
                replayed: Some(reject),
                rows: row.iter().map(|(table, _)| ((*table).clone(), 1)).collect(),
                rejects: BTreeMap::new(),
                skipped: u64::from(row.is_none()),
                event_times: row.map(|(_, time)| (time, time)),
            });
        };
        for (log_type, batch) in decoded.batches {
            let table = &self.tables.log_types[log_type].name;
            let ids = batch.column_by_name("p_row_id").expect("a table's column").as_string_view();
            let times = batch
                .column_by_name("p_event_time")
                .expect("a table's column")
                .as_primitive::<TimestampMicrosecondType>();
            for (id, time) in ids.iter().flatten().filter_map(RowId::parse).zip(times.values()) {
                if let Some(object) = rejects.remove(&id) {
                    outcome(object, id, Some((table, *time)));
                }
            }
            touch(&mut self.partitions, &self.tables, log_type, &batch);
            self.rows.push(table, batch);
        }
        // Test uploads are no rows, and no rejects either.
        rejects.into_iter().for_each(|(id, object)| outcome(object, id, None));
    }

    /// The object at hand is broken: none of its rows land, and it becomes one reject.
    pub fn close_broken(&mut self, object: Object, reason: Reason, message: String, parse_time: i64) {
        self.abandon_open();
        let reject = Reject { reason, message, log_type: None, offset: None, length: None, payload: None };
        self.close_rejected(object, reject, parse_time);
    }

    /// An object that is one reject and nothing else.
    pub fn close_rejected(&mut self, object: Object, reject: Reject, parse_time: i64) {
        self.add(&object, Decoded { batches: Vec::new(), rejects: vec![reject] }, parse_time);
        self.close(object, Counts::default());
    }

    /// Drops what there is of the object at hand, which could not be read.
    pub fn abandon_open(&mut self) {
        self.open = OpenObject::default();
        if self.files.is_empty() {
            // Its files were the oldest, and don't land.
            self.begun = None;
        }
    }

    /// Writes and lands every whole object of the batch; the object at hand stays.
    pub fn flush(&mut self) -> Result<Flushed, BatchError> {
        let mut flushed = Flushed::default();
        self.since = None;
        self.partitions.clear();
        let rows = std::mem::take(&mut self.rows);
        let Some(lake) = self.lake.clone() else {
            flushed.landed = std::mem::take(&mut self.outcomes);
            return Ok(flushed);
        };
        if self.outcomes.is_empty() {
            return Ok(flushed);
        }
        let clock = lake.store().clock.clone();
        let (began, mut committing) = (clock.watch(), Duration::ZERO);
        let mut uploads = Uploads::new(lake.store(), &self.runtime);
        for (table, files) in self.write(&lake, rows, &mut uploads)? {
            self.files.entry(table).or_default().extend(files);
        }
        // What was written early of the object at hand stays behind, and is as old.
        let begun = if self.open.files.is_empty() { self.begun.take() } else { self.begun };
        let begun = begun.unwrap_or_else(|| lake.begun());
        let mut outcomes = std::mem::take(&mut self.outcomes);
        let mut landing = Landing {
            batch: new_uuid().to_string(),
            objects: outcomes.iter().map(|o| o.entry().0).collect(),
            adds: std::mem::take(&mut self.files),
        };
        while !outcomes.is_empty() {
            let ledger = &self.tables.ledger;
            // On its way together with the others.
            let mut uploaded =
                upload(&lake, ledger, &[ledger_rows(ledger, &outcomes, clock.now_micros())], &mut uploads)?;
            let ledger_file = uploaded.pop().expect("an unpartitioned table's rows are one file");
            std::mem::replace(&mut uploads, Uploads::new(lake.store(), &self.runtime)).finish()?;
            let commit = clock.watch();
            let outcome = self.runtime.block_on(lake.land(&landing, &ledger_file, begun))?;
            committing += commit.elapsed();
            match outcome {
                LandOutcome::Landed => {
                    flushed.landed = outcomes;
                    break;
                }
                LandOutcome::Stale => {
                    flushed.stale = outcomes.iter().map(ObjectOutcome::entry).collect();
                    break;
                }
                LandOutcome::Duplicates(ids) => {
                    let replays = outcomes.iter().any(|o| o.replayed.is_some());
                    landing = self.without(&lake, landing, &ids, replays)?;
                    outcomes.retain(|o| !ids.contains(&o.entry().0));
                    flushed.already_there.extend(ids.into_iter().map(ObjectId));
                }
            }
        }
        flushed.took.push((began.elapsed(), committing));
        Ok(flushed)
    }

    /// The batch without some entries: the files that hold their rows are written anew.
    fn without(
        &self,
        lake: &Lake,
        landing: Landing,
        gone: &HashSet<u128>,
        replays: bool,
    ) -> Result<Landing, BatchError> {
        let is_gone = |id: ObjectId| gone.contains(&id.0);
        let is_kept = |row_id: &str| {
            RowId::parse(row_id).is_none_or(|id| {
                // A row is of its object, or what became of a reject: of this record, or of the whole object.
                let whole = RowId { offset: RowId::WHOLE_OBJECT, ..id };
                !(is_gone(id.object)
                    || replays && [id, whole].map(ObjectId::of_replay).into_iter().any(is_gone))
            })
        };
        let (mut adds, mut uploads) = (BTreeMap::new(), Uploads::new(lake.store(), &self.runtime));
        for (table, files) in landing.adds {
            let spec = self.tables.spec(&table);
            let mut kept_files = Vec::new();
            for file in files {
                let path = file.location(lake.store(), &table);
                let get = async { lake.store().objects.get(&path).await?.bytes().await };
                let read_back = self.runtime.block_on(get);
                let bytes = read_back
                    .map_err(|source| BatchError::ReadBack { location: path.to_string(), source })?;
                let kept = write::filter_rows(spec, bytes, is_kept)?;
                let rows: usize = kept.iter().map(RecordBatch::num_rows).sum();
                if rows as u64 == file.rows {
                    kept_files.push(file);
                } else if rows > 0 {
                    kept_files.extend(upload(lake, spec, &kept, &mut uploads)?);
                }
            }
            if !kept_files.is_empty() {
                adds.insert(table, kept_files);
            }
        }
        uploads.finish()?;
        let objects = landing.objects.into_iter().filter(|id| !gone.contains(id)).collect();
        Ok(Landing { batch: landing.batch, objects, adds })
    }

    /// Writes rows to files and sets them on their way; the tables are there afterwards.
    fn write(
        &mut self,
        lake: &Lake,
        rows: Rows,
        uploads: &mut Uploads,
    ) -> Result<BTreeMap<String, Vec<DataFile>>, BatchError> {
        let mut written = BTreeMap::new();
        self.begun.get_or_insert_with(|| lake.begun());
        for (table, batches) in rows.tables {
            let spec = self.tables.spec(&table);
            self.runtime.block_on(lake.ensure_table(spec))?;
            written.insert(table, upload(lake, spec, &batches, uploads)?);
        }
        Ok(written)
    }
}

/// Sets files of a table on their way, each as soon as it is encoded.
fn upload(
    lake: &Lake,
    spec: &TableSpec,
    batches: &[RecordBatch],
    uploads: &mut Uploads,
) -> Result<Vec<DataFile>, BatchError> {
    let mut files = Vec::new();
    for encoded in write::encode(spec, batches) {
        let EncodedFile { file, bytes } = encoded?;
        uploads.put(file.location(lake.store(), &spec.name), bytes)?;
        files.push(file);
    }
    Ok(files)
}

/// Adds the partitions that rows of a log type are in.
fn touch(partitions: &mut Partitions, tables: &Tables, log_type: usize, batch: &RecordBatch) {
    let times =
        batch.column_by_name("p_event_time").map(|times| times.as_primitive::<TimestampMicrosecondType>());
    if let (Some(partitioning), Some(times)) = (tables.log_types[log_type].partitioning, times) {
        partitions.extend(partition::numbers(times.values(), partitioning).map(|number| (log_type, number)));
    }
}

fn event_times(batch: &RecordBatch) -> Option<(i64, i64)> {
    let times = batch.column_by_name("p_event_time")?.as_primitive::<TimestampMicrosecondType>().values();
    Some((*times.iter().min()?, *times.iter().max()?))
}
