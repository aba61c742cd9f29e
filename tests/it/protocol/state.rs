//! What the protocol's model is made of: two logs, files, processes, and the store's clock.
//!
//! A log keeps what was really put first under each version, whatever happened to it since: that is the truth
//! which the invariants ask. What a process has read of a log is a cursor; it differs from the truth only in
//! versions that it read after they had been removed and put anew by someone who knew nothing of that,
//! ghosts.

use std::hash::{Hash, Hasher};

/// A set of objects, one bit each; at most four.
pub type Objects = u8;
/// A set of files, or of versions, one bit each.
pub type Files = u16;
/// Rows by object, four bits each.
pub type Rows = u16;
/// A log's version.
pub type Version = u8;
/// The store's time in long pauses: what happened before the last one is older than an hour, and than a day.
pub type Tick = u8;
/// A ghost, by its place among all.
pub type Ghosted = u8;

/// The logs.
pub const LEDGER: usize = 0;
pub const TABLE: usize = 1;
/// No file.
pub const NONE: u8 = u8::MAX;
/// Not yet.
const NEVER: Tick = Tick::MAX;

const MAX_VERSIONS: usize = 12;
const MAX_GHOSTS: usize = 6;
const MAX_FILES: usize = 12;
const MAX_PROCESSES: usize = 4;

/// A log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Entry {
    /// The creation of the table.
    #[default]
    Empty,
    /// A vacuum's.
    Fence,
    /// The ledger's: a batch. Its file tells it from every other.
    Landing { objects: Objects, file: u8 },
    /// The ledger's: all that landed up to there is in the table.
    Settled { to: Version },
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
    /// When, by the store's time.
    pub at: Tick,
    /// Whether it was removed.
    pub gone: bool,
}

/// What was put under a version that had been removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Ghost {
    version: Version,
    slot: Slot,
}

/// A table's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    slots: [Slot; MAX_VERSIONS],
    len: u8,
    ghosts: [Ghost; MAX_GHOSTS],
    ghosts_len: u8,
    /// When the checkpoint of a version was written.
    checkpoints: [Tick; MAX_VERSIONS],
    /// The checkpoint that `_last_checkpoint` names.
    pub hint: Option<Version>,
    /// Entries were removed that nobody may remove: whatever is put now is no continuation.
    pub removed: bool,
}

/// What a process has read of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor {
    /// The checkpoint with which reading began, and when it had been written.
    pub base: Version,
    pub base_time: Tick,
    /// What stood at its version then.
    pub base_entry: Option<Option<Ghosted>>,
    /// The ledger's settled mark in it: what comes after is read entry by entry.
    pub settled: Version,
    /// Where the reading that is under way began, or the put: what is beyond does not count yet.
    pub from: Version,
    /// When that entry had been written, by the store's time.
    pub time: Tick,
    /// The last version read.
    pub version: Version,
    /// Ghosts that were read.
    pub ghosts: u8,
    /// Versions that the cursor went over and the process knows nothing of: a rule was left out.
    pub forgot: Files,
    /// By the process's own clock: when the log's end was last seen, or reading began.
    pub stamp: Tick,
    /// Objects that a reading told of which turned out to be of ghosts: kept by mistake.
    pub kept: Objects,
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
    /// The table told of a version that the ledger, as read, has not.
    Ahead,
    Snapshot,
    Compact,
    Candidates,
    FenceLedger,
    FenceTable,
    KeepLedger,
    Settle,
    KeepTable,
}

/// What a process does next. The model's steps are named by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Next {
    List(Stage),
    Read(Stage),
    /// With the time when the end was seen.
    ListAgain(Stage, Tick),
    /// Whether its files are still there, and how old they were at the fence of this time.
    Look(Stage, Tick),
    Put(Stage),
    Confirm(Stage),
    /// Whether the ledger really ends before the version that the table tells of.
    ListEnd,
    LandAtOnce,
    Upload,
    Merge,
    ListFiles,
    DeleteFiles,
    Checkpoint(usize),
    Hint(usize),
    Clean(usize),
    /// Another engine reads a log, and writes a checkpoint of it.
    OpenElsewhere(usize),
    CheckpointElsewhere(usize),
    /// The process has found the lake damaged.
    Stopped,
    #[default]
    Nothing,
}

