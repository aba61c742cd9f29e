//! One JSON object's bytes to its top-level fields, without copying: the scanner under the decoder.
//!
//! Cloudflare writes the same fields in the same order in every line of a file, so the scanner expects, after
//! each field, the one that followed it last time, and compares bytes before it looks anything up. It
//! checks the whole grammar (RFC 8259), and is strict where leniency would hide a broken record.
//!
//! Newlines are part of framing here: a line break inside a value is accepted only if the next line looks
//! like the continuation of a pretty-printed value (white space, `"` or `}`). So an incomplete line
//! never swallows its neighbour.

pub use super::escape::unescape;
use super::keys::{KeyId, Keys, UNKNOWN_KEY};

/// What a value is. Spans of strings exclude the quotes; all other spans cover the JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Text without an escape: the span is the text.
    Text,
    /// Text with at least one escape.
    Escaped,
    /// A number, as JSON writes one.
    Number,
    True,
    False,
    Null,
    /// An object, validated.
    Object,
    /// An array, validated.
    Array,
}

/// A value's kind and where it stands, in bytes from the record's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    pub kind: ValueKind,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A top-level field: its name and its value.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub key: KeyId,
    /// Where the name's text begins, and whether it holds escapes.
    pub name: Value,
    pub value: Value,
}

/// Why a value could not be read to its end. Positions are absolute in the scanned slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The slice ended inside the value.
    End,
    /// The line ended inside the value, and the next line does not continue it.
    LineEnd(usize),
    Syntax(usize, &'static str),
    /// Nested deeper than the limit.
    TooDeep(usize),
}

/// Reads values out of a byte slice. Holds scratch space, so one is kept for many records.
#[derive(Debug)]
pub struct Scanner {
    keys: Keys,
    max_depth: usize,
    /// Open containers.
    open: Vec<Open>,
    checkpoint: Checkpoint,
    work: u64,
}

/// A container that was not closed yet.
#[derive(Debug, Clone, Copy)]
struct Open {
    is_object: bool,
    /// Where it begins.
    at: usize,
}

/// Where scanning a container can go on.
#[derive(Debug, Clone, Copy, Default)]
struct Checkpoint {
    at: usize,
    may_close: bool,
    need_comma: bool,
}

/// The containers that were open where a value could not be read on, and how far it had been read. A value
/// that begins with one of them can't be read beyond that place either, or goes on from there: its bytes need
/// not be read again.
#[derive(Debug, Default)]
pub struct Nest {
    open: Vec<Open>,
    fault: Option<Fault>,
    checkpoint: Checkpoint,
}

impl Nest {
    /// Tells that the slice's first `bytes` are gone.
    pub fn shift(&mut self, bytes: usize) {
        let gone = self.open.partition_point(|open| open.at < bytes);
        self.open.drain(..gone);
        self.open.iter_mut().for_each(|open| open.at -= bytes);
        match self.checkpoint.at.checked_sub(bytes) {
            Some(at) => self.checkpoint.at = at,
            None => self.fault = None,
        }
        self.fault = self.fault.and_then(|fault| fault.shift(bytes));
    }
}

impl Fault {
    fn shift(self, bytes: usize) -> Option<Self> {
        Some(match self {
            Self::End => Self::End,
            Self::LineEnd(at) => Self::LineEnd(at.checked_sub(bytes)?),
            Self::Syntax(at, what) => Self::Syntax(at.checked_sub(bytes)?, what),
            Self::TooDeep(at) => Self::TooDeep(at.checked_sub(bytes)?),
        })
    }
}

/// Where in `bytes` scanning ended.
fn reached(bytes: &[u8], scanned: Result<usize, Fault>) -> usize {
    match scanned {
        Ok(at) | Err(Fault::LineEnd(at) | Fault::Syntax(at, _) | Fault::TooDeep(at)) => at,
        Err(Fault::End) => bytes.len(),
    }
}

