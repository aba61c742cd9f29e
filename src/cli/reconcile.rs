//! `flarelake reconcile`: what a bucket holds and the lake lacks, landed on demand, and the gaps that
//! Cloudflare itself left.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use super::output::{grouped, time};
use super::progress::Progress;
use super::{End, Settings, Usage, answer, backfill, output, parts};
use crate::base::clock;
use crate::base::printable::printable;
use crate::base::{micros, now_micros};
use crate::ingest::backfill::{Backfill, Summary};
use crate::recover::{Absent, Gap, Reconciled, State, Tally, Window, is_dated, reconcile};
use crate::source::origin::{Origin, bucket_of, list_objects};
use crate::source::routing::Sources;

/// What to compare.
#[derive(Debug, Args)]
pub struct ReconcileArguments {
    /// s3://bucket/prefix: where Cloudflare pushes to
    #[arg(value_name = "URL")]
    url: String,
    /// Land what is missing
    #[arg(long)]
    repair: bool,
    /// Only objects written in the last TIME; by default all
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// How old an object must be to count as missing
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "15m")]
    grace: Duration,
    /// Report gaps longer than this; by default, more than 5 minutes and 3 times what is usual in their
    /// stream
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    gap: Option<Duration>,
    /// The form of the report
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// To read
    Table,
    /// One JSON object
    Json,
}

pub async fn run(arguments: ReconcileArguments, settings: Settings) -> anyhow::Result<End> {
    let url = &arguments.url;
    let Some(bucket) = bucket_of(url) else {
        let why = "only buckets are reconciled; `flarelake backfill` lands from files and folders what is missing, and says how much was there";
        return Err(Usage(format!("{url}: {why}")).into());
    };
    settings.config.lake()?;
    let configured = settings.config.source.clone();
    let log_types = parts::routed_log_types(&settings, &configured)?;
    let sources = Sources { configured, log_types, ..Sources::default() };
    let buckets = backfill::buckets(&sources, bucket).await;
    let (bucket, listed) = list_objects(url, buckets.as_ref()).await?;
    let listed: Vec<_> = listed.try_collect().await?;
    // A lake that is not there yet lacks everything; only a repair makes it.
    let lake = if arguments.repair { Some(parts::open_lake(&settings.config).await?) } else { None };
    let now = now_micros();
    let window = Window {
        from: arguments.since.map(|since| now.saturating_sub(micros(since))),
        settled: now.saturating_sub(micros(arguments.grace)),
    };
    let mut found = reconcile(&answer::open(&settings).await?, &bucket, listed, window).await?;
    // Below a day's prefix nothing comes when the day is over.
    let until = (!is_dated(url)).then_some(window.settled / 1_000_000);
    let gaps = found.streams.gaps(until, arguments.gap.map(|gap| gap.as_secs() as i64));
    let report = Report { arguments: &arguments, bucket: &bucket, found: &found, gaps: &gaps };
    if arguments.format == Form::Table {
        output::say(&report)?;
    }
    let repaired = match lake {
        Some(lake) if !found.absent.is_empty() => {
            let workers = parts::affordable_workers(&settings.config);
            let backfill = backfill::backfill(&settings, Some(lake), sources, workers);
            let origins = found
                .absent
                .iter()
                .map(|absent| Origin::listed(buckets.clone(), &bucket, absent.object.clone()));
            Some(repair(backfill, origins.collect(), arguments.format).await?)
        }
        _ => None,
    };
    if arguments.format == Form::Json {
        let mut told = report.json();
        told["repaired"] = repaired.as_ref().map_or(Value::Null, |(summary, _)| landed(summary));
        output::json(&told)?;
    }
    Ok(match repaired {
        Some((_, true)) => End::Interrupted,
        Some((summary, _)) if summary.failed.is_empty() => End::Done,
        None if found.absent.is_empty() => End::Done,
        _ => End::Incomplete,
    })
}

/// Lands what is missing; what came of it, and whether it was interrupted.
async fn repair(backfill: Backfill, origins: Vec<Origin>, form: Form) -> anyhow::Result<(Summary, bool)> {
    let interrupted = backfill::stop_on_signal(backfill.stop.clone());
    let began = clock::now();
    let progress = Progress::show(backfill.meter.clone());
    let summary = backfill.origins(origins).await?;
    drop(progress);
    if form == Form::Table {
        let report = backfill::Report {
            summary: &summary,
            backfill: &backfill,
            seconds: began.elapsed().as_secs_f64(),
        };
        output::say(format_args!("\nrepaired\n{report}"))?;
    }
    Ok((summary, interrupted.load(Ordering::Relaxed)))
}

/// A repair, for machines.
fn landed(summary: &Summary) -> Value {
    json!({"landed": summary.landed, "already_there": summary.already_there, "no_logs": summary.skipped, "failed": summary.failed,
        "not_begun": summary.not_begun, "rows": summary.rows, "rejects": summary.rejects})
}

