//! The command line: arguments to settings to parts, and one place for exit codes. Results go to stdout,
//! everything else to stderr.

mod output;
mod progress;
mod log;
mod parts;
mod answer;
mod generate;
mod check;
mod backfill;
mod ingest;
mod reconcile;
mod replay;
mod repair;
mod compact;
mod maintain;
mod shell;
mod query;
mod search;
mod tables;
mod schema;
mod demo;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::base::printable::printable;
use crate::base::store::StoreError;
use crate::config::{self, Config, ConfigError};
use crate::schema::{Catalog, CatalogError};

/// Cloudflare logs in, a queryable lake out: every record once, in typed columns, in Delta tables that any
/// engine reads.
#[derive(Debug, Parser)]
#[command(name = "flarelake", version, max_term_width = 110)]
struct Arguments {
    /// The lake: a folder or s3://bucket/prefix. Also FLARELAKE_LAKE, or lake in the configuration
    #[arg(long, global = true, value_name = "URL")]
    lake: Option<String>,
    /// The configuration, a TOML file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder of schema files that override the built-in log types or add new ones
    #[arg(long, global = true, value_name = "DIR")]
    schemas: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate logs, land them, land them again, merge their files, and query them; needs no account and no
    /// network
    Demo(demo::DemoArguments),
    /// Land what SQS queues announce, until stopped
    Ingest(ingest::IngestArguments),
    /// Land what exists already: files, folders, globs, s3:// prefixes, or - for standard input
    Backfill(backfill::BackfillArguments),
    /// Find objects that a bucket holds and the lake lacks, and gaps that Cloudflare left
    Reconcile(reconcile::ReconcileArguments),
    /// Decode rejects again, after a schema, a limit or a route was fixed; each new row lands once
    Replay(replay::ReplayArguments),
    /// Repair a lake whose ledger was removed, restored or changed by others. Stop every writer first
    Repair(repair::RepairArguments),
    /// Check the configuration: try each permission that it needs, and name those that are missing
    Check,
    /// Merge small files into large ones, once, now
    Compact(compact::CompactArguments),
    /// Run all upkeep on schedule: compaction, retention, vacuum, checkpoints, and work left by dead workers
    Maintain(maintain::MaintainArguments),
    /// Query the lake in SQL
    Query(query::QueryArguments),
    /// Look for an address, a network, a domain or a trace id in every table
    Search(search::SearchArguments),
    /// List the tables: size and freshness
    Tables(tables::TablesArguments),
    /// Show log types, their columns, unknown fields, and the DDL for other engines
    Schema(schema::SchemaArguments),
    /// Write realistic synthetic logs
    Generate(generate::GenerateArguments),
}

/// Of the thread that plans statements: those of thousands of terms are planned by functions that call
/// themselves. Of addresses, not of memory.
const STACK_BYTES: usize = 512 << 20;
/// Of every other thread: what was planned is carried out there, by functions that call themselves, too.
const WORKER_STACK_BYTES: usize = 64 << 20;

/// How a run ended, if not with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All done.
    Done,
    /// Not all could be done; what could not was reported.
    Incomplete,
    /// Done, with rejects, where the caller asked to be told.
    Rejects,
    /// Stopped by a signal.
    Interrupted,
}

/// The program: parses the arguments, runs, and says how it went.
pub fn main() -> ExitCode {
    log::tell_panics();
    // clap exits with 2 on wrong usage by itself.
    let arguments = Arguments::parse_from(config::arguments().into_iter().map(with_its_comment));
    let settings = match Settings::new(&arguments) {
        Ok(settings) => settings,
        Err(error) => return report(&error),
    };
    log::start(settings.config.log);
    for name in config::of_kubernetes() {
        tracing::debug!("{name} is no setting: Kubernetes sets it for a Service named flarelake");
    }
    raise_descriptors();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK_BYTES)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let whole = std::thread::scope(|scope| {
        let work = || runtime.block_on(run(arguments.command, settings));
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map(|thread| thread.join())
    });
    let result = match whole {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => return report(&error.into()),
    };
    // A read of standard input can't be called back: nobody waits for it.
    runtime.shutdown_background();
    match result {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Incomplete) => ExitCode::from(1),
        Ok(End::Rejects) => ExitCode::from(3),
        Ok(End::Interrupted) => ExitCode::from(130),
        // Whoever reads our output has seen enough.
        Err(error) if output::is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// A statement may begin with a comment, which must not be taken for an option: a space before it changes
