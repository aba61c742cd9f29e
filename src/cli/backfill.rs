//! `flarelake backfill`: land what exists already, and say what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::output::grouped;
use super::progress::Progress;
use super::{End, Settings, Usage, on_signal, output, parts};
use crate::base::clock;
use crate::config::{self, Source};
use crate::ingest::backfill::{Backfill, Summary};
use crate::land::batch::Tables;
use crate::land::worker::Meter;
use crate::schema::Catalog;
use crate::source::bucket::Buckets;
use crate::source::local::{Links, PassedOver};
use crate::source::origin;
use crate::source::routing::Sources;
use crate::table::Lake;

/// Of the memory, the part for fetched bytes that wait to be decoded.
const FETCHED_PART: usize = 8;

/// What to land.
#[derive(Debug, Args)]
pub struct BackfillArguments {
    /// Files, folders, globs, s3://bucket/prefix, or - for standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// The log type of every record; by default detected from each record's fields
    #[arg(long, value_name = "T")]
    log_type: Option<String>,
    /// The configured source that everything belongs to; without it the source that lists the bucket
    #[arg(long, value_name = "ID")]
    source: Option<String>,
    /// Also read what symbolic links lead to, in folders and globs; without it they are passed over
    #[arg(long)]
    follow_links: bool,
    /// Decode and report, but write nothing
    #[arg(long)]
    dry_run: bool,
    /// Exit with 3 if any record was rejected
    #[arg(long)]
    fail_on_reject: bool,
    /// How many workers decode and write; by default one a core, as far as memory allows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
}

pub async fn run(arguments: BackfillArguments, settings: Settings) -> anyhow::Result<End> {
    let lake = if arguments.dry_run { None } else { Some(parts::open_lake(&settings.config).await?) };
    let sources = sources(&arguments, &settings)?;
    let workers = arguments.workers.map_or_else(|| parts::affordable_workers(&settings.config), usize::from);
    let backfill = backfill(&settings, lake, sources, workers);
    let interrupted = stop_on_signal(backfill.stop.clone());
    let began = clock::now();
    let links = if arguments.follow_links { Links::Follow } else { Links::PassOver };
    let summary = land(&backfill, &arguments.paths, links).await?;
    let report = Report { summary: &summary, backfill: &backfill, seconds: began.elapsed().as_secs_f64() };
    // How it went does not depend on whether anyone reads the report.
    output::say(report)?;
    Ok(if interrupted.load(Ordering::Relaxed) {
        End::Interrupted
    } else if !summary.failed.is_empty() {
        End::Incomplete
    } else if arguments.fail_on_reject && summary.total_rejects() > 0 {
        End::Rejects
    } else {
        End::Done
    })
}

fn sources(arguments: &BackfillArguments, settings: &Settings) -> anyhow::Result<Sources> {
    let configured = settings.config.source.clone();
    let named = arguments.source.as_ref().map(|id| {
        let found = configured.iter().find(|s: &&Source| s.id == *id).cloned();
        found.ok_or_else(|| Usage(format!("--source {id}: the configuration has no source of that id")))
    });
    Ok(Sources {
        named: named.transpose()?,
        log_type: arguments.log_type.as_ref().map(|name| settings.catalog.index_of(name)).transpose()?,
        log_types: parts::routed_log_types(settings, &configured)?,
        configured,
    })
}

/// A backfill with this many workers.
pub fn backfill(settings: &Settings, lake: Option<Arc<Lake>>, sources: Sources, workers: usize) -> Backfill {
    let Settings { config, catalog } = settings;
    let memory = config.memory.as_u64() as usize;
    Backfill {
        catalog: Catalog::clone(catalog),
        tables: Arc::new(Tables::new(catalog, config.partition)),
        lake,
        settings: parts::worker_settings(config, memory, workers),
        workers,
        fetches: config.ingest.fetches,
        fetched_bytes: memory / FETCHED_PART,
        sources,
        meter: Arc::default(),
        stop: CancellationToken::new(),
    }
}

