//! Evaluates a listing of a table's log: which entries and checkpoints there are, whether what was read of
//! the log still holds, and what can be removed. Pure.

use std::time::Duration;

use object_store::ObjectMeta;
use object_store::path::Path;

/// Log entries are removed when they are older than this by the store's times, and never before.
pub const LEAST_LOG: Duration = Duration::from_secs(86_400);
/// Less than [`LEAST_LOG`], by more than the times that one store gives can differ.
const SURELY_THERE: Duration = Duration::from_secs(43_200);

/// What a file of a table's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFileKind {
    /// The entry of a version.
    Entry,
    /// All up to a version.
    Checkpoint,
    /// A part of a checkpoint that another engine wrote; whether the others are there is not known.
    Part,
}

/// A file of a table's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The version that it is, or up to which it tells.
    pub version: u64,
    pub kind: LogFileKind,
    /// When it was written, in milliseconds since the epoch.
    pub written_ms: i64,
    pub location: Path,
}

impl LogFile {
    pub(super) fn of(meta: ObjectMeta) -> Option<Self> {
        let name = meta.location.filename().unwrap_or_default();
        let (version, rest) = (name.get(..20)?.parse().ok()?, &name[20..]);
        let kind = match rest {
            ".json" => LogFileKind::Entry,
            ".checkpoint.parquet" => LogFileKind::Checkpoint,
            _ if rest.starts_with(".checkpoint.") && rest.ends_with(".parquet") => LogFileKind::Part,
            _ => return None,
        };
        Some(Self {
            version,
            kind,
            written_ms: meta.last_modified.timestamp_millis(),
            location: meta.location,
        })
    }
}

/// A part counts: who asks wants to know whether something may have been cleaned up.
pub(super) fn newest_checkpoint(files: &[LogFile]) -> Option<u64> {
    files.iter().filter(|file| file.kind != LogFileKind::Entry).map(|file| file.version).max()
}

/// Whether what was read of a log counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Sure,
    /// Something beyond where the reading began may have been cleaned up: it has to begin anew.
    Outrun,
    /// What the reading began with is not there any more, and no checkpoint stands for it: the log was
    /// removed or restored.
    Gone,
}

/// Whether a reading that began after an entry counts, by a listing of the log from that entry on that was
/// made after it.
///
/// `version` is the entry, none before the first; `written_ms` is when the store said that it was written.
/// What came after it was written later, and goes no sooner than a day after that. So while the newest file
/// is not half a day younger, nothing beyond can have gone, and nothing was put in the place of what had
/// gone. No process's clock is asked: those of a paused machine stand still. Without `written_ms` any
/// checkpoint beyond is a doubt.
pub fn standing(version: Option<u64>, written_ms: Option<i64>, files: &[LogFile]) -> Standing {
    let checkpoint = newest_checkpoint(files);
    let entry = files.iter().find(|file| file.kind == LogFileKind::Entry && Some(file.version) == version);
    let is_there = entry.map_or(version.is_none(), |entry| {
        written_ms.is_none_or(|written_ms| entry.written_ms == written_ms)
    });
    let newest = files.iter().map(|file| file.written_ms).max();
    match written_ms.zip(newest) {
        _ if entry.is_none() && checkpoint < version => Standing::Gone,
        _ if !is_there => Standing::Outrun,
        _ if checkpoint <= version => Standing::Sure,
        Some((then, newest)) if newest - then < SURELY_THERE.as_millis() as i64 => Standing::Sure,
        _ => Standing::Outrun,
    }
}

/// The files of the version with which a reading begins: the newest checkpoint's, else the first's. A reading
/// that begins counts if they are the same before it and after it.
pub(super) fn base(files: &[LogFile]) -> Vec<LogFile> {
    let version = newest_checkpoint(files).unwrap_or_default();
    let mut base: Vec<LogFile> = files.iter().filter(|file| file.version == version).cloned().collect();
    base.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    base
}

/// The checkpoint below which all can go from a log: it was there before `before_ms`, and is no newer than
/// any version of since then. So every version that was the newest at that time or later can still be read,
/// and there is no gap.
pub fn removable_below(files: &[LogFile], before_ms: i64) -> Option<u64> {
    let is_old = |file: &&LogFile| file.written_ms < before_ms;
    let least_young = files.iter().filter(|file| !is_old(file)).map(|file| file.version).min();
    let bases = files.iter().filter(is_old).filter(|file| file.kind == LogFileKind::Checkpoint);
    bases.map(|file| file.version).filter(|base| least_young.is_none_or(|least| *base <= least)).max()
}
