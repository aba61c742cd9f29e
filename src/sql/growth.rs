//! Functions whose result can be far larger than their input: `repeat('x', 2000000000)`,
//! `range(1, 1000000000)`. DataFusion does not account for these results, so their size is computed before
//! the call where possible, and measured afterwards where not.

use std::any::Any;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalUnit, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::SessionContext;
use datafusion::execution::{FunctionRegistry as _, SessionStateBuilder};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawDictionaryExpr};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Documentation, Expr, LogicalPlan, Operator, ReturnFieldArgs,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, StructFieldMapping, Volatility,
};

/// The functions whose result may be much larger than what they are given, or twice as large and then twice
/// as large again.
const GROWING: [&str; 27] = [
    "repeat",
    "lpad",
    "rpad",
    "range",
    "generate_series",
    "array_repeat",
    "array_resize",
    "replace",
    "regexp_replace",
    "array_to_string",
    "string_to_array",
    "concat",
    "concat_ws",
    "array_concat",
    "array_append",
    "array_prepend",
    "array_replace_all",
    "array_replace_n",
    "encode",
    "overlay",
    "to_char",
    "translate",
    "arrays_zip",
    "make_array",
    "map",
    "named_struct",
    "struct",
];
/// Those that put together what they are given: what they make shares its bytes with that, and is as large as
/// all of it.
const COLLECTION_BUILDERS: [&str; 4] = ["make_array", "map", "named_struct", "struct"];
/// What a result may take of the memory, for one batch of rows.
const RESULT_SHARE: usize = 4;
/// What a batch's constants may take of it.
const CONSTANTS_SHARE: usize = 8;
/// Bytes of what is put between texts; more is joined only where it is bounded.
const LONG: usize = 1024;
/// Fields of a type, with those of its fields: a structure of two structures of two has as many again at each
/// level.
const MAX_FIELDS: usize = 10_000;

/// The session in which what these functions make is bounded.
pub fn bound(context: &SessionContext, memory: usize) -> Result<SessionContext> {
    let share = Share { memory, calls: 1 };
    for name in GROWING {
        context.register_udf(Bounded::over(context.udf(name)?, share));
    }
    let literals: Arc<dyn ExprPlanner> =
        Arc::new(Literals { plain: context.udf("struct")?, named: context.udf("named_struct")? });
    let state = context.state();
    let planners = std::iter::once(literals).chain(state.expr_planners().iter().cloned()).collect();
    Ok(SessionContext::new_with_state(
        SessionStateBuilder::new_from_existing(state).with_expr_planners(planners).build(),
    ))
}

/// Structures that are written as literals: the bounded functions make them. Their types have to be refused
/// before the planner looks at them, which would not end.
#[derive(Debug)]
struct Literals {
    plain: Arc<ScalarUDF>,
    named: Arc<ScalarUDF>,
}

impl ExprPlanner for Literals {
    fn plan_struct_literal(&self, arguments: Vec<Expr>, is_named: bool) -> Result<PlannerResult<Vec<Expr>>> {
        let function = if is_named { &self.named } else { &self.plain };
        Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(function.clone(), arguments))))
    }

    fn plan_dictionary_literal(
        &self,
        literal: RawDictionaryExpr,
        _: &DFSchema,
    ) -> Result<PlannerResult<RawDictionaryExpr>> {
        let arguments =
            literal.keys.into_iter().zip(literal.values).flat_map(|(key, value)| [key, value]).collect();
        Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(
            self.named.clone(),
            arguments,
        ))))
    }
}

/// The same plan, in which all calls of these functions together keep to the memory, and in which those that
/// the planner itself has put there (`[a, b]`, `a || b`) are bounded, too.
pub fn bound_together(plan: LogicalPlan, memory: usize) -> Result<LogicalPlan> {
    let mut calls = 0;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                calls += usize::from(is_growing(part));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    if calls == 0 {
        return Ok(plan);
    }
    let share = Share { memory, calls };
    let bounded = plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| expr.transform_up(|part| Ok(bounded(part, share))))
    });
    Ok(bounded?.data)
}

fn is_growing(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => GROWING.contains(&call.func.name()),
        Expr::BinaryExpr(BinaryExpr { op, .. }) => *op == Operator::StringConcat,
        _ => false,
    }
}

/// What one call may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Share {
    memory: usize,
    /// How many calls the statement has.
    calls: usize,
}

impl Share {
    /// Constants are made while the statement is planned, and stand in the plan all at once; of rows one
    /// batch after the other is made.
    fn most(self, is_constant: bool) -> usize {
        let of_rows = self.memory / self.calls.max(RESULT_SHARE);
        if is_constant { of_rows.min(self.memory / RESULT_SHARE / self.calls.max(1)) } else { of_rows }
    }

