//! Releases text that a batch no longer needs. An array of views keeps the whole buffer behind each of its
//! values; a batch assembled from parts of others, as for a join, holds (and is accounted as) many times its
//! own text. Where memory is short, batches are copied into buffers of their own before a sort.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, ListArray, MapArray, RecordBatch, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, replace_children_if_necessary,
};
use futures::StreamExt as _;

/// Puts a [`GcExec`] before every sort of a plan.
#[derive(Debug)]
pub struct GcBeforeSort;

impl PhysicalOptimizerRule for GcBeforeSort {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let under_sort = |plan: Arc<dyn ExecutionPlan>| match plan.downcast_ref::<SortExec>() {
            Some(sort) => {
                let input: Arc<dyn ExecutionPlan> = Arc::new(GcExec { input: sort.input().clone() });
                Ok(Transformed::yes(replace_children_if_necessary(plan, vec![input])?))
            }
            None => Ok(Transformed::no(plan)),
        };
        plan.transform_up(under_sort).data()
    }

    fn name(&self) -> &str {
        "gc_before_sort"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Hands batches on, each with no more text than its rows have.
#[derive(Debug)]
struct GcExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for GcExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GcExec")
    }
}

impl ExecutionPlan for GcExec {
    fn name(&self) -> &str {
        "GcExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { input: children.swap_remove(0) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batches = self.input.execute(partition, context)?;
        let schema = batches.schema();
        let batches = batches.map(|batch| Ok(gc_batch(&batch?)?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

fn gc_batch(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().map(gc_array).collect::<Result<_, _>>()?;
    RecordBatch::try_new(batch.schema(), columns)
}

/// The same values in buffers that hold nothing else.
fn gc_array(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    Ok(match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::List(field) => {
            let list = array.as_list::<i32>();
            let (offsets, values) = gc_elements(list.offsets(), list.values())?;
            Arc::new(ListArray::try_new(field.clone(), offsets, values, list.nulls().cloned())?)
        }
        DataType::Map(field, sorted) => {
            let map = array.as_map();
            let (offsets, entries) = gc_elements(map.offsets(), &(Arc::new(map.entries().clone()) as _))?;
            let entries = entries.as_struct().clone();
            Arc::new(MapArray::try_new(field.clone(), offsets, entries, map.nulls().cloned(), *sorted)?)
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter().map(gc_array).collect::<Result<_, _>>()?;
            Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                columns,
                array.nulls().cloned(),
                array.len(),
            )?)
        }
        _ => array.clone(),
    })
}

/// Of a list's or map's elements those that it uses, and the offsets into them.
fn gc_elements(
    offsets: &OffsetBuffer<i32>,
    elements: &ArrayRef,
) -> Result<(OffsetBuffer<i32>, ArrayRef), ArrowError> {
    let lengths = OffsetBuffer::from_lengths(offsets.lengths());
    let (first, last) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
    Ok((lengths, gc_array(&elements.slice(first, last - first))?))
}
