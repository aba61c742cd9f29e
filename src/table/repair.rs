//! Repairs a lake that was tampered with: makes its parts consistent again, from what is there.
//!
//! The ledger is the truth about what has landed, and the tables hold it too: each row's id begins with its
//! object's. So a ledger that was removed, restored or cut is refilled from the tables, and objects that are
//! in them never land twice. What only the ledger knew is lost: where an object came from, and objects
//! without rows. A table whose log is gone is rebuilt from the files in its folder.
//!
//! Until the last step the lake stays refused as before: an interrupted repair starts again.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::commit::{self, Landing, Settled};
use super::file::DataFile;
use super::ids::Ids;
use super::lake::Lake;
use super::ledger::{self, Known};
use super::listing::LogFileKind;
use super::log::{Log, TableError};
use super::projection::{Table, tables_below};
use super::snapshot::Snapshot;
use super::spec::{LEDGER_TABLE, TableSpec, ledger_spec};
use crate::base::new_uuid;
use crate::base::store::Store;

/// Where what is taken out of a log is put aside, below the lake.
const ASIDE: &str = "_repair";

/// What was done, and what could not be, as sentences.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Mended.
    pub mended: Vec<String>,
    /// Lost, and what can be done about it.
    pub lost: Vec<String>,
}

/// A table that has to be made anew.
#[derive(Debug, Clone)]
pub struct Absent {
    pub spec: TableSpec,
    /// What is wrong with it.
    pub why: String,
    /// Whether the ledger tells of it; else nothing may ever have landed in it.
    pub is_due: bool,
}

/// A lake under repair. Nobody else may write to it meanwhile.
pub struct Repair {
    store: Store,
    ledger: Log,
    known: Known,
    /// The objects in the ledger's rows: its log may tell of more, if another engine took rows out.
    rows: Ids,
    tables: BTreeMap<String, Table>,
    /// Tables that were made whole from their folder: the ledger has nothing to give to them any more.
    whole: BTreeSet<String>,
    /// The version of the ledger after which its log could be read.
    first: u64,
    /// The version up to which a settled mark tells what is in the tables.
    settled: Option<u64>,
    /// Tables that have to be made anew.
    pub absent: Vec<Absent>,
    /// What was done so far.
    pub findings: Findings,
}

impl Repair {
    /// Whether there is anything to mend: a ledger, or folders that may be tables.
    pub async fn is_lake(store: &Store) -> Result<bool, TableError> {
        Ok(!tables_below(store).await?.is_empty() || Snapshot::is_there(store, LEDGER_TABLE).await?)
    }

