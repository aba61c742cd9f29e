-- title: WAF timeline
-- param: since time = 7d: only what happened after this; a time, or how long ago
-- What the firewall did, hour by hour: challenges, blocks and what was only logged.
SELECT
  date_trunc('hour', p_event_time) AS hour,
  count(*) AS events,
  count(*) FILTER (WHERE Action = 'block') AS blocked,
  count(*) FILTER (WHERE Action LIKE '%challenge%') AS challenged,
  count(*) FILTER (WHERE Action IN ('log', 'simulate')) AS logged,
  count(DISTINCT ClientIP) AS clients
FROM cloudflare_firewall
WHERE p_event_time >= $since
GROUP BY date_trunc('hour', p_event_time)
ORDER BY hour
