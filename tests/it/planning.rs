//! What is planned to be merged: laws of the planner, checked on files that exist in numbers only. A merge is
//! played: its rows are put into files of the target size, cut as the plan says.

use std::collections::{BTreeMap, BTreeSet};

use flarelake::maintain::plan::{Bin, Policy, Why, plan};
use flarelake::table::DataFile;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::decoding::runs;

const MINUTE: i64 = 60_000_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// 2026-06-01T00:00:00Z.
const START: i64 = 1_780_272_000_000_000;
const MIB: u64 = 1 << 20;
const TARGET: u64 = 256 * MIB;
const OPEN: u64 = 128 * MIB;

fn partition(time: i64) -> BTreeMap<String, String> {
    let day = chrono::DateTime::from_timestamp_micros(time).expect("a time").format("%Y-%m-%d").to_string();
    BTreeMap::from([("p_event_date".to_owned(), day)])
}

fn file(number: u64, times: (i64, i64), size: u64, written: i64) -> DataFile {
    DataFile {
        path: format!("{number}.parquet"),
        partition_values: partition(times.0),
        size,
        // A hundred bytes a row.
        rows: (size / 100).max(1),
        modified_ms: written / 1000,
        stats: String::new(),
        times: Some(times),
    }
}

/// A lake that is landed in and merged by the plan's word.
struct Played {
    files: Vec<DataFile>,
    next: u64,
    /// Bytes that were written by merges.
    rewritten: u64,
}

impl Played {
    fn new() -> Self {
        Self { files: Vec::new(), next: 0, rewritten: 0 }
    }

    fn land(&mut self, times: (i64, i64), size: u64, now: i64) {
        self.next += 1;
        self.files.push(file(self.next, times, size, now));
    }

    /// Rows of a merge are taken to be spread evenly over its time.
    fn merge(&mut self, bin: &Bin) {
        let gone: BTreeSet<&str> = bin.inputs.iter().map(|f| f.path.as_str()).collect();
        self.files.retain(|f| !gone.contains(f.path.as_str()));
        let of = |f: &DataFile| f.times.expect("times");
        let least = bin.inputs.iter().map(|f| of(f).0).min().expect("inputs");
        let greatest = bin.inputs.iter().map(|f| of(f).1).max().expect("inputs");
        let mut edges: Vec<i64> =
            bin.cuts.iter().copied().filter(|cut| least < *cut && *cut <= greatest).collect();
        edges.push(greatest + 1);
        let landed = bin.inputs.iter().map(|f| f.modified_ms).max().expect("inputs") * 1000;
        let mut from = least;
        for to in edges {
            let part = |f: &DataFile| {
                let (a, b) = of(f);
                let inside = (b.min(to - 1) - a.max(from) + 1).max(0);
                (u128::from(f.size) * inside as u128 / (b - a + 1) as u128) as u64
            };
            let size: u64 = bin.inputs.iter().map(part).sum();
            // A file goes on if what is left would be small.
            let pieces = size.saturating_sub(TARGET / 4).div_ceil(TARGET).max(1).min((to - from) as u64);
            for piece in 0..pieces {
                let at = |n: u64| from + ((to - from) as i128 * i128::from(n) / i128::from(pieces)) as i64;
                self.land((at(piece), at(piece + 1) - 1), (size / pieces).max(1), landed);
                self.rewritten += size / pieces;
            }
            from = to;
        }
    }

    /// Plans and merges until nothing is planned.
    fn settle(&mut self, policy: &Policy) -> usize {
        for round in 0.. {
            assert!(round < 32, "planning comes to no end: {} files", self.files.len());
            let bins = plan(&self.files, policy);
            check(&bins, &self.files);
            if bins.is_empty() {
                return round;
            }
            bins.iter().for_each(|bin| self.merge(bin));
        }
        unreachable!()
    }
}

/// What holds for every plan.
fn check(bins: &[Bin], files: &[DataFile]) {
    let mut seen = BTreeSet::new();
    for bin in bins {
        assert!(bin.inputs.len() > 1 || bin.why == Why::Split, "one file is no merge: {bin:?}");
        assert!(bin.inputs.len() <= 128, "{} inputs", bin.inputs.len());
        for input in &bin.inputs {
            assert_eq!(input.partition_values, bin.partition);
            assert!(seen.insert(input.path.clone()), "{} is in two merges", input.path);
            assert!(files.contains(input), "{} is no file of the table", input.path);
        }
    }
}

