//! Repairs an inconsistent lake: refills the ledger from the tables' rows, and tables from the files in their
//! folders.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::doubles::{Doubles, Undoubled};
use super::refill::Refill;
use super::salvage::{self, RowState, Salvage, Salvaged};
use super::{Anew, RepairError};
use crate::base::store::Store;
use crate::decode::object::{ObjectId, RowId};
use crate::land::batch::Tables;
use crate::maintain::compact::actual_layout;
use crate::maintain::lease;
use crate::maintain::vacuum::{ListedFile, list};
use crate::table::{
    Absent, Change, DataFile, FAILURES_TABLE, Findings, LEDGER_TABLE, Repair, Replaced, TableError,
    TableSpec, Upkeep, file_location,
};

/// What a log alone tells, and files don't.
const COMES_BACK: &str = "; rows that were deleted less than a vacuum ago are among them";

/// A lake whose writers are stopped, to be mended.
pub struct Mender {
    pub store: Store,
    /// The tables that it may have.
    pub tables: Arc<Tables>,
    /// Tables below whose folders rows are looked for, though their logs look whole.
    pub searched: Vec<String>,
    /// Bytes that a file is meant to have.
    pub target: u64,
    /// Bytes that it may take.
    pub memory: usize,
}

impl Mender {
    /// Makes what can be made of it. What was mended, and what was lost, goes to `tell`: before the last
    /// step, after which the lake is taken for whole again, so that nothing is lost that nobody was told of;
    /// and once more if there is more to tell.
    pub async fn run(&self, tell: &mut (dyn FnMut(Findings) + Send)) -> Result<(), RepairError> {
        if !Repair::is_lake(&self.store).await? {
            return Err(TableError::NoLake { url: self.store.url.to_string() }.into());
        }
        let held = lease::Lease::take(&self.store, "repair", lease::DEFAULT_TERM, None)
            .await?
            .ok_or(RepairError::Busy)?;
        let done = self.mend(tell).await;
        held.give_back().await;
        done
    }

    async fn mend(&self, tell: &mut (dyn FnMut(Findings) + Send)) -> Result<(), RepairError> {
        let specs: Vec<TableSpec> =
            self.tables.log_types.iter().chain([&self.tables.failures]).cloned().collect();
        let gone = self.drop_gone_of_ledger().await?;
        let mut repair = Repair::open(self.store.clone(), &specs).await?;
        repair.findings.mended.extend(gone);
        let names: Vec<String> = repair.tables().map(str::to_owned).collect();
        let is_there = |name: &&String| {
            names.contains(name) || repair.absent.iter().any(|absent| absent.spec.name == **name)
        };
        if let Some(name) = self.searched.iter().find(|name| !is_there(name)) {
            return Err(RepairError::NoTable { name: name.clone(), there: names.join(", ") });
        }
        self.undouble(&mut repair).await?;
        let lacking = Refill { store: &self.store, tables: &self.tables }.run(&mut repair).await?;
        let mut searched = Vec::new();
        for absent in std::mem::take(&mut repair.absent) {
            if self.make_anew(&mut repair, &absent).await? {
                searched.push(absent.spec.name);
            }
        }
        for name in names {
            if self.make_whole(&mut repair, &name).await? {
                searched.push(name);
            } else if let Some(objects) = lacking.get(&name) {
                self.complete(&mut repair, &name, objects).await?;
            }
        }
        repair.bring_in_all().await?;
        self.compare(&searched, &mut repair.findings).await?;
        tell(std::mem::take(&mut repair.findings));
        let (lake, findings) = repair.finish().await?;
        drop(lake);
        tell(findings);
        Ok(())
    }

    /// Takes files out of the ledger that are gone: its rows are then told of anew, as far as tables and
    /// files tell. What was done.
    async fn drop_gone_of_ledger(&self) -> Result<Vec<String>, RepairError> {
        // One that can't be opened is mended first.
        let Ok(Some((mut ledger, named))) = self.open(LEDGER_TABLE).await else { return Ok(Vec::new()) };
        let (_, gone) = self.sort_out(LEDGER_TABLE, named, &list(&self.store, LEDGER_TABLE).await?);
        self.replace(&mut ledger, &gone, &[]).await?;
        Ok(gone.iter().map(|file| is_gone(LEDGER_TABLE, file)).collect())
    }

