-- title: Top talkers
-- The client addresses with the most requests, and how many of these were refused.
SELECT
  ClientIP AS client,
  max(ClientCountry) AS country,
  count(*) AS requests,
  sum(CASE WHEN EdgeResponseStatus = 403 THEN 1 ELSE 0 END) AS refused
FROM cloudflare_httprequest
GROUP BY ClientIP
ORDER BY requests DESC, client
LIMIT 5
