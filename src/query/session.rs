//! The tables of a lake, as SQL sees them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::{CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::{ParamValues, ScalarValue, SchemaError};
use datafusion::config::Dialect;
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry as _;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::dialect::GenericDialect;

use super::counted::Counted;
use super::dialect::translate;
use super::files::{self, FILES_TABLE};
use super::names::Vocabulary;
use super::saved::Value;
use super::statements::label;
use crate::base::store::Store;
use crate::config::Partitioning;
use crate::schema::{Catalog, LogType, Standard};
use crate::table::{DeltaTable, TableError, TableSpec, failures_spec, ledger_spec, live_files, log_type_spec, open_tables};

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
    vocabulary: Vocabulary,
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
            .set_bool("datafusion.execution.parquet.pushdown_filters", true)
            .set_str("datafusion.execution.time_zone", "UTC");
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(memory, 1.0).build_arc()?;
        let context = SessionContext::new_with_config_rt(config, runtime);
        let mut names = Names::new(&context)?;
        let mut files = Vec::new();
        let log_types = catalog.types().iter().map(|t| (log_type_spec(t, partitioning), LOGS));
        let specs: Vec<_> = log_types.chain([(failures_spec(partitioning), MONITOR), (ledger_spec(), MONITOR)]).collect();
        let tables: Vec<String> = specs.iter().map(|(spec, _)| spec.name.clone()).collect();
        for ((spec, schema), table) in specs.into_iter().zip(open_tables(store, &tables).await?) {
            if let Some(table) = &table {
                files.push(files::rows(&spec.name, &live_files(table)?).map_err(|e| QueryError::Sql(e.to_string()))?);
            }
            names.register(&spec.name, provider(&context, table, &spec).await?, schema)?;
        }
        names.register(FILES_TABLE, Arc::new(MemTable::try_new(files::schema(), vec![files])?), MONITOR)?;
        let sql = all_logs_sql(catalog.types());
        let plan = context.state().create_logical_plan(&sql).await?;
        names.register("all_logs", Arc::new(ViewTable::new(plan, Some(sql))), VIEWS)?;
        names.vocabulary.add_functions(context.udfs().into_iter().chain(context.udafs()).chain(context.udwfs()));
        Ok(Self { vocabulary: names.vocabulary, context })
    }

    /// Runs one statement, which can only read. Names may be written in any case; `$name` stands for an argument.
    pub async fn query(&self, sql: &str, arguments: &[(String, Value)]) -> Result<SendableRecordBatchStream, QueryError> {
        let only_read = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let plan = self.plan(sql).await?;
        only_read.verify_plan(&plan)?;
        // Not told where a parameter is compared with several kinds of text: text it is.
        let kinds = plan.get_parameter_types().unwrap_or_default();
        let kind = |name: &str| kinds.get(&format!("${name}")).cloned().flatten().filter(|kind| *kind != DataType::Null);
        let values = arguments.iter().map(|(name, value)| Ok((name.clone(), scalar(value, kind(name))?)));
        let values = values.collect::<Result<HashMap<String, ScalarValue>, QueryError>>()?;
        let frame = self.context.execute_logical_plan(plan).await.map_err(|e| self.explained(e))?;
        let frame = if values.is_empty() { frame } else { frame.with_param_values(ParamValues::from(values))? };
        frame.execute_stream().await.map_err(|e| self.explained(e))
    }

    async fn plan(&self, sql: &str) -> Result<LogicalPlan, QueryError> {
        let state = self.context.state();
        let written = translate(sql, &GenericDialect {});
        let spelled = self.vocabulary.spell(&written, &GenericDialect {});
        // What was written before the macros were replaced, for the columns' names.
        let original = state.sql_to_statement(&self.vocabulary.spell(sql, &GenericDialect {}), &Dialect::Generic).ok();
        let mut statement = state.sql_to_statement(&spelled, &Dialect::Generic)?;
        label(&mut statement, original);
        match state.statement_to_plan(statement).await {
            Ok(plan) => Ok(plan),
            Err(error) => {
                // Names that differ in case alone, and are meant to: as they are written they may be right.
                let as_written = async { state.statement_to_plan(state.sql_to_statement(&written, &Dialect::Generic)?).await };
                as_written.await.map_err(|_| self.explained(error))
            }
        }
    }

    /// The names that statements may mention.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A table's columns with their types, as they are documented; none if there is no such table.
    pub async fn columns(&self, table: &str) -> Option<Vec<(String, String)>> {
        let provider = self.context.table_provider(table).await.ok()?;
        Some(provider.schema().fields().iter().map(|f| (f.name().clone(), documented(f.data_type()))).collect())
    }

    /// What isn't there is told with what may have been meant.
    fn explained(&self, error: DataFusionError) -> QueryError {
        if let DataFusionError::SchemaError(schema, _) = error.find_root()
            && let SchemaError::FieldNotFound { field, valid_fields } = schema.as_ref()
            && !valid_fields.iter().any(|valid| valid.name == field.name)
        {
            return QueryError::Sql(unknown("column", &field.name, valid_fields.iter().map(|f| f.name.as_str())));
        }
        let told = error.strip_backtrace();
        let between = |before: &str, after: &str| Some(told.split_once(before)?.1.split_once(after)?.0.to_owned());
        if let Some(full) = between("table '", "' not found") {
            let name = full.rsplit('.').next().unwrap_or(&full);
            return QueryError::Sql(unknown("table", name, self.vocabulary.tables().keys().map(String::as_str)));
        }
        if let Some(name) = between("Invalid function '", "'") {
            return QueryError::Sql(unknown("function", &name, self.vocabulary.functions().iter().map(String::as_str)));
        }
        QueryError::Sql(told)
    }
}

