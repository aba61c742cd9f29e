//! The protocol's steps. One is at most one request to the store, with the decisions that its answer leads
//! to; between any two of them the process may freeze for as long as it likes, or for ever.

use stateright::{Model, Property};

use super::rules::{Action, Look, Mark, Now, Protocol, Role, Time};
use super::state::{
    Clock, Cursor, Entry, Files, Flight, LEDGER, NONE, Next, Process, Seen, Stage, State, TABLE, Tick,
    Version, members, rows,
};

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::new(self.landed, self.unanswered, self.failures, self.deaths);
        let old = self.roles.len() - self.newcomers;
        for (who, (process, role)) in state.processes.iter_mut().zip(self.roles).enumerate() {
            if who >= old {
                process.cursors = self.cold();
            }
            match *role {
                Role::Writer(batches) => {
                    process.objects = batches[0];
                    process.read(Stage::Start);
                    if who < old {
                        process.next = Next::Upload;
                    }
                }
                Role::Others(..) => process.next = Next::LandAtOnce,
                Role::Compactor => process.read(Stage::Snapshot),
                Role::Vacuum if self.rules.lists_then_fences => process.read(Stage::Candidates),
                Role::Vacuum => self.fence(process, Stage::FenceLedger),
                Role::Keeper(logs) => process.read(keep(logs[0])),
                Role::Cleaner(log) => process.next = Next::Clean(log),
                Role::Engine(log) => process.next = Next::OpenElsewhere(log),
            }
        }
        let mut states = vec![state];
        if self.rules.ask_own_clocks() {
            let wrong =
                (0..self.roles.len()).flat_map(|who| [(who, Clock::StandsStill), (who, Clock::Ahead)]);
            states.extend(
                wrong
                    .map(|(who, clock)| {
                        let mut state = states[0].clone();
                        state.processes[who].clock = clock;
                        state
                    })
                    .collect::<Vec<_>>(),
            );
        }
        states
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (who, process) in state.processes.iter().enumerate() {
            let next = process.next;
            match next {
                Next::Nothing | Next::Stopped => continue,
                Next::Clean(log) if process.files != 0 => {
                    actions.extend(members(process.files).map(|version| Action::Clean(who, log, version)));
                }
                _ => actions.push(Action::Step(who, next)),
            }
            if matches!(next, Next::Put(_)) && state.unanswered > 0 && state.flight.is_none() {
                actions.push(Action::Unanswered(who, next));
            }
            if matches!(next, Next::ListAgain(..) | Next::Confirm(_) | Next::ListEnd) && state.failures > 0 {
                actions.push(Action::Fails(who, next));
            }
            if self.roles[who].batches().is_some() && state.deaths > 0 {
                actions.push(Action::Die(who));
            }
        }
        if state.flight.is_some() {
            actions.push(Action::Arrive);
        }
        if state.now < self.pauses && !actions.is_empty() {
            actions.push(Action::Pause);
        }
        if !state.logs[LEDGER].removed && !actions.is_empty() {
            if self.removal {
                actions.push(Action::Cut(None));
            }
            // Nobody is at work yet, and the table is ahead of the copy.
            let nobody = state
                .processes
                .iter()
                .all(|process| matches!(process.next, Next::Nothing | Next::List(Stage::Start)));
            if self.restoring && nobody {
                actions.extend((0..state.true_table().txn).map(|version| Action::Cut(Some(version))));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(who, next) => self.step(&mut state, who, next),
            Action::Unanswered(who, Next::Put(stage)) => {
                let entry = self.entry(&state, who, stage);
                let process = &mut state.processes[who];
                state.flight =
                    Some(Flight { log: stage.log(), version: process.cursor(stage).version + 1, entry });
                process.read(stage);
                state.unanswered -= 1;
            }
            Action::Unanswered(..) => return None,
            Action::Fails(who, next) => self.fail(&mut state, who, next),
            Action::Clean(who, log, version) => {
                state.logs[log].remove(version);
                state.processes[who].files &= !(1 << version);
                if state.processes[who].files == 0 {
                    self.keep_next(&mut state, who, log);
                }
            }
            Action::Die(who) => {
                self.start_anew(&mut state.processes[who], self.roles[who]);
                state.deaths -= 1;
            }
            Action::Arrive => {
                let Flight { log, version, entry } = state.flight.take()?;
                let now = state.now;
                state.logs[log].put(version, entry, now);
            }
            Action::Pause => state.now += 1,
            Action::Cut(after) => state.logs[LEDGER].cut(after),
        }
        self.sort(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        super::properties()
    }
}

