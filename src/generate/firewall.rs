//! `firewall_events` records.

use rand::RngExt as _;

use super::line::Line;
use super::world::World;

/// Writes one event at `nanos`.
pub fn write(line: &mut Line, world: &World, nanos: i64) {
    let client = world.client(line.random).clone();
    let rule = world.rules[line.random.random_range(0..world.rules.len())].clone();
    let host = &world.hosts[line.random.random_range(0..world.hosts.len())];
    let path = &world.paths[line.random.random_range(0..12)];
    let ray: u64 = line.random.random();
    let stopped = rule.action == "block";
    line.text("Action", rule.action);
    line.number("ClientASN", client.asn);
    line.text("ClientASNDescription", client.network);
    line.text("ClientCountry", client.country);
    line.text("ClientIP", &client.ip);
    line.text("ClientIPClass", client.class);
    let referred = line.one_in(5);
    line.text("ClientRefererHost", if referred { host } else { "" });
    line.text("ClientRefererPath", if referred { "/search" } else { "" });
    line.text("ClientRefererQuery", "");
    line.text("ClientRefererScheme", if referred { "https" } else { "" });
    line.text("ClientRequestHost", host);
    line.text("ClientRequestMethod", if rule.source == "ratelimit" { "POST" } else { "GET" });
    line.text("ClientRequestPath", path);
    line.text("ClientRequestProtocol", "HTTP/2");
    line.text(
        "ClientRequestQuery",
        if rule.message.starts_with("SQLi") { "?id=1%27%20OR%201=1--" } else { "" },
    );
    line.text("ClientRequestScheme", "https");
    line.text("ClientRequestUserAgent", client.agent);
    line.time("Datetime", nanos);
    line.text("EdgeColoCode", client.colo.0);
    line.number("EdgeResponseStatus", if stopped { 403 } else { 200 });
    line.text("Kind", "firewall");
    line.number("MatchIndex", 0);
    let details = if rule.source == "waf" {
        serde_json::json!({"group": "cloudflare_specials", "rule_message": rule.message, "score": 42})
    } else {
        serde_json::json!({"filter": rule.id, "type": "customer"})
    };
    line.raw("Metadata", details);
    line.number("OriginResponseStatus", if stopped { 0 } else { 200 });
    line.text("OriginatorRayID", "00");
    line.text("RayID", &format!("{ray:016x}"));
    line.text("RuleID", &rule.id);
    line.text("Source", rule.source);
    if line.is_odd() {
        line.text("Description", rule.message);
        line.list("ContentScanObjTypes", &["application/pdf"]);
        line.text("ZoneName", "example.com");
    }
}
