//! Nothing lost, nothing twice, whatever fails and whatever the clocks say: every single operation of a
//! process that goes on afterwards, and pauses of hours and days before every single operation, in which
//! others land and keep the lake up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flarelake::base::Clock;
use flarelake::base::store::Store;
use flarelake::config::Partitioning;
use flarelake::decode::decoder::{Counts, Decoder};
use flarelake::decode::object::{Object, ObjectContext};
use flarelake::decode::split::Place;
use flarelake::land::batch::{Batch, Flushed, Tables};
use flarelake::maintain::MaintainError;
use flarelake::schema::Catalog;
use flarelake::table::{Change, DataFile, Lake, Replaced, Standing, Upkeep, standing};
use futures::{FutureExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use crate::decoding::{LIMITS, WRITTEN, context, runs};
use crate::ledger::{check_tables, expected, land, life, object};
use crate::support::{FaultStore, Faults, Meanwhile, TimedStore, memory_lake};
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
            GoesOn::AfterOthers => {
                drop(Lake::open(memory_lake(inner.clone())).await.expect("the store is there"))
            }
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
        let faults = [
            Faults { fails_at: k, ..none },
            Faults { loses_answer_at: k, ..none },
            Faults { late_at: (k, 2 + k % 7), ..none },
        ];
        for (n, faults) in faults.into_iter().enumerate() {
            // Each way for each operation in the long form.
            let most = if runs(1) > 1 { ways.len() } else { 1 };
            for goes_on in ways.into_iter().cycle().skip(k as usize + n).take(most) {
                let context = format!("operation {k} of {operations}, {faults:?}, {goes_on:?}");
                let inner = Arc::new(InMemory::new());
                land_all(memory_lake(FaultStore::with(inner.clone(), faults)), &inner, goes_on).await;
                life(memory_lake(inner.clone()), (0..5).collect(), k)
                    .await
                    .unwrap_or_else(|e| panic!("{context}: {e}"));
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
    /// Held while it goes by; true when it has.
    going_by: Arc<Mutex<bool>>,
}

impl World {
    /// With some objects landed.
    async fn new() -> Self {
        let (inner, time) = (Arc::new(InMemory::new()), Clock::movable());
        let store = TimedStore::new(inner.clone(), time.clone());
        let world = Self { inner, time, store, going_by: Arc::default() };
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
        let (time, lake, going_by) = (self.time.clone(), self.lake(), self.going_by.clone());
        Arc::new(move || {
            let (time, lake) = (time.clone(), lake.clone());
            let going_by = going_by.clone().try_lock_owned().expect("it goes by once");
            async move {
                let mut going_by = going_by;
                for n in [24, 25] {
                    time.pass(pause / 2);
                    life(lake.clone(), vec![n], n).await.expect("others land");
                    let kept =
                        maintainer(lake.clone(), Default::default()).await.expect("a lake").once().await;
                    kept.expect("others keep the lake up");
                }
                *going_by = true;
            }
            .boxed()
        })
    }

    /// Lets it go by if it has not: a run may have had fewer operations than the one before it.
    async fn has_gone_by(&self, goes_by: &Meanwhile) {
        let has_gone_by = *self.going_by.lock().await;
        if !has_gone_by {
            goes_by().await;
        }
    }

    /// After ten more days of upkeep each row is there once, and every file that is named.
    async fn check(&self, objects: impl IntoIterator<Item = u64>, context: &str) {
        for _ in 0..2 {
            self.time.pass(5 * DAY);
            let upkeep = maintainer(self.lake(), Default::default())
                .await
                .unwrap_or_else(|e| panic!("{context}: {e}"));
            upkeep.once().await.unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        check(&self.inner, &rows(&objects.into_iter().collect()), context).await;
    }
}

/// The operations at which something happens: all of them in the long form, else some, of which every other
/// puts something.
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
    (0..some)
        .map(|n| {
            if n % 2 == 0 {
                puts[random.random_range(0..puts.len())]
            } else {
                random.random_range(1..=operations)
            }
        })
        .collect()
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
            let goes_by = world.goes_by(pause);
            let store = FaultStore::meanwhile(world.store.clone(), k, goes_by.clone());
            assert!(land_all(world.paused(store), &world.inner, GoesOn::AtOnce).await, "{context}");
            world.has_gone_by(&goes_by).await;
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
            let goes_by = world.goes_by(pause);
            let store = FaultStore::meanwhile(world.store.clone(), k, goes_by.clone());
            // That it gives up is as it should be.
            drop(keep_up(world.paused(store)).await);
            world.has_gone_by(&goes_by).await;
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
        for faults in [
            Faults { fails_at: k, ..none },
            Faults { loses_answer_at: k, ..none },
            Faults { late_at: (k, 2 + k % 7), ..none },
        ] {
            let context = format!("{faults:?}");
            let world = World::new().await;
            let store = FaultStore::with(world.store.clone(), faults);
            let opened = maintainer(memory_lake(store.clone()), Default::default()).await;
            let upkeep = match opened {
                Ok(upkeep) => upkeep,
                Err(_) => maintainer(memory_lake(store), Default::default())
                    .await
                    .unwrap_or_else(|e| panic!("{context}: {e}")),
            };
            for _ in 0..3 {
                drop(upkeep.once().await);
                land(upkeep.lake.clone().expect("a lake"), vec![0, 1])
                    .await
                    .unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            world.check((0..2).chain(20..24), &context).await;
        }
    }
}

/// A merge whose process stood still between writing its files and naming them: others may take these for a
/// dead writer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_stood_still_for_over_an_hour_before_a_fence_is_given_up() {
    let name = "cloudflare_httprequest";
    for (minutes, told) in
        [(0, Replaced::Done), (59, Replaced::Done), (61, Replaced::Stale), (600, Replaced::Stale)]
    {
        let world = World::new().await;
        // Its own clocks tell it nothing.
        let store = world.paused(world.store.clone());
        let mut merge = Upkeep::open(&store, name).await.expect("a store").expect("a table");
        let before = merge.snapshot().files().expect("files").remove(0);
        let mut after = before.clone();
        after.path = before.path.replace(".parquet", "-merged.parquet");
        let bytes = store
            .objects
            .get(&before.location(&store, name))
            .await
            .expect("there")
            .bytes()
            .await
            .expect("bytes");
        store.objects.put(&after.location(&store, name), bytes.into()).await.expect("written");
        world.time.pass(Duration::from_secs(60 * minutes));
        let mut vacuum = Upkeep::open(&world.lake(), name).await.expect("a store").expect("a table");
        vacuum.fence(0).await.expect("a fence");
        let change = Change::Compact { target: 1 << 20 };
        let replaced = merge
            .replace(change, std::slice::from_ref(&before), std::slice::from_ref(&after), 0)
            .await
            .expect("a store");
        assert_eq!(replaced, told, "after {minutes} minutes");
        let table = Upkeep::open(&store, name).await.expect("a store").expect("a table");
        let named: Vec<String> =
            table.snapshot().files().expect("files").into_iter().map(|file| file.path).collect();
        let done = told == Replaced::Done;
        assert_eq!(
            (named.contains(&before.path), named.contains(&after.path)),
            (!done, done),
            "after {minutes} minutes"
        );
        world.check(20..24, &format!("after {minutes} minutes")).await;
    }
    // Files that are gone are never named, however young the fence says that they are.
    let world = World::new().await;
    let mut merge = Upkeep::open(&world.lake(), name).await.expect("a store").expect("a table");
    let before = merge.snapshot().files().expect("files").remove(0);
    let after = DataFile { path: before.path.replace(".parquet", "-merged.parquet"), ..before.clone() };
    let mut vacuum = Upkeep::open(&world.lake(), name).await.expect("a store").expect("a table");
    vacuum.fence(0).await.expect("a fence");
    let replaced =
        merge.replace(Change::Compact { target: 1 << 20 }, &[before], &[after], 0).await.expect("a store");
    assert_eq!(replaced, Replaced::Stale);
}

/// A batch, and what decodes for it, off the runtime's threads.
struct Batching {
    batch: Batch,
    decoder: Decoder,
}

impl Batching {
    fn new(lake: Arc<Lake>) -> Self {
        let catalog = Catalog::embedded();
        let tables = Arc::new(Tables::new(&catalog, Partitioning::Day));
        Self {
            batch: Batch::new(Some(lake), tables, Handle::current()),
            decoder: Decoder::new(&catalog, LIMITS),
        }
    }

    /// An object's rows are added; what closes it.
    fn add(&mut self, n: u64) -> (Object, Counts) {
        let (object, bytes) = object(n);
        self.decoder.begin(ObjectContext { id: object.id, ..context(None) }, Place::START);
        self.decoder.decode(&bytes, 0, true);
        let decoded = self.decoder.take();
        self.batch.add(&object, decoded, WRITTEN);
        (object, self.decoder.counts())
    }
}

/// While a batch waits, files that it wrote early are vacuumed, and its process reads of it.
async fn away(world: &World, lake: &Arc<Lake>) {
    world.goes_by(25 * HOUR)().await;
    land(lake.clone(), vec![30]).await.expect("lands");
}

/// Runs `first`, lets a day go by, runs `then`; what became of the batch.
async fn batch_over_a_day(
    world: &World,
    first: impl FnOnce(&mut Batching) + Send + 'static,
    then: impl FnOnce(&mut Batching) + Send + 'static,
) -> Flushed {
    let lake = Arc::new(Lake::open(world.lake()).await.expect("opens"));
    let mut batching = Batching::new(lake.clone());
    let begun = move || {
        first(&mut batching);
        batching
    };
    let mut batching = tokio::task::spawn_blocking(begun).await.expect("no panic");
    away(world, &lake).await;
    let ended = move || {
        then(&mut batching);
        batching.batch.flush().expect("a store")
    };
    tokio::task::spawn_blocking(ended).await.expect("no panic")
}

/// A batch begins with the first file that it wrote and still means to land: all fences since then concern
/// it, and no earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_is_as_old_as_the_oldest_file_that_it_lands() {
    let close = |batching: &mut Batching, n: u64| {
        let (object, counts) = batching.add(n);
        batching.batch.close(object, counts);
    };
    let spilled = |batching: &mut Batching, n: u64| {
        let (object, counts) = batching.add(n);
        batching.batch.spill().expect("a store");
        (object, counts)
    };
    let ids = |numbers: &[u64]| numbers.iter().map(|n| object(*n).0.id).collect::<Vec<_>>();
    let others = (20..26).chain([30]);

    // One object's files are in it, and the next object can't be read: the files are as old as they are.
    let world = World::new().await;
    let first = move |batching: &mut Batching| {
        let (object, counts) = spilled(batching, 0);
        batching.batch.close(object, counts);
        spilled(batching, 1);
    };
    let flushed = batch_over_a_day(&world, first, |batching| batching.batch.abandon_open()).await;
    assert_eq!((flushed.stale, flushed.landed.len()), (ids(&[0]), 0));
    world.check(others.clone(), "the next object was abandoned").await;

    // Others of the batch landed while an object was at hand of which files were written: that object is as
    // old as before.
    let world = World::new().await;
    let at_hand = Arc::new(parking_lot::Mutex::new(None));
    let kept = at_hand.clone();
    let first = move |batching: &mut Batching| {
        close(batching, 0);
        *kept.lock() = Some(spilled(batching, 1));
        assert_eq!(batching.batch.flush().expect("a store").landed.len(), 1);
    };
    let then = move |batching: &mut Batching| {
        let (object, counts) = at_hand.lock().take().expect("it is at hand");
        batching.batch.close(object, counts);
    };
    let flushed = batch_over_a_day(&world, first, then).await;
    assert_eq!((flushed.stale, flushed.landed.len()), (ids(&[1]), 0));
    world.check(others.clone().chain([0]), "an object was at hand").await;

    // Nothing of an object that could not be read lands: the batch is as young as what comes after it, and no
    // file is looked after.
    let mut requests = Vec::new();
    for is_abandoned in [false, true] {
        let world = World::new().await;
        let store = FaultStore::with(world.store.clone(), Faults::default());
        let lake = Arc::new(
            Lake::open(Store { clock: world.time.clone(), ..memory_lake(store.clone()) })
                .await
                .expect("opens"),
        );
        let mut batching = Batching::new(lake.clone());
        let begun = move || {
            if is_abandoned {
                spilled(&mut batching, 1);
                batching.batch.abandon_open();
            }
            batching
        };
        let mut batching = tokio::task::spawn_blocking(begun).await.expect("no panic");
        away(&world, &lake).await;
        let before = store.operations.load(Ordering::SeqCst);
        let ended = move || {
            close(&mut batching, 0);
            batching.batch.flush().expect("a store")
        };
        let flushed = tokio::task::spawn_blocking(ended).await.expect("no panic");
        requests.push(store.operations.load(Ordering::SeqCst) - before);
        assert_eq!((flushed.stale.len(), flushed.landed.len()), (0, 1));
        world.check(others.clone().chain([0]), "an object was abandoned").await;
    }
    assert_eq!(requests[0], requests[1]);
}

async fn keep_up(store: Store) -> Result<(), MaintainError> {
    maintainer(store, Default::default()).await?.once().await.map(|_| ())
}

async fn listing(store: &dyn ObjectStore) -> BTreeSet<String> {
    let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.expect("a listing");
    listed
        .into_iter()
        .map(|meta| meta.location.to_string())
        .filter(|path| !path.contains("/_lease/"))
        .collect()
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
    let file = |version: u64, kind, written_ms| LogFile {
        version,
        kind,
        written_ms,
        location: format!("{version}").into(),
    };
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
    assert_eq!(
        standing(Some(4), None, &[entry(4, 100), entry(5, 101), checkpoint(5, 101)]),
        Standing::Outrun
    );
    assert_eq!(standing(None, None, &[entry(0, 100)]), Standing::Sure);
    assert_eq!(standing(None, None, &[entry(0, 100), checkpoint(0, 100)]), Standing::Outrun);
}