/// The stage at whose end a log's checkpoint is made.
fn keep(log: usize) -> Stage {
    if log == LEDGER { Stage::KeepLedger } else { Stage::KeepTable }
}

impl Protocol {
    fn vacuums(&self) -> bool {
        self.roles.contains(&Role::Vacuum)
    }

    /// Processes of one role are interchangeable: states in which they have changed places are one.
    fn sort(&self, state: &mut State) {
        let mut from = 0;
        for same in self.roles.chunk_by(|a, b| a == b) {
            if same.len() > 1 {
                state.processes[from..from + same.len()].sort_unstable();
            }
            from += same.len();
        }
    }

    fn step(&self, state: &mut State, who: usize, next: Next) {
        let now = state.now;
        match next {
            Next::List(stage) => self.list(state, who, stage),
            Next::Read(stage) => self.read_on(state, who, stage),
            Next::ListAgain(stage, seen) => self.list_again(state, who, stage, seen),
            Next::Look(stage, fence) => self.look(state, who, stage, fence),
            Next::Put(stage) => self.put(state, who, stage),
            Next::Confirm(stage) => self.confirm(state, who, stage),
            Next::ListEnd => self.list_end(state, who),
            Next::LandAtOnce => {
                if let Role::Others(first, last) = self.roles[who]
                    && !state.logs[LEDGER].removed
                {
                    (first..=last).for_each(|object| state.land(object));
                }
                state.processes[who].end();
            }
            Next::Upload => {
                let file = state.write(rows(state.processes[who].objects));
                self.wrote(&mut state.processes[who], file, Stage::Land);
            }
            Next::Merge => self.merge(state, who),
            Next::ListFiles => self.list_files(state, who),
            Next::DeleteFiles => self.delete_files(state, who),
            Next::Checkpoint(log) => {
                let Cursor { version, ghosts, .. } = state.processes[who].cursors[log];
                state.wrong_checkpoint |= ghosts != 0;
                state.logs[log].checkpoint(version, now);
                state.processes[who].next =
                    if self.rules.confirms_by_listing { Next::Clean(log) } else { Next::Hint(log) };
            }
            Next::Hint(log) => {
                state.logs[log].hint = Some(state.processes[who].cursors[log].version);
                state.processes[who].next = Next::Clean(log);
            }
            Next::Clean(log) => {
                let files = self.cleanable(state, who, log);
                state.processes[who].files = files;
                if files == 0 {
                    self.keep_next(state, who, log);
                }
            }
            Next::OpenElsewhere(log) => {
                let last = state.logs[log].last();
                let process = &mut state.processes[who];
                (process.mark, process.next) = (last, Next::CheckpointElsewhere(log));
                if state.logs[log].removed {
                    process.end();
                }
            }
            Next::CheckpointElsewhere(log) => {
                let version = state.processes[who].mark;
                state.logs[log].checkpoint(version, now);
                state.processes[who].end();
            }
            Next::Nothing | Next::Stopped => {}
        }
    }

    /// A file is written, and is to be put.
    fn wrote(&self, process: &mut Process, file: u8, stage: Stage) {
        process.file = file;
        if self.vacuums() {
            process.knew = process.cursor(stage).version;
        }
        process.read(stage);
    }

    /// What the end of a log leads to.
    pub fn decide(&self, state: &mut State, who: usize, stage: Stage) {
        match stage {
            // What another has left is finished first.
            Stage::Start => state.processes[who].read(Stage::Project),
            Stage::Land => self.check_batch(state, who),
            Stage::Project if self.find_ahead(state, who) => {}
            Stage::Project => match self.missing(state, who) {
                Some(_) => state.processes[who].next = Next::Put(stage),
                None => self.projected(state, who),
            },
            Stage::Ahead => self.check_ahead(state, who),
            Stage::Snapshot if self.roles[who] == Role::Vacuum => {
                state.processes[who].next = Next::DeleteFiles
            }
            Stage::Snapshot => state.processes[who].next = Next::Merge,
            Stage::Compact => self.check_inputs(state, who),
            Stage::Candidates => state.processes[who].next = Next::ListFiles,
            Stage::FenceLedger | Stage::FenceTable => state.processes[who].next = Next::Put(stage),
            Stage::KeepLedger => {
                let process = &mut state.processes[who];
                process.mark = process.cursors[LEDGER].version;
                if self.rules.projects_before_marking {
                    process.read(Stage::Project);
                } else {
                    process.read(Stage::Settle);
                }
            }
            Stage::Settle => self.check_mark(state, who),
            Stage::KeepTable => state.processes[who].next = Next::Checkpoint(TABLE),
        }
    }

