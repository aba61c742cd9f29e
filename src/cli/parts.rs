//! Components that several commands build from the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Settings, Usage};
use crate::base::store::Store;
use crate::config::{self, Config, Source};
use crate::decode::decoder::RecordLimits;
use crate::decode::inflate::ObjectLimits;
use crate::land::batch::Tables;
use crate::land::worker::WorkerSettings;
use crate::maintain::{Maintainer, lease};
use crate::table::{LEDGER_TABLE, Lake, Snapshot, TableError};

/// What a merge takes, measured on files of a hundred columns. With less it reads in small batches; its
/// writer takes most.
const LEAST_MERGE: usize = 384 << 20;

/// Log entries that a reader reads one by one, at most.
const CHECKPOINT_EVERY: u64 = 50;

/// Opens the lake to write to; refuses a store that can't guard commits.
pub async fn open_lake(config: &Config) -> anyhow::Result<Arc<Lake>> {
    open(Store::open(config.lake()?, &config.reach()).await?).await
}

async fn open(store: Store) -> anyhow::Result<Arc<Lake>> {
    store.probe().await?;
    Ok(Arc::new(Lake::open(store).await?))
}

/// A lake that is there, to keep up: a wrong URL makes no new one.
pub async fn open_lake_that_is_there(config: &Config) -> anyhow::Result<Arc<Lake>> {
    let store = Store::open(config.lake()?, &config.reach()).await?;
    if !Snapshot::is_there(&store, LEDGER_TABLE).await? {
        return Err(TableError::NoLake { url: store.url.to_string() }.into());
    }
    open(store).await
}

/// The upkeep of the lake, with all of the memory and every core; without a lake to write to, for plans and
/// dry runs.
pub async fn maintainer(
    settings: &Settings,
    lake: Option<Arc<Lake>>,
    stop: CancellationToken,
) -> anyhow::Result<Maintainer> {
    let Settings { config, catalog } = settings;
    let Tables { log_types, failures, ledger } = Tables::new(catalog, config.partition);
    let memory = config.memory.as_u64() as usize;
    let store = match &lake {
        Some(lake) => lake.store().clone(),
        None => Store::open(config.lake()?, &config.reach()).await?,
    };
    if lake.is_none() && !Snapshot::is_there(&store, LEDGER_TABLE).await? {
        return Err(TableError::NoLake { url: store.url.to_string() }.into());
    }
    let maintainer = Maintainer {
        store,
        lake,
        tables: Arc::new(log_types.into_iter().chain([failures, ledger]).collect()),
        settings: config.maintenance.clone(),
        retention: config.retention.clone(),
        memory,
        at_once: config::cores().min(memory / LEAST_MERGE).max(1),
        encoders: config::cores(),
        checkpoint_every: CHECKPOINT_EVERY,
        lease_term: lease::DEFAULT_TERM,
        progress: Arc::default(),
        metrics: None,
        stop,
    };
    maintainer.check_retention().map_err(|error| Usage(error.to_string()))?;
    Ok(maintainer)
}

/// One worker a core, as far as memory allows.
pub fn affordable_workers(config: &Config) -> usize {
    // A worker with less than this writes many small files.
    let affordable = (config.memory.as_u64() / (128 << 20)).max(1) as usize;
    config::cores().min(affordable)
}

/// Shares the memory out: rows waiting to be written take most of a worker's part, an inflated object some.
pub fn worker_settings(config: &Config, memory: usize, workers: usize) -> WorkerSettings {
    let limits = &config.limits;
    let share = memory / workers.max(1);
    WorkerSettings {
        records: RecordLimits {
            max_record: limits.max_record.as_u64() as usize,
            max_depth: limits.max_depth,
        },
        objects: ObjectLimits {
            max_object: limits.max_object.as_u64(),
            max_ratio: limits.max_ratio,
            max_window: (share as u64 / 8).max(8 << 20),
        },
        // Sorting and encoding a batch takes twice as much again.
        flush_bytes: (share / 6).min(config.flush.max_bytes.as_u64() as usize),
        flush_rows: config.flush.max_rows,
        max_age: Duration::MAX,
        whole_bytes: share / 8,
    }
}

/// The log types that routes name, by their index in the catalog.
pub fn routed_log_types<'a>(
    settings: &Settings,
    sources: impl IntoIterator<Item = &'a Source>,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let routes = sources.into_iter().flat_map(|s| &s.route);
    routes.map(|r| Ok((r.log_type.clone(), settings.catalog.index_of(&r.log_type)?))).collect()
}
