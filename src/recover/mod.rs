//! Getting back what was lost on the way: what a bucket holds and the lake does not, and what Cloudflare never pushed.
//!
//! ```text
//! listing ─┬─ the ledger's rows → what never arrived, or has changed since → backfill
//!          └─ time ranges in the names → gaps
//! ```

mod gaps;
mod reconcile;

pub use gaps::{Gap, Streams, is_dated};
pub use reconcile::{Absent, Comparison, Reconciled, State, Tally, Window, reconcile};
