//! All upkeep of a lake: what is done, in which order, and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::MaintainError;
use super::compact::{Compacted, Compaction};
use super::lease::Lease;
use super::plan::{Bin, Policy, partition_end};
use super::rewrite::Progress;
use super::schedule::until_next;
use super::vacuum::{self, Ages, ListedFile, NEVER_NAMED};
use crate::base::clock;
use crate::base::store::Store;
use crate::base::{Watch, new_uuid};
use crate::config::{Every, Maintenance};
use crate::ingest::metrics::Metrics;
use crate::table::{
    Change, DataFile, FAILURES_TABLE, LEAST_LOG, LEDGER_TABLE, Lake, Replaced, TableError, TableSpec, Upkeep,
};

/// Of a merge's memory the part for files that are open.
const OPEN_PART: usize = 4;
/// How often a table's expired partitions are looked for anew because someone else had changed them.
const MOST_TRIES: u32 = 5;
/// How much this machine's clock may differ from the store's. Nothing is deleted by this machine's clock; one
/// that is wrong tells that something is, and schedules and stamps go by it.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(600);
/// Rows are not dropped within this time after they landed, however old they are.
const SEEN: Duration = Duration::from_secs(86_400);

#[derive(Clone)]
pub struct Maintainer {
    pub store: Store,
    /// The lake, to write to; without it there are only plans and dry runs.
    pub lake: Option<Arc<Lake>>,
    pub tables: Arc<Vec<TableSpec>>,
    pub settings: Maintenance,
    /// How long a table's rows are kept, by its name.
    pub retention: BTreeMap<String, Duration>,
    /// Bytes that merges may take.
    pub memory: usize,
    /// Merges at once.
    pub at_once: usize,
    /// Threads that encode what they write, together.
    pub encoders: usize,
    /// A checkpoint is written when it spares readers this many log entries.
    pub checkpoint_every: u64,
    /// How long a maintainer that died is waited for.
    pub lease_term: Duration,
    /// What a progress display reads.
    pub progress: Arc<Progress>,
    /// Where scheduled runs are counted, if anyone looks.
    pub metrics: Option<Arc<Metrics>>,
    /// Set from outside: nothing further is begun.
    pub stop: CancellationToken,
}

/// What retention, vacuum and log clean-up did, or would do.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tidied {
    /// Partitions that were dropped, with their files, by table.
    pub dropped: BTreeMap<String, Vec<DataFile>>,
    /// Files that were deleted, by table.
    pub deleted: BTreeMap<String, Vec<ListedFile>>,
    /// Files that a dead writer had begun in a local lake.
    pub unfinished: u64,
    /// Log entries that were removed.
    pub log_entries: u64,
    /// Checkpoints that were written, by table, with their version.
    pub checkpoints: BTreeMap<String, u64>,
}

/// What all upkeep would begin with, as the lake is now.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct UpkeepPreview {
    /// What dead workers left to be brought into the tables, by table.
    pub missing: BTreeMap<String, Vec<DataFile>>,
    /// What would be merged, by table.
    pub merges: Vec<(String, Vec<Bin>)>,
    /// What would be freed.
    pub tidied: Tidied,
}

impl Maintainer {
    /// # Panics
    /// Without a lake.
    fn lake(&self) -> &Lake {
        self.lake.as_ref().expect("a maintainer that writes has a lake")
    }

    fn ages(&self) -> Ages {
        Ages { taken_out: self.settings.vacuum_after, never_named: NEVER_NAMED }
    }

    /// `now` is the time, in microseconds since the epoch.
    fn compaction(&self, now: i64, patient: bool, stop: CancellationToken) -> Compaction {
        Compaction {
            store: self.store.clone(),
            policy: Policy {
                target: self.settings.target_file_size.as_u64(),
                now,
                open_bytes: (self.memory / self.at_once.max(1) / OPEN_PART) as u64,
                patient,
            },
            began: self.store.clock.watch(),
            memory: self.memory,
            at_once: self.at_once,
            encoders: self.encoders,
            progress: self.progress.clone(),
            stop,
        }
    }

    /// What would be merged first, by table.
    pub async fn plan(&self, tables: &[&TableSpec]) -> Result<Vec<(String, Vec<Bin>)>, MaintainError> {
        let compaction = self.compaction(self.store.clock.now_micros(), false, self.stop.clone());
        let mut plans = Vec::new();
        for spec in tables {
            plans.push((spec.name.clone(), compaction.plan(&spec.name, &[]).await?));
        }
        Ok(plans)
    }

    /// Compacts these tables, under the lease.
    pub async fn compact(&self, tables: &[&TableSpec]) -> Result<Compacted, MaintainError> {
        self.under_lease(async |now, stop| {
            self.lake().settle().await?;
            self.compact_all(tables, now, false, stop).await
        })
        .await
    }

