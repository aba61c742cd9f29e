//! The commit protocol, explored: every order in which the steps of a few processes can happen, with crashes,
//! freezes and lost answers at any of them, in a model small enough to be searched to the end.
//!
//! The model holds what the protocol decides on and nothing else: two logs (the ledger and one table),
//! put-if-absent, checkpoints, files with an age, and what each process has read. Time is long pauses: all
//! that was before the last one is older than an hour and a day at once. Nothing in between can be more
//! dangerous, since who asks for an age asks whether it is small. A process that dies for good is one that
//! never takes its next step: what must hold, must hold in every state.
//!
//! | step | what it is |
//! |---|---|
//! | R1 list | the newest checkpoint is found by listing, and loaded: reading begins, or begins anew; of the ledger the entries from its settled mark on are read, too |
//! | R2 read on | the next log entry; if it is absent, that is the end |
//! | R3 list again | if anything was read: it counts if the listing shows it, shows what reading began with, and shows no checkpoint beyond that or nothing half a day younger; else R1 |
//! | W1 upload | a batch's file is written |
//! | W2 catch up | R2, R3 on the ledger |
//! | W3 check | with W2's end: own batch is there, so P; objects are there, so W1 without them; a fence is there that is newer than the file, so W3a; else W4 |
//! | W3a look after files | a file is gone, or was over an hour old when the fence was put, so W1; else W4 |
//! | W4 put | the batch, as the ledger's next version if that is absent; lost or unanswered, W2 |
//! | W5 confirm | what was put counts by a listing, as in R3; else it is as if it had not been put, and W1 |
//! | W6 acknowledge | with P's end |
//! | P1 catch up | R2, R3 on the table; with its end: nothing is missing of the ledger as read, or P2; it was brought up beyond that, so P4 |
//! | P2 put, P3 confirm | all that is missing and the ledger's version, as W4, W5 |
//! | P4 read the ledger on | R2, R3; if it does not get there, P5 |
//! | P5 list the ledger | there is anything of the version that the table is at, or of one beyond, so R1; else the lake is damaged, and the process stops |
//! | C1 snapshot | R1, R2, R3 on the table |
//! | C2 merge | an output is written of two inputs |
//! | C3 catch up, C4 check | R2, R3 on the table; with the end: an input is gone from the table, or reading has to begin anew, so give up |
//! | C4a look after files | as W3a; give up, or C5 |
//! | C5 put, C6 confirm | inputs out, output in, as W4, W5 |
//! | V1 snapshot, V2 list files | candidates: files that the table does not name |
//! | V3 fence the ledger, V4 fence the table | an empty version each, as W2, W4, W5; then P |
//! | V5 delete | candidates that were over a day old when the ledger's fence was put, that the table as P read it does not name, and that were not taken out within that day |
//! | K1 catch up | R2, R3 on a log; the ledger's, then P |
//! | K0 mark what is settled | an entry of the ledger that tells to where K1 read it, as W2, W4, W5, if there is none as new |
//! | K2 checkpoint | of the version that K1 or K0 came to |
//! | K3 clean up | entries that are over a day old, below a checkpoint that is over a day old, and of the ledger up to the mark in that, are listed and removed, in any order |
//! | S1 unanswered | a put's answer is lost; the put arrives at any time later, or never |
//! | S2 dies, S3 a long pause | at any time |
//! | S4 others land | objects land and are projected, in one step |
//! | S5 a LIST fails | of R3, W5, P3, P5, C6: the process goes on with what it knows |
//! | S6 another engine checkpoints | a log that it has read any time before |
//! | S7 the ledger is removed | all of its log; or an older copy takes its place |
//!
//! No step asks the clock of a process: "over a day old" is by the times that the store gives to what is in
//! it. A writer acknowledges when the table is at the ledger's version. What each rule is good for is shown
//! by leaving it out: the search then finds how something is lost, or doubled.

mod reading;
mod rules;
mod state;
mod steps;

use std::collections::HashMap;

use rules::{Ahead, Base, Doubt, Look, Mark, Now, Protocol, Role, Rules, Time};
use state::{LEDGER, Next, Rows, State, TABLE, rows};
use stateright::{Checker, HasDiscoveries, Model, Property};

