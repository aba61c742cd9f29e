-- title: Duplicates
-- param: since time = 1d: only what happened after this; a time, or how long ago
-- param: limit integer = 20: how many row ids
-- Row ids that stand more than once, which none should: every record lands once.
SELECT
  p_row_id AS row_id,
  count(*) AS times
FROM all_logs
WHERE p_event_time >= $since
GROUP BY p_row_id
HAVING count(*) > 1
ORDER BY times DESC, row_id
LIMIT $limit
