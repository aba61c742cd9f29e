//! The ledger in memory: which objects have landed, and what each table has still to get.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::RwLock;
use rustc_hash::FxHashSet;

use super::commit::{DataFile, Landing, ReadCommit};
use super::log::{Log, TableError};

/// Ledger versions with the files that they give to one table, oldest first.
type Versions = VecDeque<(u64, Vec<DataFile>)>;

/// What the ledger's log says, as far as it was read.
#[derive(Debug, Default)]
pub struct Known {
    objects: RwLock<FxHashSet<u128>>,
    pending: RwLock<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// The last version that was taken note of: a reading that begins anew comes by it again.
    version: Option<u64>,
    /// By table: what it is not known to have.
    tables: BTreeMap<String, Versions>,
}

impl Known {
    /// Whether the object has landed.
    pub fn contains(&self, object: u128) -> bool {
        self.objects.read().contains(&object)
    }

    /// How many objects have landed.
    pub fn len(&self) -> usize {
        self.objects.read().len()
    }

    /// Takes note of what a ledger version lands.
    pub fn apply(&self, version: u64, landing: Landing) {
        let mut pending = self.pending.write();
        if pending.version >= Some(version) {
            return;
        }
        pending.version = Some(version);
        for (table, files) in landing.adds.into_iter().filter(|(_, files)| !files.is_empty()) {
            pending.tables.entry(table).or_default().push_back((version, files));
        }
        drop(pending);
        // Only now: who finds an object here relies on its tables to be named above until they have it.
        self.objects.write().extend(landing.objects);
    }

    /// Takes note of objects whose log entries are gone: they stand in the ledger's table only.
    pub fn extend(&self, objects: impl IntoIterator<Item = u128>) {
        self.objects.write().extend(objects);
    }

    /// The tables that may have something to get, from `least` ledger versions on.
    pub fn lagging(&self, least: usize) -> Vec<String> {
        self.pending.read().tables.iter().filter(|(_, versions)| versions.len() >= least).map(|(table, _)| table.clone()).collect()
    }

    /// The files that a table at ledger version `has` has still to get, and the version it then is at.
    pub fn missing(&self, table: &str, has: u64) -> Option<(u64, Vec<DataFile>)> {
        let mut pending = self.pending.write();
        let versions = pending.tables.get_mut(table)?;
        while versions.front().is_some_and(|(version, _)| *version <= has) {
            versions.pop_front();
        }
        let to = versions.back()?.0;
        Some((to, versions.iter().flat_map(|(_, files)| files.iter().cloned()).collect()))
    }
}

/// Reads the ledger's new entries into `known`. True if one of them is `batch`.
pub async fn catch_up(log: &mut Log, known: &Known, batch: Option<&str>) -> Result<bool, TableError> {
    let mut found = false;
    log.catch_up(|version, commit: ReadCommit| {
        if let Some(landing) = commit.landing {
            found |= batch == Some(landing.batch.as_str());
            known.apply(version, landing);
        }
    })
    .await?;
    Ok(found)
}