const ONCE: &str = "an object lands once";
const ROWS: &str = "the table has the rows of what landed, once";
const FILES: &str = "no file that is named is gone";
const ACKNOWLEDGED: &str = "what is acknowledged is in the ledger and in the table";
const CHECKPOINTS: &str = "a checkpoint tells what really landed";
const ALL_LAND: &str = "who is through has landed all of its objects";
const DAMAGED: &str = "only a damaged lake is found damaged";
const ALL: &str = "all invariants hold";
const THROUGH: &str = "all are through";

type Invariant = fn(&Protocol, &State) -> bool;

/// What must hold in every state.
const INVARIANTS: [(&str, Invariant); 7] = [
    (ONCE, |_, state| {
        let landed: Rows = state.true_landings().map(|(_, objects, _)| rows(objects)).sum();
        landed & 0xEEEE == 0
    }),
    (ROWS, |_, state| {
        let table = state.true_table();
        let landed = state.true_landings().filter(|(version, ..)| *version <= table.txn);
        state.rows_of(table.files) == landed.map(|(_, objects, _)| rows(objects)).sum::<Rows>()
    }),
    (FILES, |_, state| {
        let table = state.true_table();
        let to_come = state.true_landings().filter(|(version, ..)| *version > table.txn);
        !state.lacks_any(to_come.fold(table.files, |files, (_, _, file)| files | 1 << file))
    }),
    (ACKNOWLEDGED, |_, state| state.acknowledged & !state.true_objects(state.true_table().txn) == 0),
    (DAMAGED, |_, state| {
        state.logs[LEDGER].removed || state.processes.iter().all(|process| process.next != Next::Stopped)
    }),
    (CHECKPOINTS, |_, state| !state.wrong_checkpoint),
    (ALL_LAND, |protocol, state| {
        let through =
            protocol.roles.iter().zip(&state.processes).filter(|(_, process)| process.next == Next::Nothing);
        through.filter_map(|(role, _)| role.batches()).flatten().all(|batch| batch & !state.acknowledged == 0)
    }),
];

fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ALL, |protocol, state| INVARIANTS.iter().all(|(_, holds)| holds(protocol, state))),
        Property::sometimes(THROUGH, |_, state: &State| {
            state.processes.iter().all(|process| process.next == Next::Nothing)
        }),
    ]
}

const NOBODY: Protocol = Protocol {
    rules: Rules::ALL,
    roles: &[],
    newcomers: 0,
    landed: 0,
    pauses: 1,
    unanswered: 0,
    failures: 0,
    deaths: 0,
    removal: false,
    restoring: false,
};
/// One object; and two writers of two, with one in common.
const WRITER: Role = Role::Writer(&[0b0001]);
const LEFT: Role = Role::Writer(&[0b0011]);
const RIGHT: Role = Role::Writer(&[0b0110]);
const LAST: Role = Role::Writer(&[0b1000]);
const OTHERS: Role = Role::Others(1, 2);
const COMPACTOR: Role = Role::Compactor;
const VACUUM: Role = Role::Vacuum;
const KEEPER: Role = Role::Keeper(&[LEDGER]);
const TABLE_KEEPER: Role = Role::Keeper(&[TABLE]);
const BOTH_KEEPER: Role = Role::Keeper(&[LEDGER, TABLE]);

/// Has two objects to land, one after the other.
const TWICE: Role = Role::Writer(&[0b0001, 0b1000]);
const ENGINE: Role = Role::Engine(LEDGER);
const CLEANER: Role = Role::Cleaner(LEDGER);

const WRITERS: Protocol = Protocol { roles: &[LEFT, RIGHT], deaths: 1, ..NOBODY };
const WRITERS_UNANSWERED: Protocol = Protocol { roles: &[LEFT, RIGHT], unanswered: 1, ..NOBODY };
const WRITERS_AND_VACUUM: Protocol = Protocol { roles: &[LEFT, RIGHT, VACUUM], ..NOBODY };
const WRITER_AND_VACUUM: Protocol =
    Protocol { roles: &[WRITER, VACUUM], pauses: 2, unanswered: 1, deaths: 1, ..NOBODY };
const COMPACTORS_AND_VACUUM: Protocol =
    Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM], landed: 3, unanswered: 1, ..NOBODY };
