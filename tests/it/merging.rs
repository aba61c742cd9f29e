//! A merge of sorted inputs: what it yields is what sorting all of it would, and it opens an input no earlier
//! than it has to.

use std::convert::Infallible;
use std::sync::Arc;

use arrow::array::{AsArray as _, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use flarelake::maintain::merge::{Batches, Merge};
use proptest::prelude::*;

/// Inputs of batches of times. Which were opened and not read to their end, at most at once.
struct Inputs {
    batches: Vec<Vec<Vec<i64>>>,
    at: Vec<usize>,
    open: usize,
    most_open: usize,
}

impl Batches for Inputs {
    type Error = Infallible;

    fn next(&mut self, input: usize) -> Result<Option<RecordBatch>, Infallible> {
        let at = &mut self.at[input];
        if *at == 0 {
            self.open += 1;
            self.most_open = self.most_open.max(self.open);
        }
        let before: usize = self.batches[input][..*at].iter().map(Vec::len).sum();
        let Some(times) = self.batches[input].get(*at) else {
            self.open -= 1;
            return Ok(None);
        };
        *at += 1;
        // Each row says where it is from.
        let from = (before..before + times.len()).map(|row| (input * 1000 + row) as i64);
        let from = Arc::new(Int64Array::from_iter_values(from));
        let times = Arc::new(TimestampMicrosecondArray::from(times.clone()));
        Ok(Some(RecordBatch::try_from_iter([("time", times as _), ("from", from as _)]).expect("as long")))
    }
}

fn merged(batches: &[Vec<Vec<i64>>], column: Option<usize>, most: usize) -> (Vec<(i64, i64)>, usize) {
    let bounds: Vec<i64> = batches.iter().map(|input| column.map_or(0, |_| input[0][0])).collect();
    let inputs = Inputs { batches: batches.to_vec(), at: vec![0; batches.len()], open: 0, most_open: 0 };
    let mut merge = Merge::new(inputs, column, &bounds);
    let mut rows = Vec::new();
    while let Ok(Some(chunk)) = merge.next(most) {
        assert!(chunk.rows.len() <= most, "{} rows, not {most} at most", chunk.rows.len());
        rows.extend(chunk.rows.iter().map(|(batch, row)| {
            let batch = &chunk.batches[*batch];
            let time = batch.column(0).as_primitive::<TimestampMicrosecondType>().value(*row);
            (time, batch.column(1).as_primitive::<Int64Type>().value(*row))
        }));
    }
    (rows, merge.inputs().most_open)
}

/// The same by sorting, which keeps the order of what is equal.
fn sorted(batches: &[Vec<Vec<i64>>]) -> Vec<(i64, i64)> {
    let rows = |(input, batches): (usize, &Vec<Vec<i64>>)| {
        let times: Vec<i64> = batches.concat();
        times
            .into_iter()
            .enumerate()
            .map(move |(row, time)| (time, (input * 1000 + row) as i64))
            .collect::<Vec<_>>()
    };
    let mut rows: Vec<(i64, i64)> = batches.iter().enumerate().flat_map(rows).collect();
    rows.sort_by_key(|(time, _)| *time);
    rows
}

#[test]
fn a_merge_yields_what_sorting_would() {
    // Few times, so that many are equal; batches of all sizes.
    let input = (proptest::collection::vec(0..20_i64, 1..60), 1..10_usize).prop_map(|(mut times, size)| {
        times.sort_unstable();
        times.chunks(size).map(<[i64]>::to_vec).collect::<Vec<_>>()
    });
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) };
    proptest!(config, |(inputs in proptest::collection::vec(input, 1..8), most in 1..50_usize)| {
        prop_assert_eq!(merged(&inputs, Some(0), most).0, sorted(&inputs));
        // Without a column they are put one behind the other.
        let whole: Vec<i64> = merged(&inputs, None, most).0.into_iter().map(|(_, from)| from).collect();
        prop_assert!(whole.is_sorted(), "{whole:?}");
    });
}

#[test]
fn inputs_that_do_not_overlap_are_open_one_at_a_time() {
    let inputs: Vec<_> = (0..50).map(|n| vec![vec![n * 10, n * 10 + 1], vec![n * 10 + 2]]).collect();
    assert_eq!(merged(&inputs, Some(0), 7), (sorted(&inputs), 1));
    // Three of which each overlaps the next are never all open.
    let inputs = [vec![vec![0, 5]], vec![vec![4, 9]], vec![vec![8, 12]]];
    assert_eq!(merged(&inputs, Some(0), 100), (sorted(&inputs), 2));
}
