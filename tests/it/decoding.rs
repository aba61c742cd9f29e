//! Decoding in tests: bytes in, rows as JSON and rejects out.

use flarelake::decode::decoder::{Counts, Decoder, Need, RecordLimits};
use flarelake::decode::object::{ObjectContext, ObjectId};
use flarelake::decode::reject::Reject;
use flarelake::decode::split::Place;
use flarelake::schema::Catalog;
use serde_json::Value;

/// 2026-06-01T00:00:00Z: when every object of these tests was written.
pub const WRITTEN: i64 = 1_780_272_000_000_000;

pub const LIMITS: RecordLimits = RecordLimits { max_record: 1 << 20, max_depth: 32 };

pub fn context(log_type: Option<usize>) -> ObjectContext {
    ObjectContext {
        id: ObjectId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        last_modified: Some(WRITTEN),
        source_id: None,
        source_label: None,
        parse_time: WRITTEN,
        log_type,
    }
}

/// What an object decodes to: rows as JSON, in order, with the log type; and the rejects.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub rows: Vec<Value>,
    pub rejects: Vec<Reject>,
    pub counts: Counts,
}

/// Decodes `bytes` in windows that each bring `step` more bytes.
pub fn decode_in_steps(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Outcome {
    decoder.begin(context(None), Place::START);
    let (mut from, mut to) = (0, 0);
    let (mut batches, mut rejects) = (Vec::new(), Vec::new());
    loop {
        to = bytes.len().min(to + step);
        loop {
            let progress = decoder.decode(&bytes[from..to], from as u64, to == bytes.len());
            from += progress.used;
            if progress.need == Need::Bytes {
                break;
            }
            let decoded = decoder.take();
            batches.extend(decoded.batches);
            rejects.extend(decoded.rejects);
        }
        if to == bytes.len() {
            break;
        }
    }
    let counts = decoder.counts();
    let decoded = decoder.take();
    batches.extend(decoded.batches);
    rejects.extend(decoded.rejects);
    let rows = batches.iter().flat_map(|(_, batch)| json_rows(batch)).collect();
    Outcome { rows, rejects, counts }
}

pub fn decode(bytes: &[u8]) -> Outcome {
    let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
    decode_in_steps(&mut decoder, bytes, bytes.len().max(1))
}

/// A batch as JSON objects, nulls included, written by arrow's own writer.
pub fn json_rows(batch: &arrow::record_batch::RecordBatch) -> Vec<Value> {
    let mut writer = arrow_json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow_json::writer::JsonArray>(Vec::new());
    writer.write(batch).expect("rows can be written as JSON");
    writer.finish().expect("rows can be written as JSON");
    serde_json::from_slice(&writer.into_inner()).expect("arrow writes JSON")
}

/// How many seeded runs: more with FLARE_TEST_RUNS.
pub fn runs(by_default: u64) -> u64 {
    std::env::var("FLARE_TEST_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(by_default)
}
