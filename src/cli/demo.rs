//! `flarelake demo`: the whole journey on generated logs, in seconds.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::backfill::{Report, backfill, land};
use super::generate::write_all;
use super::output::grouped;
use super::parts::{self, affordable_workers, open_lake};
use super::{End, Settings, answer, compact, output};
use crate::base::clock;
use crate::base::new_uuid;
use crate::config;
use crate::generate::{Dataset, Spec, Timestamps};
use crate::ingest::backfill::Summary;
use crate::query::{Expanded, Format};
use crate::source::local::Links;
use crate::source::routing::Sources;

/// The saved queries that the demo asks.
const QUESTIONS: [&str; 5] =
    ["events_by_log_type", "cache_ratio_by_host", "top_talkers", "blocked_by_rule", "rejects_by_reason"];

/// Shares of the three datasets, in tenths.
const SHARES: [(Dataset, u64); 3] =
    [(Dataset::HttpRequest, 7), (Dataset::Firewall, 2), (Dataset::Spectrum, 1)];

/// How large the demo is, and where.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The folder to work in, new or empty; by default a new one for temporary files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many records
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    rows: u64,
}

pub async fn run(arguments: DemoArguments, mut settings: Settings) -> anyhow::Result<End> {
    let folder = arguments.dir.unwrap_or_else(|| {
        config::temporary_folder().join(format!("flarelake-demo-{}", new_uuid().simple()))
    });
    let (logs, lake) = (folder.join("logs"), folder.join("lake"));
    settings.config.lake = Some(lake.display().to_string());
    say(&format!(
        "1. Generating {} records of three log types, some of them odd, some broken",
        grouped(arguments.rows)
    ))?;
    let mut broken = 0;
    let mut left = arguments.rows;
    for (n, (dataset, tenths)) in SHARES.iter().enumerate() {
        let rows = if n + 1 == SHARES.len() { left } else { arguments.rows * tenths / 10 };
        left -= rows;
        let (start, span) = (1_768_478_400, 86_400);
        let spec = Spec {
            dataset: *dataset,
            rows,
            files: 4,
            seed: 7,
            timestamps: Timestamps::Mixed,
            start,
            span,
            odd: 0.02,
        };
        broken +=
            write_all(&spec, &logs, true).with_context(|| format!("generating {}", dataset.log_type()))?.1;
    }
    say(&format!(
        "   {} lines are broken on purpose; the logs are in {}\n",
        grouped(broken),
        logs.display()
    ))?;
    say(&format!("2. Landing them: flarelake backfill --lake {} {}", lake.display(), logs.display()))?;
    let first = land_folder(&settings, &logs).await?;
    say("3. Landing the same folder again: nothing lands twice")?;
    let second = land_folder(&settings, &logs).await?;
    say(&format!("4. Merging what is small: flarelake compact --lake {}", lake.display()))?;
    compact_lake(&settings).await?;
    ask(&settings).await?;
    let whole = first.total_rows() + first.total_rejects() == arguments.rows
        && first.total_rejects() == broken
        && second.landed == 0;
    if !whole {
        anyhow::bail!("the demo's own sums are wrong: {first:?}, then {second:?}");
    }
    say(&format!(
        "{} lines = {} rows + {} rejects, each once. Ask more:\n  flarelake query --lake {} \"SELECT * FROM all_logs LIMIT 5\"",
        grouped(arguments.rows),
        grouped(first.total_rows()),
        grouped(first.total_rejects()),
        lake.display()
    ))?;
    Ok(End::Done)
}

/// Asks some of the saved queries.
async fn ask(settings: &Settings) -> anyhow::Result<()> {
    say("5. Five questions out of queries/\n")?;
    let session = answer::open(settings).await?;
    for name in QUESTIONS {
        let saved = answer::saved(name)?;
        let began = clock::now();
        say(&format!("{} (flarelake query -f {name} -p since=2026-01-01 …)", saved.title))?;
        let given = [("since", "2026-01-01"), ("limit", "5")].into_iter();
        let given = given.filter(|(name, _)| saved.parameters.iter().any(|p| p.name == *name));
        let given: Vec<_> = given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        answer::print(
            &session,
            &saved.sql,
            &saved.arguments(&given)?,
            Format::Table(Expanded::Off),
            output::stdout(),
        )
        .await?;
        say(&format!("{} ms\n", began.elapsed().as_millis()))?;
    }
    Ok(())
}

async fn land_folder(settings: &Settings, logs: &std::path::Path) -> anyhow::Result<Summary> {
    let lake = open_lake(&settings.config).await?;
    let backfill = backfill(settings, Some(lake), Sources::default(), affordable_workers(&settings.config));
    let began = clock::now();
    let summary = land(&backfill, &[logs.display().to_string()], Links::PassOver).await?;
    let report =
        Report { summary: &summary, backfill: &backfill, seconds: began.elapsed().as_secs_f64() }.to_string();
    say(&report.lines().map(|line| format!("   {line}\n")).collect::<String>())?;
    Ok(summary)
}

async fn compact_lake(settings: &Settings) -> anyhow::Result<()> {
    let maintainer =
        parts::maintainer(settings, Some(open_lake(&settings.config).await?), CancellationToken::new())
            .await?;
    let compacted = maintainer.compact(&maintainer.tables.iter().collect::<Vec<_>>()).await?;
    let report = compact::Report { compacted: &compacted }.to_string();
    say(&report.lines().map(|line| format!("   {line}\n")).collect::<String>())
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(output::say(format_args!("{text}\n"))?)
}
