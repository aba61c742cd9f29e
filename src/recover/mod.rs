//! Finds and recovers what was lost: objects that a bucket holds and the lake does not, gaps in what
//! Cloudflare pushed, and records that could not become rows until something was fixed.
//!
//! ```text
//! listing ─┬─ the ledger's rows → what never arrived, or has changed since → backfill
//!          └─ time ranges in the names → gaps
//! rejects ─┬─ their bytes again → rows, landed once → the rejects go
//!          └─ discarded: the rejects go
//! ```

mod rejects;
mod again;
mod gaps;
mod reconcile;
mod replay;
mod discard;
mod repair;

pub use discard::{Discard, Discarded};
pub use gaps::{Gap, Streams, is_dated};
pub use reconcile::{Absent, Comparison, Reconciled, State, Tally, Window, reconcile};
pub use rejects::Chosen;
pub use repair::{Mender, RepairError};
pub use replay::{Replay, ReplayError, Summary};
