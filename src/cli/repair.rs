//! `flarelake repair`: repair a lake that was tampered with, as far as possible.

use std::sync::Arc;

use clap::Args;

use super::{End, Settings, output};
use crate::base::store::Store;
use crate::land::batch::Tables;
use crate::recover::Mender;
use crate::table::Findings;

/// What to look through beside what looks damaged.
#[derive(Debug, Args)]
pub struct RepairArguments {
    /// Also search this table's folder for rows that landed but are in no file of its log, for example after
    /// you restored files from a copy. Deleted rows come back if no vacuum has deleted their files. May be
    /// repeated
    #[arg(long = "table", value_name = "NAME")]
    tables: Vec<String>,
}

pub async fn run(arguments: RepairArguments, settings: Settings) -> anyhow::Result<End> {
    let Settings { config, catalog } = &settings;
    let tables = Arc::new(Tables::new(catalog, config.partition));
    let store = Store::open(config.lake()?, &config.reach()).await?;
    let (target, memory) = (config.maintenance.target_file_size.as_u64(), config.memory.as_u64() as usize);
    let (mut told, mut is_lost, mut is_mended) = (Ok(()), false, false);
    let mut tell = |findings: Findings| {
        is_lost |= !findings.lost.is_empty();
        is_mended |= findings != Findings::default();
        told = std::mem::replace(&mut told, Ok(())).and(output::say(Report(&findings)));
    };
    Mender { store, tables, searched: arguments.tables, target, memory }.run(&mut tell).await?;
    told?;
    if !is_mended {
        output::say("nothing to mend: the ledger and the tables fit together\n")?;
    }
    Ok(if is_lost { End::Incomplete } else { End::Done })
}

struct Report<'a>(&'a Findings);

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Findings { mended, lost } = self.0;
        mended.iter().try_for_each(|what| writeln!(f, "mended: {what}"))?;
        lost.iter().try_for_each(|what| writeln!(f, "lost: {what}"))
    }
}
