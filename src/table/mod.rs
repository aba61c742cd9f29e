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
mod lake;
mod ledger;
mod log;
mod snapshot;
mod spec;
mod upkeep;

pub use commit::{Change, DataFile, Landing};
pub use lake::{Lake, LandOutcome, MAX_FILE_AGE};
pub use log::{LogFile, LogFileKind, TOMBSTONE_DAYS, TableError};
pub use snapshot::{Snapshot, TimeBounds, file_location, open_tables};
pub use spec::{FAILURES_TABLE, LEDGER_TABLE, TableSpec, failures_spec, ledger_spec, log_type_spec};
pub use upkeep::{Replaced, Upkeep, removable};
