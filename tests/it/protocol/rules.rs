//! The protocol's rules, each of which can be left out, and who keeps them.

use std::fmt;

use super::state::{LEDGER, Next, Objects, Stage, TABLE, Tick, Version};

/// How a process makes sure that what it read of a log is really the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Not at all: what is absent is the end.
    None,
    /// At the end it lists the log: is there anything beyond?
    Beyond,
    /// At the end it lists the log: can anything have been removed since its reading began?
    Since,
}

/// Who is asked for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The store, by the times that it gives to what is in it.
    Store,
    /// The process's own clock.
    Own,
}

/// How whoever is about to name a file makes sure that no vacuum takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Not at all.
    Never,
    /// By its own clock the file is no older than an hour.
    OwnClock,
    /// Behind a fence that is newer than the file: it was no older than an hour then, and is still there.
    BehindFence,
}

/// By what time a vacuum tells old files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// That of the ledger's fence, its first.
    FirstFence,
    /// That of the table's, its last.
    LastFence,
    /// Its own clock's.
    OwnClock,
}

/// Which of the ledger's settled marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// None: all that is below a checkpoint is taken for settled.
    None,
    /// The newest in the log.
    Newest,
    /// That in the checkpoint.
    InCheckpoint,
}

/// What has to be there of the entry after which a process reads or puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Unknown,
    /// The entry as it was, or a checkpoint that covers it.
    OrCheckpoint,
    /// The entry as it was.
    Itself,
}

/// What a process does that finds the table ahead of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// It goes on.
    Ignored,
    /// It reads on: if the ledger doesn't get there, the lake is damaged.
    Read,
    /// It lists the ledger, too.
    Listed,
}

/// The rules. Without them something is lost or doubled.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// A vacuum fences the ledger.
    pub fences_ledger: bool,
    /// A vacuum fences the table.
    pub fences_table: bool,
    /// A vacuum lists the files before it fences.
    pub lists_then_fences: bool,
    /// A vacuum brings the table up to the ledger before it reads it anew.
    pub projects_before_deleting: bool,
    /// By what time a vacuum tells old files.
    pub vacuums_by: Now,
    /// A writer doesn't put a batch whose files a vacuum may take.
    pub writers_look: Look,
    /// A compactor doesn't put an output that a vacuum may take.
    pub compactors_look: Look,
    /// Who begins anew takes the checkpoint for a fence: there may be one below.
    pub takes_checkpoint_for_fence: bool,
    /// A compactor gives up if an input was taken out.
    pub compactors_ask_inputs: bool,
    /// A writer doesn't put objects that are in the log.
    pub writers_ask_objects: bool,
    /// A writer knows its own batch in the log.
    pub writers_know_their_batch: bool,
    /// What who read something, or began to read, does at the end.
    pub doubts: Doubt,
    /// Who wins a put makes sure that its version had not been removed.
    pub confirms: bool,
    /// Who is asked whether it is so long since that something can have been removed.
    pub doubts_by: Time,
    /// Only what the listing shows was read, or put.
    pub sees_what_counts: bool,
    /// What has still to be there of what reading or putting began with.
    pub knows_its_base: Base,
    /// What is read of the ledger's entries that the checkpoint covers is in the ledger's table.
    pub checks_what_is_covered: bool,
    /// Who can't confirm a put in the ledger stands before it again.
    pub puts_back_in_ledger: bool,
    /// In the table, too.
    pub puts_back_in_table: bool,
    /// Who begins anew forgets what he had read.
    pub forgets: bool,
    /// Nobody but a vacuum removes files, not even his own that turned out to be useless.
    pub leaves_files: bool,
    /// The newest checkpoint is found by listing, not as `_last_checkpoint` tells it.
    pub confirms_by_listing: bool,
    /// What a mark calls settled is projected before.
    pub projects_before_marking: bool,
    /// A mark is put only if none as new is there.
    pub marks_only_forward: bool,
    /// From where on entries are read that a checkpoint covers.
    pub reads_from: Mark,
    /// Up to where the ledger is cleaned up.
    pub cleans_to: Mark,
    /// Only entries older than a day are cleaned up.
    pub cleans_only_old: bool,
    /// Only below a checkpoint that is older than a day.
    pub cleans_below_old: bool,
    /// Who is asked for the time then.
    pub cleans_by: Time,
    /// The entry of the checkpoint's own version stays.
    pub keeps_checkpointed_entry: bool,
    /// A ledger is created only where no table is.
    pub creates_only_in_empty_lake: bool,
    /// What follows when a table was brought up to a version that the ledger, as read, has not.
    pub when_ahead: Ahead,
}

