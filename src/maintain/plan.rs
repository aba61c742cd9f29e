//! What to merge: a pure function of a table's files, the policy and the time.
//!
//! Each partition is planned separately.
//!
//! * **Open**, while its day or hour lasts: *tiers*. A tier is a power of eight of rows; when eight files are
//!   in one, they are merged with all smaller ones. So a row is rewritten once per tier, a handful of times
//!   from a one-minute file to a full one. On demand (not on a schedule), an open partition is settled, too,
//!   while it holds at most a quarter of the target size.
//! * **Closed**: *settled*. Files that overlap in time are merged until none do, and small neighbours are
//!   merged up to the target size. Late rows cause rewrites only of what they overlap; on a schedule they
//!   wait until the merge is worth it: they are an eighth of the bytes to rewrite, or these are a few
//!   megabytes; or they are a sixty-fourth and none came for an hour; or a day has passed. Tiers keep the
//!   number of waiting files small.
//! * An overlap too large for one merge is first *split* at common times, late rows alone where that is
//!   enough. So no merge grows with its partition.
//!
//! Every merge removes more files than it adds, or ends an overlap, so planning and merging in turn
//! terminates, with an empty plan.

use std::collections::{BTreeMap, HashSet};

use crate::base::clock::{DAY_MICROS, HOUR_MICROS};
use crate::table::DataFile;

/// How many files of one tier make a merge; and at most how many times the new bytes a merge rewrites.
const MERGE_FAN_IN: u64 = 8;
/// Files that one merge takes in: each has a reader and a parsed footer.
const MOST_INPUTS: usize = 128;
/// About what a row group takes, and beside it a reader.
const GROUP_BYTES: u64 = 24 << 20;
const READER_BYTES: u64 = 2 << 20;
/// Bytes that one merge takes in, in target sizes.
const MOST_TARGETS: u64 = 4;
/// A merge of less than target / 64 is so small that it is always worth it.
const TINY_MERGE_FRACTION: u64 = 64;
/// A merge of less than target / 4 finishes in seconds: `compact` settles open partitions of that size, too.
const QUICK_MERGE_FRACTION: u64 = 4;
/// Late rows that are less than 1/64 of what a merge would rewrite wait for a day.
const LATE_ROWS_FRACTION: u64 = 64;
/// Points in a file's time that stand for its rows when times to split at are looked for.
const SAMPLES: i64 = 16;

/// What decides beside the files themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Bytes that a file is meant to have. From half of it on a file is full.
    pub target: u64,
    /// In microseconds since the epoch.
    pub now: i64,
    /// Bytes that a merge may hold of files that are open at once: of each one row group.
    pub open_bytes: u64,
    /// Whether late rows wait until merging them is worth it; else all is settled at once.
    pub patient: bool,
}

/// Why files are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Eight or more of one size.
    Tier,
    /// They overlap in time.
    Overlap,
    /// They are neighbours, and small.
    Small,
    /// They overlap with more than one merge can take: they are cut where the others begin.
    Split,
}

impl Why {
    /// As a person reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tier => "eight or more of one size",
            Self::Overlap => "overlap in time",
            Self::Small => "small neighbours",
            Self::Split => "cut to end a large overlap",
        }
    }
}

/// One merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Bin {
    /// Partition column to value.
    pub partition: BTreeMap<String, String>,
    /// By their first time.
    pub inputs: Vec<DataFile>,
    /// A file begins at each of these times, at the latest.
    pub cuts: Vec<i64>,
    pub why: Why,
}

impl Bin {
    /// Bytes that are read.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|file| file.size).sum()
    }

    /// Rows that are read.
    pub fn rows(&self) -> u64 {
        self.inputs.iter().map(|file| file.rows).sum()
    }

    /// How many files it will make, by what its inputs take.
    pub fn files_out(&self, target: u64) -> u64 {
        let cut = self
            .cuts
            .iter()
            .filter(|cut| self.inputs.iter().any(|file| file.least() < **cut && **cut <= file.greatest()));
        (cut.count() as u64 + 1).max(self.bytes().div_ceil(target.max(1)))
    }
}

/// The times of a file; a table without times has none that differ.
trait Times {
    fn least(&self) -> i64;
    fn greatest(&self) -> i64;
}

impl Times for DataFile {
    fn least(&self) -> i64 {
        self.time_bounds().map_or(0, |times| times.least)
    }

    fn greatest(&self) -> i64 {
        self.time_bounds().map_or(0, |times| times.greatest)
    }
}

