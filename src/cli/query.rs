//! `flarelake query`: SQL over the lake.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use clap::ValueEnum;
use futures::StreamExt as _;

use super::{End, Settings, Usage, output};
use crate::base::store::Store;
use crate::query::{Format, QueryError, Renderer, Session};

/// What to ask.
#[derive(Debug, Args)]
pub struct QueryArguments {
    /// The statement; it can only read
    #[arg(value_name = "SQL", conflicts_with = "file")]
    sql: Option<String>,
    /// Read the statement from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The form of the result
    #[arg(long, value_enum, default_value_t = FormatName::Table)]
    format: FormatName,
}

/// [`Format`] as the command line names it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatName {
    /// Columns in a frame
    Table,
    /// One JSON array
    Json,
    /// A JSON object a line
    Ndjson,
    /// Comma-separated, with a header
    Csv,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Table => Self::Table,
            FormatName::Json => Self::Json,
            FormatName::Ndjson => Self::Ndjson,
            FormatName::Csv => Self::Csv,
        }
    }
}

pub async fn run(arguments: QueryArguments, settings: Settings) -> anyhow::Result<End> {
    let sql = match (arguments.sql, arguments.file) {
        (Some(sql), _) => sql,
        (None, Some(path)) => std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?,
        (None, None) => return Err(Usage("give a statement, or a file with -f".to_owned()).into()),
    };
    let session = open(&settings).await?;
    print(&session, &sql, arguments.format.into()).await?;
    Ok(End::Done)
}

/// A session over the configured lake.
pub async fn open(settings: &Settings) -> anyhow::Result<Session> {
    let store = Store::open(settings.config.lake()?, &settings.config.reach()).await?;
    let config = &settings.config;
    Ok(Session::open(&store, &settings.catalog, config.partition, config.memory.as_u64() as usize).await?)
}

/// Prints a statement's result to stdout.
pub async fn print(session: &Session, sql: &str, format: Format) -> anyhow::Result<()> {
    let mut batches = session.query(sql).await?;
    let mut renderer = Renderer::new(format, batches.schema(), output::stdout())?;
    while let Some(batch) = batches.next().await {
        renderer.write(batch.map_err(QueryError::from)?)?;
    }
    renderer.finish()?;
    Ok(())
}
