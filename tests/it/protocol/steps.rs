//! The protocol's steps. One is at most one request to the store, with the decisions that its answer leads to; between any
//! two of them the process may freeze for as long as it likes, or for ever.

use stateright::{Model, Property};

use super::rules::{Action, Doubt, Protocol, Role};
use super::state::{Cursor, Entry, Files, Flight, LEDGER, NONE, Next, Process, Seen, Stage, State, TABLE, Tick, Version, members, rows};

impl Stage {
    fn log(self) -> usize {
        match self {
            Self::Start | Self::Land | Self::FenceLedger | Self::KeepLedger => LEDGER,
            Self::Project | Self::Snapshot | Self::Compact | Self::Candidates | Self::FenceTable | Self::KeepTable => TABLE,
        }
    }
}

impl Process {
    fn cursor(&mut self, stage: Stage) -> &mut Cursor {
        &mut self.cursors[stage.log()]
    }

    /// Is through.
    fn end(&mut self) {
        *self = Self::default();
    }

    /// Sets out to read a log to its end.
    fn read(&mut self, stage: Stage) {
        self.next = if self.cursor(stage).starting { Next::List(stage) } else { Next::Read(stage) };
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::new(self.landed, self.unanswered, self.deaths);
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
            }
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (who, process) in state.processes.iter().enumerate() {
            let next = process.next;
            if next == Next::Nothing {
                continue;
            }
            match next {
                Next::Clean(log) => {
                    let before = actions.len();
                    actions.extend(self.cleanable(state, who, log).map(|version| Action::Clean(who, log, version)));
                    if actions.len() == before {
                        actions.push(Action::Step(who, next));
                    }
                }
                _ => actions.push(Action::Step(who, next)),
            }
            if matches!(next, Next::Put(_)) && state.unanswered > 0 && state.flight.is_none() {
                actions.push(Action::Unanswered(who, next));
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
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(who, next) => self.step(&mut state, who, next),
            Action::Unanswered(who, Next::Put(stage)) => {
                let entry = self.entry(&state, who, stage);
                let process = &mut state.processes[who];
                state.flight = Some(Flight { log: stage.log(), version: process.cursor(stage).version + 1, entry });
                process.read(stage);
                state.unanswered -= 1;
            }
            Action::Unanswered(..) => return None,
            Action::Clean(_, log, version) => state.logs[log].clean(version),
            Action::Die(who) => {
                self.start_anew(&mut state.processes[who], self.roles[who]);
                state.deaths -= 1;
            }
            Action::Arrive => {
                let Flight { log, version, entry } = state.flight.take()?;
                state.logs[log].put(version, entry, state.now);
            }
            Action::Pause => state.now += 1,
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
    /// Whether a log's entries can vanish. Where they can't, reading to the end in one step is as good as in many, and there is
    /// nothing to be learned from lists: what was absent was the end.
    fn cleans(&self, log: usize) -> bool {
        self.roles.iter().any(|role| matches!(role, Role::Keeper(logs) if logs.contains(&log)))
    }

    /// The cursors of one who has still to begin.
    fn cold(&self) -> [Cursor; 2] {
        [LEDGER, TABLE].map(|log| Cursor { starting: self.cleans(log), ..Cursor::default() })
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
        match next {
            Next::List(stage) => Self::list(state, who, stage),
            Next::Read(stage) => self.read(state, who, stage),
            Next::ListAgain(stage, seen) => self.list_again(state, who, stage, seen),
            Next::Put(stage) => self.put(state, who, stage),
            Next::Confirm(stage) => self.confirm(state, who, stage),
            Next::LandAtOnce => {
                if let Role::Others(first, last) = self.roles[who] {
                    (first..=last).for_each(|object| state.land(object));
                }
                state.processes[who].end();
            }
            Next::Upload => {
                let file = state.write(rows(state.processes[who].objects));
                let process = &mut state.processes[who];
                process.file = file;
                process.read(Stage::Land);
            }
            Next::Merge => Self::merge(state, who),
            Next::ListFiles => self.list_files(state, who),
            Next::DeleteFiles => {
                let seen = table(state, who);
                state.delete(state.processes[who].files & !seen.files & !seen.tombstones);
                state.processes[who].end();
            }
            Next::Checkpoint(log) => {
                let Cursor { version, ghosts, .. } = state.processes[who].cursors[log];
                state.wrong_checkpoint |= ghosts != 0;
                state.logs[log].checkpoint = state.logs[log].checkpoint.max(version);
                state.processes[who].next = if self.rules.confirms_by_listing { Next::Clean(log) } else { Next::Hint(log) };
            }
            Next::Hint(log) => {
                state.logs[log].hint = state.processes[who].cursors[log].version;
                state.processes[who].next = Next::Clean(log);
            }
            Next::Clean(log) => self.keep_next(state, who, log),
            Next::Nothing => {}
        }
    }

    /// R1, R2: the newest checkpoint is found and loaded; what it tells is taken as read.
    fn list(state: &mut State, who: usize, stage: Stage) {
        let (log, stamp) = (&state.logs[stage.log()], state.now);
        let (version, must) = (log.checkpoint, log.last());
        let process = &mut state.processes[who];
        let cursor = process.cursor(stage);
        *cursor = Cursor { base: version, from: version, version, ghosts: 0, stamp, kept: cursor.kept, must, starting: true };
        process.next = Next::Read(stage);
    }

    /// R3: one entry more, or none.
    fn read(&self, state: &mut State, who: usize, stage: Stage) {
        let now = state.now;
        let process = &mut state.processes[who];
        let cursor = process.cursor(stage);
        while let Some(is_ghost) = state.logs[stage.log()].find(cursor.version + 1) {
            cursor.version += 1;
            cursor.ghosts |= u16::from(is_ghost) << cursor.version;
            if self.cleans(stage.log()) {
                return;
            }
        }
        let doubt = match (cursor.starting, cursor.stamp < now) {
            (true, _) if self.rules.when_starting != Doubt::None => self.rules.when_starting,
            (_, true) => self.rules.when_away,
            _ => Doubt::None,
        };
        if cursor.starting && self.rules.starts_reach && cursor.version < cursor.must {
            process.next = Next::List(stage);
        } else if doubt == Doubt::None || !self.cleans(stage.log()) {
            self.accept(state, who, stage, now);
        } else {
            process.next = Next::ListAgain(stage, now);
        }
    }

    /// R4: whether that was the log.
    fn list_again(&self, state: &mut State, who: usize, stage: Stage, seen: Tick) {
        let log = &state.logs[stage.log()];
        let process = &mut state.processes[who];
        let cursor = process.cursor(stage);
        let doubt =
            if cursor.starting && self.rules.when_starting != Doubt::None { self.rules.when_starting } else { self.rules.when_away };
        let is_outrun = match doubt {
            Doubt::Since => log.checkpoint > cursor.from,
            _ => log.last() > cursor.version,
        };
        if is_outrun {
            process.next = Next::List(stage);
            if !self.rules.forgets && stage.log() == LEDGER {
                let Cursor { version, ghosts, kept, .. } = *process.cursor(stage);
                let read = state.landings(version, ghosts).fold(kept, |read, (_, objects, _)| read | objects);
                state.processes[who].cursor(stage).kept = read;
            }
        } else {
            self.accept(state, who, stage, seen);
        }
    }

    /// The log's end is reached.
    fn accept(&self, state: &mut State, who: usize, stage: Stage, seen: Tick) {
        let cursor = state.processes[who].cursor(stage);
        *cursor = Cursor { from: cursor.version, stamp: seen, must: 0, starting: false, ..*cursor };
        if !self.cleans(stage.log()) {
            *cursor = Cursor { version: cursor.version, ..Cursor::default() };
        }
        match stage {
            Stage::Start => state.processes[who].next = Next::Upload,
            Stage::Land => self.check_batch(state, who),
            Stage::Project => match self.missing(state, who) {
                Some(_) => state.processes[who].next = Next::Put(stage),
                None => self.projected(state, who),
            },
            Stage::Snapshot if self.roles[who] == Role::Vacuum => state.processes[who].next = Next::DeleteFiles,
            Stage::Snapshot => state.processes[who].next = Next::Merge,
            Stage::Compact => self.check_inputs(state, who),
            Stage::Candidates => state.processes[who].next = Next::ListFiles,
            Stage::FenceLedger | Stage::FenceTable => state.processes[who].next = Next::Put(stage),
            Stage::KeepLedger if self.rules.projects_before_checkpoint => state.processes[who].read(Stage::Project),
            Stage::KeepLedger => state.processes[who].next = Next::Checkpoint(LEDGER),
            Stage::KeepTable => state.processes[who].next = Next::Checkpoint(TABLE),
        }
    }

    /// W3.
    fn check_batch(&self, state: &mut State, who: usize) {
        let Process { cursors: [ledger, _], objects, file, .. } = state.processes[who];
        let landings = || state.landings(ledger.version, ledger.ghosts);
        let own = landings().any(|(version, _, landed)| version > ledger.base && landed == file);
        let landed = landings().filter(|_| self.rules.writers_ask_objects);
        let known = landed.fold(ledger.kept, |known, (_, objects, _)| known | objects);
        let is_stale = self.rules.writers_ask_age && state.is_old(file);
        let process = &mut state.processes[who];
        if own && self.rules.writers_know_their_batch || objects & !known == 0 {
            (process.objects, process.file) = (0, NONE);
            process.read(Stage::Project);
        } else if objects & known != 0 || is_stale {
            if !self.rules.leaves_files {
                state.delete(1 << file);
            }
            let process = &mut state.processes[who];
            process.objects = objects & !known;
            process.file = NONE;
            process.next = Next::Upload;
        } else {
            process.next = Next::Put(Stage::Land);
        }
    }

    /// C4.
    fn check_inputs(&self, state: &mut State, who: usize) {
        let Process { files: inputs, file, .. } = state.processes[who];
        let lacks = inputs & !table(state, who).files != 0;
        let gives_up = self.rules.compactors_ask_inputs && lacks || self.rules.compactors_ask_age && state.is_old(file);
        if gives_up && !self.rules.leaves_files {
            state.delete(1 << file);
        }
        let process = &mut state.processes[who];
        process.next = Next::Put(Stage::Compact);
        if gives_up {
            process.end();
        }
    }

    /// C2.
    fn merge(state: &mut State, who: usize) {
        let inputs: Files = members(table(state, who).files).take(2).fold(0, |inputs, file| inputs | 1 << file);
        if inputs.count_ones() < 2 || state.lacks_any(inputs) {
            return state.processes[who].end();
        }
        let file = state.write(state.rows_of(inputs));
        let process = &mut state.processes[who];
        (process.files, process.file) = (inputs, file);
        process.read(Stage::Compact);
    }

    /// V2.
    fn list_files(&self, state: &mut State, who: usize) {
        let old = (0..).zip(state.files()).filter(|(_, file)| !file.gone && file.made < state.now);
        let old = old.fold(0, |old, (file, _)| old | 1 << file);
        let candidates = old & !table(state, who).files;
        let process = &mut state.processes[who];
        process.files = candidates;
        match self.rules.lists_then_fences {
            _ if candidates == 0 => process.end(),
            true => self.fence(process, Stage::FenceLedger),
            false => process.next = Next::DeleteFiles,
        }
    }

    /// Goes on to a fence, or to what comes after it.
    fn fence(&self, process: &mut Process, stage: Stage) {
        match stage {
            Stage::FenceLedger if self.rules.fences_ledger => process.read(Stage::FenceLedger),
            Stage::FenceLedger | Stage::FenceTable if self.rules.fences_table => process.read(Stage::FenceTable),
            _ if self.rules.projects_before_deleting => process.read(Stage::Project),
            _ => process.read(Stage::Snapshot),
        }
    }

    /// What the table has still to get, as the process knows it.
    fn missing(&self, state: &State, who: usize) -> Option<Entry> {
        let Cursor { base, version, ghosts, .. } = state.processes[who].cursors[LEDGER];
        let beyond = base.max(table(state, who).txn);
        let missing = state.landings(version, ghosts).filter(|(version, ..)| *version > beyond);
        let (adds, to) = missing.fold((0, 0), |(adds, _), (version, _, file)| (adds | 1 << file, version));
        (adds != 0).then_some(Entry::Projection { adds, to })
    }

    fn entry(&self, state: &State, who: usize, stage: Stage) -> Entry {
        let process = &state.processes[who];
        match stage {
            Stage::Land => Entry::Landing { objects: process.objects, file: process.file },
            Stage::Project => self.missing(state, who).expect("something to project"),
            Stage::Compact => Entry::Compaction { removes: process.files, add: process.file },
            _ => Entry::Empty,
        }
    }

    fn put(&self, state: &mut State, who: usize, stage: Stage) {
        let entry = self.entry(state, who, stage);
        let version = state.processes[who].cursor(stage).version + 1;
        let won = state.logs[stage.log()].put(version, entry, state.now);
        let process = &mut state.processes[who];
        match won {
            Some(is_ghost) => {
                process.cursor(stage).version = version;
                process.cursor(stage).ghosts |= u16::from(is_ghost) << version;
                process.next = Next::Confirm(stage);
                if !self.cleans(stage.log()) {
                    self.confirm(state, who, stage);
                }
            }
            None => process.read(stage),
        }
    }

    /// What a won put leads to, if it counts.
    fn confirm(&self, state: &mut State, who: usize, stage: Stage) {
        let (log, now) = (&state.logs[stage.log()], state.now);
        let newest = if self.rules.confirms_by_listing { log.checkpoint } else { log.hint };
        let process = &mut state.processes[who];
        let cursor = process.cursor(stage);
        if self.rules.confirms && cursor.stamp < now && newest >= cursor.version {
            return self.start_anew(process, self.roles[who]);
        }
        cursor.from = cursor.version;
        match stage {
            Stage::Land => {
                (process.objects, process.file) = (0, NONE);
                process.read(Stage::Project);
            }
            Stage::Project => process.read(Stage::Project),
            Stage::FenceLedger => self.fence(process, Stage::FenceTable),
            Stage::FenceTable => self.fence(process, Stage::Project),
            _ => process.end(),
        }
    }

    /// P's end: the table is where the ledger is.
    fn projected(&self, state: &mut State, who: usize) {
        match self.roles[who] {
            Role::Writer(batches) => {
                let process = &mut state.processes[who];
                state.acknowledged |= batches[process.batch as usize];
                process.batch += 1;
                process.file = NONE;
                process.objects = batches.get(process.batch as usize).copied().unwrap_or(0);
                process.next = Next::Upload;
                if process.objects == 0 {
                    process.end();
                }
            }
            Role::Vacuum if self.rules.lists_then_fences => state.processes[who].next = Next::DeleteFiles,
            Role::Vacuum => state.processes[who].read(Stage::Candidates),
            Role::Keeper(_) => state.processes[who].next = Next::Checkpoint(LEDGER),
            Role::Others(..) | Role::Compactor => state.processes[who].end(),
        }
    }

    /// The process begins again with nothing but its work; who has none to lose leaves it to the next run.
    fn start_anew(&self, process: &mut Process, role: Role) {
        *process = Process { cursors: self.cold(), batch: process.batch, file: NONE, ..Process::default() };
        match role.batches() {
            Some(batches) => {
                process.objects = batches[process.batch as usize];
                process.read(Stage::Start);
            }
            None => process.end(),
        }
    }

    /// K3: what may be removed.
    fn cleanable<'a>(&'a self, state: &'a State, who: usize, log: usize) -> impl Iterator<Item = Version> + 'a {
        let below = state.processes[who].cursors[log].version + u8::from(!self.rules.keeps_checkpointed_entry);
        let slots = (0..below).zip(state.logs[log].slots());
        let old = slots.filter(|(_, slot)| !slot.gone && (slot.at < state.now || !self.rules.cleans_only_old));
        old.map(|(version, _)| version)
    }

    /// A log is cleaned up: on to the next.
    fn keep_next(&self, state: &mut State, who: usize, log: usize) {
        let Role::Keeper(logs) = self.roles[who] else { return };
        let next = logs.iter().skip_while(|kept| **kept != log).nth(1);
        match next {
            Some(log) => state.processes[who].read(keep(*log)),
            None => state.processes[who].end(),
        }
    }
}

/// The table as a process has read it.
fn table(state: &State, who: usize) -> Seen {
    let Cursor { version, ghosts, .. } = state.processes[who].cursors[TABLE];
    state.table(version, ghosts)
}
