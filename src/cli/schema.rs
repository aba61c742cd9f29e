//! `flarelake schema`: the log types, their columns, and what makes their tables visible elsewhere.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::answer::{Form, open, print_to_stdout};
use super::{End, Settings, Usage, output};
use crate::base::store::Store;
use crate::base::{micros, now_micros};
use crate::query::{Value, drift};
use crate::schema::{Engine, LogType};
use crate::table::{FAILURES_TABLE, LEDGER_TABLE};

/// What to see.
#[derive(Debug, Args)]
pub struct SchemaArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The log types, with their tables
    List,
    /// A log type's columns, with their types and what they mean
    Show {
        /// Such as Cloudflare.HttpRequest, or cloudflare_httprequest
        #[arg(value_name = "LOG_TYPE")]
        log_type: String,
    },
    /// Fields that fit no column: unknown to the schema, or with values of the wrong type
    Drift {
        /// Only this log type
        #[arg(value_name = "LOG_TYPE")]
        log_type: Option<String>,
        /// How far back
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30d")]
        since: Duration,
        #[command(flatten)]
        form: Form,
    },
    /// The statements that make the lake's tables visible in another engine
    Ddl {
        /// The engine
        #[arg(long, value_enum)]
        dialect: Dialect,
        /// Only this table
        #[arg(long, value_name = "TABLE")]
        table: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dialect {
    Athena,
    Glue,
    Spark,
    Trino,
    Snowflake,
    Bigquery,
    Clickhouse,
    Duckdb,
}

impl From<Dialect> for Engine {
    fn from(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Athena => Self::Athena,
            Dialect::Glue => Self::Glue,
            Dialect::Spark => Self::Spark,
            Dialect::Trino => Self::Trino,
            Dialect::Snowflake => Self::Snowflake,
            Dialect::Bigquery => Self::BigQuery,
            Dialect::Clickhouse => Self::ClickHouse,
            Dialect::Duckdb => Self::DuckDb,
        }
    }
}

pub async fn run(arguments: SchemaArguments, settings: Settings) -> anyhow::Result<End> {
    let types = settings.catalog.types();
    match arguments.what {
        What::List => {
            let line = |t: &LogType| {
                format!(
                    "{}  {}  {} columns: {}\n",
                    t.name,
                    t.table_name(),
                    t.arrow_schema().fields().len(),
                    t.description
                )
            };
            output::say(types.iter().map(|t| line(t)).collect::<String>())?;
        }
        What::Show { log_type } => {
            output::say(shown(named(&settings, &log_type)?))?;
        }
        What::Drift { log_type, since, form } => {
            let of: Vec<&LogType> = match &log_type {
                Some(name) => vec![named(&settings, name)?],
                None => types.iter().map(AsRef::as_ref).collect(),
            };
            let since = now_micros().saturating_sub(micros(since));
            let session = open(&settings).await?;
            print_to_stdout(&session, &drift(&of), &[("since".to_owned(), Value::Time(since))], form).await?;
        }
        What::Ddl { dialect, table } => {
            let lake = Store::open(settings.config.lake()?, &settings.config.reach()).await?;
            let own = types
                .iter()
                .map(|t| t.table_name())
                .chain([FAILURES_TABLE.to_owned(), LEDGER_TABLE.to_owned()]);
            let tables: Vec<String> = own.filter(|name| table.as_ref().is_none_or(|t| t == name)).collect();
            if tables.is_empty() {
                return Err(Usage(format!("there is no table {}", table.unwrap_or_default())).into());
            }
            output::say(
                Engine::from(dialect).ddl(lake.url.as_str(), &tables).map_err(|e| Usage(e.to_string()))?,
            )?;
        }
    }
    Ok(End::Done)
}

/// A log type by its name or its table's, in any case.
fn named<'a>(settings: &'a Settings, name: &str) -> anyhow::Result<&'a LogType> {
    let types = settings.catalog.types();
    let found =
        types.iter().find(|t| t.name.eq_ignore_ascii_case(name) || t.table_name() == name.to_lowercase());
    // It is not there: the catalog says so, and what is.
    Ok(found.map_or_else(|| Ok(&types[settings.catalog.index_of(name)?]), anyhow::Ok)?)
}

fn shown(log_type: &LogType) -> String {
    let mut text = format!("{}: {}\n", log_type.name, log_type.description);
    if let Some(url) = &log_type.reference_url {
        text += &format!("{url}\n");
    }
    let longest = log_type.columns.iter().map(|c| c.name.len()).max().unwrap_or_default();
    for column in &log_type.columns {
        let required = if column.required { ", required" } else { "" };
        let aliases = if column.aliases.is_empty() {
            String::new()
        } else {
            format!(" (also {})", column.aliases.join(", "))
        };
        let kind = format!("{}{required}", column.kind.documented());
        writeln!(text, "  {:longest$}  {kind:20}  {}{aliases}", column.name, column.description)
            .expect("writing to a string");
    }
    for (standard, description) in &log_type.standard {
        writeln!(text, "  {:longest$}  {:20}  {description}", standard.name(), "")
            .expect("writing to a string");
    }
    text
}
