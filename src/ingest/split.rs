//! An object's inflated bytes to records: where one ends and the next begins (DESIGN: framing).
//!
//! * A line of one or more complete JSON values is those records.
//! * `[` as the first byte opens an array of records.
//! * An incomplete line goes on only if the next one continues it; otherwise it is one reject.
//! * An error inside a value rejects as little as can be told apart, and never a neighbour.
//!
//! The splitter sees the object through a window that the caller moves on; it keeps no bytes but those of a
//! record that is too large.

use super::json::{Fault, Field, Scanner};
use super::reject::Reason;

/// How much of a rejected record is kept.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What the splitter found next. Positions are in the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A complete JSON object; its fields are in the slice given to [`Splitter::next`].
    Record {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
    },
    /// Bytes that are no record.
    Broken {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Why.
        reason: Reason,
        /// What exactly is wrong.
        message: String,
    },
    /// A record larger than the limit, known only now to its end; its first bytes were kept aside.
    Oversize(Oversize),
    /// The window ends inside a record: give more bytes, from `Splitter::position` on.
    NeedMore,
    /// Nothing is left.
    Done,
}

/// A record over the limit, of which only the beginning was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oversize {
    /// Offset of its first byte in the object.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its first bytes, at most [`MAX_PAYLOAD`].
    pub head: Vec<u8>,
    multi_line: bool,
}

/// How records stand one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Before the first byte that is not white space.
    Unknown,
    /// Lines of values.
    Lines,
    /// Inside the array that the object opened with; true once an element was seen.
    Array(bool),
}

/// The state between windows of one object.
#[derive(Debug)]
pub struct Splitter {
    framing: Framing,
    max_record: usize,
    skipping: Option<Oversize>,
    /// Where in the window the next piece begins.
    position: usize,
    /// A record ended right before `position`: one comma may stand here.
    after_record: bool,
    /// How far `position` is indented, if nothing else stands before it on its line.
    indent: Option<usize>,
}

impl Splitter {
    /// A splitter for one object whose records may have `max_record` bytes. `framing` is unknown, unless the
    /// object goes on where another ended.
    pub fn new(max_record: usize, framing: Framing) -> Self {
        Self { framing, max_record, skipping: None, position: 0, after_record: false, indent: Some(0) }
    }

    /// The first byte of the window that is still needed.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How the records at [`position`](Self::position) are framed.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether a record over the limit is being passed over.
    pub fn is_skipping(&self) -> bool {
        self.skipping.is_some()
    }

    /// Tells that the window's first `bytes` are gone.
    pub fn shift(&mut self, bytes: usize) {
        self.position -= bytes;
    }

    /// The next piece in `window`, which stands at `offset` in the object; `last` if the object ends with it.
    /// For a record, `fields` holds its fields.
    pub fn next(&mut self, scanner: &mut Scanner, window: &[u8], offset: u64, last: bool, fields: &mut Vec<Field>) -> Piece {
        if self.skipping.is_some() {
            return self.skip_on(window, last);
        }
        let start = match self.start_of_value(window, offset, last) {
            Ok(start) => start,
            Err(piece) => return piece,
        };
        self.position = start;
        if window[start] != b'{' {
            return match scanner.skip(window, start) {
                Ok(end) => self.broken(window, start, end, Reason::NotAnObject, format!("{}, not an object", kind_name(window[start]))),
                Err(fault) => self.recover(window, offset, last, start, fault),
            };
        }
        match scanner.object(window, start, fields) {
            Ok(end) if end - start <= self.max_record => {
                self.took(end, true);
                Piece::Record { start, end }
            }
            Ok(end) => self.broken(
                window,
                start,
                end,
                Reason::RecordTooLarge,
                format!("{} bytes; the limit is {} (limits.max_record)", end - start, self.max_record),
            ),
            Err(fault) => self.recover(window, offset, last, start, fault),
        }
    }

    fn took(&mut self, end: usize, record: bool) {
        self.position = end;
        self.after_record = record;
        self.indent = None;
        if let Framing::Array(seen) = &mut self.framing {
            *seen = true;
        }
    }

    fn broken(&mut self, window: &[u8], start: usize, end: usize, reason: Reason, message: String) -> Piece {
        self.took(end, false);
        Piece::Broken { start, end: start + window[start..end].trim_ascii_end().len(), reason, message }
    }

    /// Where the next value begins, past white space, commas and the array's brackets.
    fn start_of_value(&mut self, window: &[u8], offset: u64, last: bool) -> Result<usize, Piece> {
        let mut at = self.position;
        if offset == 0 && at == 0 && self.framing == Framing::Unknown {
            if !last && window.len() < BYTE_ORDER_MARK.len() {
                return Err(Piece::NeedMore);
            }
            if window.starts_with(BYTE_ORDER_MARK) {
                at = BYTE_ORDER_MARK.len();
            }
        }
        loop {
            while let Some(space) = window.get(at).filter(|b| b.is_ascii_whitespace()) {
                self.indent = if *space == b'\n' { Some(0) } else { self.indent.map(|n| n + 1) };
                at += 1;
            }
            self.position = at;
            let Some(&here) = window.get(at) else {
                return Err(if last { Piece::Done } else { Piece::NeedMore });
            };
            match (self.framing, here) {
                (Framing::Unknown, b'[') => {
                    if let Some(piece) = self.open_array(window, at, last) {
                        return Err(piece);
                    }
                    at += 1;
                }
                (Framing::Unknown, _) => self.framing = Framing::Lines,
                (_, b',') if self.after_record => {
                    self.after_record = false;
                    at += 1;
                }
                (Framing::Array(true), b',') => at += 1,
                (Framing::Array(_), b']') => {
                    self.framing = Framing::Lines;
                    self.after_record = false;
                    at += 1;
                }
                _ => return Ok(at),
            }
            if at > self.position {
                self.indent = None;
            }
        }
    }

