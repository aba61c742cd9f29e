//! A row's indicators: addresses, host names and trace ids, normalized so that equal ones compare equal.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// No name in the DNS is longer.
const LONGEST_HOST: usize = 253;

/// The host in a URL, in `host:port/path`, or alone; without brackets, port, path and final dot. None if
/// what is there can't be a host.
///
/// A host is what stands before the first `/`, `?` or `#`. A scheme, or only `//`, may stand before it, at
/// the very beginning and nowhere else; without `//` there is neither a user's name before it nor anything
/// but a host behind it, so that `mailto:a@example.com` and `about:blank` have none.
pub fn host(value: &str) -> Option<&str> {
    let value = value.trim();
    let rest = behind_scheme(value);
    // Browsers take a backslash for a slash.
    let authority = rest.unwrap_or(value).split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host_port = match (authority.rsplit_once('@'), rest) {
        (Some((_, host)), Some(_)) => host,
        (Some(_), None) => return None,
        (None, _) => authority,
    };
    let host = if let Some(bracketed) = host_port.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        // A zone is of the machine that wrote it.
        let address = address.split_once('%').map_or(address, |(address, _)| address);
        (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
            .then_some(address)?
            .parse::<Ipv6Addr>()
            .ok()?;
        address
    } else if host_port.parse::<IpAddr>().is_ok() {
        host_port
    } else {
        match host_port.split_once(':') {
            // `http:/x` is no host called http.
            Some((host, "")) if rest.is_some() || host.contains('.') => host,
            Some((_, "")) => return None,
            Some((host, port)) => is_port(port).then_some(host)?,
            None => host_port,
        }
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let stands_in_none = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '"' | '<' | '>' | '[' | ']' | '^' | '`' | '{' | '|' | '}')
    };
    let is_host = !host.is_empty()
        && host.len() <= LONGEST_HOST
        && !host.ends_with('.')
        && !host.contains(stands_in_none);
    is_host.then_some(host)
}

/// What follows `//`, before which only a scheme may stand: `letter (letter | digit | + . -)* ":"`. None if
/// it has no such beginning.
fn behind_scheme(value: &str) -> Option<&str> {
    if let Some(rest) = value.strip_prefix("//") {
        return Some(rest);
    }
    let (scheme, rest) = value.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-'));
    rest.strip_prefix("//").filter(|_| is_scheme)
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}
