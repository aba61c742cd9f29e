//! SQL statements, without the lake: the dialects they may be written in, how large they may be, and how much
//! memory their functions may use.

pub mod limits;
pub mod names;
pub mod dialect;
pub mod functions;
pub mod gathering;
pub mod growth;
pub mod unfold;
pub mod rewrite;
pub mod statements;