    /// Opens the array of records. An empty array with something after it is no array of records: a reject.
    fn open_array(&mut self, window: &[u8], at: usize, last: bool) -> Option<Piece> {
        let inside = window[at + 1..].trim_ascii_start();
        let after = match inside.first() {
            None if !last => return Some(Piece::NeedMore),
            Some(b']') => inside[1..].trim_ascii_start(),
            _ => {
                self.framing = Framing::Array(false);
                return None;
            }
        };
        match after.first() {
            None if !last => Some(Piece::NeedMore),
            None => {
                self.framing = Framing::Array(false);
                None
            }
            Some(_) => {
                self.framing = Framing::Lines;
                let end = window.len() - inside.len() + 1;
                Some(self.broken(window, at, end, Reason::NotAnObject, "an array, not an object".into()))
            }
        }
    }

    /// What to make of a value that could not be read.
    fn recover(&mut self, window: &[u8], offset: u64, last: bool, start: usize, fault: Fault) -> Piece {
        let at = fault.position(window.len()).min(window.len());
        let multi_line = memchr::memchr(b'\n', &window[start..at]).is_some();
        let end = if fault == Fault::End { last.then_some(window.len()) } else { self.end_of_broken(window, start, at, multi_line, last) };
        let Some(end) = end else {
            if window.len() - start > self.max_record {
                return self.skip(window, offset, start, multi_line, last);
            }
            return Piece::NeedMore;
        };
        if end - start > self.max_record {
            return self.broken(
                window,
                start,
                end,
                Reason::RecordTooLarge,
                format!("{} bytes without a complete record; the limit is {} (limits.max_record)", end - start, self.max_record),
            );
        }
        let (reason, message) = match fault {
            Fault::End => (Reason::Incomplete, "the object ends inside the record".to_owned()),
            Fault::LineEnd(_) => (Reason::Incomplete, "the line ends inside the record".to_owned()),
            Fault::TooDeep(at) => (Reason::TooDeep, format!("nested too deeply at byte {} of the record (limits.max_depth)", at - start)),
            Fault::Syntax(at, what) => (Reason::InvalidJson, format!("{what}, at byte {} of the record", at - start)),
        };
        self.broken(window, start, end, reason, message)
    }

    /// Where the bytes of a broken value end; none if the window does not tell.
    fn end_of_broken(&self, window: &[u8], start: usize, fault: usize, multi_line: bool, last: bool) -> Option<usize> {
        let line_end = match memchr::memchr(b'\n', &window[fault..]) {
            Some(found) => fault + found,
            None if last => window.len(),
            None => return None,
        };
        if !multi_line {
            if let Some(end) = self.balanced_end(window, start, line_end) {
                return Some(end);
            }
            if window[start] != b'{' {
                return Some(line_end);
            }
        }
        let column = self.indent.unwrap_or(0);
        let mut end = line_end;
        while end < window.len() {
            let line = &window[end + 1..];
            let Some(&first) = line.first() else { return last.then_some(window.len()) };
            let goes_on = multi_line || first.is_ascii_whitespace() || matches!(first, b'"' | b'}');
            let indent = line.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            if indent == line.len() && !last {
                return None;
            }
            if !goes_on || (line.get(indent) == Some(&b'{') && indent <= column) {
                return Some(end);
            }
            match memchr::memchr(b'\n', line) {
                Some(found) => end += 1 + found,
                None if last => return Some(window.len()),
                None => return None,
            }
        }
        Some(end)
    }

    /// The end of the value at `start` told by its brackets alone, if what follows on the line looks like
    /// another record: then only this one is lost.
    fn balanced_end(&self, window: &[u8], start: usize, line_end: usize) -> Option<usize> {
        let (mut depth, mut in_string, mut at) = (0usize, false, start);
        while at < line_end {
            match window[at] {
                b'\\' if in_string => at += 1,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        let rest = window[at + 1..line_end].trim_ascii_start();
                        let array = matches!(self.framing, Framing::Array(_));
                        let follows = match rest.first() {
                            None => true,
                            Some(b'{') => true,
                            Some(b',') => rest[1..].trim_ascii_start().first().is_none_or(|b| *b == b'{'),
                            Some(b']') => array,
                            Some(_) => false,
                        };
                        return follows.then_some(at + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// Begins to skip a record that is larger than the limit.
    fn skip(&mut self, window: &[u8], offset: u64, start: usize, multi_line: bool, last: bool) -> Piece {
        self.skipping = Some(Oversize { offset: offset + start as u64, length: 0, head: Vec::new(), multi_line });
        self.position = start;
        self.skip_on(window, last)
    }

    fn skip_on(&mut self, window: &[u8], last: bool) -> Piece {
        let mut record = self.skipping.take().expect("only called while skipping");
        let rest = &window[self.position..];
        // The last byte is looked at again with what follows it.
        let found = memchr::memchr_iter(b'\n', rest).find(|&at| !record.multi_line || rest.get(at + 1) == Some(&b'{'));
        let (used, done) = match found {
            Some(at) => (at, true),
            None if last => (rest.len(), true),
            None => (rest.len().saturating_sub(1), false),
        };
        let keep = MAX_PAYLOAD.saturating_sub(record.head.len()).min(used);
        record.head.extend_from_slice(&rest[..keep]);
        record.length += used as u64;
        self.took(self.position + used, false);
        if done {
            return Piece::Oversize(record);
        }
        self.skipping = Some(record);
        Piece::NeedMore
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn kind_name(first: u8) -> &'static str {
    match first {
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}
