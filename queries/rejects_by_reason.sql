-- title: Rejects by reason
-- What could not become a row, why, and where the first of its kind stands.
SELECT
  reason,
  count(*) AS rejects,
  min(object_key) AS first_object
FROM classification_failures
GROUP BY reason
ORDER BY rejects DESC, reason
