//! The ledger in memory: which objects have landed, and what each table has still to get.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::commit::{self, Landing, ReadCommit};
use super::fence::Fence;
use super::file::DataFile;
use super::ids::Ids;
use super::log::{Log, TableError};

/// A ledger version with the files that it gives to one table.
#[derive(Debug, Clone)]
struct Given {
    version: u64,
    files: Vec<DataFile>,
    /// Whether this process wrote them, moments ago.
    own: bool,
}

/// What a table has still to get.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Missing {
    /// The ledger's version that it is then at.
    pub to: u64,
    /// The files, those of other processes first.
    pub files: Vec<DataFile>,
    /// How many are of other processes, and so may be old.
    pub foreign: usize,
}

/// What the ledger's log says, as far as it was read.
#[derive(Debug, Default)]
pub struct Known {
    objects: RwLock<Ids>,
    pending: RwLock<Pending>,
    /// The last version that was read or put.
    version: AtomicU64,
    fence: RwLock<Option<Fence>>,
    /// The newest settled mark that was read or put.
    settled: RwLock<Option<u64>>,
    /// A version, and the one before that it says landed and that does not tell so, unless a repair made up
    /// for it.
    overwritten: RwLock<Option<(u64, u64)>>,
    /// The version that landed last, as far as was read.
    landed: RwLock<Option<u64>>,
    /// The ledger's, reader and writer version; (0, 0): not read yet.
    protocol: RwLock<(i64, i64)>,
    /// The version by which another engine took rows out of the ledger, unless a repair made up for it.
    foreign_delete: RwLock<Option<u64>>,
    /// The version by which another engine added rows to it, unless a repair looked after them.
    foreign_append: RwLock<Option<u64>>,
    /// By table: the last version that was read or put and that gave files to it.
    given: RwLock<BTreeMap<String, u64>>,
    /// By table: what the newest settled mark tells of it; and of how many tables it tells.
    marked: RwLock<(BTreeMap<String, u64>, u64)>,
}

#[derive(Debug, Default)]
struct Pending {
    /// The last version that was taken note of: a reading that begins anew comes by it again.
    version: Option<u64>,
    /// By table: what it is not known to have, oldest first.
    tables: BTreeMap<String, VecDeque<Given>>,
}

impl Known {
    /// Whether the object has landed.
    pub fn contains(&self, object: u128) -> bool {
        self.objects.read().contains(object)
    }

    /// The objects that have landed and are not among these.
    pub fn beyond(&self, objects: &Ids) -> Vec<u128> {
        self.objects.read().beyond(objects)
    }

    /// How many objects have landed.
    pub fn len(&self) -> usize {
        self.objects.read().len()
    }

    /// The last version that was read or put.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Takes note of how far the ledger was read.
    pub fn reaches(&self, version: u64) {
        self.version.fetch_max(version, Ordering::AcqRel);
    }

    /// The newest settled mark that was read or put.
    pub fn settled(&self) -> Option<u64> {
        *self.settled.read()
    }

    /// Takes note of a settled mark.
    pub fn settles(&self, to: u64) {
        let mut settled = self.settled.write();
        *settled = (*settled).max(Some(to));
    }

    /// Takes note of what a settled mark tells of tables, and of how many.
    pub fn marks(&self, tables: BTreeMap<String, u64>, count: u64) {
        let mut marked = self.marked.write();
        marked.0.extend(tables);
        marked.1 = count;
    }

    /// The version that the newest settled mark tells of a table.
    pub fn mark(&self, table: &str) -> Option<u64> {
        self.marked.read().0.get(table).copied()
    }

    /// Of how many tables the newest settled mark tells.
    pub fn marked_tables(&self) -> u64 {
        self.marked.read().1
    }

    /// What a settled mark of version `to` has to tell of tables.
    pub fn marks_at(&self, to: u64) -> BTreeMap<String, u64> {
        let mut tables = self.marked.read().0.clone();
        tables.extend(
            self.given
                .read()
                .iter()
                .filter(|(_, version)| **version <= to)
                .map(|(table, version)| (table.clone(), *version)),
        );
        tables
    }

    /// Whether files were ever given to a table, as far as was read.
    pub fn gave(&self, table: &str) -> bool {
        self.given.read().contains_key(table) || self.mark(table).is_some()
    }

    /// Takes note of the ledger's protocol.
    pub fn has_protocol(&self, protocol: (i64, i64)) {
        *self.protocol.write() = protocol;
    }

    /// The version that landed last, as far as the ledger was read without a gap.
    pub fn landed(&self) -> Option<u64> {
        *self.landed.read()
    }

    /// The ledger is read from where its reading can begin: what landed last before that is not known.
    pub fn begins(&self) {
        *self.landed.write() = None;
    }

