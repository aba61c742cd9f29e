//! Where items come from. An intake hands them in at a pipeline's entrance, under numbers that its settle
//! knows; nothing else of the pipeline knows of it.

pub mod listing;
pub mod queue;
pub mod stdin;
