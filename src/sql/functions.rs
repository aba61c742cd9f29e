//! Faster replacements for DataFusion's functions, under the same names: a plan that is sent to another
//! process finds the original there, with the same results.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _};
use arrow::datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType};
use datafusion::error::Result;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature,
};

use crate::schema::timestamp_type;

/// `date_trunc` over our times, which are in UTC: there every hour and every day is as long as any other, and
/// a division finds its beginning. DataFusion knows that of times without a zone, and looks every other one
/// up in a calendar.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct DateTrunc(Arc<ScalarUDF>);

impl DateTrunc {
    /// The function that stands for DataFusion's `original`.
    pub fn over(original: Arc<ScalarUDF>) -> ScalarUDF {
        ScalarUDF::new_from_impl(Self(original))
    }
}

impl ScalarUDFImpl for DateTrunc {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.0.return_type(arguments)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        self.0.return_field_from_args(arguments)
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match arguments.args.get_mut(1) {
            Some(ColumnarValue::Array(times)) if *times.data_type() == timestamp_type() => {
                *times = with_zone(times, None);
                let zoneless = DataType::Timestamp(TimeUnit::Microsecond, None);
                arguments.return_field =
                    Arc::new(arguments.return_field.as_ref().clone().with_data_type(zoneless));
                let truncated = self.0.invoke_with_args(arguments)?;
                Ok(match truncated {
                    ColumnarValue::Array(times) => ColumnarValue::Array(with_zone(&times, Some("UTC"))),
                    scalar => scalar,
                })
            }
            _ => self.0.invoke_with_args(arguments),
        }
    }

    fn simplify(&self, arguments: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.0.simplify(arguments, context)
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.0.evaluate_bounds(input)
    }

    fn output_ordering(&self, input: &[ExprProperties]) -> Result<SortProperties> {
        self.0.output_ordering(input)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

/// The same moments, under another zone.
fn with_zone(times: &ArrayRef, zone: Option<&str>) -> ArrayRef {
    Arc::new(times.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(zone))
}