const COMPACTORS_AND_WRITER: Protocol =
    Protocol { roles: &[COMPACTOR, COMPACTOR, LAST], landed: 2, unanswered: 1, ..NOBODY };
const CLEAN_UP: Protocol = Protocol { roles: &[WRITER, OTHERS, KEEPER], unanswered: 1, ..NOBODY };
const CLEAN_UP_OF_BOTH: Protocol = Protocol { roles: &[WRITER, OTHERS, BOTH_KEEPER], ..NOBODY };
const CLEAN_UP_TWICE: Protocol = Protocol { roles: &[WRITER, KEEPER, KEEPER], newcomers: 1, ..NOBODY };
const CLEAN_UP_AND_CLEANER: Protocol =
    Protocol { roles: &[WRITER, Role::Others(1, 1), KEEPER, CLEANER], ..NOBODY };
const CLEAN_UP_AND_TWO_WRITERS: Protocol = Protocol { roles: &[WRITER, WRITER, OTHERS, KEEPER], ..NOBODY };
const CLEAN_UP_AND_NEWCOMER: Protocol = Protocol { roles: &[OTHERS, KEEPER, WRITER], newcomers: 1, ..NOBODY };
const CLEAN_UP_AND_COMPACTORS: Protocol = Protocol {
    roles: &[Role::Others(2, 3), TABLE_KEEPER, COMPACTOR, COMPACTOR],
    newcomers: 2,
    landed: 2,
    ..NOBODY
};
const CLEAN_UP_AND_VACUUM: Protocol = Protocol { roles: &[WRITER, VACUUM, KEEPER], ..NOBODY };
const CLEAN_UP_OF_TABLE_AND_VACUUM: Protocol =
    Protocol { roles: &[WRITER, OTHERS, VACUUM, TABLE_KEEPER], ..NOBODY };
const FAILURES: Protocol = Protocol { roles: &[TWICE, Role::Writer(&[0b0010])], failures: 2, ..NOBODY };
const FAILURES_AND_DEATH: Protocol = Protocol { roles: &[TWICE], failures: 2, deaths: 1, ..NOBODY };
const FAILURES_AND_CLEAN_UP: Protocol = Protocol { roles: &[WRITER, OTHERS, KEEPER], failures: 1, ..NOBODY };
const FAILURES_AND_COMPACTOR: Protocol =
    Protocol { roles: &[WRITER, LAST, COMPACTOR], landed: 2, failures: 1, ..NOBODY };
const FOREIGN: Protocol = Protocol { roles: &[WRITER, ENGINE, LAST], newcomers: 1, ..NOBODY };
const FOREIGN_AND_KEEPER: Protocol =
    Protocol { roles: &[ENGINE, KEEPER, LAST], newcomers: 1, landed: 2, ..NOBODY };
const FOREIGN_AND_CLEANER: Protocol =
    Protocol { roles: &[ENGINE, KEEPER, CLEANER, LAST], newcomers: 1, landed: 2, ..NOBODY };
const FOREIGN_OF_TABLE: Protocol =
    Protocol { roles: &[WRITER, Role::Engine(TABLE), LAST], newcomers: 1, ..NOBODY };
const REMOVED: Protocol =
    Protocol { roles: &[WRITER, LAST], newcomers: 1, deaths: 1, removal: true, ..NOBODY };
const REMOVED_UNDER_KEEPER: Protocol =
    Protocol { roles: &[Role::Others(1, 1), KEEPER, LAST], newcomers: 1, removal: true, ..NOBODY };
const REMOVED_UNDER_VACUUM: Protocol = Protocol { roles: &[WRITER, VACUUM], removal: true, ..NOBODY };
const RESTORED: Protocol =
    Protocol { roles: &[WRITER, LAST], newcomers: 2, landed: 2, restoring: true, ..NOBODY };

/// Explores all that can happen. If something can that must not: which invariants it breaks, and the fewest
/// steps to it.
fn explore(protocol: &Protocol) -> Option<(Vec<&'static str>, String)> {
    let checker = protocol.clone().checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let Some(path) = checker.discovery(ALL) else {
        assert!(checker.discovery(THROUGH).is_some(), "no run of {:?} comes to its end", protocol.roles);
        return None;
    };
    let broken = INVARIANTS
        .iter()
        .filter(|(_, holds)| !holds(protocol, path.last_state()))
        .map(|(name, _)| *name)
        .collect();
    Some((broken, path.into_actions().iter().map(|action| format!("\n    {action}")).collect()))
}