impl Rules {
    /// All that are needed, and a few that are not.
    pub const ALL: Self = Self {
        fences_ledger: true,
        fences_table: true,
        lists_then_fences: true,
        projects_before_deleting: true,
        vacuums_by: Now::FirstFence,
        writers_look: Look::BehindFence,
        compactors_look: Look::BehindFence,
        takes_checkpoint_for_fence: true,
        compactors_ask_inputs: true,
        writers_ask_objects: true,
        writers_know_their_batch: true,
        doubts: Doubt::Since,
        confirms: true,
        doubts_by: Time::Store,
        sees_what_counts: true,
        knows_its_base: Base::Itself,
        checks_what_is_covered: true,
        puts_back_in_ledger: true,
        puts_back_in_table: true,
        forgets: true,
        leaves_files: true,
        confirms_by_listing: true,
        projects_before_marking: true,
        marks_only_forward: true,
        reads_from: Mark::InCheckpoint,
        cleans_to: Mark::InCheckpoint,
        cleans_only_old: true,
        cleans_below_old: true,
        cleans_by: Time::Store,
        keeps_checkpointed_entry: true,
        creates_only_in_empty_lake: true,
        when_ahead: Ahead::Listed,
    };

    /// Whether anyone asks his own clock for anything. If not, clocks may say what they like.
    pub fn ask_own_clocks(&self) -> bool {
        self.vacuums_by == Now::OwnClock
            || self.writers_look == Look::OwnClock
            || self.compactors_look == Look::OwnClock
            || self.doubts_by == Time::Own
            || self.cleans_by == Time::Own
    }
}

/// What a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Lands batches of objects, one after another.
    Writer(&'static [Objects]),
    /// Lands objects from this to this one after another, in one step: what others do meanwhile.
    Others(u8, u8),
    /// Merges two files of the table, once.
    Compactor,
    /// Removes what nobody needs, once.
    Vacuum,
    /// Makes checkpoints of these logs and cleans them up, once each.
    Keeper(&'static [usize]),
    /// Only cleans up a log: it is too early for a checkpoint.
    Cleaner(usize),
    /// Another engine that makes a checkpoint of a log, once.
    Engine(usize),
}

/// A lake, and who works on it.
#[derive(Debug, Clone)]
pub struct Protocol {
    pub rules: Rules,
    pub roles: &'static [Role],
    /// How many of them, the last ones, have still to begin reading; the others have read the empty logs.
    pub newcomers: usize,
    /// Objects that have landed before.
    pub landed: u8,
    /// How often everything else stands still for longer than a day.
    pub pauses: Tick,
    /// How many puts may go unanswered.
    pub unanswered: u8,
    /// How many listings may fail.
    pub failures: u8,
    /// How many writers may die.
    pub deaths: u8,
    /// Whether the ledger may be removed.
    pub removal: bool,
    /// Whether an older copy of the ledger may take its place, while nobody is at work.
    pub restoring: bool,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A process does what is next.
    Step(usize, Next),
    /// A process puts, and gets no answer.
    Unanswered(usize, Next),
    /// A process lists, and gets an error.
    Fails(usize, Next),
    /// A process removes a log entry.
    Clean(usize, usize, Version),
    /// A process dies; another takes over its work.
    Die(usize),
    /// An unanswered put arrives.
    Arrive,
    /// More than a day passes, in the middle of whatever is being done.
    Pause,
    /// All of the ledger's log is removed, or all after a version.
    Cut(Option<Version>),
}

impl Role {
    /// What a writer has to land.
    pub fn batches(self) -> Option<&'static [Objects]> {
        match self {
            Self::Writer(batches) => Some(batches),
            _ => None,
        }
    }
}