/// Lands every path, with a progress bar where a person waits.
pub async fn land(backfill: &Backfill, paths: &[String], links: Links) -> anyhow::Result<Summary> {
    let _progress = Progress::show(backfill.meter.clone());
    let (mut listings, mut passed_over) = (Vec::new(), PassedOver::default());
    // All are looked into before the first object lands: a path that is misspelt is told at once.
    for path in paths.iter().filter(|p| *p != "-") {
        listings.push(match origin::bucket_of(path) {
            Some(bucket) => {
                let buckets = buckets(&backfill.sources, bucket).await;
                origin::list_bucket(path, buckets).await?
            }
            None => {
                let (listed, others) = origin::list_files(path, links).await?;
                passed_over += others;
                listed
            }
        });
    }
    let stdin = paths.iter().any(|p| p == "-").then(std::io::stdin);
    let summary = backfill.run(stream::iter(listings).flatten(), stdin).await?;
    Ok(Summary { passed_over, ..summary })
}

/// The way to a bucket: a configured source knows how to reach its own.
pub async fn buckets(sources: &Sources, bucket: &str) -> Arc<dyn Buckets> {
    let access = sources.of_bucket(bucket).map(|s| s.aws.clone()).unwrap_or_default();
    Arc::new(access.s3(config::s3_has_custom_endpoint()).await)
}

/// On the first SIGINT or SIGTERM no further object is begun; the second ends the process, which is safe.
pub fn stop_on_signal(stop: CancellationToken) -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = interrupted.clone();
    on_signal("what was begun is landed first", move || {
        told.store(true, Ordering::Relaxed);
        stop.cancel();
    });
    interrupted
}

/// The summary as a person reads it.
pub struct Report<'a> {
    pub summary: &'a Summary,
    pub backfill: &'a Backfill,
    pub seconds: f64,
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { summary, backfill, seconds } = self;
        let landed = if backfill.lake.is_some() { "landed" } else { "decoded, nothing written" };
        let megabytes = Meter::get(&backfill.meter.inflated) as f64 / 1e6;
        let counts = [
            (summary.landed, landed),
            (summary.already_there, "already there"),
            (summary.skipped, "skipped (no logs)"),
        ];
        write!(f, "objects:")?;
        for (count, what) in counts {
            write!(f, " {} {what},", grouped(count))?;
        }
        writeln!(f, " {} failed", grouped(summary.failed.len() as u64))?;
        if summary.not_begun > 0 {
            writeln!(f, "         {} not begun: interrupted", grouped(summary.not_begun))?;
        }
        let PassedOver { links, others } = summary.passed_over;
        if links > 0 {
            writeln!(
                f,
                "         {} symbolic links passed over (--follow-links reads what they lead to)",
                grouped(links)
            )?;
        }
        if others > 0 {
            writeln!(
                f,
                "         {} passed over that are no files (FIFOs, sockets, devices)",
                grouped(others)
            )?;
        }
        writeln!(f, "rows:    {}", grouped(summary.total_rows()))?;
        for (table, rows) in &summary.rows {
            writeln!(f, "         {table} {}", grouped(*rows))?;
        }
        writeln!(f, "rejects: {}", grouped(summary.total_rejects()))?;
        for (reason, count) in &summary.rejects {
            writeln!(f, "         {reason} {}", grouped(*count))?;
        }
        if summary.skipped_records > 0 {
            writeln!(f, "skipped: {} test uploads of Cloudflare's", grouped(summary.skipped_records))?;
        }
        if summary.landed == 0
            && summary.already_there > 0
            && summary.failed.is_empty()
            && summary.not_begun == 0
        {
            writeln!(f, "nothing new: everything had landed before")?;
        }
        writeln!(
            f,
            "took:    {seconds:.2} s, {megabytes:.0} MB of records, {:.0} MB/s",
            megabytes / seconds.max(0.001)
        )
    }
}