/// What a process's own clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Clock {
    #[default]
    Right,
    /// As that of a paused machine.
    StandsStill,
    /// By more than a day.
    Ahead,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Process {
    pub next: Next,
    pub clock: Clock,
    pub cursors: [Cursor; 2],
    /// Which of its batches a writer is at, and which it is done with, one bit each.
    pub batch: u8,
    pub done: u8,
    /// What of it is to be landed.
    pub objects: Objects,
    /// The file that it wrote, and the version of the log that it knew then.
    pub file: u8,
    pub knew: Version,
    /// A compactor's inputs, a vacuum's candidates, the versions that a keeper is to remove.
    pub files: Files,
    /// When a vacuum put its fence.
    pub fence: Tick,
    /// The version up to which a keeper has brought the ledger into the table; that of which another engine
    /// makes a checkpoint.
    pub mark: Version,
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
    /// How many more puts may go unanswered, listings fail, and writers die.
    pub unanswered: u8,
    pub failures: u8,
    pub deaths: u8,
}

// Hashing is most of a search's work: what is used of the arrays, and few words.

impl Hash for Log {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for (slot, checkpoint) in self.slots().iter().zip(self.checkpoints) {
            hasher.write_u64(u64::from(slot.word()) << 8 | u64::from(checkpoint));
        }
        for Ghost { version, slot } in &self.ghosts[..self.ghosts_len as usize] {
            hasher.write_u64(u64::from(slot.word()) << 8 | u64::from(*version));
        }
        hasher.write_u32(u32::from_be_bytes([
            self.len,
            self.ghosts_len,
            self.hint.unwrap_or(NEVER),
            self.removed.into(),
        ]));
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
        let Self { now, files_len, acknowledged, wrong_checkpoint, unanswered, failures, deaths, .. } = *self;
        let left =
            [now, files_len, acknowledged, u8::from(wrong_checkpoint), unanswered, failures, deaths, 0];
        hasher.write_u64(u64::from_be_bytes(left));
    }
}

impl Slot {
    fn word(&self) -> u32 {
        let (kind, set, one) = match self.entry {
            Entry::Empty => (0, 0, 0),
            Entry::Fence => (1, 0, 0),
            Entry::Landing { objects, file } => (2, objects.into(), file),
            Entry::Settled { to } => (3, 0, to),
            Entry::Projection { adds, to } => (4, adds, to),
            Entry::Compaction { removes, add } => (5, removes, add),
        };
        u32::from(set) << 16
            | u32::from(self.at) << 12
            | u32::from(self.gone) << 11
            | kind << 8
            | u32::from(one)
    }
}

/// A table's files as someone sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub files: Files,
    /// The ledger's version that it was brought up to.
    pub txn: Version,
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

impl Default for Log {
    /// That of a table just created.
    fn default() -> Self {
        let slots = [Slot::default(); MAX_VERSIONS];
        let checkpoints = [NEVER; MAX_VERSIONS];
        Self {
            slots,
            len: 1,
            ghosts: [Ghost::default(); MAX_GHOSTS],
            ghosts_len: 0,
            checkpoints,
            hint: None,
            removed: false,
        }
    }
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

    fn ghosts(&self) -> impl Iterator<Item = (Ghosted, &Ghost)> {
        (0..).zip(&self.ghosts[..self.ghosts_len as usize])
    }

    fn ghost_of(&self, cursor: &Cursor, version: Version) -> Option<Ghosted> {
        self.ghosts()
            .find(|(ghost, put)| cursor.ghosts >> ghost & 1 == 1 && put.version == version)
            .map(|(ghost, _)| ghost)
    }

