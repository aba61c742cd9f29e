//! Removes duplicate rows from the ledger, which another engine has added: one of each stays.

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Anew, RepairError, each_id};
use crate::decode::object::ObjectId;
use crate::table::DataFile;

/// Where they are looked for: the ledger, with the columns that it has.
pub struct Doubles(pub(super) Anew);

/// Files that have such rows, and those with one of each, which no log names yet.
#[derive(Debug, Default)]
pub struct Undoubled {
    /// What goes.
    pub removes: Vec<DataFile>,
    /// What takes its place.
    pub adds: Vec<DataFile>,
}

impl Doubles {
    /// Looks through the ledger's files.
    pub async fn run(&self, files: Vec<DataFile>) -> Result<Undoubled, RepairError> {
        let Anew { store, spec, .. } = &self.0;
        // By object, the file that it was last met in; and those files and objects that something is to be
        // done about.
        let (mut met, mut doubled, mut meant) =
            (FxHashMap::default(), FxHashSet::default(), FxHashSet::default());
        for (at, file) in files.iter().enumerate() {
            let each = |id: Option<&str>| {
                let Some(id) = id.and_then(ObjectId::parse) else { return };
                if let Some(before) = met.insert(id, at) {
                    doubled.insert(id);
                    meant.extend([before, at]);
                }
            };
            let failed =
                |source| RepairError::Read { location: file.location(store, &spec.name).to_string(), source };
            each_id(store, spec, file, each).await.map_err(failed)?;
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
        Ok(Undoubled { adds: self.0.without(removes.clone(), goes).await?, removes })
    }
}
