//! Delta tables: the ledger, whose log is the one truth about what has landed, and the data tables, which are
//! projections of it. deltalake is used as a log library and stays behind this door; what decides
//! correctness, the commit loop, is here.
//!
//! ```text
//!  land:     read the ledger's log → is an object there already? → put version v+1 if absent → landed
//!  project:  read a table's log → which ledger versions has it not got? → put their adds, with the new txn
//!  upkeep:   read a table's log → are the inputs still there? → put removes and adds, the txn stays
//! ```

mod commit;
mod listing;
mod spec;
mod log;
mod snapshot;
mod fence;
mod ledger;
mod projection;
mod lake;
mod upkeep;
mod repair;

pub use commit::{Change, DataFile, Landing};
pub use lake::{Begun, Lake, LandOutcome};
pub use listing::{LEAST_LOG, LogFile, LogFileKind, Standing, removable_below, standing};
pub use log::{TOMBSTONE_DAYS, TableError};
pub use repair::{Findings, Repair};
pub use snapshot::{Snapshot, TimeBounds, file_location, open_tables};
pub use spec::{FAILURES_TABLE, LEDGER_TABLE, TableSpec, failures_spec, ledger_spec, log_type_spec};
pub use upkeep::{Replaced, Upkeep};
