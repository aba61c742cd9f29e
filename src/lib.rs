//! flarelake: Cloudflare logs in, a queryable lake out.
//!
//! Modules are declared in the order in which data flows, and each imports only from those above it; a test
//! enforces this and the other rules of the code.
//!
//! | module | what it is |
//! |---|---|
//! | [`base`] | clock, random ids, object store |
//! | [`config`] | settings: the only reader of the environment |
//! | [`schema`] | log types and their columns |
//! | [`decode`] | bytes to rows and rejects |
//! | [`table`] | Delta tables: the ledger and its projections |
//! | [`format`] | a table's Parquet files: reading and writing |
//! | [`source`] | where bytes come from: queues, buckets, folders, standard input |
//! | [`land`] | decoded records to landed rows |
//! | [`ingest`] | the pipeline that fetches and lands objects |
//! | [`maintain`] | upkeep: compaction, retention, vacuum, on a schedule |
//! | [`sql`] | SQL statements: dialects, names, limits |
//! | [`query`] | SQL over the lake |
//! | [`search`] | one value, looked up in every table |
//! | [`recover`] | finding and restoring what was lost |
//! | [`serve`] | metrics and health over HTTP |
//! | [`generate`] | realistic synthetic logs |
//! | [`cli`] | the command line |
//!
//! Terms, each with one meaning:
//!
//! | word | meaning |
//! |---|---|
//! | log type | one Cloudflare dataset: a schema, and a table |
//! | source | a configured origin of logs: an id, a label, a queue, its buckets |
//! | message | what a queue delivers: it announces objects, or carries records itself |
//! | object | the unit that lands atomically: an S3 object, a file, a message's body, a piece of stdin |
//! | record | one JSON log record; it becomes a row or a reject |
//! | reject | what can't become rows, kept with its bytes and reason in `classification_failures` |
//! | intake | where items enter: a queue, a listing, standard input, a list of rejects |
//! | item | an object in the pipeline, from intake to settle |
//! | settle | receives the outcome of each item: the ack book, a summary |
//! | feed | a source as the pipeline sees it: attribution, buckets, and whether reads succeed |
//! | batch, flush | the decoded objects that a worker holds; writing and landing them together |
//! | landing | one entry of the ledger: objects, and the files that every table gets for them |
//! | ledger | the table `ingested_objects`, whose log is the source of truth for what has landed |
//! | projection | bringing a data table up to a version of the ledger |
//! | entry | one version of a table's log; in the ledger also the id under which an object is recorded |
//! | mark | in a settled ledger version: the version up to which every table has its files |
//! | fence | an empty ledger version that a vacuum commits before it deletes |
//! | bin, merge | files that a compaction plans to merge; merging them |
//! | upkeep | compaction, retention, vacuum, checkpoints |
//! | indicator | a value collected into the `p_any_` lists; the value index of a file finds it |
//! | problem | a current fault of a source, a queue or the lake; it makes `/readyz` fail |
//!
//! Invariants:
//!
//! * **I1** Every record is a row or a reject with its raw bytes and reason:
//!   `rows + rejects + skipped == records`.
//! * **I2** An object lands atomically and once, however often it is submitted and by however many writers.
//! * **I3** The same object always yields the same rows, with the same `p_row_id`s.
//! * **I4** A row is in the partition of its `p_event_time`.
//! * **I5** No log references a file that doesn't exist.

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
