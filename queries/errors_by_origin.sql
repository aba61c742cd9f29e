-- title: Errors by origin
-- param: since time = 7d: only what happened after this; a time, or how long ago
-- param: limit integer = 20: how many origins
-- Which origins answer with 5xx, which status most often, and how slow they are then. Milliseconds.
SELECT
  OriginIP AS origin,
  OriginResponseStatus AS status,
  count(*) AS errors,
  min(p_event_time) AS first_seen,
  max(p_event_time) AS last_seen,
  round(avg(OriginResponseTime) / 1e6, 1) AS mean_ms
FROM cloudflare_httprequest
WHERE OriginResponseStatus >= 500 AND p_event_time >= $since
GROUP BY OriginIP, OriginResponseStatus
ORDER BY errors DESC, origin, status
LIMIT $limit
