//! `spectrum_events` records.

use rand::RngExt as _;

use super::line::Line;
use super::world::World;

/// Writes one event at `nanos`.
pub fn write(line: &mut Line, world: &World, nanos: i64) {
    let client = world.client(line.random).clone();
    let application = &world.applications[line.random.random_range(0..world.applications.len())];
    let event = line.pick(&["connect", "disconnect", "disconnect", "clientFiltered", "originError"]);
    let ended = event == "disconnect";
    let lasted = line.random.random_range(1_000_000_000..600_000_000_000i64);
    let amount = |line: &mut Line| if ended { line.random.random_range(100..9_000_000) } else { 0 };
    line.text("Application", application);
    // Cloudflare's own spelling of the documented ClientASN.
    line.number("ClientAsn", client.asn);
    let from_client = amount(line);
    line.number("ClientBytes", from_client);
    line.text("ClientCountry", client.country);
    line.text("ClientIP", &client.ip);
    line.text("ClientMatchedIpFirewall", if event == "clientFiltered" { "BLOCK_COUNTRY" } else { "UNKNOWN" });
    let port = line.random.random_range(1024..65_536);
    line.number("ClientPort", port);
    line.text("ClientProto", "tcp");
    let round_trip = line.random.random_range(1_000_000..200_000_000);
    line.number("ClientTcpRtt", round_trip);
    line.text("ClientTlsCipher", "UNK");
    line.text("ClientTlsClientHelloServerName", "");
    line.text("ClientTlsProtocol", "unknown");
    line.text("ClientTlsStatus", "UNKNOWN");
    line.text("ColoCode", client.colo.0);
    line.time("ConnectTimestamp", if ended { nanos - lasted } else { nanos });
    line.time("DisconnectTimestamp", if ended { nanos } else { 0 });
    line.text("Event", event);
    line.boolean("IpFirewall", event == "clientFiltered");
    let from_origin = amount(line);
    line.number("OriginBytes", from_origin);
    let reached = matches!(event, "connect" | "disconnect");
    let origin = &world.origins[line.random.random_range(0..world.origins.len())];
    line.text("OriginIP", if reached { origin } else { "" });
    line.number("OriginPort", if reached { 3389 } else { 0 });
    line.text("OriginProto", "tcp");
    line.number("OriginTcpRtt", if reached { round_trip / 3 } else { 0 });
    line.text("OriginTlsCipher", "UNK");
    line.text("OriginTlsFingerprint", "");
    line.text("OriginTlsMode", "off");
    line.text("OriginTlsProtocol", "unknown");
    line.text("OriginTlsStatus", "UNKNOWN");
    line.text("ProxyProtocol", "off");
    line.number("Status", if event == "originError" { 522 } else { 0 });
    line.time("Timestamp", nanos);
}
