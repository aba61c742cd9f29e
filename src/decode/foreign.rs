//! Text and files that are not JSON at all: tables, W3C logs, markup, other formats. Each is one reject that
//! says what it is, not one per cell. It ends before a line that starts like a record, so that no record is
//! lost.
//!
//! It is recognized by its first bytes, or by one or two lines: one broken record is no table.

use super::resync::End;

/// How many bytes are looked at.
const SNIFFED: usize = 64 << 10;

/// What stands at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// Nothing that is known.
    Nothing,
    /// This, to its end or to the object's.
    Foreign(Foreign),
    /// More bytes are needed to tell.
    NeedMore,
}

/// A format that is no JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// What it is, and what to do.
    pub what: &'static str,
    /// It goes on to the object's end, whatever its bytes look like.
    is_binary: bool,
}

/// How files begin that are no text.
const BINARY: [(&[u8], &str); 10] = [
    (b"PAR1", "a Parquet file, not JSON records"),
    (b"ARROW1", "an Arrow file, not JSON records"),
    (b"Obj\x01", "an Avro file, not JSON records"),
    (b"PK\x03\x04", "a zip archive; gzip, zstd and plain text are read"),
    (b"\xfd7zXZ\0", "compressed by xz; gzip, zstd and plain text are read"),
    (b"BZh91AY", "compressed by bzip2; gzip, zstd and plain text are read"),
    (b"\x04\x22\x4d\x18", "compressed by LZ4; gzip, zstd and plain text are read"),
    (b"\xff\x06\0\0sNaPpY", "compressed by Snappy; gzip, zstd and plain text are read"),
    (b"\xff\xfe", "text in UTF-16; JSON is UTF-8"),
    (b"\xfe\xff", "text in UTF-16; JSON is UTF-8"),
];
const LONGEST_MAGIC: usize = 10;

const DELIMITERS: [(u8, &str); 4] = [
    (
        b',',
        "a table of values between commas (CSV), not JSON records: Logpush writes JSON with output_type ndjson",
    ),
    (
        b'\t',
        "a table of values between tabs (TSV), not JSON records: Logpush writes JSON with output_type ndjson",
    ),
    (b';', "a table of values between semicolons, not JSON records"),
    (b'|', "a table of values between bars, not JSON records"),
];

/// What begins at a line's first byte that is no white space and opens no object or array. `at_start`:
/// nothing was read of the object before; `last`: nothing comes after `bytes`.
pub fn sniff(bytes: &[u8], at_start: bool, last: bool) -> Sniffed {
    if at_start {
        if let Some((_, what)) = BINARY.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            return Sniffed::Foreign(Foreign { what, is_binary: true });
        }
        if !last && bytes.len() < LONGEST_MAGIC {
            return Sniffed::NeedMore;
        }
    }
    let is_whole = last && bytes.len() <= SNIFFED;
    let seen = &bytes[..bytes.len().min(SNIFFED)];
    let undecided = if is_whole || bytes.len() >= SNIFFED { Sniffed::Nothing } else { Sniffed::NeedMore };
    let (first, rest) = match memchr::memchr(b'\n', seen) {
        Some(end) => (&seen[..end], &seen[end + 1..]),
        None if is_whole => (seen, &b""[..]),
        None => return undecided,
    };
    if let Some(what) = told_by_line(first.trim_ascii_end(), at_start) {
        return Sniffed::Foreign(Foreign { what, is_binary: false });
    }
    let Some(cells) = cells(first) else { return Sniffed::Nothing };
    let table = |delimiter: Option<usize>| match delimiter {
        Some(n) => Sniffed::Foreign(Foreign { what: DELIMITERS[n].1, is_binary: false }),
        None => Sniffed::Nothing,
    };
    // One line is a table only if it is all there is.
    let second = match memchr::memchr(b'\n', rest) {
        Some(end) => &rest[..end],
        None if is_whole => rest,
        None => return undecided,
    };
    if second.trim_ascii().is_empty() {
        let is_all = is_whole && rest.trim_ascii().is_empty();
        return table(if at_start && is_all { (0..DELIMITERS.len()).find(|n| cells[*n] > 0) } else { None });
    }
    let Some(next) = self::cells(second) else { return Sniffed::Nothing };
    table((0..DELIMITERS.len()).find(|n| cells[*n] > 0 && cells[*n] == next[*n]))
}

