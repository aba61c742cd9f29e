-- title: Late data
-- param: since time = 7d: only what was landed after this; a time, or how long ago
-- param: late_minutes integer = 60: how many minutes after an event count as late
-- How many rows of each log type were decoded late, by the hour in which they came.
SELECT
  p_log_type AS log_type,
  date_trunc('hour', p_parse_time) AS came,
  count(*) AS rows,
  count(*) FILTER (WHERE to_unixtime(p_parse_time) - to_unixtime(p_event_time) > $late_minutes * 60) AS late,
  max(to_unixtime(p_parse_time) - to_unixtime(p_event_time)) / 60 AS latest_minutes
FROM all_logs
WHERE p_parse_time >= $since
GROUP BY p_log_type, date_trunc('hour', p_parse_time)
ORDER BY log_type, came
