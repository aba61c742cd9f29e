//! Records to Arrow record batches, straight from bytes. No I/O, no clock: the same bytes in the same
//! context always give the same rows and rejects.
//!
//! A record is scanned once into the spans of its fields. Which log type it is, which field fills which
//! column and what is rescued are decided on the spans; only then is anything appended. So a record that is
//! rejected has touched no column.

use std::collections::HashSet;

use arrow::record_batch::RecordBatch;

use super::json::{Field, Scanner, ValueKind};
use super::keys::Keys;
use super::object::{Object, ObjectContext};
use super::reject::{Reason, Reject};
use super::rows::{RowBuilder, Verdict};
use super::split::{MAX_PAYLOAD, Piece, Place, Splitter};
use crate::schema::{Catalog, Match, likely};

/// Decoding pauses at this many rejects, and at each batch that is full, so that what is decoded can be moved
/// on.
const MAX_REJECTS: usize = 64 * 1024;

/// How a person tells what a record's fields don't.
const NAME_IT: &str = "name the log type with --log-type, or with log_type in a route of its source";

#[derive(Debug, Clone, Copy)]
pub struct RecordLimits {
    /// Bytes.
    pub max_record: usize,
    /// Levels of nesting, the record itself being the first.
    pub max_depth: usize,
}

/// How many records there were, and what became of them. `records == rows + rejects + skipped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// JSON values and broken lines.
    pub records: u64,
    /// Became rows.
    pub rows: u64,
    /// Were kept as rejects.
    pub rejects: u64,
    /// Cloudflare's test upload.
    pub skipped: u64,
}

/// How far a call of [`Decoder::decode`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeProgress {
    /// Bytes of the window that are done with.
    pub used: usize,
    /// What it takes to go on.
    pub need: Need,
}

/// Why decoding paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The rest of the window is no whole record: more bytes, or the object is done.
    Bytes,
    /// So much was decoded that it should be [taken](Decoder::take) before the window's rest.
    Room,
}

/// What was decoded since it was last taken.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Rows, by the log type's index in the catalog.
    pub batches: Vec<(usize, RecordBatch)>,
    /// Records that are no rows.
    pub rejects: Vec<Reject>,
}

/// Decodes one object after the other.
#[derive(Debug)]
pub struct Decoder {
    limits: RecordLimits,
    rules: Vec<Rule>,
    /// For each known key, the bits it sets when a record has it.
    match_bits: Vec<u128>,
    scanner: Scanner,
    fields: Vec<Field>,
    rows: Vec<RowBuilder>,
    splitter: Splitter,
    context: Option<ObjectContext>,
    counts: Counts,
    decoded: Decoded,
}

/// A log type's match rule as sets of bits.
#[derive(Debug, Default)]
struct Rule {
    all: u128,
    any: u128,
    none: u128,
}

impl Rule {
    /// A log type without a rule is told by configuration only.
    fn matches(&self, present: u128) -> bool {
        self.all | self.any != 0
            && present & self.all == self.all
            && (self.any == 0 || present & self.any != 0)
            && present & self.none == 0
    }
}

impl Decoder {
    /// A decoder for the log types of `catalog`.
    ///
    /// # Panics
    /// If the match rules take more than [`Match::MOST_BITS`].
    pub fn new(catalog: &Catalog, limits: RecordLimits) -> Self {
        let (mut names, mut known) = (Vec::new(), HashSet::new());
        for log_type in catalog.types() {
            let own = log_type.columns.iter().flat_map(|c| std::iter::once(&c.name).chain(&c.aliases));
            names.extend(
                own.chain(log_type.matches.names()).map(String::as_str).filter(|name| known.insert(*name)),
            );
        }
        let keys = Keys::new(names.iter().copied());
        let (mut match_bits, mut used) = (vec![0; names.len()], 0);
        let rules =
            catalog.types().iter().map(|t| rule(&t.matches, &keys, &mut match_bits, &mut used)).collect();
        let rows = catalog.types().iter().map(|t| RowBuilder::new(t.clone(), &keys)).collect();
        Self {
            limits,
            rules,
            match_bits,
            scanner: Scanner::new(keys, limits.max_depth),
            fields: Vec::new(),
            rows,
            splitter: Splitter::new(limits.max_record, Place::START),
            context: None,
            counts: Counts::default(),
            decoded: Decoded::default(),
        }
    }

    /// Begins an object, whose first record stands at `place`. What an unfinished one has left is dropped.
    pub fn begin(&mut self, context: ObjectContext, place: Place) {
        for rows in &mut self.rows {
            rows.clear();
        }
        self.splitter = Splitter::new(self.limits.max_record, place);
        self.context = Some(context);
        self.counts = Counts::default();
        self.decoded = Decoded::default();
    }

