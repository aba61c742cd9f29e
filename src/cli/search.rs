//! `flarelake search`: one value in every table.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use chrono::{Days, NaiveDate};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::output::{grouped, time};
use super::{End, Settings, Usage, output};
use crate::base::printable::printable;
use crate::base::store::Store;
use crate::base::{micros, now_micros};
use crate::search::{Found, Needle, Searched, TableHits, search};

/// What tells most of a row in one line, as far as its table has it.
const TELLING: [&str; 13] = [
    "Action",
    "Event",
    "reason",
    "ClientIP",
    "ClientCountry",
    "ClientRequestMethod",
    "ClientRequestHost",
    "ClientRequestPath",
    "EdgeResponseStatus",
    "RuleID",
    "Application",
    "RayID",
    "object_key",
];
/// Days in a chart, at most: the newest.
const WIDEST: usize = 90;

/// What to search for.
#[derive(Debug, Args)]
pub struct SearchArguments {
    /// An IP address in any spelling, a network (192.0.2.0/24), a host name, all below a domain
    /// (*.example.com), or a trace id
    #[arg(value_name = "VALUE", required = true)]
    values: Vec<String>,
    /// How far back
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30d")]
    since: Duration,
    /// How many of the newest rows to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    rows: usize,
    /// The form of the result
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// To read
    Table,
    /// One JSON array with an object for each value
    Json,
    /// An object a line for each value
    Ndjson,
}

pub async fn run(arguments: SearchArguments, settings: Settings) -> anyhow::Result<End> {
    let needles = arguments.values.iter().map(|text| Needle::parse(text)).collect::<Result<Vec<_>, _>>();
    let needles = needles.map_err(|e| Usage(e.to_string()))?;
    let store = Store::open(settings.config.lake()?, &settings.config.reach()).await?;
    let since = now_micros().saturating_sub(micros(arguments.since));
    let searched = search(&store, &settings.catalog, &needles, since, arguments.rows).await?;
    let answers = needles.iter().zip(&searched.found);
    match arguments.format {
        Form::Table => {
            let mut text = String::new();
            answers
                .clone()
                .try_for_each(|(needle, found)| show(&mut text, needle, found, &arguments.since))?;
            let (read, total) = (searched.bytes_read, searched.bytes_total);
            let share = 100.0 * read as f64 / total.max(1) as f64;
            let how_much = match read <= total {
                true => format!("read {} of {} bytes ({share:.2} %)", grouped(read), grouped(total)),
                false => format!(
                    "read {} bytes (the ends of small files more than once; there are {})",
                    grouped(read),
                    grouped(total)
                ),
            };
            writeln!(text, "{how_much} in {} files", searched.files)?;
            output::say(text)?;
        }
        Form::Json => output::json(&Value::Array(
            answers.map(|(needle, found)| told(needle, found, &searched)).collect(),
        ))?,
        Form::Ndjson => {
            answers.clone().try_for_each(|(needle, found)| output::json(&told(needle, found, &searched)))?
        }
    }
    Ok(End::Done)
}

/// For machines. What it took is that of all values together.
fn told(needle: &Needle, found: &Found, searched: &Searched) -> Value {
    let table = |t: &TableHits| {
        let days: Vec<Value> =
            t.days.iter().map(|(day, rows)| json!({"day": day.to_string(), "rows": rows})).collect();
        json!({"table": t.table, "rows": t.rows, "first_seen": time(t.times.0), "last_seen": time(t.times.1), "days": days})
    };
    let newest: Vec<Value> =
        found.newest.iter().map(|row| json!({"table": row.table, "row": row.row})).collect();
    json!({"value": needle.text, "tables": found.tables.iter().map(table).collect::<Vec<_>>(), "newest": newest,
        "files": searched.files, "bytes_read": searched.bytes_read, "bytes_total": searched.bytes_total})
}

/// For people.
fn show(text: &mut String, needle: &Needle, found: &Found, since: &Duration) -> std::fmt::Result {
    let value = printable(&needle.text);
    if found.tables.is_empty() {
        writeln!(text, "{value}: not seen within {}", humantime::format_duration(*since))?;
    } else {
        writeln!(text, "{value}")?;
    }
    let longest = found.tables.iter().map(|t| t.table.len()).max().unwrap_or_default();
    let last_day =
        found.tables.iter().filter_map(|t| t.days.keys().next_back()).max().copied().unwrap_or_default();
    let first_day =
        found.tables.iter().filter_map(|t| t.days.keys().next()).min().copied().unwrap_or_default();
    for t in &found.tables {
        let name = format!("{:longest$}", t.table);
        writeln!(text, "  {name}  {:>9} rows  {} to {}", grouped(t.rows), time(t.times.0), time(t.times.1))?;
        if std::io::stdout().is_terminal() {
            writeln!(
                text,
                "  {:longest$}  {}  by day, {first_day} to {last_day}",
                "",
                chart(t, first_day, last_day)
            )?;
        }
    }
    for row in &found.newest {
        let value = |name: &&str| {
            let value = row.row.get(*name)?;
            Some(format!(
                "{name}={}",
                value.as_str().map_or_else(|| value.to_string(), |s| printable(s).into_owned())
            ))
        };
        let at = row.row.get("p_event_time").and_then(Value::as_str).unwrap_or_default();
        writeln!(
            text,
            "  {at}  {}  {}",
            row.table,
            TELLING.iter().filter_map(value).collect::<Vec<_>>().join(" ")
        )?;
    }
    Ok(())
}

/// A bar a day.
fn chart(table: &TableHits, first: NaiveDate, last: NaiveDate) -> String {
    const BARS: [char; 9] = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = table.days.values().max().copied().unwrap_or(1).max(1);
    let days = (last - first).num_days().unsigned_abs() as usize + 1;
    let first = first.checked_add_days(Days::new(days.saturating_sub(WIDEST) as u64)).unwrap_or(first);
    let bar = |day: NaiveDate| BARS[(table.days.get(&day).copied().unwrap_or(0) * 8).div_ceil(most) as usize];
    first.iter_days().take_while(|day| *day <= last).map(bar).collect()
}
