//! The progress bar, where a person waits, and log lines that don't tear it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::sync::LazyLock;

use crate::base::clock;
use crate::ingest::metrics::Metrics;
use crate::land::worker::Meter;
use crate::maintain::rewrite::Progress as Totals;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes log lines to stderr, above a progress bar if one is shown. A stderr that nobody reads any more, or
/// a full disk behind it, is no reason to stop: what is told is lost, and what is done is not.
#[derive(Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = BARS.suspend(|| io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stderr().flush();
        Ok(())
    }
}

/// What follows counters until it is dropped; nothing if stderr is no terminal.
pub struct Progress {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// A bar of what `meter` says.
    pub fn show(meter: Arc<Meter>) -> Self {
        Self::follow(style(meter.clone()), move |bar| {
            bar.set_length(Meter::get(&meter.bytes_total));
            bar.set_position(Meter::get(&meter.bytes_done));
        })
    }

    /// A bar of what `meter` says of a replay, whose objects are rejects.
    pub fn replay(meter: Arc<Meter>) -> Self {
        Self::follow(
            template("{bar:30} {human_pos}/{human_len} rejects, {per_sec}, {eta} left"),
            move |bar| {
                bar.set_length(Meter::get(&meter.objects_total));
                bar.set_position(Meter::get(&meter.objects_done));
            },
        )
    }

    /// A bar of merges.
    pub fn merges(totals: Arc<Totals>) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self::follow(
            template("{bar:30} {human_pos}/{human_len} rows, {per_sec}, {msg}, {eta} left"),
            move |bar| {
                bar.set_length(get(&totals.rows));
                bar.set_position(get(&totals.rows_done));
                bar.set_message(format!("{}/{} merges", get(&totals.bins_done), get(&totals.bins)));
            },
        )
    }

    /// A line of what an ingest does.
    pub fn status(metrics: Arc<Metrics>) -> Self {
        Self::follow(ProgressStyle::default_spinner(), move |bar| {
            let grouped = super::output::grouped;
            let state = if metrics.readiness().is_ok() { "" } else { ", not ready" };
            bar.set_message(format!(
                "{} messages held, oldest {:.0} s; {} objects landed, {} came again{state}",
                grouped(metrics.held.get().max(0) as u64),
                metrics.oldest.get(),
                grouped(metrics.landed.get()),
                grouped(metrics.duplicates.get()),
            ));
        })
    }

    fn follow(style: ProgressStyle, update: impl Fn(&ProgressBar) + Send + 'static) -> Self {
        if !io::stderr().is_terminal() {
            return Self {
                bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
                task: None,
            };
        }
        let bar = BARS.add(ProgressBar::new(0));
        bar.set_style(style);
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            loop {
                clock::sleep(Duration::from_millis(100)).await;
                update(&shown);
                shown.tick();
            }
        });
        Self { bar, task: Some(task) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

fn template(text: &str) -> ProgressStyle {
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn style(meter: Arc<Meter>) -> ProgressStyle {
    let records = meter.clone();
    let speed = meter.clone();
    let numbers = move |of: &ProgressState, to: &mut dyn std::fmt::Write| {
        let _ = of;
        let get = Meter::get;
        let _ = write!(
            to,
            "{}/{} objects, {} records, {} rejects",
            get(&records.objects_done),
            get(&records.objects_total),
            super::output::grouped(get(&records.records)),
            super::output::grouped(get(&records.rejects))
        );
    };
    let rate = move |of: &ProgressState, to: &mut dyn std::fmt::Write| {
        let seconds = of.elapsed().as_secs_f64().max(0.001);
        let _ = write!(to, "{:.0} MB/s", Meter::get(&speed.inflated) as f64 / 1e6 / seconds);
    };
    template("{bar:30} {numbers}, {rate}, {eta} left").with_key("numbers", numbers).with_key("rate", rate)
}