    /// A version, and the one before that it says landed and that does not tell so any more, unless a repair
    /// made up for it.
    pub fn overwritten(&self) -> Option<(u64, u64)> {
        *self.overwritten.read()
    }

    /// The newest fence that was read.
    pub fn fence(&self) -> Option<Fence> {
        *self.fence.read()
    }

    /// Takes note of a fence.
    pub fn fenced(&self, fence: Fence) {
        let mut newest = self.fence.write();
        if newest.is_none_or(|newest| newest.version < fence.version) {
            *newest = Some(fence);
        }
    }

    /// The version by which another engine took rows out of the ledger, unless a repair made up for it.
    pub fn foreign_delete(&self) -> Option<u64> {
        *self.foreign_delete.read()
    }

    /// The version by which another engine added rows to the ledger, unless a repair looked after them.
    pub fn foreign_append(&self) -> Option<u64> {
        *self.foreign_append.read()
    }

    /// Takes note of what a ledger version lands; `own`: by this process, moments ago.
    pub fn apply(&self, version: u64, landing: Landing, own: bool) {
        *self.landed.write() = Some(version);
        let mut pending = self.pending.write();
        if pending.version >= Some(version) {
            return;
        }
        pending.version = Some(version);
        for (table, files) in landing.adds.into_iter().filter(|(_, files)| !files.is_empty()) {
            self.given.write().insert(table.clone(), version);
            pending.tables.entry(table).or_default().push_back(Given { version, files, own });
        }
        drop(pending);
        // Only now: who finds an object here relies on its tables to be named above until they have it.
        let mut objects = self.objects.write();
        landing.objects.into_iter().for_each(|object| objects.insert(object));
    }

    /// Takes note of objects whose log entries are gone: they stand in the ledger's table only.
    pub fn extend(&self, objects: Ids) {
        self.objects.write().extend(objects);
    }

    /// The tables that may have something to get, from `least` ledger versions on.
    pub fn lagging(&self, least: usize) -> Vec<String> {
        self.pending
            .read()
            .tables
            .iter()
            .filter(|(_, versions)| versions.len() >= least)
            .map(|(table, _)| table.clone())
            .collect()
    }

    /// What a table at ledger version `has` has still to get; none: nothing.
    pub fn missing(&self, table: &str, has: u64) -> Option<Missing> {
        let mut pending = self.pending.write();
        let versions = pending.tables.get_mut(table)?;
        while versions.front().is_some_and(|given| given.version <= has) {
            versions.pop_front();
        }
        let to = versions.back()?.version;
        let of = |own: bool| {
            versions
                .iter()
                .filter(move |given| given.own == own)
                .flat_map(|given| given.files.iter().cloned())
        };
        let mut files: Vec<DataFile> = of(false).collect();
        let foreign = files.len();
        files.extend(of(true));
        Some(Missing { to, files, foreign })
    }
}

/// A checkpoint of the ledger, and the ids of all objects that landed up to it.
pub type Base<'a> = (u64, &'a Ids);

/// Reads the ledger's new entries into `known`. True if one of them is `batch`. What landed up to `base` has
/// to stand there.
pub async fn catch_up(
    log: &mut Log,
    known: &Known,
    batch: Option<&str>,
    base: Option<Base<'_>>,
) -> Result<bool, TableError> {
    let (mut found, mut stray) = (false, None);
    log.catch_up(|version, commit: ReadCommit, written_ms| {
        if let Some(protocol) = commit.protocol {
            known.has_protocol(protocol);
        }
        if commit.fence {
            known.fenced(Fence { version, written_ms });
        }
        if let Some(to) = commit.txn {
            known.settles(to);
        }
        if commit.foreign_delete || commit.repair {
            *known.foreign_delete.write() = commit.foreign_delete.then_some(version);
        }
        if commit.foreign_append || commit.repair {
            *known.foreign_append.write() = commit.foreign_append.then_some(version);
        }
        if let (Some(landing), Some((checkpoint, ids))) = (&commit.landing, base)
            && version <= checkpoint
            && !landing.objects.iter().all(|object| ids.contains(*object))
        {
            stray = Some(version);
            return;
        }
        if let (Some(from), Some(before)) = (commit.from, known.landed())
            && from != before
        {
            *known.overwritten.write() = Some((version, from));
        } else if commit.repair {
            *known.overwritten.write() = None;
        }
        if let Some(landing) = commit.landing {
            let own = batch == Some(landing.batch.as_str());
            found |= own;
            known.apply(version, landing, own);
        }
        known.reaches(version);
    })
    .await?;
    commit::check_protocol(*known.protocol.read())
        .map_err(|message| TableError::Layout { table: log.table.clone(), message })?;
    match stray {
        Some(version) => {
            let what = format!(
                "what log entry {version} landed is not in its rows: another engine took rows out, or the log was removed or restored"
            );
            Err(TableError::damaged(&log.table, what))
        }
        None => Ok(found),
    }
}