    /// Mends what keeps the logs from being read, and opens all tables that can be; `specs` are all that
    /// there may be.
    pub async fn open(store: Store, specs: &[TableSpec]) -> Result<Self, TableError> {
        let mut findings = Findings::default();
        let names = tables_below(&store).await?;
        for name in names.iter().map(String::as_str).chain([LEDGER_TABLE]) {
            mend_checkpoints(&store, name, &mut findings).await?;
        }
        let (ledger, known) = open_ledger(&store, &mut findings).await?;
        let first = first_read(&ledger).await?;
        let snapshot = Snapshot::open(&store, LEDGER_TABLE).await?;
        let mut absent = Vec::new();
        for spec in specs.iter().filter(|spec| spec.name != LEDGER_TABLE) {
            let mut is_due = known.lagging(1).contains(&spec.name);
            if let Some(ledger) = &snapshot {
                is_due |= ledger.transaction(&commit::table_app(&spec.name)).await?.is_some();
            }
            let why = match Table::open(&store, &spec.name).await {
                Ok(None) if is_due || names.contains(&spec.name) => "it was not there".to_owned(),
                Err(error @ (TableError::Damaged { .. } | TableError::Entry { .. })) => {
                    is_due = true;
                    format!("its log could not be read ({})", error.cause())
                }
                _ => continue,
            };
            absent.push(Absent { spec: spec.clone(), why, is_due });
        }
        let mut tables = BTreeMap::new();
        for name in names.into_iter().filter(|name| absent.iter().all(|absent| absent.spec.name != *name)) {
            let opened = match Table::open(&store, &name).await {
                Err(error @ TableError::Unmarked { .. }) => {
                    match Table::open_as_it_is(&store, &name).await? {
                        Some(table) if known.gave(&name) || table.has_row_ids() => Ok(Some(table)),
                        _ => Err(error),
                    }
                }
                other => other,
            };
            match opened {
                Ok(Some(table)) => _ = tables.insert(name, table),
                Ok(None) => {}
                Err(
                    error @ (TableError::Layout { .. }
                    | TableError::Unmarked { .. }
                    | TableError::Entry { .. }
                    | TableError::Damaged { .. }),
                ) => {
                    findings
                        .lost
                        .push(format!("it stays as it is, and what is in it does not count: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        let (rows, settled) = match snapshot {
            Some(ledger) => (ledger.object_ids().await?.0, ledger.transaction(commit::APP).await?),
            None => (Ids::default(), None),
        };
        Ok(Self {
            store,
            ledger,
            known,
            rows,
            tables,
            whole: BTreeSet::new(),
            first,
            settled,
            absent,
            findings,
        })
    }

    /// The names of the tables that are there.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// Whether the ledger's rows tell of an object.
    pub fn contains(&self, object: u128) -> bool {
        self.rows.contains(object)
    }

    /// Objects that the ledger's log tells of and its rows don't.
    pub fn taken_out(&self) -> Vec<u128> {
        self.known.beyond(&self.rows)
    }

    /// Goes past the one entry that this repair has put into the ledger beside [`Repair::note`].
    pub async fn goes_past(&mut self) -> Result<(), TableError> {
        let own = self.ledger.version.map_or(0, |version| version + 1);
        ledger::catch_up(&mut self.ledger, &self.known, None, None).await?;
        if self.ledger.version == Some(own) { Ok(()) } else { Err(self.beside_others()) }
    }

    fn beside_others(&self) -> TableError {
        let error = "another process writes to the lake: stop every writer first";
        TableError::request(&self.ledger.table, "repairing it", error)
    }

    /// Tells the ledger of objects whose rows are in the tables already; `ledger_file` holds their rows of
    /// the ledger.
    pub async fn note(&mut self, landing: &Landing, ledger_file: &DataFile) -> Result<(), TableError> {
        let bytes = commit::landing(landing, ledger_file, self.known.landed())
            .map_err(|message| self.layout(message))?;
        self.put(bytes, &landing.batch).await?;
        self.known.apply(self.ledger.version.unwrap_or_default(), landing.clone(), true);
        landing.objects.iter().for_each(|object| self.rows.insert(*object));
        Ok(())
    }

    /// Puts an entry into the ledger, and refuses to go on beside others that write: what they land would be
    /// told of twice.
    async fn put(&mut self, bytes: bytes::Bytes, batch: &str) -> Result<(), TableError> {
        let mut unknown = 0;
        loop {
            let before = self.ledger.version;
            if ledger::catch_up(&mut self.ledger, &self.known, Some(batch), None).await? {
                return Ok(());
            }
            if self.ledger.version != before {
                return Err(self.beside_others());
            }
            if self.ledger.try_put(bytes.clone(), &mut unknown).await? {
                return Ok(());
            }
        }
    }

    /// Whether a table may lack what the ledger's log can't give to it any more.
    pub fn is_behind(&self, name: &str) -> bool {
        let Some(table) = self.tables.get(name) else { return false };
        let Some(has) = table.txn else { return true };
        table.lacks.is_some()
            || has < self.first && (self.settled < Some(self.first) || self.known.mark(name) > Some(has))
    }

    /// The files that the ledger has still to give to a table.
    pub fn pending(&self, name: &str) -> Vec<DataFile> {
        let has = self.tables.get(name).and_then(|table| table.txn).unwrap_or_default();
        self.known.missing(name, has).map(|missing| missing.files).unwrap_or_default()
    }

    /// Makes a table anew, with these files: all that the ledger ever gave to it and that is still there.
    pub async fn make_anew(&mut self, spec: &TableSpec, files: &[DataFile]) -> Result<(), TableError> {
        if let Some(aside) = set_aside(&self.store, &spec.name).await? {
            self.findings
                .mended
                .push(format!("{}: what there was of its log is set aside in {aside}", spec.name));
        }
        // It gets its version of the ledger by the last step: until then the lake is refused.
        Log::new(&self.store, &spec.name).create(spec, None, files).await?;
        let table = Table::open_as_it_is(&self.store, &spec.name).await?;
        self.tables.extend(table.map(|table| (spec.name.clone(), table)));
        self.made_whole(&spec.name);
        Ok(())
    }

    /// Takes note that a table holds all that the ledger ever gave to it and that is still there.
    pub fn made_whole(&mut self, name: &str) {
        self.whole.insert(name.to_owned());
    }

    /// Brings in what the ledger has still to give to tables that were not made whole.
    pub async fn bring_in_all(&mut self) -> Result<(), TableError> {
        let mut lagging = self.known.lagging(1);
        lagging.retain(|name| !self.whole.contains(name));
        for name in lagging {
            self.bring_in(&name).await?;
        }
        Ok(())
    }

    /// Sets every table to the ledger's version, and opens the lake, to see that it can be. What is done is
    /// told.
    pub async fn finish(mut self) -> Result<(Lake, Findings), TableError> {
        if let Some(version) = self.known.foreign_delete().or(self.known.foreign_append()) {
            self.findings.mended.push(format!(
                "{LEDGER_TABLE}: what another engine did to it with version {version} is made up for"
            ));
        }
        let to = self.ledger.version.unwrap_or_default();
        let tables = self
            .tables
            .keys()
            .filter_map(|name| Some((name.clone(), self.known.marks_at(to).get(name).copied()?.min(to))));
        let mark = Settled { to, objects: self.rows.len() as u64, tables: tables.collect() };
        let bytes = commit::repaired(&mark).map_err(|message| self.layout(message))?;
        self.put(bytes, "").await?;
        for (name, table) in &mut self.tables {
            let (mut unknown, ends) = (0, self.ledger.version.unwrap_or_default());
            let mark = mark.tables.get(name).copied().max(self.whole.contains(name).then_some(ends));
            while table.txn > Some(ends) || table.txn < mark {
                let was = table.txn.unwrap_or_default();
                let bytes = commit::projection([], None, ends);
                let bytes = bytes.map_err(|message| TableError::Layout { table: name.clone(), message })?;
                if table.log.try_put(bytes, &mut unknown).await? {
                    table.txn = Some(ends);
                    self.findings
                        .mended
                        .push(format!("{name}: brought from version {was} of {LEDGER_TABLE} to {ends}"));
                } else {
                    table.catch_up(&self.store, name).await?;
                }
            }
        }
        Ok((Lake::open(self.store).await?, self.findings))
    }

    /// Brings in what the ledger gives to a table.
    async fn bring_in(&mut self, name: &str) -> Result<(), TableError> {
        let Some(table) = self.tables.get_mut(name) else { return Ok(()) };
        let mut unknown = 0;
        while let Some(missing) = self.known.missing(name, table.txn.unwrap_or(0)) {
            if table.take(&self.store, name, &missing, &mut unknown).await? {
                let rows: u64 = missing.files.iter().map(|file| file.rows).sum();
                self.findings.mended.push(format!("{name}: {rows} rows that had landed are brought in"));
            } else {
                table.catch_up(&self.store, name).await?;
            }
        }
        Ok(())
    }

    fn layout(&self, message: String) -> TableError {
        TableError::Layout { table: self.ledger.table.clone(), message }
    }
}

/// The ledger as far as it can be read; if it can't, a new one in its place.
async fn open_ledger(store: &Store, findings: &mut Findings) -> Result<(Log, Known), TableError> {
    for _ in 0..2 {
        let known = Known::default();
        let error = match Lake::begin_leniently(store, &known).await {
            Ok(log) => return Ok((log, known)),
            Err(error @ (TableError::Damaged { .. } | TableError::Entry { .. })) => error,
            Err(error) => return Err(error),
        };
        let log = Log::new(store, LEDGER_TABLE);
        if let Some(aside) = set_aside(store, LEDGER_TABLE).await? {
            findings.mended.push(format!(
                "{LEDGER_TABLE}: its log could not be read ({error}); it is set aside in {aside}"
            ));
        }
        log.create(&ledger_spec(), None, &[]).await?;
        findings.mended.push(format!("{LEDGER_TABLE}: made anew"));
        findings.lost.push(format!(
            "{LEDGER_TABLE}: what only it knew is gone: objects without rows, and what had landed and was in no table yet: `flarelake \
             reconcile` tells what a bucket holds and the lake lacks"
        ));
    }
    Err(TableError::request(store.url.as_str(), "making a new ledger", "someone else writes to the lake"))
}

/// The version of the ledger after which its log can still be read.
async fn first_read(ledger: &Log) -> Result<u64, TableError> {
    let files = ledger.list(None).await?;
    let first = files.iter().filter(|file| file.kind == LogFileKind::Entry).map(|file| file.version).min();
    Ok(first.unwrap_or_default().saturating_sub(1))
}

/// Moves a table's log out of the way. Where it is now; none if there was nothing.
async fn set_aside(store: &Store, name: &str) -> Result<Option<Path>, TableError> {
    let log = store.root.clone().join(name).join("_delta_log");
    let listed: Result<Vec<_>, _> =
        store.objects.list(Some(&log)).map_ok(|meta| meta.location).try_collect().await;
    let files = listed.map_err(|e| TableError::request(name, "listing its log", e))?;
    if files.is_empty() { Ok(None) } else { move_aside(store, name, &files).await.map(Some) }
}

/// Moves files of a table's log out of the way. Where they are now.
async fn move_aside(store: &Store, name: &str, files: &[Path]) -> Result<Path, TableError> {
    let failed =
        |file: &Path, e: object_store::Error| TableError::request(name, format!("setting {file} aside"), e);
    let log = store.root.clone().join(name).join("_delta_log");
    let aside = store.root.clone().join(ASIDE).join(new_uuid().to_string()).join(name).join("_delta_log");
    for file in files {
        let below: Path = file.prefix_match(&log).into_iter().flatten().collect();
        let to: Path = aside.parts().chain(below.parts()).collect();
        store.objects.copy(file, &to).await.map_err(|e| failed(file, e))?;
    }
    // Only now: whoever is interrupted has it whole in one place or the other.
    for file in files {
        store.objects.delete(file).await.map_err(|e| failed(file, e))?;
    }
    Ok(aside)
}

/// Sets checkpoints aside that can't be read, and removes a hint at one that is not there: readers find the
/// others by themselves.
async fn mend_checkpoints(store: &Store, name: &str, findings: &mut Findings) -> Result<(), TableError> {
    let log = Log::new(store, name);
    let hint = log.checkpoint_hint().await?;
    let mut files = log.list(None).await?;
    let mut broken = Vec::new();
    for file in files.iter().filter(|file| file.kind != LogFileKind::Entry) {
        let place = store
            .root
            .clone()
            .join(name)
            .join("_delta_log")
            .join(file.location.filename().unwrap_or_default());
        let failed = |e: object_store::Error| TableError::request(name, format!("reading {place}"), e);
        let bytes = store.objects.get(&place).await.map_err(failed)?.bytes().await.map_err(failed)?;
        let Err(error) = read_whole(bytes) else { continue };
        let aside = move_aside(store, name, &[place]).await?;
        let version = file.version;
        findings
            .mended
            .push(format!("{name}: its checkpoint of version {version} could not be read ({error}) and is set aside in {aside}"));
        broken.push(file.location.clone());
    }
    files.retain(|file| !broken.contains(&file.location));
    let Some(hint) = hint else { return Ok(()) };
    if files.iter().any(|file| file.kind != LogFileKind::Entry && file.version == hint) {
        return Ok(());
    }
    let path = store.root.clone().join(name).join("_delta_log").join("_last_checkpoint");
    store
        .objects
        .delete(&path)
        .await
        .map_err(|e| TableError::request(name, "removing _last_checkpoint", e))?;
    findings.mended.push(format!(
        "{name}: its _last_checkpoint told of version {hint}, which is not there; it is removed"
    ));
    Ok(())
}

fn read_whole(bytes: bytes::Bytes) -> Result<(), String> {
    let mut rows = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(|builder| builder.build())
        .map_err(|e| e.to_string())?;
    rows.try_for_each(|rows| rows.map(drop).map_err(|e| e.to_string()))
}
