//! `flarelake ingest`: work queues off until stopped.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{End, Settings, Usage, on_signal, output, parts};
use crate::base::clock;
use crate::base::panics::to_the_end;
use crate::config::{self, Config};
use crate::ingest::intake::queues::{QueueSource, Queues};
use crate::ingest::metrics::Metrics;
use crate::ingest::service::{Ended, Ingest, Pace, REFUSED_RETRY_EVERY};
use crate::land::batch::Tables;
use crate::land::worker::WorkerSettings;
use crate::maintain::Maintainer;
use crate::serve;
use crate::source::queue::sqs::SqsQueue;
use crate::table::Lake;

/// How long a stop waits for upkeep.
const UPKEEP_END: Duration = Duration::from_secs(2);
/// The part of the memory that upkeep takes where it is beside ingest.
const UPKEEP_SHARE: usize = 4;

/// How long to work.
#[derive(Debug, Args)]
pub struct IngestArguments {
    /// End when nothing was received and nothing held for this long, such as 10s; without it, run until
    /// stopped
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    until_idle: Option<Duration>,
}

pub async fn run(arguments: IngestArguments, settings: Settings) -> anyhow::Result<End> {
    let sources = sources(&settings).await?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    on_signal("what was begun lands first", move || stopping.cancel());
    let config = &settings.config;
    let (metrics, registry) = Metrics::new();
    let metrics = Arc::new(metrics);
    match serve::serve(config.http.listen, metrics.clone(), registry).await {
        Ok(address) => tracing::info!("metrics and health: http://{address}/metrics, /healthz, /readyz"),
        // Other workers on this machine may have the port; logs are worth more than metrics.
        Err(error) => tracing::warn!("no metrics and health are served: {error}"),
    }
    let lake = tokio::select! {
        opened = parts::open_lake(config) => opened?,
        () = stop.cancelled() => return Ok(End::Done),
    };
    let workers =
        if config.ingest.workers > 0 { config.ingest.workers } else { parts::affordable_workers(config) };
    tracing::info!(
        lake = config.lake()?,
        objects = lake.objects(),
        queues = sources.len(),
        workers,
        "ingesting"
    );
    let (memory, upkeep) = embedded(&settings, &lake, &metrics).await?;
    let ingest = Ingest {
        catalog: settings.catalog.clone(),
        tables: Arc::new(Tables::new(&settings.catalog, config.partition)),
        lake,
        settings: WorkerSettings {
            max_age: config.flush.max_age,
            ..parts::worker_settings(config, memory, workers)
        },
        pace: pace(config, workers, arguments.until_idle),
        intakes: vec![Arc::new(Queues { sources })],
        metrics: metrics.clone(),
    };
    let status = Progress::status(metrics.clone());
    let ended = beside_upkeep(upkeep, &metrics, ingest.run(stop)).await?;
    drop(status);
    output::say(Report { metrics: &metrics, ended })?;
    Ok(if ended.given_up + ended.refused as u64 > 0 && arguments.until_idle.is_some() {
        End::Incomplete
    } else {
        End::Done
    })
}

/// The memory that is left to the workers, and the upkeep beside them.
async fn embedded(
    settings: &Settings,
    lake: &Arc<Lake>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(usize, Option<Maintainer>)> {
    let memory = settings.config.memory.as_u64() as usize;
    if !settings.config.maintenance.embedded {
        return Ok((memory, None));
    }
    let share = memory / UPKEEP_SHARE;
    let upkeep = parts::maintainer(settings, Some(lake.clone()), CancellationToken::new()).await?;
    Ok((
        memory - share,
        Some(Maintainer { memory: share, at_once: 1, encoders: 1, metrics: Some(metrics.clone()), ..upkeep }),
    ))
}

/// Works with upkeep beside it, if there is any. Upkeep ends with the work: what it has at hand is not
/// visible before it is whole, and the next one does it.
async fn beside_upkeep<T>(upkeep: Option<Maintainer>, metrics: &Metrics, work: impl Future<Output = T>) -> T {
    let Some(upkeep) = upkeep else { return work.await };
    let panicked = |said| {
        tracing::error!("upkeep panicked: {said}; it is tried again when it is next due: please report this");
        metrics.upkeep_errors.inc();
        // It begins by waiting until it is due.
        Duration::ZERO
    };
    let keeping = async {
        if let Err(error) = to_the_end(|| upkeep.run(), panicked).await {
            tracing::error!("no upkeep: {error}");
        }
    };
    tokio::pin!(work, keeping);
    let ended = tokio::select! {
        ended = &mut work => ended,
        () = &mut keeping => return work.await,
    };
    upkeep.stop.cancel();
    // So that what is idle gives its lease back.
    drop(clock::timeout(UPKEEP_END, keeping).await);
    ended
}

/// Every source that has a queue, with the ways to it.
async fn sources(settings: &Settings) -> anyhow::Result<Vec<QueueSource>> {
    let mut sources = Vec::new();
    let log_types = parts::routed_log_types(settings, &settings.config.source)?;
    for source in &settings.config.source {
        let Some(url) = &source.queue else { continue };
        sources.push(QueueSource {
            queue: Arc::new(SqsQueue::open(url, &source.aws, config::sqs_has_custom_endpoint()).await),
            buckets: Arc::new(source.aws.s3(config::s3_has_custom_endpoint()).await),
            log_types: log_types.clone(),
            source: source.clone(),
        });
    }
    if sources.is_empty() {
        let example = "[[source]]\nid = \"cf-prod\"\nqueue = \"https://sqs.eu-west-1.amazonaws.com/123456789012/cloudflare-logs\"\nbuckets = [\"acme-cloudflare-logs\"]";
        return Err(Usage(format!(
            "no source has a queue; write one into the configuration (--config FILE):\n{example}"
        ))
        .into());
    }
    Ok(sources)
}

/// Of the memory, a sixteenth holds fetched bytes and as much messages; the workers share it by their own
/// rule.
fn pace(config: &Config, workers: usize, until_idle: Option<Duration>) -> Pace {
    let memory = config.memory.as_u64() as usize;
    Pace {
        workers,
        receivers: config.ingest.receivers,
        fetches: config.ingest.fetches,
        max_messages: config.ingest.max_messages,
        message_bytes: memory / 16,
        fetched_bytes: memory / 16,
        drain: config.ingest.drain,
        refused_every: REFUSED_RETRY_EVERY,
        until_idle,
    }
}

/// What a run did, as a person reads it.
struct Report<'a> {
    metrics: &'a Metrics,
    ended: Ended,
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { metrics, ended } = self;
        let grouped = output::grouped;
        writeln!(
            f,
            "messages: {} done, {} given back",
            grouped(metrics.deleted.get()),
            grouped(ended.released as u64)
        )?;
        let (landed, again, skipped) =
            (metrics.landed.get(), metrics.duplicates.get(), metrics.skipped.get());
        write!(
            f,
            "objects:  {} landed, {} came again, {} skipped (no logs)",
            grouped(landed),
            grouped(again),
            grouped(skipped)
        )?;
        writeln!(f, ", {} given up for now", grouped(ended.given_up))?;
        match ended.refused {
            0 => Ok(()),
            refused => {
                writeln!(f, "sources:  {refused} could not be read; the log says which, and what to do")
            }
        }
    }
}
