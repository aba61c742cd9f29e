//! The steps with which a log is read, and with which a put is confirmed: what counts, and what begins anew.

use super::rules::{Ahead, Base, Doubt, Mark, Protocol, Role, Time};
use super::state::{Clock, Cursor, Entry, LEDGER, Log, NONE, Next, Process, Stage, State, TABLE, Tick};
use super::steps::table;

/// Whether what was read, or put, counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It does.
    Sure,
    /// Something may have been removed: reading begins anew.
    Outrun,
    /// The log is not what it was.
    Gone,
}

impl Stage {
    /// Whether it is the ledger that is read, or the table.
    pub fn is_of_ledger(self) -> bool {
        !matches!(
            self,
            Self::Project
                | Self::Snapshot
                | Self::Compact
                | Self::Candidates
                | Self::FenceTable
                | Self::KeepTable
        )
    }

    pub fn log(self) -> usize {
        if self.is_of_ledger() { LEDGER } else { TABLE }
    }
}

impl Process {
    pub fn cursor(&mut self, stage: Stage) -> &mut Cursor {
        &mut self.cursors[stage.log()]
    }

    /// Is through.
    pub fn end(&mut self) {
        *self = Self { clock: self.clock, ..Self::default() };
    }

    /// Sets out to read a log to its end.
    pub fn read(&mut self, stage: Stage) {
        self.next = if self.cursor(stage).starting { Next::List(stage) } else { Next::Read(stage) };
    }

    /// Whether it is long since, by its own clock.
    pub fn takes_for_old(&self, since: Tick, now: Tick) -> bool {
        self.clock != Clock::StandsStill && since < now
    }
}

impl Protocol {
    /// Whether a log's entries can vanish, or a checkpoint stand for them. Where they can't, reading to the
    /// end in one step is as good as in many, and there is nothing to be learned from lists: what was absent
    /// was the end.
    pub fn vanish(&self, log: usize) -> bool {
        let vanish = |role: &Role| match role {
            Role::Keeper(logs) => logs.contains(&log),
            Role::Engine(of) | Role::Cleaner(of) => *of == log,
            _ => false,
        };
        self.roles.iter().any(vanish) || log == LEDGER && (self.removal || self.restoring)
    }

    /// What a process has read that knows nothing.
    pub fn cold(&self) -> [Cursor; 2] {
        [LEDGER, TABLE].map(|log| Cursor { starting: self.vanish(log), ..Cursor::default() })
    }

    /// R1. The newest checkpoint is found by listing, and loaded: reading begins, or begins anew.
    pub fn list(&self, state: &mut State, who: usize, stage: Stage) {
        let now = state.now;
        let log = &mut state.logs[stage.log()];
        let process = &mut state.processes[who];
        let Some(end) = log.listed_end() else {
            // There is no log, and there are tables.
            if self.rules.creates_only_in_empty_lake {
                process.next = Next::Stopped;
            } else {
                log.put(0, Entry::Empty, now);
            }
            return;
        };
        let newest = log.newest_checkpoint();
        let (base, base_time) = newest.unwrap_or((0, log.time(0)));
        let settled = match self.rules.reads_from {
            _ if stage.log() == TABLE => base,
            Mark::None => base,
            Mark::Newest | Mark::InCheckpoint => log.mark_at(base),
        };
        let first = newest.map_or(0, |_| settled + 1);
        if (first..=end).any(|version| log.find(version).is_none()) {
            // A gap, and no checkpoint that makes up for it.
            process.next = Next::Stopped;
            return;
        }
        let cursor = process.cursor(stage);
        let (kept, base_entry) = (cursor.kept, log.find(base));
        *cursor = Cursor {
            base,
            base_time,
            base_entry,
            settled,
            from: base,
            time: base_time,
            version: first.saturating_sub(1),
            stamp: now,
            kept,
            starting: true,
            ..Cursor::default()
        };
        if newest.is_none()
            && let Some(Some(ghost)) = log.find(0)
        {
            cursor.ghosts |= 1 << ghost;
        }
        process.next = Next::Read(stage);
    }

