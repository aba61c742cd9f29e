//! Nothing lost, nothing twice, whatever fails and whatever the clocks say: every single operation of a process that goes on
//! afterwards, and pauses of hours and days before every single operation, in which others land and keep the lake up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flarelake::base::Clock;
use flarelake::base::store::Store;
use flarelake::maintain::MaintainError;
use flarelake::table::{Lake, Standing, standing};
use futures::{FutureExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::{ObjectMeta, ObjectStore};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::ledger::{check_tables, expected, land, life, object};
use crate::support::{FaultStore, Faults, Meanwhile, TimedStore, memory_lake, runs};
use crate::upkeep::{check, maintainer, rows};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// The batches that a process lands, one after the other.
const BATCHES: [&[u64]; 3] = [&[0, 1], &[2], &[3, 4]];

/// What a process does where something failed.
#[derive(Debug, Clone, Copy)]
enum GoesOn {
    /// Lands the same again.
    AtOnce,
    /// Meanwhile another process comes and brings the tables up to the ledger.
    AfterOthers,
    /// Lands other batches first.
    WithTheNext,
    /// Lands another batch, and dies.
    WithTheNextAndDies,
}

/// A process that lands batches with one lake and goes on after failures. Whether it came to its end.
async fn land_all(store: Store, inner: &Arc<InMemory>, goes_on: GoesOn) -> bool {
    let mut lake = None;
    for _ in 0..3 {
        if let Ok(opened) = Lake::open(store.clone()).await {
            lake = Some(Arc::new(opened));
            break;
        }
    }
    let lake = lake.expect("only one operation fails");
    let mut todo: Vec<&[u64]> = BATCHES.to_vec();
    for _ in 0..20 {
        if todo.is_empty() {
            return true;
        }
        if land(lake.clone(), todo[0].to_vec()).await.is_ok() {
            todo.remove(0);
            continue;
        }
        match goes_on {
            GoesOn::AtOnce => {}
            GoesOn::AfterOthers => drop(Lake::open(memory_lake(inner.clone())).await.expect("the store is there")),
            GoesOn::WithTheNext => todo.rotate_left(1),
            GoesOn::WithTheNextAndDies => {
                todo.rotate_left(1);
                drop(land(lake.clone(), todo[0].to_vec()).await);
                return false;
            }
        }
    }
    panic!("{} batches never landed", todo.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_goes_on_after_any_failure_loses_and_doubles_nothing() {
    let whole = FaultStore::with(Arc::new(InMemory::new()), Faults::default());
    let unused = Arc::new(InMemory::new());
    assert!(land_all(memory_lake(whole.clone()), &unused, GoesOn::AtOnce).await);
    let operations = whole.operations.load(Ordering::SeqCst);
    assert!(operations > 40, "{operations} operations");
    let ways = [GoesOn::AtOnce, GoesOn::AfterOthers, GoesOn::WithTheNext, GoesOn::WithTheNextAndDies];
    for k in steps(&whole, 60) {
        let none = Faults::default();
        let faults = [Faults { fails_at: k, ..none }, Faults { loses_answer_at: k, ..none }, Faults { late_at: (k, 2 + k % 7), ..none }];
        for (n, faults) in faults.into_iter().enumerate() {
            // Each way for each operation in the long form.
            let most = if runs(1) > 1 { ways.len() } else { 1 };
            for goes_on in ways.into_iter().cycle().skip(k as usize + n).take(most) {
                let context = format!("operation {k} of {operations}, {faults:?}, {goes_on:?}");
                let inner = Arc::new(InMemory::new());
                land_all(memory_lake(FaultStore::with(inner.clone(), faults)), &inner, goes_on).await;
                life(memory_lake(inner.clone()), (0..5).collect(), k).await.unwrap_or_else(|e| panic!("{context}: {e}"));
                let all = (0..5).map(object).map(|(object, bytes)| (object.id, bytes));
                check_tables(&inner, &expected(all), &context).await;
            }
        }
    }
}

/// A world with one time, which is the store's and everyone's but for one process.
struct World {
    inner: Arc<InMemory>,
    time: Clock,
    store: Arc<TimedStore>,
}

impl World {
    /// With some objects landed.
    async fn new() -> Self {
        let (inner, time) = (Arc::new(InMemory::new()), Clock::movable());
        let store = TimedStore::new(inner.clone(), time.clone());
        let world = Self { inner, time, store };
        for n in 20..24 {
            life(world.lake(), vec![n], n).await.expect("lands");
        }
        world
    }

    fn lake(&self) -> Store {
        Store { clock: self.time.clone(), ..memory_lake(self.store.clone()) }
    }

    /// The lake for one whose clocks stand still.
    fn paused(&self, objects: Arc<dyn ObjectStore>) -> Store {
        let clock = Clock::movable();
        clock.stop();
        Store { clock, ..memory_lake(objects) }
    }

    /// Time passes, others land, and the lake is kept up by one that lives.
    fn goes_by(&self, pause: Duration) -> Meanwhile {
        let (time, lake) = (self.time.clone(), self.lake());
        Arc::new(move || {
            let (time, lake) = (time.clone(), lake.clone());
            async move {
                for n in [24, 25] {
                    time.pass(pause / 2);
                    life(lake.clone(), vec![n], n).await.expect("others land");
                    let kept = maintainer(lake.clone(), Default::default()).await.expect("a lake").once().await;
                    kept.expect("others keep the lake up");
                }
            }
            .boxed()
        })
    }

    /// After ten more days of upkeep each row is there once, and every file that is named.
    async fn check(&self, objects: impl IntoIterator<Item = u64>, context: &str) {
        for _ in 0..2 {
            self.time.pass(5 * DAY);
            let upkeep = maintainer(self.lake(), Default::default()).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            upkeep.once().await.unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        check(&self.inner, &rows(&objects.into_iter().collect()), context).await;
    }
}

/// The operations at which something happens: all of them in the long form, else some, of which every other puts something.
fn steps(whole: &FaultStore, some: usize) -> Vec<u64> {
    // One that a failed run has printed.
    if let Some(step) = std::env::var("FLARE_TEST_STEP").ok().and_then(|step| step.parse().ok()) {
        return vec![step];
    }
    let operations = whole.operations.load(Ordering::SeqCst);
    if runs(1) > 1 {
        return (1..=operations).collect();
    }
    let (mut random, puts) = (SmallRng::seed_from_u64(operations), whole.puts.lock());
    (0..some).map(|n| if n % 2 == 0 { puts[random.random_range(0..puts.len())] } else { random.random_range(1..=operations) }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_is_paused_anywhere_for_hours_or_days_lands_everything_once() {
    for pause in [2 * HOUR, 25 * HOUR, 20 * DAY] {
        let world = World::new().await;
        let whole = FaultStore::with(world.store.clone(), Faults::default());
        assert!(land_all(world.paused(whole.clone()), &world.inner, GoesOn::AtOnce).await);
        for k in steps(&whole, 6) {
            let context = format!("paused for {pause:?} before operation {k}");
            let world = World::new().await;
            let store = FaultStore::meanwhile(world.store.clone(), k, world.goes_by(pause));
            assert!(land_all(world.paused(store), &world.inner, GoesOn::AtOnce).await, "{context}");
            world.check((0..5).chain(20..26), &context).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_maintainer_that_is_paused_anywhere_for_hours_or_days_does_no_harm() {
    for pause in [2 * HOUR, 25 * HOUR, 20 * DAY] {
        let world = World::new().await;
        let whole = FaultStore::with(world.store.clone(), Faults::default());
        keep_up(world.paused(whole.clone())).await.expect("upkeep");
        for k in steps(&whole, 6) {
            let context = format!("paused for {pause:?} before operation {k}");
            let world = World::new().await;
            let store = FaultStore::meanwhile(world.store.clone(), k, world.goes_by(pause));
            // That it gives up is as it should be.
            drop(keep_up(world.paused(store)).await);
            world.check(20..26, &context).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_maintainer_that_goes_on_after_any_failure_does_no_harm() {
    let world = World::new().await;
    let whole = FaultStore::with(world.store.clone(), Faults::default());
    keep_up(memory_lake(whole.clone())).await.expect("upkeep");
    let none = Faults::default();
    for k in steps(&whole, 8) {
        for faults in [Faults { fails_at: k, ..none }, Faults { loses_answer_at: k, ..none }, Faults { late_at: (k, 2 + k % 7), ..none }] {
            let context = format!("{faults:?}");
            let world = World::new().await;
            let store = FaultStore::with(world.store.clone(), faults);
            let opened = maintainer(memory_lake(store.clone()), Default::default()).await;
            let upkeep = match opened {
                Ok(upkeep) => upkeep,
                Err(_) => maintainer(memory_lake(store), Default::default()).await.unwrap_or_else(|e| panic!("{context}: {e}")),
            };
            for _ in 0..3 {
                drop(upkeep.once().await);
                land(upkeep.lake.clone().expect("a lake"), vec![0, 1]).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            world.check((0..2).chain(20..24), &context).await;
        }
    }
}

async fn keep_up(store: Store) -> Result<(), MaintainError> {
    maintainer(store, Default::default()).await?.once().await.map(|_| ())
}

async fn listing(store: &dyn ObjectStore) -> BTreeSet<String> {
    let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.expect("a listing");
    listed.into_iter().map(|meta| meta.location.to_string()).filter(|path| !path.contains("/_lease/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_with_a_clock_that_is_not_the_stores_says_so_and_does_nothing() {
    let world = World::new().await;
    // A writer has uploaded, and not yet committed.
    let whole = FaultStore::with(world.store.clone(), Faults { dies_at: 38, ..Faults::default() });
    drop(life(memory_lake(whole), vec![0, 1], 1).await);
    let before = listing(&world.store).await;
    for hours in [-9000, -25, -1, 1, 25, 9000] {
        let clock = Clock::movable();
        clock.step(hours * HOUR.as_micros() as i64);
        let wrong = Store { clock, ..memory_lake(world.store.clone()) };
        let refused = keep_up(wrong).await.expect_err("the clock is wrong");
        assert!(matches!(refused, MaintainError::Clock { .. }), "{refused}");
        assert!(refused.to_string().contains("set this machine's clock"), "{refused}");
        assert_eq!(listing(&world.store).await, before, "{hours} hours");
    }
    // Minutes are no matter.
    let clock = Clock::movable();
    clock.step(300 * 1_000_000);
    keep_up(Store { clock, ..memory_lake(world.store.clone()) }).await.expect("upkeep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_whose_clock_steps_lands_everything_once() {
    for hours in [-9000, -25, 25, 9000_i64] {
        let world = World::new().await;
        let clock = Clock::movable();
        let lake = Arc::new(Lake::open(Store { clock: clock.clone(), ..world.lake() }).await.expect("opens"));
        for batch in BATCHES {
            clock.step(hours * HOUR.as_micros() as i64);
            land(lake.clone(), batch.to_vec()).await.expect("lands");
            keep_up(world.lake()).await.expect("upkeep");
        }
        world.check((0..5).chain(20..24), &format!("steps of {hours} hours")).await;
    }
}

#[test]
fn a_reading_counts_while_nothing_beyond_it_can_have_been_cleaned_up() {
    use flarelake::table::{LogFile, LogFileKind};
    const HOUR: i64 = 3_600_000;
    let file = |version: u64, kind, written_ms| LogFile { version, kind, written_ms, location: format!("{version}").into() };
    let entry = |version, hours: i64| file(version, LogFileKind::Entry, hours * HOUR);
    let checkpoint = |version, hours: i64| file(version, LogFileKind::Checkpoint, hours * HOUR);
    let at_4 = |files: &[LogFile]| standing(Some(4), Some(100 * HOUR), files);
    // Nothing but what came after it.
    assert_eq!(at_4(&[entry(4, 100), entry(5, 101)]), Standing::Sure);
    assert_eq!(at_4(&[entry(4, 100), entry(5, 900)]), Standing::Sure);
    // A checkpoint beyond: what is below it goes when it is a day old.
    assert_eq!(at_4(&[entry(4, 100), entry(5, 101), checkpoint(5, 102), entry(6, 110)]), Standing::Sure);
    assert_eq!(at_4(&[entry(4, 100), entry(5, 101), checkpoint(5, 102), entry(6, 125)]), Standing::Outrun);
    // Entry 5 was cleaned up and put anew: a ghost.
    assert_eq!(at_4(&[entry(5, 130), checkpoint(7, 103), entry(7, 102)]), Standing::Outrun);
    // It was cleaned up itself, or put anew.
    assert_eq!(at_4(&[entry(7, 102), checkpoint(7, 103)]), Standing::Outrun);
    assert_eq!(at_4(&[entry(4, 130), entry(5, 131), checkpoint(7, 103), entry(7, 102)]), Standing::Outrun);
    // The log was removed, or restored to what was before.
    assert_eq!(at_4(&[]), Standing::Gone);
    assert_eq!(at_4(&[entry(5, 101)]), Standing::Gone);
    assert_eq!(standing(Some(4), None, &[entry(5, 101)]), Standing::Gone);
    // Of whose time nothing is known any checkpoint beyond is a doubt.
    assert_eq!(standing(Some(4), None, &[entry(4, 100), entry(5, 101)]), Standing::Sure);
    assert_eq!(standing(Some(4), None, &[entry(4, 100), entry(5, 101), checkpoint(5, 101)]), Standing::Outrun);
    assert_eq!(standing(None, None, &[entry(0, 100)]), Standing::Sure);
    assert_eq!(standing(None, None, &[entry(0, 100), checkpoint(0, 100)]), Standing::Outrun);
}