    fn check(self, name: &str, bytes: u128, is_constant: bool) -> Result<()> {
        let most = self.most(is_constant);
        if bytes <= most as u128 {
            return Ok(());
        }
        let what = if is_constant { "from constants" } else { "of some rows" };
        Err(DataFusionError::ResourcesExhausted(format!(
            "{name} would make {bytes} bytes {what}, and may make {most} (its share of the memory among {} such calls)",
            self.calls
        )))
    }
}

/// How many rows a batch may have, so that the plan's constants, which stand in every row, fit.
pub fn rows_of_constants(plan: &LogicalPlan, memory: usize) -> Result<usize> {
    let mut largest = 1;
    plan.apply_with_subqueries(|node| {
        let is_result = matches!(node, LogicalPlan::Projection(_));
        let mut all = 0;
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::Literal(value, _) = part {
                    let size = value.size();
                    largest = largest.max(size);
                    all += size;
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        if is_result {
            largest = largest.max(all);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((memory / CONSTANTS_SHARE / largest).max(1))
}

/// A function of DataFusion's, under its name, that refuses to make more than this.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    function: Arc<ScalarUDF>,
    share: Share,
}

impl Bounded {
    fn over(function: Arc<ScalarUDF>, share: Share) -> ScalarUDF {
        ScalarUDF::new_from_impl(Self { function, share })
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        self.function.schema_name(arguments)
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.function.return_type(arguments)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        // Before the type is made: to look at it would already take long.
        let fields = arguments
            .arg_fields
            .iter()
            .map(|field| fields(field.data_type(), MAX_FIELDS))
            .fold(1, usize::saturating_add);
        if fields > MAX_FIELDS {
            return Err(DataFusionError::Plan(format!(
                "{} would make a type of more than {MAX_FIELDS} fields, counting those in its fields: nest less",
                self.name()
            )));
        }
        self.function.return_field_from_args(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = arguments.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        self.share.check(self.name(), expected(self.name(), &arguments), is_constant)?;
        let result = self.function.invoke_with_args(arguments)?;
        if !COLLECTION_BUILDERS.contains(&self.name()) {
            self.share.check(self.name(), size(&result) as u128, is_constant)?;
        }
        Ok(result)
    }

    fn simplify(&self, arguments: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        // Constants are joined there, before anyone is asked.
        let is_long = |expr: &Expr| matches!(expr, Expr::Literal(value, _) if value.size() > LONG);
        if self.name() == "concat_ws" && arguments.first().is_some_and(is_long) {
            return Ok(ExprSimplifyResult::Original(arguments));
        }
        // It may become another one of these functions, as DataFusion has it.
        Ok(match self.function.simplify(arguments, context)? {
            ExprSimplifyResult::Simplified(expr) => {
                ExprSimplifyResult::Simplified(expr.transform(|part| Ok(bounded(part, self.share)))?.data)
            }
            same => same,
        })
    }

    fn short_circuits(&self) -> bool {
        self.function.short_circuits()
    }

    fn is_strict(&self) -> bool {
        self.function.is_strict()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.function.evaluate_bounds(input)
    }

    fn output_ordering(&self, input: &[ExprProperties]) -> Result<SortProperties> {
        self.function.output_ordering(input)
    }

    fn struct_field_mapping(&self, literals: &[Option<ScalarValue>]) -> Option<StructFieldMapping> {
        self.function.struct_field_mapping(literals)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }
}

/// What it is given, if that is not too much: around operators, which can't be asked to make less.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Within {
    share: Share,
    signature: Signature,
}

impl ScalarUDFImpl for Within {
    fn name(&self) -> &str {
        "within"
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        Ok(arguments.iter().map(|expr| expr.schema_name().to_string()).collect())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(arguments.arg_fields[0].clone())
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value = arguments.args.swap_remove(0);
        self.share.check("||", size(&value) as u128, matches!(value, ColumnarValue::Scalar(_)))?;
        Ok(value)
    }
}

fn bounded(expr: Expr, share: Share) -> Transformed<Expr> {
    match expr {
        Expr::ScalarFunction(mut call) if GROWING.contains(&call.func.name()) => {
            let known = (call.func.inner().as_ref() as &dyn Any).downcast_ref::<Bounded>();
            if known.is_some_and(|known| known.share == share) {
                return Transformed::no(Expr::ScalarFunction(call));
            }
            let function = known.map_or_else(|| call.func.clone(), |known| known.function.clone());
            call.func = Arc::new(Bounded::over(function, share));
            Transformed::yes(Expr::ScalarFunction(call))
        }
        Expr::BinaryExpr(BinaryExpr { op: Operator::StringConcat, .. }) => {
            let within = ScalarUDF::new_from_impl(Within {
                share,
                signature: Signature::any(1, Volatility::Immutable),
            });
            Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(within), vec![expr])))
        }
        expr => Transformed::no(expr),
    }
}

