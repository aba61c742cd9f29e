//! Statements about the lake itself: what is there and how fresh it is, and what its schemas don't know.

use crate::schema::{LogType, RESCUED_DATA};

/// Every table: rows, files, bytes, between which times, and when it was last written to.
pub const TABLES: &str = "\
SELECT t.table_name, CASE t.table_type WHEN 'VIEW' THEN 'view' ELSE 'table' END AS kind,
  CASE t.table_type WHEN 'VIEW' THEN NULL ELSE coalesce(f.rows, 0) END AS rows,
  CASE t.table_type WHEN 'VIEW' THEN NULL ELSE coalesce(f.files, 0) END AS files,
  CASE t.table_type WHEN 'VIEW' THEN NULL ELSE coalesce(f.bytes, 0) END AS bytes,
  f.oldest, f.newest, f.last_written
FROM information_schema.tables AS t
LEFT JOIN (
  SELECT table_name, sum(rows) AS rows, count(*) AS files, sum(size) AS bytes,
    min(min_event_time) AS oldest, max(max_event_time) AS newest, max(written_at) AS last_written
  FROM lake_files
  GROUP BY table_name
) AS f ON f.table_name = t.table_name
WHERE t.table_catalog = 'flarelake' AND t.table_schema = 'public'
ORDER BY t.table_name";

/// What a value's text looks like. A string of digits can't be told from a number: rescued values are kept as
/// text.
const LOOKS_LIKE: &str = "\
CASE
        WHEN value IS NULL THEN 'null'
        WHEN value IN ('true', 'false') THEN 'boolean'
        WHEN regexp_like(value, '^-?(0|[1-9][0-9]*)$') THEN 'integer'
        WHEN regexp_like(value, '^-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?$') THEN 'number'
        WHEN value LIKE '{%}' THEN 'object'
        WHEN value LIKE '[%]' THEN 'array'
        ELSE 'string'
      END";

/// The fields that ended in rescued data since `$since`, of these log types: how often, what they look like,
/// since when. `documented` is the type of the column that did not take the value; none where no column is
/// meant.
pub fn drift(log_types: &[&LogType]) -> String {
    let of = |log_type: &&LogType| {
        let known = log_type.columns.iter().flat_map(|column| {
            let names = column.aliases.iter().chain([&column.name]);
            names.map(|name| {
                format!("WHEN '{}' THEN '{}' ", name.replace('\'', "''"), column.kind.documented())
            })
        });
        format!(
            "SELECT '{}' AS log_type, field, CASE field {}END AS documented, looks_like, count(*) AS n,
    min(p_event_time) AS first_seen, max(p_event_time) AS last_seen, min(value) AS example
  FROM (
    SELECT p_event_time, field, value,
      {LOOKS_LIKE} AS looks_like
    FROM (
      SELECT p_event_time,
        unnest(map_keys({RESCUED_DATA})) AS field, unnest(map_values({RESCUED_DATA})) AS value
      FROM {}
      WHERE {RESCUED_DATA} IS NOT NULL AND p_event_time >= $since
    )
  )
  GROUP BY field, looks_like",
            log_type.name.replace('\'', "''"),
            known.collect::<String>(),
            log_type.table_name(),
        )
    };
    format!(
        "SELECT log_type, field, documented, sum(n) AS values, string_agg(looks_like || ' ' || n, ', ' ORDER BY n DESC, looks_like) AS looks_like,
  min(first_seen) AS first_seen, max(last_seen) AS last_seen, substr(min(example), 1, 40) AS example
FROM (
  {}
)
GROUP BY log_type, field, documented
ORDER BY log_type, values DESC, field",
        log_types.iter().map(of).collect::<Vec<_>>().join("\n  UNION ALL\n  ")
    )
}