/// Nothing that must not happen can.
fn holds(protocol: &Protocol) {
    if let Some((broken, steps)) = explore(protocol) {
        panic!("not so: {broken:?}, with {:?}, after{steps}", protocol.roles);
    }
}

/// With a rule left out something happens that must not.
fn breaks(invariant: &str, protocol: Protocol, leave_out: impl FnOnce(&mut Rules)) {
    let mut protocol = protocol;
    leave_out(&mut protocol.rules);
    let (broken, steps) = explore(&protocol).expect("the search finds what the rule is for");
    assert!(broken.contains(&invariant), "not so: {broken:?}, but {invariant}, after{steps}");
}

/// Whether every run comes to an end, whoever is served and whoever waits: no way leads back to a state that
/// it went through.
fn ends(protocol: &Protocol) -> bool {
    let mut is_open = HashMap::new();
    let mut way: Vec<_> =
        protocol.init_states().into_iter().map(|state| (protocol.next_states(&state), state)).collect();
    is_open.extend(way.iter().map(|(_, state)| (state.clone(), true)));
    while let Some((next, state)) = way.last_mut() {
        let Some(next) = next.pop() else {
            is_open.insert(state.clone(), false);
            way.pop();
            continue;
        };
        match is_open.get(&next) {
            Some(true) => return false,
            Some(false) => {}
            None => {
                is_open.insert(next.clone(), true);
                way.push((protocol.next_states(&next), next));
            }
        }
    }
    true
}

#[test]
fn writers_race_and_die() {
    holds(&WRITERS);
    holds(&WRITERS_UNANSWERED);
}

#[test]
fn a_vacuum_takes_nothing_that_lands() {
    holds(&WRITER_AND_VACUUM);
    holds(&WRITERS_AND_VACUUM);
}

#[test]
fn compactors_race() {
    holds(&COMPACTORS_AND_VACUUM);
    holds(&COMPACTORS_AND_WRITER);
}

#[test]
fn logs_are_cleaned_up() {
    holds(&CLEAN_UP);
    holds(&CLEAN_UP_OF_BOTH);
    holds(&CLEAN_UP_TWICE);
    holds(&CLEAN_UP_AND_NEWCOMER);
}

#[test]
fn logs_are_cleaned_up_under_upkeep() {
    holds(&CLEAN_UP_AND_COMPACTORS);
    holds(&CLEAN_UP_AND_VACUUM);
}

#[test]
fn listings_fail_and_processes_go_on() {
    holds(&FAILURES);
    holds(&FAILURES_AND_DEATH);
    holds(&FAILURES_AND_CLEAN_UP);
    holds(&FAILURES_AND_COMPACTOR);
}

#[test]
fn other_engines_write_checkpoints() {
    holds(&FOREIGN);
    holds(&FOREIGN_AND_KEEPER);
    holds(&FOREIGN_OF_TABLE);
}

#[test]
fn a_ledger_is_removed_or_restored() {
    holds(&REMOVED);
    holds(&REMOVED_UNDER_KEEPER);
    holds(&REMOVED_UNDER_VACUUM);
    holds(&RESTORED);
}

#[test]
#[ignore = "takes many minutes, and gigabytes"]
fn wider_bounds() {
    holds(&Protocol { unanswered: 1, ..WRITERS });
    holds(&Protocol { pauses: 2, ..CLEAN_UP });
    holds(&Protocol { roles: &[WRITER, OTHERS, KEEPER, KEEPER], ..NOBODY });
    holds(&CLEAN_UP_AND_CLEANER);
    holds(&CLEAN_UP_AND_TWO_WRITERS);
    holds(&CLEAN_UP_OF_TABLE_AND_VACUUM);
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM, LAST], ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM, VACUUM], pauses: 2, ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM, TABLE_KEEPER], ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { failures: 1, ..CLEAN_UP_AND_COMPACTORS });
    holds(&Protocol { deaths: 1, ..FAILURES });
    holds(&Protocol { roles: &[WRITER, WRITER, OTHERS, KEEPER], ..FAILURES_AND_CLEAN_UP });
    holds(&Protocol { roles: &[WRITER, ENGINE, KEEPER, LAST], newcomers: 1, ..NOBODY });
    holds(&Protocol { roles: &[WRITER, Role::Engine(TABLE), TABLE_KEEPER, LAST], newcomers: 1, ..NOBODY });
    holds(&FOREIGN_AND_CLEANER);
    holds(&Protocol { deaths: 1, ..FOREIGN });
    holds(&Protocol { roles: &[LEFT, RIGHT, LAST], deaths: 0, ..REMOVED });
    holds(&Protocol { roles: &[WRITER, VACUUM, LAST], newcomers: 1, ..REMOVED_UNDER_VACUUM });
}

