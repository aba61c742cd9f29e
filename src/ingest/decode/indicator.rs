//! What a row says about who was involved: addresses, host names and trace ids, in one spelling each, so
//! that equal things compare equal.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use arrow::array::{ListBuilder, StringViewBuilder};

use crate::schema::Indicator;

/// The indicators of the row at hand. Text is kept in one buffer that every row uses again.
#[derive(Debug, Default)]
pub struct Indicators {
    text: String,
    ips: Vec<Span>,
    hosts: Vec<Span>,
    traces: Vec<Span>,
}

#[derive(Debug, Clone, Copy)]
struct Span(u32, u32);

impl Indicators {
    /// Forgets the last row.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ips.clear();
        self.hosts.clear();
        self.traces.clear();
    }

    /// Collects one column's value.
    pub fn collect(&mut self, kind: Indicator, value: &str) {
        let value = value.trim();
        if value.is_empty() {
            return;
        }
        match kind {
            Indicator::Ip => {
                self.ip(value);
            }
            Indicator::Hostname | Indicator::Url => {
                if let Some(host) = host(value) {
                    self.host(host);
                }
            }
            Indicator::TraceId if value == "00" => {}
            Indicator::TraceId => {
                let span = self.keep(value);
                self.traces.push(span);
            }
        }
    }

    fn keep(&mut self, value: &str) -> Span {
        let start = self.text.len() as u32;
        self.text.push_str(value);
        Span(start, self.text.len() as u32)
    }

    /// Keeps an address in its canonical spelling (RFC 5952 for IPv6); false if it is none.
    fn ip(&mut self, value: &str) -> bool {
        // A dotted quad has one spelling only: the parser refuses leading zeros.
        if value.len() <= 15 && value.parse::<Ipv4Addr>().is_ok() {
            let span = self.keep(value);
            self.ips.push(span);
            return true;
        }
        let Ok(address) = value.parse::<IpAddr>() else { return false };
        let start = self.text.len() as u32;
        write!(self.text, "{address}").expect("writing to a string");
        self.ips.push(Span(start, self.text.len() as u32));
        true
    }

    fn host(&mut self, host: &str) {
        if self.ip(host) {
            return;
        }
        let span = self.keep(host);
        let kept = &mut self.text[span.0 as usize..];
        if kept.is_ascii() {
            kept.make_ascii_lowercase();
            self.hosts.push(span);
        } else {
            let lower = kept.to_lowercase();
            self.text.truncate(span.0 as usize);
            let span = self.keep(&lower);
            self.hosts.push(span);
        }
    }

    /// Appends the row's addresses: sorted, distinct; null if there is none.
    pub fn append_ips(&mut self, to: &mut ListBuilder<StringViewBuilder>) {
        append(&self.text, &mut self.ips, to);
    }

    /// Appends the row's host names: sorted, distinct; null if there is none.
    pub fn append_hosts(&mut self, to: &mut ListBuilder<StringViewBuilder>) {
        append(&self.text, &mut self.hosts, to);
    }

    /// Appends the row's trace ids: sorted, distinct; null if there is none.
    pub fn append_traces(&mut self, to: &mut ListBuilder<StringViewBuilder>) {
        append(&self.text, &mut self.traces, to);
    }
}

fn append(text: &str, spans: &mut Vec<Span>, to: &mut ListBuilder<StringViewBuilder>) {
    if spans.is_empty() {
        to.append_null();
        return;
    }
    let word = |span: &Span| &text[span.0 as usize..span.1 as usize];
    if spans.len() > 1 {
        spans.sort_unstable_by(|a, b| word(a).cmp(word(b)));
        spans.dedup_by(|a, b| word(a) == word(b));
    }
    for span in spans {
        to.values().append_value(word(span));
    }
    to.append(true);
}

/// The host in a URL, in `host:port/path`, or alone; without brackets, port, path and final dot. None if
/// what is there can't be a host.
pub fn host(value: &str) -> Option<&str> {
    let after_scheme = value.split_once("//").filter(|(scheme, _)| scheme.is_empty() || scheme.ends_with(':'));
    let rest = after_scheme.map_or(value, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = if let Some(bracketed) = host_port.strip_prefix('[') {
        bracketed.split_once(']')?.0
    } else if host_port.parse::<IpAddr>().is_ok() {
        host_port
    } else {
        match host_port.split_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            Some(_) => return None,
            None => host_port,
        }
    };
    let host = host.trim().strip_suffix('.').unwrap_or(host.trim());
    (!host.is_empty()).then_some(host)
}
