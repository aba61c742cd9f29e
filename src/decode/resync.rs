//! Finds the end of bytes that are no record, byte by byte and over any number of windows, as early as
//! possible, so that a broken record never takes its neighbour with it. They end where:
//!
//! * brackets close, and what follows on the line looks like the end of a record;
//! * or a line ends, and the next does not continue it;
//! * or, after a line break, a line begins with `{` and is indented no deeper than the value.

/// Scans one value that is no record.
#[derive(Debug, Clone)]
pub struct Extent {
    state: State,
    /// Open brackets.
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// A line break was passed.
    multi_line: bool,
    /// Text that begins with no bracket: it ends with its line.
    is_text: bool,
    /// How far the value is indented.
    column: usize,
    /// Whether the value stands in an array of records.
    in_array: bool,
    scanned: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Inside the value; brackets count.
    Inside,
    /// Its brackets tell nothing any more: only lines do.
    ToLineEnd,
    /// Behind what may be its end, then behind a comma too.
    AfterClose(u64),
    AfterComma(u64),
    /// In the white space that begins a line; the last line ended at `end`.
    LineStart {
        end: u64,
        indent: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The value's length in bytes.
    pub length: u64,
    /// Bytes scanned, from the value's first: where the next value is to be looked for.
    pub resume: u64,
    /// How far that is indented, if nothing else stands before it on its line.
    pub indent: Option<usize>,
}

impl Extent {
    /// A value that begins with the byte `first`, `column` bytes into its line.
    pub fn new(first: u8, column: usize, in_array: bool) -> Self {
        let is_text = !matches!(first, b'{' | b'[');
        let state = if is_text { State::ToLineEnd } else { State::Inside };
        Self {
            state,
            depth: 0,
            in_string: false,
            escaped: false,
            multi_line: false,
            is_text,
            column,
            in_array,
            scanned: 0,
        }
    }

    /// Scans on; the first call begins at the value's first byte. None: its end is not in these bytes.
    pub fn scan(&mut self, bytes: &[u8]) -> Option<End> {
        bytes.iter().find_map(|byte| {
            let end = self.step(*byte);
            self.scanned += u64::from(end.is_none());
            end
        })
    }

    /// The end of a value that nothing follows.
    pub fn finish(&self) -> End {
        let length = match self.state {
            State::AfterClose(end) | State::AfterComma(end) | State::LineStart { end, .. } => end,
            State::Inside | State::ToLineEnd => self.scanned,
        };
        End { length, resume: self.scanned, indent: None }
    }

    fn end(&self, length: u64, indent: Option<usize>) -> Option<End> {
        Some(End { length, resume: self.scanned, indent })
    }

    fn step(&mut self, byte: u8) -> Option<End> {
        match self.state {
            State::Inside => self.inside(byte),
            State::ToLineEnd if byte == b'\n' => return self.line_end(),
            State::ToLineEnd if byte == b',' && self.is_text => self.state = State::AfterComma(self.scanned),
            State::ToLineEnd => {}
            State::AfterClose(end) => match byte {
                b' ' | b'\t' | b'\r' => {}
                b'\n' | b'{' => return self.end(end, None),
                b']' if self.in_array => return self.end(end, None),
                b',' => self.state = State::AfterComma(end),
                _ => self.state = State::ToLineEnd,
            },
            State::AfterComma(end) => match byte {
                b' ' | b'\t' | b'\r' => {}
                b'{' => return self.end(end, None),
                b'\n' if !self.is_text => return self.end(end, None),
                b'\n' => return self.line_end(),
                _ => self.state = State::ToLineEnd,
            },
            State::LineStart { end, indent } => return self.line_start(byte, end, indent),
        }
        None
    }

    fn inside(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                // No string goes over a line.
                (self.in_string, self.escaped) = (false, false);
                self.state = State::LineStart { end: self.scanned, indent: 0 };
            }
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = self.in_string,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.state = State::AfterClose(self.scanned + 1);
                }
            }
            _ => {}
        }
    }

    fn line_end(&mut self) -> Option<End> {
        if self.is_text {
            return self.end(self.scanned, None);
        }
        self.state = State::LineStart { end: self.scanned, indent: 0 };
        None
    }

    fn line_start(&mut self, byte: u8, end: u64, indent: usize) -> Option<End> {
        let continues = indent > 0 || self.multi_line || matches!(byte, b'"' | b'}');
        match byte {
            b' ' | b'\t' | b'\r' => self.state = State::LineStart { end, indent: indent + 1 },
            b'\n' => {
                self.multi_line = true;
                self.state = State::LineStart { end, indent: 0 };
            }
            b'{' if indent <= self.column => return self.end(end, Some(indent)),
            _ if !continues => return self.end(end, Some(indent)),
            _ => {
                self.multi_line = true;
                // Brackets that closed too early, or never could, tell nothing on later lines either.
                self.state = if self.depth == 0 { State::ToLineEnd } else { State::Inside };
                return self.step(byte);
            }
        }
        None
    }
}
