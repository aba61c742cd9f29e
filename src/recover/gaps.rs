//! Gaps in what Cloudflare pushed, found by the names of its objects.
//!
//! Logpush names an object by the time range of its records:
//! `<path>/20210812/20210812T223000Z_20210812T224000Z_9af500e2.log.gz`. The path is the user's, and
//! identifies a stream of logs, most often one log type of one zone. The day's folder, wherever in the path
//! it is (`{DATE}`, `date={DATE}`, or folders of year, month, day and hour), is not part of the stream. Jobs
//! that push to one path are one stream: a gap in one is hidden by the others.
//!
//! The ranges of a busy stream touch or overlap. A quiet one has minutes without any object, at night more
//! than by day. So a gap is longer than five minutes and than three times what is *usual* in its stream: the
//! longest distance between two ranges, without the longest 1 in 100 (at least five; of few distances half).
//! Random ranges are so far apart once in a million times; while at most 1 in 100 distances are gaps, none of
//! these raises what is usual. There is no gap before a stream's first range: its job was created then. There
//! is one after its last range if nothing came until now, or until the last range of all streams. Deleted
//! objects leave a gap, too.

use std::collections::BTreeMap;

use chrono::{Days, NaiveDate, NaiveDateTime};

/// No distance up to this is a gap, in seconds: Logpush waits up to five minutes for an object to fill.
const SHORTEST: i64 = 300;
/// How many times what is usual.
const TIMES_USUAL: i64 = 3;
/// A time as names have it.
const TIME_CHARS: usize = "20210812T223000Z".len();

/// A time without logs. Times are in seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The beginning of its objects' keys, without the days in it.
    pub stream: String,
    /// The end of the last range before it.
    pub from: i64,
    /// The start of the first range after it; none: nothing came since.
    pub until: Option<i64>,
    /// How long it is, or has been.
    pub seconds: i64,
}

/// The time ranges in the names of objects, by stream.
#[derive(Debug, Default)]
pub struct Streams {
    ranges: BTreeMap<String, Vec<(i64, i64)>>,
    /// Names without a time range.
    pub unnamed: u64,
}

impl Streams {
    /// Takes note of an object's name.
    pub fn add(&mut self, key: &str) {
        match parse(key) {
            Some((stream, range)) => self.ranges.entry(stream).or_default().push(range),
            None => self.unnamed += 1,
        }
    }

    /// Whether no name had a time range.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Every gap, by stream and time. Something should have come until `until`, or else until the end of the
    /// last range of all. A gap is `longer_than` so many seconds; none: see the module.
    pub fn gaps(&mut self, until: Option<i64>, longer_than: Option<i64>) -> Vec<Gap> {
        let last = self.ranges.values().flatten().map(|range| range.1).max();
        let until = last.max(until).unwrap_or_default();
        let mut gaps = Vec::new();
        for (stream, ranges) in &mut self.ranges {
            ranges.sort_unstable();
            let mut distances = Vec::new();
            let mut end = ranges[0].1;
            for (from, to) in &ranges[1..] {
                if *from > end {
                    distances.push((end, *from));
                }
                end = end.max(*to);
            }
            let least = longer_than.unwrap_or_else(|| {
                SHORTEST.max(usual(&distances, ranges.len() - 1).saturating_mul(TIMES_USUAL))
            });
            let gap = |from: i64, until: Option<i64>, seconds: i64| Gap {
                stream: stream.clone(),
                from,
                until,
                seconds,
            };
            let between = distances.into_iter().map(|(from, until)| gap(from, Some(until), until - from));
            let since = (until > end).then(|| gap(end, None, until - end));
            gaps.extend(between.chain(since).filter(|gap| gap.seconds > least));
        }
        gaps
    }
}

/// The longest distance, when the longest 1 in 100 of `all` are left out: at least five, or half of them
/// where that is less. Those that are none, between ranges that join or overlap, are not in `distances`.
fn usual(distances: &[(i64, i64)], all: usize) -> i64 {
    let mut seconds: Vec<i64> = distances.iter().map(|(from, until)| until - from).collect();
    seconds.sort_unstable_by(|a, b| b.cmp(a));
    let left_out = (all / 100).max(5).min(all.div_ceil(2));
    seconds.get(left_out).copied().unwrap_or_default()
}

/// Whether the beginning of keys tells a day, a month or a year: later objects are not below it.
pub fn is_dated(prefix: &str) -> bool {
    prefix.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() >= 4 && digits.starts_with("20"))
}

/// The stream and the time range that a key tells.
fn parse(key: &str) -> Option<(String, (i64, i64))> {
    let (folders, name) = key.rsplit_once('/').unwrap_or(("", key));
    let (before, from, until) = name.match_indices('T').find_map(|(at, _)| {
        let start = at.checked_sub(8)?;
        let from = time(name.get(start..start + TIME_CHARS)?)?;
        let rest = name.get(start + TIME_CHARS..)?.strip_prefix('_')?;
        let until = time(rest.get(..TIME_CHARS)?)?;
        (from <= until).then(|| (&name[..start], from, until))
    })?;
    // At midnight the folder may be that of either day, or of the day on which it was pushed.
    let days = [Some(from.date()), Some(until.date()), until.date().checked_add_days(Days::new(1))];
    let days: Vec<String> =
        days.into_iter().flatten().map(|day: NaiveDate| day.format("%Y%m%d").to_string()).collect();
    let mut stream = String::new();
    let mut below_a_date = false;
    for folder in folders.split_terminator('/') {
        if is_date(folder, &days, below_a_date) {
            below_a_date = true;
        } else {
            stream.push_str(folder);
            stream.push('/');
        }
    }
    stream.push_str(before);
    for day in days {
        stream = stream.replace(&day, "{DATE}");
    }
    Some((stream, (from.and_utc().timestamp(), until.and_utc().timestamp())))
}

/// Whether a folder's name is a date and nothing else: one of `days`, or its year or month, to the hour at
/// most; below such a one also a number of one or two digits. With or without `date=` and the like before it.
fn is_date(folder: &str, days: &[String], below_a_date: bool) -> bool {
    let value = folder.rsplit_once('=').map_or(folder, |(_, value)| value);
    let digits = value.replace(['-', 'T'], "");
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    match digits.len() {
        1 | 2 => below_a_date,
        4 | 6 | 8 => days.iter().any(|day| day.starts_with(&digits)),
        10 => days.iter().any(|day| digits.starts_with(day)),
        _ => false,
    }
}

fn time(text: &str) -> Option<NaiveDateTime> {
    // chrono would also take signs and blanks.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'T' || b == b'Z');
    plain.then(|| NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%SZ").ok()).flatten()
}
