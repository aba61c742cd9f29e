//! Any bytes through inflate, split and decode: no panic, no record lost track of, and the same rows and
//! rejects whether the bytes come whole or in pieces.
#![no_main]

use flarelake::decode::decoder::{Counts, Decoder, RecordLimits};
use flarelake::decode::inflate::{Inflater, ObjectLimits};
use flarelake::decode::object::{ObjectId, ObjectContext};
use flarelake::decode::reject::Reject;
use flarelake::decode::split::Place;
use flarelake::schema::Catalog;
use libfuzzer_sys::fuzz_target;

const LIMITS: RecordLimits = RecordLimits { max_record: 1 << 12, max_depth: 16 };

fn decode(decoder: &mut Decoder, bytes: &[u8], step: usize) -> (Counts, Vec<Reject>) {
    let context = ObjectContext { id: ObjectId(7), last_modified: None, source_id: None, source_label: None, parse_time: 0, log_type: None };
    decoder.begin(context, Place::START);
    let (mut from, mut to) = (0, 0);
    while to < bytes.len() || bytes.is_empty() {
        to = bytes.len().min(to + step.max(1));
        from += decoder.decode(&bytes[from..to], from as u64, to == bytes.len()).used;
        if bytes.is_empty() {
            break;
        }
    }
    (decoder.counts(), decoder.take().rejects)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&step, stored)) = bytes.split_first() else { return };
    let mut inflater = Inflater::new(ObjectLimits { max_object: 1 << 20, max_ratio: 1000, max_window: 8 << 20 }, 1 << 20);
    let Ok(Some(inflated)) = inflater.whole(stored) else { return };
    let mut decoder = Decoder::new(&Catalog::embedded(), LIMITS);
    let whole = decode(&mut decoder, inflated, inflated.len());
    assert_eq!(whole, decode(&mut decoder, inflated, usize::from(step)));
});
