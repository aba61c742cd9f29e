//! What the protocol's model is made of: two logs, files, processes, and one clock.
//!
//! A log keeps what was really put first under each version, whatever happened to it since: that is the truth which the
//! invariants ask. What a process has read of a log is a cursor; it differs from the truth only in versions that it read
//! after they had been cleaned up and put anew by someone who was away, ghosts.

use std::hash::{Hash, Hasher};

/// A set of objects, one bit each; at most four.
pub type Objects = u8;
/// A set of files, one bit each.
pub type Files = u16;
/// Rows by object, four bits each.
pub type Rows = u16;
/// A log's version.
pub type Version = u8;
/// Time in long pauses: what happened before the last one is older than an hour, and than a day.
pub type Tick = u8;

/// The logs.
pub const LEDGER: usize = 0;
pub const TABLE: usize = 1;
/// No file.
pub const NONE: u8 = u8::MAX;

const MAX_VERSIONS: usize = 10;
const MAX_FILES: usize = 10;
const MAX_PROCESSES: usize = 4;

/// A log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Entry {
    /// The creation of the table, or a fence.
    #[default]
    Empty,
    /// The ledger's: a batch. Its file tells it from every other.
    Landing { objects: Objects, file: u8 },
    /// The table's: brought up to a version of the ledger.
    Projection { adds: Files, to: Version },
    /// The table's: inputs replaced with an output. Its file tells the run.
    Compaction { removes: Files, add: u8 },
}

/// A version of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot {
    /// What was put first.
    pub entry: Entry,
    /// When.
    pub at: Tick,
    /// Whether it was cleaned up.
    pub gone: bool,
    /// What was put there when it had been.
    pub ghost: Option<Entry>,
}

/// A table's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Log {
    slots: [Slot; MAX_VERSIONS],
    len: u8,
    /// The newest checkpoint; 0 is none.
    pub checkpoint: Version,
    /// The checkpoint that `_last_checkpoint` names.
    pub hint: Version,
}

/// What a process has read of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Cursor {
    /// The checkpoint with which reading began.
    pub base: Version,
    /// Where the log's end was last seen, or reading began.
    pub from: Version,
    /// The last version read.
    pub version: Version,
    /// Versions of which a ghost was read, one bit each.
    pub ghosts: u16,
    /// When the log's end was last seen, or reading began.
    pub stamp: Tick,
    /// Objects that a reading told of which turned out to be of ghosts: kept by mistake.
    pub kept: Objects,
    /// How far the log went when reading began.
    pub must: Version,
    /// Whether reading has to begin, or began and did not yet come to the log's end.
    pub starting: bool,
}

/// A Parquet file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct File {
    pub rows: Rows,
    pub made: Tick,
    pub gone: bool,
}

/// Why a process reads a log to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Start,
    Land,
    Project,
    Snapshot,
    Compact,
    Candidates,
    FenceLedger,
    FenceTable,
    KeepLedger,
    KeepTable,
}

/// What a process does next. The model's steps are named by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Next {
    List(Stage),
    Read(Stage),
    /// With the time when the end was seen.
    ListAgain(Stage, Tick),
    Put(Stage),
    Confirm(Stage),
    LandAtOnce,
    Upload,
    Merge,
    ListFiles,
    DeleteFiles,
    Checkpoint(usize),
    Hint(usize),
    Clean(usize),
    #[default]
    Nothing,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Process {
    pub next: Next,
    pub cursors: [Cursor; 2],
    /// Which of its batches a writer is at.
    pub batch: u8,
    /// What of it is to be landed.
    pub objects: Objects,
    /// The file that it wrote.
    pub file: u8,
    /// A compactor's inputs, a vacuum's candidates.
    pub files: Files,
}

/// A put whose answer never came: it may still arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flight {
    pub log: usize,
    pub version: Version,
    pub entry: Entry,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub now: Tick,
    pub logs: [Log; 2],
    files: [File; MAX_FILES],
    files_len: u8,
    pub processes: [Process; MAX_PROCESSES],
    pub flight: Option<Flight>,
    pub acknowledged: Objects,
    /// A checkpoint was written by one who had read ghosts.
    pub wrong_checkpoint: bool,
    /// How many more puts may go unanswered, and writers die.
    pub unanswered: u8,
    pub deaths: u8,
}