/// Pairs of files that share a time.
fn overlaps(files: &[DataFile]) -> usize {
    let mut times: Vec<(i64, i64)> = files.iter().filter_map(|f| f.times).collect();
    times.sort_unstable();
    times.windows(2).filter(|pair| pair[1].0 <= pair[0].1).count()
}

#[test]
fn closed_partitions_end_without_overlap_in_files_of_the_target_size() {
    for seed in 0..runs(300) {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut lake = Played::new();
        let now = START + 40 * DAY;
        for _ in 0..random.random_range(1..400) {
            let from = START + random.random_range(0..3 * DAY);
            let (widest, largest) = (random.random_range(0..3), random.random_range(0..3));
            let width = random.random_range(0..[MINUTE, HOUR, DAY][widest]);
            let to = (from + width).min(START + ((from - START) / DAY + 1) * DAY - 1);
            let size = random.random_range(1..[MIB / 10, 20 * MIB, 400 * MIB][largest]);
            lake.land((from, to), size, now);
        }
        let total: u64 = lake.files.iter().map(|f| f.size).sum();
        let policy = Policy { target: TARGET, now, open_bytes: OPEN, patient: false };
        lake.settle(&policy);
        assert_eq!(overlaps(&lake.files), 0, "seed {seed}");
        let left: u64 = lake.files.iter().map(|f| f.size).sum();
        assert!(
            left.abs_diff(total) <= total / 100 + 1000,
            "seed {seed}: the play itself loses bytes: {total}, {left}"
        );
        // Of three neighbours of a day at least one is full, or they had been one.
        let mut files: Vec<&DataFile> = lake.files.iter().collect();
        files.sort_by_key(|f| f.times);
        for three in files.windows(3).filter(|t| t[0].partition_values == t[2].partition_values) {
            let small = three.iter().filter(|f| f.size < TARGET / 2).count();
            assert!(small < 3, "seed {seed}: three small neighbours");
        }
        assert_eq!(plan(&lake.files, &policy), Vec::new(), "seed {seed}: a second run plans nothing");
    }
}

#[test]
fn a_day_of_minutes_is_rewritten_a_few_times_and_kept_in_few_files() {
    for (size, most_times) in [(100_000, 8.0), (MIB, 8.0), (20 * MIB, 6.0)] {
        let mut lake = Played::new();
        let mut most_files = 0;
        // One file a minute for a day, and two hours of late files after it, each of a twentieth.
        for minute in 0..26 * 60 {
            let now = START + minute * MINUTE;
            if minute < 24 * 60 {
                lake.land((now, now + MINUTE - 1), size, now);
            } else {
                lake.land((START + 20 * HOUR, START + DAY - 1), size / 20, now);
            }
            if minute % 10 == 9 {
                lake.settle(&Policy { target: TARGET, now, open_bytes: OPEN, patient: true });
                let open = lake.files.iter().filter(|f| f.size < TARGET / 2).count();
                most_files = most_files.max(open);
            }
        }
        let landed = size * 24 * 60 + size / 20 * 120;
        let times = lake.rewritten as f64 / landed as f64;
        println!(
            "{size} bytes a minute: each is rewritten {times:.1} times; at most {most_files} small files"
        );
        assert!(times <= most_times, "{size}: {times}");
        // Seven of each of the tiers.
        assert!(most_files <= 42, "{size}: {most_files}");
        // A day later nothing is late any more.
        let policy = Policy { target: TARGET, now: START + 51 * HOUR, open_bytes: OPEN, patient: true };
        lake.settle(&policy);
        assert_eq!(overlaps(&lake.files), 0, "{size}");
        assert!(lake.files.len() as u64 <= 2 * (landed / TARGET) + 2, "{size}: {} files", lake.files.len());
    }
}

