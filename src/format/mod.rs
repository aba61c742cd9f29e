//! A table's files: Parquet that is written and read, with bloom filters and an index of values.

pub mod bloom;
pub mod columns;
pub mod partition;
pub mod value_index;
pub mod write;
pub mod read;