// Hashing is most of a search's work: what is used of the arrays, and few words.

impl Hash for Log {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for slot in self.slots() {
            let ghost = slot.ghost.map_or(u32::MAX, Entry::word);
            hasher.write_u64(u64::from(slot.entry.word()) << 32 | u64::from(ghost));
            hasher.write_u8(slot.at << 1 | u8::from(slot.gone));
        }
        hasher.write_u32(u32::from_be_bytes([self.len, self.checkpoint, self.hint, 0]));
    }
}

impl Hash for Cursor {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { base, from, version, ghosts, stamp, kept, must, starting } = *self;
        hasher.write_u64(u64::from_be_bytes([base, from, version, stamp, kept, must, u8::from(starting), 0]));
        hasher.write_u16(ghosts);
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.logs.iter().for_each(|log| log.hash(hasher));
        for file in self.files() {
            hasher.write_u32(u32::from(file.rows) << 16 | u32::from(file.made) << 8 | u32::from(file.gone));
        }
        self.processes.iter().for_each(|process| process.hash(hasher));
        self.flight.hash(hasher);
        let Self { now, files_len, acknowledged, wrong_checkpoint, unanswered, deaths, .. } = *self;
        hasher.write_u64(u64::from_be_bytes([now, files_len, acknowledged, u8::from(wrong_checkpoint), unanswered, deaths, 0, 0]));
    }
}

impl Entry {
    fn word(self) -> u32 {
        let (kind, set, one) = match self {
            Self::Empty => (0, 0, 0),
            Self::Landing { objects, file } => (1, objects.into(), file),
            Self::Projection { adds, to } => (2, adds, to),
            Self::Compaction { removes, add } => (3, removes, add),
        };
        u32::from(set) << 16 | kind << 8 | u32::from(one)
    }
}

/// A table's files as someone sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub files: Files,
    /// The ledger's version that it was brought up to.
    pub txn: Version,
    /// Files that were taken out since the last long pause.
    pub tombstones: Files,
}

/// The members of a set, least first.
pub fn members(mut set: u16) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let least = set.trailing_zeros() as u8;
        set &= set.checked_sub(1)?;
        Some(least)
    })
}

/// One row of each of the objects.
pub fn rows(objects: Objects) -> Rows {
    members(objects.into()).map(|object| 1 << (4 * object)).sum()
}

impl Log {
    /// The newest version.
    pub fn last(&self) -> Version {
        self.len - 1
    }

    /// All versions, with what was put first.
    pub fn slots(&self) -> &[Slot] {
        &self.slots[..self.len as usize]
    }

    /// Whether a reader finds an entry there; if so, whether it is a ghost.
    pub fn find(&self, version: Version) -> Option<bool> {
        let slot = self.slots().get(version as usize)?;
        if slot.ghost.is_some() { Some(true) } else { (!slot.gone).then_some(false) }
    }

    /// Puts an entry if it is absent. If it was: whether it is a ghost.
    pub fn put(&mut self, version: Version, entry: Entry, now: Tick) -> Option<bool> {
        if self.find(version).is_some() {
            return None;
        }
        if version < self.len {
            self.slots[version as usize].ghost = Some(entry);
            return Some(true);
        }
        assert_eq!(version, self.len, "nobody puts a version without having read the one before");
        self.slots[version as usize] = Slot { entry, at: now, ..Slot::default() };
        self.len += 1;
        Some(false)
    }

    /// Removes an entry.
    pub fn clean(&mut self, version: Version) {
        self.slots[version as usize].gone = true;
    }

