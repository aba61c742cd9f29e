//! Escapes untrusted text for display: clients of the protected sites choose user agents, paths and
//! referrers, and whoever may write to a bucket names its objects. None of it may control a terminal, split a
//! log line, or reverse the direction of the text beside it.

use std::borrow::Cow;
use std::io::{self, Write};

/// Control characters (those of C1, too), line ends of Unicode, what turns the direction of text, and what is
/// there unseen.
pub fn is_mischief(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text in one line, with `\u{1b}` for what must not be seen raw.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_mischief)
}

/// The same of a text that has lines of its own: these stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_mischief(c))
}

fn escaped(text: &str, is_meant: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_meant) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_meant(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Passes JSON on, with `\u009b` for what [`printable`] would escape and JSON itself lets through. Outside of
/// strings JSON is ASCII, so it says the same.
#[derive(Debug)]
pub struct JsonWriter<W> {
    to: W,
    /// The beginning of a character whose rest comes with the next write.
    begun: Vec<u8>,
}

impl<W: Write> JsonWriter<W> {
    pub fn new(to: W) -> Self {
        Self { to, begun: Vec::new() }
    }

    fn pass(&mut self, text: &str) -> io::Result<()> {
        let mut from = 0;
        // What is ASCII is JSON's own matter, but for DEL.
        for (at, c) in text.char_indices().filter(|(_, c)| *c >= '\u{7f}' && is_mischief(*c)) {
            self.to.write_all(&text.as_bytes()[from..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(self.to, "\\u{unit:04x}")?;
            }
            from = at + c.len_utf8();
        }
        self.to.write_all(&text.as_bytes()[from..])
    }
}

impl<W: Write> Write for JsonWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let joined;
        let mut rest = bytes;
        if !self.begun.is_empty() {
            joined = [std::mem::take(&mut self.begun).as_slice(), bytes].concat();
            rest = &joined;
        }
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.pass(text)?;
                    return Ok(bytes.len());
                }
                Err(error) => {
                    let (text, other) = rest.split_at(error.valid_up_to());
                    self.pass(std::str::from_utf8(text).unwrap_or_default())?;
                    let Some(broken) = error.error_len() else {
                        self.begun = other.to_vec();
                        return Ok(bytes.len());
                    };
                    // No JSON of ours: as it is.
                    self.to.write_all(&other[..broken])?;
                    rest = &other[broken..];
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