    /// R2. One entry more, or none.
    pub fn read_on(&self, state: &mut State, who: usize, stage: Stage) {
        let (log, now) = (&state.logs[stage.log()], state.now);
        let process = &mut state.processes[who];
        let is_long_since = process.takes_for_old(process.cursors[stage.log()].stamp, now);
        let cursor = process.cursor(stage);
        while let Some(ghost) = log.find(cursor.version + 1) {
            cursor.version += 1;
            cursor.ghosts |= ghost.map_or(0, |ghost| 1 << ghost);
            if self.vanish(stage.log()) {
                return;
            }
        }
        let asks = match self.rules.doubts_by {
            Time::Store => cursor.version > cursor.from,
            Time::Own => is_long_since,
        };
        let doubts = self.rules.doubts != Doubt::None && (cursor.starting || asks);
        if self.vanish(stage.log()) && (doubts || cursor.version < cursor.base) {
            process.next = Next::ListAgain(stage, now);
        } else {
            self.accept(state, who, stage, now);
        }
    }

    /// R3. Whether that was the log.
    pub fn list_again(&self, state: &mut State, who: usize, stage: Stage, seen: Tick) {
        let log = &state.logs[stage.log()];
        let process = &mut state.processes[who];
        let cursor = process.cursor(stage);
        let is_newer = log.newest_checkpoint().is_some_and(|(newest, _)| newest > cursor.base);
        let standing = match self.rules.doubts {
            // An entry of before the checkpoint that it began with.
            _ if cursor.version < cursor.base && is_newer => Standing::Outrun,
            _ if cursor.version < cursor.base => Standing::Gone,
            Doubt::Beyond if log.listed_end() > Some(cursor.version) => Standing::Outrun,
            Doubt::Beyond => Standing::Sure,
            _ => self.standing(log, cursor),
        };
        match standing {
            Standing::Sure => self.accept(state, who, stage, seen),
            Standing::Outrun => {
                if !self.rules.forgets && stage.log() == LEDGER {
                    let cursor = state.processes[who].cursors[LEDGER];
                    let read =
                        state.landings(&cursor).fold(cursor.kept, |read, (_, objects, _)| read | objects);
                    state.processes[who].cursor(stage).kept = read;
                }
                self.begin_anew(state, who, stage);
            }
            Standing::Gone => state.processes[who].next = Next::Stopped,
        }
    }

    /// What was read beyond where the cursor began, or put, by a listing of the log from there on that was
    /// made after it.
    fn standing(&self, log: &Log, cursor: &Cursor) -> Standing {
        let newest = log.newest_checkpoint().map(|(version, _)| version);
        let is_its_own =
            if cursor.starting { log.find(cursor.base) == cursor.base_entry } else { log.is_its_own(cursor) };
        match self.rules.knows_its_base {
            Base::Unknown => {}
            _ if log.find(cursor.from).is_none() && newest < Some(cursor.from) => return Standing::Gone,
            Base::OrCheckpoint => {}
            Base::Itself if log.find(cursor.from).is_none() => return Standing::Outrun,
            Base::Itself => {}
        }
        if self.rules.sees_what_counts
            && (cursor.from + 1..=cursor.version).any(|version| log.find(version).is_none())
        {
            return Standing::Outrun;
        }
        if self.rules.knows_its_base != Base::Unknown && !is_its_own {
            return Standing::Outrun;
        }
        let is_soon =
            self.rules.doubts_by == Time::Store && log.newest_time(cursor.from) <= Some(cursor.time);
        if newest > Some(cursor.from) && !is_soon { Standing::Outrun } else { Standing::Sure }
    }

    fn begin_anew(&self, state: &mut State, who: usize, stage: Stage) {
        let (logs, process) = (&state.logs, &mut state.processes[who]);
        let cursor = process.cursor(stage);
        if !cursor.starting {
            logs[stage.log()].take_back(cursor);
        }
        match stage {
            // Whether what is gone by now took an input out is not known any more.
            Stage::Compact => process.end(),
            _ => process.next = Next::List(stage),
        }
    }

    /// What was read counts.
    fn accept(&self, state: &mut State, who: usize, stage: Stage, seen: Tick) {
        let log = &state.logs[stage.log()];
        let cursor = &state.processes[who].cursors[stage.log()];
        if self.rules.checks_what_is_covered && cursor.starting && stage.is_of_ledger() {
            let covered = state.true_objects(cursor.base);
            let is_other = |(version, objects, _)| version <= cursor.base && objects & !covered != 0;
            if state.landings(cursor).any(is_other) {
                state.processes[who].next = Next::Stopped;
                return;
            }
        }
        let cursor = state.processes[who].cursor(stage);
        if self.vanish(stage.log()) {
            let time = if cursor.version > cursor.from { log.time(cursor.version) } else { cursor.time };
            *cursor = Cursor {
                from: cursor.version,
                time,
                stamp: seen,
                base_entry: None,
                starting: false,
                ..*cursor
            };
        } else {
            *cursor = Cursor {
                from: cursor.version,
                version: cursor.version,
                forgot: cursor.forgot,
                ..Cursor::default()
            };
        }
        self.decide(state, who, stage);
    }