    /// W3.
    fn check_batch(&self, state: &mut State, who: usize) {
        let Process { cursors: [ledger, _], objects, file, .. } = state.processes[who];
        let landings = || state.landings(&ledger);
        let own = landings().any(|(version, _, landed)| version > ledger.base && landed == file);
        let landed = landings().filter(|_| self.rules.writers_ask_objects);
        let covered = if self.rules.writers_ask_objects { state.true_objects(ledger.base) } else { 0 };
        let known = landed.fold(ledger.kept | covered, |known, (_, objects, _)| known | objects);
        let process = &mut state.processes[who];
        if own && self.rules.writers_know_their_batch || objects & !known == 0 {
            (process.objects, process.file, process.knew) = (0, NONE, 0);
            process.read(Stage::Project);
        } else if objects & known != 0 {
            self.write_anew(state, who, objects & !known);
        } else {
            self.look_or_put(state, who, Stage::Land, self.rules.writers_look);
        }
    }

    fn write_anew(&self, state: &mut State, who: usize, objects: u8) {
        if !self.rules.leaves_files {
            state.delete(1 << state.processes[who].file);
        }
        let process = &mut state.processes[who];
        (process.objects, process.file) = (objects, NONE);
        process.next = Next::Upload;
    }

    /// C4.
    fn check_inputs(&self, state: &mut State, who: usize) {
        let inputs = state.processes[who].files;
        if self.rules.compactors_ask_inputs && inputs & !table(state, who).files != 0 {
            self.give_up(state, who);
        } else {
            self.look_or_put(state, who, Stage::Compact, self.rules.compactors_look);
        }
    }

    fn give_up(&self, state: &mut State, who: usize) {
        if !self.rules.leaves_files {
            state.delete(1 << state.processes[who].file);
        }
        state.processes[who].end();
    }

    /// Whether a vacuum may take what is about to be named: by a fence that was put since it was written.
    fn look_or_put(&self, state: &mut State, who: usize, stage: Stage, look: Look) {
        let process = &state.processes[who];
        let cursor = &process.cursors[stage.log()];
        let fences = state.logs[stage.log()].read(cursor).filter(|(version, entry, _)| {
            *entry == Entry::Fence && *version > process.knew.max(cursor.settled)
        });
        let fence = fences.map(|(.., at)| at).max();
        let checkpoint =
            (self.rules.takes_checkpoint_for_fence && cursor.base > process.knew).then_some(cursor.base_time);
        let made = state.files()[process.file as usize].made;
        state.processes[who].next = match look {
            Look::BehindFence => {
                fence.max(checkpoint).map_or(Next::Put(stage), |fence| Next::Look(stage, fence))
            }
            Look::OwnClock if process.takes_for_old(made, state.now) => {
                return self.too_old(state, who, stage);
            }
            _ => Next::Put(stage),
        };
    }

    /// W3a, C4a.
    fn look(&self, state: &mut State, who: usize, stage: Stage, fence: Tick) {
        let file = state.files()[state.processes[who].file as usize];
        if file.gone || file.made < fence {
            return self.too_old(state, who, stage);
        }
        let process = &mut state.processes[who];
        process.knew = process.cursor(stage).version;
        process.next = Next::Put(stage);
    }

    fn too_old(&self, state: &mut State, who: usize, stage: Stage) {
        match stage {
            Stage::Land => self.write_anew(state, who, state.processes[who].objects),
            _ => self.give_up(state, who),
        }
    }

    /// C2.
    fn merge(&self, state: &mut State, who: usize) {
        let inputs: Files =
            members(table(state, who).files).take(2).fold(0, |inputs, file| inputs | 1 << file);
        if inputs.count_ones() < 2 || state.lacks_any(inputs) {
            return state.processes[who].end();
        }
        let file = state.write(state.rows_of(inputs));
        let process = &mut state.processes[who];
        process.files = inputs;
        self.wrote(process, file, Stage::Compact);
    }

    /// V2.
    fn list_files(&self, state: &mut State, who: usize) {
        let files = (0..)
            .zip(state.files())
            .filter(|(_, file)| !file.gone)
            .fold(0, |files, (file, _)| files | 1 << file);
        let candidates = files & !table(state, who).files;
        let now = state.now;
        let process = &mut state.processes[who];
        process.files = candidates;
        if self.rules.vacuums_by == Now::OwnClock {
            process.fence = now + u8::from(process.clock == Clock::Ahead);
        }
        match self.rules.lists_then_fences {
            _ if candidates == 0 => process.end(),
            true => self.fence(process, Stage::FenceLedger),
            false => process.next = Next::DeleteFiles,
        }
    }

