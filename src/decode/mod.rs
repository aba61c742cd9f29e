//! Bytes to rows and rejects, without I/O: an object's content is inflated and cut into records, and each
//! record becomes a row of its log type or a reject with its raw bytes and the reason.
//!
//! ```text
//! bytes → inflate → split (json) → decoder: rows, column → Arrow batches, rejects
//! ```

pub mod object;
pub mod reject;
pub mod inflate;
pub mod escape;
pub mod keys;
pub mod json;
pub mod resync;
pub mod foreign;
pub mod split;
pub(crate) mod number;
pub(crate) mod time;
pub mod indicator;
pub(crate) mod column;
pub(crate) mod rows;
pub mod decoder;
