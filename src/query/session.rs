//! A session: from a statement to its rows, or to what is wrong with it.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue, SchemaError};
use datafusion::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry as _;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::catalog::{DATABASE, DEFAULT_SCHEMA, LakeTables};
use super::gc::GcBeforeSort;
use super::saved::Value;
use super::scan::store_url;
use crate::base::nearest;
use crate::base::printable::printable;
use crate::base::store::Store;
use crate::config::Partitioning;
use crate::schema::Catalog;
use crate::sql::dialect::translate;
use crate::sql::functions::DateTrunc;
use crate::sql::gathering;
use crate::sql::growth;
use crate::sql::limits::{TooLarge, check_nesting, settle};
use crate::sql::names::Vocabulary;
use crate::sql::rewrite::rewrite;
use crate::sql::statements::label;
use crate::table::TableError;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The lake can't be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The query is wrong, or failed.
    #[error("{0}")]
    Sql(String),
    /// It needs more memory than there is.
    #[error(
        "the statement needs more memory than it may take; ask for less, or raise `memory` (FLARELAKE_MEMORY=…): {told}"
    )]
    Exhausted { told: String },
}

/// Wide rows are large: a sort of spilled rows holds this many of each part.
const FRUGAL_BATCH_ROWS: usize = 1024;

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        let told = error.strip_backtrace();
        if is_exhausted(&error) { Self::Exhausted { told } } else { Self::Sql(told) }
    }
}

