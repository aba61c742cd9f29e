//! The lake's tables under all their names, opened when a statement names them and at their newest version
//! then.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider as _, MemTable, MemoryCatalogProvider, SchemaProvider, TableProvider,
};
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableType, lit};
use futures::future::{join_all, try_join_all};
use tokio::sync::Mutex;

use super::files::{self, FILES_TABLE};
use super::scan::LakeTable;
use crate::base::store::Store;
use crate::config::Partitioning;
use crate::schema::{Catalog, LogType, Standard};
use crate::sql::names::Vocabulary;
use crate::table::{
    LEDGER_TABLE, Snapshot, TableError, TableSpec, failures_spec, ledger_spec, log_type_spec,
};

/// The database that every unqualified name is looked up in.
pub const DATABASE: &str = "flarelake";
/// Its schema, and the one of that name in each of Panther's databases.
pub const DEFAULT_SCHEMA: &str = "public";
/// The names under which Panther keeps its tables, its views and its own records.
const LOGS: &str = "panther_logs";
const VIEWS: &str = "panther_views";
const MONITOR: &str = "panther_monitor";
/// The view of what all log types have in common.
const ALL_LOGS: &str = "all_logs";

pub struct LakeTables {
    store: Store,
    log_types: Vec<Arc<LogType>>,
    /// By name: the layout, and the table as it was last opened.
    tables: BTreeMap<String, (TableSpec, Mutex<Option<Opened>>)>,
    /// Which statement is being planned.
    statement: AtomicU64,
}

struct Opened {
    snapshot: Snapshot,
    provider: Arc<LakeTable>,
    /// The statement for which it was looked at.
    seen: u64,
}

impl LakeTables {
    /// The tables of a lake, which has to be there.
    pub async fn open(
        store: &Store,
        catalog: &Catalog,
        partitioning: Partitioning,
    ) -> Result<Arc<Self>, TableError> {
        if !Snapshot::is_there(store, LEDGER_TABLE).await? {
            return Err(TableError::NoLake { url: store.url.to_string() });
        }
        let log_types = catalog.types().to_vec();
        let specs = log_types
            .iter()
            .map(|t| log_type_spec(t, partitioning))
            .chain([failures_spec(partitioning), ledger_spec()]);
        let tables = specs.map(|spec| (spec.name.clone(), (spec, Mutex::new(None)))).collect();
        Ok(Arc::new(Self { store: store.clone(), log_types, tables, statement: AtomicU64::new(0) }))
    }

    /// From here on, each table is looked at anew. Those that the statement may be about are opened side by
    /// side: to read a log takes time and a core.
    pub async fn next_statement(self: &Arc<Self>, sql: &str) {
        self.statement.fetch_add(1, Ordering::Relaxed);
        let sql = sql.to_lowercase();
        let logs: Vec<String> = self.log_types.iter().map(|t| t.table_name()).collect();
        let is_meant = |name: &&String| {
            sql.contains(name.as_str())
                || sql.contains(FILES_TABLE)
                || (sql.contains(ALL_LOGS) && logs.contains(name))
        };
        let opening = self.tables.keys().filter(is_meant).map(|name| {
            let (lake, name) = (self.clone(), name.clone());
            // What goes wrong is told when the table is asked for.
            tokio::spawn(async move { lake.table(&name).await.map(drop) })
        });
        join_all(opening.collect::<Vec<_>>()).await;
    }

    /// A table at its newest version; one that nothing has landed in yet has no files. None: there is no such
    /// table.
    async fn table(&self, name: &str) -> Result<Option<Arc<LakeTable>>> {
        let outside = |error: TableError| DataFusionError::External(Box::new(error));
        let Some((spec, opened)) = self.tables.get(name) else { return Ok(None) };
        let statement = self.statement.load(Ordering::Relaxed);
        let mut opened = opened.lock().await;
        if let Some(table) = opened.as_mut() {
            if table.seen < statement && table.snapshot.update().await.map_err(outside)? {
                table.provider = Arc::new(LakeTable::of(&self.store, spec, &table.snapshot)?);
            }
            table.seen = statement;
            return Ok(Some(table.provider.clone()));
        }
        let Some(snapshot) = Snapshot::open(&self.store, name).await.map_err(outside)? else {
            return Ok(Some(Arc::new(LakeTable::empty(&self.store, spec)?)));
        };
        let provider = Arc::new(LakeTable::of(&self.store, spec, &snapshot)?);
        *opened = Some(Opened { snapshot, provider: provider.clone(), seen: statement });
        Ok(Some(provider))
    }

