//! Bounds aggregates that collect all their input: `string_agg`, `array_agg`. DataFusion accounts for their
//! state while rows come in, but not for what is merged back from disk, nor for their results in a window:
//! one per row, each as long as all rows before.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array as _, ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry as _;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    Signature,
};

const COLLECTING_AGGREGATES: [&str; 2] = ["string_agg", "array_agg"];
/// What the results of one of them may take of the memory: those of all rows of a window's partition.
const RESULTS_SHARE: usize = 4;
/// Rows of a batch that is read back from disk, at most.
const MERGED_ROWS: usize = 8192;

/// Bounds what they hold and make in this session.
pub fn bound(context: &SessionContext, memory: usize) -> Result<()> {
    for name in COLLECTING_AGGREGATES {
        let bounded =
            Bounded { function: context.udaf(name)?, budget: Budget { memory, held: Arc::default() } };
        context.register_udaf(AggregateUDF::new_from_impl(bounded));
    }
    Ok(())
}

/// What all that an aggregate is at work on may hold, and what it holds.
#[derive(Debug, Clone)]
struct Budget {
    memory: usize,
    held: Arc<AtomicUsize>,
}

impl PartialEq for Budget {
    fn eq(&self, other: &Self) -> bool {
        self.memory == other.memory && Arc::ptr_eq(&self.held, &other.held)
    }
}

impl Eq for Budget {}

impl Hash for Budget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.memory.hash(state);
    }
}

/// A part of it.
#[derive(Debug)]
struct Hold {
    budget: Budget,
    name: &'static str,
    bytes: usize,
    /// What was made so far.
    made: usize,
    /// What will be held when it is merged.
    aside: usize,
}

impl Hold {
    fn new(budget: &Budget, name: &str) -> Self {
        let name = COLLECTING_AGGREGATES.into_iter().find(|own| *own == name).unwrap_or_default();
        Self { budget: budget.clone(), name, bytes: 0, made: 0, aside: 0 }
    }

    fn holds(&mut self, bytes: usize) -> Result<()> {
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        let all = self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed) - self.bytes;
        self.bytes = bytes;
        // What is within DataFusion's budget goes to disk when that is used up, a batch later.
        let most = self.budget.memory.saturating_mul(2);
        if all > most { Err(self.too_much("hold", all, most)) } else { Ok(()) }
    }

    fn makes(&mut self, bytes: usize) -> Result<()> {
        self.made += bytes;
        let most = self.budget.memory / RESULTS_SHARE;
        if self.made > most { Err(self.too_much("make", self.made, most)) } else { Ok(()) }
    }

    /// What goes to disk comes back in one batch of each time that it went there, all at once.
    fn sets_aside(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |states| states.len());
        let bytes: usize = states.iter().map(|states| states.get_array_memory_size()).sum();
        self.aside += bytes / rows.max(1) * rows.min(MERGED_ROWS);
        if self.aside > self.budget.memory {
            Err(self.too_much("hold", self.aside, self.budget.memory))
        } else {
            Ok(())
        }
    }

    fn too_much(&self, does: &str, bytes: usize, most: usize) -> DataFusionError {
        DataFusionError::ResourcesExhausted(format!(
            "{} would {does} {bytes} bytes, and may {does} {most}",
            self.name
        ))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An aggregate of DataFusion's, under its name, that refuses to hold or make more than this.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bounded {
    function: Arc<AggregateUDF>,
    budget: Budget,
}

impl Bounded {
    fn hold(&self) -> Hold {
        Hold::new(&self.budget, self.function.name())
    }
}

impl AggregateUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.function.return_type(arguments)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        self.function.return_field(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { of: self.function.accumulator(arguments)?, hold: self.hold() }))
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { of: self.function.create_sliding_accumulator(arguments)?, hold: self.hold() }))
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.function.state_fields(arguments)
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs) -> bool {
        self.function.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { of: self.function.create_groups_accumulator(arguments)?, hold: self.hold() }))
    }

    fn with_beneficial_ordering(
        self: Arc<Self>,
        beneficial_ordering: bool,
    ) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        let ordered = self.function.as_ref().clone().with_beneficial_ordering(beneficial_ordering)?;
        Ok(ordered.map(|function| {
            Arc::new(Self { function: Arc::new(function), budget: self.budget.clone() }) as _
        }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.function.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        match self.function.reverse_udf() {
            ReversedUDAF::Reversed(function) => {
                ReversedUDAF::Reversed(Arc::new(AggregateUDF::new_from_impl(Self {
                    function,
                    budget: self.budget.clone(),
                })))
            }
            other => other,
        }
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn default_value(&self, kind: &DataType) -> Result<ScalarValue> {
        self.function.default_value(kind)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.function.supports_null_handling_clause()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }
}

/// The rows of one group, or of a window's frame.
#[derive(Debug)]
struct One {
    of: Box<dyn Accumulator>,
    hold: Hold,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.of.update_batch(values)?;
        self.hold.holds(self.of.size())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.of.merge_batch(states)?;
        self.hold.holds(self.of.size())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.of.retract_batch(values)?;
        self.hold.holds(self.of.size())
    }

    fn supports_retract_batch(&self) -> bool {
        self.of.supports_retract_batch()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let value = self.of.evaluate()?;
        self.hold.makes(value.size())?;
        Ok(value)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.of.state()
    }

    fn size(&self) -> usize {
        self.of.size()
    }
}

/// The rows of all groups.
struct Groups {
    of: Box<dyn GroupsAccumulator>,
    hold: Hold,
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.of.update_batch(values, groups, filter, total)?;
        self.hold.holds(self.of.size())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.of.merge_batch(values, groups, total)?;
        self.hold.holds(self.of.size())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let values = self.of.evaluate(emit_to)?;
        self.hold.holds(self.of.size())?;
        Ok(values)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let states = self.of.state(emit_to)?;
        self.hold.holds(self.of.size())?;
        self.hold.sets_aside(&states)?;
        Ok(states)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.of.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        self.of.size()
    }
}