fn size(value: &ColumnarValue) -> usize {
    match value {
        ColumnarValue::Array(array) => array.get_array_memory_size(),
        ColumnarValue::Scalar(value) => value.size(),
    }
}

/// How many fields a type has, with those of its fields; hardly more than `most` are counted.
fn fields(kind: &DataType, most: usize) -> usize {
    let of = |parts: &mut dyn Iterator<Item = &FieldRef>| {
        let mut all = 1;
        for part in parts {
            if all > most {
                break;
            }
            all += fields(part.data_type(), most - all);
        }
        all
    };
    match kind {
        DataType::Struct(parts) => of(&mut parts.iter()),
        DataType::List(part)
        | DataType::LargeList(part)
        | DataType::FixedSizeList(part, _)
        | DataType::Map(part, _) => of(&mut std::iter::once(part)),
        _ => 1,
    }
}

/// How many bytes a call is going to make, at most; nothing where that is not known beforehand.
fn expected(name: &str, call: &ScalarFunctionArgs) -> u128 {
    let of_one = call.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
    let rows = if of_one { 1 } else { call.number_rows };
    let length = |n: usize| call.args.get(n).map_or_else(|| vec![0; rows], |value| lengths(value, rows));
    let number = |n: usize| call.args.get(n).map_or_else(|| vec![0; rows], |value| numbers(value, rows));
    let product = |a: Vec<u128>, b: Vec<u128>| {
        a.into_iter().zip(b).map(|(a, b)| a.saturating_mul(b)).fold(0, u128::saturating_add)
    };
    let count = |n: usize| number(n).into_iter().map(|n| n.max(0).unsigned_abs()).collect::<Vec<u128>>();
    match name {
        "repeat" => product(length(0), count(1)),
        // Of four bytes a character, if that is what it may be filled with.
        "lpad" | "rpad" => {
            let is_narrow = match call.args.get(2) {
                None => true,
                Some(ColumnarValue::Scalar(fill)) => fill.try_as_str().flatten().is_some_and(str::is_ascii),
                Some(ColumnarValue::Array(_)) => false,
            };
            product(vec![if is_narrow { 1 } else { 4 }; rows], count(1))
        }
        "range" | "generate_series" => steps(&call.args, rows).saturating_mul(8),
        "array_repeat" => product(sizes(&call.args[0], rows), count(1)),
        "array_resize" => product(vec![8; rows], count(1)),
        "replace" | "regexp_replace" => {
            let (text, from, to) = (length(0), length(1), length(2));
            let each = |n: usize| {
                // A pattern may match nothing, between any two characters.
                let least = if name == "replace" { from[n].max(1) } else { 1 };
                text[n].saturating_add((text[n] / least + 1).saturating_mul(to[n]))
            };
            (0..rows).map(each).fold(0, u128::saturating_add)
        }
        "array_to_string" => {
            // At least a byte a value.
            (counts(&call.args[0], rows).into_iter().zip(length(1)))
                .map(|(n, between)| n.saturating_mul(between + 1))
                .fold(0, u128::saturating_add)
        }
        // The longest of what stands for two bytes: %+.
        "to_char" => {
            length(1).into_iter().map(|format| format.saturating_mul(18)).fold(0, u128::saturating_add)
        }
        "array_replace_all" | "array_replace_n" => {
            let (list, to) = (counts(&call.args[0], rows), weights(&call.args[2], rows));
            product(list, to)
        }
        "concat_ws" => {
            let between = length(0).into_iter().fold(0, u128::saturating_add);
            let texts =
                call.args[1..].iter().flat_map(|text| weights(text, rows)).fold(0, u128::saturating_add);
            between.saturating_mul(call.args.len().saturating_sub(2) as u128).saturating_add(texts)
        }
        _ if COLLECTION_BUILDERS.contains(&name) || name == "concat" || name == "array_concat" => {
            call.args.iter().flat_map(|part| weights(part, rows)).fold(0, u128::saturating_add)
        }
        _ => 0,
    }
}

/// How many values each row's list has.
fn counts(value: &ColumnarValue, rows: usize) -> Vec<u128> {
    let of = |array: &dyn Array| {
        let length = |from: i64, to: i64| (to - from).max(0).unsigned_abs().into();
        match array.data_type() {
            DataType::List(_) => array
                .as_list::<i32>()
                .offsets()
                .windows(2)
                .map(|w| length(w[0].into(), w[1].into()))
                .collect(),
            DataType::LargeList(_) => {
                array.as_list::<i64>().offsets().windows(2).map(|w| length(w[0], w[1])).collect()
            }
            _ => Vec::new(),
        }
    };
    let mut counts: Vec<u128> = match value {
        ColumnarValue::Array(array) => of(array.as_ref()),
        ColumnarValue::Scalar(value) => {
            value.to_array().map_or_else(|_| Vec::new(), |array| of(array.as_ref()).repeat(rows))
        }
    };
    counts.resize(rows, 0);
    counts
}

