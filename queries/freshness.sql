-- title: Freshness by source
-- param: since time = 1d: only objects that landed after this; a time, or how long ago
-- How long objects took from being written to their rows being there, in seconds, and when the last one landed.
SELECT
  coalesce(source_id, bucket, 'files') AS source,
  count(*) AS objects,
  max(landed_at) AS last_landed,
  max(max_event_time) AS newest_event,
  round(median(to_unixtime(landed_at) - to_unixtime(last_modified)), 1) AS median_seconds,
  round(approx_percentile_cont(to_unixtime(landed_at) - to_unixtime(last_modified), 0.99), 1) AS p99_seconds
FROM ingested_objects
-- What became of a reject that was replayed has no size of its own: it was written long before.
WHERE landed_at >= $since AND size > 0
GROUP BY coalesce(source_id, bucket, 'files')
ORDER BY source
