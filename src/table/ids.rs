//! The ids of all objects that ever landed, in two bytes of memory each.
//!
//! Up to half a million ids are kept in full. Beyond that, the older ones are sorted in an unnamed temporary
//! file; memory holds the start of each of its blocks, and two bytes of every id. A match of these two bytes
//! is looked up in the file, so the answer is always exact.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustc_hash::FxHashSet;

use crate::config::temporary_folder;

/// Ids that are held as they are, at most: 18 MB of them.
const MAX_RECENT: usize = 1 << 19;
/// Ids in a block of the file, as a power of two, if they are as evenly spread as hashes are.
const BLOCK_BITS: u32 = 7;
const ID_BYTES: usize = 16;
/// Ids that are read from a file at once while it is merged: 64 KiB.
const READ_IDS: usize = 4096;

#[derive(Debug, Default)]
pub struct Ids {
    recent: FxHashSet<u128>,
    /// None of these is among the recent ones.
    older: Option<Sorted>,
}

impl Ids {
    /// Whether the id is there.
    ///
    /// # Panics
    /// If the system can't read its own temporary file.
    pub fn contains(&self, id: u128) -> bool {
        self.recent.contains(&id) || self.is_older(id)
    }

    fn is_older(&self, id: u128) -> bool {
        self.older.as_ref().is_some_and(|older| older.contains(id))
    }

    pub fn len(&self) -> usize {
        self.recent.len() + self.older.as_ref().map_or(0, Sorted::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an id, unless it is there.
    pub fn insert(&mut self, id: u128) {
        if !self.is_older(id) && self.recent.insert(id) && is_time_to_settle(self.recent.len()) {
            self.settle();
        }
    }

    pub fn extend(&mut self, others: Self) {
        self.older = match (self.older.take(), others.older) {
            (Some(ours), Some(theirs)) => {
                let most = ours.len() + theirs.len();
                let merged = Sorted::write(merge(vec![ours.read().boxed(), theirs.read().boxed()]), most);
                Some(merged.unwrap_or_else(|error| {
                    warn(&error);
                    self.recent.extend(theirs.read());
                    ours
                }))
            }
            (ours, theirs) => ours.or(theirs),
        };
        let recent = std::mem::take(&mut self.recent);
        recent.into_iter().chain(others.recent).for_each(|id| self.insert(id));
    }

    /// Those that are not among `others`.
    pub fn beyond(&self, others: &Self) -> Vec<u128> {
        let older = self.older.iter().flat_map(Sorted::read);
        self.recent.iter().copied().chain(older).filter(|id| !others.contains(*id)).collect()
    }

    /// Moves the recent ones into the file. Without a place for one they stay where they are, and take what
    /// memory they take.
    fn settle(&mut self) {
        let mut recent: Vec<u128> = self.recent.iter().copied().collect();
        recent.sort_unstable();
        let older = self.older.iter().map(|older| older.read().boxed());
        match Sorted::write(merge(older.chain([recent.into_iter().boxed()]).collect()), self.len()) {
            Ok(sorted) => (self.older, self.recent) = (Some(sorted), FxHashSet::default()),
            Err(error) => warn(&error),
        }
    }
}

/// Whether so many ids go into a file now. Where that fails, it is tried again when there are twice as many:
/// each try sorts them all.
fn is_time_to_settle(ids: usize) -> bool {
    ids >= MAX_RECENT && ids.is_power_of_two()
}

fn warn(error: &io::Error) {
    tracing::warn!(
        "{}: can't be written: {error}; the ids of landed objects are kept in memory, 32 bytes each: free space there, or set TMPDIR",
        temporary_folder().display()
    );
}

/// Gathers any number of ids, in any order.
#[derive(Debug, Default)]
pub struct Gathering {
    ids: Vec<u128>,
    /// Where sorted runs of ids lie.
    file: Option<File>,
    runs: Vec<Range<usize>>,
}

impl Gathering {
    pub fn push(&mut self, id: u128) {
        self.ids.push(id);
        if is_time_to_settle(self.ids.len()) {
            self.spill().unwrap_or_else(|error| warn(&error));
        }
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(temporary_folder())?);
        }
        let Some(file) = &self.file else { return Ok(()) };
        self.ids.sort_unstable();
        let from = self.runs.last().map_or(0, |run| run.end);
        let mut to = Vec::with_capacity(READ_IDS * ID_BYTES);
        for (n, ids) in self.ids.chunks(READ_IDS).enumerate() {
            to.clear();
            ids.iter().for_each(|id| to.extend_from_slice(&id.to_be_bytes()));
            file.write_all_at(&to, ((from + n * READ_IDS) * ID_BYTES) as u64)?;
        }
        self.runs.push(from..from + self.ids.len());
        self.ids.clear();
        Ok(())
    }

