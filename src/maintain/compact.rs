//! Compaction of one table: plan, run, and commit each merge by itself, until there is nothing left to do.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::datatypes::{FieldRef, Fields, Schema};
use futures::StreamExt as _;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::plan::{Bin, Policy, plan};
use super::rewrite::{Progress, RewriteError, Rewriter};
use crate::base::Watch;
use crate::base::panics::caught;
use crate::base::store::Store;
use crate::config::Partitioning;
use crate::table::{Change, DataFile, Replaced, TableError, TableSpec, Upkeep};

/// How often a table is planned anew. Plans come to an end long before, unless something is wrong.
const MOST_ROUNDS: u32 = 32;

/// Merges that are being uploaded, read back and committed, beside those that have a turn.
const MERGES_ENDING: usize = 2;

#[derive(Clone)]
pub struct Compaction {
    pub store: Store,
    /// What to merge, by the time at which it began.
    pub policy: Policy,
    /// Started then.
    pub began: Watch,
    /// Bytes that all merges at once may take.
    pub memory: usize,
    /// Merges at once.
    pub at_once: usize,
    /// Threads that encode what they write, together.
    pub encoders: usize,
    /// What a progress display reads.
    pub progress: Arc<Progress>,
    /// Set from outside: no further merge is begun.
    pub stop: CancellationToken,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// Merges that were committed.
    pub merges: u64,
    /// Files that were taken out.
    pub files_in: u64,
    pub bytes_in: u64,
    pub rows: u64,
    /// Files that were put in their place.
    pub files_out: u64,
    pub bytes_out: u64,
    /// Merges that were given up because someone else was faster.
    pub overtaken: u64,
    /// What could not be merged, and why. Everything else was.
    pub failed: Vec<String>,
    /// How long merging took, without waiting for other maintainers.
    pub took: Duration,
}

impl Compacted {
    /// Adds what came of another table.
    pub fn add(&mut self, other: Self) {
        self.merges += other.merges;
        self.files_in += other.files_in;
        self.bytes_in += other.bytes_in;
        self.rows += other.rows;
        self.files_out += other.files_out;
        self.bytes_out += other.bytes_out;
        self.overtaken += other.overtaken;
        self.failed.extend(other.failed);
        self.took += other.took;
    }
}

/// The files of a table that can be merged: those of no partition at all are another engine's, and stay.
fn mergeable(table: &Upkeep) -> Result<Vec<DataFile>, TableError> {
    let by = table.snapshot().partition_columns()?;
    Ok(table.snapshot().files()?.into_iter().filter(|file| file.partition_values.len() == by.len()).collect())
}

impl Compaction {
    /// What would be merged first in a table as it is now, if these files were not in it.
    pub async fn plan(&self, name: &str, without: &[DataFile]) -> Result<Vec<Bin>, TableError> {
        let Some(table) = Upkeep::open(&self.store, name).await? else { return Ok(Vec::new()) };
        let mut files = mergeable(&table)?;
        files.retain(|file| !without.iter().any(|other| other.path == file.path));
        Ok(plan(&files, &self.policy))
    }

    /// Merges until nothing is left to merge. What fails is left out, and told.
    pub async fn run(&self, spec: &TableSpec) -> Result<Compacted, TableError> {
        let mut all = Compacted::default();
        let mut left_out: HashSet<String> = HashSet::new();
        for _ in 0..MOST_ROUNDS {
            let Some(table) = Upkeep::open(&self.store, &spec.name).await? else { return Ok(all) };
            let mut files = mergeable(&table)?;
            files.retain(|file| !left_out.contains(&file.path));
            let bins = plan(&files, &self.policy);
            if bins.is_empty() || self.stop.is_cancelled() {
                return Ok(all);
            }
            let began = self.store.clock.watch();
            let round = self.round(table, spec, bins, &mut left_out).await?;
            all.took += began.elapsed();
            let is_stuck = round.merges == 0 && round.overtaken == 0 && round.failed.is_empty();
            all.add(round);
            if is_stuck {
                return Ok(all);
            }
        }
        tracing::warn!(
            table = spec.name,
            "compaction stopped after {MOST_ROUNDS} rounds with work left; the next run goes on"
        );
        Ok(all)
    }