    /// V5.
    fn delete_files(&self, state: &mut State, who: usize) {
        let Process { files: candidates, fence, cursors: [_, cursor], .. } = state.processes[who];
        let old = (0..)
            .zip(state.files())
            .filter(|(_, file)| file.made < fence)
            .fold(0, |old, (file, _)| old | 1 << file);
        let taken_out = state.logs[TABLE].read(&cursor).filter(|(.., at)| *at >= fence);
        let lately = taken_out.fold(0, |lately, (_, entry, _)| match entry {
            Entry::Compaction { removes, .. } => lately | removes,
            _ => lately,
        });
        state.delete(candidates & old & !table(state, who).files & !lately);
        state.processes[who].end();
    }

    /// RowFilter on to a fence, or to what comes after it.
    fn fence(&self, process: &mut Process, stage: Stage) {
        match stage {
            Stage::FenceLedger if self.rules.fences_ledger => process.read(Stage::FenceLedger),
            Stage::FenceLedger | Stage::FenceTable if self.rules.fences_table => {
                process.read(Stage::FenceTable)
            }
            _ if self.rules.projects_before_deleting => process.read(Stage::Project),
            _ => process.read(Stage::Snapshot),
        }
    }

    /// What the table has still to get, as the process knows it.
    fn missing(&self, state: &State, who: usize) -> Option<Entry> {
        let ledger = &state.processes[who].cursors[LEDGER];
        let beyond = ledger.settled.max(table(state, who).txn);
        let missing = state.landings(ledger).filter(|(version, ..)| *version > beyond);
        let (adds, to) = missing.fold((0, 0), |(adds, _), (version, _, file)| (adds | 1 << file, version));
        (adds != 0).then_some(Entry::Projection { adds, to })
    }

    fn entry(&self, state: &State, who: usize, stage: Stage) -> Entry {
        let process = &state.processes[who];
        match stage {
            Stage::Land => Entry::Landing { objects: process.objects, file: process.file },
            Stage::Project => self.missing(state, who).expect("something to project"),
            Stage::Compact => Entry::Compaction { removes: process.files, add: process.file },
            Stage::Settle => Entry::Settled { to: process.mark },
            _ => Entry::Fence,
        }
    }

    /// W4, P2, C5.
    fn put(&self, state: &mut State, who: usize, stage: Stage) {
        let entry = self.entry(state, who, stage);
        let version = state.processes[who].cursor(stage).version + 1;
        let won = state.logs[stage.log()].put(version, entry, state.now);
        let fails = state.failures > 0;
        let process = &mut state.processes[who];
        match won {
            Some(ghost) => {
                let cursor = process.cursor(stage);
                (cursor.from, cursor.version) = (cursor.version, version);
                cursor.ghosts |= ghost.map_or(0, |ghost| 1 << ghost);
                process.next = Next::Confirm(stage);
                if !self.vanish(stage.log()) && !fails {
                    self.confirm(state, who, stage);
                }
            }
            None => process.read(stage),
        }
    }

    /// What a put leads to that is won for certain.
    pub fn won(&self, state: &mut State, who: usize, stage: Stage) {
        let process = &mut state.processes[who];
        let put_at = state.logs[stage.log()]
            .slots()
            .get(process.cursor(stage).version as usize)
            .map_or(0, |slot| slot.at);
        match stage {
            Stage::Land => {
                (process.objects, process.file, process.knew) = (0, NONE, 0);
                process.read(Stage::Project);
            }
            Stage::Project => process.read(Stage::Project),
            Stage::FenceLedger => {
                if self.rules.vacuums_by != Now::OwnClock {
                    process.fence = put_at;
                }
                self.fence(process, Stage::FenceTable);
            }
            Stage::FenceTable => {
                if self.rules.vacuums_by == Now::LastFence || !self.rules.fences_ledger {
                    process.fence = put_at;
                }
                self.fence(process, Stage::Project);
            }
            Stage::Settle => process.next = Next::Checkpoint(LEDGER),
            _ => process.end(),
        }
    }

