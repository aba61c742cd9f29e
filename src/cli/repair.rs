//! `flarelake repair`: what a lake that was tampered with can still be made into.

use clap::Args;

use super::{End, Settings, output};
use crate::base::store::Store;
use crate::ingest::batch::Tables;
use crate::recover::repair;
use crate::table::Findings;

/// Nothing to choose.
#[derive(Debug, Args)]
pub struct RepairArguments {}

pub async fn run(_: RepairArguments, settings: Settings) -> anyhow::Result<End> {
    let Settings { config, catalog } = &settings;
    let store = Store::open(config.lake()?, &config.reach()).await?;
    let findings = repair(store, &Tables::new(catalog, config.partition)).await?;
    output::say(Report(&findings))?;
    Ok(if findings.lost.is_empty() { End::Done } else { End::Incomplete })
}

struct Report<'a>(&'a Findings);

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Findings { mended, lost } = self.0;
        mended.iter().try_for_each(|what| writeln!(f, "mended: {what}"))?;
        lost.iter().try_for_each(|what| writeln!(f, "lost: {what}"))?;
        if mended.is_empty() && lost.is_empty() {
            writeln!(f, "nothing to mend: the ledger and the tables fit together")?;
        }
        Ok(())
    }
}
