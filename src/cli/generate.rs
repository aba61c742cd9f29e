//! `flarelake generate`: realistic synthetic logs, as Cloudflare would have pushed them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::{End, output};
use crate::generate::{Dataset, Spec, Timestamps};

/// 2026-01-15T12:00:00Z
pub const DEFAULT_START: &str = "2026-01-15T12:00:00Z";

/// What to generate, and where.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// Cloudflare.Firewall, Cloudflare.HttpRequest or Cloudflare.Spectrum
    #[arg(long, value_name = "T")]
    log_type: Dataset,
    /// How many lines
    #[arg(long, value_name = "N")]
    rows: u64,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// In how many files
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    files: u64,
    /// The same seed gives the same bytes
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// unixnano, unix, rfc3339, rfc3339ms, rfc3339ns or mixed
    #[arg(long, value_name = "F", default_value = "unixnano")]
    timestamps: Timestamps,
    /// The first event's time
    #[arg(long, value_name = "TIME", default_value = DEFAULT_START)]
    start: humantime::Timestamp,
    /// From the first event to the last
    #[arg(long, value_name = "DURATION", default_value = "1d")]
    span: humantime::Duration,
    /// The share of records in odd forms: numbers as text, empty strings, newer fields; a twentieth of them
    /// are broken
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    odd: f64,
    /// Compress the files
    #[arg(long)]
    gzip: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("from 0 to 1".to_owned()) }
}

/// Seconds since the epoch.
pub fn seconds(time: humantime::Timestamp) -> i64 {
    crate::base::micros_since_epoch(time.into()) / 1_000_000
}

pub fn run(arguments: GenerateArguments) -> anyhow::Result<End> {
    let spec = Spec {
        dataset: arguments.log_type,
        rows: arguments.rows,
        files: arguments.files,
        seed: arguments.seed,
        timestamps: arguments.timestamps,
        start: seconds(arguments.start),
        span: arguments.span.as_secs() as i64,
        odd: arguments.odd,
    };
    let (bytes, broken) = write_all(&spec, &arguments.out, arguments.gzip)?;
    output::tell(format_args!(
        "{} lines ({} broken on purpose), {} MB, in {} files below {}",
        output::grouped(spec.rows),
        output::grouped(broken),
        bytes / 1_000_000,
        spec.files,
        arguments.out.display()
    ));
    Ok(End::Done)
}

/// Writes every file of `spec` below `out`; returns inflated bytes and broken lines.
pub fn write_all(spec: &Spec, out: &Path, gzip: bool) -> anyhow::Result<(u64, u64)> {
    let (mut bytes, mut broken) = (0, 0);
    for n in 0..spec.files {
        let file = spec.file(n);
        let path = out.join(if gzip { format!("{}.gz", file.name) } else { file.name });
        let folder = path.parent().unwrap_or(out);
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        let stored = if gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&file.bytes)?;
            encoder.finish()?
        } else {
            file.bytes.clone()
        };
        fs::write(&path, stored).with_context(|| format!("can't write {}", path.display()))?;
        bytes += file.bytes.len() as u64;
        broken += file.broken;
    }
    Ok((bytes, broken))
}
