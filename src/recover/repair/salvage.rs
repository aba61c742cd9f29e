//! Finds rows that landed in a table but are no longer in its log, by their ids in the files below its
//! folder.
//!
//! A merge's outputs hold the rows of its inputs, and both may be there, whole or in part. So files are not
//! judged by name: each row is taken once, from the largest file that has it. A file whose rows are all
//! wanted is taken as it is; from another the wanted rows are rewritten.

use std::collections::{BTreeMap, HashSet};

use parking_lot::Mutex;
use parquet::errors::ParquetError;
use roaring::RoaringTreemap;
use rustc_hash::FxHashMap;

use super::{Anew, RepairError, each_id};
use crate::config::Partitioning;
use crate::decode::object::{ObjectId, RowId};
use crate::format::read;
use crate::format::write::describe;
use crate::maintain::input::InputError;
use crate::maintain::rewrite::RewriteError;
use crate::maintain::vacuum::ListedFile;
use crate::table::{DataFile, file_location};

/// Where rows are looked for, and which.
pub struct Salvage<'a> {
    /// The table, with the columns and the partitioning that it has.
    pub(super) anew: Anew,
    /// What the ledger tells of a row.
    pub state: &'a (dyn Fn(RowId) -> RowState + Sync),
}

/// What the ledger tells of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowState {
    /// It landed, and belongs into the table.
    Landed,
    /// It was a reject, and was replayed.
    Replayed,
    /// It tells nothing of it.
    Unknown,
}

#[derive(Debug, Default)]
pub struct Salvaged {
    /// The files that hold what was found, which no log names yet.
    pub files: Vec<DataFile>,
    /// Rows in files that the ledger does not tell of.
    pub unwanted: u64,
    /// Files that were left out, and why.
    pub left_out: Vec<String>,
}

/// The rows of a folder: by object, their offsets.
#[derive(Default, Clone)]
struct Rows(FxHashMap<ObjectId, RoaringTreemap>);

impl Rows {
    /// False if it is there already.
    fn insert(&mut self, id: RowId) -> bool {
        self.0.entry(id.object).or_default().insert(id.offset)
    }

    fn contains(&self, id: RowId) -> bool {
        self.0.get(&id.object).is_some_and(|offsets| offsets.contains(id.offset))
    }

    fn add(&mut self, others: Self) {
        others.0.into_iter().for_each(|(object, offsets)| *self.0.entry(object).or_default() |= offsets);
    }

    fn remove(&mut self, id: RowId) -> bool {
        self.0.get_mut(&id.object).is_some_and(|offsets| offsets.remove(id.offset))
    }
}

impl Salvage<'_> {
    /// Looks through the files of `listed` that are not among `named`, those that the table's log names.
    pub async fn run(&self, named: &[DataFile], listed: &[ListedFile]) -> Result<Salvaged, RepairError> {
        let mut folders: BTreeMap<&str, Vec<&ListedFile>> = BTreeMap::new();
        let known: HashSet<_> =
            named.iter().map(|file| file.location(&self.anew.store, &self.anew.spec.name)).collect();
        for file in listed.iter().filter(|file| {
            !known.contains(&file_location(&self.anew.store, &self.anew.spec.name, &file.path))
        }) {
            folders.entry(folder(&file.path)).or_default().push(file);
        }
        let mut found = Salvaged::default();
        for (name, mut files) in folders {
            let mut rows = Rows::default();
            for file in named.iter().filter(|file| folder(&file.path) == name) {
                let failed = |source| RepairError::Read {
                    location: file.location(&self.anew.store, &self.anew.spec.name).to_string(),
                    source,
                };
                self.ids(file, |id| _ = id.map(|id| rows.insert(id))).await.map_err(failed)?;
            }
            files.sort_unstable_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
            for file in files {
                if let Err(source) = self.take(file, &mut rows, &mut found).await? {
                    found.left_out.push(format!("{}: it can't be read: {source}", file.path));
                }
            }
        }
        Ok(found)
    }

    /// Takes what a file has that is wanted and was in none before. Of a file that can't be read nothing is
    /// taken, and its rows are still looked for in the others.
    async fn take(
        &self,
        listed: &ListedFile,
        rows: &mut Rows,
        found: &mut Salvaged,
    ) -> Result<Result<(), ParquetError>, RewriteError> {
        let place = file_location(&self.anew.store, &self.anew.spec.name, &listed.path);
        let footer = match read::footer(&self.anew.store, place, listed.size).await {
            Ok(footer) => footer,
            Err(error) => return Ok(Err(error)),
        };
        let file = describe(&self.anew.spec, &listed.path, listed.size, listed.written_ms, &footer);
        let columns = self.anew.spec.partitioning.map_or(&[][..], Partitioning::columns);
        if !file.partition_values.keys().map(String::as_str).eq(columns.iter().copied()) {
            found.left_out.push(format!("{}: it is not in a folder by {}", file.path, columns.join(" and ")));
            return Ok(Ok(()));
        }
        let (mut all, mut unwanted, mut taken, mut fresh) = (0, 0, 0, Rows::default());
        let read = self
            .ids(&file, |id| {
                all += 1;
                match id.map_or(RowState::Unknown, self.state) {
                    RowState::Landed => {
                        taken += id.map_or(0, |id| u64::from(!rows.contains(id) && fresh.insert(id)))
                    }
                    RowState::Replayed => {}
                    RowState::Unknown => unwanted += 1,
                }
            })
            .await;
        if let Err(error) = read {
            return Ok(Err(error));
        }
        match taken {
            0 => {}
            taken if taken == all => found.files.push(file),
            _ => match self.rewritten(file, fresh.clone()).await {
                Ok(files) => found.files.extend(files),
                Err(RewriteError::Read(InputError::Read { source, .. })) => return Ok(Err(source)),
                Err(error) => return Err(error),
            },
        }
        rows.add(fresh);
        found.unwanted += unwanted;
        Ok(Ok(()))
    }

    /// These rows of a file, written anew.
    async fn rewritten(&self, file: DataFile, rows: Rows) -> Result<Vec<DataFile>, RewriteError> {
        // Asked once a row: should a file have a row twice, one of them stays.
        let rows = Mutex::new(rows);
        let goes = move |id: &str| RowId::parse(id).is_none_or(|id| !rows.lock().remove(id));
        self.anew.without(vec![file], goes).await
    }

    async fn ids(&self, file: &DataFile, mut each: impl FnMut(Option<RowId>)) -> Result<(), ParquetError> {
        each_id(&self.anew.store, &self.anew.spec, file, |id| each(id.and_then(RowId::parse))).await
    }
}

/// How a table is partitioned whose files lie in these folders; none if they don't tell.
pub fn partitioning(listed: &[ListedFile]) -> Option<Partitioning> {
    let columns = |file: &ListedFile| {
        folder(&file.path)
            .split('/')
            .filter_map(|part| Some(part.split_once('=')?.0.to_owned()))
            .collect::<Vec<_>>()
    };
    listed.iter().find_map(|file| {
        [Partitioning::Hour, Partitioning::Day].into_iter().find(|by| columns(file) == by.columns())
    })
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}