    /// Whether a reader finds an entry there; if so, whether it is a ghost.
    pub fn find(&self, version: Version) -> Option<Option<Ghosted>> {
        let ghost = self.ghosts().find(|(_, ghost)| ghost.version == version && !ghost.slot.gone);
        match ghost {
            Some((ghost, _)) => Some(Some(ghost)),
            None => self.slots().get(version as usize).filter(|slot| !slot.gone).map(|_| None),
        }
    }

    /// When the entry that is there was written.
    pub fn time(&self, version: Version) -> Tick {
        match self.find(version) {
            Some(Some(ghost)) => self.ghosts[ghost as usize].slot.at,
            Some(None) => self.slots[version as usize].at,
            None => NEVER,
        }
    }

    /// Whether what a cursor began with is still what it was.
    pub fn is_its_own(&self, cursor: &Cursor) -> bool {
        self.find(cursor.from).is_none_or(|there| there == self.ghost_of(cursor, cursor.from))
    }

    /// Puts an entry if it is absent. If it was: whether it is a ghost.
    pub fn put(&mut self, version: Version, entry: Entry, now: Tick) -> Option<Option<Ghosted>> {
        if self.find(version).is_some() {
            return None;
        }
        let slot = Slot { entry, at: now, gone: false };
        if version < self.len || self.removed {
            let ghost = self.ghosts_len;
            self.ghosts[ghost as usize] = Ghost { version, slot };
            self.ghosts_len += 1;
            return Some(Some(ghost));
        }
        assert_eq!(version, self.len, "nobody puts a version without having read the one before");
        self.slots[version as usize] = slot;
        self.len += 1;
        Some(None)
    }

    /// Removes whatever is there.
    pub fn remove(&mut self, version: Version) {
        match self.find(version) {
            Some(Some(ghost)) => self.ghosts[ghost as usize].slot.gone = true,
            Some(None) => self.slots[version as usize].gone = true,
            None => {}
        }
    }

    /// Someone who may not do it removes all entries and checkpoints after a version, or all of them.
    pub fn cut(&mut self, after: Option<Version>) {
        let from = after.map_or(0, |version| version + 1);
        (from..MAX_VERSIONS as Version).for_each(|version| self.remove(version));
        self.checkpoints[from as usize..].fill(NEVER);
        self.removed = true;
    }

    /// Writes a checkpoint. That of version 0 tells nothing.
    pub fn checkpoint(&mut self, version: Version, now: Tick) {
        if version > 0 {
            self.checkpoints[version as usize] = now;
        }
    }

