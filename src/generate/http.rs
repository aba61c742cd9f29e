//! `http_requests` records.

use rand::RngExt as _;

use super::line::Line;
use super::world::{Client, World};

/// What happened to a request; decides most of its fields.
struct Outcome {
    status: i64,
    cache: &'static str,
    bytes: i64,
    /// The origin's status; 0: it was not asked.
    origin: i64,
    blocked: bool,
}

fn outcome(line: &mut Line, path: &str, client: &Client) -> Outcome {
    let probing = matches!(path, "/.env" | "/wp-login.php");
    if (probing || client.score < 10) && line.one_in(3) {
        return Outcome { status: 403, cache: "unknown", bytes: 4500, origin: 0, blocked: true };
    }
    let bytes = line.random.random_range(200..60_000);
    if path.starts_with("/assets/") {
        let cache = line.pick(&["hit", "hit", "hit", "hit", "miss", "expired", "revalidated"]);
        let origin = if cache == "hit" { 0 } else { 200 };
        return Outcome {
            status: if line.one_in(9) { 304 } else { 200 },
            cache,
            bytes,
            origin,
            blocked: false,
        };
    }
    let status =
        if probing { 404 } else { line.pick(&[200, 200, 200, 200, 200, 200, 201, 301, 404, 500, 502, 522]) };
    let origin = if matches!(status, 502 | 522) { 0 } else { status };
    Outcome { status, cache: "dynamic", bytes, origin, blocked: false }
}

/// Writes one request that began at `nanos`.
pub fn write(line: &mut Line, world: &World, nanos: i64) {
    let client = world.client(line.random).clone();
    let host = &world.hosts[line.random.random_range(0..world.hosts.len())];
    let path = &world.paths[line.random.random_range(0..world.paths.len())];
    let happened = outcome(line, path, &client);
    let query = if line.one_in(4) {
        format!("?utm_source=mail&id={}", line.random.random_range(1..99_999))
    } else {
        String::new()
    };
    let took = line.random.random_range(2_000_000..900_000_000i64);
    let ray: u64 = line.random.random();
    line.number("BotScore", client.score);
    line.text("BotScoreSrc", if client.score == 1 { "Verified Bot" } else { "Machine Learning" });
    line.text("CacheCacheStatus", happened.cache);
    line.number("CacheResponseBytes", if happened.blocked { 0 } else { happened.bytes + 310 });
    line.number("CacheResponseStatus", if happened.blocked { 0 } else { happened.status });
    line.boolean("CacheTieredFill", happened.cache == "miss" && happened.bytes % 2 == 0);
    line.number("ClientASN", client.asn);
    line.text("ClientCountry", client.country);
    line.text("ClientDeviceType", client.device);
    line.text("ClientIP", &client.ip);
    line.text("ClientIPClass", client.class);
    let sent = line.random.random_range(300..4000);
    line.number("ClientRequestBytes", sent);
    line.text("ClientRequestHost", host);
    let method = if path.starts_with("/api/") { line.pick(&["GET", "POST", "PATCH"]) } else { "GET" };
    line.text("ClientRequestMethod", method);
    line.text("ClientRequestPath", path);
    line.text("ClientRequestProtocol", if client.score < 10 { "HTTP/1.1" } else { "HTTP/2" });
    let referer =
        if line.one_in(3) { format!("https://{host}/search?q=\"{}\"", path.len()) } else { String::new() };
    line.text("ClientRequestReferer", &referer);
    line.text("ClientRequestURI", &format!("{path}{query}"));
    line.text("ClientRequestUserAgent", client.agent);
    line.text("ClientSSLProtocol", if client.score < 10 { "TLSv1.2" } else { "TLSv1.3" });
    let port = line.random.random_range(1024..65_536);
    line.number("ClientSrcPort", port);
    line.text("ClientXRequestedWith", if method == "POST" { "XMLHttpRequest" } else { "" });
    edge(line, world, &client, host, &happened, nanos, took);
    origin(line, world, &happened, nanos, took);
    line.text("ParentRayID", "00");
    line.text("RayID", &format!("{ray:016x}"));
    line.text("SecurityLevel", "med");
    security(line, world, &happened);
    line.number("WorkerCPUTime", 0);
    line.text("WorkerStatus", "unknown");
    line.boolean("WorkerSubrequest", false);
    line.number("WorkerSubrequestCount", 0);
    line.number("ZoneID", 458_677_291 + host.len() as i64);
}

