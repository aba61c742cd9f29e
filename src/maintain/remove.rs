//! Removes rows from a table, by their ids: the files that contain any are rewritten without them.
//!
//! It needs no lease: if someone else has removed one of its files first, the commit is abandoned, and the
//! table is scanned again.

use std::sync::Arc;

use arrow::array::Array as _;
use futures::StreamExt as _;

use super::compact::actual_layout;
use super::input::InputError;
use super::plan::{Bin, Why};
use super::rewrite::{RewriteError, Rewriter, RowFilter};
use crate::base::store::Store;
use crate::format::read;
use crate::table::{Change, DataFile, Replaced, TableSpec, Upkeep};

/// Files that are put in the place of others by one commit.
const FILES_PER_COMMIT: usize = 64;
/// How often it is begun anew because someone else was faster.
const MOST_TRIES: u32 = 8;

/// Which rows to take out of which table.
#[derive(Clone)]
pub struct Removal {
    pub store: Store,
    pub spec: TableSpec,
    /// Bytes that a file is meant to have.
    pub target: u64,
    /// Bytes that it may take.
    pub memory: usize,
    pub drop_rows: RowFilter,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Rows that were taken out.
    pub rows: u64,
    /// Whether others were faster, again and again: some of the rows may still be there.
    pub overtaken: bool,
}

/// Files on their way out, and those that take their place.
#[derive(Default)]
struct Group {
    removes: Vec<DataFile>,
    adds: Vec<DataFile>,
}

impl Removal {
    /// Takes the rows out, wherever they are by now.
    pub async fn run(&self) -> Result<Removed, RewriteError> {
        let mut removed = Removed::default();
        for _ in 0..MOST_TRIES {
            let Some(table) = Upkeep::open(&self.store, &self.spec.name).await? else { return Ok(removed) };
            if self.round(table, &mut removed.rows).await? {
                return Ok(removed);
            }
        }
        Ok(Removed { overtaken: true, ..removed })
    }

    /// Goes through the table's files, as they are now. False: it was overtaken, and has to look again.
    async fn round(&self, mut table: Upkeep, removed: &mut u64) -> Result<bool, RewriteError> {
        let rewriter = Rewriter {
            store: self.store.clone(),
            spec: Arc::new(actual_layout(&table, &self.spec)?),
            target: self.target,
            memory: self.memory,
            progress: Arc::default(),
            threads: None,
            drop_rows: Some(self.drop_rows.clone()),
        };
        let mut group = Group::default();
        for file in table.snapshot().files()? {
            match self.rewritten(&rewriter, &file).await {
                Ok(None) => {}
                Ok(Some(files)) => {
                    group.removes.push(file);
                    group.adds.extend(files);
                }
                // Someone else has merged it, and vacuumed it since.
                Err(error) if error.is_gone() => return Ok(false),
                Err(error) => return Err(error),
            }
            if group.removes.len() >= FILES_PER_COMMIT
                && !self.commit(&mut table, std::mem::take(&mut group), removed).await?
            {
                return Ok(false);
            }
        }
        self.commit(&mut table, group, removed).await
    }

    /// A file without the rows that go; none if it holds none of them.
    async fn rewritten(
        &self,
        rewriter: &Rewriter,
        file: &DataFile,
    ) -> Result<Option<Vec<DataFile>>, RewriteError> {
        let spec = &rewriter.spec;
        let failed = |source| {
            RewriteError::from(InputError::Read {
                location: file.location(&self.store, &spec.name).to_string(),
                source,
            })
        };
        let id = spec.id_column();
        let mut batches = read::stream(&self.store, spec, file, None, self.memory, |name| name == id)
            .await
            .map_err(failed)?;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(failed)?;
            if read::ids(spec, &batch)
                .is_some_and(|ids| (0..ids.len()).any(|row| (self.drop_rows)(ids.value(row))))
            {
                let partition = file.partition_values.clone();
                let bin = Bin { partition, inputs: vec![file.clone()], cuts: Vec::new(), why: Why::Small };
                return rewriter.run(&bin, ()).await.map(Some);
            }
        }
        Ok(None)
    }

    async fn commit(
        &self,
        table: &mut Upkeep,
        group: Group,
        removed: &mut u64,
    ) -> Result<bool, RewriteError> {
        let Group { removes, adds } = group;
        if removes.is_empty() {
            return Ok(true);
        }
        let now_ms = self.store.now_micros().await? / 1000;
        let replaced = table.replace(Change::Delete, &removes, &adds, now_ms).await?;
        // What was written for nothing is left to vacuum: a put of which nothing is known may still name it.
        if replaced != Replaced::Done {
            tracing::info!(table = table.name(), "removing rows was overtaken, starting again");
            return Ok(false);
        }
        let rows = |files: &[DataFile]| files.iter().map(|file| file.rows).sum::<u64>();
        *removed += rows(&removes) - rows(&adds);
        Ok(true)
    }
}
