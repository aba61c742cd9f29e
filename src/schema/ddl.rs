//! Statements that make the lake's tables visible in another engine, as that engine documents it for existing
//! Delta tables. None lists the columns: every engine reads them from the log.

use std::fmt::Write as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Amazon Athena, engine version 3.
    Athena,
    /// AWS Glue's catalog, by a crawler.
    Glue,
    /// Spark with Delta Lake, Databricks.
    Spark,
    /// Trino's Delta Lake connector.
    Trino,
    /// Snowflake, as an Iceberg table over a Delta catalog integration.
    Snowflake,
    /// BigQuery, as a BigLake table.
    BigQuery,
    /// ClickHouse's DeltaLake table engine.
    ClickHouse,
    /// DuckDB's delta extension.
    DuckDb,
}

/// Why there is no such statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DdlError {
    /// The engine reads object stores only.
    #[error("{engine} reads tables on S3; this lake is {url}")]
    Place { engine: &'static str, url: String },
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Athena => "Athena",
            Self::Glue => "Glue",
            Self::Spark => "Spark",
            Self::Trino => "Trino",
            Self::Snowflake => "Snowflake",
            Self::BigQuery => "BigQuery",
            Self::ClickHouse => "ClickHouse",
            Self::DuckDb => "DuckDB",
        }
    }

    /// The statements for tables below `lake`, a URL that ends in `/`.
    pub fn ddl(self, lake: &str, tables: &[String]) -> Result<String, DdlError> {
        let on_disk = lake.strip_prefix("file://");
        let reads_disks = matches!(self, Self::Spark | Self::ClickHouse | Self::DuckDb);
        if on_disk.is_some() && !reads_disks {
            return Err(DdlError::Place { engine: self.name(), url: lake.to_owned() });
        }
        let lake = if self == Self::Glue { lake.to_owned() } else { lake.replace('\'', "''") };
        let lake = lake.as_str();
        let mut text = self.before(lake, tables);
        for statement in
            tables.iter().map(|table| self.statement(lake, table)).filter(|statement| !statement.is_empty())
        {
            writeln!(text, "{statement}").expect("writing to a string");
        }
        Ok(text)
    }

    fn before(self, lake: &str, tables: &[String]) -> String {
        match self {
            Self::DuckDb => "INSTALL delta;\nLOAD delta;\n".to_owned(),
            Self::Snowflake => format!(
                "-- Once: an external volume that may read {lake} (CREATE EXTERNAL VOLUME flarelake …), and the integration:\n\
                 CREATE CATALOG INTEGRATION IF NOT EXISTS flarelake_delta\n  CATALOG_SOURCE = OBJECT_STORE\n  TABLE_FORMAT = DELTA\n  ENABLED = TRUE;\n"
            ),
            Self::BigQuery => {
                "-- Once: a connection that may read the bucket (bq mk --connection …); put its name and your dataset in.\n".to_owned()
            }
            Self::Glue => {
                let targets: Vec<String> = tables.iter().map(|table| format!("\"{lake}{table}/\"")).collect();
                format!(
                    "-- Put your role and database in.\naws glue create-crawler --name flarelake --role AWSGlueServiceRole-flarelake --database-name flarelake \\\n  \
                     --targets '{{\"DeltaTargets\": [{{\"DeltaTables\": [{}], \"WriteManifest\": false, \"CreateNativeDeltaTable\": true}}]}}'\n\
                     aws glue start-crawler --name flarelake\n",
                    targets.join(", ")
                )
            }
            _ => String::new(),
        }
    }

    fn statement(self, lake: &str, table: &str) -> String {
        match self {
            Self::Athena => format!(
                "CREATE EXTERNAL TABLE {table}\nLOCATION '{lake}{table}/'\nTBLPROPERTIES ('table_type' = 'DELTA');"
            ),
            Self::Glue => String::new(),
            Self::Spark => {
                // Hadoop's name for S3.
                let lake = lake.replacen("s3://", "s3a://", 1);
                format!("CREATE TABLE IF NOT EXISTS {table} USING DELTA LOCATION '{lake}{table}';")
            }
            Self::Trino => format!(
                "CALL delta.system.register_table(schema_name => 'default', table_name => '{table}', table_location => '{lake}{table}');"
            ),
            Self::Snowflake => {
                let path = lake
                    .split_once("://")
                    .and_then(|(_, rest)| rest.split_once('/'))
                    .map_or("", |(_, path)| path);
                format!(
                    "CREATE ICEBERG TABLE IF NOT EXISTS {table}\n  CATALOG = 'flarelake_delta'\n  EXTERNAL_VOLUME = 'flarelake'\n  BASE_LOCATION = '{path}{table}/'\n  AUTO_REFRESH = TRUE;"
                )
            }
            Self::BigQuery => format!(
                "CREATE EXTERNAL TABLE IF NOT EXISTS `dataset.{table}`\nWITH CONNECTION `aws-us-east-1.flarelake`\nOPTIONS (format = 'DELTA_LAKE', uris = ['{lake}{table}']);"
            ),
            Self::ClickHouse => match lake.strip_prefix("file://") {
                Some(folder) => {
                    format!("CREATE TABLE IF NOT EXISTS {table} ENGINE = DeltaLakeLocal('{folder}{table}/');")
                }
                None => {
                    let (bucket, path) =
                        lake.trim_start_matches("s3://").split_once('/').unwrap_or((lake, ""));
                    format!(
                        "CREATE TABLE IF NOT EXISTS {table} ENGINE = DeltaLake('https://{bucket}.s3.amazonaws.com/{path}{table}/');"
                    )
                }
            },
            Self::DuckDb => {
                let lake = lake.strip_prefix("file://").unwrap_or(lake);
                format!("CREATE OR REPLACE VIEW {table} AS SELECT * FROM delta_scan('{lake}{table}');")
            }
        }
    }
}