    /// What was gathered, and how many ids were there already when they came.
    pub fn finish(mut self) -> (Ids, usize) {
        let all = self.ids.len() + self.runs.last().map_or(0, |run| run.end);
        self.ids.sort_unstable();
        let mut ids = Ids::default();
        match &self.file {
            None => ids.recent = self.ids.into_iter().collect(),
            Some(file) => {
                let runs = self.runs.iter().map(|run| read(file, run.clone()).boxed());
                let merged = merge(runs.chain([self.ids.iter().copied().boxed()]).collect());
                match Sorted::write(merged, all) {
                    Ok(sorted) => ids.older = Some(sorted),
                    Err(error) => {
                        warn(&error);
                        let left = self.runs.iter().flat_map(|run| read(file, run.clone()));
                        ids.recent = left.chain(self.ids).collect();
                    }
                }
            }
        }
        let repeated = all - ids.len();
        (ids, repeated)
    }
}

/// Ids in their order.
type InOrder<'a> = Box<dyn Iterator<Item = u128> + 'a>;

trait Boxed<'a>: Iterator<Item = u128> + Sized + 'a {
    fn boxed(self) -> InOrder<'a> {
        Box::new(self)
    }
}

impl<'a, I: Iterator<Item = u128> + 'a> Boxed<'a> for I {}

/// Every id of them once, in order.
fn merge<'a>(mut runs: Vec<InOrder<'a>>) -> InOrder<'a> {
    let first = |(n, run): (usize, &mut InOrder<'a>)| Some(Reverse((run.next()?, n)));
    let mut heads: BinaryHeap<_> = runs.iter_mut().enumerate().filter_map(first).collect();
    let mut last = None;
    std::iter::from_fn(move || {
        loop {
            let Reverse((id, n)) = heads.pop()?;
            heads.extend(runs[n].next().map(|next| Reverse((next, n))));
            if last.replace(id) != Some(id) {
                return Some(id);
            }
        }
    })
    .boxed()
}

/// Ids of a file, by their places.
fn read(file: &File, places: Range<usize>) -> impl Iterator<Item = u128> {
    let end = places.end;
    places.step_by(READ_IDS).flat_map(move |place| at(file, place, READ_IDS.min(end - place)))
}

/// So many ids of a file, from a place on.
fn at(file: &File, place: usize, count: usize) -> Vec<u128> {
    let mut bytes = vec![0; count * ID_BYTES];
    let read = file.read_exact_at(&mut bytes, (place * ID_BYTES) as u64);
    read.expect("a temporary file that is open can be read");
    bytes.as_chunks().0.iter().map(|id| u128::from_be_bytes(*id)).collect()
}

/// Ids in a file, in their order.
#[derive(Debug)]
struct Sorted {
    file: File,
    /// How far an id is shifted to tell its block.
    shift: u32,
    /// Where each block begins, and the last one ends.
    starts: Vec<u32>,
    /// Of each id the 16 bits after those that tell its block.
    prints: Vec<u16>,
}

impl Sorted {
    /// Ids in their order, each once; `most` of them.
    fn write(ids: impl Iterator<Item = u128>, most: usize) -> io::Result<Self> {
        let bits = (usize::BITS - most.leading_zeros()).saturating_sub(BLOCK_BITS).clamp(1, 32);
        let shift = u128::BITS - bits;
        let file = tempfile::tempfile_in(temporary_folder())?;
        let mut to = BufWriter::with_capacity(READ_IDS * ID_BYTES, &file);
        let (mut starts, mut prints) = (Vec::with_capacity((1 << bits) + 1), Vec::with_capacity(most));
        for id in ids {
            to.write_all(&id.to_be_bytes())?;
            // Blocks that nothing is in begin where the next one does.
            starts.resize(starts.len().max((id >> shift) as usize + 1), prints.len() as u32);
            prints.push(print(id, shift));
        }
        starts.resize((1 << bits) + 1, prints.len() as u32);
        to.flush()?;
        drop(to);
        Ok(Self { file, shift, starts, prints })
    }

    fn len(&self) -> usize {
        self.prints.len()
    }

    fn contains(&self, id: u128) -> bool {
        let block = (id >> self.shift) as usize;
        let (from, to) = (self.starts[block] as usize, self.starts[block + 1] as usize);
        let (prints, print) = (&self.prints[from..to], print(id, self.shift));
        let first = prints.partition_point(|other| *other < print);
        let alike = prints[first..].iter().take_while(|other| **other == print).count();
        alike > 0 && at(&self.file, from + first, alike).contains(&id)
    }

    /// All of them, in their order.
    fn read(&self) -> impl Iterator<Item = u128> {
        read(&self.file, 0..self.len())
    }
}

/// The 16 bits of an id after those that tell its block.
fn print(id: u128, shift: u32) -> u16 {
    (id >> (shift - u16::BITS)) as u16
}