    /// `lake_files`.
    async fn files(&self) -> Result<MemTable> {
        let rows = self.tables.keys().map(|name| async move {
            let table = self.table(name).await?;
            Ok::<_, DataFusionError>(files::rows(name, table.iter().flat_map(|table| table.files()))?)
        });
        MemTable::try_new(files::schema(), vec![try_join_all(rows).await?])
    }

    /// The union of the columns that every log type's table has, or could have.
    async fn all_logs(&self) -> Result<ViewTable> {
        let mut whole: Option<LogicalPlanBuilder> = None;
        for log_type in &self.log_types {
            let name = log_type.table_name();
            let Some(table) = self.table(&name).await? else { continue };
            let column = |standard: Standard| {
                Ok::<_, DataFusionError>(match log_type.has(standard) {
                    true => Expr::Column(Column::from_name(standard.name())),
                    false => lit(ScalarValue::try_from(&standard.kind().arrow())?).alias(standard.name()),
                })
            };
            let columns = Standard::ALL.into_iter().map(column).collect::<Result<Vec<_>>>()?;
            let own = LogicalPlanBuilder::scan(name, provider_as_source(table), None)?.project(columns)?;
            whole = Some(match whole {
                Some(others) => others.union(own.build()?)?,
                None => own,
            });
        }
        let whole = whole.ok_or_else(|| DataFusionError::Plan("there is no log type".to_owned()))?;
        Ok(ViewTable::new(whole.build()?, None))
    }

    /// Makes every table known to a session under the three ways to name it: `t`, `schema.t` and
    /// `schema.public.t`.
    pub fn register(self: &Arc<Self>, context: &SessionContext) -> Result<Vocabulary> {
        let mut vocabulary = Vocabulary::default();
        for (name, (spec, _)) in &self.tables {
            vocabulary.add_table(name, spec.full_schema().fields().iter().map(|f| f.name().clone()));
        }
        vocabulary.add_table(FILES_TABLE, files::schema().fields().iter().map(|f| f.name().clone()));
        vocabulary.add_table(ALL_LOGS, Standard::ALL.map(|standard| standard.name().to_owned()));
        let logs: Vec<String> = self.log_types.iter().map(|t| t.table_name()).collect();
        let own = self.tables.keys().filter(|name| !logs.contains(name)).cloned();
        let monitor: Vec<String> = own.chain([FILES_TABLE.to_owned()]).collect();
        let views = vec![ALL_LOGS.to_owned()];
        let all = logs.iter().chain(&views).chain(&monitor).cloned().collect();
        let schema = |names| Arc::new(LakeSchema { lake: self.clone(), names });
        let database = Arc::new(MemoryCatalogProvider::new());
        database.register_schema(DEFAULT_SCHEMA, schema(all))?;
        for (name, tables) in [(LOGS, logs), (VIEWS, views), (MONITOR, monitor)] {
            database.register_schema(name, schema(tables.clone()))?;
            let own = Arc::new(MemoryCatalogProvider::new());
            own.register_schema(DEFAULT_SCHEMA, schema(tables))?;
            context.register_catalog(name, own);
            vocabulary.add_schema(name);
        }
        context.register_catalog(DATABASE, database);
        vocabulary.add_schema(DATABASE);
        vocabulary.add_schema(DEFAULT_SCHEMA);
        Ok(vocabulary)
    }
}

/// Some of the lake's tables, as a schema of SQL.
struct LakeSchema {
    lake: Arc<LakeTables>,
    names: Vec<String>,
}

impl fmt::Debug for LakeSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.names).finish()
    }
}

#[async_trait]
impl SchemaProvider for LakeSchema {
    fn table_names(&self) -> Vec<String> {
        self.names.clone()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !self.table_exist(name) {
            return Ok(None);
        }
        Ok(match name {
            ALL_LOGS => Some(Arc::new(self.lake.all_logs().await?)),
            FILES_TABLE => Some(Arc::new(self.lake.files().await?)),
            _ => self.lake.table(name).await?.map(|table| table as Arc<dyn TableProvider>),
        })
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        let known = if self.lake.tables.contains_key(name) { TableType::Base } else { TableType::View };
        Ok(self.table_exist(name).then_some(known))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }
}
