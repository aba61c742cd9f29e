//! `flarelake replay`: rejects decoded again, after a schema, a limit or a route was mended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::output::grouped;
use super::progress::Progress;
use super::{End, Settings, Usage, backfill, output, parts};
use crate::base::clock;
use crate::base::store::Store;
use crate::base::{micros, nearest, now_micros};
use crate::decode::reject::Reason;
use crate::land::batch::Tables;
use crate::recover::{Chosen, Discard, Discarded, Replay, Summary};
use crate::source::routing::Sources;
use crate::table::{LEDGER_TABLE, open_tables};

#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// Only rejects with this reason in classification_failures; may be repeated
    #[arg(long = "reason", value_name = "R")]
    reasons: Vec<String>,
    /// Only rejects from the last TIME (p_parse_time); by default all
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// The log type of every record; by default from a source's route, or the record's own fields
    #[arg(long, value_name = "T")]
    log_type: Option<String>,
    /// Delete the rejects without decoding them: their content is lost
    #[arg(long, conflicts_with_all = ["log_type", "fail_on_reject"])]
    discard: bool,
    /// Decode and report, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Exit with 3 if any reject is left of what was replayed
    #[arg(long)]
    fail_on_reject: bool,
}

pub async fn run(arguments: ReplayArguments, settings: Settings) -> anyhow::Result<End> {
    let Settings { config, catalog } = &settings;
    let reasons = arguments.reasons.iter().map(|code| reason(code)).collect::<Result<Vec<_>, _>>()?;
    let configured = config.source.clone();
    let sources = Sources {
        named: None,
        log_type: arguments.log_type.as_ref().map(|name| catalog.index_of(name)).transpose()?,
        log_types: parts::routed_log_types(&settings, &configured)?,
        configured,
    };
    let store = Store::open(config.lake()?, &config.reach()).await?;
    // To open a lake to write to would make it.
    open_tables(&store, &[LEDGER_TABLE.to_owned()]).await?;
    let memory = config.memory.as_u64() as usize;
    let tables = Arc::new(Tables::new(catalog, config.partition));
    let lake = if arguments.dry_run { None } else { Some(parts::open_lake(config).await?) };
    let target = config.maintenance.target_file_size.as_u64();
    let chosen =
        Chosen { reasons, since: arguments.since.map(|since| now_micros().saturating_sub(micros(since))) };
    if arguments.discard {
        return discard(Discard { tables, store, lake, memory, target, chosen }).await;
    }
    let replay = Replay {
        tables,
        lake,
        settings: parts::worker_settings(config, memory / 2, 1),
        memory: memory / 2,
        target,
        chosen,
        meter: Arc::default(),
        stop: CancellationToken::new(),
        catalog: catalog.clone(),
        sources,
        store,
    };
    let interrupted = backfill::stop_on_signal(replay.stop.clone());
    let began = clock::now();
    let progress = Progress::replay(replay.meter.clone());
    let summary = replay.run().await?;
    drop(progress);
    output::say(Report {
        summary: &summary,
        dry_run: arguments.dry_run,
        seconds: began.elapsed().as_secs_f64(),
    })?;
    Ok(if interrupted.load(Ordering::Relaxed) {
        End::Interrupted
    } else if summary.unreadable > 0 || summary.removed.overtaken {
        End::Incomplete
    } else if arguments.fail_on_reject && !(summary.rejected.is_empty() && summary.new_rejects.is_empty()) {
        End::Rejects
    } else {
        End::Done
    })
}

/// Nothing is asked: who wants to know before says `--dry-run`.
async fn discard(discard: Discard) -> anyhow::Result<End> {
    let Discarded { found, removed } = discard.run().await?;
    let (count, what) = match discard.lake {
        Some(_) => (removed.rows, "discarded"),
        None => (found.values().sum(), "would be discarded"),
    };
    let mut told = format!("rejects: {} {what}\n", grouped(count));
    for (reason, count) in &found {
        told += &format!("         {reason} {}\n", grouped(*count));
    }
    if removed.overtaken {
        told += "         others rewrote that table all the time: run it again to take out the rest\n";
    }
    output::say(told)?;
    Ok(if removed.overtaken { End::Incomplete } else { End::Done })
}

fn reason(code: &str) -> Result<Reason, Usage> {
    let unknown = || match nearest(code, Reason::ALL.map(Reason::code)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("there are {}", Reason::ALL.map(Reason::code).join(", ")),
    };
    Reason::parse(code)
        .ok_or_else(|| Usage(format!("--reason {code}: nothing is rejected for that; {}", unknown())))
}

/// The summary as a person reads it.
struct Report<'a> {
    summary: &'a Summary,
    dry_run: bool,
    seconds: f64,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { summary, dry_run, seconds } = self;
        let stay = summary.rejected.values().sum::<u64>();
        let counts = [
            (summary.landed, if *dry_run { "would be rejects no more" } else { "are rejects no more" }, true),
            (stay, "stay rejected", true),
            (summary.unreadable, "could not be read again: see above", false),
            (summary.already_there, "had been replayed before", false),
            (summary.not_begun, "not begun: interrupted", false),
        ];
        writeln!(f, "rejects: {} looked at", grouped(summary.found))?;
        for (count, what, _) in counts.into_iter().filter(|(count, _, always)| *always || *count > 0) {
            writeln!(f, "         {} {what}", grouped(count))?;
        }
        writeln!(f, "rows:    {}", grouped(summary.rows.values().sum()))?;
        for (table, rows) in &summary.rows {
            writeln!(f, "         {table} {}", grouped(*rows))?;
        }
        if stay > 0 {
            writeln!(f, "stay:    {}", grouped(stay))?;
            summary
                .rejected
                .iter()
                .try_for_each(|(reason, count)| writeln!(f, "         {reason} {}", grouped(*count)))?;
        }
        if !summary.new_rejects.is_empty() {
            writeln!(
                f,
                "new:     {} rejects of records of objects",
                grouped(summary.new_rejects.values().sum())
            )?;
            summary
                .new_rejects
                .iter()
                .try_for_each(|(reason, count)| writeln!(f, "         {reason} {}", grouped(*count)))?;
        }
        if summary.removed.rows > 0 {
            writeln!(f, "removed: {} rejects from classification_failures", grouped(summary.removed.rows))?;
        }
        if summary.removed.overtaken {
            writeln!(f, "         others rewrote that table all the time: run it again to remove the rest")?;
        }
        writeln!(f, "took:    {seconds:.2} s")
    }
}
