//! The ids of what has landed, of which the older ones lie in a file: asked against a plain set.

use std::collections::HashSet;

use flarelake::table::{Gathering, Ids};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// More than are held in memory: several runs, and some left over.
const MANY: usize = 1_200_000;

fn random(seed: u64, count: usize) -> Vec<u128> {
    let mut random = SmallRng::seed_from_u64(seed);
    (0..count).map(|_| random.random()).collect()
}

fn check(ids: &Ids, oracle: &HashSet<u128>, seed: u64) {
    assert_eq!(ids.len(), oracle.len(), "seed {seed}");
    assert!(oracle.iter().all(|id| ids.contains(*id)), "seed {seed}");
    // Strangers, and neighbours that only the last bits tell from one that is there.
    let strangers = random(seed + 1, 100_000).into_iter().chain(oracle.iter().take(100_000).map(|id| id ^ 1));
    for id in strangers.chain([0, u128::MAX]) {
        assert_eq!(ids.contains(id), oracle.contains(&id), "seed {seed}, id {id:032x}");
    }
}

#[test]
fn ids_that_lie_in_a_file_are_told_exactly() {
    let seed = 2026;
    let mut all = random(seed, MANY);
    // The ends of the range, and some that come twice, near and far from one another.
    all.extend([0, u128::MAX]);
    let again: Vec<u128> = all.iter().copied().step_by(1000).chain([all[MANY - 1]]).collect();
    all.extend(&again);
    let mut gathering = Gathering::default();
    all.iter().for_each(|id| gathering.push(*id));
    let (mut ids, repeated) = gathering.finish();
    let mut oracle: HashSet<u128> = all.iter().copied().collect();
    assert_eq!(repeated, again.len());
    // The oracle's own ends are there: they are no strangers.
    check(&ids, &oracle, seed);
    // What lands later is held beside it, until that is too much too.
    for id in random(seed + 10, 600_000).into_iter().chain(all.iter().copied().take(1000)) {
        ids.insert(id);
        oracle.insert(id);
    }
    check(&ids, &oracle, seed);
    let (others, _) = {
        let mut gathering = Gathering::default();
        let others = random(seed + 20, 700_000);
        others.iter().chain(all.iter().take(50_000)).for_each(|id| gathering.push(*id));
        oracle.extend(others);
        gathering.finish()
    };
    let beyond = others.beyond(&ids);
    assert_eq!(beyond.len(), 700_000);
    assert!(beyond.iter().all(|id| !ids.contains(*id) && others.contains(*id)));
    ids.extend(others);
    check(&ids, &oracle, seed);
}

#[test]
fn few_ids_are_told_exactly() {
    for count in [0, 1, 2, 1000] {
        let all = random(7, count);
        let mut gathering = Gathering::default();
        all.iter().chain(all.first()).for_each(|id| gathering.push(*id));
        let (mut ids, repeated) = gathering.finish();
        assert_eq!(repeated, count.min(1));
        check(&ids, &all.iter().copied().collect(), 7);
        ids.extend(Ids::default());
        let mut empty = Ids::default();
        empty.extend(ids);
        check(&empty, &all.into_iter().collect(), 7);
    }
}

/// Minutes without optimisation: `cargo test --release -p flarelake-pure -- --ignored --nocapture ten_million`
/// tells the time and the memory.
#[test]
#[ignore = "for a bench"]
fn ten_million_ids_take_two_bytes_of_memory_each() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
        let kb = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
        };
        (kb("VmRSS:"), kb("VmHWM:"))
    };
    let (before, began) = (resident(), std::time::Instant::now());
    let mut random = SmallRng::seed_from_u64(1);
    let mut gathering = Gathering::default();
    (0..10_000_000).for_each(|_| gathering.push(random.random()));
    let (ids, repeated) = gathering.finish();
    let (gathered, after) = (began.elapsed(), resident());
    let asked = std::time::Instant::now();
    let strangers = (0..1_000_000).filter(|_| ids.contains(random.random())).count();
    println!("{gathered:.2?} to gather, {:.2?} for a million questions", asked.elapsed());
    println!("MiB resident, peak: before {before:?}, after {after:?}");
    assert_eq!((ids.len(), repeated, strangers), (10_000_000, 0, 0));
    assert!(after.1 - before.0 < 64, "{after:?} MiB, {before:?} before");
}
