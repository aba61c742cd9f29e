//! The progress bar, where a person waits, and log lines that don't tear it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::sync::LazyLock;

use crate::ingest::metrics::Metrics;
use crate::ingest::worker::Meter;
use crate::maintain::rewrite::Progress as Totals;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes log lines to stderr, above a progress bar if one is shown.
#[derive(Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A bar that follows a meter until it is dropped; nothing if stderr is no terminal.
pub struct Progress {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// Shows what `meter` says.
    pub fn show(meter: Arc<Meter>) -> Self {
        Self::follow(style(meter.clone()), move || (Meter::get(&meter.bytes_done), Meter::get(&meter.bytes_total)))
    }

    /// Shows what `meter` says of a replay, whose objects are rejects.
    pub fn replay(meter: Arc<Meter>) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} rejects, {per_sec}, {eta} left");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self::follow(style, move || (Meter::get(&meter.objects_done), Meter::get(&meter.objects_total)))
    }

    /// Shows how much is done, of how much.
    fn follow(style: ProgressStyle, done: impl Fn() -> (u64, u64) + Send + 'static) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), task: None };
        }
        let bar = BARS.add(ProgressBar::new(0));
        bar.set_style(style);
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let (done, total) = done();
                shown.set_length(total);
                shown.set_position(done);
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

/// A line that follows an ingest's metrics until it is dropped; nothing if stderr is no terminal.
pub struct Status {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Status {
    /// Shows what `metrics` says.
    pub fn show(metrics: Arc<Metrics>) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), task: None };
        }
        let bar = BARS.add(ProgressBar::new_spinner());
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let grouped = super::output::grouped;
                let state = if metrics.readiness().is_ok() { "" } else { ", not ready" };
                shown.set_message(format!(
                    "{} messages held, oldest {:.0} s; {} objects landed, {} came again{state}",
                    grouped(metrics.held.get().max(0) as u64),
                    metrics.oldest.get(),
                    grouped(metrics.landed.get()),
                    grouped(metrics.duplicates.get()),
                ));
                shown.tick();
            }
        });
        Self { bar, task: Some(task) }
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

/// A bar that follows merges until it is dropped; nothing if stderr is no terminal.
pub struct Merging {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Merging {
    /// Shows what `totals` says.
    pub fn show(totals: Arc<Totals>) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), task: None };
        }
        let bar = BARS.add(ProgressBar::new(0));
        let template = "{bar:30} {human_pos}/{human_len} rows, {per_sec}, {msg}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                shown.set_length(get(&totals.rows));
                shown.set_position(get(&totals.rows_done));
                shown.set_message(format!("{}/{} merges", get(&totals.bins_done), get(&totals.bins)));
                shown.tick();
            }
        });
        Self { bar, task: Some(task) }
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
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
    ProgressStyle::with_template("{bar:30} {numbers}, {rate}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("numbers", numbers)
        .with_key("rate", rate)
}
