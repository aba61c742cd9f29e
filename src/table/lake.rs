//! Writes to a lake: lands batches in the ledger, and brings the tables up to it.
//!
//! Versions of the ledger are totally ordered, and a writer that puts v+1 has read all up to v, so no object
//! can land twice. What is in the ledger has landed, whatever happens to the writer: it names the files, and
//! any process brings them into the tables.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::FutureExt as _;
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;

use super::commit::{self, Landing, Settled};
use super::fence::Fence;
use super::file::DataFile;
use super::ids::Ids;
use super::ledger::{self, Known};
use super::listing::LogFileKind;
use super::log::{Beginning, Log, MAX_BEGINNINGS, TableError};
use super::projection::{Table, tables_below};
use super::snapshot::Snapshot;
use super::spec::{LEDGER_TABLE, TableSpec, ledger_spec};
use crate::base::store::Store;

/// How many ledger versions are remembered for a table before it is looked at.
const MAX_PENDING: usize = 64;

/// What came of landing a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum LandOutcome {
    /// All of it has landed, in all tables.
    Landed,
    /// These objects had landed before: nothing was landed; leave them out and try again.
    Duplicates(HashSet<u128>),
    /// Files are gone, or too old to be landed: decode again.
    Stale,
}

/// The ledger's version that was known when the first file of a batch was written: fences beyond it may
/// concern the files.
#[derive(Debug, Clone, Copy)]
pub struct Begun(u64);

pub struct Lake {
    store: Store,
    pub(super) known: Known,
    ledger: Mutex<Log>,
    tables: SyncMutex<BTreeMap<String, Arc<Mutex<Table>>>>,
}

impl Lake {
    /// Opens a lake to write to, creating its ledger in a folder that holds no tables; then brings every
    /// table up to the ledger.
    pub async fn open(store: Store) -> Result<Self, TableError> {
        let known = Known::default();
        let (log, _) = Self::begin(&store, &known, None).await?;
        let lake = Self { known, tables: SyncMutex::default(), ledger: Mutex::new(log), store };
        lake.open_tables().await?;
        lake.project_all().await?;
        Ok(lake)
    }

    /// Reads the ledger from where its reading can begin. True if `batch` is one of the entries that were
    /// read.
    async fn begin(store: &Store, known: &Known, batch: Option<&str>) -> Result<(Log, bool), TableError> {
        Self::begin_as(store, known, batch, true).await
    }

    /// Reads the ledger for a repair: rows that others took out of it, or a folder of tables without it, are
    /// no reason to stop.
    pub(super) async fn begin_leniently(store: &Store, known: &Known) -> Result<Log, TableError> {
        Ok(Self::begin_as(store, known, None, false).await?.0)
    }

    async fn begin_as(
        store: &Store,
        known: &Known,
        batch: Option<&str>,
        strictly: bool,
    ) -> Result<(Log, bool), TableError> {
        for _ in 0..MAX_BEGINNINGS {
            let mut log = Log::new(store, LEDGER_TABLE);
            known.begins();
            let mut before = Before::default();
            match log.beginning().await? {
                Beginning::First => {}
                Beginning::Empty => {
                    if !strictly {
                        return Err(TableError::damaged(&log.table, "it is not there"));
                    }
                    Self::refuse_tables_without_ledger(store).await?;
                    log.create(&ledger_spec(), None, &[]).await?;
                }
                Beginning::After(checkpoint, written_ms) => {
                    before = Self::read_checkpoint(store, known, &mut log, checkpoint, strictly).await?;
                    // Below it there may have been fences.
                    known.fenced(Fence { version: checkpoint, written_ms });
                }
            }
            let landed =
                before.checkpoint.filter(|_| strictly).map(|checkpoint| (checkpoint, &before.objects));
            let is_there = match ledger::catch_up(&mut log, known, batch, landed).await {
                // Entries were cleaned up on the way.
                Err(TableError::Outrun { .. }) => continue,
                other => other?,
            };
            if log.version < before.checkpoint {
                let next = log.version.map_or(0, |version| version + 1);
                let what = format!(
                    "log entry {next} is gone, and no checkpoint tells that it was settled: someone removed it"
                );
                return Err(TableError::damaged(&log.table, what));
            }
            known.extend(before.objects);
            known.reaches(log.version.unwrap_or_default());
            if strictly {
                check_whole(&log, known, before.least, before.doubled)?;
            }
            return Ok((log, is_there));
        }
        Err(TableError::Outrun { table: format!("{}{LEDGER_TABLE}/", store.url) })
    }

