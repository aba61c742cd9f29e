//! Functions that make much of little: `repeat('x', 2000000000)`, `range(1, 1000000000)`. What they make is in no budget of
//! DataFusion's, so it is reckoned before they are called, where that can be done, and measured afterwards where it can't.

use std::any::Any;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalUnit, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry as _;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// The functions whose result may be much larger than what they are given, or twice as large and then twice as large again.
const GROWING: [&str; 20] = [
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
    "encode",
    "overlay",
    "translate",
    "arrays_zip",
];
/// What a result may take of the memory, for one batch of rows.
const RESULT_SHARE: usize = 4;
/// What a batch's constants may take of it.
const CONSTANTS_SHARE: usize = 8;

/// Bounds what these functions make in this session.
pub fn bound(context: &SessionContext, memory: usize) -> Result<()> {
    for name in GROWING {
        context.register_udf(Bounded::over(context.udf(name)?, memory / RESULT_SHARE));
    }
    Ok(())
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
    most: usize,
}

impl Bounded {
    fn over(function: Arc<ScalarUDF>, most: usize) -> ScalarUDF {
        ScalarUDF::new_from_impl(Self { function, most })
    }

    fn check(&self, bytes: u128) -> Result<()> {
        if bytes <= self.most as u128 {
            return Ok(());
        }
        let (name, most) = (self.name(), self.most);
        Err(DataFusionError::ResourcesExhausted(format!(
            "{name} would make {bytes} bytes of some rows, and may make {most} (a quarter of it)"
        )))
    }
}

impl ScalarUDFImpl for Bounded {
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

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        self.function.return_field_from_args(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(expected(self.name(), &arguments))?;
        let result = self.function.invoke_with_args(arguments)?;
        let size = match &result {
            ColumnarValue::Array(array) => array.get_array_memory_size(),
            ColumnarValue::Scalar(value) => value.size(),
        };
        self.check(size as u128)?;
        Ok(result)
    }

    fn simplify(&self, arguments: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        // It may become another one of these functions, as DataFusion has it.
        Ok(match self.function.simplify(arguments, context)? {
            ExprSimplifyResult::Simplified(expr) => ExprSimplifyResult::Simplified(expr.transform(|e| Ok(bounded(e, self.most)))?.data),
            same => same,
        })
    }

    fn short_circuits(&self) -> bool {
        self.function.short_circuits()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.function.evaluate_bounds(input)
    }

    fn output_ordering(&self, input: &[ExprProperties]) -> Result<SortProperties> {
        self.function.output_ordering(input)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }
}

fn bounded(expr: Expr, most: usize) -> Transformed<Expr> {
    let Expr::ScalarFunction(mut call) = expr else { return Transformed::no(expr) };
    let is_bounded = (call.func.inner().as_ref() as &dyn Any).is::<Bounded>();
    if is_bounded || !GROWING.contains(&call.func.name()) {
        return Transformed::no(Expr::ScalarFunction(call));
    }
    call.func = Arc::new(Bounded::over(call.func, most));
    Transformed::yes(Expr::ScalarFunction(call))
}

/// How many bytes a call is going to make, at most; nothing where that is not known beforehand.
fn expected(name: &str, call: &ScalarFunctionArgs) -> u128 {
    let of_one = call.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
    let rows = if of_one { 1 } else { call.number_rows };
    let length = |n: usize| call.args.get(n).map_or_else(|| vec![0; rows], |value| lengths(value, rows));
    let number = |n: usize| call.args.get(n).map_or_else(|| vec![0; rows], |value| numbers(value, rows));
    let product = |a: Vec<u128>, b: Vec<u128>| a.into_iter().zip(b).map(|(a, b)| a.saturating_mul(b)).fold(0, u128::saturating_add);
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
            let (list, between) = (sizes(&call.args[0], rows), length(1));
            // At least a few bytes a value.
            (0..rows).map(|n| (list[n] / 4 + 1).saturating_mul(between[n])).fold(0, u128::saturating_add)
        }
        _ => 0,
    }
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
        ColumnarValue::Array(array) => vec![array.get_array_memory_size() as u128 / array.len().max(1) as u128; rows],
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
            let number = value.to_array().ok().and_then(|array| all(&array)).and_then(|all| all.first().copied());
            vec![number.unwrap_or(0); rows]
        }
    }
}

/// How many values a range has, in all rows: of numbers, or of seconds.
fn steps(arguments: &[ColumnarValue], rows: usize) -> u128 {
    let is_time = |value: &ColumnarValue| matches!(value.data_type(), DataType::Date32 | DataType::Date64 | DataType::Timestamp(..));
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
    value.map_or_else(|_| vec![0; rows], |value| numbers(&value, rows).into_iter().map(|s| s * 1_000_000_000).collect())
}

/// About how long an interval is.
fn interval(value: &ColumnarValue, rows: usize) -> Vec<i128> {
    const DAY: i128 = 86_400_000_000_000;
    let length = |months: i32, days: i32, ns: i64| (i128::from(months) * 28 + i128::from(days)) * DAY + i128::from(ns);
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
