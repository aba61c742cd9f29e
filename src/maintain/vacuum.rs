//! Files that no table needs any more: selecting them, as a pure function, and deleting them behind a fence.
//!
//! A file that no version names may still be committed later, by a writer's batch or by a merge. So a vacuum
//! lists the files; puts a fence into the ledger and into the table; brings the table up to the ledger; reads
//! it; and deletes the listed files that were older than a day at the fence and are not named. A writer that
//! was frozen during a put finds the fence at that version, reads on, and checks its files again: those that
//! are gone, or were older than an hour at the fence, are not committed.
//!
//! All times are the store's: when it says that the files and the fence were written.
//!
//! Files removed from a table are never named again; they are kept for readers of older versions, for as long
//! as configured.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore as _;
use object_store::path::Path;

use super::MaintainError;
use crate::base::store::Store;
use crate::table::{Lake, TableError, Upkeep, file_location};

/// How old files and log entries have to be to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// Since they were taken out of their table; log entries as well.
    pub taken_out: Duration,
    /// Since they were written, if no table ever named them.
    pub never_named: Duration,
}

/// A day is far beyond the hour after which no writer commits a file that meets a fence.
pub const NEVER_NAMED: Duration = Duration::from_secs(86_400);

/// A file below a table, as a listing tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Its path below the table.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// In milliseconds since the epoch.
    pub written_ms: i64,
}

/// Which of these files can go.
pub fn deletable(
    files: &[ListedFile],
    named: &HashSet<String>,
    taken_out: &HashMap<String, i64>,
    now_ms: i64,
    ages: Ages,
) -> Vec<ListedFile> {
    let before = |age: Duration| now_ms - age.as_millis() as i64;
    let can_go = |file: &&ListedFile| {
        let is_old = match taken_out.get(&file.path) {
            // It was named once, and nobody names a file twice.
            Some(at_ms) => *at_ms <= before(ages.taken_out),
            None => file.written_ms <= before(ages.never_named),
        };
        is_old && !named.contains(&file.path)
    };
    files.iter().filter(can_go).cloned().collect()
}

/// What a vacuum of one table has found.
pub struct Found {
    table: String,
    /// What can go.
    pub files: Vec<ListedFile>,
}

/// V1, V2. Lists what can go from a table; none if the table is not there.
pub async fn look(
    store: &Store,
    table: &str,
    now_ms: i64,
    ages: Ages,
) -> Result<Option<Found>, MaintainError> {
    let listed = list(store, table).await?;
    let Some(upkeep) = Upkeep::open(store, table).await? else { return Ok(None) };
    let files = deletable(&listed, &named(&upkeep)?, &upkeep.tombstones().await?, now_ms, ages);
    Ok(Some(Found { table: table.to_owned(), files }))
}

/// V4, P, V5. Deletes what was found, behind a fence that the ledger got at `fenced_ms`. The table, and what
/// was deleted.
pub async fn delete(
    lake: &Lake,
    found: Found,
    fenced_ms: i64,
    ages: Ages,
) -> Result<(String, Vec<ListedFile>), MaintainError> {
    let store = lake.store();
    if let Some(mut upkeep) = Upkeep::open(store, &found.table).await? {
        upkeep.fence(ages.taken_out.as_millis() as i64).await?;
    }
    lake.settle().await?;
    let Some(upkeep) = Upkeep::open(store, &found.table).await? else { return Ok((found.table, Vec::new())) };
    let files = deletable(&found.files, &named(&upkeep)?, &upkeep.tombstones().await?, fenced_ms, ages);
    let place = |file: &ListedFile| file_location(store, &found.table, &file.path);
    let paths: Vec<Path> = files.iter().map(place).collect();
    let mut deleting = store.objects.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
    let mut gone = HashSet::new();
    while let Some(deleted) = deleting.next().await {
        match deleted {
            Ok(path) => _ = gone.insert(path),
            // Another vacuum was faster.
            Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => {
                return Err(MaintainError::Store {
                    doing: "deleting files below",
                    location: format!("{}{}/", store.url, found.table),
                    source,
                });
            }
        }
    }
    let files = files.into_iter().filter(|file| gone.contains(&place(file))).collect();
    Ok((found.table, files))
}

fn named(table: &Upkeep) -> Result<HashSet<String>, TableError> {
    Ok(table.snapshot().files()?.into_iter().map(|file| file.path).collect())
}

/// Whether a file goes by a name that flarelake, or another writer of Delta tables, gives: in the folder of a
/// partition, or of the table. Whatever else someone put there is theirs.
fn is_data_file(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let name = parts.next().and_then(|name| name.strip_suffix(".parquet"));
    let by_writer = |name: &str| {
        name.starts_with("part-")
            || name.len() == 36 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
    };
    name.is_some_and(by_writer) && parts.all(|folder| folder.contains('=') && !folder.starts_with(['_', '.']))
}

/// Every data file below a table.
pub async fn list(store: &Store, table: &str) -> Result<Vec<ListedFile>, MaintainError> {
    let root = store.root.clone().join(table);
    let listed: Result<Vec<_>, _> = store.objects.list(Some(&root)).try_collect().await;
    let listed = listed.map_err(|source| MaintainError::Store {
        doing: "listing",
        location: format!("{}{table}/", store.url),
        source,
    })?;
    let below = |path: &Path| path.prefix_match(&root).map(|parts| parts.collect::<Path>().to_string());
    let files = listed.iter().filter_map(|meta| {
        let path = below(&meta.location)?;
        is_data_file(&path).then(|| ListedFile {
            path,
            size: meta.size,
            written_ms: meta.last_modified.timestamp_millis(),
        })
    });
    Ok(files.collect())
}
