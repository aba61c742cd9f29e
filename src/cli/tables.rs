//! `flarelake tables`: what is there, how much, and how fresh.

use clap::Args;

use super::query::{FormatName, open, print_to_stdout};
use super::{End, Settings};
use crate::query::TABLES;

/// How to show it.
#[derive(Debug, Args)]
pub struct TablesArguments {
    /// The form of the result
    #[arg(long, value_enum, default_value_t = FormatName::Table)]
    format: FormatName,
}

pub async fn run(arguments: TablesArguments, settings: Settings) -> anyhow::Result<End> {
    print_to_stdout(&open(&settings).await?, TABLES, &[], arguments.format).await?;
    Ok(End::Done)
}
