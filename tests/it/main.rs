//! Every integration test in one binary: linking DataFusion is the slow part.

mod acks;
mod buckets;
mod cli;
mod config;
mod golden;
mod laws;
mod layout;
mod ingest;
mod ledger;
mod lookup;
mod moto;
mod queues;
mod notices;
mod oracle;
mod overview;
mod planning;
mod plans;
mod processes;
mod queries;
mod reconcile;
mod schemas;
mod search;
mod service;
mod support;
mod torture;
mod wire;