fn edge(
    line: &mut Line,
    world: &World,
    client: &Client,
    host: &str,
    happened: &Outcome,
    nanos: i64,
    took: i64,
) {
    line.text("EdgeColoCode", client.colo.0);
    line.number("EdgeColoID", client.colo.1);
    line.time("EdgeEndTimestamp", nanos + took);
    line.text("EdgePathingOp", if happened.blocked { "ban" } else { "wl" });
    line.text("EdgePathingSrc", if happened.blocked { "filterBasedFirewall" } else { "macro" });
    line.text("EdgePathingStatus", "nr");
    line.text("EdgeRateLimitAction", "");
    line.raw("EdgeRateLimitID", 0);
    line.text("EdgeRequestHost", if happened.origin == 0 { "" } else { host });
    line.number("EdgeResponseBytes", happened.bytes);
    let ratio = line.random.random_range(100..600);
    line.raw("EdgeResponseCompressionRatio", format_args!("{}.{:02}", ratio / 100, ratio % 100));
    line.text("EdgeResponseContentType", line_type(happened));
    line.number("EdgeResponseStatus", happened.status);
    let server = &world.edges[line.random.random_range(0..world.edges.len())];
    line.text("EdgeServerIP", if happened.origin == 0 { "" } else { server });
    line.time("EdgeStartTimestamp", nanos);
}

fn line_type(happened: &Outcome) -> &'static str {
    match happened.cache {
        "dynamic" => "application/json",
        "unknown" => "text/html",
        _ => "application/javascript",
    }
}

fn origin(line: &mut Line, world: &World, happened: &Outcome, nanos: i64, took: i64) {
    let asked = happened.origin != 0;
    let ip = &world.origins[line.random.random_range(0..world.origins.len())];
    line.text("OriginIP", if asked { ip } else { "" });
    line.number("OriginResponseBytes", if asked { happened.bytes } else { 0 });
    let cached = asked && happened.cache != "dynamic";
    let http_date = |offset: i64| {
        chrono::DateTime::from_timestamp_nanos(nanos + offset).format("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    line.text(
        "OriginResponseHTTPExpires",
        &if cached { http_date(86_400_000_000_000) } else { String::new() },
    );
    line.text(
        "OriginResponseHTTPLastModified",
        &if cached { http_date(-864_000_000_000_000) } else { String::new() },
    );
    line.number("OriginResponseStatus", happened.origin);
    line.number("OriginResponseTime", if asked { took / 2 } else { 0 });
    line.text("OriginSSLProtocol", if asked { "TLSv1.3" } else { "unknown" });
}

/// The firewall's verdict, under the old names or, in odd records, under those Cloudflare has used since
/// 2023.
fn security(line: &mut Line, world: &World, happened: &Outcome) {
    let rule = &world.rules[line.random.random_range(0..2)];
    let matched = happened.blocked;
    let one = |text: &'_ str| if matched { vec![text.to_owned()] } else { Vec::new() };
    let (actions, ids, sources) = (one(rule.action), one(&rule.id), one(rule.source));
    let list = |values: &[String]| serde_json::json!(values);
    let names = if line.is_odd() {
        [
            "SecurityActions",
            "SecurityRuleIDs",
            "SecuritySources",
            "SecurityAction",
            "SecurityRuleID",
            "SecurityRuleDescription",
        ]
    } else {
        [
            "FirewallMatchesActions",
            "FirewallMatchesRuleIDs",
            "FirewallMatchesSources",
            "WAFAction",
            "WAFRuleID",
            "WAFRuleMessage",
        ]
    };
    line.raw(names[0], list(&actions));
    line.raw(names[1], list(&ids));
    line.raw(names[2], list(&sources));
    line.text(names[3], if matched { rule.action } else { "unknown" });
    line.text("WAFFlags", "0");
    line.text("WAFMatchedVar", "");
    line.text("WAFProfile", "unknown");
    line.text(names[4], if matched { &rule.id } else { "" });
    line.text(names[5], if matched { rule.message } else { "" });
    if line.is_odd() {
        line.text("JA4", "t13d1516h2_8daaf6152771_b186095e22b6");
        line.raw("BotDetectionIDs", "[33554817]");
        line.raw("RequestHeaders", r#"{"accept-language":"en-US,en;q=0.9","x-tries":2}"#);
        line.text("ZoneName", "example.com");
    }
}
