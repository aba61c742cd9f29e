//! The commit protocol, explored: every order in which the steps of a few processes can happen, with crashes, freezes and
//! lost answers at any of them, in a model small enough to be searched to the end.
//!
//! The model holds what the protocol decides on and nothing else: two logs (the ledger and one table), put-if-absent,
//! checkpoints, files with an age, and what each process has read. Time is long pauses: all that was before the last one is
//! older than ten minutes, an hour and a day at once. Nothing in between can be more dangerous, since who asks for
//! an age asks whether it is small. A process that dies for good is one that never takes its next step: what must hold, must
//! hold in every state.
//!
//! | step | what it is |
//! |---|---|
//! | R1 list | the newest checkpoint is found by listing, and loaded: reading begins, or begins anew |
//! | R2 read on | the next log entry; if it is absent, that is the end |
//! | R3 list again | the end counts if no checkpoint is beyond where this reading began; else all that it read is forgotten, and R1 |
//! | W1 upload | a batch's file is written |
//! | W2 catch up | R2 on the ledger; R3 before the end counts, if it was last seen over ten minutes ago |
//! | W3 check | with W2's end: own batch is there, so P; objects are there, so W1 without them; file over an hour old, so W1; else W4 |
//! | W4 put | the batch, as the ledger's next version if that is absent; lost or unanswered, W2 |
//! | W5 confirm | if W2's end was seen over ten minutes ago: no checkpoint at or above the version that was won; else nothing of it counts, and R1 |
//! | W6 acknowledge | with P's end |
//! | P1 catch up | R2, R3 on the table; with its end: nothing is missing of the ledger as read, or P2 |
//! | P2 put, P3 confirm | all that is missing and the ledger's version, as W4, W5 |
//! | C1 snapshot | R1, R2, R3 on the table |
//! | C2 merge | an output is written of two inputs |
//! | C3 catch up, C4 check | R2, R3 on the table; with the end: an input is gone from the table, or the output is over an hour old, so give up |
//! | C5 put, C6 confirm | inputs out, output in, as W4, W5 |
//! | V1 snapshot, V2 list files | candidates: files that are over a day old and that the table does not name |
//! | V3 fence the ledger, V4 fence the table | an empty version each, as W2, W4, W5; then P |
//! | V5 delete | candidates that the table as P read it does not name, and that were not taken out within the last day |
//! | K1 catch up | R2, R3 on a log; the ledger's, then P |
//! | K2 checkpoint | of the version that K1 came to |
//! | K3 clean up | entries below that are over a day old are removed, in any order |
//! | S1 unanswered | a put's answer is lost; the put arrives at any time later, or never |
//! | S2 dies, S3 a long pause | at any time |
//! | S4 others land | objects land and are projected, in one step |
//!
//! A writer acknowledges when the table is at the ledger's version. What each rule is good for is shown by leaving it out: the
//! search then finds how something is lost, or doubled.

mod rules;
mod state;
mod steps;

use std::collections::HashMap;

use rules::{Doubt, Protocol, Role, Rules};
use state::{LEDGER, Next, Rows, State, TABLE, rows};
use stateright::{Checker, HasDiscoveries, Model, Property};

const ONCE: &str = "an object lands once";
const ROWS: &str = "the table has the rows of what landed, once";
const FILES: &str = "no file that is named is gone";
const ACKNOWLEDGED: &str = "what is acknowledged is in the ledger and in the table";
const CHECKPOINTS: &str = "a checkpoint tells what really landed";
const ALL_LAND: &str = "who is through has landed all of its objects";
const ALL: &str = "all invariants hold";
const THROUGH: &str = "all are through";

type Invariant = fn(&Protocol, &State) -> bool;

/// What must hold in every state.
const INVARIANTS: [(&str, Invariant); 6] = [
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
    (ACKNOWLEDGED, |_, state| {
        let txn = state.true_table().txn;
        let there = state.true_landings().filter(|(version, ..)| *version <= txn);
        state.acknowledged & !there.fold(0, |there, (_, objects, _)| there | objects) == 0
    }),
    (CHECKPOINTS, |_, state| !state.wrong_checkpoint),
    (ALL_LAND, |protocol, state| {
        let through = protocol.roles.iter().zip(&state.processes).filter(|(_, process)| process.next == Next::Nothing);
        through.filter_map(|(role, _)| role.batches()).flatten().all(|batch| batch & !state.acknowledged == 0)
    }),
];

fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ALL, |protocol, state| INVARIANTS.iter().all(|(_, holds)| holds(protocol, state))),
        Property::sometimes(THROUGH, |_, state: &State| state.processes.iter().all(|process| process.next == Next::Nothing)),
    ]
}

const NOBODY: Protocol = Protocol { rules: Rules::ALL, roles: &[], newcomers: 0, landed: 0, pauses: 1, unanswered: 0, deaths: 0 };
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

const WRITERS: Protocol = Protocol { roles: &[LEFT, RIGHT], deaths: 1, ..NOBODY };
const WRITERS_UNANSWERED: Protocol = Protocol { roles: &[LEFT, RIGHT], unanswered: 1, ..NOBODY };
const WRITERS_AND_VACUUM: Protocol = Protocol { roles: &[LEFT, RIGHT, VACUUM], ..NOBODY };
const WRITER_AND_VACUUM: Protocol = Protocol { roles: &[WRITER, VACUUM], pauses: 2, unanswered: 1, deaths: 1, ..NOBODY };
const COMPACTORS_AND_VACUUM: Protocol = Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM], landed: 3, unanswered: 1, ..NOBODY };
const COMPACTORS_AND_WRITER: Protocol = Protocol { roles: &[COMPACTOR, COMPACTOR, LAST], landed: 2, unanswered: 1, ..NOBODY };
const CLEAN_UP: Protocol = Protocol { roles: &[WRITER, OTHERS, KEEPER], unanswered: 1, ..NOBODY };
const CLEAN_UP_OF_BOTH: Protocol = Protocol { roles: &[WRITER, OTHERS, BOTH_KEEPER], ..NOBODY };
const CLEAN_UP_TWICE: Protocol = Protocol { roles: &[WRITER, OTHERS, KEEPER, KEEPER], newcomers: 1, ..NOBODY };
const CLEAN_UP_AND_TWO_WRITERS: Protocol = Protocol { roles: &[WRITER, WRITER, OTHERS, KEEPER], ..NOBODY };
const CLEAN_UP_AND_NEWCOMER: Protocol = Protocol { roles: &[OTHERS, KEEPER, WRITER, WRITER], newcomers: 1, ..NOBODY };
const CLEAN_UP_AND_COMPACTORS: Protocol =
    Protocol { roles: &[Role::Others(2, 3), TABLE_KEEPER, COMPACTOR, COMPACTOR], newcomers: 2, landed: 2, ..NOBODY };
const CLEAN_UP_AND_VACUUM: Protocol = Protocol { roles: &[WRITER, OTHERS, VACUUM, TABLE_KEEPER], ..NOBODY };

/// Explores all that can happen. If something can that must not: which invariants it breaks, and the fewest steps to it.
fn explore(protocol: &Protocol) -> Option<(Vec<&'static str>, String)> {
    let checker = protocol.clone().checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let Some(path) = checker.discovery(ALL) else {
        assert!(checker.discovery(THROUGH).is_some(), "no run of {:?} comes to its end", protocol.roles);
        return None;
    };
    let broken = INVARIANTS.iter().filter(|(_, holds)| !holds(protocol, path.last_state())).map(|(name, _)| *name).collect();
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

/// Whether every run comes to an end, whoever is served and whoever waits: no way leads back to a state that it went through.
fn ends(protocol: &Protocol) -> bool {
    let mut is_open = HashMap::new();
    let mut way: Vec<_> = protocol.init_states().into_iter().map(|state| (protocol.next_states(&state), state)).collect();
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
fn logs_are_cleaned_up_under_writers() {
    holds(&Protocol { pauses: 2, ..CLEAN_UP });
    holds(&CLEAN_UP_OF_BOTH);
}

#[test]
fn logs_are_cleaned_up_twice() {
    holds(&CLEAN_UP_TWICE);
}

#[test]
fn logs_are_cleaned_up_under_two_writers() {
    holds(&CLEAN_UP_AND_TWO_WRITERS);
}

#[test]
fn logs_are_cleaned_up_under_compactors() {
    holds(&CLEAN_UP_AND_COMPACTORS);
}

#[test]
fn logs_are_cleaned_up_under_a_vacuum() {
    holds(&CLEAN_UP_AND_VACUUM);
}

#[test]
#[ignore = "takes many minutes, and gigabytes"]
fn wider_bounds() {
    holds(&Protocol { unanswered: 1, ..WRITERS });
    holds(&Protocol { pauses: 2, ..CLEAN_UP_AND_NEWCOMER });
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM, LAST], ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM, VACUUM], pauses: 2, ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, VACUUM, TABLE_KEEPER], ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { roles: &[COMPACTOR, COMPACTOR, Role::Others(3, 3), TABLE_KEEPER], pauses: 2, ..COMPACTORS_AND_VACUUM });
    holds(&Protocol { roles: &[WRITER, OTHERS, VACUUM, BOTH_KEEPER], ..NOBODY });
    holds(&Protocol { roles: &[WRITER, OTHERS, BOTH_KEEPER, BOTH_KEEPER], ..NOBODY });
}

