//! The core of a merge, without I/O: sorted inputs into one sorted sequence.
//!
//! An input is opened when the merge reaches its first time, and closed after its last row, so any number of
//! inputs that don't overlap need only one reader. Rows are referenced by batch and row, and copied once, by
//! the writer. Rows of one input that precede the next row of every other are taken as one run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use arrow::array::AsArray as _;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;

/// An input's batches, one after another.
pub trait Batches {
    /// What reading fails with.
    type Error;

    /// The next batch of an input, which is opened with the first call; none after its last. Each has at
    /// least one row.
    fn next(&mut self, input: usize) -> Result<Option<RecordBatch>, Self::Error>;
}

/// Rows in order, some thousand at a time.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The batches that they are in.
    pub batches: Vec<RecordBatch>,
    /// Batch and row.
    pub rows: Vec<(usize, usize)>,
}

/// An input at hand.
struct RunHead {
    batch: RecordBatch,
    /// The next row.
    at: usize,
}

/// The merge under way.
pub struct Merge<B> {
    inputs: B,
    /// The column of the times; none: inputs are put one behind the other.
    column: Option<usize>,
    /// Least next time first; of equal ones the input that was named first.
    next: BinaryHeap<Reverse<(i64, usize)>>,
    heads: Vec<Option<RunHead>>,
}

impl<B: Batches> Merge<B> {
    /// A merge of as many inputs as there are in `bounds`: none of an input's times is less.
    pub fn new(inputs: B, column: Option<usize>, bounds: &[i64]) -> Self {
        let next = bounds.iter().enumerate().map(|(input, least)| Reverse((*least, input))).collect();
        Self { inputs, column, next, heads: bounds.iter().map(|_| None).collect() }
    }

    /// The inputs, as far as they were read.
    pub fn inputs(&self) -> &B {
        &self.inputs
    }

    fn time(&self, head: &RunHead, row: usize) -> i64 {
        self.column.map_or(0, |column| {
            head.batch.column(column).as_primitive::<TimestampMicrosecondType>().value(row)
        })
    }

    /// The next rows, at most `most`; none after the last.
    pub fn next(&mut self, most: usize) -> Result<Option<Chunk>, B::Error> {
        let mut chunk = Chunk::default();
        // Where in the chunk the batch at hand of an input is.
        let mut places: Vec<Option<usize>> = vec![None; self.heads.len()];
        while chunk.rows.len() < most {
            let Some(Reverse((_, input))) = self.next.pop() else { break };
            let Some(head) = self.heads[input].take() else {
                self.advance(input)?;
                continue;
            };
            let end = self.run(&head, input, most - chunk.rows.len());
            let place = *places[input].get_or_insert_with(|| {
                chunk.batches.push(head.batch.clone());
                chunk.batches.len() - 1
            });
            chunk.rows.extend((head.at..end).map(|row| (place, row)));
            if end < head.batch.num_rows() {
                let head = RunHead { at: end, ..head };
                self.next.push(Reverse((self.time(&head, end), input)));
                self.heads[input] = Some(head);
            } else {
                places[input] = None;
                self.advance(input)?;
            }
        }
        Ok((!chunk.rows.is_empty()).then_some(chunk))
    }

    /// Takes an input's next batch in hand.
    fn advance(&mut self, input: usize) -> Result<(), B::Error> {
        if let Some(batch) = self.inputs.next(input)? {
            let head = RunHead { batch, at: 0 };
            self.next.push(Reverse((self.time(&head, 0), input)));
            self.heads[input] = Some(head);
        }
        Ok(())
    }

    /// One past the last row that comes before every other input's next.
    fn run(&self, head: &RunHead, input: usize, most: usize) -> usize {
        let end = head.batch.num_rows().min(head.at + most);
        let (Some(column), Some(Reverse((time, other)))) = (self.column, self.next.peek()) else {
            return end;
        };
        let times =
            &head.batch.column(column).as_primitive::<TimestampMicrosecondType>().values()[head.at..end];
        let before = times.partition_point(|t| *t < *time || (*t == *time && input < *other));
        // It is the least of all: at least one row is taken, whatever its order may be.
        head.at + before.max(1)
    }
}