/// Everything that is to be merged now. No file is in two merges.
pub fn plan(files: &[DataFile], policy: &Policy) -> Vec<Bin> {
    let mut partitions: BTreeMap<&BTreeMap<String, String>, Vec<&DataFile>> = BTreeMap::new();
    for file in files {
        partitions.entry(&file.partition_values).or_default().push(file);
    }
    let mut bins = Vec::new();
    for (partition, mut files) in partitions {
        files.sort_by_cached_key(|file| (file.least(), file.greatest(), file.path.clone()));
        let end = partition_end(partition);
        let is_open = end.is_none_or(|end| policy.now < end);
        // Whoever asks for it now gets it where it costs seconds. What is open for ever would be written anew
        // each time.
        let little = policy.target / if end.is_some() { QUICK_MERGE_FRACTION } else { TINY_MERGE_FRACTION };
        let by_tiers = is_open && (policy.patient || bytes(&files) > little);
        let planned = if by_tiers { tiers(&files, policy) } else { settle(&files, policy) };
        bins.extend(planned.into_iter().map(|draft| Bin {
            partition: partition.clone(),
            inputs: draft.files.into_iter().cloned().collect(),
            cuts: draft.cuts,
            why: draft.why,
        }));
    }
    bins
}

/// When a partition's time is over; none if it has none.
pub fn partition_end(partition: &BTreeMap<String, String>) -> Option<i64> {
    let date: chrono::NaiveDate = partition.get("p_event_date")?.parse().ok()?;
    let day = i64::from(date.to_epoch_days()) * DAY_MICROS;
    match partition.get("p_event_hour") {
        Some(hour) => Some(day + (hour.parse::<i64>().ok()? + 1) * HOUR_MICROS),
        None => Some(day + DAY_MICROS),
    }
}

/// A merge of a partition at hand.
struct Draft<'a> {
    files: Vec<&'a DataFile>,
    cuts: Vec<i64>,
    why: Why,
}

fn bytes(files: &[&DataFile]) -> u64 {
    files.iter().map(|file| file.size).sum()
}

fn is_full(file: &DataFile, policy: &Policy) -> bool {
    file.size >= policy.target / 2
}

/// Merges of eight or more files of one tier with all smaller ones, the highest such tier.
fn tiers<'a>(files: &[&'a DataFile], policy: &Policy) -> Vec<Draft<'a>> {
    let tier = |file: &DataFile| file.rows.max(1).ilog(MERGE_FAN_IN);
    let small: Vec<&DataFile> = files.iter().copied().filter(|file| !is_full(file, policy)).collect();
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for file in &small {
        *counts.entry(tier(file)).or_default() += 1;
    }
    let Some((highest, _)) = counts.iter().rev().find(|(_, count)| **count >= MERGE_FAN_IN) else {
        return Vec::new();
    };
    let taken: Vec<&DataFile> = small.into_iter().filter(|file| tier(file) <= *highest).collect();
    in_portions(&taken, policy, Why::Tier)
}

/// Files as they follow one another in portions that one merge can take; none of one file alone.
fn in_portions<'a>(files: &[&'a DataFile], policy: &Policy, why: Why) -> Vec<Draft<'a>> {
    let mut drafts = Vec::new();
    let (mut portion, mut held): (Vec<&DataFile>, u64) = (Vec::new(), 0);
    for file in files {
        let open = portion
            .iter()
            .filter(|other| other.greatest() >= file.least())
            .map(|other| when_open(other))
            .sum::<u64>();
        let is_too_much =
            held + file.size > MOST_TARGETS * policy.target || open + when_open(file) > policy.open_bytes;
        if portion.len() > 1 && is_too_much || portion.len() == MOST_INPUTS {
            drafts.push(Draft { files: std::mem::take(&mut portion), cuts: Vec::new(), why });
            held = 0;
        }
        portion.push(file);
        held += file.size;
    }
    drafts.push(Draft { files: portion, cuts: Vec::new(), why });
    drafts.retain(|draft| draft.files.len() > 1);
    drafts
}

/// Bytes that a file takes while it is open: a row group, and what it is decoded with.
fn when_open(file: &DataFile) -> u64 {
    file.size.min(GROUP_BYTES) + READER_BYTES
}

/// What a closed partition needs. `files` by their first time.
fn settle<'a>(files: &[&'a DataFile], policy: &Policy) -> Vec<Draft<'a>> {
    let mut drafts = Vec::new();
    let (mut small, mut held): (Vec<Vec<&DataFile>>, u64) = (Vec::new(), 0);
    for cluster in clusters(files) {
        let size = bytes(&cluster);
        let is_large = size >= policy.target / 2;
        if is_large || held + size > policy.target {
            drafts.extend(join(&std::mem::take(&mut small), policy));
            held = 0;
        }
        if !is_large {
            small.push(cluster);
            held += size;
        } else if cluster.len() > 1 && is_worth_it(&cluster, policy) {
            drafts.extend(end_overlap(&cluster, policy));
        }
    }
    drafts.extend(join(&small, policy));
    // What waits is kept few.
    if drafts.is_empty() && policy.patient { tiers(files, policy) } else { drafts }
}

/// Merges small clusters that follow one another.
fn join<'a>(clusters: &[Vec<&'a DataFile>], policy: &Policy) -> Vec<Draft<'a>> {
    let files = clusters.concat();
    let why = if clusters.len() < files.len() { Why::Overlap } else { Why::Small };
    if is_worth_it(&files, policy) { in_portions(&files, policy, why) } else { Vec::new() }
}

