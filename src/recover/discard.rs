//! Deletes rejects for good, without decoding them: those that nobody will fix.
//!
//! Files with only selected rejects are removed as a whole, the others are rewritten without these. What was
//! rejected stays in the ledger: it counts as seen, and never lands again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::AsArray as _;
use arrow::datatypes::TimestampMicrosecondType;
use futures::StreamExt as _;

use super::rejects::Chosen;
use super::replay::ReplayError;
use crate::base::store::Store;
use crate::decode::object::RowId;
use crate::format::read;
use crate::land::batch::Tables;
use crate::maintain::input::InputError;
use crate::maintain::remove::{Removal, Removed};
use crate::maintain::rewrite::RewriteError;
use crate::schema::Standard;
use crate::table::{Change, DataFile, Lake, Replaced, Upkeep, open_tables};

/// How often the table is looked through anew because others had changed it meanwhile.
const MOST_TRIES: u32 = 8;

/// What to take out, and where.
pub struct Discard {
    pub tables: Arc<Tables>,
    pub store: Store,
    /// The lake to write to; without it rejects are counted, and nothing is written.
    pub lake: Option<Arc<Lake>>,
    /// Bytes that it may take.
    pub memory: usize,
    /// Bytes that a file is meant to have.
    pub target: u64,
    pub chosen: Chosen,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// Rejects that are meant, by reason.
    pub found: BTreeMap<String, u64>,
    /// What became of them.
    pub removed: Removed,
}

/// What a look through the table found.
#[derive(Default)]
struct Meant {
    by_reason: BTreeMap<String, u64>,
    /// Files of which every row is meant.
    whole: Vec<DataFile>,
    /// Rows of other files, by their ids.
    rows: HashSet<RowId>,
}

impl Discard {
    /// Takes every reject out that is meant.
    pub async fn run(&self) -> Result<Discarded, ReplayError> {
        let name = &self.tables.failures.name;
        let Some(lake) = &self.lake else {
            let Some(table) = open_tables(&self.store, std::slice::from_ref(name)).await?.remove(0) else {
                return Ok(Discarded::default());
            };
            let meant = self.look(table.files()?).await.map_err(ReplayError::Discard)?;
            return Ok(Discarded { found: meant.by_reason, removed: Removed::default() });
        };
        // What a writer that died has left comes in first: else it would be there again at once.
        lake.settle().await?;
        let mut discarded = Discarded::default();
        for _ in 0..MOST_TRIES {
            let Some(mut table) = Upkeep::open(&self.store, name).await? else { return Ok(discarded) };
            let meant = match self.look(table.snapshot().files()?).await {
                // Someone else has merged a file, and vacuumed it since.
                Err(error) if error.is_gone() => continue,
                other => other.map_err(ReplayError::Discard)?,
            };
            if !meant.whole.is_empty() {
                let now =
                    self.store.now_micros().await.map_err(|error| ReplayError::Discard(error.into()))?;
                if table.replace(Change::Delete, &meant.whole, &[], now / 1000).await? != Replaced::Done {
                    continue;
                }
                discarded.removed.rows += meant.whole.iter().map(|file| file.rows).sum::<u64>();
            }
            for (reason, count) in meant.by_reason {
                *discarded.found.entry(reason).or_default() += count;
            }
            if !meant.rows.is_empty() {
                let removed = self.remove(meant.rows).await.map_err(ReplayError::Discard)?;
                discarded.removed =
                    Removed { rows: discarded.removed.rows + removed.rows, overtaken: removed.overtaken };
            }
            return Ok(discarded);
        }
        discarded.removed.overtaken = true;
        Ok(discarded)
    }

    /// Looks for what is meant, without the rejects' bytes.
    async fn look(&self, files: Vec<DataFile>) -> Result<Meant, RewriteError> {
        let mut meant = Meant::default();
        for file in files.into_iter().filter(|file| self.chosen.may_be_in(file)) {
            let (mut fits, mut rows) = (0, 0);
            let by_reason = &mut meant.by_reason;
            let counted = self.each(&file, |_, reason, is_meant| {
                rows += 1;
                if is_meant {
                    fits += 1;
                    *by_reason.entry(reason.to_owned()).or_default() += 1;
                }
            });
            counted.await?;
            if fits == rows {
                meant.whole.push(file);
            } else if fits > 0 {
                let ids = &mut meant.rows;
                // Only where some stay: ids take memory.
                self.each(&file, |id, _, is_meant| ids.extend(is_meant.then(|| RowId::parse(id)).flatten()))
                    .await?;
            }
        }
        Ok(meant)
    }

    /// Every reject of a file: its id, its reason, and whether it is meant.
    async fn each(
        &self,
        file: &DataFile,
        mut look: impl FnMut(&str, &str, bool),
    ) -> Result<(), RewriteError> {
        let spec = &self.tables.failures;
        let columns = [Standard::RowId.name(), "reason", Standard::ParseTime.name()];
        let failed = |source| {
            RewriteError::from(InputError::Read {
                location: file.location(&self.store, &spec.name).to_string(),
                source,
            })
        };
        let wanted = |name: &str| columns.contains(&name);
        let schema = columns.map(|name| spec.schema.index_of(name).expect("the table's columns"));
        let schema = Arc::new(spec.schema.project(&schema).expect("the table's columns"));
        let mut batches =
            read::stream(&self.store, spec, file, None, self.memory, wanted).await.map_err(failed)?;
        while let Some(batch) = batches.next().await {
            let batch = batch.and_then(|batch| read::adapt(&batch, &schema)).map_err(failed)?;
            let [id, reason, time] = [0, 1, 2].map(|n| batch.column(n));
            let (id, reason, time) = (
                id.as_string_view(),
                reason.as_string_view(),
                time.as_primitive::<TimestampMicrosecondType>(),
            );
            for row in 0..batch.num_rows() {
                look(id.value(row), reason.value(row), self.chosen.wants(reason.value(row), time.value(row)));
            }
        }
        Ok(())
    }

    async fn remove(&self, ids: HashSet<RowId>) -> Result<Removed, RewriteError> {
        let drop_rows = move |id: &str| RowId::parse(id).is_some_and(|id| ids.contains(&id));
        let (store, spec) = (self.store.clone(), self.tables.failures.clone());
        Removal { store, spec, target: self.target, memory: self.memory, drop_rows: Arc::new(drop_rows) }
            .run()
            .await
    }
}
