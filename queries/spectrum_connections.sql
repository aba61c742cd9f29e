-- title: Spectrum connections
-- param: since time = 7d: only what happened after this; a time, or how long ago
-- param: limit integer = 20: how many applications and events
-- What happens on each Spectrum application: events, clients, and bytes in both directions.
SELECT
  Application,
  Event,
  count(*) AS events,
  count(DISTINCT ClientIP) AS clients,
  sum(ClientBytes) AS bytes_in,
  sum(OriginBytes) AS bytes_out,
  max(p_event_time) AS last_seen
FROM cloudflare_spectrum
WHERE p_event_time >= $since
GROUP BY Application, Event
ORDER BY events DESC, Application, Event
LIMIT $limit