/// Who begins anew at a checkpoint doesn't see the fence below it.
#[test]
#[ignore = "takes a minute or two"]
fn a_checkpoint_hides_a_fence() {
    let protocol = Protocol { roles: &[WRITER, Role::Others(1, 1), VACUUM, KEEPER], ..NOBODY };
    holds(&protocol);
    breaks(FILES, protocol, |rules| rules.takes_checkpoint_for_fence = false);
}

/// With the invariant that who is through has landed everything: a writer that is served lands, whatever the
/// others do.
#[test]
fn every_run_comes_to_an_end() {
    for protocol in [
        WRITERS,
        WRITERS_UNANSWERED,
        COMPACTORS_AND_VACUUM,
        CLEAN_UP_OF_BOTH,
        FAILURES_AND_DEATH,
        REMOVED_UNDER_VACUUM,
    ] {
        assert!(ends(&protocol), "{:?} can go on for ever", protocol.roles);
    }
}

#[test]
fn without_looking_for_its_objects_a_writer_lands_them_again() {
    breaks(ONCE, WRITERS, |rules| rules.writers_ask_objects = false);
}

#[test]
fn without_its_fences_a_vacuum_takes_what_lands_later() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.fences_ledger = false);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.fences_table = false);
}

#[test]
fn without_projecting_first_a_vacuum_takes_what_has_landed() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.projects_before_deleting = false);
}

/// The table's is put later: what was young at the ledger's may be old at that.
#[test]
fn who_takes_the_last_fence_for_now_takes_what_was_young_at_the_first() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.vacuums_by = Now::LastFence);
}

#[test]
fn without_looking_after_them_files_are_committed_that_a_vacuum_took() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.writers_look = Look::Never);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.compactors_look = Look::Never);
}

/// One that stands still, or is ahead, of one process.
#[test]
fn whoever_asks_his_own_clock_is_deceived() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.writers_look = Look::OwnClock);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.compactors_look = Look::OwnClock);
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.vacuums_by = Now::OwnClock);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.vacuums_by = Now::OwnClock);
    let answered = Protocol { unanswered: 0, ..CLEAN_UP };
    breaks(ACKNOWLEDGED, answered.clone(), |rules| rules.doubts_by = Time::Own);
    breaks(ACKNOWLEDGED, answered, |rules| rules.cleans_by = Time::Own);
}

#[test]
fn who_removes_its_own_files_removes_what_an_unanswered_put_named() {
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.leaves_files = false);
}

#[test]
fn without_asking_for_its_inputs_a_compactor_doubles_rows() {
    breaks(ROWS, COMPACTORS_AND_VACUUM, |rules| rules.compactors_ask_inputs = false);
}

#[test]
fn who_lists_nothing_takes_a_hole_for_the_end() {
    let answered = Protocol { unanswered: 0, ..CLEAN_UP };
    breaks(ACKNOWLEDGED, answered.clone(), |rules| rules.doubts = Doubt::None);
    breaks(ACKNOWLEDGED, answered, |rules| rules.cleans_only_old = false);
}

/// Someone who was away as long filled the hole, and the next reader went on over it.
#[test]
fn who_lists_only_what_is_beyond_the_end_takes_a_ghost_for_a_landing() {
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_CLEANER, |rules| rules.doubts = Doubt::Beyond);
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_CLEANER, |rules| rules.forgets = false);
}

#[test]
fn without_confirming_a_put_what_nobody_reads_is_acknowledged() {
    let answered = Protocol { unanswered: 0, ..CLEAN_UP };
    breaks(ACKNOWLEDGED, answered, |rules| rules.confirms = false);
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_CLEANER, |rules| rules.confirms_by_listing = false);
}

