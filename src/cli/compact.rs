//! `flarelake compact`: small files into large ones, once, now.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::answer::FormatName;
use super::output::{self, grouped};
use super::progress::Progress;
use super::{End, Settings, Usage, on_signal, parts};
use crate::maintain::Maintainer;
use crate::maintain::compact::Compacted;
use crate::maintain::plan::Bin;
use crate::query::{Expanded, Renderer};
use crate::table::TableSpec;

/// What to compact.
#[derive(Debug, Args)]
pub struct CompactArguments {
    /// One table only, such as cloudflare_httprequest
    #[arg(long, value_name = "T")]
    table: Option<String>,
    /// Show what would be merged, and why; change nothing
    #[arg(long)]
    dry_run: bool,
    /// The form of the plan
    #[arg(long, value_enum, default_value_t = FormatName::Table, requires = "dry_run")]
    format: FormatName,
}

pub async fn run(arguments: CompactArguments, settings: Settings) -> anyhow::Result<End> {
    let stop = CancellationToken::new();
    let lake =
        if arguments.dry_run { None } else { Some(parts::open_lake_that_is_there(&settings.config).await?) };
    let maintainer = parts::maintainer(&settings, lake, stop.clone()).await?;
    let tables = chosen(&maintainer, arguments.table.as_deref())?;
    if arguments.dry_run {
        let plans = maintainer.plan(&tables).await?;
        return print(&plans, maintainer.settings.target_file_size.as_u64(), arguments.format);
    }
    stops(&stop);
    let progress = Progress::merges(maintainer.progress.clone());
    let compacted = maintainer.compact(&tables).await?;
    drop(progress);
    output::say(Report { compacted: &compacted })?;
    Ok(ended(&stop, &compacted))
}

fn chosen<'a>(maintainer: &'a Maintainer, name: Option<&str>) -> anyhow::Result<Vec<&'a TableSpec>> {
    let tables: Vec<&TableSpec> =
        maintainer.tables.iter().filter(|spec| name.is_none_or(|name| spec.name == name)).collect();
    if tables.is_empty() {
        let known: Vec<&str> = maintainer.tables.iter().map(|spec| spec.name.as_str()).collect();
        return Err(Usage(format!(
            "--table {}: there is no such table; known are {}",
            name.unwrap_or_default(),
            known.join(", ")
        ))
        .into());
    }
    Ok(tables)
}

/// How a compaction ended: the first SIGINT or SIGTERM lets merges at hand finish.
pub fn ended(stop: &CancellationToken, compacted: &Compacted) -> End {
    if stop.is_cancelled() {
        End::Interrupted
    } else if compacted.failed.is_empty() {
        End::Done
    } else {
        End::Incomplete
    }
}

/// Merges at hand are finished when a stop is asked for.
pub fn stops(stop: &CancellationToken) {
    let stop = stop.clone();
    on_signal("merges at hand are finished first", move || stop.cancel());
}

/// The plan, a row a merge.
fn print(plans: &[(String, Vec<Bin>)], target: u64, format: FormatName) -> anyhow::Result<End> {
    let bins: Vec<(&String, &Bin)> =
        plans.iter().flat_map(|(table, bins)| bins.iter().map(move |bin| (table, bin))).collect();
    let text = |of: &dyn Fn(&(&String, &Bin)) -> String| {
        Arc::new(StringArray::from_iter_values(bins.iter().map(of))) as ArrayRef
    };
    let count = |of: &dyn Fn(&Bin) -> u64| {
        Arc::new(bins.iter().map(|(_, bin)| of(bin)).collect::<UInt64Array>()) as ArrayRef
    };
    let partition = |bin: &Bin| {
        bin.partition.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("/")
    };
    let batch = RecordBatch::try_from_iter([
        ("table", text(&|(table, _)| (*table).clone())),
        ("partition", text(&|(_, bin)| partition(bin))),
        ("files_in", count(&|bin| bin.inputs.len() as u64)),
        ("bytes_in", count(&Bin::bytes)),
        ("rows", count(&Bin::rows)),
        ("files_out", count(&|bin| bin.files_out(target))),
        ("why", text(&|(_, bin)| bin.why.as_str().to_owned())),
    ])?;
    let mut renderer = Renderer::new(format.format(Expanded::Off), batch.schema(), output::stdout())?;
    renderer.write(batch)?;
    renderer.finish()?;
    Ok(End::Done)
}

/// What a compaction did, as a person reads it.
pub struct Report<'a> {
    pub compacted: &'a Compacted,
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Compacted { merges, files_in, files_out, bytes_in, bytes_out, .. } = *self.compacted;
        let Compacted { rows, overtaken, ref failed, took, .. } = *self.compacted;
        for error in failed {
            writeln!(f, "failed:  {error}")?;
        }
        if merges == 0 && overtaken == 0 {
            return writeln!(f, "nothing {}to merge", if failed.is_empty() { "" } else { "else " });
        }
        writeln!(
            f,
            "merged:  {} files ({}) into {} ({})",
            grouped(files_in),
            bytes(bytes_in),
            grouped(files_out),
            bytes(bytes_out)
        )?;
        writeln!(f, "rows:    {}, in {} merges", grouped(rows), grouped(merges))?;
        if overtaken > 0 {
            writeln!(f, "         {} merges given up: another maintainer was faster", grouped(overtaken))?;
        }
        let seconds = took.as_secs_f64().max(0.001);
        let rate = bytes_in as f64 / 1e6 / seconds;
        writeln!(
            f,
            "took:    {seconds:.2} s, {rate:.0} MB/s, {} rows/s",
            grouped((rows as f64 / seconds) as u64)
        )
    }
}

/// Bytes, as a person reads them.
pub fn bytes(count: u64) -> String {
    bytesize::ByteSize(count).to_string()
}
