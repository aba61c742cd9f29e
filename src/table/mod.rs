//! Delta tables: the ledger, whose log is the one truth about what has landed, and the data tables, which are
//! projections of it. deltalake is used as a log library and stays behind this door; what decides
//! correctness, the commit loop, is here.
//!
//! ```text
//!  land:     read the ledger's log → is an object there already? → put version v+1 if absent → landed
//!  project:  read a table's log → which ledger versions has it not got? → put their adds, with the new txn
//!  upkeep:   read a table's log → are the inputs still there? → put removes and adds, the txn stays
//! ```
//!
//! Log entries and files are cleaned up when they are a day old. Whether that may have happened to what a
//! process has read, put or written is told by the times that the store gives to them, never by the process's
//! own clock, which may be wrong or stand still:
//!
//! * what was read or put counts by a listing that is made afterwards ([`standing`]), and until then nothing
//!   is remembered of it;
//! * who meets a vacuum's fence looks after its files before it puts them into a log (`fence.rs`);
//! * a checkpoint of the ledger tells by its settled mark what is in the tables, whoever wrote it; the rest
//!   is read again.
//!
//! A ledger that does not fit its tables is [`TableError::Damaged`], before anything lands; [`Repair`] fits
//! them together again.

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
