-- title: Rejects by reason
-- param: since time = 30d: only rejects of objects decoded after this; a time, or how long ago
-- What could not become a row, why, and where the first of its kind stands.
SELECT
  reason,
  count(*) AS rejects,
  count(DISTINCT object_key) AS objects,
  min(object_key) AS first_object,
  max(p_parse_time) AS last_seen
FROM classification_failures
WHERE p_parse_time >= $since
GROUP BY reason
ORDER BY rejects DESC, reason
