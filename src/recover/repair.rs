//! A lake whose parts don't fit together any more: the ledger is filled up from the rows of the tables.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::TimestampMicrosecondType;
use futures::StreamExt as _;
use object_store::{ObjectStoreExt as _, PutPayload};

use crate::base::new_uuid;
use crate::base::store::Store;
use crate::config::Partitioning;
use crate::ingest::batch::Tables;
use crate::ingest::file::{self, EncodedFile, FileError};
use crate::ingest::keeping::{ObjectOutcome, ledger_rows};
use crate::ingest::object::{Object, ObjectId, RowId};
use crate::maintain::{MaintainError, input, lease};
use crate::schema::Standard;
use crate::table::{FAILURES_TABLE, Findings, LEDGER_TABLE, Landing, Repair, TableError, TableSpec, open_tables};

/// Objects that one commit tells the ledger of.
const TOGETHER: usize = 20_000;
/// Bytes of rows that are read at once.
const MEMORY: usize = 64 << 20;

/// Why a repair stopped. It can be begun again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A table can't be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Another process keeps the lake up.
    #[error("another maintainer is at work in this lake: stop it, and every writer, then run it again")]
    Busy,
    /// The lease can't be taken.
    #[error(transparent)]
    Lease(#[from] MaintainError),
    /// A file of a table can't be read.
    #[error("{location}: can't be read: {source}; restore it, or take it out of the table, then run it again")]
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

/// What the tables tell of an object that the ledger does not know.
#[derive(Debug, Default)]
struct Told {
    rows: BTreeMap<String, u64>,
    rejects: u64,
    times: Option<(i64, i64)>,
    source_id: Option<String>,
}

/// Makes what can be made of a lake whose writers are stopped. What was mended, and what was lost.
pub async fn repair(store: Store, tables: &Tables) -> Result<Findings, RepairError> {
    if !Repair::is_lake(&store).await? {
        return Err(TableError::NoLake { url: store.url.to_string() }.into());
    }
    let held = lease::Lease::take(&store, "repair", lease::TERM, None).await?.ok_or(RepairError::Busy)?;
    let done = mend(store, tables).await;
    held.give_back().await;
    done
}

async fn mend(store: Store, tables: &Tables) -> Result<Findings, RepairError> {
    let specs: Vec<TableSpec> = tables.log_types.iter().chain([&tables.failures]).cloned().collect();
    let mut repair = Repair::open(store.clone(), &specs).await?;
    let taken_out = repair.taken_out().into_iter().map(|object| (ObjectId(object), Told::default()));
    let mut unknown: HashMap<ObjectId, Told> = taken_out.collect();
    let names: Vec<String> = repair.tables().map(str::to_owned).collect();
    for name in names {
        look(&store, &repair, &specs, &name, &mut unknown).await?;
    }
    if !unknown.is_empty() {
        let objects = unknown.len();
        note(&store, &mut repair, &tables.ledger, unknown).await?;
        repair.findings.mended.push(format!("{LEDGER_TABLE}: told of {objects} objects that had landed"));
        repair.findings.lost.push(format!(
            "{LEDGER_TABLE}: of these {objects} objects it is not known where they came from; the last of them may lack rows in a table that was \
             not brought up to the ledger"
        ));
    }
    let (_, findings) = repair.finish().await?;
    Ok(findings)
}

/// Reads which objects a table's rows are of, as far as the ledger does not know them.
async fn look(
    store: &Store,
    repair: &Repair,
    specs: &[TableSpec],
    name: &str,
    unknown: &mut HashMap<ObjectId, Told>,
) -> Result<(), RepairError> {
    let Some(table) = open_tables(store, &[name.to_owned()]).await?.remove(0) else { return Ok(()) };
    // A table of a log type that is not configured has the same columns that matter here.
    let spec = specs.iter().find(|spec| spec.name == name).or(specs.last()).expect("there is the table of rejects");
    let spec = TableSpec { name: name.to_owned(), partitioning: None::<Partitioning>, ..spec.clone() };
    let wanted = [Standard::RowId, Standard::EventTime, Standard::SourceId].map(Standard::name);
    for file in table.files()? {
        let failed = |source| RepairError::Read { location: file.location(store, name).to_string(), source };
        let mut batches = input::stream(store, &spec, &file, None, MEMORY, |column| wanted.contains(&column)).await.map_err(failed)?;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(failed)?;
            let column = |of: Standard| batch.column_by_name(of.name());
            let Some(ids) = column(Standard::RowId).and_then(|ids| ids.as_string_view_opt()) else { continue };
            let times = column(Standard::EventTime).and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
            let sources = column(Standard::SourceId).and_then(|sources| sources.as_string_view_opt());
            for (row, id) in ids.iter().enumerate() {
                let Some(RowId { object, .. }) = id.and_then(RowId::parse).filter(|id| !repair.contains(id.object.0)) else { continue };
                let told = unknown.entry(object).or_default();
                told.source_id = sources.filter(|sources| sources.is_valid(row)).map(|sources| sources.value(row).to_owned());
                if name == FAILURES_TABLE {
                    told.rejects += 1;
                    continue;
                }
                *told.rows.entry(name.to_owned()).or_default() += 1;
                let time = times.map(|times| (times.value(row), times.value(row)));
                told.times = [told.times, time].into_iter().flatten().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            }
        }
    }
    Ok(())
}

/// Tells the ledger of objects.
async fn note(store: &Store, repair: &mut Repair, spec: &TableSpec, unknown: HashMap<ObjectId, Told>) -> Result<(), RepairError> {
    let mut outcomes: Vec<ObjectOutcome> = unknown.into_iter().map(|(id, told)| outcome(id, told)).collect();
    outcomes.sort_unstable_by_key(|outcome| outcome.object.id.0);
    for outcomes in outcomes.chunks(TOGETHER) {
        let rows = ledger_rows(spec, outcomes, store.clock.now_micros());
        let mut encoded = file::encode(spec, &[rows])?;
        let EncodedFile { file, bytes } = encoded.pop().expect("an unpartitioned table's rows are one file");
        let path = file.location(store, LEDGER_TABLE);
        let put = store.objects.put(&path, PutPayload::from(bytes)).await;
        put.map_err(|source| RepairError::Upload { location: path.to_string(), source })?;
        let objects = outcomes.iter().map(|outcome| outcome.object.id.0).collect();
        repair.note(&Landing { batch: new_uuid().to_string(), objects, adds: BTreeMap::new() }, &file).await?;
    }
    Ok(())
}

fn outcome(id: ObjectId, told: Told) -> ObjectOutcome {
    let object = Object {
        id,
        bucket: None,
        key: String::new(),
        etag: String::new(),
        size: 0,
        last_modified: None,
        source_id: told.source_id,
        source_label: None,
    };
    let rejects = BTreeMap::from_iter((told.rejects > 0).then_some((crate::ingest::reject::Reason::Unclassified, told.rejects)));
    ObjectOutcome { object, replayed: None, rows: told.rows, rejects, skipped: 0, event_times: told.times }
}