    /// Takes out of the ledger what stands in it twice.
    async fn undouble(&self, repair: &mut Repair) -> Result<(), RepairError> {
        let Some((mut ledger, files)) = self.open(LEDGER_TABLE).await? else { return Ok(()) };
        let spec = Arc::new(actual_layout(&ledger, &self.tables.ledger)?);
        let Undoubled { removes, adds } = Doubles(self.anew(spec)).run(files).await?;
        if removes.is_empty() {
            return Ok(());
        }
        self.replace(&mut ledger, &removes, &adds).await?;
        repair.goes_past().await?;
        let count = rows(&removes) - rows(&adds);
        repair.findings.mended.push(format!(
            "{LEDGER_TABLE}: {count} rows of objects that others of its rows are of, too, are taken out"
        ));
        Ok(())
    }

    /// Makes a table anew from the files in its folder. False: nothing ever landed in it.
    async fn make_anew(&self, repair: &mut Repair, absent: &Absent) -> Result<bool, RepairError> {
        let name = &absent.spec.name;
        let listed = list(&self.store, name).await?;
        let partitioning = salvage::partitioning(&listed).or(absent.spec.partitioning);
        let spec = Arc::new(TableSpec { partitioning, ..absent.spec.clone() });
        let salvaged = self.salvage(spec.clone(), &|row| state(repair, name, row)).run(&[], &listed).await?;
        if salvaged.files.is_empty() && !absent.is_due {
            return Ok(false);
        }
        repair.make_anew(&spec, &salvaged.files).await?;
        let found = found(&salvaged.files);
        repair
            .findings
            .mended
            .push(format!("{name}: {}; it is made anew, with {found} in its folder{COMES_BACK}", absent.why));
        report(repair, name, salvaged);
        Ok(true)
    }

    /// Makes a table whole from the files in its folder, if some that it names are gone or the ledger's log
    /// does not go back far enough. False: there was no need.
    async fn make_whole(&self, repair: &mut Repair, name: &str) -> Result<bool, RepairError> {
        let Some((mut table, named)) = self.open(name).await? else { return Ok(false) };
        let listed = list(&self.store, name).await?;
        let (named, gone) = self.sort_out(name, named, &listed);
        let (_, never) = self.sort_out(name, repair.pending(name), &listed);
        if gone.is_empty()
            && never.is_empty()
            && !repair.is_behind(name)
            && !self.searched.iter().any(|searched| searched == name)
        {
            return Ok(false);
        }
        let spec = Arc::new(actual_layout(&table, &self.tables.named(name))?);
        let salvaged = self.salvage(spec, &|row| state(repair, name, row)).run(&named, &listed).await?;
        // RowState before nothing names it any more.
        gone.iter().for_each(|file| tracing::warn!("{}", is_gone(name, file)));
        self.replace(&mut table, &gone, &salvaged.files).await?;
        repair.made_whole(name);
        for file in gone.iter().chain(&never) {
            repair.findings.mended.push(is_gone(name, file));
        }
        if !salvaged.files.is_empty() {
            repair
                .findings
                .mended
                .push(format!("{name}: {} in its folder are brought in{COMES_BACK}", found(&salvaged.files)));
        }
        report(repair, name, salvaged);
        Ok(true)
    }

    /// Brings in what a table lacks of objects that only a ledger of before knew. What was taken out of the
    /// table stays out.
    async fn complete(
        &self,
        repair: &mut Repair,
        name: &str,
        objects: &HashMap<ObjectId, u64>,
    ) -> Result<(), RepairError> {
        let Some((mut table, named)) = self.open(name).await? else { return Ok(()) };
        let taken_out = table.tombstones().await?;
        let listed: Vec<ListedFile> = list(&self.store, name)
            .await?
            .into_iter()
            .filter(|file| !taken_out.contains_key(&file.path))
            .collect();
        let spec = Arc::new(actual_layout(&table, &self.tables.named(name))?);
        let of_objects = |row: RowId| {
            if objects.contains_key(&row.object) { state(repair, name, row) } else { RowState::Unknown }
        };
        let salvaged = self.salvage(spec, &of_objects).run(&named, &listed).await?;
        self.replace(&mut table, &[], &salvaged.files).await?;
        let (lacks, found) = (objects.values().sum::<u64>(), rows(&salvaged.files));
        if found > 0 {
            repair.findings.mended.push(format!("{name}: {found} rows that had landed are brought in"));
        }
        // Rejects go when they are replayed.
        if lacks > found && name != FAILURES_TABLE {
            let count = lacks - found;
            let lost = format!(
                "{name}: {count} rows of {} objects that the ledger did not know any more are in no file: they expired, were taken out, or \
                 were never brought in",
                objects.len()
            );
            repair.findings.lost.push(lost);
        }
        Ok(())
    }

