//! `flarelake tables`: what is there, how much, and how fresh.

use clap::Args;

use super::answer::{Form, open, print_to_stdout};
use super::{End, Settings};
use crate::query::TABLES;

/// How to show it.
#[derive(Debug, Args)]
pub struct TablesArguments {
    #[command(flatten)]
    form: Form,
}

pub async fn run(arguments: TablesArguments, settings: Settings) -> anyhow::Result<End> {
    print_to_stdout(&open(&settings).await?, TABLES, &[], arguments.form).await?;
    Ok(End::Done)
}
