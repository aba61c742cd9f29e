-- title: Blocked requests by rule
-- param: since time = 30d: only what happened after this; a time, or how long ago
-- param: limit integer = 20: how many rules
-- Which firewall rules block, how often, and how many different clients.
SELECT
  Source AS product,
  RuleID AS rule,
  count(*) AS blocked,
  count(DISTINCT ClientIP) AS clients
FROM cloudflare_firewall
WHERE Action = 'block' AND p_event_time >= $since
GROUP BY Source, RuleID
ORDER BY blocked DESC, rule
LIMIT $limit
