//! Objects on their way to the lake: one pipeline, whatever they come from.
//!
//! ```text
//! intake                         pipeline                     settle
//! queue, listing, stdin  →  fetch → decode and land  →  acknowledge, count
//! ```
//!
//! An intake takes items in, the pipeline fetches, decodes and lands them, with one policy for retries and
//! one budget of bytes, and a settle receives each outcome. A new intake is a file in `intake/`, and its name
//! in `cli/ingest.rs`, where an ingest is put together.

pub mod metrics;
pub mod attempts;
pub mod ending;
pub mod feed;
pub mod room;
pub mod identity;
pub mod item;
pub mod settle;
pub mod pressure;
mod lasting;
mod thread;
mod failures;
mod fetch;
mod work;
pub mod pipeline;
pub mod intake;
pub mod service;
pub mod backfill;
