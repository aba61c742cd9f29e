-- title: Events by log type and day
-- param: since time = 30d: only what happened after this; a time, or how long ago
-- How many rows each log type has on each day, and when the last of them was decoded.
SELECT
  p_log_type AS log_type,
  date_trunc('day', p_event_time) AS day,
  count(*) AS events,
  max(p_parse_time) AS last_decoded
FROM all_logs
WHERE p_event_time >= $since
GROUP BY p_log_type, date_trunc('day', p_event_time)
ORDER BY log_type, day
