//! `flarelake maintain`: all upkeep, once or on its schedules.

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::compact::{Report, bytes, ended, stops};
use super::output::{self, grouped};
use super::progress::Progress;
use super::{End, Settings, parts};
use crate::maintain::{Tidied, UpkeepPreview, plan::Bin};

/// How long.
#[derive(Debug, Args)]
pub struct MaintainArguments {
    /// Do everything once, now, and end; without it, keep to the schedules until stopped
    #[arg(long)]
    once: bool,
    /// Show what a run would begin with, as the lake is now; change nothing. compact --dry-run shows each
    /// merge, and why
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(arguments: MaintainArguments, settings: Settings) -> anyhow::Result<End> {
    let stop = CancellationToken::new();
    let lake =
        if arguments.dry_run { None } else { Some(parts::open_lake_that_is_there(&settings.config).await?) };
    let maintainer = parts::maintainer(&settings, lake, stop.clone()).await?;
    if arguments.dry_run {
        let preview = maintainer.preview().await?;
        let target = maintainer.settings.target_file_size.as_u64();
        output::say(Begins { preview: &preview, target })?;
        output::say(Freed { tidied: &preview.tidied, dry_run: true })?;
        return Ok(End::Done);
    }
    stops(&stop);
    if !arguments.once {
        tracing::info!(lake = settings.config.lake()?, "maintaining");
        maintainer.run().await?;
        return Ok(End::Done);
    }
    let progress = Progress::merges(maintainer.progress.clone());
    let (compacted, tidied) = maintainer.once().await?;
    drop(progress);
    output::say(Report { compacted: &compacted })?;
    output::say(Freed { tidied: &tidied, dry_run: false })?;
    Ok(ended(&stop, &compacted))
}

/// What upkeep would begin with, as a person reads it.
struct Begins<'a> {
    preview: &'a UpkeepPreview,
    /// Bytes that a file is meant to have.
    target: u64,
}

impl std::fmt::Display for Begins<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let UpkeepPreview { missing, merges, .. } = self.preview;
        for (table, files) in missing {
            let (rows, size) = (files.iter().map(|f| f.rows).sum(), files.iter().map(|f| f.size).sum());
            writeln!(
                f,
                "would be brought in: {table}: {} rows in {} files ({}) that landed",
                grouped(rows),
                files.len(),
                bytes(size)
            )?;
        }
        for (table, bins) in merges.iter().filter(|(_, bins)| !bins.is_empty()) {
            let files: usize = bins.iter().map(|bin| bin.inputs.len()).sum();
            let (size, into) =
                (bins.iter().map(Bin::bytes).sum(), bins.iter().map(|bin| bin.files_out(self.target)).sum());
            writeln!(
                f,
                "would be merged: {table}: {} files ({}) into {}",
                grouped(files as u64),
                bytes(size),
                grouped(into)
            )?;
        }
        Ok(())
    }
}

/// What retention, vacuum and clean-up freed, as a person reads it.
struct Freed<'a> {
    tidied: &'a Tidied,
    dry_run: bool,
}

impl std::fmt::Display for Freed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tidied { dropped, deleted, unfinished, log_entries, checkpoints } = self.tidied;
        let would = if self.dry_run { "would be " } else { "" };
        for (table, files) in dropped {
            let (rows, size) =
                (files.iter().map(|f| f.rows).sum::<u64>(), files.iter().map(|f| f.size).sum());
            writeln!(
                f,
                "{would}dropped: {table}: {} rows in {} files ({}), older than is kept",
                grouped(rows),
                files.len(),
                bytes(size)
            )?;
        }
        for (table, files) in deleted {
            let size = files.iter().map(|f| f.size).sum();
            writeln!(
                f,
                "{would}deleted: {table}: {} files ({}) that no version needs",
                grouped(files.len() as u64),
                bytes(size)
            )?;
        }
        if *unfinished > 0 {
            writeln!(f, "{would}deleted: {} unfinished files of writers that died", grouped(*unfinished))?;
        }
        if *log_entries > 0 {
            writeln!(f, "{would}removed: {} old log entries", grouped(*log_entries))?;
        }
        for (table, version) in checkpoints {
            match self.dry_run {
                true => writeln!(f, "would be checkpointed: {table}")?,
                false => writeln!(f, "checkpointed: {table} at version {}", grouped(*version))?,
            }
        }
        if dropped.is_empty() && deleted.is_empty() && *log_entries == 0 && *unfinished == 0 {
            writeln!(f, "nothing to free")?;
        }
        Ok(())
    }
}
