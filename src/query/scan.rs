//! A table of the lake for DataFusion: plain Parquet scans over the files that its log names.
//!
//! File metadata in the log avoids reads: files ruled out by a condition on `p_event_time` or on the
//! partition are not opened, conditions that hold for every row of every file are not evaluated, and where
//! files don't overlap, the planner is told that rows are ordered by `p_event_time`. Scans have no plan nodes
//! of our own, so DataFusion's own codec can serialize plans for other processes.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, BooleanArray, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNode as _;
use datafusion::common::{Column, ColumnStatistics, DFSchema, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetFileReaderFactory, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::ExecutionProps;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::{
    Between, BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType, binary_expr,
};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, create_physical_expr};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectMeta;

use super::prune::Condition;
use crate::base::store::Store;
use crate::format::write::footer_guess;
use crate::schema::{Standard, timestamp_type};
use crate::table::{DataFile, Snapshot, TableError, TableSpec, TimeBounds};

/// Of more files than this the planner is told less: statistics of every column of every file take memory.
const MOST_DESCRIBED: usize = 2_000;
/// Up to this many columns beside those of conditions are read whole.
const READ_WHOLE: usize = 8;
/// Files whose filters are asked at once.
const ASKED_AT_ONCE: usize = 16;

#[derive(Debug)]
pub struct LakeTable {
    schema: TableSchema,
    store_url: ObjectStoreUrl,
    files: Vec<(DataFile, ObjectMeta)>,
    bounds: Bounds,
    /// Columns with bloom filters.
    filtered: Vec<String>,
}

/// What the log says of the values in each file: one row a file.
#[derive(Debug)]
struct Bounds {
    times: Vec<Option<TimeBounds>>,
    rows: Vec<u64>,
    partitions: RecordBatch,
}

impl LakeTable {
    /// A table that nothing has landed in yet.
    pub fn empty(store: &Store, spec: &TableSpec) -> Result<Self> {
        let partitions = spec.full_schema().fields()[spec.schema.fields().len()..].to_vec();
        Self::new(store, spec, spec.schema.clone(), partitions, Vec::new())
    }

    /// A table as it is, whatever columns and partitions it has. What `spec` knows is read in its types: text
    /// in views, as everywhere in flarelake.
    pub fn of(store: &Store, spec: &TableSpec, snapshot: &Snapshot) -> Result<Self> {
        let outside = |error: TableError| DataFusionError::External(Box::new(error));
        let columns = snapshot.columns().map_err(outside)?;
        let by = snapshot.partition_columns().map_err(outside)?;
        let read = |field: &FieldRef| match spec.schema.field_with_name(field.name()) {
            // Of maps DataFusion finds no key that is a view.
            Ok(known) if !matches!(known.data_type(), DataType::Map(..)) => {
                Arc::new(known.clone().with_nullable(field.is_nullable()))
            }
            _ => field.clone(),
        };
        let (partitions, own): (Vec<_>, Vec<_>) =
            columns.fields().iter().map(read).partition(|field| by.contains(field.name()));
        Self::new(store, spec, Arc::new(Schema::new(own)), partitions, snapshot.files().map_err(outside)?)
    }

    fn new(
        store: &Store,
        spec: &TableSpec,
        columns: SchemaRef,
        partitions: Vec<FieldRef>,
        files: Vec<DataFile>,
    ) -> Result<Self> {
        let mut files: Vec<(Option<TimeBounds>, DataFile)> =
            files.into_iter().map(|file| (file.time_bounds(), file)).collect();
        // Oldest first, as a person would list them.
        files.sort_by_key(|(times, _)| times.map(|t| (t.least, t.greatest)));
        let (times, files): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let bounds = Bounds {
            rows: files.iter().map(|file| file.rows).collect(),
            partitions: partition_values(&partitions, &files)?,
            times,
        };
        let meta = |file: &DataFile| ObjectMeta {
            location: file.location(store, &spec.name),
            last_modified: DateTime::from_timestamp_millis(file.modified_ms).unwrap_or_default(),
            size: file.size,
            e_tag: None,
            version: None,
        };
        Ok(Self {
            schema: TableSchema::builder(columns).with_table_partition_cols(partitions).build(),
            store_url: store_url(store)?,
            files: files.into_iter().map(|file| (file.clone(), meta(&file))).collect(),
            bounds,
            filtered: spec.bloom_columns.clone(),
        })
    }

    /// The files, oldest rows first.
    pub fn files(&self) -> impl Iterator<Item = &DataFile> {
        self.files.iter().map(|(file, _)| file)
    }