    /// What landed up to a checkpoint stands in the ledger's own table. What of it is settled is in the data
    /// tables, too; the entries beyond are read, since another engine may have written the checkpoint.
    async fn read_checkpoint(
        store: &Store,
        known: &Known,
        log: &mut Log,
        checkpoint: u64,
        strictly: bool,
    ) -> Result<Before, TableError> {
        let snapshot = match Snapshot::open(store, LEDGER_TABLE).await {
            // An entry that is not whole is told with its version.
            Err(error) => return log.check_beyond(checkpoint).await.and(Err(error)),
            snapshot => snapshot?.ok_or_else(|| {
                TableError::request(&log.table, "opening its checkpoint", "it is not there")
            })?,
        };
        known.has_protocol(snapshot.protocol()?);
        let (objects, doubled) = snapshot.object_ids().await?;
        let least = snapshot.transaction(commit::OBJECTS).await?;
        read_marks(store, &snapshot, known).await?;
        let settled = match snapshot.transaction(commit::APP).await? {
            Some(settled) if strictly => {
                known.settles(settled);
                settled.min(checkpoint)
            }
            _ => first_unbroken(log, checkpoint).await?,
        };
        if strictly && known.settled().is_none() {
            Self::refuse_tables_behind(store, settled).await?;
        }
        log.version = Some(settled);
        Ok(Before { objects, doubled, least, checkpoint: Some(checkpoint) })
    }

    /// Of a ledger without a settled mark, whose entries up to a version are gone, nothing tells whether a
    /// table lacks what they gave to it.
    async fn refuse_tables_behind(store: &Store, version: u64) -> Result<(), TableError> {
        for name in tables_below(store).await? {
            let table = match Table::open(store, &name).await {
                Ok(None)
                | Err(TableError::Layout { .. } | TableError::Unmarked { .. } | TableError::Entry { .. }) => {
                    continue;
                }
                table => table?,
            };
            let Some(txn) = table.and_then(|table| table.txn).filter(|txn| *txn < version) else { continue };
            let what = format!(
                "another engine removed its log up to version {version}, and nothing tells whether {name}, which was brought up to version {txn}, \
                 has all that landed up to there"
            );
            return Err(TableError::damaged(&format!("{}{LEDGER_TABLE}/", store.url), what));
        }
        Ok(())
    }

    /// A new ledger beside old tables would know nothing of what is in them.
    async fn refuse_tables_without_ledger(store: &Store) -> Result<(), TableError> {
        for name in tables_below(store).await? {
            let txn = match Table::open(store, &name).await {
                // It is another engine's, or one that can't be read: not what the ledger stands for.
                Ok(None)
                | Err(TableError::Layout { .. } | TableError::Unmarked { .. } | TableError::Entry { .. }) => {
                    continue;
                }
                table => table?.and_then(|table| table.txn).unwrap_or_default(),
            };
            // Someone may be making the lake at this moment.
            if Log::new(store, LEDGER_TABLE).beginning().await? != Beginning::Empty {
                return Ok(());
            }
            let what = format!(
                "it is not there, and {name} was brought up to version {txn} of it: it was removed, or not copied"
            );
            return Err(TableError::damaged(&format!("{}{LEDGER_TABLE}/", store.url), what));
        }
        Ok(())
    }

    /// Reads the ledger's new entries; begins anew if it was away for so long that some of them are gone.
    /// True if one of them is `batch`.
    async fn catch_up(&self, ledger: &mut Log, batch: Option<&str>) -> Result<bool, TableError> {
        match ledger::catch_up(ledger, &self.known, batch, None).await {
            Err(TableError::Outrun { .. }) => self.begin_anew(ledger, batch).await,
            other => {
                let is_there = other?;
                check_whole(ledger, &self.known, None, 0)?;
                Ok(is_there)
            }
        }
    }

    async fn begin_anew(&self, ledger: &mut Log, batch: Option<&str>) -> Result<bool, TableError> {
        let (log, is_there) = Self::begin(&self.store, &self.known, batch).await?;
        *ledger = log;
        Ok(is_there)
    }

    /// The store that holds it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the object had landed when the ledger was last read.
    pub fn contains(&self, object: u128) -> bool {
        self.known.contains(object)
    }

    /// How many objects had landed when the ledger was last read.
    pub fn objects(&self) -> usize {
        self.known.len()
    }

    /// To be asked for before the first file of a batch is written.
    pub fn begun(&self) -> Begun {
        Begun(self.known.version())
    }