impl Scanner {
    /// A scanner that numbers names by `keys` and refuses values nested deeper than `max_depth`.
    pub fn new(keys: Keys, max_depth: usize) -> Self {
        Self { keys, max_depth, open: Vec::new(), checkpoint: Checkpoint::default(), work: 0 }
    }

    /// How many bytes were read, those that were read twice twice.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Scans the object that begins at `bytes[start]` (a `{`) into `fields` and returns its end. `nest`: what
    /// the value before was in when it could not be read on; now, what this one was.
    pub fn object(
        &mut self,
        bytes: &[u8],
        start: usize,
        fields: &mut Vec<Field>,
        nest: &mut Nest,
    ) -> Result<usize, Fault> {
        self.known_fault(bytes, start, nest)?;
        self.open.clear();
        let scanned = self.fields(bytes, start, fields);
        self.work += reached(bytes, scanned).saturating_sub(start) as u64;
        scanned.inspect_err(|fault| self.leave(nest, *fault))
    }

    /// Keeps what a value was in that could not be read on.
    fn leave(&mut self, nest: &mut Nest, fault: Fault) {
        std::mem::swap(&mut nest.open, &mut self.open);
        (nest.fault, nest.checkpoint) = (Some(fault), self.checkpoint);
    }

    /// The fault of an object that begins inside a nest.
    fn known_fault(&mut self, bytes: &[u8], start: usize, nest: &mut Nest) -> Result<(), Fault> {
        let Some(fault) = nest.fault else { return Ok(()) };
        let Ok(place) = nest.open.binary_search_by_key(&start, |open| open.at) else { return Ok(()) };
        if !matches!(fault, Fault::TooDeep(_) | Fault::End) {
            return Err(fault);
        }
        // Of this object it is not so deep, or there are more bytes now: on from there.
        self.open.clear();
        self.open.extend(&nest.open[place..]);
        let scanned = self.rest_of_container(bytes, nest.checkpoint, 0);
        self.work += reached(bytes, scanned).saturating_sub(nest.checkpoint.at) as u64;
        match scanned {
            Ok(_) => nest.fault = None,
            Err(fault) => {
                self.leave(nest, fault);
                return Err(fault);
            }
        }
        Ok(())
    }

    fn fields(&mut self, bytes: &[u8], start: usize, fields: &mut Vec<Field>) -> Result<usize, Fault> {
        fields.clear();
        debug_assert_eq!(bytes[start], b'{');
        let relative = |at: usize| (at - start) as u32;
        let mut at = white_space(bytes, start + 1)?;
        if byte(bytes, at)? == b'}' {
            return Ok(at + 1);
        }
        let mut previous = 0;
        loop {
            if byte(bytes, at)? != b'"' {
                return Err(Fault::Syntax(at, "expected a field name in quotes"));
            }
            let (key, name_end, escaped) = self.key(bytes, at + 1, previous)?;
            let name_kind = if escaped { ValueKind::Escaped } else { ValueKind::Text };
            let name = Value { kind: name_kind, start: relative(at + 1), end: relative(name_end) };
            let colon = white_space(bytes, name_end + 1)?;
            if byte(bytes, colon)? != b':' {
                return Err(Fault::Syntax(colon, "expected `:` after the field name"));
            }
            let (kind, from, to, after) = self.value(bytes, white_space(bytes, colon + 1)?)?;
            fields.push(Field { key, name, value: Value { kind, start: relative(from), end: relative(to) } });
            previous = usize::from(key.wrapping_add(1));
            at = white_space(bytes, after)?;
            match byte(bytes, at)? {
                b',' => at = white_space(bytes, at + 1)?,
                b'}' => return Ok(at + 1),
                _ => return Err(Fault::Syntax(at, "expected `,` or the closing bracket")),
            }
        }
    }

