//! The clock: the current time, and how long something took.
//!
//! No decision to delete, keep or confirm depends on it: a machine's clock may be wrong by days, jump, or
//! stop while the machine is paused. Such decisions use the times that a store gives to its objects. This
//! clock stamps rows, paces work, and is compared with the store's.
//!
//! All waiting uses the runtime's clock, [`now`] and [`sleep`], which a test can pause and advance. Nothing
//! else in this program asks the system for the time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
pub use tokio::time::Instant;
pub use tokio::time::error::Elapsed;

/// This moment, by the runtime's clock.
#[expect(clippy::disallowed_methods, reason = "the one door to the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// This moment, by the wall clock.
#[expect(clippy::disallowed_methods, reason = "the one door to the wall clock")]
pub fn system_time() -> SystemTime {
    SystemTime::now()
}

/// Waits, by the runtime's clock.
#[expect(clippy::disallowed_methods, reason = "the one door to waiting")]
pub async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

/// What `work` gives, if it ends in time by the runtime's clock.
#[expect(clippy::disallowed_methods, reason = "the one door to waiting")]
pub async fn timeout<F: Future>(time: Duration, work: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(time, work).await
}

/// A machine's clock. A copy is the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// How it was moved; none: the system's, which nobody moves.
    moved: Option<Arc<Mutex<Moved>>>,
}

#[derive(Debug, Default)]
struct Moved {
    /// Microseconds that the wall clock is ahead of the system's.
    wall: i64,
    /// How much longer the monotonic clock says that it runs.
    monotonic: Duration,
    /// What both said when they were stopped.
    stopped: Option<(i64, Instant)>,
}

impl Clock {
    /// The system's.
    pub fn system() -> Self {
        Self::default()
    }

    /// One that can be moved: at first it goes with the system's.
    pub fn movable() -> Self {
        Self { moved: Some(Arc::default()) }
    }

    /// Now, in microseconds since the epoch.
    pub fn now_micros(&self) -> i64 {
        let system = micros_since_epoch(system_time());
        self.moved.as_ref().map_or(system, |moved| {
            let moved = moved.lock();
            moved.stopped.map_or(system, |(wall, _)| wall) + moved.wall
        })
    }

    fn instant(&self) -> Instant {
        let system = now();
        self.moved.as_ref().map_or(system, |moved| {
            let moved = moved.lock();
            moved.stopped.map_or(system, |(_, instant)| instant) + moved.monotonic
        })
    }

    /// A watch that starts now.
    pub fn watch(&self) -> Watch {
        Watch { clock: self.clone(), instant: self.instant(), wall: self.now_micros() }
    }

    /// Sets the wall clock by so many microseconds, as a person or NTP does. The monotonic clock doesn't
    /// notice.
    ///
    /// # Panics
    /// If it is the system's clock.
    pub fn step(&self, micros: i64) {
        self.own().lock().wall += micros;
    }

    /// Lets time pass on both clocks.
    ///
    /// # Panics
    /// If it is the system's clock.
    pub fn pass(&self, time: Duration) {
        let mut moved = self.own().lock();
        moved.wall += time.as_micros() as i64;
        moved.monotonic += time;
    }

    /// Both clocks stand still from now on, as those of a paused machine do.
    ///
    /// # Panics
    /// If it is the system's clock.
    pub fn stop(&self) {
        self.own().lock().stopped = Some((micros_since_epoch(system_time()), now()));
    }

    fn own(&self) -> &Mutex<Moved> {
        self.moved.as_ref().expect("the system's clock is not moved")
    }
}

/// How long it is since the watch was started. Time asleep counts where the system says so: the wall clock is
/// asked too.
#[derive(Debug, Clone)]
pub struct Watch {
    clock: Clock,
    instant: Instant,
    /// In microseconds since the epoch.
    wall: i64,
}

impl Watch {
    /// The longer of what the two clocks say: a suspended machine stops the monotonic one.
    pub fn elapsed(&self) -> Duration {
        let wall = Duration::from_micros((self.clock.now_micros() - self.wall).max(0) as u64);
        self.clock.instant().saturating_duration_since(self.instant).max(wall)
    }
}

/// An hour in microseconds.
pub const HOUR_MICROS: i64 = 3_600_000_000;
/// A day in microseconds.
pub const DAY_MICROS: i64 = 24 * HOUR_MICROS;

/// A length of time in microseconds; what is too long is as long as can be told.
pub fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Now by the system's clock, in microseconds since the epoch.
pub fn now_micros() -> i64 {
    Clock::system().now_micros()
}

/// A time of the file system's in microseconds since the epoch, cut downwards.
pub fn micros_since_epoch(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos().div_ceil(1000)).map_or(i64::MIN, |micros| -micros)
        }
    }
}
