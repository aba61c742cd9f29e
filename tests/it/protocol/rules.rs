//! The protocol's rules, each of which can be left out, and who keeps them.

use std::fmt;

use super::state::{Next, Objects, Stage, Tick, Version};

/// How a process makes sure that what it read of a log is really the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Not at all: what is absent is the end.
    None,
    /// At the end it lists the log: is there anything beyond?
    Beyond,
    /// At the end it lists the log: is there a checkpoint beyond where reading began?
    Since,
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
    /// A writer doesn't put a batch whose files are older than an hour.
    pub writers_ask_age: bool,
    /// A compactor doesn't put an output older than an hour.
    pub compactors_ask_age: bool,
    /// A compactor gives up if an input was taken out.
    pub compactors_ask_inputs: bool,
    /// A writer doesn't put objects that are in the log.
    pub writers_ask_objects: bool,
    /// A writer knows its own batch in the log.
    pub writers_know_their_batch: bool,
    /// What who saw the log's end more than ten minutes ago does when he reads on to it.
    pub when_away: Doubt,
    /// What who begins to read does at the end.
    pub when_starting: Doubt,
    /// Who begins to read has to get as far as the log went then. Needless, and not enough.
    pub starts_reach: bool,
    /// Who wins a put more than ten minutes after he saw the log's end asks for the newest checkpoint.
    pub confirms: bool,
    /// Who begins anew forgets what he had read.
    pub forgets: bool,
    /// Nobody but a vacuum removes files, not even his own that turned out to be useless.
    pub leaves_files: bool,
    /// The newest checkpoint is found by listing, not as `_last_checkpoint` tells it.
    pub confirms_by_listing: bool,
    /// The ledger's checkpoint is made when all up to there is projected.
    pub projects_before_checkpoint: bool,
    /// Only entries older than a day are cleaned up.
    pub cleans_only_old: bool,
    /// The entry of the checkpoint's own version stays.
    pub keeps_checkpointed_entry: bool,
}

impl Rules {
    /// All that are needed, and two that are not.
    pub const ALL: Self = Self {
        fences_ledger: true,
        fences_table: true,
        lists_then_fences: true,
        projects_before_deleting: true,
        writers_ask_age: true,
        compactors_ask_age: true,
        compactors_ask_inputs: true,
        writers_ask_objects: true,
        writers_know_their_batch: true,
        when_away: Doubt::Since,
        when_starting: Doubt::Since,
        starts_reach: false,
        confirms: true,
        forgets: true,
        leaves_files: true,
        confirms_by_listing: true,
        projects_before_checkpoint: true,
        cleans_only_old: true,
        keeps_checkpointed_entry: true,
    };
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
    /// How many writers may die.
    pub deaths: u8,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A process does what is next.
    Step(usize, Next),
    /// A process puts, and gets no answer.
    Unanswered(usize, Next),
    /// A process removes a log entry.
    Clean(usize, usize, Version),
    /// A process dies; another takes over its work.
    Die(usize),
    /// An unanswered put arrives.
    Arrive,
    /// More than a day passes, in the middle of whatever is being done.
    Pause,
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
            Self::Put(Stage::Land) => "W4 put",
            Self::Confirm(Stage::Land) => "W5 confirm",
            Self::Read(Stage::Project) => "P1 catch up",
            Self::Put(Stage::Project) => "P2 put",
            Self::Confirm(Stage::Project) => "P3 confirm",
            Self::Read(Stage::Snapshot) => "C1 snapshot",
            Self::Merge => "C2 merge",
            Self::Read(Stage::Compact) => "C3 catch up, C4 check",
            Self::Put(Stage::Compact) => "C5 put",
            Self::Confirm(Stage::Compact) => "C6 confirm",
            Self::Read(Stage::Candidates) => "V1 snapshot",
            Self::ListFiles => "V2 list files",
            Self::Read(Stage::FenceLedger) | Self::Put(Stage::FenceLedger) | Self::Confirm(Stage::FenceLedger) => "V3 fence the ledger",
            Self::Read(Stage::FenceTable) | Self::Put(Stage::FenceTable) | Self::Confirm(Stage::FenceTable) => "V4 fence the table",
            Self::DeleteFiles => "V5 delete",
            Self::Read(_) => "K1 catch up",
            Self::Checkpoint(_) => "K2 checkpoint",
            Self::Hint(_) => "K2 tell of the checkpoint",
            Self::Clean(_) => "K3 clean up",
            Self::LandAtOnce => "S4 others land",
            Self::Put(_) | Self::Confirm(_) | Self::Nothing => "nothing",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(who, next) => write!(f, "{who}: {}", next.name()),
            Self::Unanswered(who, next) => write!(f, "{who}: {}, S1 unanswered", next.name()),
            Self::Clean(who, log, version) => write!(f, "{who}: K3 clean up {version} of {}", ["the ledger", "the table"][*log]),
            Self::Arrive => write!(f, "S1 the unanswered put arrives"),
            Self::Die(who) => write!(f, "{who}: S2 dies"),
            Self::Pause => write!(f, "S3 a long pause"),
        }
    }
}