    /// P's end: the table is where the ledger is.
    fn projected(&self, state: &mut State, who: usize) {
        match self.roles[who] {
            Role::Writer(batches) => {
                let process = &mut state.processes[who];
                process.next = Next::Upload;
                if process.objects != 0 {
                    return;
                }
                state.acknowledged |= batches[process.batch as usize];
                process.done |= 1 << process.batch;
                process.turn_to_next(batches);
                if process.objects == 0 {
                    process.end();
                }
            }
            Role::Vacuum if self.rules.lists_then_fences => state.processes[who].next = Next::DeleteFiles,
            Role::Vacuum => state.processes[who].read(Stage::Candidates),
            Role::Keeper(_) => self.mark(state, who),
            Role::Others(..) | Role::Compactor | Role::Cleaner(_) | Role::Engine(_) => {
                state.processes[who].end()
            }
        }
    }

    /// K0. All that the keeper read of the ledger is settled: a mark says so, if anything has landed since
    /// the last.
    fn mark(&self, state: &mut State, who: usize) {
        let Process { cursors: [ledger, _], mark, .. } = state.processes[who];
        let last = known_mark(state, &ledger);
        let is_new = state.landings(&ledger).any(|(version, ..)| version > last && version <= mark);
        let process = &mut state.processes[who];
        if is_new {
            process.read(Stage::Settle);
        } else {
            process.next = Next::Checkpoint(LEDGER);
        }
    }

    fn check_mark(&self, state: &mut State, who: usize) {
        let Process { cursors: [ledger, _], mark, .. } = state.processes[who];
        let is_there = self.rules.marks_only_forward && known_mark(state, &ledger) >= mark;
        state.processes[who].next =
            if is_there { Next::Checkpoint(LEDGER) } else { Next::Put(Stage::Settle) };
    }

    /// The process begins again with nothing but its work; who has none to lose leaves it to the next run.
    fn start_anew(&self, process: &mut Process, role: Role) {
        let Process { batch, done, clock, .. } = *process;
        *process = Process { cursors: self.cold(), batch, done, clock, file: NONE, ..Process::default() };
        match role.batches() {
            Some(batches) => {
                process.objects = batches[process.batch as usize];
                process.read(Stage::Start);
            }
            None => process.end(),
        }
    }

    /// K3. What may be removed.
    fn cleanable(&self, state: &State, who: usize, log: usize) -> Files {
        let (now, process, kept) = (state.now, &state.processes[who], &state.logs[log]);
        let is_old = |at: Tick| match self.rules.cleans_by {
            Time::Store => at < now,
            Time::Own => process.clock == Clock::Ahead || process.takes_for_old(at, now),
        };
        let is_old = |at: Tick| is_old(at) || !self.rules.cleans_only_old;
        let least_young = kept
            .listed()
            .chain(kept.checkpoints())
            .filter(|(_, at)| !is_old(*at))
            .map(|(version, _)| version)
            .min();
        let mut bases = kept.checkpoints().rev();
        let base = match self.rules.cleans_below_old {
            true => {
                bases.find(|(version, at)| is_old(*at) && least_young.is_none_or(|least| *version <= least))
            }
            false => bases.next(),
        };
        let Some((base, _)) = base else { return 0 };
        let mark = match self.rules.cleans_to {
            _ if log == TABLE => base,
            Mark::None => base,
            Mark::Newest => kept.mark_at(kept.last()),
            Mark::InCheckpoint => kept.mark_at(base),
        };
        let below = (mark + 1).min(base + u8::from(!self.rules.keeps_checkpointed_entry));
        kept.listed()
            .filter(|(version, at)| *version < below && is_old(*at))
            .fold(0, |files, (version, _)| files | 1 << version)
    }

    /// A log is cleaned up: on to the next.
    fn keep_next(&self, state: &mut State, who: usize, log: usize) {
        let logs = if let Role::Keeper(logs) = self.roles[who] { logs } else { &[] };
        let next = logs.iter().skip_while(|kept| **kept != log).nth(1);
        match next {
            Some(log) => state.processes[who].read(keep(*log)),
            None => state.processes[who].end(),
        }
    }
}

/// The newest settled mark that a process knows of.
fn known_mark(state: &State, ledger: &Cursor) -> Version {
    let marks = state.logs[LEDGER].read(ledger).filter(|(version, ..)| *version > ledger.base);
    marks.fold(
        ledger.settled,
        |known, (_, entry, _)| if let Entry::Settled { to } = entry { known.max(to) } else { known },
    )
}

/// The table as a process has read it.
pub fn table(state: &State, who: usize) -> Seen {
    state.table(&state.processes[who].cursors[TABLE])
}
