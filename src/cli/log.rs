//! The program's own log, on stderr: one line per event, whatever names and values it contains, and the work
//! goes on even if stderr can't be written.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Debug};
use std::io::IsTerminal as _;

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::{MakeVisitor, VisitFmt, VisitOutput};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;

use super::output;
use super::progress::LogWriter;
use crate::base::printable::{JsonWriter, printable};
use crate::config::LogFormat;

/// What is heard unless RUST_LOG says otherwise: other libraries only when something is wrong.
const QUIET: &str =
    "flarelake=info,warn,aws_config=error,deltalake=error,deltalake_core=error,buoyant_kernel=error";

pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| QUIET.into());
    // What can't be written is told by nobody: tracing's own word for it would panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).log_internal_errors(false);
    match format {
        LogFormat::Text => {
            log.with_writer(LogWriter::default)
                .with_ansi(std::io::stderr().is_terminal())
                .fmt_fields(InOneLine)
                .init();
        }
        LogFormat::Json => log.with_writer(JsonLog).json().flatten_event(true).init(),
    }
}

/// Makes a panic a message like any other: without what a value in it would do to a terminal.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let trace = Backtrace::capture();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        output::tell(format_args!(
            "a fault of the program, at {place}: {}",
            printable(panic.payload_as_str().unwrap_or_default())
        ));
        if trace.status() == BacktraceStatus::Captured {
            output::tell(trace);
        }
    }));
}

struct JsonLog;

impl MakeWriter<'_> for JsonLog {
    type Writer = JsonWriter<LogWriter>;

    fn make_writer(&self) -> Self::Writer {
        JsonWriter::new(LogWriter)
    }
}

/// The message, then `name=value`, as tracing writes them, but each in one line: an object's key or a
/// record's text may hold anything.
struct InOneLine;

impl<'a> MakeVisitor<Writer<'a>> for InOneLine {
    type Visitor = Fields<'a>;

    fn make_visitor(&self, to: Writer<'a>) -> Fields<'a> {
        Fields { to, written: Ok(()), any: false }
    }
}

struct Fields<'a> {
    to: Writer<'a>,
    written: fmt::Result,
    any: bool,
}

impl Visit for Fields<'_> {
    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{error}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.written.is_err() {
            return;
        }
        let gap = if std::mem::replace(&mut self.any, true) { " " } else { "" };
        let text = format!("{value:?}");
        let text = printable(&text);
        let name = field.name();
        self.written = match name {
            "message" => write!(self.to, "{gap}{text}"),
            _ if self.to.has_ansi_escapes() => {
                write!(self.to, "{gap}\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{text}")
            }
            _ => write!(self.to, "{gap}{name}={text}"),
        };
    }
}

impl VisitOutput<fmt::Result> for Fields<'_> {
    fn finish(self) -> fmt::Result {
        self.written
    }
}

impl VisitFmt for Fields<'_> {
    fn writer(&mut self) -> &mut dyn fmt::Write {
        &mut self.to
    }
}
