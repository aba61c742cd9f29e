//! The only writer to stdout.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, SecondsFormat};

/// Set when nobody reads our stdout any more. Kept apart from the error, which on its way up may be wrapped
/// by any writer, and which a socket's broken pipe looks like.
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

/// Whether whoever read our output has seen enough: no failure of ours.
pub fn reader_gone() -> bool {
    READER_GONE.load(Ordering::Relaxed)
}

/// Prints something that is no result: that nobody reads it is no error.
pub fn say(what: impl Display) -> io::Result<()> {
    let mut out = stdout();
    match write!(out, "{what}").and_then(|()| out.flush()) {
        Err(_) if reader_gone() => Ok(()),
        other => other,
    }
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
    DateTime::from_timestamp_micros(micros).map_or_else(String::new, |t| t.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}