    /// The end of the value that begins at `at`, whatever it is.
    pub fn skip(&mut self, bytes: &[u8], at: usize) -> Result<usize, Fault> {
        let scanned = self.value(bytes, at).map(|(.., after)| after);
        self.work += reached(bytes, scanned).saturating_sub(at) as u64;
        scanned
    }

    /// The name whose first byte is at `from`: its number, where it ends, and whether it holds escapes.
    #[inline]
    fn key(&mut self, bytes: &[u8], from: usize, previous: usize) -> Result<(KeyId, usize, bool), Fault> {
        let expected = self.keys.next[previous];
        if let Some(name) = self.keys.names.get(usize::from(expected)) {
            let end = from + name.len();
            if bytes.len() > end && bytes[end] == b'"' && bytes[from..end] == **name {
                return Ok((expected, end, false));
            }
        }
        let (end, escaped) = string_end(bytes, from)?;
        if escaped {
            // Never expected again: its bytes are not its text.
            self.keys.next[previous] = UNKNOWN_KEY;
            return Ok((self.escaped_key(&bytes[from..end]), end, true));
        }
        let key = self.keys.intern(&bytes[from..end]);
        self.keys.next[previous] = key;
        Ok((key, end, false))
    }

    /// The number of a name written with escapes: the name it spells.
    #[cold]
    fn escaped_key(&mut self, raw: &[u8]) -> KeyId {
        let mut name = String::new();
        match std::str::from_utf8(raw) {
            Ok(raw) if unescape(raw, &mut name) => self.keys.intern(name.as_bytes()),
            _ => UNKNOWN_KEY,
        }
    }

    /// The value at `at`: kind, first byte, one past its last, and where scanning goes on.
    #[inline]
    fn value(&mut self, bytes: &[u8], at: usize) -> Result<(ValueKind, usize, usize, usize), Fault> {
        match byte(bytes, at)? {
            b'"' => {
                let (end, escaped) = string_end(bytes, at + 1)?;
                Ok((if escaped { ValueKind::Escaped } else { ValueKind::Text }, at + 1, end, end + 1))
            }
            b'{' => self.container(bytes, at).map(|end| (ValueKind::Object, at, end, end)),
            b'[' => self.container(bytes, at).map(|end| (ValueKind::Array, at, end, end)),
            b'-' | b'0'..=b'9' => number_end(bytes, at).map(|end| (ValueKind::Number, at, end, end)),
            b't' => literal(bytes, at, b"true").map(|end| (ValueKind::True, at, end, end)),
            b'f' => literal(bytes, at, b"false").map(|end| (ValueKind::False, at, end, end)),
            b'n' => literal(bytes, at, b"null").map(|end| (ValueKind::Null, at, end, end)),
            _ => Err(Fault::Syntax(at, "expected a value")),
        }
    }

    /// The end of the object or array that begins at `at`. Not recursive: depth costs a few bytes, not a
    /// stack frame.
    fn container(&mut self, bytes: &[u8], at: usize) -> Result<usize, Fault> {
        self.open.clear();
        // The record itself is the first level.
        let at = self.enter(bytes, at, 1)?;
        // Directly after an opening bracket the container may close; after a comma it may not.
        self.rest_of_container(bytes, Checkpoint { at, may_close: true, need_comma: false }, 1)
    }

    /// The end of the outermost open container. `above`: levels beside those that are open.
    fn rest_of_container(&mut self, bytes: &[u8], from: Checkpoint, above: usize) -> Result<usize, Fault> {
        let Checkpoint { mut at, mut may_close, mut need_comma } = from;
        loop {
            self.checkpoint = Checkpoint { at, may_close, need_comma };
            at = white_space(bytes, at)?;
            let object = self.open[self.open.len() - 1].is_object;
            let here = byte(bytes, at)?;
            if may_close && here == if object { b'}' } else { b']' } {
                self.open.pop();
                at += 1;
                if self.open.is_empty() {
                    return Ok(at);
                }
                need_comma = true;
                continue;
            }
            if need_comma {
                if here != b',' {
                    return Err(Fault::Syntax(at, "expected `,` or the closing bracket"));
                }
                at += 1;
                (may_close, need_comma) = (false, false);
                continue;
            }
            if object {
                at = member_name(bytes, at)?;
            }
            if matches!(byte(bytes, at)?, b'{' | b'[') {
                at = self.enter(bytes, at, above)?;
                (may_close, need_comma) = (true, false);
            } else {
                at = scalar_end(bytes, at)?;
                (may_close, need_comma) = (true, true);
            }
        }
    }

