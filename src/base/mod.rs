//! Ground that knows nothing of logs: the clock, random ids, AWS access, and the object store.

pub mod clock;
pub mod failure;
pub mod aws;
mod durable;
mod nearest;
pub mod panics;
pub mod printable;
pub mod store;

use std::time::Duration;

pub use clock::{Clock, Watch, micros, micros_since_epoch, now_micros};
pub use nearest::nearest;
use rand::RngExt as _;
pub use uuid::Uuid;

/// A new random id whose order is that of time.
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}

/// A delay of this length and a bit of chance more: so that those who failed together don't try again
/// together.
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(1.0..1.5))
}

/// Whether a text is an id of that kind.
pub fn is_uuid(text: &str) -> bool {
    Uuid::parse_str(text).is_ok()
}
