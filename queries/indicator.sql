-- title: An indicator in every table
-- param: value text: an IP address, a host name or a trace id, in lower case
-- param: since time = 30d: only what happened after this; a time, or how long ago
-- Where a value was seen: by log type, how often, when first and when last.
SELECT
  p_log_type AS log_type,
  count(*) AS events,
  min(p_event_time) AS first_seen,
  max(p_event_time) AS last_seen
FROM all_logs
WHERE p_event_time >= $since
  AND (array_has(p_any_ip_addresses, $value) OR array_has(p_any_domain_names, $value) OR array_has(p_any_trace_ids, $value))
GROUP BY p_log_type
ORDER BY events DESC, log_type
