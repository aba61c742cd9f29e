//! Shared by the commands that query: a session over the lake, saved queries, result formats.

use std::io::{self, IsTerminal as _, Write};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures::StreamExt as _;

use super::{Settings, Usage, output};
use crate::base::store::Store;
use crate::query::{
    Cells, Expanded, Format, QueryError, Renderer, SavedError, SavedQuery, Session, Value, built_in,
};

/// The form of a result.
#[derive(Debug, Clone, Copy, Args)]
pub struct Form {
    /// The form of the result
    #[arg(long, value_enum, default_value_t = FormatName::Table)]
    pub format: FormatName,
    /// In CSV, put a ' before text that a spreadsheet would take for a formula: it begins with = + - @, a tab
    /// or a line break. Clients choose what requests contain
    #[arg(long)]
    csv_safe: bool,
}

impl Form {
    /// The format, for a terminal or for a file; `expanded` is for tables.
    pub fn format(self, expanded: Expanded, terminal: bool) -> Format {
        match self.format {
            FormatName::Csv => Format::Csv(Cells { shown: terminal, no_formulas: self.csv_safe }),
            other => other.format(expanded),
        }
    }
}

/// [`Format`] as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// A framed table, or records if that is too wide for the terminal
    Table,
    /// One JSON array
    Json,
    /// A JSON object a line
    Ndjson,
    /// Comma-separated, with a header
    Csv,
    /// A Parquet file
    Parquet,
}

impl FormatName {
    /// The format on standard output; `expanded` is for tables.
    pub fn format(self, expanded: Expanded) -> Format {
        match self {
            Self::Table => Format::Table(expanded),
            Self::Json => Format::Json,
            Self::Ndjson => Format::Ndjson,
            Self::Csv => Format::Csv(Cells { shown: io::stdout().is_terminal(), no_formulas: false }),
            Self::Parquet => Format::Parquet,
        }
    }
}

/// A session over the configured lake.
pub async fn open(settings: &Settings) -> anyhow::Result<Session> {
    let store = Store::open(settings.config.lake()?, &settings.config.reach()).await?;
    let config = &settings.config;
    Ok(Session::open(&store, &settings.catalog, config.partition, config.memory.as_u64() as usize).await?)
}

/// Writes a statement's result, row by row as it comes.
pub async fn print(
    session: &Session,
    sql: &str,
    values: &[(String, Value)],
    format: Format,
    to: impl Write + Send,
) -> anyhow::Result<()> {
    let mut batches = session.query(sql, values).await?;
    let mut renderer = Renderer::new(format, batches.schema(), to)?;
    while let Some(batch) = batches.next().await {
        renderer.write(batch.map_err(QueryError::from)?)?;
    }
    renderer.finish()?;
    Ok(())
}

/// Records instead of a table where that is wider than the terminal.
pub fn by_width() -> Expanded {
    terminal_size::terminal_size().map_or(Expanded::Off, |(width, _)| Expanded::WiderThan(width.0.into()))
}

/// Bytes are not for a terminal.
pub fn check_stdout(format: FormatName) -> Result<(), Usage> {
    let shown = format == FormatName::Parquet && io::stdout().is_terminal();
    if shown {
        Err(Usage("--format parquet writes bytes: name a file with -o, or redirect them".to_owned()))
    } else {
        Ok(())
    }
}

/// Writes a statement's result to standard output; on a terminal, rows too wide for it as records.
pub async fn print_to_stdout(
    session: &Session,
    sql: &str,
    values: &[(String, Value)],
    form: Form,
) -> anyhow::Result<()> {
    check_stdout(form.format)?;
    let terminal = io::stdout().is_terminal();
    let expanded = if terminal { by_width() } else { Expanded::Off };
    print(session, sql, values, form.format(expanded, terminal), output::stdout()).await
}

/// What is wrong with what was given.
pub fn wrong(error: SavedError) -> anyhow::Error {
    Usage(error.to_string()).into()
}

/// A saved query by its name, or any file.
pub fn saved(name: &str) -> anyhow::Result<SavedQuery> {
    if let Some(own) = built_in().into_iter().find(|q| q.name == name) {
        return Ok(own);
    }
    let text = std::fs::read_to_string(name)
        .with_context(|| format!("can't read {name}, and no saved query has that name (see --list)"))?;
    SavedQuery::parse(name, &text).map_err(wrong)
}

/// What there is to ask without writing SQL.
pub fn listing(queries: &[SavedQuery]) -> String {
    let mut text = String::new();
    for query in queries {
        text += &format!("{}: {}\n    {}\n", query.name, query.title, query.answers);
        for parameter in &query.parameters {
            let default = parameter
                .default
                .as_ref()
                .map_or_else(|| " (has to be given)".to_owned(), |d| format!(" = {d}"));
            text += &format!(
                "    -p {} ({}){default}: {}\n",
                parameter.name,
                parameter.kind.name(),
                parameter.help
            );
        }
    }
    text
}