    async fn round(
        &self,
        table: Upkeep,
        spec: &TableSpec,
        bins: Vec<Bin>,
        left_out: &mut HashSet<String>,
    ) -> Result<Compacted, TableError> {
        let at_once = self.at_once.clamp(1, bins.len());
        self.progress.bins.fetch_add(bins.len() as u64, Ordering::Relaxed);
        self.progress.rows.fetch_add(bins.iter().map(Bin::rows).sum(), Ordering::Relaxed);
        let rewriter = Rewriter {
            store: self.store.clone(),
            spec: Arc::new(actual_layout(&table, spec)?),
            target: self.policy.target,
            memory: self.memory / at_once,
            progress: self.progress.clone(),
            threads: encoders(self.encoders),
            drop_rows: None,
        };
        let (table, turns) = (Arc::new(Mutex::new(table)), Arc::new(Semaphore::new(at_once)));
        let merges = futures::stream::iter(bins).map(|bin| {
            let (own, rewriter, table, turns) =
                (self.clone(), rewriter.clone(), table.clone(), turns.clone());
            async move {
                let turn = turns.acquire_owned().await.expect("nobody closes it");
                let merged = if own.stop.is_cancelled() {
                    Ok(Compacted::default())
                } else {
                    let merged = caught(own.merge(&rewriter, &table, &bin, turn)).await;
                    merged.unwrap_or_else(|said| Err(own.panicked(&rewriter.spec.name, &bin, said)))
                };
                (bin, merged)
            }
        });
        let merged: Vec<_> = merges.buffer_unordered(at_once + MERGES_ENDING).collect().await;
        let mut all = Compacted::default();
        for (bin, merged) in merged {
            match merged {
                Ok(merged) => all.add(merged),
                Err(error) => {
                    tracing::error!("{error}");
                    let is_named = |file: &&DataFile| {
                        error.location() == Some(file.location(&self.store, &spec.name).as_ref())
                    };
                    let named: Vec<String> =
                        bin.inputs.iter().filter(is_named).map(|file| file.path.clone()).collect();
                    // What is not known to be one file's fault is all files' of the merge.
                    left_out.extend(if named.is_empty() {
                        bin.inputs.into_iter().map(|file| file.path).collect()
                    } else {
                        named
                    });
                    all.failed.push(error.to_string());
                }
            }
        }
        Ok(all)
    }

    /// A merge that panics costs itself: else it would keep all others from ever being done.
    fn panicked(&self, table: &str, bin: &Bin, said: String) -> RewriteError {
        let first = bin.inputs.first().map(|file| file.path.clone()).unwrap_or_default();
        RewriteError::Panicked { table: table.to_owned(), files: bin.inputs.len(), first, said }
    }

    async fn merge(
        &self,
        rewriter: &Rewriter,
        table: &Mutex<Upkeep>,
        bin: &Bin,
        turn: OwnedSemaphorePermit,
    ) -> Result<Compacted, RewriteError> {
        let overtaken = Compacted { overtaken: 1, ..Compacted::default() };
        let written = match rewriter.run(bin, turn).await {
            Ok(written) => written,
            // Another upkeep has merged it, and vacuumed it since; unless the log still names it.
            Err(error) if error.is_gone() && !self.is_named(&rewriter.spec.name, &bin.inputs).await? => {
                return Ok(overtaken);
            }
            Err(error) => return Err(error),
        };
        let change = Change::Compact { target: self.policy.target };
        let now_ms = self.policy.now / 1000 + self.began.elapsed().as_millis() as i64;
        let replaced = table.lock().await.replace(change, &bin.inputs, &written, now_ms).await?;
        // What was written for nothing is left to vacuum: a put that was not answered (S1) may still name it.
        if replaced != Replaced::Done {
            tracing::info!(table = rewriter.spec.name, partition = ?bin.partition, "a merge was given up: {replaced:?}");
            return Ok(overtaken);
        }
        Ok(Compacted {
            merges: 1,
            files_in: bin.inputs.len() as u64,
            bytes_in: bin.bytes(),
            rows: bin.rows(),
            files_out: written.len() as u64,
            bytes_out: written.iter().map(|file| file.size).sum(),
            ..Compacted::default()
        })
    }

    /// Whether all these files are in the table as it is now.
    async fn is_named(&self, name: &str, files: &[DataFile]) -> Result<bool, TableError> {
        let Some(table) = Upkeep::open(&self.store, name).await? else { return Ok(false) };
        let there: HashSet<String> = table.snapshot().files()?.into_iter().map(|file| file.path).collect();
        Ok(files.iter().all(|file| there.contains(&file.path)))
    }
}

/// Threads that end with the work; none if there would be one alone.
fn encoders(count: usize) -> Option<Arc<ThreadPool>> {
    let threads = ThreadPoolBuilder::new().num_threads(count).thread_name(|_| "encode".into());
    (count > 1).then(|| Arc::new(threads.build().expect("the system gives threads")))
}

/// The table with the columns that it really has: another engine may have added some, and they are kept.
pub fn actual_layout(table: &Upkeep, spec: &TableSpec) -> Result<TableSpec, TableError> {
    let (columns, by) = (table.snapshot().columns()?, table.snapshot().partition_columns()?);
    let partitioning = [None, Some(Partitioning::Day), Some(Partitioning::Hour)];
    let found =
        partitioning.into_iter().find(|p| p.map_or(&[][..], Partitioning::columns).iter().eq(by.iter()));
    let Some(partitioning) = found else {
        let message = format!("it is partitioned by {}, which flarelake does not write", by.join(", "));
        return Err(TableError::Layout { table: spec.name.clone(), message });
    };
    let own = columns.fields().iter().filter(|field| !by.contains(field.name()));
    let fields: Fields = own.map(|field| known(field, spec)).collect();
    Ok(TableSpec { schema: Arc::new(Schema::new(fields)), partitioning, ..spec.clone() })
}

/// A column as flarelake holds it: text in views, maps with the key names that it writes.
fn known(field: &FieldRef, spec: &TableSpec) -> FieldRef {
    match spec.schema.field_with_name(field.name()) {
        Ok(known) => Arc::new(known.clone().with_nullable(field.is_nullable())),
        Err(_) => field.clone(),
    }
}
