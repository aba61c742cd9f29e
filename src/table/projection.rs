//! A data table under write: a projection of the ledger, brought up to it by whoever comes next.

use deltalake::kernel::{Metadata, StructField};
use futures::stream::{self, StreamExt as _};
use futures::{FutureExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;

use super::commit::{self, TableMetadata};
use super::file::DataFile;
use super::ledger::Missing;
use super::log::{Beginning, Log, MAX_BEGINNINGS, TableError};
use super::snapshot::Snapshot;
use super::spec::{LEDGER_TABLE, TableSpec};
use crate::base::store::Store;
use crate::schema::Standard;

/// Files that are asked for at once.
const AT_ONCE: usize = 16;

pub(super) struct Table {
    pub log: Log,
    /// The ledger version that it has been brought up to.
    pub txn: Option<u64>,
    metadata: Option<TableMetadata>,
    /// All of the same action.
    layout: Option<Metadata>,
    /// Reader and writer version.
    protocol: (i64, i64),
    /// Why it may lack what it was given, as its log tells, until a repair has made it whole.
    pub lacks: Option<String>,
    /// What we write into it.
    pub spec: Option<TableSpec>,
}

/// The names of the folders below a lake that may be its data tables.
pub(super) async fn tables_below(store: &Store) -> Result<Vec<String>, TableError> {
    let listed = store.objects.list_with_delimiter(Some(&store.root)).await;
    let listed = listed.map_err(|e| TableError::request(store.url.as_str(), "listing the lake", e))?;
    let names = listed.common_prefixes.iter().filter_map(|folder| folder.filename());
    Ok(names
        .filter(|name| *name != LEDGER_TABLE && !name.starts_with(['_', '.']))
        .map(str::to_owned)
        .collect())
}

impl Table {
    /// Opens a table at its newest version; none if it is not there.
    pub async fn open(store: &Store, name: &str) -> Result<Option<Self>, TableError> {
        match Self::open_as_it_is(store, name).await? {
            Some(table) if table.txn.is_none() => Err(TableError::Unmarked { table: table.log.table }),
            table => Ok(table),
        }
    }

    /// The same of a table that may not tell its ledger version.
    pub async fn open_as_it_is(store: &Store, name: &str) -> Result<Option<Self>, TableError> {
        for _ in 0..MAX_BEGINNINGS {
            let mut log = Log::new(store, name);
            let mut table = match log.beginning().await? {
                Beginning::Empty => return Ok(None),
                Beginning::First => Self {
                    log,
                    txn: None,
                    metadata: None,
                    layout: None,
                    protocol: (0, 0),
                    lacks: None,
                    spec: None,
                },
                Beginning::After(checkpoint, _) => {
                    Self::open_checkpointed(store, name, log, checkpoint).await?
                }
            };
            match table.read_on().await {
                // Entries were cleaned up on the way.
                Err(TableError::Outrun { .. }) => continue,
                other => other?,
            }
            return Ok(Some(table));
        }
        Err(TableError::Outrun { table: format!("{}{name}/", store.url) })
    }

    /// A table that the ledger gives files.
    pub async fn reopen(store: &Store, name: &str) -> Result<Self, TableError> {
        let gone = || {
            TableError::damaged(
                &format!("{}{name}/", store.url),
                format!("{LEDGER_TABLE} gives it files, but it is not there"),
            )
        };
        Self::open(store, name).await?.ok_or_else(gone)
    }

    /// What a checkpoint tells. The entries beyond it are read as all are: other readers take one that is not
    /// whole for one that says nothing.
    async fn open_checkpointed(
        store: &Store,
        name: &str,
        mut log: Log,
        checkpoint: u64,
    ) -> Result<Self, TableError> {
        let table = Snapshot::open_at(store, name, checkpoint).await?;
        let txn = table.transaction(commit::APP).await?;
        let failed =
            |e: deltalake::DeltaTableError| TableError::request(name, "reading the table's checkpoint", e);
        let snapshot = table.0.snapshot().map_err(failed)?;
        let layout = snapshot.metadata().clone();
        let metadata = commit::table_metadata(&layout);
        let metadata =
            metadata.map_err(|message| TableError::Layout { table: log.table.clone(), message })?;
        let protocol = snapshot.protocol();
        let protocol = (i64::from(protocol.min_reader_version()), i64::from(protocol.min_writer_version()));
        log.version = Some(checkpoint);
        Ok(Self {
            log,
            txn,
            metadata: Some(metadata),
            layout: Some(layout),
            protocol,
            lacks: None,
            spec: None,
        })
    }

    /// Whether files made for `spec` fit it, once it has the columns that it lacks: whoever comes first with
    /// a newer schema adds them, and rows of before have no value in them. From now on whatever is read of it
    /// is held to `spec`.
    pub async fn fits(&mut self, store: &Store, name: &str, spec: &TableSpec) -> Result<(), TableError> {
        let mut unknown = 0;
        loop {
            let missing = self.missing(spec)?;
            if missing.is_empty() {
                self.spec = Some(spec.clone());
                return Ok(());
            }
            let names = missing.iter().map(StructField::name).cloned().collect::<Vec<_>>().join(", ");
            let wrong = |message: String| TableError::Layout { table: self.log.table.clone(), message };
            let layout = self.layout.as_ref().ok_or_else(|| {
                wrong(format!(
                    "it has no column {names}, and its metaData is of a form that can't be extended"
                ))
            })?;
            let (layout, bytes) = commit::columns(layout, missing).map_err(wrong)?;
            match self.log.try_put(bytes, &mut unknown).await {
                Ok(true) => {
                    tracing::info!(
                        "{}: added the columns {names} from its log type's schema",
                        self.log.table
                    );
                    self.metadata =
                        Some(commit::table_metadata(&layout).map_err(|message| TableError::Layout {
                            table: self.log.table.clone(),
                            message,
                        })?);
                    self.layout = Some(layout);
                }
                Ok(false) => self.catch_up(store, name).await?,
                Err(TableError::Outrun { .. }) => self.begin_anew(store, name).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether its rows have ids as ours have, whoever made it.
    pub fn has_row_ids(&self) -> bool {
        let id = format!("\"{}\"", Standard::RowId.name());
        self.metadata.as_ref().is_some_and(|metadata| metadata.schema_string.contains(&id))
    }

    /// The columns that it lacks for what is written into it.
    fn missing(&self, spec: &TableSpec) -> Result<Vec<StructField>, TableError> {
        commit::check_protocol(self.protocol)
            .map_err(|message| TableError::Layout { table: self.log.table.clone(), message })?;
        self.metadata.as_ref().map_or(Ok(Vec::new()), |metadata| self.log.check(spec, metadata))
    }

    /// Whether what we write still fits the table.
    fn check(&self) -> Result<(), TableError> {
        let Some(spec) = &self.spec else { return Ok(()) };
        let Some(gone) = self.missing(spec)?.into_iter().next() else { return Ok(()) };
        let message = format!(
            "it has no column {} any more, which another engine took out; run it again, and it is added",
            gone.name()
        );
        Err(TableError::Layout { table: self.log.table.clone(), message })
    }

    /// P1. Reads the table to its end; begins anew if it was away for so long that some of its entries are
    /// gone.
    pub async fn catch_up(&mut self, store: &Store, name: &str) -> Result<(), TableError> {
        match self.read_on().await {
            Err(TableError::Outrun { .. }) => self.begin_anew(store, name).await,
            other => other,
        }
    }

    async fn begin_anew(&mut self, store: &Store, name: &str) -> Result<(), TableError> {
        let spec = self.spec.take();
        *self = Self { spec, ..Self::reopen(store, name).await? };
        self.check()
    }

    async fn read_on(&mut self) -> Result<(), TableError> {
        let Self { log, txn, metadata, layout, protocol, lacks, .. } = self;
        let log_name = log.table.clone();
        let mut layout_changed = false;
        log.catch_up(|version, entry, _| {
            layout_changed |= entry.metadata.is_some() || entry.protocol.is_some();
            if entry.foreign_append && !entry.foreign_delete {
                let table = &log_name;
                tracing::warn!(version, "{table}: another engine added rows to it; they are not checked, and may be duplicates");
            }
            if entry.restore {
                *lacks = Some(format!(
                    "with version {version} another engine restored it to an older version: what landed since is not in it"
                ));
            } else if let Some(from) = entry.from.filter(|from| Some(*from) != *txn) {
                *lacks = Some(format!(
                    "version {version} goes on from version {from} of {LEDGER_TABLE}, of which nothing tells any more: another engine put its own \
                     entry in the place of one of ours"
                ));
            } else if entry.txn.is_some() && entry.from.is_none() {
                // A repair has made it whole.
                *lacks = None;
            }
            *txn = entry.txn.or(*txn);
            *protocol = entry.protocol.unwrap_or(*protocol);
            if entry.metadata.is_some() {
                (*metadata, *layout) = (entry.metadata, entry.layout);
            }
        })
        .await?;
        if layout_changed { self.check() } else { Ok(()) }
    }

    /// P2, P3. Commits what it has still to get. False: someone else was faster, or it is not known; read it
    /// and ask again.
    pub async fn take(
        &mut self,
        store: &Store,
        name: &str,
        missing: &Missing,
        unknown: &mut u32,
    ) -> Result<bool, TableError> {
        self.look_for(store, name, missing).await?;
        let bytes = commit::projection(&missing.files, self.txn, missing.to);
        let bytes = bytes.map_err(|message| TableError::Layout { table: self.log.table.clone(), message })?;
        match self.log.try_put(bytes, unknown).await {
            Ok(true) => {
                self.txn = Some(missing.to);
                Ok(true)
            }
            Err(TableError::Outrun { .. }) => self.begin_anew(store, name).await.map(|()| false),
            other => other,
        }
    }

    /// Makes sure that files which others wrote, perhaps long ago, are there before the table names them:
    /// another engine's vacuum may have taken them, or a copy of the lake left them out.
    async fn look_for(&self, store: &Store, name: &str, missing: &Missing) -> Result<(), TableError> {
        let look = |file: &DataFile| {
            let (path, location) = (file.path.clone(), file.location(store, name));
            async move {
                match store.objects.head(&location).await {
                    Ok(_) => Ok(()),
                    Err(object_store::Error::NotFound { .. }) => {
                        let what = format!(
                            "{path}, which landed up to version {} of {LEDGER_TABLE}, is gone before it was brought in: another engine \
                             vacuumed it, or it was not copied",
                            missing.to
                        );
                        Err(TableError::damaged(&self.log.table, what))
                    }
                    Err(e) => Err(TableError::request(&self.log.table, format!("looking for {path}"), e)),
                }
            }
            .boxed()
        };
        let foreign: Vec<_> = missing.files[..missing.foreign].iter().map(look).collect();
        stream::iter(foreign).buffer_unordered(AT_ONCE).try_collect().await
    }
}
