//! Where bytes come from: queues and what their messages announce, buckets, folders, standard input.

pub mod queue;
pub mod notice;
pub mod bucket;
pub mod local;
pub mod origin;
pub mod routing;
pub mod stdin;
