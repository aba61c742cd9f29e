//! Checks a condition's values against bloom filters before anything else is read: `RayID = '…'`, and
//! `array_has(p_any_ip_addresses, '…')`, for which DataFusion uses no filter. 32 bytes can rule out a row
//! group.

use std::ops::Range;

use datafusion::common::ScalarValue;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::Result;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

use crate::format::bloom;

/// A list of more values than this is left to the rows.
const MOST_VALUES: usize = 64;

/// What a condition says of columns with bloom filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Only rows in which the column, or its list, holds a value of this hash.
    Holds(String, u64),
    /// What one of these lets pass.
    Any(Vec<Condition>),
    /// What all of these let pass.
    All(Vec<Condition>),
    /// Nothing is known.
    Perhaps,
    /// No row.
    Never,
}

impl Condition {
    /// What a condition looks for in the columns of `filtered`.
    pub fn of(condition: &Expr, filtered: &[String]) -> Self {
        match condition {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                Self::all(vec![Self::of(left, filtered), Self::of(right, filtered)])
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                Self::any(vec![Self::of(left, filtered), Self::of(right, filtered)])
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                let either = Self::holds(left, right, filtered);
                if either == Self::Perhaps { Self::holds(right, left, filtered) } else { either }
            }
            Expr::InList(list) if !list.negated && list.list.len() <= MOST_VALUES => {
                Self::any(list.list.iter().map(|value| Self::holds(&list.expr, value, filtered)).collect())
            }
            Expr::ScalarFunction(call) if call.name() == "array_has" && call.args.len() == 2 => {
                Self::holds(&call.args[0], &call.args[1], filtered)
            }
            // Neither is true of any row.
            Expr::Literal(value, _) if value.is_null() || *value == ScalarValue::Boolean(Some(false)) => {
                Self::Never
            }
            _ => Self::Perhaps,
        }
    }

    fn holds(column: &Expr, value: &Expr, filtered: &[String]) -> Self {
        let (Expr::Column(column), Expr::Literal(value, _)) = (column, value) else { return Self::Perhaps };
        match value.try_as_str() {
            Some(Some(text)) if filtered.contains(&column.name) => {
                Self::Holds(column.name.clone(), bloom::hash(text))
            }
            _ => Self::Perhaps,
        }
    }

    fn any(parts: Vec<Self>) -> Self {
        if parts.contains(&Self::Perhaps) {
            return Self::Perhaps;
        }
        Self::Any(parts)
    }

    fn all(parts: Vec<Self>) -> Self {
        if parts.iter().all(|part| *part == Self::Perhaps) { Self::Perhaps } else { Self::All(parts) }
    }

    /// What all conditions together say.
    pub fn of_all(conditions: &[Expr], filtered: &[String]) -> Self {
        Self::all(conditions.iter().map(|condition| Self::of(condition, filtered)).collect())
    }

    /// Which row groups of a file may have a row; none if no row group has.
    pub async fn ask(&self, file: &mut dyn AsyncFileReader) -> Result<Option<ParquetAccessPlan>> {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Skip);
        let metadata = file.get_metadata(Some(&options)).await?;
        let groups = metadata.num_row_groups();
        let mut blocks: Vec<Range<u64>> =
            (0..groups).flat_map(|group| self.blocks(&metadata, group)).collect();
        blocks.sort_by_key(|block| block.start);
        blocks.dedup();
        let bytes = if blocks.is_empty() { Vec::new() } else { file.get_byte_ranges(blocks.clone()).await? };
        let may_hold = |block: &Range<u64>, hash: u64| {
            blocks
                .binary_search_by_key(&block.start, |b| b.start)
                .map_or(true, |n| bloom::may_hold(&bytes[n], hash))
        };
        let access = (0..groups).map(|group| match self.lets_pass(&metadata, group, &may_hold) {
            true => RowGroupAccess::Scan,
            false => RowGroupAccess::Skip,
        });
        let plan = ParquetAccessPlan::new(access.collect());
        Ok((!plan.row_group_indexes().is_empty()).then_some(plan))
    }

    fn blocks(&self, metadata: &ParquetMetaData, group: usize) -> Vec<Range<u64>> {
        match self {
            Self::Holds(column, hash) => block_of(metadata, group, column, *hash).into_iter().collect(),
            Self::Any(parts) | Self::All(parts) => {
                parts.iter().flat_map(|part| part.blocks(metadata, group)).collect()
            }
            Self::Perhaps | Self::Never => Vec::new(),
        }
    }

    fn lets_pass(
        &self,
        metadata: &ParquetMetaData,
        group: usize,
        may_hold: &impl Fn(&Range<u64>, u64) -> bool,
    ) -> bool {
        match self {
            Self::Holds(column, hash) => {
                block_of(metadata, group, column, *hash).is_none_or(|block| may_hold(&block, *hash))
            }
            Self::Any(parts) => parts.iter().any(|part| part.lets_pass(metadata, group, may_hold)),
            Self::All(parts) => parts.iter().all(|part| part.lets_pass(metadata, group, may_hold)),
            Self::Perhaps => true,
            Self::Never => false,
        }
    }
}

fn block_of(metadata: &ParquetMetaData, group: usize, column: &str, hash: u64) -> Option<Range<u64>> {
    let columns = metadata.row_group(group).columns();
    let own = columns.iter().find(|c| c.column_path().parts().first().is_some_and(|root| root == column))?;
    bloom::block_of(own, hash)
}
