//! Ground that knows nothing of logs: the clock, random ids, AWS access, and the object store.

pub mod aws;
mod durable;
pub mod store;

use std::time::{Duration, Instant, SystemTime};

pub use uuid::Uuid;

/// Now, in microseconds since the epoch. The one place that asks the wall clock.
pub fn now_micros() -> i64 {
    micros_since_epoch(SystemTime::now())
}

/// A time of the file system's in microseconds since the epoch, cut downwards.
pub fn micros_since_epoch(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_micros() as i64,
        Err(before) => -(before.duration().as_nanos().div_ceil(1000) as i64),
    }
}

/// A new random id whose order is that of time.
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}

/// A watch that starts when it is made. Time asleep counts where the system says so: the wall clock is asked too.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    instant: Instant,
    wall: SystemTime,
}

impl Watch {
    /// Starts now.
    pub fn start() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// The longer of what the two clocks say: a suspended machine stops the monotonic one.
    pub fn elapsed(&self) -> Duration {
        self.instant.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}