/// About the bytes of each row's value, be it text or not.
fn weights(value: &ColumnarValue, rows: usize) -> Vec<u128> {
    if value.data_type().is_string() { lengths(value, rows) } else { sizes(value, rows) }
}

/// The bytes of each row's text.
fn lengths(value: &ColumnarValue, rows: usize) -> Vec<u128> {
    let length = |text: Option<&str>| text.map_or(0, str::len) as u128;
    match value {
        ColumnarValue::Scalar(value) => vec![length(value.try_as_str().flatten()); rows],
        ColumnarValue::Array(array) => match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().iter().map(length).collect(),
            DataType::LargeUtf8 => array.as_string::<i64>().iter().map(length).collect(),
            DataType::Utf8View => array.as_string_view().iter().map(length).collect(),
            _ => sizes(value, rows),
        },
    }
}

/// About the bytes of each row's value.
fn sizes(value: &ColumnarValue, rows: usize) -> Vec<u128> {
    match value {
        ColumnarValue::Scalar(value) => vec![value.size() as u128; rows],
        ColumnarValue::Array(array) => {
            vec![array.get_array_memory_size() as u128 / array.len().max(1) as u128; rows]
        }
    }
}

/// Each row's number; nothing where there is none.
fn numbers(value: &ColumnarValue, rows: usize) -> Vec<i128> {
    let all = |array: &ArrayRef| {
        let array = cast(array, &DataType::Int64).ok()?;
        Some(array.as_primitive::<Int64Type>().iter().map(|n| n.unwrap_or(0).into()).collect::<Vec<i128>>())
    };
    match value {
        ColumnarValue::Array(array) => all(array).unwrap_or_else(|| vec![0; rows]),
        ColumnarValue::Scalar(value) => {
            let number =
                value.to_array().ok().and_then(|array| all(&array)).and_then(|all| all.first().copied());
            vec![number.unwrap_or(0); rows]
        }
    }
}

/// How many values a range has, in all rows: of numbers, or of seconds.
fn steps(arguments: &[ColumnarValue], rows: usize) -> u128 {
    let is_time = |value: &ColumnarValue| {
        matches!(value.data_type(), DataType::Date32 | DataType::Date64 | DataType::Timestamp(..))
    };
    let (from, to, step) = match arguments {
        [to] => (None, to, None),
        [from, to] => (Some(from), to, None),
        [from, to, step, ..] => (Some(from), to, Some(step)),
        [] => return 0,
    };
    let times = is_time(to);
    let ends = |value: &ColumnarValue| if times { nanoseconds(value, rows) } else { numbers(value, rows) };
    let (from, to) = (from.map_or_else(|| vec![0; rows], ends), ends(to));
    let by = match step {
        Some(step) if times => interval(step, rows),
        Some(step) => numbers(step, rows),
        None => vec![if times { 86_400_000_000_000 } else { 1 }; rows],
    };
    let each = |n: usize| (to[n] - from[n]).unsigned_abs() / by[n].unsigned_abs().max(1) + 1;
    (0..rows).map(each).fold(0, u128::saturating_add)
}

fn nanoseconds(value: &ColumnarValue, rows: usize) -> Vec<i128> {
    let seconds = DataType::Timestamp(TimeUnit::Second, None);
    let value = value.cast_to(&seconds, None);
    value.map_or_else(
        |_| vec![0; rows],
        |value| numbers(&value, rows).into_iter().map(|s| s * 1_000_000_000).collect(),
    )
}

/// About how long an interval is.
fn interval(value: &ColumnarValue, rows: usize) -> Vec<i128> {
    const DAY: i128 = 86_400_000_000_000;
    let length =
        |months: i32, days: i32, ns: i64| (i128::from(months) * 28 + i128::from(days)) * DAY + i128::from(ns);
    let kind = DataType::Interval(IntervalUnit::MonthDayNano);
    match value.cast_to(&kind, None) {
        Ok(ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(step)))) => {
            vec![length(step.months, step.days, step.nanoseconds); rows]
        }
        Ok(ColumnarValue::Array(array)) => {
            let steps = array.as_primitive::<arrow::datatypes::IntervalMonthDayNanoType>();
            steps.iter().map(|step| step.map_or(DAY, |s| length(s.months, s.days, s.nanoseconds))).collect()
        }
        _ => vec![DAY; rows],
    }
}