/// Files in groups that overlap, directly or over others; a shared time is an overlap.
fn clusters<'a>(files: &[&'a DataFile]) -> Vec<Vec<&'a DataFile>> {
    let mut clusters: Vec<Vec<&DataFile>> = Vec::new();
    let mut reached = i64::MIN;
    for file in files {
        match clusters.last_mut() {
            Some(cluster) if file.least() <= reached => cluster.push(file),
            _ => clusters.push(vec![file]),
        }
        reached = reached.max(file.greatest());
    }
    clusters
}

/// Whether a merge is worth the bytes that it rewrites. Files outside the chain of full files (or outside the
/// largest file, if no file is full) count as new data.
fn is_worth_it(files: &[&DataFile], policy: &Policy) -> bool {
    if !policy.patient {
        return true;
    }
    let mut settled = chain(files, policy);
    if settled.is_empty() {
        settled.extend(files.iter().copied().max_by_key(|file| file.size));
    }
    let settled: HashSet<&str> = settled.into_iter().map(|file| file.path.as_str()).collect();
    let fresh: Vec<&DataFile> =
        files.iter().copied().filter(|file| !settled.contains(file.path.as_str())).collect();
    let landed = || fresh.iter().map(|file| file.modified_ms * 1000);
    let (total, new) = (bytes(files), bytes(&fresh));
    let is_quiet = landed().max().is_none_or(|newest| newest <= policy.now - HOUR_MICROS);
    total <= policy.target / TINY_MERGE_FRACTION
        || new * MERGE_FAN_IN >= total
        || is_quiet && new * LATE_ROWS_FRACTION >= total
        || landed().min().is_none_or(|oldest| oldest <= policy.now - DAY_MICROS)
}

/// Full files that follow one another without an overlap, as many as there can be.
fn chain<'a>(files: &[&'a DataFile], policy: &Policy) -> Vec<&'a DataFile> {
    let mut by_end: Vec<&DataFile> = files.iter().copied().filter(|file| is_full(file, policy)).collect();
    by_end.sort_by_key(|file| file.greatest());
    let mut chain: Vec<&DataFile> = Vec::new();
    for file in by_end {
        if chain.last().is_none_or(|last| last.greatest() < file.least()) {
            chain.push(file);
        }
    }
    chain
}

/// Merges that end a cluster's overlap, or, if it is too much for one merge, come closer to that.
fn end_overlap<'a>(cluster: &[&'a DataFile], policy: &Policy) -> Vec<Draft<'a>> {
    let total = bytes(cluster);
    if total <= MOST_TARGETS * policy.target {
        return in_portions(cluster, policy, Why::Overlap);
    }
    let cuts = cuts(cluster, policy);
    let crosses = |file: &&&DataFile| cuts.iter().any(|cut| file.least() < *cut && *cut <= file.greatest());
    let crossing: Vec<&DataFile> = cluster.iter().filter(crosses).copied().collect();
    if crossing.is_empty() {
        // They overlap at single times, by which nothing can be cut.
        return in_portions(cluster, policy, Why::Overlap);
    }
    let mut drafts = in_portions(&crossing, policy, Why::Split);
    let taken: usize = drafts.iter().map(|draft| draft.files.len()).sum();
    if taken < crossing.len() {
        // What is left is one file alone, the last: it is cut all the same.
        drafts.push(Draft { files: vec![crossing[crossing.len() - 1]], cuts: Vec::new(), why: Why::Split });
    }
    for draft in &mut drafts {
        draft.cuts.clone_from(&cuts);
    }
    drafts
}

/// The times at which a cluster is cut: where the full files of a chain begin that hold most of it without an
/// overlap; else so that about as many rows are between any two as make a full file.
fn cuts(cluster: &[&DataFile], policy: &Policy) -> Vec<i64> {
    let chain = chain(cluster, policy);
    let total = bytes(cluster);
    if bytes(&chain) * 2 >= total && chain.len() > 1 {
        return chain[1..].iter().map(|file| file.least()).collect();
    }
    let mut points: Vec<(i64, u64)> = Vec::new();
    for file in cluster {
        let width = file.greatest() - file.least();
        let point = |n: i64| {
            file.least() + (i128::from(width) * i128::from(2 * n + 1) / i128::from(2 * SAMPLES)) as i64
        };
        points.extend((0..SAMPLES).map(|n| (point(n), file.size)));
    }
    points.sort_unstable();
    let pieces = u128::from(total.div_ceil(policy.target.max(1)));
    let all = u128::from(total) * SAMPLES as u128;
    let (mut cuts, mut passed) = (Vec::new(), 0);
    for (time, weight) in points {
        if passed * pieces >= all * (cuts.len() as u128 + 1) {
            cuts.push(time);
        }
        passed += u128::from(weight);
    }
    cuts.dedup();
    cuts
}
