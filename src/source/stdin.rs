//! Standard input, cut at record boundaries into objects of 64 MiB, each known by the hash of its bytes. So
//! the same stream piped in again adds nothing.

use std::io::{self, Read};

use bytes::Bytes;

use crate::decode::decoder::RecordLimits;
use crate::decode::inflate::{InflateError, Inflater, ObjectLimits, cause};
use crate::decode::json::Scanner;
use crate::decode::keys::Keys;
use crate::decode::object::{ContentHash, Object, ObjectId};
use crate::decode::split::{Piece, Place, Splitter};

/// Bytes of records in one object.
const PIECE_BYTES: usize = 64 << 20;

/// How many times as large a piece may grow to hold the whole of a record that is over the limit.
const MAX_PIECES: usize = 2;

/// Cuts a stream, which may be compressed, into objects.
pub struct Pieces<R> {
    reader: R,
    buffer: Vec<u8>,
    splitter: Splitter,
    scanner: Scanner,
    piece_bytes: usize,
    ended: bool,
}

/// A piece of the stream: an object, its bytes, and how its records are framed.
#[derive(Debug)]
pub struct StdinPiece {
    /// What it is known by.
    pub object: Object,
    /// Its bytes, inflated.
    pub bytes: Bytes,
    /// Where in the stream's framing its first record stands.
    pub place: Place,
}

impl<'a> Pieces<Box<dyn Read + Send + 'a>> {
    /// Cuts `stored`; limits are on the records, and for the whole stream only on its ratio.
    pub fn new(stored: impl Read + Send + 'a, records: RecordLimits, max_ratio: u64) -> io::Result<Self> {
        let limits = ObjectLimits { max_object: u64::MAX, max_ratio, max_window: u64::MAX };
        let reader = Inflater::stream(stored, limits)?;
        Ok(Self {
            reader,
            buffer: Vec::new(),
            splitter: Splitter::new(records.max_record, Place::START),
            scanner: Scanner::new(Keys::new([]), records.max_depth),
            piece_bytes: PIECE_BYTES.max(2 * records.max_record),
            ended: false,
        })
    }
}

impl<R: Read> Pieces<R> {
    /// The next piece; none at the end.
    pub fn next_piece(&mut self) -> Result<Option<StdinPiece>, InflateError> {
        let place = self.splitter.place();
        let mut fields = Vec::new();
        let mut wanted = self.piece_bytes;
        loop {
            self.fill(wanted)?;
            // Records are found here only to be counted as whole; they are decoded where all objects are.
            while !matches!(
                self.splitter.next(&mut self.scanner, &self.buffer, 0, self.ended, &mut fields),
                Piece::NeedMore | Piece::Done
            ) {}
            if !self.splitter.is_skipping() || self.ended || wanted >= MAX_PIECES * self.piece_bytes {
                break;
            }
            wanted += self.piece_bytes;
        }
        // A record that is far over the limit is cut where the piece ends: its bytes are rejects either way.
        let cut = if self.ended || self.splitter.is_skipping() {
            self.buffer.len()
        } else {
            self.splitter.position()
        };
        let rest = self.buffer.split_off(cut);
        let bytes = Bytes::from(std::mem::replace(&mut self.buffer, rest));
        self.splitter.shift(self.splitter.position().min(cut));
        Ok((!bytes.is_empty()).then(|| StdinPiece { object: object(&bytes), bytes, place }))
    }

    fn fill(&mut self, bytes: usize) -> Result<(), InflateError> {
        let wanted = bytes.saturating_sub(self.buffer.len());
        let got = (&mut self.reader).take(wanted as u64).read_to_end(&mut self.buffer).map_err(cause)?;
        self.ended |= got < wanted;
        Ok(())
    }
}

fn object(bytes: &Bytes) -> Object {
    let hash = ContentHash::of(&bytes[..]).expect("memory can be read");
    Object {
        id: ObjectId::of_stdin(&hash),
        bucket: None,
        key: "-".into(),
        etag: hash.to_string(),
        size: bytes.len() as u64,
        last_modified: None,
        source_id: None,
        source_label: None,
    }
}