struct Report<'a> {
    arguments: &'a ReconcileArguments,
    bucket: &'a str,
    found: &'a Reconciled,
    gaps: &'a [Gap],
}

/// A state as the report calls it, in a word for machines.
fn code(state: State) -> &'static str {
    match state {
        State::Missing => "missing",
        State::Unread => "rejected_unread",
        State::Changed => "changed",
        State::Landed => "landed",
        State::OnItsWay => "on_its_way",
        State::NoLog => "no_log",
        State::Older => "older",
    }
}

impl Report<'_> {
    fn of(&self, state: State) -> Tally {
        self.found.tallies.get(&state).copied().unwrap_or_default()
    }

    fn listed(&self) -> Tally {
        let mut all = Tally::default();
        self.found.tallies.values().for_each(|tally| all.add(tally.objects, tally.bytes));
        all
    }

    fn json(&self) -> Value {
        let tally = |tally: Tally| json!({"objects": tally.objects, "bytes": tally.bytes});
        let absent = |Absent { state, object }: &Absent| {
            json!({"state": code(*state), "key": object.key, "etag": object.head.etag, "bytes": object.head.size,
                "last_modified": object.head.last_modified.map(time)})
        };
        let gap = |gap: &Gap| json!({"stream": gap.stream, "from": seconds(gap.from), "until": gap.until.map(seconds), "seconds": gap.seconds});
        let mut told = json!({"url": self.arguments.url, "listed": tally(self.listed()),
            "absent": self.found.absent.iter().map(absent).collect::<Vec<_>>(),
            "gaps": self.gaps.iter().map(gap).collect::<Vec<_>>(), "without_time_range": self.found.streams.unnamed});
        use State::{Changed, Landed, Missing, NoLog, Older, OnItsWay, Unread};
        for state in [Landed, OnItsWay, NoLog, Older, Missing, Unread, Changed] {
            told[code(state)] = tally(self.of(state));
        }
        told
    }

    fn tallies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { objects, bytes } = self.listed();
        writeln!(f, "listed:  {} objects, {} bytes", grouped(objects), grouped(bytes))?;
        let younger =
            format!("on their way: younger than {}", humantime::format_duration(self.arguments.grace));
        let told = [
            (State::Landed, "landed"),
            (State::OnItsWay, &younger),
            (State::NoLog, "no logs"),
            (State::Older, "older than --since: not looked at"),
            (State::Missing, "missing"),
            (State::Unread, "rejected unread: it was missing, or reading it was denied"),
            (State::Changed, "changed since they landed"),
        ];
        for (state, what) in told {
            let Tally { objects, bytes } = self.of(state);
            if objects > 0 || matches!(state, State::Landed | State::Missing) {
                writeln!(f, "         {} {what}, {} bytes", grouped(objects), grouped(bytes))?;
            }
        }
        Ok(())
    }

    fn gaps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match self.arguments.gap {
            Some(gap) => humantime::format_duration(gap).to_string(),
            None => "5m and 3 times what is usual in their stream".to_owned(),
        };
        match self.gaps {
            _ if self.found.streams.is_empty() => {}
            [] => writeln!(f, "gaps:    none longer than {rule}")?,
            gaps => writeln!(
                f,
                "gaps:    {} longer than {rule}, that no object of the bucket covers",
                gaps.len()
            )?,
        }
        for gap in self.gaps {
            let stream = shown(self.bucket, &gap.stream);
            let long = humantime::format_duration(Duration::from_secs(gap.seconds as u64));
            match gap.until {
                Some(until) => {
                    writeln!(f, "         {stream}: {} to {}, {long}", seconds(gap.from), seconds(until))?
                }
                None => writeln!(f, "         {stream}: nothing since {}, {long}", seconds(gap.from))?,
            }
        }
        match self.found.streams.unnamed {
            0 => Ok(()),
            n => writeln!(
                f,
                "         {} objects have no time range in their names: of them no gap can be told",
                grouped(n)
            ),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self
            .found
            .absent
            .iter()
            .map(|absent| grouped(absent.object.head.size).len())
            .max()
            .unwrap_or_default();
        for Absent { state, object } in &self.found.absent {
            let written = object.head.last_modified.map(time).unwrap_or_default();
            let size = grouped(object.head.size);
            writeln!(
                f,
                "{:15}  {written:20}  {size:>widest$} bytes  {}",
                code(*state).replace('_', " "),
                shown(self.bucket, &object.key)
            )?;
        }
        self.tallies(f)?;
        self.gaps(f)?;
        match (self.found.absent.is_empty(), self.arguments.repair) {
            (true, _) => writeln!(f, "nothing is missing"),
            (false, true) => Ok(()),
            (false, false) => writeln!(f, "to land what is missing, run the same with --repair"),
        }
    }
}

/// A key, or its beginning, in one line.
fn shown(bucket: &str, key: &str) -> String {
    format!("s3://{bucket}/{}", printable(key))
}

fn seconds(seconds: i64) -> String {
    time(seconds.saturating_mul(1_000_000))
}
