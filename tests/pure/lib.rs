//! The parts of the program that need no lake, no network and no engine, and their tests: decoding, framing,
//! schemas, notices, retries, the ack book, the plan of a compaction and its merge. The files are the program's
//! own, and the tests those of the whole.

#![allow(dead_code, clippy::disallowed_methods)]

extern crate self as flarelake;

#[path = "../../src/base"]
pub mod base {
    pub mod clock;
    pub mod failure;
}

pub mod config {
    pub fn temporary_folder() -> std::path::PathBuf {
        std::env::temp_dir()
    }
}

#[path = "../../src/schema/mod.rs"]
pub mod schema;

#[path = "../../src/decode/mod.rs"]
pub mod decode;

#[path = "../../src/table"]
pub mod table {
    pub mod file;
    mod ids;

    pub use file::DataFile;
    pub use ids::{Gathering, Ids};
}

#[path = "../../src/source"]
pub mod source {
    pub mod notice;
}

#[path = "../../src/ingest"]
pub mod ingest {
    pub mod attempts;
    pub mod identity;

    pub mod settle {
        pub mod book;
    }
}

#[path = "../../src/maintain"]
pub mod maintain {
    pub mod merge;
    pub mod plan;
}

#[cfg(test)]
#[path = "../it/decoding.rs"]
mod decoding;

#[cfg(test)]
#[path = "../it"]
mod tests {
    mod acks;
    mod attempts;
    mod datasets;
    mod golden;
    mod ids;
    mod merging;
    mod notices;
    mod oracle;
    mod planning;
    mod schemas;
}
