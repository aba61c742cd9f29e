//! Delta tables: the ledger, whose log is the source of truth about what has landed, and the data tables, its
//! projections. deltalake is used as a log library, and only here; the commit loop, which correctness depends
//! on, is ours.
//!
//! ```text
//!  land:     read the ledger's log → is an object there already? → put version v+1 if absent → landed
//!  project:  read a table's log → which ledger versions has it not got? → put their adds, with the new txn
//!  upkeep:   read a table's log → are the inputs still there? → put removes and adds, the txn stays
//! ```
//!
//! Log entries and files are cleaned up when they are a day old. Whether that may have happened to what a
//! process has read, put or written is decided by the store's timestamps, never by the process's own clock,
//! which may be wrong or stopped:
//!
//! * a read or put counts only if a later listing confirms it ([`standing`]), and is not remembered until
//!   then;
//! * a writer that meets a vacuum's fence checks its files again before it commits them (`fence.rs`);
//! * the settled mark in a checkpoint of the ledger, whoever wrote it, says what is in the tables; the rest
//!   is read again.
//!
//! A ledger that is inconsistent with its tables is [`TableError::Damaged`], before anything lands;
//! [`Repair`] makes them consistent again.

mod file;
mod commit;
mod listing;
mod spec;
mod ids;
mod log;
mod snapshot;
mod fence;
mod ledger;
mod projection;
mod lake;
mod upkeep;
mod repair;

pub use commit::{Change, Landing};
pub use file::{DataFile, TimeBounds};
pub use ids::{Gathering, Ids};
pub use lake::{Begun, Lake, LandOutcome};
pub use listing::{LEAST_LOG, LogFile, LogFileKind, Standing, removable_below, standing};
pub use log::{TOMBSTONE_DAYS, TableError};
pub use repair::{Absent, Findings, Repair};
pub use snapshot::{Snapshot, file_location, open_tables};
pub use spec::{FAILURES_TABLE, LEDGER_TABLE, TableSpec, failures_spec, ledger_spec, log_type_spec};
pub use upkeep::{Replaced, Upkeep};