    /// W5, P3, C6. What a won put leads to, if it counts.
    pub fn confirm(&self, state: &mut State, who: usize, stage: Stage) {
        let (log, now) = (&state.logs[stage.log()], state.now);
        let process = &mut state.processes[who];
        let is_long_since = process.takes_for_old(process.cursors[stage.log()].stamp, now);
        let cursor = process.cursor(stage);
        let asks = self.rules.confirms
            && self.vanish(stage.log())
            && (self.rules.doubts_by == Time::Store || is_long_since);
        let standing = match asks {
            true if self.rules.confirms_by_listing => self.standing(log, cursor),
            true if log.hint >= Some(cursor.version) => Standing::Outrun,
            _ => Standing::Sure,
        };
        match standing {
            Standing::Sure => {
                cursor.from = cursor.version;
                if self.vanish(stage.log()) {
                    cursor.time = log.time(cursor.version);
                }
                self.won(state, who, stage);
            }
            Standing::Outrun => self.not_confirmed(state, who, stage),
            Standing::Gone => process.next = Next::Stopped,
        }
    }

    /// A put won, and its process got an error all the same.
    fn not_confirmed(&self, state: &mut State, who: usize, stage: Stage) {
        let log = &state.logs[stage.log()];
        let cursor = state.processes[who].cursor(stage);
        let puts_back =
            if stage.is_of_ledger() { self.rules.puts_back_in_ledger } else { self.rules.puts_back_in_table };
        if puts_back {
            log.take_back(cursor);
        } else {
            cursor.forgot |= 1 << cursor.version;
            cursor.from = cursor.version;
        }
        self.go_on(state, who);
    }

    /// S5. A LIST fails: nothing of what it was for counts.
    pub fn fail(&self, state: &mut State, who: usize, next: Next) {
        state.failures -= 1;
        match next {
            Next::Confirm(stage) => self.not_confirmed(state, who, stage),
            Next::ListAgain(stage, _) => {
                let (logs, process) = (&state.logs, &mut state.processes[who]);
                let cursor = process.cursor(stage);
                if !cursor.starting {
                    logs[stage.log()].take_back(cursor);
                }
                self.go_on(state, who);
            }
            _ => self.go_on(state, who),
        }
    }

    /// After an error a writer goes on, with its memory and the next batch; the others leave it to the next
    /// run.
    fn go_on(&self, state: &mut State, who: usize) {
        let process = &mut state.processes[who];
        match self.roles[who] {
            Role::Writer(batches) => {
                process.turn_to_next(batches);
                process.next = Next::Upload;
            }
            _ => process.end(),
        }
    }

    /// P1. The table as read was brought up to a version that the ledger as read has not.
    pub fn find_ahead(&self, state: &mut State, who: usize) -> bool {
        let txn = table(state, who).txn;
        let is_ahead =
            self.rules.when_ahead != Ahead::Ignored && txn > state.processes[who].cursors[LEDGER].version;
        if is_ahead {
            state.processes[who].read(Stage::Ahead);
        }
        is_ahead
    }

    /// P4. The ledger was read on.
    pub fn check_ahead(&self, state: &mut State, who: usize) {
        let txn = table(state, who).txn;
        let process = &mut state.processes[who];
        process.next = match self.rules.when_ahead {
            _ if txn <= process.cursors[LEDGER].version => Next::Read(Stage::Project),
            Ahead::Listed => Next::ListEnd,
            _ => Next::Stopped,
        };
    }

    /// P5. Whether the ledger, listed, gets as far as the table says.
    pub fn list_end(&self, state: &mut State, who: usize) {
        let txn = table(state, who).txn;
        let is_there = state.logs[LEDGER].listed_end() >= Some(txn);
        state.processes[who].next = if is_there { Next::List(Stage::Ahead) } else { Next::Stopped };
    }
}

impl Process {
    /// The next of a writer's batches that it is not done with.
    pub fn turn_to_next(&mut self, batches: &[u8]) {
        let count = batches.len() as u8;
        let next =
            (1..=count).map(|step| (self.batch + step) % count).find(|batch| self.done >> batch & 1 == 0);
        (self.batch, self.objects) = next.map_or((0, 0), |batch| (batch, batches[batch as usize]));
        self.file = NONE;
    }
}
