//! The only writer to stdout, and of messages to stderr.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, SecondsFormat};

use crate::base::printable::{JsonWriter, printable_lines};

/// Set when nobody reads our stdout any more: a socket's broken pipe looks like it.
static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Stdout, which notices that its reader has gone.
pub struct Stdout(io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).inspect_err(note)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().inspect_err(note)
    }
}

fn note(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        READER_GONE.store(true, Ordering::Relaxed);
    }
}

/// Stdout, buffered.
pub fn stdout() -> BufWriter<Stdout> {
    BufWriter::with_capacity(1 << 16, Stdout(io::stdout()))
}

/// Whether an error is that whoever read our output has seen enough: no failure of ours. What else went wrong
/// is one, read or not.
pub fn is_reader_gone(error: &anyhow::Error) -> bool {
    let is_broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    READER_GONE.load(Ordering::Relaxed) && error.chain().any(is_broken_pipe)
}

/// Prints something that is no result: that nobody reads it is no error. Names in it steer no terminal.
pub fn say(what: impl Display) -> io::Result<()> {
    let mut out = stdout();
    match out.write_all(printable_lines(&what.to_string()).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a value for machines, in a line.
pub fn json(value: &serde_json::Value) -> io::Result<()> {
    let mut out = JsonWriter::new(stdout());
    writeln!(out, "{value}")?;
    out.flush()
}

/// Prints a message to stderr. Where that is broken nobody can be told, and the work goes on.
pub fn tell(what: impl Display) {
    let _ = writeln!(io::stderr(), "{}", printable_lines(&what.to_string()));
}

/// A number with its thousands apart: `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A time in microseconds since the epoch, as RFC 3339 writes it.
pub fn time(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros)
        .map_or_else(String::new, |t| t.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}
