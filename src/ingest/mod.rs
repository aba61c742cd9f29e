//! Objects on their way to the lake, from queues, listings and standard input.

pub mod metrics;
pub mod backfill;
pub mod book;
pub mod service;
