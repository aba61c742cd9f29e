//! Splits an object's inflated bytes into records.
//!
//! * A line of one or more complete JSON values is those records.
//! * `[` as the first byte opens an array of records.
//! * An incomplete line goes on only if the next one continues it; otherwise it is one reject.
//! * An error inside a value rejects as little as can be delimited, and never a neighbour.
//! * Lines that are not JSON at all, such as a table's, are one reject, up to a line that starts like a
//!   record.
//!
//! The splitter sees the object through a window that the caller advances; it keeps bytes only of records
//! that are too large.

use super::foreign::{Passage, Sniffed, sniff};
use super::json::{Fault, Field, Nest, Scanner};
use super::reject::Reason;
use super::resync::{End, Extent};

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
        reason: Reason,
        /// What exactly is wrong.
        message: String,
    },
    /// Bytes that are no record, of which not all are in the window any more.
    Kept(KeptBytes),
    /// The window ends inside a record: give more bytes, from `Splitter::position` on.
    NeedMore,
    Done,
}

/// Bytes that are no record, of which only the beginning was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBytes {
    /// Offset of the first byte in the object.
    pub offset: u64,
    /// How many bytes there were.
    pub length: u64,
    /// The first of them, at most [`MAX_PAYLOAD`].
    pub head: Vec<u8>,
    /// Why they are no record.
    pub reason: Reason,
    pub what: &'static str,
}

#[derive(Debug, Clone)]
enum Skipped {
    /// A record that is too large.
    Record(Extent),
    Foreign(Passage),
}

impl Skipped {
    fn scan(&mut self, bytes: &[u8]) -> Option<End> {
        match self {
            Self::Record(extent) => extent.scan(bytes),
            Self::Foreign(passage) => passage.scan(bytes),
        }
    }

