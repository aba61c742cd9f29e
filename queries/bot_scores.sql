-- title: Bot scores
-- param: since time = 7d: only what happened after this; a time, or how long ago
-- How requests spread over Cloudflare's bot scores in tens: 1 is certainly a bot, 99 certainly not; 0 was not computed.
SELECT
  BotScore / 10 * 10 AS score_from,
  BotScoreSrc AS told_by,
  count(*) AS requests,
  count(DISTINCT ClientIP) AS clients,
  round(100.0 * count(*) FILTER (WHERE EdgeResponseStatus = 403) / count(*), 1) AS refused_percent
FROM cloudflare_httprequest
WHERE BotScore IS NOT NULL AND p_event_time >= $since
GROUP BY BotScore / 10 * 10, BotScoreSrc
ORDER BY score_from, requests DESC, told_by
