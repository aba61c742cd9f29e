-- title: Slow paths
-- param: host text = : only this host; empty for every host
-- param: since time = 1d: only what happened after this; a time, or how long ago
-- param: at_least integer = 10: leave out paths with fewer requests
-- param: limit integer = 20: how many paths
-- The paths whose origins take longest, in milliseconds.
SELECT
  ClientRequestHost AS host,
  ClientRequestPath AS path,
  count(*) AS requests,
  round(avg(OriginResponseTime) / 1e6, 1) AS mean_ms,
  round(percentile_cont(0.95) WITHIN GROUP (ORDER BY OriginResponseTime) / 1e6, 1) AS p95_ms
FROM cloudflare_httprequest
WHERE OriginResponseTime > 0 AND p_event_time >= $since AND ($host = '' OR ClientRequestHost = $host)
GROUP BY ClientRequestHost, ClientRequestPath
HAVING count(*) >= $at_least
ORDER BY mean_ms DESC, host, path
LIMIT $limit