    /// Whether files alone decide the condition, once those that it rules out are gone: it is one on the
    /// partition, or it holds for every row of every other file.
    fn decided_by_files(&self, condition: &Expr) -> bool {
        if self.is_of_partition(condition) {
            return self.partition_matches(condition, &ExecutionProps::new()).is_some();
        }
        // The files know their columns without a table's name.
        let condition = &unnormalize_col(condition.clone());
        let Some(opposite) = self.opposite(condition) else { return false };
        let props = ExecutionProps::new();
        let may_match = |e: &Expr| self.physical(e, &props).ok().and_then(|e| self.may_match(&e));
        let (Some(may_hold), Some(may_fail)) = (may_match(condition), may_match(&opposite)) else {
            return false;
        };
        may_hold.iter().zip(&may_fail).all(|(holds, fails)| !(*holds && *fails))
    }

    /// What holds where a condition does not: of comparisons of columns that are never null with values. Of
    /// others it isn't told: they may be neither true nor false.
    fn opposite(&self, condition: &Expr) -> Option<Expr> {
        let known = |e: &Expr| match e {
            Expr::Column(column) => {
                self.schema.table_schema().field_with_name(&column.name).is_ok_and(|f| !f.is_nullable())
            }
            Expr::Literal(value, _) => !value.is_null(),
            _ => false,
        };
        match condition {
            Expr::Not(inner) => self.opposite(inner).map(|_| inner.as_ref().clone()),
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                Some(self.opposite(left)?.or(self.opposite(right)?))
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                Some(self.opposite(left)?.and(self.opposite(right)?))
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if known(left) && known(right) => {
                Some(binary_expr(left.as_ref().clone(), op.negate()?, right.as_ref().clone()))
            }
            Expr::Between(between)
                if [&between.expr, &between.low, &between.high].into_iter().all(|e| known(e)) =>
            {
                Some(Expr::Between(Between { negated: !between.negated, ..between.clone() }))
            }
            _ => None,
        }
    }

    fn is_of_partition(&self, condition: &Expr) -> bool {
        let columns = condition.column_refs();
        let own = |column: &&Column| self.bounds.partitions.schema().column_with_name(&column.name).is_some();
        let closed = |e: &Expr| {
            let open = matches!(
                e,
                Expr::ScalarSubquery(_)
                    | Expr::Exists(_)
                    | Expr::InSubquery(_)
                    | Expr::OuterReferenceColumn(..)
                    | Expr::Placeholder(_)
            );
            Ok(open)
        };
        let open = condition.exists(closed).unwrap_or(true);
        !columns.is_empty() && columns.iter().all(own) && !condition.is_volatile() && !open
    }

    /// For each file, whether the condition holds for its partition's values, exactly: nobody asks the rows
    /// again. None where it fails on one of them: then the rows are asked.
    fn partition_matches(&self, condition: &Expr, props: &ExecutionProps) -> Option<Vec<bool>> {
        let partitions = &self.bounds.partitions;
        let schema = DFSchema::try_from(partitions.schema().as_ref().clone()).ok()?;
        let condition =
            create_physical_expr(&unnormalize_col(condition.clone()), &schema, props, &Default::default())
                .ok()?;
        let holds =
            condition.evaluate(partitions).and_then(|value| value.into_array(partitions.num_rows())).ok()?;
        Some(holds.as_boolean_opt()?.iter().map(|holds| holds == Some(true)).collect())
    }

    fn physical(&self, condition: &Expr, props: &ExecutionProps) -> Result<Arc<dyn PhysicalExpr>> {
        let schema = DFSchema::try_from(self.schema.table_schema().as_ref().clone())?;
        create_physical_expr(condition, &schema, props, &Default::default())
    }

    /// For each file, whether a row may be in it for which the condition holds; none where that can't be
    /// told.
    fn may_match(&self, condition: &Arc<dyn PhysicalExpr>) -> Option<Vec<bool>> {
        let predicate = PruningPredicateBuilder::new().with_file_schema(self.schema.table_schema().clone());
        predicate.try_build(condition.clone()).ok()?.prune(&self.bounds).ok()
    }

    /// The files that the conditions leave, by their places.
    fn selected(&self, filters: &[Expr], props: &ExecutionProps) -> Result<Vec<usize>> {
        let mut keep = vec![true; self.files.len()];
        // One by one, as it was decided which of them are asked of files alone.
        for condition in filters {
            let holds = match self.is_of_partition(condition) {
                true => self.partition_matches(condition, props),
                false => self.may_match(&self.physical(condition, props)?),
            };
            keep.iter_mut().zip(holds.into_iter().flatten()).for_each(|(keep, holds)| *keep &= holds);
        }
        Ok(keep.iter().enumerate().filter(|(_, keep)| **keep).map(|(place, _)| place).collect())
    }

