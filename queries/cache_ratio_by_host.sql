-- title: Traffic and cache ratio by host
-- param: since time = 30d: only what happened after this; a time, or how long ago
-- param: limit integer = 20: how many hosts
-- How much each host serves, and how much of it comes from Cloudflare's cache.
SELECT
  ClientRequestHost AS host,
  count(*) AS requests,
  round(100.0 * count(*) FILTER (WHERE CacheCacheStatus = 'hit') / count(*), 1) AS cached_percent,
  sum(EdgeResponseBytes) AS bytes
FROM cloudflare_httprequest
WHERE p_event_time >= $since
GROUP BY ClientRequestHost
ORDER BY requests DESC, host
LIMIT $limit