#[test]
fn late_rows_wait_where_they_would_rewrite_much_for_little() {
    let late = |policy: &Policy, size: u64, written: i64| {
        let mut lake = Played::new();
        for quarter in 0..4 {
            let from = START + quarter * 6 * HOUR;
            lake.land((from, from + 6 * HOUR - 1), TARGET, START + DAY);
        }
        lake.land((START + 7 * HOUR, START + 8 * HOUR), size, written);
        plan(&lake.files, policy)
    };
    let now = START + 10 * DAY;
    let patient = Policy { target: TARGET, now, open_bytes: OPEN, patient: true };
    assert_eq!(
        late(&patient, MIB, now - MINUTE),
        Vec::new(),
        "a megabyte of a minute ago does not rewrite 256"
    );
    assert_eq!(late(&patient, MIB, now - 2 * HOUR), Vec::new(), "nor one of two hours ago");
    assert_eq!(late(&patient, MIB, now - DAY).len(), 1, "a day is long enough");
    let waited = late(&patient, 8 * MIB, now - 2 * HOUR);
    assert_eq!(waited.len(), 1, "no more came for two hours, and it is a thirty-second");
    assert_eq!(waited[0].inputs.len(), 2, "only what it overlaps with is rewritten");
    assert_eq!(late(&patient, 64 * MIB, now - MINUTE).len(), 1, "as much as an eighth is worth it at once");
    assert_eq!(
        late(&Policy { patient: false, ..patient }, MIB, now - MINUTE).len(),
        1,
        "a person has asked for it"
    );
}

#[test]
fn a_trickle_of_late_rows_rewrites_a_full_file_once_a_day_at_most() {
    let mut lake = Played::new();
    lake.land((START, START + DAY - 1), 200 * MIB, START + DAY);
    for minute in 0..7 * 24 * 60 {
        let now = START + 2 * DAY + minute * MINUTE;
        if minute % 70 == 0 {
            lake.land((START + HOUR, START + 2 * HOUR), 10_000, now);
        }
        if minute % 10 == 9 {
            lake.settle(&Policy { target: TARGET, now, open_bytes: OPEN, patient: true });
        }
    }
    assert!(lake.rewritten < 8 * 201 * MIB, "{} MiB", lake.rewritten / MIB);
    assert!(lake.files.len() < 30, "{}", lake.files.len());
}

#[test]
fn a_late_file_across_a_large_day_is_cut_where_the_full_files_begin() {
    let mut lake = Played::new();
    for n in 0..48 {
        let from = START + n * HOUR / 2;
        lake.land((from, from + HOUR / 2 - 1), TARGET, START + DAY);
    }
    lake.land((START, START + DAY - 1), 10 * MIB, START + DAY);
    let policy = Policy { target: TARGET, now: START + 3 * DAY, open_bytes: OPEN, patient: false };
    let bins = plan(&lake.files, &policy);
    assert_eq!(bins.len(), 1);
    assert_eq!(
        (bins[0].why, bins[0].inputs.len(), bins[0].bytes()),
        (Why::Split, 1, 10 * MIB),
        "the late file alone"
    );
    assert_eq!(bins[0].cuts.len(), 47);
    lake.settle(&policy);
    assert_eq!((overlaps(&lake.files), lake.files.len()), (0, 48));
}

#[test]
fn an_open_day_is_merged_by_tiers_and_a_table_without_times_too() {
    let minute = |n: i64| (START + n * MINUTE, START + (n + 1) * MINUTE - 1);
    let policy = Policy { target: TARGET, now: START + 12 * HOUR, open_bytes: OPEN, patient: true };
    let files = |count: i64| (0..count).map(|n| file(n as u64, minute(n), MIB, START)).collect::<Vec<_>>();
    assert_eq!(plan(&files(7), &policy), Vec::new(), "seven of a size are left");
    let eight = plan(&files(8), &policy);
    assert_eq!((eight.len(), eight[0].why, eight[0].inputs.len()), (1, Why::Tier, 8));
    let tiny: Vec<DataFile> = (0..3).map(|n| file(n, minute(n as i64), 50_000, START)).collect();
    let merges = |patient| plan(&tiny, &Policy { patient, ..policy.clone() }).len();
    assert_eq!(
        (merges(true), merges(false)),
        (0, 1),
        "a few kilobytes are merged when a person asks for it, not every ten minutes"
    );
    let asked = Policy { patient: false, ..policy.clone() };
    let settled = plan(&files(60), &asked);
    assert_eq!(
        (settled.len(), settled[0].why, settled[0].inputs.len()),
        (1, Why::Small, 60),
        "seconds of work"
    );
    assert!(plan(&files(70), &asked).iter().all(|bin| bin.why == Why::Tier), "more than seconds of it");
    let ledger = |count| {
        files(count)
            .into_iter()
            .map(|f| DataFile { times: None, partition_values: BTreeMap::new(), ..f })
            .collect::<Vec<_>>()
    };
    for policy in [policy, asked] {
        assert_eq!(plan(&ledger(7), &policy), Vec::new());
        assert_eq!(plan(&ledger(8), &policy).len(), 1);
    }
}
