//! Every integration test in one binary: linking DataFusion is the slow part.

mod acks;
mod cli;
mod config;
mod golden;
mod laws;
mod layout;
mod ingest;
mod ledger;
mod moto;
mod queues;
mod notices;
mod oracle;
mod processes;
mod queries;
mod schemas;
mod search;
mod service;
mod support;
mod torture;
mod wire;