fn is_exhausted(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

pub struct Session {
    context: SessionContext,
    memory: usize,
    tables: Arc<LakeTables>,
    vocabulary: Vocabulary,
}

impl Session {
    /// A session over the tables of `store`, with at most `memory` bytes for sorts and joins. Each statement
    /// sees them as they are when it begins. `partitioning` is that of tables that nothing has landed in yet.
    pub async fn open(
        store: &Store,
        catalog: &Catalog,
        partitioning: Partitioning,
        memory: usize,
    ) -> Result<Self, QueryError> {
        let config = SessionConfig::new()
            .with_default_catalog_and_schema(DATABASE, DEFAULT_SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            // Columns keep the documented spelling: ClientIP is ClientIP, with or without quotes.
            .set_bool("datafusion.sql_parser.enable_ident_normalization", false)
            .set_str("datafusion.execution.time_zone", "UTC")
            // As other engines write times; in nanoseconds those after 2262 would be others.
            .set_str("datafusion.execution.parquet.coerce_int96", "us")
            .set_str("datafusion.execution.parquet.coerce_int96_tz", "UTC");
        // What can go on on disk gets even shares, so that none starves another.
        let runtime =
            RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(memory))).build_arc()?;
        runtime.register_object_store(store_url(store)?.as_ref(), store.objects.clone());
        let context = SessionContext::new_with_config_rt(config, runtime);
        context.register_udf(DateTrunc::over(context.udf("date_trunc")?));
        let context = growth::bound(&context, memory)?;
        gathering::bound(&context, memory)?;
        let tables = LakeTables::open(store, catalog, partitioning).await?;
        let mut vocabulary = tables.register(&context)?;
        vocabulary.add_functions(context.udfs().into_iter().chain(context.udafs()).chain(context.udwfs()));
        Ok(Self { context, memory, tables, vocabulary })
    }

    /// Runs one statement, which can only read. Names may be written in any case; `$name` stands for an
    /// argument. One that turns out to need more than its memory begins again, slower: on one core, and with
    /// what can be on disk there.
    pub async fn query(
        &self,
        sql: &str,
        arguments: &[(String, Value)],
    ) -> Result<SendableRecordBatchStream, QueryError> {
        // A fault in what carries statements out ends the statement, and not those who ask.
        let rows = AssertUnwindSafe(self.rows(sql, arguments))
            .catch_unwind()
            .await
            .map_err(|fault| QueryError::Sql(told(fault)))??;
        let schema = rows.schema();
        let rows = AssertUnwindSafe(rows).catch_unwind();
        let rows =
            rows.map(|batch| batch.unwrap_or_else(|fault| Err(DataFusionError::Execution(told(fault)))));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    async fn rows(
        &self,
        sql: &str,
        arguments: &[(String, Value)],
    ) -> Result<SendableRecordBatchStream, QueryError> {
        let logical = self.logical(sql, arguments).await?;
        match self.begun(&self.context, &logical).await {
            // What the planner fails on is most often what it makes of statistics.
            Err(error)
                if is_exhausted(&error) || matches!(error.find_root(), DataFusionError::Internal(_)) => {}
            begun => return begun.map_err(|e| self.explained(e)),
        }
        self.begun(&self.frugal(&logical)?, &logical).await.map_err(|e| self.explained(e))
    }

    /// The same tables, for what needs more memory than there is: little at a time, and joins by sorting,
    /// which goes on on disk. Without statistics, since all that is wanted is an answer.
    fn frugal(&self, logical: &LogicalPlan) -> Result<SessionContext, QueryError> {
        let joins = logical.exists(|plan| Ok(matches!(plan, LogicalPlan::Join(_)))).unwrap_or(false);
        let config = self.context.copied_config();
        let config = config
            // One sort instead of several that are merged in memory; but only of two parts does DataFusion
            // join by sorting.
            .with_target_partitions(if joins { 2 } else { 1 })
            .with_batch_size(FRUGAL_BATCH_ROWS)
            .with_collect_statistics(false)
            .with_sort_spill_reservation_bytes((self.memory / if joins { 32 } else { 8 }).min(10 << 20))
            .set_bool("datafusion.optimizer.prefer_hash_join", false);
        // Memory of its own: what the first attempt held is given back only when its last task has seen that
        // it is over.
        let runtime = RuntimeEnvBuilder::from_runtime_env(&self.context.runtime_env());
        let runtime = runtime.with_memory_pool(Arc::new(FairSpillPool::new(self.memory))).build_arc()?;
        let state = SessionStateBuilder::new_from_existing(self.context.state())
            .with_config(config)
            .with_runtime_env(runtime)
            .with_physical_optimizer_rule(Arc::new(GcBeforeSort));
        Ok(SessionContext::new_with_state(state.build()))
    }

    /// How a statement is carried out. Of DataFusion's own operators alone: its codec can take it to another
    /// process.
    pub async fn physical(
        &self,
        sql: &str,
        arguments: &[(String, Value)],
    ) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>), QueryError> {
        let logical = self.logical(sql, arguments).await?;
        let plan =
            self.context.state().create_physical_plan(&logical).await.map_err(|e| self.explained(e))?;
        Ok((plan, self.context.task_ctx()))
    }

    /// Carries a statement out as far as its first rows: before these, most that takes memory is done.
    async fn begun(
        &self,
        context: &SessionContext,
        logical: &LogicalPlan,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        // Constants are computed while the statement is planned.
        let bounded = growth::bound_together(logical.clone(), self.memory)?;
        let optimized = context.state().optimize(&bounded)?;
        let context = &self.in_small_batches(context, &optimized)?;
        let state = context.state();
        let plan = state.query_planner().create_physical_plan(&optimized, &state).await?;
        let mut rows = execute_stream(plan, context.task_ctx())?;
        let (schema, first) = (rows.schema(), rows.try_next().await?);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(first.map(Ok)).chain(rows))))
    }

    /// A constant stands in every row of a batch: of large ones there are fewer rows in each.
    fn in_small_batches(
        &self,
        context: &SessionContext,
        optimized: &LogicalPlan,
    ) -> Result<SessionContext, DataFusionError> {
        let config = context.copied_config();
        let rows = growth::rows_of_constants(optimized, self.memory)?;
        if rows >= config.batch_size() {
            return Ok(context.clone());
        }
        let state =
            SessionStateBuilder::new_from_existing(context.state()).with_config(config.with_batch_size(rows));
        Ok(SessionContext::new_with_state(state.build()))
    }

    async fn logical(&self, sql: &str, arguments: &[(String, Value)]) -> Result<LogicalPlan, QueryError> {
        let only_read =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let plan = self.plan(sql).await?;
        only_read.verify_plan(&plan)?;
        // Not told where a parameter is compared with several kinds of text: text it is.
        let kinds = plan.get_parameter_types().unwrap_or_default();
        let kind = |name: &str| {
            kinds.get(&format!("${name}")).cloned().flatten().filter(|kind| *kind != DataType::Null)
        };
        let counts = counts(&plan);
        let kind = |name: &str| {
            kind(name).or_else(|| counts.contains(&format!("${name}")).then_some(DataType::Int64))
        };
        let values = arguments.iter().map(|(name, value)| Ok((name.clone(), scalar(value, kind(name))?)));
        let values = values.collect::<Result<HashMap<String, ScalarValue>, QueryError>>()?;
        Ok(if values.is_empty() { plan } else { plan.with_param_values(ParamValues::from(values))? })
    }

    async fn plan(&self, sql: &str) -> Result<LogicalPlan, QueryError> {
        let state = self.context.state();
        let written = translate(sql, &GenericDialect {}).map_err(too_large)?;
        self.tables.next_statement(sql).await;
        let spelled = self.vocabulary.spell(&written, &GenericDialect {});
        check_nesting(&spelled, &GenericDialect {}).map_err(too_large)?;
        let parsed = |sql: &str| state.sql_to_statement(sql, &Dialect::Generic);
        let mut statement = parsed(&spelled)?;
        if written == sql {
            label(&mut statement, None);
        } else {
            // What was written before the macros were replaced, for the columns' names.
            label(&mut statement, parsed(&self.vocabulary.spell(sql, &GenericDialect {})).ok());
        }
        let error = match state.statement_to_plan(self.ready(statement)?).await {
            Ok(plan) => return Ok(plan),
            Err(error) => error,
        };
        // Names that differ in case alone, and are meant to: as they are written they may be right.
        match state.statement_to_plan(self.ready(parsed(&written)?)?).await {
            Ok(plan) => Ok(plan),
            Err(_) => Err(self.explained(error)),
        }
    }

    /// A statement that is not too large to be planned, with what other engines say differently in
    /// DataFusion's way.
    fn ready(&self, mut statement: Statement) -> Result<Statement, QueryError> {
        if let Some(sql) = sql_of(&mut statement) {
            settle(sql).map_err(too_large)?;
            rewrite(sql, self.vocabulary.tables()).map_err(QueryError::Sql)?;
        }
        Ok(statement)
    }

    /// The names that statements may mention.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A table's columns with their types, as they are documented; none if there is no such table.
    pub async fn columns(&self, table: &str) -> Option<Vec<(String, String)>> {
        let provider = self.context.table_provider(table).await.ok()?;
        Some(
            provider
                .schema()
                .fields()
                .iter()
                .map(|f| (f.name().clone(), documented(f.data_type())))
                .collect(),
        )
    }

    /// What isn't there is told with what may have been meant.
    fn explained(&self, error: DataFusionError) -> QueryError {
        if is_exhausted(&error) {
            return error.into();
        }
        if let DataFusionError::External(cause) = error.find_root() {
            return QueryError::Sql(cause.to_string());
        }
        if let DataFusionError::SchemaError(schema, _) = error.find_root()
            && let SchemaError::FieldNotFound { field, valid_fields } = schema.as_ref()
            && !valid_fields.iter().any(|valid| valid.name == field.name)
        {
            return QueryError::Sql(unknown(
                "column",
                &field.name,
                valid_fields.iter().map(|f| f.name.as_str()),
            ));
        }
        let told = error.strip_backtrace();
        let between =
            |before: &str, after: &str| Some(told.split_once(before)?.1.split_once(after)?.0.to_owned());
        if let Some(full) = between("table '", "' not found") {
            let name = full.rsplit('.').next().unwrap_or(&full);
            return QueryError::Sql(unknown(
                "table",
                name,
                self.vocabulary.tables().keys().map(String::as_str),
            ));
        }
        if let Some(name) = between("Invalid function '", "'") {
            return QueryError::Sql(unknown(
                "function",
                &name,
                self.vocabulary.functions().iter().map(String::as_str),
            ));
        }
        QueryError::Sql(told)
    }
}