    /// The entries that one who has read it up to a version has read.
    pub fn read(&self, version: Version, ghosts: u16) -> impl Iterator<Item = (Version, Entry, Tick)> {
        let slots = self.slots().iter().take(version as usize + 1).zip(0..);
        slots.map(move |(slot, version)| match slot.ghost.filter(|_| ghosts >> version & 1 == 1) {
            Some(ghost) => (version, ghost, slot.at),
            None => (version, slot.entry, slot.at),
        })
    }
}

impl State {
    /// A lake with some objects landed, each with a file of its own. Nobody has read of them yet.
    pub fn new(landed: u8, unanswered: u8, deaths: u8) -> Self {
        let mut state = Self {
            now: 0,
            logs: [Log::default(); 2],
            files: [File::default(); MAX_FILES],
            files_len: 0,
            processes: [Process { file: NONE, ..Process::default() }; MAX_PROCESSES],
            flight: None,
            acknowledged: 0,
            wrong_checkpoint: false,
            unanswered,
            deaths,
        };
        state.logs.iter_mut().for_each(|log| _ = log.put(0, Entry::Empty, 0));
        (0..landed).for_each(|object| state.land(object));
        state
    }

    /// Someone lands an object, all at once.
    pub fn land(&mut self, object: u8) {
        let file = self.write(rows(1 << object));
        let (to, version) = (self.logs[LEDGER].len, self.logs[TABLE].len);
        self.logs[LEDGER].put(to, Entry::Landing { objects: 1 << object, file }, self.now);
        let txn = self.true_table().txn;
        let adds = self.true_landings().filter(|(version, ..)| *version > txn).fold(0, |adds, (_, _, file)| adds | 1 << file);
        self.logs[TABLE].put(version, Entry::Projection { adds, to }, self.now);
        self.acknowledged |= 1 << object;
    }

    /// The files, those removed too.
    pub fn files(&self) -> &[File] {
        &self.files[..self.files_len as usize]
    }

    /// Writes a file.
    pub fn write(&mut self, rows: Rows) -> u8 {
        self.files[self.files_len as usize] = File { rows, made: self.now, gone: false };
        self.files_len += 1;
        self.files_len - 1
    }

    /// Removes files.
    pub fn delete(&mut self, files: Files) {
        members(files).for_each(|file| self.files[file as usize].gone = true);
    }

    /// Whether a file is from before the last long pause.
    pub fn is_old(&self, file: u8) -> bool {
        self.files[file as usize].made < self.now
    }

    /// The rows of files together.
    pub fn rows_of(&self, files: Files) -> Rows {
        members(files).map(|file| self.files[file as usize].rows).sum()
    }

    /// Whether one of the files was removed.
    pub fn lacks_any(&self, files: Files) -> bool {
        members(files).any(|file| self.files[file as usize].gone)
    }

    /// The table as one sees it who has read up to a version.
    pub fn table(&self, version: Version, ghosts: u16) -> Seen {
        let mut seen = Seen { files: 0, txn: 0, tombstones: 0 };
        for (_, entry, at) in self.logs[TABLE].read(version, ghosts) {
            match entry {
                Entry::Projection { adds, to } => seen = Seen { files: seen.files | adds, txn: to, ..seen },
                Entry::Compaction { removes, add } => {
                    seen.files = seen.files & !removes | 1 << add;
                    seen.tombstones |= if at == self.now { removes } else { 0 };
                }
                Entry::Empty | Entry::Landing { .. } => {}
            }
        }
        seen
    }

    /// The table as it really is.
    pub fn true_table(&self) -> Seen {
        self.table(self.logs[TABLE].last(), 0)
    }

    /// The batches in the ledger as one has read it: version, objects, file.
    pub fn landings(&self, version: Version, ghosts: u16) -> impl Iterator<Item = (Version, Objects, u8)> {
        self.logs[LEDGER].read(version, ghosts).filter_map(|(version, entry, _)| match entry {
            Entry::Landing { objects, file } => Some((version, objects, file)),
            _ => None,
        })
    }

    /// The batches that really landed.
    pub fn true_landings(&self) -> impl Iterator<Item = (Version, Objects, u8)> {
        self.landings(self.logs[LEDGER].last(), 0)
    }
}
