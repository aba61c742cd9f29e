//! What a statement says: the dialects that it may be written in, what it may ask for, and what its functions
//! may take. Without the lake.

pub mod limits;
pub mod names;
pub mod dialect;
pub mod functions;
pub mod gathering;
pub mod growth;
pub mod unfold;
pub mod rewrite;
pub mod statements;
