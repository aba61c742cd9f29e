//! flarelake: Cloudflare logs in, a queryable lake out.
//!
//! Modules stand in the order of the journey, and each imports only what is declared above it; a test holds
//! this and the other laws of the code.
//!
//! | module | what it is |
//! |---|---|
//! | [`base`] | clock, random ids, object store |
//! | [`config`] | settings: the only reader of the environment |
//! | [`schema`] | what a log type is |
//! | [`decode`] | bytes to rows and rejects |
//! | [`table`] | Delta tables: the ledger and its projections |
//! | [`format`] | a table's Parquet files, written and read |
//! | [`source`] | where bytes come from: queues, buckets, folders, standard input |
//! | [`land`] | decoded records to landed rows |
//! | [`ingest`] | objects on their way, from every intake |
//! | [`maintain`] | upkeep: compaction, retention, vacuum, on a schedule |
//! | [`sql`] | what a statement says, and what it may take |
//! | [`query`] | SQL over the lake |
//! | [`search`] | one value in every table |
//! | [`recover`] | what was lost on the way, and what Cloudflare never pushed |
//! | [`serve`] | metrics and health over HTTP |
//! | [`generate`] | realistic synthetic logs |
//! | [`cli`] | the command line |
//!
//! What holds, always:
//!
//! * **I1** Every record is a row or a reject with its raw bytes and reason: `rows + rejects + skipped ==
//!   records`.
//! * **I2** An object lands whole or not at all, and once, however often it is given and by however many
//!   writers.
//! * **I3** The same object always gives the same rows, under the same `p_row_id`s.
//! * **I4** A row is in the partition of its `p_event_time`.
//! * **I5** No log names a file that isn't there.

pub mod base;
pub mod config;
pub mod schema;
pub mod decode;
pub mod table;
pub mod format;
pub mod source;
pub mod land;
pub mod ingest;
pub mod maintain;
pub mod sql;
pub mod query;
pub mod search;
pub mod recover;
pub mod serve;
pub mod generate;
pub mod cli;