    /// The files to be read, without those in which no row has the values that the conditions look for.
    async fn looked_up(
        &self,
        places: &[usize],
        described: bool,
        filters: &[Expr],
        readers: &Arc<dyn ParquetFileReaderFactory>,
    ) -> Result<Vec<PartitionedFile>> {
        let files = places.iter().map(|place| self.partitioned(*place, described));
        let condition = Arc::new(Condition::of_all(filters, &self.filtered));
        if *condition == Condition::Perhaps {
            return Ok(files.collect());
        }
        let asked = files.map(|file| {
            let (condition, readers) = (condition.clone(), readers.clone());
            let ask = async move {
                let hint = file.metadata_size_hint;
                let mut reader =
                    readers.create_reader(0, file.clone(), hint, &ExecutionPlanMetricsSet::new())?;
                Ok::<_, DataFusionError>(
                    condition.ask(reader.as_mut()).await?.map(|access| file.with_extension(access)),
                )
            };
            // A task each: to read a footer takes a core.
            async move { tokio::spawn(ask).await.map_err(|e| DataFusionError::External(Box::new(e)))? }
        });
        let asked: Vec<_> = asked.collect();
        let kept: Vec<Option<PartitionedFile>> =
            stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await?;
        Ok(kept.into_iter().flatten().collect())
    }

    fn partitioned(&self, place: usize, described: bool) -> PartitionedFile {
        let (file, meta) = &self.files[place];
        let partitions = &self.bounds.partitions;
        let values = partitions
            .columns()
            .iter()
            .map(|column| ScalarValue::try_from_array(column, place).unwrap_or(ScalarValue::Null));
        let read = PartitionedFile::new_from_meta(meta.clone())
            .with_partition_values(values.collect())
            .with_metadata_size_hint(
                footer_guess(self.schema.file_schema().fields().len(), file.rows) as usize
            );
        if described { read.with_statistics(Arc::new(self.statistics(place))) } else { read }
    }

    /// What is known of one file's columns, without those of the partition.
    fn statistics(&self, place: usize) -> Statistics {
        let columns = self.schema.file_schema();
        let mut statistics = Statistics::new_unknown(columns);
        statistics.num_rows = self.rows(place);
        statistics.total_byte_size = Precision::Inexact(self.files[place].0.size as usize);
        if let (Some(times), Ok(at)) =
            (self.bounds.times[place], columns.index_of(Standard::EventTime.name()))
        {
            let bound = |micros: i64| {
                let value = ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()));
                if times.exact { Precision::Exact(value) } else { Precision::Inexact(value) }
            };
            let known =
                ColumnStatistics { null_count: Precision::Exact(0), ..ColumnStatistics::new_unknown() };
            statistics.column_statistics[at] =
                known.with_min_value(bound(times.least)).with_max_value(bound(times.greatest));
        }
        statistics
    }

    fn rows(&self, place: usize) -> Precision<usize> {
        // A writer that tells no count: no file is without rows.
        if self.bounds.rows[place] == 0 {
            Precision::Absent
        } else {
            Precision::Exact(self.bounds.rows[place] as usize)
        }
    }

    /// The order in which a file's rows stand, if they stand in one.
    fn ordering(&self) -> Option<LexOrdering> {
        let time = col(Standard::EventTime.name(), self.schema.table_schema()).ok()?;
        LexOrdering::new([PhysicalSortExpr::new(time, SortOptions { descending: false, nulls_first: false })])
    }

    /// The files in as many groups as are read at once; and how rows are ordered in each of these, if they
    /// are.
    fn groups(
        &self,
        files: Vec<PartitionedFile>,
        sorted: bool,
        at_once: usize,
    ) -> (Vec<FileGroup>, Vec<LexOrdering>) {
        let described = files.iter().all(PartitionedFile::has_statistics);
        let all = FileGroup::new(files);
        if let Some(ordering) = self.ordering().filter(|_| described && sorted) {
            let schema = self.schema.table_schema();
            let all = std::slice::from_ref(&all);
            let chains = FileScanConfig::split_groups_by_statistics_with_target_partitions(
                schema, all, &ordering, at_once,
            );
            if let Some(chains) = chains.ok().filter(|chains| chains.len() <= at_once) {
                return (chains, vec![ordering]);
            }
        }
        (all.split_files(at_once), Vec::new())
    }

    /// The groups, each with what is known of it, and what is known of all of them: no more than their
    /// `rows`, if the files are not described.
    fn summed(&self, groups: Vec<FileGroup>, rows: Precision<usize>) -> Result<(Vec<FileGroup>, Statistics)> {
        let schema = self.schema.table_schema();
        if groups.iter().flat_map(FileGroup::iter).any(|file| !file.has_statistics()) {
            let mut whole = Statistics::new_unknown(schema);
            whole.num_rows = rows;
            return Ok((groups, whole));
        }
        let sum = |group: FileGroup| {
            let files = group.iter().filter_map(|file| file.statistics.as_deref());
            let statistics = Statistics::try_merge_iter(files, schema)?;
            Ok(group.with_statistics(Arc::new(statistics)))
        };
        let groups = groups.into_iter().map(sum).collect::<Result<Vec<_>>>()?;
        let whole = Statistics::try_merge_iter(
            groups.iter().filter_map(|group| group.file_statistics(None)),
            schema,
        )?;
        Ok((groups, whole))
    }

    /// Ours are, and say so by telling their times.
    fn is_sorted(&self, place: usize) -> bool {
        self.files[place].0.times.is_some()
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match self.decided_by_files(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let store = state.runtime_env().object_store(&self.store_url)?;
        let footers = state.runtime_env().cache_manager.get_file_metadata_cache();
        let readers: Arc<dyn ParquetFileReaderFactory> =
            Arc::new(CachedParquetFileReaderFactory::new(store, footers));
        let places = self.selected(filters, state.execution_props())?;
        let described = places.len() <= MOST_DESCRIBED && state.config_options().execution.collect_statistics;
        let files = self.looked_up(&places, described, filters, &readers).await?;
        if files.is_empty() {
            let columns: Vec<usize> = (0..self.schema().fields().len()).collect();
            return Ok(Arc::new(EmptyExec::new(Arc::new(
                self.schema().project(projection.unwrap_or(&columns))?,
            ))));
        }
        let sorted = places.iter().all(|place| self.is_sorted(*place));
        let (groups, ordering) = self.groups(files, sorted, state.config().target_partitions());
        let rows = places.iter().map(|place| self.rows(*place)).reduce(|a, b| a.add(&b)).unwrap_or_default();
        let (groups, statistics) = self.summed(groups, rows)?;
        let options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..Default::default()
        };
        // Pages are told apart by the time alone, which rows are sorted by: for other conditions their index
        // is read in vain.
        let of_time = |filter: &Expr| {
            filter.column_refs().iter().any(|column| column.name == Standard::EventTime.name())
        };
        // To read a column only where a condition holds pays where many columns are read: it takes a second
        // pass over the rows.
        let asked: HashSet<&Column> = filters.iter().flat_map(|filter| filter.column_refs()).collect();
        let read = projection.map_or(self.schema().fields().len(), Vec::len);
        let source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(options)
            .with_pushdown_filters(read > asked.len() + READ_WHOLE)
            .with_enable_page_index(
                filters.iter().any(|filter| of_time(filter) && !self.decided_by_files(filter)),
            )
            // They were asked: with 32 bytes, where this would read all of them.
            .with_bloom_filter_on_read(false)
            .with_parquet_file_reader_factory(readers);
        let scan = FileScanConfigBuilder::new(self.store_url.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_output_ordering(ordering)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit);
        Ok(DataSourceExec::from_data_source(scan.build()))
    }
}