    /// Decodes what is complete in `window`, which stands at byte `offset` of the inflated object; `last` if
    /// the object ends with it. Tells how far it came: the next window begins there.
    ///
    /// # Panics
    /// If no object was begun.
    pub fn decode(&mut self, window: &[u8], offset: u64, last: bool) -> DecodeProgress {
        let context = self.context.clone().expect("an object was begun");
        let valid = match simdutf8::compat::from_utf8(window) {
            Ok(text) => text,
            Err(e) => std::str::from_utf8(&window[..e.valid_up_to()]).unwrap_or_default(),
        };
        let need = loop {
            let piece = self.splitter.next(&mut self.scanner, window, offset, last, &mut self.fields);
            match piece {
                Piece::Record { start, end } => {
                    let text = match valid.get(start..end) {
                        Some(text) => Ok(text),
                        None => std::str::from_utf8(&window[start..end]),
                    };
                    match text {
                        Ok(text) => self.record(&context, text, offset + start as u64),
                        Err(e) => {
                            let message = format!("not UTF-8 at byte {} of the record", e.valid_up_to());
                            self.reject(
                                Reason::InvalidUtf8,
                                message,
                                None,
                                offset + start as u64,
                                &window[start..end],
                            );
                        }
                    }
                }
                Piece::Broken { start, end, reason, message } => {
                    self.reject(reason, message, None, offset + start as u64, &window[start..end]);
                }
                Piece::Kept(kept) => {
                    let message = match kept.reason {
                        Reason::RecordTooLarge => {
                            format!(
                                "{} bytes; the limit is {} (limits.max_record)",
                                kept.length, self.limits.max_record
                            )
                        }
                        _ => kept.what.to_owned(),
                    };
                    self.reject(kept.reason, message, None, kept.offset, &kept.head);
                    if let Some(reject) = self.decoded.rejects.last_mut() {
                        reject.length = Some(kept.length);
                    }
                }
                Piece::NeedMore | Piece::Done => break Need::Bytes,
            }
            if !self.decoded.batches.is_empty() || self.decoded.rejects.len() >= MAX_REJECTS {
                break Need::Room;
            }
        };
        let used = self.splitter.position();
        self.splitter.shift(used);
        DecodeProgress { used, need }
    }

    /// Decodes one record of `object`, which stood at byte `offset` there. Returns the reject reason on error
    /// (None: the bytes are not exactly one record), and then appends nothing. `object` may differ from the
    /// one that was begun in its id and time only.
    ///
    /// # Panics
    /// If no object was begun.
    pub fn decode_alone(&mut self, object: &Object, offset: u64, bytes: &[u8]) -> Result<(), Option<Reason>> {
        let context = self.context.as_mut().expect("an object was begun");
        (context.id, context.last_modified) = (object.id, object.last_modified);
        let context = context.clone();
        self.splitter = Splitter::new(self.limits.max_record, Place::LINE);
        let first = self.splitter.next(&mut self.scanner, bytes, offset, true, &mut self.fields);
        let after = self.splitter.next(&mut self.scanner, bytes, offset, true, &mut Vec::new());
        let (end, after) = match (first, after) {
            (Piece::Record { start: 0, end }, after) => (end, after),
            (other, _) => return Err(reason_of(&other)),
        };
        if after != Piece::Done {
            return Err(reason_of(&after));
        }
        let record = std::str::from_utf8(&bytes[..end]).map_err(|_| Reason::InvalidUtf8)?;
        self.record(&context, record, offset);
        self.decoded.rejects.pop().map_or(Ok(()), |reject| Err(Some(reject.reason)))
    }

    fn reject(
        &mut self,
        reason: Reason,
        message: String,
        log_type: Option<usize>,
        offset: u64,
        bytes: &[u8],
    ) {
        let message = format!("{message} (record {})", self.counts.records + 1);
        self.counts.records += 1;
        self.counts.rejects += 1;
        self.decoded.rejects.push(Reject {
            reason,
            message,
            log_type: log_type.map(|t| self.rows[t].name().to_owned()),
            offset: Some(offset),
            length: Some(bytes.len() as u64),
            payload: Some(bytes[..bytes.len().min(MAX_PAYLOAD)].to_vec()),
        });
    }

