-- title: Top talkers
-- param: since time = 30d: only what happened after this; a time, or how long ago
-- param: limit integer = 20: how many addresses
-- The client addresses with the most requests, and how many of these were refused.
SELECT
  ClientIP AS client,
  max(ClientCountry) AS country,
  count(*) AS requests,
  count(*) FILTER (WHERE EdgeResponseStatus = 403) AS refused
FROM cloudflare_httprequest
WHERE p_event_time >= $since
GROUP BY ClientIP
ORDER BY requests DESC, client
LIMIT $limit