    fn enter(&mut self, bytes: &[u8], at: usize, above: usize) -> Result<usize, Fault> {
        if self.open.len() + above >= self.max_depth {
            return Err(Fault::TooDeep(at));
        }
        self.open.push(Open { is_object: bytes[at] == b'{', at });
        Ok(at + 1)
    }
}

/// Past the member name at `at`, its colon and white space: where the member's value begins.
fn member_name(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    if byte(bytes, at)? != b'"' {
        return Err(Fault::Syntax(at, "expected a field name in quotes"));
    }
    let (end, _) = string_end(bytes, at + 1)?;
    let colon = white_space(bytes, end + 1)?;
    if byte(bytes, colon)? != b':' {
        return Err(Fault::Syntax(colon, "expected `:` after the field name"));
    }
    white_space(bytes, colon + 1)
}

fn scalar_end(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match byte(bytes, at)? {
        b'"' => string_end(bytes, at + 1).map(|(end, _)| end + 1),
        b'-' | b'0'..=b'9' => number_end(bytes, at),
        b't' => literal(bytes, at, b"true"),
        b'f' => literal(bytes, at, b"false"),
        b'n' => literal(bytes, at, b"null"),
        _ => Err(Fault::Syntax(at, "expected a value")),
    }
}

#[inline]
fn byte(bytes: &[u8], at: usize) -> Result<u8, Fault> {
    bytes.get(at).copied().ok_or(Fault::End)
}

