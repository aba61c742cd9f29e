//! Where items come from. An intake passes them to a pipeline's entrance, under numbers that its settle
//! knows; the rest of the pipeline does not know the intake.

pub mod listing;
pub mod queue;
pub mod stdin;