    /// Says how many rows landed in these tables that are not there any more.
    async fn compare(&self, names: &[String], findings: &mut Findings) -> Result<(), RepairError> {
        if names.is_empty() {
            return Ok(());
        }
        let landed = Refill { store: &self.store, tables: &self.tables }.landed().await?;
        for name in names {
            let (landed, there) = (
                landed.get(name).copied().unwrap_or_default(),
                self.open(name).await?.map_or(0, |(_, files)| rows(&files)),
            );
            if there < landed {
                findings.lost.push(format!(
                    "{name}: of {landed} rows that landed, {} are in no file of its folder: they expired, were taken out, or are lost; put back \
                     from a copy what you have of its folder, then run `flarelake repair --table {name}`",
                    landed - there
                ));
            }
        }
        Ok(())
    }

    fn salvage<'a>(
        &'a self,
        spec: Arc<TableSpec>,
        state: &'a (dyn Fn(RowId) -> RowState + Sync),
    ) -> Salvage<'a> {
        Salvage { anew: self.anew(spec), state }
    }

    fn anew(&self, spec: Arc<TableSpec>) -> Anew {
        Anew { store: self.store.clone(), spec, target: self.target, memory: self.memory }
    }

    /// A table and the files that it names; none if another engine made it one that is not ours to read.
    async fn open(&self, name: &str) -> Result<Option<(Upkeep, Vec<DataFile>)>, RepairError> {
        match Upkeep::open(&self.store, name).await {
            Ok(Some(table)) => {
                let files = table.snapshot().files()?;
                Ok(Some((table, files)))
            }
            Ok(None) | Err(TableError::Layout { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Those of these files that are there, and those that are gone.
    fn sort_out(
        &self,
        name: &str,
        files: Vec<DataFile>,
        listed: &[ListedFile],
    ) -> (Vec<DataFile>, Vec<DataFile>) {
        let place = |path: &str| file_location(&self.store, name, path);
        let there: HashSet<_> = listed.iter().map(|file| place(&file.path)).collect();
        files.into_iter().partition(|file| there.contains(&place(&file.path)))
    }

    async fn replace(
        &self,
        table: &mut Upkeep,
        gone: &[DataFile],
        files: &[DataFile],
    ) -> Result<(), RepairError> {
        if gone.is_empty() && files.is_empty() {
            return Ok(());
        }
        let now_ms = self.store.now_micros().await? / 1000;
        match table.replace(Change::Repair, gone, files, now_ms).await? {
            Replaced::Done => Ok(()),
            Replaced::Overtaken | Replaced::Stale => Err(RepairError::Busy),
        }
    }
}

fn state(repair: &Repair, table: &str, row: RowId) -> RowState {
    match repair.contains(row.object.0) {
        true if table == FAILURES_TABLE && repair.contains(ObjectId::of_replay(row).0) => RowState::Replayed,
        true => RowState::Landed,
        false => RowState::Unknown,
    }
}

fn rows(files: &[DataFile]) -> u64 {
    files.iter().map(|file| file.rows).sum()
}

fn is_gone(table: &str, file: &DataFile) -> String {
    format!("{table}: {} with {} rows is gone, and is not named any more", file.path, file.rows)
}

fn found(files: &[DataFile]) -> String {
    format!("{} rows in {} files that were found", rows(files), files.len())
}

/// Says what was left where it is.
fn report(repair: &mut Repair, name: &str, salvaged: Salvaged) {
    let Salvaged { unwanted, left_out, .. } = salvaged;
    if unwanted > 0 {
        repair.findings.lost.push(format!(
            "{name}: {unwanted} rows in its folder are of objects that {LEDGER_TABLE} does not tell of: they are there again once these objects land"
        ));
    }
    for file in left_out {
        repair.findings.lost.push(format!("{name}: left out is {file}"));
    }
}
