//! Refills the ledger from the tables' rows, and from what is left of an earlier ledger.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::{Array as _, AsArray as _, BooleanArray, StringViewArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::StreamExt as _;
use object_store::{ObjectStoreExt as _, PutPayload};
use parquet::errors::ParquetError;
use roaring::RoaringTreemap;

use super::{READ_BYTES, RepairError, each_id};
use crate::base::new_uuid;
use crate::base::store::Store;
use crate::decode::object::{Object, ObjectId, RowId};
use crate::decode::reject::Reason;
use crate::format::read;
use crate::format::write::{self, EncodedFile};
use crate::land::batch::Tables;
use crate::land::ledger_rows::{ObjectOutcome, ledger_rows};
use crate::maintain::vacuum::{ListedFile, list};
use crate::schema::Standard;
use crate::table::{
    DataFile, FAILURES_TABLE, LEDGER_TABLE, Landing, Repair, TableError, file_location, open_tables,
};

/// Objects, and a batch at most, that one commit tells the ledger of.
const OBJECTS_PER_COMMIT: usize = 20_000;

/// By table and object: how many rows had landed, and are in no file that the table names.
pub type Lacking = BTreeMap<String, HashMap<ObjectId, u64>>;

pub struct Refill<'a> {
    pub store: &'a Store,
    /// The tables that it may have.
    pub tables: &'a Tables,
}

/// What is known of an object that the ledger does not tell of.
#[derive(Debug, Default)]
struct Told {
    rows: BTreeMap<String, u64>,
    /// The offsets of its rejects, and of those of them that were replayed.
    rejects: RoaringTreemap,
    replayed: RoaringTreemap,
    times: Option<(i64, i64)>,
    source_id: Option<String>,
    /// Whether its row of a ledger of before was found, and those of which of its replays.
    is_remembered: bool,
    remembered: RoaringTreemap,
    /// How many rows had landed by these, by table.
    landed: BTreeMap<String, i64>,
    /// The ledger tells of it, and only of replays of its rejects it does not.
    is_known: bool,
}

impl Told {
    /// A row of the same record tells that a reject was replayed; and anything else of its object, if it is
    /// the whole of that.
    fn find_replays(&mut self, id: ObjectId, old: &HashSet<ObjectId>) {
        let has_landed = self.rejects.len() > 1 || !self.rows.is_empty();
        let was_replayed =
            old.contains(&ObjectId::of_replay(RowId { object: id, offset: RowId::WHOLE_OBJECT }));
        if has_landed && (was_replayed || self.rejects.contains(RowId::WHOLE_OBJECT)) {
            self.replayed.insert(RowId::WHOLE_OBJECT);
        }
    }

    fn is_there(&self, table: &str) -> u64 {
        if table == FAILURES_TABLE {
            self.rejects.len()
        } else {
            self.rows.get(table).copied().unwrap_or_default()
        }
    }
}

type Unknown = HashMap<ObjectId, Told>;

