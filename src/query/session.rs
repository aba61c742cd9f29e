//! The tables of a lake, as SQL sees them.

use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionConfig;

use crate::base::store::Store;
use crate::config::Partitioning;
use crate::schema::{Catalog, LogType, Standard};
use crate::table::{FAILURES_TABLE, LEDGER_TABLE, TableError, TableSpec, failures_spec, ledger_spec, log_type_spec, open_snapshot};

/// The database that every unqualified name is looked up in.
const DATABASE: &str = "flarelake";
const DEFAULT_SCHEMA: &str = "public";
/// The names under which Panther keeps its tables, its views and its own records.
const LOGS: &str = "panther_logs";
const VIEWS: &str = "panther_views";
const MONITOR: &str = "panther_monitor";

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The lake can't be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No flarelake ever wrote there.
    #[error("{url}: there is no lake; land something first with `flarelake backfill`, or check --lake")]
    NoLake {
        /// What was given.
        url: String,
    },
    /// The query is wrong, or failed.
    #[error("{0}")]
    Sql(String),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        Self::Sql(error.strip_backtrace())
    }
}

/// See the module.
pub struct Session {
    context: SessionContext,
}

impl Session {
    /// A session over the tables of `store` as they are now, with at most `memory` bytes for sorts and joins.
    /// `partitioning` is that of tables that nothing has landed in yet.
    pub async fn open(store: &Store, catalog: &Catalog, partitioning: Partitioning, memory: usize) -> Result<Self, QueryError> {
        let config = SessionConfig::new()
            .with_default_catalog_and_schema(DATABASE, DEFAULT_SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            // Columns keep the documented spelling: ClientIP is ClientIP, with or without quotes.
            .set_bool("datafusion.sql_parser.enable_ident_normalization", false)
            .set_bool("datafusion.execution.parquet.pushdown_filters", true);
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(memory, 1.0).build_arc()?;
        let context = SessionContext::new_with_config_rt(config, runtime);
        let names = Names::new(&context)?;
        if open_snapshot(store, LEDGER_TABLE).await?.is_none() {
            return Err(QueryError::NoLake { url: store.url.to_string() });
        }
        for log_type in catalog.types() {
            let table = provider(&context, store, &log_type_spec(log_type, partitioning)).await?;
            names.register(&log_type.table_name(), table, LOGS)?;
        }
        names.register(FAILURES_TABLE, provider(&context, store, &failures_spec(partitioning)).await?, MONITOR)?;
        names.register(LEDGER_TABLE, provider(&context, store, &ledger_spec()).await?, MONITOR)?;
        let sql = all_logs_sql(catalog.types());
        let plan = context.state().create_logical_plan(&sql).await?;
        names.register("all_logs", Arc::new(ViewTable::new(plan, Some(sql))), VIEWS)?;
        Ok(Self { context })
    }

    /// Runs one statement, which can only read.
    pub async fn query(&self, sql: &str) -> Result<SendableRecordBatchStream, QueryError> {
        let only_read = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = self.context.sql_with_options(sql, only_read).await?;
        Ok(frame.execute_stream().await?)
    }
}

/// The table as it is in the lake; one that nothing has landed in yet is empty.
async fn provider(context: &SessionContext, store: &Store, spec: &TableSpec) -> Result<Arc<dyn TableProvider>, QueryError> {
    let Some(table) = open_snapshot(store, &spec.name).await? else {
        return Ok(Arc::new(MemTable::try_new(spec.full_schema(), vec![vec![]])?));
    };
    let state = Arc::new(context.state());
    let provider = table.table_provider().with_session(state).await;
    provider.map_err(|e| QueryError::Sql(e.to_string()))
}

/// The union of the columns that every log type's table has, or could have.
fn all_logs_sql(log_types: &[Arc<LogType>]) -> String {
    let select = |log_type: &Arc<LogType>| {
        let columns = Standard::ALL.map(|standard| match log_type.has(standard) {
            true => standard.name().to_owned(),
            false => format!("NULL AS {}", standard.name()),
        });
        format!("SELECT {} FROM {}", columns.join(", "), log_type.table_name())
    };
    log_types.iter().map(select).collect::<Vec<_>>().join(" UNION ALL ")
}

/// The three ways to name a table: `t`, `schema.t` and `schema.public.t`.
struct Names {
    default: Arc<MemorySchemaProvider>,
    /// By name: the schema in our own database, and the one called `public` in a database of that name.
    others: Vec<(&'static str, [Arc<MemorySchemaProvider>; 2])>,
}

impl Names {
    fn new(context: &SessionContext) -> Result<Self, QueryError> {
        let database = Arc::new(MemoryCatalogProvider::new());
        let default = Arc::new(MemorySchemaProvider::new());
        database.register_schema(DEFAULT_SCHEMA, default.clone())?;
        let mut others = Vec::new();
        for name in [LOGS, VIEWS, MONITOR] {
            let (schema, public) = (Arc::new(MemorySchemaProvider::new()), Arc::new(MemorySchemaProvider::new()));
            database.register_schema(name, schema.clone())?;
            let own = Arc::new(MemoryCatalogProvider::new());
            own.register_schema(DEFAULT_SCHEMA, public.clone())?;
            context.register_catalog(name, own);
            others.push((name, [schema, public]));
        }
        context.register_catalog(DATABASE, database);
        Ok(Self { default, others })
    }

    fn register(&self, name: &str, table: Arc<dyn TableProvider>, schema: &str) -> Result<(), QueryError> {
        self.default.register_table(name.to_owned(), table.clone())?;
        for (other, providers) in &self.others {
            if *other == schema {
                for provider in providers {
                    provider.register_table(name.to_owned(), table.clone())?;
                }
            }
        }
        Ok(())
    }
}