    fn record(&mut self, context: &ObjectContext, record: &str, offset: u64) {
        let log_type = match context.log_type.map_or_else(|| self.classify(record), Ok) {
            Ok(log_type) => log_type,
            Err(_) if is_test_upload(record, &self.fields) => {
                self.counts.records += 1;
                self.counts.skipped += 1;
                return;
            }
            Err((reason, message)) => return self.reject(reason, message, None, offset, record.as_bytes()),
        };
        match self.rows[log_type].append(context, record, &self.fields, offset) {
            Verdict::Row => {
                self.counts.records += 1;
                self.counts.rows += 1;
                if self.rows[log_type].is_full() {
                    let batch = self.rows[log_type].finish(context);
                    self.decoded.batches.push((log_type, batch));
                }
            }
            Verdict::Reject(_, _) if is_test_upload(record, &self.fields) => {
                self.counts.records += 1;
                self.counts.skipped += 1;
            }
            Verdict::Reject(reason, message) => {
                self.reject(reason, message, Some(log_type), offset, record.as_bytes())
            }
        }
    }

    /// The log type of the record whose fields are at hand: the one whose rule its field names meet.
    fn classify(&self, record: &str) -> Result<usize, (Reason, String)> {
        let bits = |field: &Field| self.match_bits.get(usize::from(field.key)).copied().unwrap_or(0);
        let present = self.fields.iter().fold(0, |set, field| set | bits(field));
        let mut found = (0..self.rules.len()).filter(|&t| self.rules[t].matches(present));
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only),
            (Some(one), Some(other)) => {
                let message = format!(
                    "its fields match both {} and {}; {NAME_IT}",
                    self.rows[one].name(),
                    self.rows[other].name()
                );
                Err((Reason::Ambiguous, message))
            }
            (None, _) => Err((Reason::Unclassified, self.unclassified(record))),
        }
    }

    /// What is said of a record that is of no known log type: whose it looks like.
    fn unclassified(&self, record: &str) -> String {
        let names =
            self.fields.iter().map(|field| &record[field.name.start as usize..field.name.end as usize]);
        let likely = likely(names);
        let looks_like = match likely.as_slice() {
            [] => "it has the time field of no dataset of Cloudflare's".to_owned(),
            [one] => format!("it looks like Cloudflare's {} ({})", one.title, one.name),
            some if some.len() <= 3 => {
                format!(
                    "it looks like one of Cloudflare's {}",
                    some.iter().map(|d| d.name).collect::<Vec<_>>().join(", ")
                )
            }
            many => format!("{} datasets of Cloudflare's have such fields", many.len()),
        };
        format!(
            "its fields match no known log type: {looks_like}; {NAME_IT}, or add a schema for it with --schemas"
        )
    }

    /// Takes what was decoded so far. The row counts go on.
    ///
    /// # Panics
    /// If no object was begun, or if a record was lost track of.
    pub fn take(&mut self) -> Decoded {
        let context = self.context.as_ref().expect("an object was begun");
        for (log_type, rows) in self.rows.iter_mut().enumerate() {
            if !rows.is_empty() {
                let batch = rows.finish(context);
                self.decoded.batches.push((log_type, batch));
            }
        }
        let Counts { records, rows, rejects, skipped } = self.counts;
        assert!(
            rows + rejects + skipped == records,
            "{rows} rows + {rejects} rejects + {skipped} skipped != {records} records in object {}",
            context.id
        );
        std::mem::take(&mut self.decoded)
    }

    /// What became of the object's records so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

/// Why a piece is no record.
fn reason_of(piece: &Piece) -> Option<Reason> {
    match piece {
        Piece::Broken { reason, .. } => Some(*reason),
        Piece::Kept(kept) => Some(kept.reason),
        _ => None,
    }
}

/// Gives the rule its bits: one for each name that has to be there, one for all of which one has to be, one
/// for all that must not.
fn rule(matches: &Match, keys: &Keys, match_bits: &mut [u128], used: &mut usize) -> Rule {
    let mut bit = |names: &[String]| {
        if names.is_empty() {
            return 0;
        }
        assert!(*used < Match::MOST_BITS, "match rules take more than {} bits", Match::MOST_BITS);
        let bit = 1 << *used;
        *used += 1;
        for name in names {
            match_bits[usize::from(keys.number(name).expect("every name of a rule is a known key"))] |= bit;
        }
        bit
    };
    let all = matches.all.iter().fold(0, |set, name| set | bit(std::slice::from_ref(name)));
    Rule { all, any: bit(&matches.any), none: bit(&matches.none) }
}

/// Cloudflare checks a destination by uploading `{"content":"tests"}`.
fn is_test_upload(record: &str, fields: &[Field]) -> bool {
    let [field] = fields else { return false };
    let text = |v: super::json::Value| &record[v.start as usize..v.end as usize];
    field.value.kind == ValueKind::Text && text(field.name) == "content" && text(field.value) == "tests"
}