/// With the invariant that who is through has landed everything: a writer that is served lands, whatever the others do.
#[test]
fn every_run_comes_to_an_end() {
    for protocol in [WRITERS, WRITERS_UNANSWERED, COMPACTORS_AND_VACUUM, CLEAN_UP_OF_BOTH] {
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
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.lists_then_fences = false);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.lists_then_fences = false);
}

#[test]
fn without_projecting_first_a_vacuum_takes_what_has_landed() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.projects_before_deleting = false);
}

#[test]
fn without_asking_their_age_files_are_committed_that_a_vacuum_took() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.writers_ask_age = false);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.compactors_ask_age = false);
}

#[test]
fn who_removes_its_own_files_removes_what_an_unanswered_put_named() {
    breaks(FILES, WRITER_AND_VACUUM, |rules| rules.leaves_files = false);
    breaks(FILES, COMPACTORS_AND_VACUUM, |rules| rules.leaves_files = false);
}

#[test]
fn without_asking_for_its_inputs_a_compactor_doubles_rows() {
    breaks(ROWS, COMPACTORS_AND_VACUUM, |rules| rules.compactors_ask_inputs = false);
}

#[test]
fn who_was_away_and_lists_nothing_takes_a_hole_for_the_end() {
    breaks(ACKNOWLEDGED, CLEAN_UP, |rules| rules.when_away = Doubt::None);
    breaks(ACKNOWLEDGED, CLEAN_UP, |rules| rules.cleans_only_old = false);
}

/// Someone who was away as long filled the hole, and the next reader went on over it.
#[test]
fn who_was_away_and_lists_only_what_is_beyond_the_end_takes_a_ghost_for_a_landing() {
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_TWO_WRITERS, |rules| rules.when_away = Doubt::Beyond);
    breaks(FILES, CLEAN_UP_AND_VACUUM, |rules| rules.when_away = Doubt::Beyond);
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_TWO_WRITERS, |rules| rules.forgets = false);
}

#[test]
fn who_begins_to_read_and_lists_only_once_takes_holes_and_ghosts() {
    let newcomer = Protocol { roles: &[OTHERS, KEEPER, WRITER], ..CLEAN_UP_AND_NEWCOMER };
    breaks(ACKNOWLEDGED, newcomer, |rules| rules.when_starting = Doubt::None);
    let only_reaches = |rules: &mut Rules| (rules.when_starting, rules.starts_reach) = (Doubt::None, true);
    breaks(ACKNOWLEDGED, CLEAN_UP_AND_NEWCOMER, only_reaches);
    breaks(ROWS, CLEAN_UP_AND_COMPACTORS, only_reaches);
}

#[test]
fn without_confirming_an_old_put_what_nobody_reads_is_acknowledged() {
    breaks(ACKNOWLEDGED, CLEAN_UP, |rules| rules.confirms = false);
    breaks(ACKNOWLEDGED, Protocol { newcomers: 0, ..CLEAN_UP_TWICE }, |rules| rules.confirms_by_listing = false);
}

#[test]
fn a_checkpoint_beyond_what_is_projected_loses_the_rest() {
    breaks(ACKNOWLEDGED, CLEAN_UP, |rules| rules.projects_before_checkpoint = false);
}

/// Nothing rests on these: they are kept for other reasons.
#[test]
fn rules_that_the_others_make_up_for() {
    let leave_out = |rules: &mut Rules| {
        // An own batch's objects are there, so they are taken for someone else's: they are done with all the same.
        rules.writers_know_their_batch = false;
        // Who finds it gone finds a checkpoint beyond where he began.
        rules.keeps_checkpointed_entry = false;
    };
    for mut protocol in [WRITERS, WRITERS_AND_VACUUM, CLEAN_UP] {
        leave_out(&mut protocol.rules);
        holds(&protocol);
    }
}