impl Bounds {
    fn of_times(&self, pick: fn(TimeBounds) -> i64) -> ArrayRef {
        let times: TimestampMicrosecondArray = self.times.iter().map(|times| times.map(pick)).collect();
        Arc::new(times.with_data_type(timestamp_type()))
    }

    fn of(&self, column: &Column, pick: fn(TimeBounds) -> i64) -> Option<ArrayRef> {
        if column.name == Standard::EventTime.name() {
            return Some(self.of_times(pick));
        }
        self.partitions.column_by_name(&column.name).cloned()
    }
}

impl PruningStatistics for Bounds {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column, |times| times.least)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column, |times| times.greatest)
    }

    fn num_containers(&self) -> usize {
        self.times.len()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter(self.rows.iter().map(|rows| (*rows > 0).then_some(*rows)))))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// The address under which plans know the store: its bucket, or the file system.
pub fn store_url(store: &Store) -> Result<ObjectStoreUrl> {
    ObjectStoreUrl::parse(&store.url[..url::Position::BeforePath])
}

/// The partition columns' values, one row a file.
fn partition_values(columns: &[FieldRef], files: &[DataFile]) -> Result<RecordBatch> {
    let values = |field: &FieldRef| {
        let value = |file: &DataFile| match file.partition_values.get(field.name()) {
            Some(text) => ScalarValue::try_from_string(text.clone(), field.data_type()),
            None => ScalarValue::try_from(field.data_type()),
        };
        let values = files.iter().map(value).collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            Ok(arrow::array::new_empty_array(field.data_type()))
        } else {
            ScalarValue::iter_to_array(values)
        }
    };
    let schema = Arc::new(Schema::new(columns.to_vec()));
    let count = RecordBatchOptions::new().with_row_count(Some(files.len()));
    Ok(RecordBatch::try_new_with_options(schema, columns.iter().map(values).collect::<Result<_>>()?, &count)?)
}
