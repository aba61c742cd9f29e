//! Rows without columns, where only some are wanted. `SELECT 1 FROM t LIMIT 3` needs no column; deltalake answers that from
//! the log alone, with a plan that says it limits rows by itself and doesn't. So one column is read where there is a limit.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};

/// A table whose limits hold.
#[derive(Debug)]
pub struct Counted(pub Arc<dyn TableProvider>);

#[async_trait]
impl TableProvider for Counted {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        self.0.table_type()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.0.supports_filters_pushdown(filters)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if limit.is_none() || projection.is_none_or(|columns| !columns.is_empty()) {
            return self.0.scan(state, projection, filters, limit).await;
        }
        let one_column = self.0.scan(state, Some(&vec![0]), filters, limit).await?;
        Ok(Arc::new(ProjectionExec::try_new(Vec::<ProjectionExpr>::new(), one_column)?))
    }
}
