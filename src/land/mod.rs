//! Decoded records to landed rows.
//!
//! ```text
//! decoder → worker → batch: files, uploads → lake
//! ```

pub mod ledger_rows;
pub mod upload;
pub mod batch;
pub mod worker;
