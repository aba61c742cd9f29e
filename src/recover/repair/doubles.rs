//! Rows of the ledger that stand in it more than once, because another engine added them once more: one of
//! each stays.

use std::sync::Arc;

use futures::StreamExt as _;
use parking_lot::Mutex;
use parquet::errors::ParquetError;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{READING, RepairError};
use crate::base::store::Store;
use crate::decode::object::ObjectId;
use crate::format::read;
use crate::maintain::plan::{Bin, Why};
use crate::maintain::rewrite::Rewriter;
use crate::table::{DataFile, TableSpec};

/// Where they are looked for.
pub struct Doubles<'a> {
    /// Where the lake is.
    pub store: &'a Store,
    /// The ledger, with the columns that it has.
    pub spec: Arc<TableSpec>,
    /// Bytes that a file is meant to have.
    pub target: u64,
    /// Bytes that writing files anew may take.
    pub memory: usize,
}

/// Files that have such rows, and those with one of each, which no log names yet.
#[derive(Debug, Default)]
pub struct Undoubled {
    /// What goes.
    pub removes: Vec<DataFile>,
    /// What takes its place.
    pub adds: Vec<DataFile>,
}

impl Doubles<'_> {
    /// Looks through the ledger's files.
    pub async fn run(&self, files: Vec<DataFile>) -> Result<Undoubled, RepairError> {
        // By object, the file that it was last met in; and those files and objects that something is to be
        // done about.
        let (mut met, mut doubled, mut meant) =
            (FxHashMap::default(), FxHashSet::default(), FxHashSet::default());
        for (at, file) in files.iter().enumerate() {
            let each = |id: ObjectId| {
                if let Some(before) = met.insert(id, at) {
                    doubled.insert(id);
                    meant.extend([before, at]);
                }
            };
            let failed = |source| RepairError::Read {
                location: file.location(self.store, &self.spec.name).to_string(),
                source,
            };
            self.ids(file, each).await.map_err(failed)?;
        }
        if doubled.is_empty() {
            return Ok(Undoubled::default());
        }
        let removes: Vec<DataFile> = files
            .into_iter()
            .enumerate()
            .filter(|(at, _)| meant.contains(at))
            .map(|(_, file)| file)
            .collect();
        // Asked once a row: the first of each stays.
        let left = Mutex::new(doubled.clone());
        let goes = move |id: &str| {
            ObjectId::parse(id).is_some_and(|id| doubled.contains(&id) && !left.lock().remove(&id))
        };
        let rewriter = Rewriter {
            store: self.store.clone(),
            spec: self.spec.clone(),
            target: self.target,
            memory: self.memory,
            progress: Arc::default(),
            threads: None,
            goes: Some(Arc::new(goes)),
        };
        let bin =
            Bin { partition: Default::default(), inputs: removes.clone(), cuts: Vec::new(), why: Why::Small };
        Ok(Undoubled { removes, adds: rewriter.run(&bin, ()).await? })
    }

    async fn ids(&self, file: &DataFile, mut each: impl FnMut(ObjectId)) -> Result<(), ParquetError> {
        let id = self.spec.id_column();
        let mut batches =
            read::stream(self.store, &self.spec, file, None, READING, |name| name == id).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let ids = read::ids(&self.spec, &batch).into_iter().flatten();
            ids.flatten().filter_map(ObjectId::parse).for_each(&mut each);
        }
        Ok(())
    }
}
