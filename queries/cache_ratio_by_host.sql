-- title: Traffic and cache ratio by host
-- How much each host serves, and how much of it comes from Cloudflare's cache.
SELECT
  ClientRequestHost AS host,
  count(*) AS requests,
  round(100.0 * sum(CASE WHEN CacheCacheStatus = 'hit' THEN 1 ELSE 0 END) / count(*), 1) AS cached_percent,
  sum(EdgeResponseBytes) AS bytes
FROM cloudflare_httprequest
GROUP BY ClientRequestHost
ORDER BY requests DESC, host
LIMIT 5