impl Next {
    fn name(self) -> &'static str {
        match self {
            Self::List(_) => "R1 list",
            Self::ListAgain(..) => "R3 list again",
            Self::Read(Stage::Start) => "R2 read on",
            Self::Upload => "W1 upload",
            Self::Read(Stage::Land) => "W2 catch up, W3 check",
            Self::Look(Stage::Land, _) => "W3a look after files",
            Self::Put(Stage::Land) => "W4 put",
            Self::Confirm(Stage::Land) => "W5 confirm",
            Self::Read(Stage::Project) => "P1 catch up",
            Self::Put(Stage::Project) => "P2 put",
            Self::Confirm(Stage::Project) => "P3 confirm",
            Self::Read(Stage::Ahead) => "P4 read the ledger on",
            Self::ListEnd => "P5 list the ledger",
            Self::Read(Stage::Snapshot) => "C1 snapshot",
            Self::Merge => "C2 merge",
            Self::Read(Stage::Compact) => "C3 catch up, C4 check",
            Self::Look(..) => "C4a look after files",
            Self::Put(Stage::Compact) => "C5 put",
            Self::Confirm(Stage::Compact) => "C6 confirm",
            Self::Read(Stage::Candidates) => "V1 snapshot",
            Self::ListFiles => "V2 list files",
            Self::Read(Stage::FenceLedger)
            | Self::Put(Stage::FenceLedger)
            | Self::Confirm(Stage::FenceLedger) => "V3 fence the ledger",
            Self::Read(Stage::FenceTable)
            | Self::Put(Stage::FenceTable)
            | Self::Confirm(Stage::FenceTable) => "V4 fence the table",
            Self::DeleteFiles => "V5 delete",
            Self::Read(Stage::Settle) | Self::Put(Stage::Settle) | Self::Confirm(Stage::Settle) => {
                "K0 mark what is settled"
            }
            Self::Read(_) => "K1 catch up",
            Self::Checkpoint(_) => "K2 checkpoint",
            Self::Hint(_) => "K2 tell of the checkpoint",
            Self::Clean(_) => "K3 list what can go",
            Self::LandAtOnce => "S4 others land",
            Self::OpenElsewhere(_) => "S6 another engine opens",
            Self::CheckpointElsewhere(_) => "S6 another engine checkpoints",
            Self::Put(_) | Self::Confirm(_) | Self::Stopped | Self::Nothing => "nothing",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |log: usize| if log == LEDGER { "the ledger" } else { "the table" };
        match self {
            Self::Step(
                who,
                next @ (Next::OpenElsewhere(log)
                | Next::CheckpointElsewhere(log)
                | Next::Checkpoint(log)
                | Next::Clean(log)),
            ) => {
                write!(f, "{who}: {} ({})", next.name(), name(*log))
            }
            Self::Step(who, next @ (Next::List(stage) | Next::ListAgain(stage, _))) => {
                write!(
                    f,
                    "{who}: {} ({stage:?}, {})",
                    next.name(),
                    name(if stage.is_of_ledger() { LEDGER } else { TABLE })
                )
            }
            Self::Step(who, next) => write!(f, "{who}: {}", next.name()),
            Self::Unanswered(who, next) => write!(f, "{who}: {}, S1 unanswered", next.name()),
            Self::Fails(who, next) => write!(f, "{who}: {}, S5 a LIST fails", next.name()),
            Self::Clean(who, log, version) => write!(f, "{who}: K3 clean up {version} of {}", name(*log)),
            Self::Arrive => write!(f, "S1 the unanswered put arrives"),
            Self::Die(who) => write!(f, "{who}: S2 dies"),
            Self::Pause => write!(f, "S3 a long pause"),
            Self::Cut(None) => write!(f, "S7 the ledger is removed"),
            Self::Cut(Some(version)) => write!(f, "S7 the ledger is restored as it was at {version}"),
        }
    }
}