/// A second keeper removed it again, and nothing in the listing is new.
#[test]
fn who_does_not_see_his_own_put_takes_it_for_there() {
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_CLEANER, |rules| rules.sees_what_counts = false);
}

/// Its objects land twice, by a LIST that fails and by a checkpoint of just that version; or they never get
/// to the table, since the next batch of the same process takes it beyond them.
#[test]
fn a_put_that_is_forgotten_lands_twice_or_is_lost() {
    breaks(ONCE, FAILURES, |rules| rules.puts_back_in_ledger = false);
    breaks(ONCE, Protocol { unanswered: 0, ..CLEAN_UP }, |rules| rules.puts_back_in_ledger = false);
    breaks(ROWS, Protocol { failures: 1, ..FAILURES_AND_DEATH }, |rules| rules.puts_back_in_ledger = false);
}

/// A compactor has taken its files out meanwhile: they are added once more.
#[test]
fn a_projection_that_is_forgotten_doubles_rows() {
    breaks(ROWS, Protocol { landed: 1, ..FAILURES_AND_COMPACTOR }, |rules| rules.puts_back_in_table = false);
}

#[test]
fn a_mark_beyond_what_is_projected_loses_the_rest() {
    breaks(ACKNOWLEDGED, Protocol { unanswered: 0, ..CLEAN_UP }, |rules| {
        rules.projects_before_marking = false
    });
}

#[test]
fn who_takes_every_checkpoint_for_settled_loses_what_a_dead_writer_left() {
    breaks(ACKNOWLEDGED, FOREIGN, |rules| rules.reads_from = Mark::None);
}

#[test]
fn cleaned_up_beyond_its_mark_a_checkpoint_is_no_beginning() {
    breaks(DAMAGED, FOREIGN_AND_CLEANER, |rules| rules.cleans_to = Mark::None);
    breaks(DAMAGED, FOREIGN_AND_CLEANER, |rules| rules.cleans_to = Mark::Newest);
}

/// The ledger was cleaned up to the newer one.
#[test]
fn a_mark_that_goes_back_is_no_beginning() {
    let keepers =
        Protocol { roles: &[Role::Others(1, 1), KEEPER, KEEPER, LAST], newcomers: 1, landed: 1, ..NOBODY };
    breaks(DAMAGED, keepers, |rules| rules.marks_only_forward = false);
}

#[test]
fn a_table_ahead_of_its_ledger_swallows_what_lands() {
    breaks(ACKNOWLEDGED, RESTORED, |rules| rules.when_ahead = Ahead::Ignored);
    breaks(DAMAGED, CLEAN_UP, |rules| rules.when_ahead = Ahead::Read);
}

#[test]
fn a_second_ledger_loses_what_lands() {
    breaks(ROWS, REMOVED, |rules| rules.creates_only_in_empty_lake = false);
}

/// A put goes into a log that was removed; so it does if a keeper's checkpoint came late.
#[test]
fn without_what_came_before_a_put_is_in_no_ledger() {
    breaks(ROWS, REMOVED, |rules| rules.knows_its_base = Base::Unknown);
    breaks(ACKNOWLEDGED, REMOVED_UNDER_KEEPER, |rules| rules.knows_its_base = Base::OrCheckpoint);
    breaks(ACKNOWLEDGED, REMOVED_UNDER_KEEPER, |rules| rules.checks_what_is_covered = false);
}

/// Nothing rests on these: they are kept for other reasons.
#[test]
fn rules_that_the_others_make_up_for() {
    let leave_out = |rules: &mut Rules| {
        // An own batch's objects are there, so they are taken for someone else's: they are done with all the
        // same.
        rules.writers_know_their_batch = false;
        // What was written after the fence is not old by its time.
        rules.lists_then_fences = false;
        // Who finds it gone finds a checkpoint beyond where he began.
        rules.keeps_checkpointed_entry = false;
        // Versions that were the newest lately can still be read.
        rules.cleans_below_old = false;
    };
    for mut protocol in [WRITERS, WRITERS_AND_VACUUM, CLEAN_UP] {
        leave_out(&mut protocol.rules);
        holds(&protocol);
    }
}