    /// The checkpoints, with the times when they were written.
    pub fn checkpoints(&self) -> impl DoubleEndedIterator<Item = (Version, Tick)> {
        (0..)
            .zip(self.checkpoints)
            .take(MAX_VERSIONS)
            .filter(|(_, at)| *at != NEVER)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// The newest checkpoint, with the time when it was written.
    pub fn newest_checkpoint(&self) -> Option<(Version, Tick)> {
        let newest = self.checkpoints.iter().rposition(|at| *at != NEVER)?;
        Some((newest as Version, self.checkpoints[newest]))
    }

    /// All entries that a listing shows, with the times when they were written.
    pub fn listed(&self) -> impl Iterator<Item = (Version, Tick)> {
        (0..MAX_VERSIONS as Version)
            .map(|version| (version, self.time(version)))
            .filter(|(_, at)| *at != NEVER)
    }

    /// The newest version of which a listing shows anything.
    pub fn listed_end(&self) -> Option<Version> {
        self.listed()
            .map(|(version, _)| version)
            .max()
            .max(self.newest_checkpoint().map(|(version, _)| version))
    }

    /// The newest time in a listing from a version on.
    pub fn newest_time(&self, from: Version) -> Option<Tick> {
        self.listed()
            .chain(self.checkpoints())
            .filter(|(version, _)| *version >= from)
            .map(|(_, at)| at)
            .max()
    }

    /// The settled mark in a checkpoint of a version.
    pub fn mark_at(&self, version: Version) -> Version {
        let marks = self.slots().iter().take(version as usize + 1).rev();
        marks
            .filter_map(|slot| if let Entry::Settled { to } = slot.entry { Some(to) } else { None })
            .next()
            .unwrap_or(0)
    }

    /// The entries that a process has read, and did not forget.
    pub fn read(&self, cursor: &Cursor) -> impl Iterator<Item = (Version, Entry, Tick)> {
        (0..=cursor.version).filter(|version| cursor.forgot >> version & 1 == 0).filter_map(|version| {
            let slot = match self.ghost_of(cursor, version) {
                Some(ghost) => self.ghosts[ghost as usize].slot,
                None => *self.slots().get(version as usize)?,
            };
            Some((version, slot.entry, slot.at))
        })
    }

    /// Takes back what a cursor read since its reading began, or put.
    pub fn take_back(&self, cursor: &mut Cursor) {
        for (ghost, _) in self.ghosts().filter(|(_, put)| put.version > cursor.from) {
            cursor.ghosts &= !(1 << ghost);
        }
        cursor.version = cursor.from;
    }
}

impl State {
    /// A lake with some objects landed, each with a file of its own. Nobody has read of them yet.
    pub fn new(landed: u8, unanswered: u8, failures: u8, deaths: u8) -> Self {
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
            failures,
            deaths,
        };
        (0..landed).for_each(|object| state.land(object));
        state
    }

    /// Someone lands an object, all at once.
    pub fn land(&mut self, object: u8) {
        let file = self.write(rows(1 << object));
        let (to, version) = (self.logs[LEDGER].len, self.logs[TABLE].len);
        self.logs[LEDGER].put(to, Entry::Landing { objects: 1 << object, file }, self.now);
        let txn = self.true_table().txn;
        let adds = self
            .true_landings()
            .filter(|(version, ..)| *version > txn)
            .fold(0, |adds, (_, _, file)| adds | 1 << file);
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

    /// The rows of files together.
    pub fn rows_of(&self, files: Files) -> Rows {
        members(files).map(|file| self.files[file as usize].rows).sum()
    }

    /// Whether one of the files was removed.
    pub fn lacks_any(&self, files: Files) -> bool {
        members(files).any(|file| self.files[file as usize].gone)
    }

    /// The table as one sees it who has read so much of its log.
    pub fn table(&self, cursor: &Cursor) -> Seen {
        self.logs[TABLE].read(cursor).fold(Seen { files: 0, txn: 0 }, |seen, (_, entry, _)| match entry {
            Entry::Projection { adds, to } => Seen { files: seen.files | adds, txn: to },
            Entry::Compaction { removes, add } => Seen { files: seen.files & !removes | 1 << add, ..seen },
            _ => seen,
        })
    }

    /// The table as it really is.
    pub fn true_table(&self) -> Seen {
        self.table(&Cursor { version: self.logs[TABLE].last(), ..Cursor::default() })
    }

    /// The batches in the ledger as one has read it: version, objects, file.
    pub fn landings(&self, cursor: &Cursor) -> impl Iterator<Item = (Version, Objects, u8)> {
        self.logs[LEDGER].read(cursor).filter_map(|(version, entry, _)| match entry {
            Entry::Landing { objects, file } => Some((version, objects, file)),
            _ => None,
        })
    }

    /// The objects that really landed, up to a version.
    pub fn true_objects(&self, last: Version) -> Objects {
        self.true_landings()
            .filter(|(version, ..)| *version <= last)
            .fold(0, |there, (_, objects, _)| there | objects)
    }

    /// The batches that really landed.
    pub fn true_landings(&self) -> impl Iterator<Item = (Version, Objects, u8)> {
        (0..).zip(self.logs[LEDGER].slots()).filter_map(|(version, slot)| match slot.entry {
            Entry::Landing { objects, file } => Some((version, objects, file)),
            _ => None,
        })
    }
}
