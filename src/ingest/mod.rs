//! The record's journey, from stored bytes to landed rows. Modules stand in the order of travel, and import only
//! what is declared above them.
//!
//! ```text
//! source → inflate → split (json) → decode → batch: partition, file → lake
//!                        └── reject ──────────┘
//! ```

pub mod object;
pub mod reject;
pub mod inflate;
pub mod escape;
pub mod json;
pub mod extent;
pub mod foreign;
pub mod split;
pub mod decode;
pub mod partition;
pub mod lookup;
pub mod columns;
pub mod file;
pub mod keeping;
pub mod bucket;
pub mod queue;
pub mod notice;
pub mod local;
pub mod source;
pub mod stdin;
pub mod batch;
pub mod worker;
pub mod backfill;
pub mod metrics;
pub mod acks;
pub mod panics;
pub mod service;
