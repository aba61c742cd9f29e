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
//! The words, each with one meaning:
//!
//! | word | meaning |
//! |---|---|
//! | log type | one Cloudflare dataset: a schema, and a table |
//! | source | a configured origin of logs: an id, a label, a queue, its buckets |
//! | message | what a queue hands out: it announces objects, or carries records itself |
//! | object | what lands whole or not at all: an S3 object, a file, a message's body, a piece of stdin |
//! | record | one JSON log record; it becomes a row or a reject |
//! | reject | what can't become rows, kept with its bytes and reason in `classification_failures` |
//! | intake | what takes items in: a queue, a listing, standard input, a list of rejects |
//! | item | an object on its way through the pipeline, from intake to settle |
//! | settle | who is told what became of each item: the ack book, a summary |
//! | feed | a source as the pipeline sees it: attribution, buckets, and how reading it goes |
//! | batch, flush | the decoded objects that a worker holds; writing and landing them together |
//! | landing | one entry of the ledger: objects, and the files that every table gets for them |
//! | ledger | the table `ingested_objects`, whose log is the one truth about what has landed |
//! | projection | bringing a data table up to a version of the ledger |
//! | entry | one version of a table's log; of the ledger also the id under which an object stands there |
//! | mark | what a settled ledger version tells: up to where every table has its files |
//! | fence | an empty ledger version that a vacuum puts before it deletes |
//! | bin, merge | files that a compaction plans to merge; carrying that out |
//! | upkeep | compaction, retention, vacuum, checkpoints |
//! | indicator | a value collected into the `p_any_` lists; the value index of a file finds it |
//! | problem | what is wrong with a source, a queue or the lake now, as `/readyz` tells it |
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