/// Whether a long text begins as no JSON does, where a line begins. It is looked at as far as [`sniff`]
/// looks.
pub fn is_foreign(beginning: &[u8]) -> bool {
    let opens = beginning.first().is_some_and(|first| matches!(first, b'{' | b'['));
    !opens && matches!(sniff(&beginning[..beginning.len().min(SNIFFED)], true, false), Sniffed::Foreign(_))
}

/// Formats that one line tells.
fn told_by_line(line: &[u8], at_start: bool) -> Option<&'static str> {
    let directive = line.strip_prefix(b"#").and_then(|rest| Some((rest, memchr::memchr(b':', rest)?)));
    if directive.is_some_and(|(rest, end)| {
        end > 2 && rest[..end].iter().all(|b| b.is_ascii_alphabetic() || *b == b'-')
    }) {
        return Some("a W3C extended log, not JSON records");
    }
    let is_markup = at_start
        && line.first() == Some(&b'<')
        && line.get(1).is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'?' | b'!'));
    is_markup.then_some("XML or HTML, not JSON records")
}

/// How many of each delimiter stand between a line's values; none for a line in which JSON may be.
fn cells(line: &[u8]) -> Option<[usize; 4]> {
    let line = line.trim_ascii_end();
    let (mut counts, mut in_quotes, mut after_quote) = ([0; 4], false, false);
    for byte in line {
        match byte {
            b'"' => {
                in_quotes = !in_quotes;
                after_quote = !in_quotes;
                continue;
            }
            _ if in_quotes => {}
            b'{' | b'}' | b'[' | b']' => return None,
            // A field's name and its value.
            b':' if after_quote => return None,
            b' ' => continue,
            _ => {
                if let Some(n) = DELIMITERS.iter().position(|(delimiter, _)| delimiter == byte) {
                    counts[n] += 1;
                }
            }
        }
        after_quote = false;
    }
    // A value with a comma behind it is one of an array.
    for (n, (delimiter, _)) in DELIMITERS.iter().enumerate() {
        if counts[n] == 1 && line.last() == Some(delimiter) {
            counts[n] = 0;
        }
    }
    (!in_quotes).then_some(counts)
}

/// Passes over what is foreign, over any number of windows.
#[derive(Debug, Clone)]
pub struct Passage {
    is_binary: bool,
    scanned: u64,
    /// One past the last byte that is no white space.
    length: u64,
    /// How far the line at hand is indented, as long as nothing else stands in it.
    indent: Option<usize>,
}

impl Passage {
    /// Over this, from its first byte.
    pub fn new(foreign: Foreign) -> Self {
        Self { is_binary: foreign.is_binary, scanned: 0, length: 0, indent: None }
    }

    /// Scans on. None: its end is not in these bytes.
    pub fn scan(&mut self, bytes: &[u8]) -> Option<End> {
        for byte in bytes {
            match (byte, self.indent) {
                (b'\n', _) => self.indent = Some(0),
                (b' ' | b'\t' | b'\r', indent) => self.indent = indent.map(|n| n + 1),
                (b'{' | b'[', Some(indent)) if !self.is_binary => {
                    return Some(End { length: self.length, resume: self.scanned, indent: Some(indent) });
                }
                _ => {
                    self.indent = None;
                    self.length = self.scanned + 1;
                }
            }
            self.scanned += 1;
        }
        None
    }

    /// The end of what nothing follows.
    pub fn finish(&self) -> End {
        End { length: self.length, resume: self.scanned, indent: None }
    }
}