    fn finish(&self) -> End {
        match self {
            Self::Record(extent) => extent.finish(),
            Self::Foreign(passage) => passage.finish(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Framing {
    /// Before the first byte that is not white space.
    #[default]
    Unknown,
    /// Lines of values.
    Lines,
    /// Inside the array that the object opened with at this offset; true once an element was seen.
    Array(u64, bool),
}

/// How records stand one after the other, at a place between two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    framing: Framing,
    /// A value ended right before: one comma may stand here.
    after_value: bool,
    /// How far the place is indented, if nothing else stands before it on its line.
    indent: Option<usize>,
}

impl Place {
    pub const START: Self = Self { framing: Framing::Unknown, after_value: false, indent: Some(0) };

    /// A line's beginning, among lines: where a record stands that was cut out of its object.
    pub const LINE: Self = Self { framing: Framing::Lines, after_value: false, indent: Some(0) };
}

/// The state between windows of one object.
#[derive(Debug)]
pub struct Splitter {
    place: Place,
    max_record: usize,
    skipping: Option<(KeptBytes, Skipped)>,
    /// What the value before was in, if it could not be read on.
    nest: Nest,
    /// A value was read, or passed over.
    begun: bool,
    /// Bytes that were read to find where broken values end.
    work: u64,
    /// An array of records that was empty: a reject, if anything follows it.
    empty_array: Option<KeptBytes>,
    /// Where in the window the next piece begins.
    position: usize,
}

impl Splitter {
    /// A splitter for one object whose records may have `max_record` bytes. `place` is [`Place::START`],
    /// unless the object goes on where another was cut.
    pub fn new(max_record: usize, place: Place) -> Self {
        Self {
            place,
            max_record,
            skipping: None,
            nest: Nest::default(),
            begun: false,
            work: 0,
            empty_array: None,
            position: 0,
        }
    }

    /// The first byte of the window that is still needed.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How the records at [`position`](Self::position) stand.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether a record over the limit is being passed over.
    pub fn is_skipping(&self) -> bool {
        matches!(self.skipping, Some((_, Skipped::Record(_))))
    }

    /// How many bytes were read to find where broken values end, those that were read twice twice.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Tells that the window's first `bytes` are gone.
    pub fn shift(&mut self, bytes: usize) {
        self.position -= bytes;
        self.nest.shift(bytes);
    }

    /// The next piece in `window`, which stands at `offset` in the object; `last` if the object ends with it.
    /// For a record, `fields` holds its fields.
    pub fn next(
        &mut self,
        scanner: &mut Scanner,
        window: &[u8],
        offset: u64,
        last: bool,
        fields: &mut Vec<Field>,
    ) -> Piece {
        if self.skipping.is_some() {
            return self.skip_on(window, last);
        }
        let start = match self.start_of_value(window, offset, last) {
            Ok(start) => start,
            Err(piece) => return piece,
        };
        if let Some(array) = self.empty_array.take() {
            return Piece::Kept(array);
        }
        if window[start] != b'{' {
            let is_line =
                self.place.framing == Framing::Lines && self.place.indent.is_some() && window[start] != b'[';
            match if is_line { sniff(&window[start..], !self.begun, last) } else { Sniffed::Nothing } {
                Sniffed::Nothing => {}
                Sniffed::NeedMore => return Piece::NeedMore,
                Sniffed::Foreign(foreign) => {
                    let (offset, reason) = (offset + start as u64, Reason::ForeignFormat);
                    let kept = KeptBytes { offset, length: 0, head: Vec::new(), reason, what: foreign.what };
                    self.skipping = Some((kept, Skipped::Foreign(Passage::new(foreign))));
                    return self.skip_on(window, last);
                }
            }
            let message = format!("{}, not an object", kind_name(window[start]));
            return match scanner.skip(window, start) {
                Ok(end) => self.broken(window, start, end, Reason::NotAnObject, message),
                Err(fault) => self.recover(window, offset, last, start, fault),
            };
        }
        match scanner.object(window, start, fields, &mut self.nest) {
            Ok(end) if end - start <= self.max_record => {
                self.took(end);
                Piece::Record { start, end }
            }
            Ok(end) => {
                let message =
                    format!("{} bytes; the limit is {} (limits.max_record)", end - start, self.max_record);
                self.broken(window, start, end, Reason::RecordTooLarge, message)
            }
            Err(fault) => self.recover(window, offset, last, start, fault),
        }
    }

    /// A value ended at `end`.
    fn took(&mut self, end: usize) {
        self.position = end;
        self.begun = true;
        self.place.after_value = true;
        self.place.indent = None;
        if let Framing::Array(_, seen) = &mut self.place.framing {
            *seen = true;
        }
    }

    fn broken(&mut self, window: &[u8], start: usize, end: usize, reason: Reason, message: String) -> Piece {
        self.took(end);
        Piece::Broken { start, end: start + window[start..end].trim_ascii_end().len(), reason, message }
    }

    /// Where the next value begins, past white space, commas and the array's brackets.
    fn start_of_value(&mut self, window: &[u8], offset: u64, last: bool) -> Result<usize, Piece> {
        let mut at = self.position;
        if offset == 0 && at == 0 && self.place.framing == Framing::Unknown {
            if !last && window.len() < BYTE_ORDER_MARK.len() {
                return Err(Piece::NeedMore);
            }
            if window.starts_with(BYTE_ORDER_MARK) {
                at = BYTE_ORDER_MARK.len();
            }
        }
        loop {
            while let Some(space) = window.get(at).filter(|b| b.is_ascii_whitespace()) {
                self.place.indent = if *space == b'\n' { Some(0) } else { self.place.indent.map(|n| n + 1) };
                at += 1;
            }
            self.position = at;
            let Some(&here) = window.get(at) else {
                return Err(if last { Piece::Done } else { Piece::NeedMore });
            };
            match (self.place.framing, here) {
                (Framing::Unknown, b'[') => self.place.framing = Framing::Array(offset + at as u64, false),
                (Framing::Unknown, _) => {
                    self.place.framing = Framing::Lines;
                    continue;
                }
                (_, b',') if self.place.after_value => self.place.after_value = false,
                (Framing::Array(_, true), b',') => {}
                (Framing::Array(opened, seen), b']') => {
                    if !seen {
                        let length = offset + at as u64 + 1 - opened;
                        let (reason, what) = (Reason::NotAnObject, "an array, not an object");
                        self.empty_array =
                            Some(KeptBytes { offset: opened, length, head: b"[]".to_vec(), reason, what });
                    }
                    self.place.framing = Framing::Lines;
                    self.place.after_value = false;
                }
                _ => return Ok(at),
            }
            at += 1;
            self.place.indent = None;
        }
    }

    fn extent(&self, first: u8) -> Extent {
        Extent::new(first, self.place.indent.unwrap_or(0), matches!(self.place.framing, Framing::Array(..)))
    }

    /// What to make of a value that could not be read.
    fn recover(&mut self, window: &[u8], offset: u64, last: bool, start: usize, fault: Fault) -> Piece {
        let mut extent = self.extent(window[start]);
        let undecided = fault == Fault::End && !last;
        let found =
            if undecided { None } else { extent.scan(&window[start..]).or(last.then(|| extent.finish())) };
        self.work += found.map_or(window.len() - start, |end| end.resume as usize) as u64;
        let Some(end) = found else {
            if window.len() - start <= self.max_record {
                return Piece::NeedMore;
            }
            let (reason, what) = (Reason::RecordTooLarge, "a record that is too large");
            let kept = KeptBytes { offset: offset + start as u64, length: 0, head: Vec::new(), reason, what };
            self.skipping = Some((kept, Skipped::Record(self.extent(window[start]))));
            return self.skip_on(window, last);
        };
        let length = end.length as usize;
        let (reason, message) = match fault {
            _ if length > self.max_record => (
                Reason::RecordTooLarge,
                format!(
                    "{length} bytes without a complete record; the limit is {} (limits.max_record)",
                    self.max_record
                ),
            ),
            Fault::End => (Reason::Incomplete, "the object ends inside the record".to_owned()),
            Fault::LineEnd(_) => (Reason::Incomplete, "the line ends inside the record".to_owned()),
            Fault::TooDeep(at) => (
                Reason::TooDeep,
                format!("nested too deeply at byte {} of the record (limits.max_depth)", at - start),
            ),
            Fault::Syntax(at, what) => {
                (Reason::InvalidJson, format!("{what}, at byte {} of the record", at - start))
            }
        };
        let piece = self.broken(window, start, start + length, reason, message);
        self.position = start + end.resume as usize;
        self.place.indent = end.indent;
        piece
    }

    /// Passes over a record that is larger than the limit, or what is no JSON.
    fn skip_on(&mut self, window: &[u8], last: bool) -> Piece {
        let (mut kept, mut skipped) = self.skipping.take().expect("only called while skipping");
        let rest = &window[self.position..];
        let passed = kept.length;
        let found = skipped.scan(rest).or(last.then(|| skipped.finish()));
        let keep = MAX_PAYLOAD.saturating_sub(kept.head.len()).min(rest.len());
        kept.head.extend_from_slice(&rest[..keep]);
        let Some(end) = found else {
            kept.length += rest.len() as u64;
            self.position = window.len();
            self.skipping = Some((kept, skipped));
            return Piece::NeedMore;
        };
        self.took(self.position + (end.resume - passed) as usize);
        self.place.indent = end.indent;
        kept.length = end.length;
        kept.head.truncate(end.length as usize);
        Piece::Kept(kept)
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
