//! What becomes of items: messages are acknowledged, or a summary counts.

pub mod book;
pub mod ack;
pub mod leases;
pub mod summary;