/// Past white space; a line break counts only if the next line continues the value.
#[inline]
fn white_space(bytes: &[u8], mut at: usize) -> Result<usize, Fault> {
    loop {
        match bytes.get(at) {
            Some(b' ' | b'\t' | b'\r') => at += 1,
            Some(b'\n') => match bytes.get(at + 1) {
                Some(b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'}') => at += 1,
                Some(_) => return Err(Fault::LineEnd(at)),
                None => return Err(Fault::End),
            },
            Some(_) => return Ok(at),
            None => return Err(Fault::End),
        }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The closing quote of the string whose first byte is at `at`, and whether an escape stands before it.
/// Eight bytes at a time: a byte that is a quote, a backslash or a control character sets its high bit.
#[inline]
fn string_end(bytes: &[u8], mut at: usize) -> Result<(usize, bool), Fault> {
    let mut escaped = false;
    loop {
        while let Some(chunk) = bytes.get(at..at + 8) {
            let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
            let quote = word ^ (ONES * u64::from(b'"'));
            let backslash = word ^ (ONES * u64::from(b'\\'));
            let special = (quote.wrapping_sub(ONES) & !quote)
                | (backslash.wrapping_sub(ONES) & !backslash)
                | (word.wrapping_sub(ONES * 0x20) & !word);
            let special = special & HIGH;
            if special != 0 {
                at += (special.trailing_zeros() / 8) as usize;
                break;
            }
            at += 8;
        }
        match byte(bytes, at)? {
            b'"' => return Ok((at, escaped)),
            b'\\' => {
                at = escape_end(bytes, at)?;
                escaped = true;
            }
            0..=0x1f => return Err(Fault::Syntax(at, "a control character or line break inside a string")),
            _ => at += 1,
        }
    }
}

fn escape_end(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match byte(bytes, at + 1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(at + 2),
        b'u' => {
            for digit in 2..6 {
                if !byte(bytes, at + digit)?.is_ascii_hexdigit() {
                    return Err(Fault::Syntax(at, "a \\u escape needs four hex digits"));
                }
            }
            Ok(at + 6)
        }
        _ => Err(Fault::Syntax(at, "unknown escape in a string")),
    }
}

#[inline]
fn number_end(bytes: &[u8], mut at: usize) -> Result<usize, Fault> {
    if bytes[at] == b'-' {
        at += 1;
    }
    match byte(bytes, at)? {
        b'0' => at += 1,
        b'1'..=b'9' => at = digits_end(bytes, at),
        _ => return Err(Fault::Syntax(at, "expected a digit")),
    }
    if bytes.get(at) == Some(&b'.') {
        at = some_digits(bytes, at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        if matches!(byte(bytes, at)?, b'+' | b'-') {
            at += 1;
        }
        at = some_digits(bytes, at)?;
    }
    // A number that runs to the end of the slice may go on in the next one.
    byte(bytes, at)?;
    Ok(at)
}

fn digits_end(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

fn some_digits(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    if !byte(bytes, at)?.is_ascii_digit() {
        return Err(Fault::Syntax(at, "expected a digit"));
    }
    Ok(digits_end(bytes, at))
}

fn literal(bytes: &[u8], at: usize, word: &'static [u8]) -> Result<usize, Fault> {
    let there = &bytes[at..bytes.len().min(at + word.len())];
    if there == word {
        Ok(at + word.len())
    } else if word.starts_with(there) {
        Err(Fault::End)
    } else {
        Err(Fault::Syntax(at, "expected true, false or null"))
    }
}

/// A member of an object (with its name) or an element of an array, in a container that a scanner has
/// validated.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    /// The member's name; none in an array.
    pub name: Option<Value>,
    pub value: Value,
}

/// Lists what the validated container `text[container.start..]` holds; spans are in `text`.
pub fn children(text: &str, container: Value, out: &mut Vec<Child>) {
    // Validated before: no fault can occur, and what would be one ends the list.
    let _ = list_children(text.as_bytes(), container, out);
}

fn list_children(bytes: &[u8], container: Value, out: &mut Vec<Child>) -> Result<(), Fault> {
    out.clear();
    let span = |kind, start: usize, end: usize| Value { kind, start: start as u32, end: end as u32 };
    let text_kind = |escaped| if escaped { ValueKind::Escaped } else { ValueKind::Text };
    let mut at = container.start as usize + 1;
    loop {
        at = white_space(bytes, at)?;
        if at + 1 >= container.end as usize {
            return Ok(());
        }
        if bytes[at] == b',' {
            at = white_space(bytes, at + 1)?;
        }
        let mut name = None;
        if container.kind == ValueKind::Object {
            let (end, escaped) = string_end(bytes, at + 1)?;
            name = Some(span(text_kind(escaped), at + 1, end));
            at = member_name(bytes, at)?;
        }
        let value = match byte(bytes, at)? {
            b'"' => {
                let (end, escaped) = string_end(bytes, at + 1)?;
                span(text_kind(escaped), at + 1, end)
            }
            b'{' => span(ValueKind::Object, at, valid_container_end(bytes, at)?),
            b'[' => span(ValueKind::Array, at, valid_container_end(bytes, at)?),
            b't' => span(ValueKind::True, at, at + 4),
            b'f' => span(ValueKind::False, at, at + 5),
            b'n' => span(ValueKind::Null, at, at + 4),
            _ => span(ValueKind::Number, at, number_end(bytes, at)?),
        };
        at = value.end as usize + usize::from(matches!(value.kind, ValueKind::Text | ValueKind::Escaped));
        out.push(Child { name, value });
    }
}

fn valid_container_end(bytes: &[u8], mut at: usize) -> Result<usize, Fault> {
    let mut depth = 0usize;
    loop {
        match byte(bytes, at)? {
            b'"' => at = string_end(bytes, at + 1)?.0,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Ok(at);
        }
    }
}
