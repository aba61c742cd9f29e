-- title: Files and sizes
-- param: since time = 30d: only files with rows after this; a time, or how long ago
-- How many files each table has on each day, how large they are, and how many are small: what compaction would help.
SELECT
  table_name,
  p_event_date AS day,
  count(*) AS files,
  count(*) FILTER (WHERE size < 33554432) AS below_32_mib,
  sum(rows) AS rows,
  sum(size) AS bytes,
  round(sum(size) / sum(rows), 1) AS bytes_per_row
FROM lake_files
WHERE max_event_time IS NULL OR max_event_time >= $since
GROUP BY table_name, p_event_date
ORDER BY table_name, day