    /// Everything, once, under the lease; nothing waits.
    pub async fn once(&self) -> Result<(Compacted, Tidied), MaintainError> {
        self.check_retention()?;
        self.under_lease(async |now, stop| self.work(now, true, false, stop).await).await
    }

    /// All steps in their order. `now` is the store's time; `tidies`: whether retention, vacuum and clean-up
    /// are due.
    async fn work(
        &self,
        now: i64,
        tidies: bool,
        patient: bool,
        stop: CancellationToken,
    ) -> Result<(Compacted, Tidied), MaintainError> {
        self.lake().settle().await?;
        let mut tidied = Tidied::default();
        if tidies {
            tidied.dropped = self.drop_expired(now, false).await?;
        }
        let tables: Vec<&TableSpec> = self.tables.iter().collect();
        let compacted = self.compact_all(&tables, now, patient, stop.clone()).await?;
        tidied.checkpoints = self.checkpoint().await?;
        if tidies {
            self.tidy(now, &mut tidied, &stop).await?;
        }
        Ok((compacted, tidied))
    }

    /// What [`Maintainer::once`] would do to the lake as it is now, if this machine's clock is right. Nothing
    /// is written.
    pub async fn preview(&self) -> Result<UpkeepPreview, MaintainError> {
        self.check_retention()?;
        let now = self.store.clock.now_micros();
        let compaction = self.compaction(now, false, self.stop.clone());
        let missing = Lake::missing(&self.store).await?;
        let mut dropped = self.drop_expired(now, true).await?;
        for (name, keep) in &self.retention {
            // What is brought in is dropped at once, if it is as old.
            let expired =
                missing.get(name).into_iter().flatten().filter(|file| is_expired(name, file, *keep, now));
            let expired: Vec<DataFile> = expired.cloned().collect();
            if !expired.is_empty() {
                dropped.entry(name.clone()).or_default().extend(expired);
            }
        }
        let mut preview =
            UpkeepPreview { missing, merges: Vec::new(), tidied: Tidied { dropped, ..Tidied::default() } };
        let UpkeepPreview { missing, merges, tidied } = &mut preview;
        let files_of = |tables: &BTreeMap<String, Vec<DataFile>>, name: &str| {
            tables.get(name).cloned().unwrap_or_default()
        };
        for spec in self.tables.iter() {
            let name = &spec.name;
            let Some(table) = Upkeep::open(&self.store, name).await? else { continue };
            let bins = compaction.plan(name, &files_of(&tidied.dropped, name)).await?;
            let commits = bins.len() as u64
                + u64::from(missing.contains_key(name))
                + u64::from(tidied.dropped.contains_key(name));
            if self.is_checkpoint_due(&table, table.version() + commits).await? {
                let mark = u64::from(name == LEDGER_TABLE);
                tidied.checkpoints.insert(name.clone(), table.version() + commits + mark);
            }
            let found = vacuum::look(&self.store, name, now / 1000, self.ages()).await?;
            let mut files = found.map_or(Vec::new(), |found| found.files);
            // What has landed is named as soon as it is brought in.
            files.retain(|file| !files_of(missing, name).iter().any(|landed| landed.path == file.path));
            if !files.is_empty() {
                tidied.deleted.insert(name.clone(), files);
            }
            tidied.log_entries += table.old_log(self.oldest_log(now)).await?.len() as u64;
            merges.push((name.clone(), bins));
        }
        preview.tidied.unfinished = self.unfinished(now, true).await?;
        Ok(preview)
    }