/// That there is no such thing, and which one may have been meant.
fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let lower = name.to_lowercase();
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    known.dedup();
    let name = &name.escape_debug().to_string();
    let likeness = |known: &str| strsim::jaro_winkler(&known.to_lowercase(), &lower);
    match known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(nearest) if likeness(nearest) > 0.75 => format!("there is no {what} `{name}`; did you mean `{nearest}`?"),
        _ if (1..=20).contains(&known.len()) => format!("there is no {what} `{name}`; there are {}", known.join(", ")),
        _ => format!("there is no {what} `{name}`"),
    }
}

/// A type in the words of the documented schemas.
fn documented(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".into(),
        DataType::Int64 => "bigint".into(),
        DataType::Int32 => "int".into(),
        DataType::Int16 => "smallint".into(),
        DataType::Float32 => "float".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Date32 => "date".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::Binary | DataType::BinaryView => "binary".into(),
        DataType::List(element) => format!("[{}]", documented(element.data_type())),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                format!("{{{}:{}}}", documented(pair[0].data_type()), documented(pair[1].data_type()))
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

/// A value for a parameter that the statement takes for a `kind`, if it tells.
fn scalar(value: &Value, kind: Option<DataType>) -> Result<ScalarValue, QueryError> {
    Ok(match value {
        Value::Untyped(text) => match kind {
            Some(kind) => ScalarValue::try_from_string(text.clone(), &kind)
                .map_err(|_| QueryError::Sql(format!("`{text}` is no {}", documented(&kind))))?,
            None => text.parse().map_or_else(|_| ScalarValue::Utf8View(Some(text.clone())), |n| ScalarValue::Int64(Some(n))),
        },
        Value::Text(text) => ScalarValue::Utf8View(Some(text.clone())),
        Value::Integer(number) => ScalarValue::Int64(Some(*number)),
        Value::Float(number) => ScalarValue::Float64(Some(*number)),
        Value::Boolean(flag) => ScalarValue::Boolean(Some(*flag)),
        Value::Time(micros) => ScalarValue::TimestampMicrosecond(Some(*micros), Some("UTC".into())),
    })
}

/// The table as it is in the lake; one that nothing has landed in yet is empty.
async fn provider(context: &SessionContext, table: Option<DeltaTable>, spec: &TableSpec) -> Result<Arc<dyn TableProvider>, QueryError> {
    let Some(table) = table else {
        return Ok(Arc::new(MemTable::try_new(spec.full_schema(), vec![vec![]])?));
    };
    let state = Arc::new(context.state());
    let provider = table.table_provider().with_session(state).await;
    Ok(Arc::new(Counted(provider.map_err(|e| QueryError::Sql(e.to_string()))?)))
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
    vocabulary: Vocabulary,
}

impl Names {
    fn new(context: &SessionContext) -> Result<Self, QueryError> {
        let database = Arc::new(MemoryCatalogProvider::new());
        let default = Arc::new(MemorySchemaProvider::new());
        database.register_schema(DEFAULT_SCHEMA, default.clone())?;
        let mut others = Vec::new();
        let mut vocabulary = Vocabulary::default();
        vocabulary.add_schema(DATABASE);
        vocabulary.add_schema(DEFAULT_SCHEMA);
        for name in [LOGS, VIEWS, MONITOR] {
            let (schema, public) = (Arc::new(MemorySchemaProvider::new()), Arc::new(MemorySchemaProvider::new()));
            database.register_schema(name, schema.clone())?;
            let own = Arc::new(MemoryCatalogProvider::new());
            own.register_schema(DEFAULT_SCHEMA, public.clone())?;
            context.register_catalog(name, own);
            others.push((name, [schema, public]));
            vocabulary.add_schema(name);
        }
        context.register_catalog(DATABASE, database);
        Ok(Self { default, others, vocabulary })
    }

    fn register(&mut self, name: &str, table: Arc<dyn TableProvider>, schema: &str) -> Result<(), QueryError> {
        self.vocabulary.add_table(name, table.schema().fields().iter().map(|f| f.name().clone()));
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