    /// Opens every table that is there, and refuses those that are ahead of the ledger.
    async fn open_tables(&self) -> Result<(), TableError> {
        let names = tables_below(&self.store).await?;
        let opened: Vec<_> = names.iter().map(|name| Table::open(&self.store, name).boxed()).collect();
        let opened = futures::future::join_all(opened).await;
        let mut there = 0;
        for (name, table) in names.into_iter().zip(opened) {
            there += u64::from(self.known.mark(&name).is_some() && !matches!(table, Ok(None)));
            let table = match table {
                Ok(Some(table)) => table,
                Ok(None) => continue,
                Err(error @ TableError::Unmarked { .. }) if self.known.gave(&name) => return Err(error),
                // It is told again when something is to be landed in it.
                Err(
                    error @ (TableError::Layout { .. }
                    | TableError::Unmarked { .. }
                    | TableError::Entry { .. }),
                ) => {
                    tracing::warn!("{error}");
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.check_ledger_reaches(&table).await?;
            self.check_is_settled(&name, &table)?;
            self.tables.lock().insert(name, Arc::new(Mutex::new(table)));
        }
        if there < self.known.marked_tables() {
            let what = format!(
                "it gave files to {} tables, of which {there} are there: others were removed",
                self.known.marked_tables()
            );
            return Err(TableError::damaged(&format!("{}{LEDGER_TABLE}/", self.store.url), what));
        }
        Ok(())
    }

    /// A table has what is settled, unless it was removed or restored.
    fn check_is_settled(&self, name: &str, table: &Table) -> Result<(), TableError> {
        if let Some(what) = &table.lacks {
            return Err(TableError::damaged(&table.log.table, what));
        }
        let Some(mark) = self.known.mark(name).filter(|mark| table.txn < Some(*mark)) else { return Ok(()) };
        let what = format!(
            "it was brought up to version {} of {LEDGER_TABLE} only, though it had all up to {mark}: it was restored from an older copy, or \
             removed and made anew",
            table.txn.unwrap_or_default()
        );
        Err(TableError::damaged(&table.log.table, what))
    }

    /// P4, P5. A table is never ahead of the ledger, unless the ledger was removed, restored or copied.
    async fn check_ledger_reaches(&self, table: &Table) -> Result<(), TableError> {
        let Some(txn) = table.txn.filter(|txn| *txn > self.known.version()) else { return Ok(()) };
        let mut ledger = self.ledger.lock().await;
        self.catch_up(&mut ledger, None).await?;
        if self.known.version() < txn
            && ledger.list(ledger.version).await?.iter().any(|file| file.version >= txn)
        {
            // Its next entry was cleaned up while this process was away.
            self.begin_anew(&mut ledger, None).await?;
        }
        let ends = ledger.version.unwrap_or_default();
        if txn <= ends {
            return Ok(());
        }
        let what = format!(
            "it was brought up to version {txn} of {LEDGER_TABLE}, which ends at version {ends}: {LEDGER_TABLE} was removed, restored from an \
             older copy, or copied before this table"
        );
        Err(TableError::damaged(&table.log.table, what))
    }

    /// Makes sure that the table is there and that files made for `spec` fit it. Before the first landing
    /// that names the table.
    pub async fn ensure_table(&self, spec: &TableSpec) -> Result<(), TableError> {
        let known = self.tables.lock().get(&spec.name).cloned();
        if let Some(table) = known {
            let mut table = table.lock().await;
            return if table.spec.is_some() {
                Ok(())
            } else {
                table.fits(&self.store, &spec.name, spec).await
            };
        }
        let mut table = match Table::open(&self.store, &spec.name).await? {
            Some(table) => table,
            None => {
                // Its txn is the ledger's version of a moment in which no entry named it.
                let mut ledger = self.ledger.lock().await;
                self.catch_up(&mut ledger, None).await?;
                let txn = ledger.version.unwrap_or(0);
                drop(ledger);
                // Another process may have made it since, or made it long ago, and it was removed.
                if !self.known.gave(&spec.name) {
                    Log::new(&self.store, &spec.name).create(spec, Some(txn), &[]).await?;
                }
                Table::reopen(&self.store, &spec.name).await?
            }
        };
        table.fits(&self.store, &spec.name, spec).await?;
        self.check_ledger_reaches(&table).await?;
        self.tables.lock().entry(spec.name.clone()).or_insert_with(|| Arc::new(Mutex::new(table)));
        Ok(())
    }

    /// W2 to W5, with W3a. Lands a batch whose files are uploaded: `ledger_file` holds its objects' rows for
    /// the ledger, `begun` is of before the first file was written. On success every table that it touches
    /// has its rows.
    pub async fn land(
        &self,
        landing: &Landing,
        ledger_file: &DataFile,
        begun: Begun,
    ) -> Result<LandOutcome, TableError> {
        let bytes = |log: &Log| {
            commit::landing(landing, ledger_file, self.known.landed())
                .map_err(|message| TableError::Layout { table: log.table.clone(), message })
        };
        let mut ledger = self.ledger.lock().await;
        let (mut unknown, Begun(mut fenced)) = (0, begun);
        let mut is_there = self.catch_up(&mut ledger, Some(&landing.batch)).await?;
        while !is_there {
            let there: HashSet<u128> =
                landing.objects.iter().copied().filter(|o| self.known.contains(*o)).collect();
            if !there.is_empty() {
                return Ok(LandOutcome::Duplicates(there));
            }
            if let Some(fence) = self.known.fence().filter(|fence| fence.version > fenced) {
                if !fence.spares(&self.store, self.files_of(landing, ledger_file)).await? {
                    return Ok(LandOutcome::Stale);
                }
                fenced = fence.version;
            }
            let bytes = bytes(&ledger)?;
            is_there = match ledger.try_put(bytes, &mut unknown).await {
                Ok(true) => {
                    let version = ledger.version.unwrap_or_default();
                    self.known.reaches(version);
                    self.known.apply(version, landing.clone(), true);
                    true
                }
                Ok(false) => self.catch_up(&mut ledger, Some(&landing.batch)).await?,
                Err(TableError::Outrun { .. }) => self.begin_anew(&mut ledger, Some(&landing.batch)).await?,
                Err(error) => return Err(error),
            };
        }
        drop(ledger);
        // Tables that only others land in are looked at now and then: what is remembered of them stays small.
        let lagging =
            self.known.lagging(MAX_PENDING).into_iter().filter(|table| !landing.adds.contains_key(table));
        let tables: Vec<String> = landing.adds.keys().cloned().chain(lagging).collect();
        // None is cut off where another fails.
        let projected = futures::future::join_all(tables.iter().map(|table| self.project(table))).await;
        projected.into_iter().collect::<Result<(), _>>()?;
        Ok(LandOutcome::Landed)
    }

    /// Where all files of a batch are.
    fn files_of(&self, landing: &Landing, ledger_file: &DataFile) -> Vec<object_store::path::Path> {
        let of_tables = landing
            .adds
            .iter()
            .flat_map(|(table, files)| files.iter().map(move |file| file.location(&self.store, table)));
        of_tables.chain([ledger_file.location(&self.store, LEDGER_TABLE)]).collect()
    }

    /// P1 to P3. Brings every table up to the ledger as it was last read: what a writer that died has left is
    /// finished here.
    pub async fn project_all(&self) -> Result<(), TableError> {
        for table in self.known.lagging(1) {
            self.project(&table).await?;
        }
        Ok(())
    }

    /// K1. Reads the ledger to its end and brings every table up to it. Returns the newest ledger version
    /// whose files all tables have; a checkpoint of the ledger must not stand for a later one.
    pub async fn settle(&self) -> Result<u64, TableError> {
        let mut ledger = self.ledger.lock().await;
        self.catch_up(&mut ledger, None).await?;
        let version = ledger.version.unwrap_or(0);
        drop(ledger);
        self.project_all().await?;
        Ok(version)
    }

    /// K0. Settles, and puts the settled mark into the ledger: a checkpoint that has it tells what is in the
    /// tables.
    pub async fn mark_settled(&self) -> Result<(), TableError> {
        let to = self.settle().await?;
        let mut ledger = self.ledger.lock().await;
        let mut unknown = 0;
        loop {
            self.catch_up(&mut ledger, None).await?;
            // Marks only go forward: another maintainer may have been faster, or a put that nobody knew of
            // had won.
            if self.known.settled() >= Some(to) {
                return Ok(());
            }
            let tables = self.known.marks_at(to);
            let bytes =
                commit::settled(&Settled { to, objects: self.known.len() as u64, tables: tables.clone() });
            let bytes =
                bytes.map_err(|message| TableError::Layout { table: ledger.table.clone(), message })?;
            if ledger.try_put(bytes, &mut unknown).await? {
                self.known.reaches(ledger.version.unwrap_or_default());
                self.known.settles(to);
                self.known.marks(tables.clone(), tables.len() as u64);
                return Ok(());
            }
        }
    }

    /// What the ledger gives to tables and they have not got yet, by table: [`Lake::settle`] would bring it
    /// there. Nothing is written; without a ledger nothing is missing.
    pub async fn missing(store: &Store) -> Result<BTreeMap<String, Vec<DataFile>>, TableError> {
        let mut missing = BTreeMap::new();
        if Log::new(store, LEDGER_TABLE).beginning().await? == Beginning::Empty {
            return Ok(missing);
        }
        let known = Known::default();
        Self::begin(store, &known, None).await?;
        for name in known.lagging(1) {
            let has = Table::reopen(store, &name).await?.txn.unwrap_or(0);
            missing.extend(known.missing(&name, has).map(|missing| (name, missing.files)));
        }
        Ok(missing)
    }

    async fn project(&self, name: &str) -> Result<(), TableError> {
        let known = self.tables.lock().get(name).cloned();
        let table = match known {
            Some(table) => table,
            None => {
                let table = Table::reopen(&self.store, name).await?;
                self.tables
                    .lock()
                    .entry(name.to_owned())
                    .or_insert_with(|| Arc::new(Mutex::new(table)))
                    .clone()
            }
        };
        let mut table = table.lock().await;
        let mut unknown = 0;
        loop {
            table.catch_up(&self.store, name).await?;
            self.check_ledger_reaches(&table).await?;
            self.check_is_settled(name, &table)?;
            let Some(missing) = self.known.missing(name, table.txn.unwrap_or(0)) else { return Ok(()) };
            if table.take(&self.store, name, &missing, &mut unknown).await?
                && self.known.missing(name, missing.to).is_none()
            {
                return Ok(());
            }
        }
    }
}

/// What the ledger's own table tells where its log is not read from its first entry on.
#[derive(Default)]
struct Before {
    /// The objects that it tells of.
    objects: Ids,
    /// Rows of objects that others of its rows are of.
    doubled: usize,
    /// How many objects it told of at least, as a settled mark says.
    least: Option<u64>,
    /// The checkpoint up to which it tells.
    checkpoint: Option<u64>,
}

/// Refuses a ledger that another engine took rows out of, whose objects would land again, or added rows to,
/// of which it would tell twice. `objects`: how many there were at least, as a settled mark tells; `doubled`:
/// rows of objects that others of its rows are of.
fn check_whole(log: &Log, known: &Known, objects: Option<u64>, doubled: usize) -> Result<(), TableError> {
    let there = known.len() as u64;
    let what = if let Some(version) = known.foreign_delete() {
        format!(
            "with version {version} another engine took rows out of it: the objects that they told of would land again"
        )
    } else if let Some(version) = known.foreign_append() {
        format!(
            "with version {version} another engine added rows to it: it tells of objects twice, or of some that never landed"
        )
    } else if let Some((version, from)) = known.overwritten() {
        format!(
            "version {version} goes on from what version {from} landed, which that does not tell any more: another engine put its own entry in \
             the place of one of ours"
        )
    } else if doubled > 0 {
        format!(
            "{doubled} of its rows are of objects that others of its rows are of: another engine added rows to it"
        )
    } else if let Some(objects) = objects.filter(|objects| there < *objects) {
        format!(
            "it told of {objects} objects and now tells of {there}: another engine took rows out of it, and those objects would land again"
        )
    } else {
        return Ok(());
    };
    Err(TableError::damaged(&log.table, what))
}

/// Reads what the newest settled mark tells of the tables that are there.
async fn read_marks(store: &Store, ledger: &Snapshot, known: &Known) -> Result<(), TableError> {
    let mut tables = BTreeMap::new();
    for name in tables_below(store).await? {
        if let Some(mark) = ledger.transaction(&commit::table_app(&name)).await? {
            tables.insert(name, mark);
        }
    }
    known.marks(tables, ledger.transaction(commit::TABLES).await?.unwrap_or_default());
    Ok(())
}

/// The version before the first entry that is there without a gap up to a checkpoint: of a ledger without a
/// settled mark all that is left is read.
async fn first_unbroken(log: &Log, checkpoint: u64) -> Result<u64, TableError> {
    let files = log.list(None).await?;
    let entries: HashSet<u64> =
        files.iter().filter(|file| file.kind == LogFileKind::Entry).map(|file| file.version).collect();
    let first = (0..=checkpoint).rev().take_while(|version| entries.contains(version)).last();
    Ok(first.map_or(checkpoint, |first| first.saturating_sub(1)))
}