/// The SQL in a statement of DataFusion's.
fn sql_of(statement: &mut Statement) -> Option<&mut ast::Statement> {
    match statement {
        Statement::Statement(sql) => Some(sql),
        Statement::Explain(explained) => sql_of(&mut explained.statement),
        _ => None,
    }
}

fn too_large(error: TooLarge) -> QueryError {
    QueryError::Sql(error.to_string())
}

/// What a fault of the program says.
fn told(fault: Box<dyn Any + Send>) -> String {
    let text =
        fault.downcast_ref::<String>().map(String::as_str).or_else(|| fault.downcast_ref::<&str>().copied());
    format!(
        "the statement could not be carried out, by a fault of the program: {}; ask for it in another way",
        text.unwrap_or("it does not say which")
    )
}

/// That there is no such thing, and which one may have been meant.
fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    known.dedup();
    let (meant, name) = (nearest(name, known.iter().copied()), printable(name));
    match meant {
        Some(meant) => format!("there is no {what} `{name}`; did you mean `{meant}`?"),
        None if (1..=20).contains(&known.len()) => {
            format!("there is no {what} `{name}`; there are {}", known.join(", "))
        }
        None => format!("there is no {what} `{name}`"),
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

/// The parameters that stand for a number of rows, of which the planner tells no type.
fn counts(plan: &LogicalPlan) -> HashSet<String> {
    let mut found = HashSet::new();
    let limits = plan.apply(|node| {
        if let LogicalPlan::Limit(limit) = node {
            for expr in [&limit.skip, &limit.fetch].into_iter().flatten() {
                expr.apply(|e| {
                    if let Expr::Placeholder(placeholder) = e {
                        found.insert(placeholder.id.clone());
                    }
                    Ok(TreeNodeRecursion::Continue)
                })?;
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    // Looking fails at nothing.
    limits.map(|_| found).unwrap_or_default()
}

/// A value for a parameter that the statement takes for a `kind`, if it tells.
fn scalar(value: &Value, kind: Option<DataType>) -> Result<ScalarValue, QueryError> {
    Ok(match value {
        Value::Untyped(text) => match kind {
            Some(kind) => ScalarValue::try_from_string(text.clone(), &kind)
                .map_err(|_| QueryError::Sql(format!("`{text}` is no {}", documented(&kind))))?,
            None => ScalarValue::Utf8View(Some(text.clone())),
        },
        Value::Text(text) => ScalarValue::Utf8View(Some(text.clone())),
        Value::Integer(number) => ScalarValue::Int64(Some(*number)),
        Value::Float(number) => ScalarValue::Float64(Some(*number)),
        Value::Boolean(flag) => ScalarValue::Boolean(Some(*flag)),
        Value::Time(micros) => ScalarValue::TimestampMicrosecond(Some(*micros), Some("UTC".into())),
    })
}