    /// Keeps the lake on its schedules until it is stopped. What fails is told, and tried again when it is
    /// next due.
    pub async fn run(&self) -> Result<(), MaintainError> {
        self.check_retention()?;
        let clock = &self.store.clock;
        let due = |every: &Every| (clock.watch(), until_next(every, clock.now_micros()));
        let left = |(since, wait): &(Watch, Duration)| wait.saturating_sub(since.elapsed());
        let mut compact = due(&self.settings.compact_every);
        // Workers that live shorter than the interval tidy up, too.
        let mut tidy = match self.settings.vacuum_every {
            Every::Interval(_) => compact.clone(),
            Every::Cron(_) => due(&self.settings.vacuum_every),
        };
        loop {
            tokio::select! {
                () = clock::sleep(left(&compact).min(left(&tidy))) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
            let tidies = left(&tidy).is_zero();
            if let Err(error) = self.scheduled(tidies).await {
                tracing::error!("upkeep: {error}");
                self.metrics.iter().for_each(|metrics| _ = metrics.upkeep_errors.inc());
            }
            // What takes longer than its interval is not begun twice at once.
            compact = due(&self.settings.compact_every);
            if tidies {
                tidy = due(&self.settings.vacuum_every);
            }
        }
    }

    /// One scheduled run; nothing if another maintainer is at it.
    async fn scheduled(&self, tidies: bool) -> Result<(), MaintainError> {
        let Some(lease) = Lease::take(&self.store, &holder(), self.lease_term, None).await? else {
            return Ok(());
        };
        let done = self.guarded(&lease, async |now, stop| self.work(now, tidies, true, stop).await).await;
        lease.give_back().await;
        let (compacted, tidied) = done?;
        self.report(&compacted, &tidied);
        Ok(())
    }

    async fn under_lease<T>(
        &self,
        work: impl AsyncFnOnce(i64, CancellationToken) -> Result<T, MaintainError>,
    ) -> Result<T, MaintainError> {
        let lease = Lease::take(&self.store, &holder(), self.lease_term, Some(&self.stop)).await?;
        let lease = lease.ok_or(MaintainError::Stopped)?;
        let done = self.guarded(&lease, work).await;
        lease.give_back().await;
        done
    }

    /// Runs with the store's time, under a token that ends when the lease is lost or a stop is asked for.
    async fn guarded<T>(
        &self,
        lease: &Lease,
        work: impl AsyncFnOnce(i64, CancellationToken) -> Result<T, MaintainError>,
    ) -> Result<T, MaintainError> {
        self.check_clock(lease.taken)?;
        let stop = self.stop.child_token();
        let watching = {
            let (lost, stop) = (lease.lost.clone(), stop.clone());
            tokio::spawn(async move {
                lost.cancelled().await;
                stop.cancel();
            })
        };
        let done = work(lease.taken, stop).await;
        watching.abort();
        if lease.lost.is_cancelled() { done.and(Err(MaintainError::Overtaken)) } else { done }
    }

    /// Refuses to work with a clock that is not the store's; `theirs` was the store's time moments ago.
    fn check_clock(&self, theirs: i64) -> Result<(), MaintainError> {
        let ours = self.store.clock.now_micros();
        if ours.abs_diff(theirs) <= MAX_CLOCK_DIFFERENCE.as_micros() as u64 {
            return Ok(());
        }
        let text = |micros| {
            chrono::DateTime::from_timestamp_micros(micros)
                .map_or_else(|| micros.to_string(), |time| time.to_rfc3339())
        };
        let store = self.store.url.to_string();
        Err(MaintainError::Clock {
            store,
            theirs: text(theirs),
            ours: text(ours),
            most: MAX_CLOCK_DIFFERENCE,
        })
    }

    async fn compact_all(
        &self,
        tables: &[&TableSpec],
        now: i64,
        patient: bool,
        stop: CancellationToken,
    ) -> Result<Compacted, MaintainError> {
        let compaction = self.compaction(now, patient, stop);
        let mut all = Compacted::default();
        for spec in tables {
            match compaction.run(spec).await {
                Ok(compacted) => all.add(compacted),
                // The other tables, and the other kinds of upkeep, are not to blame.
                Err(error) => {
                    tracing::error!("{error}");
                    all.failed.push(error.to_string());
                }
            }
        }
        Ok(all)
    }

    /// Writes a checkpoint of each table whose log has grown since the last.
    async fn checkpoint(&self) -> Result<BTreeMap<String, u64>, MaintainError> {
        let mut written = BTreeMap::new();
        for spec in self.tables.iter() {
            let Some(mut table) = Upkeep::open(&self.store, &spec.name).await? else { continue };
            if !self.is_checkpoint_due(&table, table.version()).await? {
                continue;
            }
            if spec.name == LEDGER_TABLE {
                // Who begins at a checkpoint of the ledger takes what is settled by it for brought into the
                // tables.
                self.lake().mark_settled().await?;
                let Some(marked) = Upkeep::open(&self.store, &spec.name).await? else { continue };
                table = marked;
            }
            written.insert(spec.name.clone(), table.checkpoint().await?);
        }
        Ok(written)
    }

    async fn is_checkpoint_due(&self, table: &Upkeep, version: u64) -> Result<bool, TableError> {
        let since = table.checkpointed().await?.map_or(0, |version| version + 1);
        Ok(version + 1 >= since + self.checkpoint_every)
    }

    /// Whether `[retention]` names tables that have partitions.
    pub fn check_retention(&self) -> Result<(), MaintainError> {
        let known: Vec<&str> = self
            .tables
            .iter()
            .filter(|spec| spec.partitioning.is_some())
            .map(|spec| spec.name.as_str())
            .collect();
        match self.retention.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(MaintainError::Retention { name: name.clone(), known: known.join(", ") }),
            None => Ok(()),
        }
    }