impl Refill<'_> {
    /// Tells the ledger of the objects whose rows are in tables, and that it does not know. What these lack.
    pub async fn run(&self, repair: &mut Repair) -> Result<Lacking, RepairError> {
        let old = self.old_ids(repair).await?;
        let taken_out = repair.taken_out().into_iter().map(|object| (ObjectId(object), Told::default()));
        let mut unknown: Unknown = taken_out.collect();
        // Rejects come first: a row of the same record tells that one was replayed.
        let (rejects, others): (Vec<_>, Vec<_>) =
            repair.tables().map(str::to_owned).partition(|name| name == FAILURES_TABLE);
        for name in rejects.into_iter().chain(others) {
            self.look(repair, &name, &old, &mut unknown).await?;
        }
        if unknown.is_empty() {
            return Ok(Lacking::new());
        }
        unknown.iter_mut().for_each(|(id, told)| told.find_replays(*id, &old));
        let remembered = self.remember(&mut unknown).await?;
        let mut together = Vec::new();
        for rows in remembered {
            together.push(rows);
            if together.iter().map(RecordBatch::num_rows).sum::<usize>() >= OBJECTS_PER_COMMIT {
                self.note(repair, &std::mem::take(&mut together)).await?;
            }
        }
        if !together.is_empty() {
            self.note(repair, &together).await?;
        }
        let forgotten = unknown.values().filter(|told| !told.is_remembered).count();
        let mut outcomes: Vec<ObjectOutcome> =
            unknown.iter().flat_map(|(id, told)| outcomes(*id, told)).collect();
        outcomes.sort_unstable_by_key(|outcome| outcome.entry().0);
        for outcomes in outcomes.chunks(OBJECTS_PER_COMMIT) {
            self.note(repair, &[ledger_rows(&self.tables.ledger, outcomes, self.store.clock.now_micros())])
                .await?;
        }
        repair
            .findings
            .mended
            .push(format!("{LEDGER_TABLE}: told of {} objects that had landed", unknown.len()));
        if forgotten > 0 {
            repair.findings.lost.push(format!(
                "{LEDGER_TABLE}: of {forgotten} of these objects it is not known where they came from; the last of them may lack rows in a table \
                 that was not brought up to the ledger"
            ));
        }
        Ok(lacking(&unknown))
    }

    /// How many rows landed in each table, as the ledger tells.
    pub async fn landed(&self) -> Result<BTreeMap<String, u64>, RepairError> {
        let mut landed = BTreeMap::new();
        for file in self.ledger_files().await? {
            self.read_ledger(&file, |batch| {
                for (table, rows) in (0..batch.num_rows()).flat_map(|row| landed_rows(batch, row)) {
                    let sum: &mut i64 = landed.entry(table).or_default();
                    *sum += rows;
                }
            })
            .await
            .map_err(|source| RepairError::Read {
                location: file.location(self.store, LEDGER_TABLE).to_string(),
                source,
            })?;
        }
        Ok(landed.into_iter().map(|(table, rows)| (table, rows.max(0) as u64)).collect())
    }

    async fn ledger_files(&self) -> Result<Vec<DataFile>, RepairError> {
        let ledger = open_tables(self.store, &[LEDGER_TABLE.to_owned()]).await?.remove(0);
        Ok(ledger.map(|ledger| ledger.files()).transpose()?.unwrap_or_default())
    }

    async fn read_ledger(
        &self,
        file: &DataFile,
        mut each: impl FnMut(&RecordBatch),
    ) -> Result<(), ParquetError> {
        let spec = &self.tables.ledger;
        let mut batches = read::stream(self.store, spec, file, None, READ_BYTES, |_| true).await?;
        while let Some(batch) = batches.next().await {
            each(&read::adapt(&batch?, &spec.schema)?);
        }
        Ok(())
    }

    /// Reads which objects a table's rows are of, as far as the ledger does not know them.
    async fn look(
        &self,
        repair: &mut Repair,
        name: &str,
        old: &HashSet<ObjectId>,
        unknown: &mut Unknown,
    ) -> Result<(), RepairError> {
        let table = match open_tables(self.store, &[name.to_owned()]).await {
            Ok(mut tables) => tables.remove(0),
            Err(error @ TableError::Layout { .. }) => {
                repair
                    .findings
                    .lost
                    .push(format!("it stays as it is, and what is in it does not count: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let Some(table) = table else { return Ok(()) };
        let spec = self.tables.named(name);
        let wanted = [Standard::RowId, Standard::EventTime, Standard::SourceId].map(Standard::name);
        for file in table.files()? {
            let failed =
                |source| RepairError::Read { location: file.location(self.store, name).to_string(), source };
            let mut batches = match read::stream(self.store, &spec, &file, None, READ_BYTES, |column| {
                wanted.contains(&column)
            })
            .await
            {
                // The table is made whole from the other files of its folder.
                Err(error) if read::is_gone(&error) => continue,
                other => other.map_err(failed)?,
            };
            while let Some(batch) = batches.next().await {
                tell(repair, name, &batch.map_err(failed)?, old, unknown);
            }
        }
        Ok(())
    }

    /// The rows that a ledger of before had of these objects, out of files that the ledger's log does not
    /// name any more.
    async fn remember(&self, unknown: &mut Unknown) -> Result<Vec<RecordBatch>, RepairError> {
        let replays = unknown
            .iter()
            .flat_map(|(id, told)| told.replayed.iter().map(|offset| RowId { object: *id, offset }));
        let replays: HashMap<ObjectId, RowId> =
            replays.map(|reject| (ObjectId::of_replay(reject), reject)).collect();
        let named = self.named().await?;
        let mut remembered = Vec::new();
        for listed in
            list(self.store, LEDGER_TABLE).await?.into_iter().filter(|listed| !named.contains(&listed.path))
        {
            // What can't be read tells nothing.
            let Ok(file) = self.describe(&listed).await else { continue };
            drop(self.read_ledger(&file, |rows| remembered.extend(recall(rows, unknown, &replays))).await);
        }
        Ok(remembered)
    }

    /// The objects that files of a ledger of before tell of, and the ledger does not.
    async fn old_ids(&self, repair: &Repair) -> Result<HashSet<ObjectId>, RepairError> {
        let (named, spec) = (self.named().await?, &self.tables.ledger);
        let mut old = HashSet::new();
        for listed in
            list(self.store, LEDGER_TABLE).await?.into_iter().filter(|listed| !named.contains(&listed.path))
        {
            let Ok(file) = self.describe(&listed).await else { continue };
            let each = |id: Option<&str>| {
                old.extend(id.and_then(ObjectId::parse).filter(|id| !repair.contains(id.0)));
            };
            // What can't be read tells nothing.
            drop(each_id(self.store, spec, &file, each).await);
        }
        Ok(old)
    }

    async fn named(&self) -> Result<HashSet<String>, RepairError> {
        Ok(self.ledger_files().await?.into_iter().map(|file| file.path).collect())
    }

    async fn describe(&self, listed: &ListedFile) -> Result<DataFile, ParquetError> {
        let footer =
            read::footer(self.store, file_location(self.store, LEDGER_TABLE, &listed.path), listed.size)
                .await?;
        Ok(write::describe(&self.tables.ledger, &listed.path, listed.size, listed.written_ms, &footer))
    }

    /// Tells the ledger of objects, by their rows of it.
    async fn note(&self, repair: &mut Repair, rows: &[RecordBatch]) -> Result<(), RepairError> {
        let spec = &self.tables.ledger;
        let ids = rows.iter().filter_map(|rows| read::ids(spec, rows)).flat_map(StringViewArray::iter);
        let objects = ids.flatten().filter_map(ObjectId::parse).map(|object| object.0).collect();
        let EncodedFile { file, bytes } =
            write::encode(spec, rows).next().expect("an unpartitioned table's rows are one file")?;
        let path = file.location(self.store, LEDGER_TABLE);
        let put = self.store.objects.put(&path, PutPayload::from(bytes)).await;
        put.map_err(|source| RepairError::Upload { location: path.to_string(), source })?;
        repair
            .note(&Landing { batch: new_uuid().to_string(), objects, adds: BTreeMap::new() }, &file)
            .await?;
        Ok(())
    }
}

/// Takes note of a table's rows whose objects the ledger does not know.
fn tell(repair: &Repair, name: &str, batch: &RecordBatch, old: &HashSet<ObjectId>, unknown: &mut Unknown) {
    let column = |of: Standard| batch.column_by_name(of.name());
    let Some(ids) = column(Standard::RowId).and_then(|ids| ids.as_string_view_opt()) else { return };
    let times =
        column(Standard::EventTime).and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    let sources = column(Standard::SourceId).and_then(|sources| sources.as_string_view_opt());
    for (row, id) in ids.iter().enumerate() {
        let Some(id) = id.and_then(RowId::parse) else { continue };
        let RowId { object, offset } = id;
        // Its reject may have left its table long ago: the old ledger tells of the replay, and this row that
        // it landed.
        let is_replay =
            |offset| !old.is_empty() && old.contains(&ObjectId::of_replay(RowId { object, offset }));
        let was_replayed = name != FAILURES_TABLE && is_replay(offset);
        if repair.contains(object.0) {
            for offset in [offset, RowId::WHOLE_OBJECT]
                .into_iter()
                .filter(|offset| name != FAILURES_TABLE && is_replay(*offset))
            {
                let told = unknown.entry(object).or_default();
                (told.is_known, told.is_remembered) = (true, true);
                told.replayed.insert(offset);
            }
            continue;
        }
        let told = unknown.entry(object).or_default();
        told.source_id =
            sources.filter(|sources| sources.is_valid(row)).map(|sources| sources.value(row).to_owned());
        if name == FAILURES_TABLE {
            told.rejects.insert(offset);
            continue;
        }
        if was_replayed || told.rejects.contains(offset) {
            told.replayed.insert(offset);
        }
        *told.rows.entry(name.to_owned()).or_default() += 1;
        let time = times.map(|times| (times.value(row), times.value(row)));
        told.times = [told.times, time].into_iter().flatten().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    }
}

/// The rows of a ledger of before that are of unknown objects, or of replays of their rejects, each once.
fn recall(
    rows: &RecordBatch,
    unknown: &mut Unknown,
    replays: &HashMap<ObjectId, RowId>,
) -> Option<RecordBatch> {
    let ids = rows.column_by_name("object_id")?.as_string_view_opt()?;
    let mut is_wanted = |(row, id): (usize, Option<&str>)| {
        let id = id.and_then(ObjectId::parse)?;
        let replay = replays.get(&id);
        let told = unknown.get_mut(&replay.map_or(id, |reject| reject.object))?;
        let is_new = match replay {
            Some(reject) => told.remembered.insert(reject.offset),
            None => !std::mem::replace(&mut told.is_remembered, true),
        };
        let landed = landed_rows(rows, row).into_iter().filter(|_| is_new);
        landed.for_each(|(table, rows)| *told.landed.entry(table).or_default() += rows);
        is_new.then_some(())
    };
    let mask: BooleanArray = ids.iter().enumerate().map(|row| Some(is_wanted(row).is_some())).collect();
    filter_record_batch(rows, &mask).ok().filter(|rows| rows.num_rows() > 0)
}

/// What had landed of these objects and is in no file.
fn lacking(unknown: &Unknown) -> Lacking {
    let mut lacking = Lacking::new();
    for (id, told) in unknown.iter().filter(|(_, told)| !told.is_known) {
        // A reject that was replayed and is there all the same is one to be taken out.
        let waiting = |table: &str| if table == FAILURES_TABLE { told.replayed.len() } else { 0 };
        for (table, landed) in &told.landed {
            let lacks = (*landed).max(0) as u64 + waiting(table);
            if lacks > told.is_there(table) {
                lacking.entry(table.clone()).or_default().insert(*id, lacks - told.is_there(table));
            }
        }
    }
    lacking
}

/// How many rows a row of the ledger tells of, by table; of rejects fewer than none if it is that of a
/// replay.
fn landed_rows(ledger: &RecordBatch, row: usize) -> Vec<(String, i64)> {
    let rows =
        ledger.column_by_name("rows").and_then(|rows| rows.as_map_opt()).filter(|rows| rows.is_valid(row));
    let of_tables = rows.map(|rows| rows.value(row)).into_iter().flat_map(|entries| {
        let (tables, counts) = (
            entries.column(0).as_string_view().clone(),
            entries.column(1).as_primitive::<Int64Type>().clone(),
        );
        (0..entries.len()).map(move |at| (tables.value(at).to_owned(), counts.value(at))).collect::<Vec<_>>()
    });
    let rejects =
        ledger.column_by_name("rejects").and_then(|rejects| rejects.as_primitive_opt::<Int64Type>());
    of_tables.chain(rejects.map(|rejects| (FAILURES_TABLE.to_owned(), rejects.value(row)))).collect()
}

/// The rows of the ledger that stand for what is known of an object: its own, unless it is there, and those
/// of its replays.
fn outcomes(id: ObjectId, told: &Told) -> Vec<ObjectOutcome> {
    let Told { rows, rejects, replayed, times, source_id, is_remembered, remembered, .. } = told;
    let object = Object {
        id,
        bucket: None,
        key: String::new(),
        etag: String::new(),
        size: 0,
        last_modified: None,
        source_id: source_id.clone(),
        source_label: None,
    };
    let counts = BTreeMap::from_iter((!rejects.is_empty()).then_some((Reason::Unclassified, rejects.len())));
    let own = ObjectOutcome {
        object: object.clone(),
        replayed: None,
        rows: rows.clone(),
        rejects: counts,
        skipped: 0,
        event_times: *times,
    };
    let replays = (replayed - remembered).into_iter().map(|offset| ObjectOutcome {
        object: object.clone(),
        replayed: Some(RowId { object: id, offset }),
        rows: BTreeMap::new(),
        rejects: BTreeMap::new(),
        skipped: 0,
        event_times: None,
    });
    (!is_remembered).then_some(own).into_iter().chain(replays).collect()
}
