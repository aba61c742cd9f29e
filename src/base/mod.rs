//! Ground that knows nothing of logs: the clock, random ids, AWS access, and the object store.

pub mod aws;
pub mod clock;
mod durable;
pub mod panics;
pub mod printable;
pub mod store;

pub use clock::{Clock, Watch, micros_since_epoch, now_micros};
pub use uuid::Uuid;

/// A new random id whose order is that of time.
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}

/// Whether a text is an id of that kind.
pub fn is_uuid(text: &str) -> bool {
    Uuid::parse_str(text).is_ok()
}
