-- title: Blocked requests by rule
-- Which firewall rules block, how often, and how many different clients.
SELECT
  Source AS product,
  RuleID AS rule,
  count(*) AS blocked,
  count(DISTINCT ClientIP) AS clients
FROM cloudflare_firewall
WHERE Action = 'block'
GROUP BY Source, RuleID
ORDER BY blocked DESC, rule
LIMIT 5