/// nothing.
fn with_its_comment(argument: OsString) -> OsString {
    let is_comment = argument.to_str().and_then(|text| text.strip_prefix("--")).is_some_and(|rest| {
        let name = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        !rest.is_empty() && !name.is_empty() && !name.starts_with('=')
    });
    if !is_comment {
        return argument;
    }
    let mut spaced = OsString::from(" ");
    spaced.push(argument);
    spaced
}

/// As many open files as the system allows: each connection, each file that is read and each that is written
/// takes one.
fn raise_descriptors() {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let raised = getrlimit(Resource::RLIMIT_NOFILE)
            .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
        // With fewer it works, too, only less at once.
        raised.unwrap_or_else(|error| tracing::debug!("the limit of open files stays as it is: {error}"));
    }
}

async fn run(command: Command, settings: Settings) -> anyhow::Result<End> {
    match command {
        Command::Demo(own) => demo::run(own, settings).await,
        Command::Ingest(own) => ingest::run(own, settings).await,
        Command::Backfill(own) => backfill::run(own, settings).await,
        Command::Reconcile(own) => reconcile::run(own, settings).await,
        Command::Replay(own) => replay::run(own, settings).await,
        Command::Repair(own) => repair::run(own, settings).await,
        Command::Check => check::run(settings).await,
        Command::Compact(own) => compact::run(own, settings).await,
        Command::Maintain(own) => maintain::run(own, settings).await,
        Command::Query(own) => query::run(own, settings).await,
        Command::Search(own) => search::run(own, settings).await,
        Command::Tables(own) => tables::run(own, settings).await,
        Command::Schema(own) => schema::run(own, settings).await,
        Command::Generate(own) => generate::run(own),
    }
}

fn report(error: &anyhow::Error) -> ExitCode {
    let mut shown = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Most of our errors say their cause themselves.
        if !shown.contains(&cause) {
            shown = format!("{shown}: {cause}");
        }
    }
    let wrong_url = matches!(error.downcast_ref(), Some(StoreError::Url { .. }));
    let wrong_usage =
        wrong_url || error.is::<ConfigError>() || error.is::<CatalogError>() || error.is::<Usage>();
    // What the person wrote has lines of its own; what rows and names say has none.
    output::tell(format_args!("error: {}", if wrong_usage { shown } else { printable(&shown).into_owned() }));
    ExitCode::from(if wrong_usage { 2 } else { 1 })
}

/// Arguments that can't be used together, or not at all.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// What every command works with.
#[derive(Debug, Clone)]
struct Settings {
    config: Config,
    catalog: Catalog,
}

impl Settings {
    fn new(arguments: &Arguments) -> Result<Self, anyhow::Error> {
        let mut config = Config::load(arguments.config.as_deref())?;
        config.lake = arguments.lake.clone().or(config.lake);
        config.schemas = arguments.schemas.clone().or(config.schemas);
        let catalog = match &config.schemas {
            Some(dir) => Catalog::with_dir(dir)?,
            None => Catalog::embedded(),
        };
        Ok(Self { config, catalog })
    }
}

/// On the first SIGINT or SIGTERM `stop` is called; the second ends the process, which is safe.
fn on_signal(what_ends_first: &'static str, stop: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        signal().await;
        tracing::warn!("stopping: {what_ends_first}; a second signal stops at once, which is safe");
        stop();
        signal().await;
        std::process::exit(130);
    });
}

/// Waits for SIGINT or SIGTERM.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