    /// Drops partitions all of whose rows are older than the table keeps them. The files, by table.
    async fn drop_expired(
        &self,
        now: i64,
        dry_run: bool,
    ) -> Result<BTreeMap<String, Vec<DataFile>>, MaintainError> {
        let mut dropped = BTreeMap::new();
        for (name, keep) in &self.retention {
            for _ in 0..MOST_TRIES {
                let Some(mut table) = Upkeep::open(&self.store, name).await? else { break };
                let expired: Vec<DataFile> = table
                    .snapshot()
                    .files()?
                    .into_iter()
                    .filter(|file| is_expired(name, file, *keep, now))
                    .collect();
                if expired.is_empty() {
                    break;
                }
                if dry_run
                    || table.replace(Change::Delete, &expired, &[], now / 1000).await? == Replaced::Done
                {
                    dropped.insert(name.clone(), expired);
                    break;
                }
            }
        }
        Ok(dropped)
    }

    /// Vacuum and log clean-up.
    async fn tidy(
        &self,
        now: i64,
        tidied: &mut Tidied,
        stop: &CancellationToken,
    ) -> Result<(), MaintainError> {
        let mut found = Vec::new();
        for spec in self.tables.iter() {
            found.extend(
                vacuum::look(&self.store, &spec.name, now / 1000, self.ages())
                    .await?
                    .filter(|found| !found.files.is_empty()),
            );
        }
        if !found.is_empty()
            && let Some(mut ledger) = Upkeep::open(&self.store, LEDGER_TABLE).await?
        {
            let fenced_ms = ledger.fence(self.ages().taken_out.as_millis() as i64).await?;
            for found in found {
                if stop.is_cancelled() {
                    return Ok(());
                }
                let (table, files) = vacuum::delete(self.lake(), found, fenced_ms, self.ages()).await?;
                if !files.is_empty() {
                    tidied.deleted.insert(table, files);
                }
            }
        }
        self.clean_logs(now, tidied).await?;
        tidied.unfinished = self.unfinished(now, false).await?;
        Ok(())
    }

    async fn unfinished(&self, now: i64, dry_run: bool) -> Result<u64, MaintainError> {
        let before = now - NEVER_NAMED.as_micros() as i64;
        self.store
            .remove_unfinished(before, dry_run)
            .await
            .map_err(|source| MaintainError::Unfinished { source })
    }

    fn report(&self, compacted: &Compacted, tidied: &Tidied) {
        if !compacted.failed.is_empty() {
            self.metrics.iter().for_each(|metrics| _ = metrics.upkeep_errors.inc());
        }
        if compacted.merges > 0 {
            let Compacted { files_in, files_out, bytes_in, bytes_out, rows, .. } = compacted;
            tracing::info!(files_in, files_out, bytes_in, bytes_out, rows, "compacted");
        }
        for (table, files) in &tidied.dropped {
            let rows: u64 = files.iter().map(|file| file.rows).sum();
            tracing::info!(table, files = files.len(), rows, "dropped expired partitions");
        }
        for (table, files) in &tidied.deleted {
            let bytes: u64 = files.iter().map(|file| file.size).sum();
            tracing::info!(table, files = files.len(), bytes, "vacuumed");
        }
        if let Some(metrics) = &self.metrics {
            metrics.merged.inc_by(compacted.files_in);
            metrics.vacuumed.inc_by(tidied.deleted.values().map(|files| files.len() as u64).sum());
        }
    }

    async fn clean_logs(&self, now: i64, tidied: &mut Tidied) -> Result<(), TableError> {
        for spec in self.tables.iter() {
            if let Some(table) = Upkeep::open(&self.store, &spec.name).await? {
                tidied.log_entries += table.clean_log(self.oldest_log(now)).await? as u64;
            }
        }
        Ok(())
    }

    /// Log entries from this time on are kept, in milliseconds since the epoch.
    fn oldest_log(&self, now: i64) -> i64 {
        now / 1000 - self.settings.vacuum_after.max(LEAST_LOG).as_millis() as i64
    }
}

/// Whether all rows of a file are older than their table keeps them, and landed so long ago that someone
/// could have seen them. A reject is as old as its rejection: its event time is that of its object, which may
/// have been written years before.
fn is_expired(table: &str, file: &DataFile, keep: Duration, now: i64) -> bool {
    let before = |age: Duration| now - age.as_micros() as i64;
    let landed_before = before(if table == FAILURES_TABLE { keep } else { keep.min(SEEN) });
    partition_end(&file.partition_values).is_some_and(|end| end <= before(keep))
        && file.last_landed() <= landed_before
}

/// Who holds a lease, for those who wait for it.
fn holder() -> String {
    format!("process {} ({})", std::process::id(), new_uuid().simple())
}
