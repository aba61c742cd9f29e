//! What is searched for: an address, a network, a host name or all below one, or a trace id. In the spelling
//! that the lake keeps, so that equal things compare equal.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};

use crate::decode::indicator;
use crate::format::value_index;
use crate::schema::Standard;

/// A value that can't be searched for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` can't be searched for: {why}")]
pub struct NeedleError {
    text: String,
    /// What is wrong with it.
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    /// As it was given.
    pub text: String,
    kind: NeedleKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum NeedleKind {
    /// One address, in each of its spellings.
    Address(Vec<String>),
    Network(IpNet),
    /// A host name or a trace id: the lake tells which.
    Word(Vec<String>),
    /// A domain and all below it; with the period that stands before it in those.
    Below(String),
}

impl Needle {
    /// Tells what a text is.
    pub fn parse(text: &str) -> Result<Self, NeedleError> {
        let wrong = |why| NeedleError { text: text.to_owned(), why };
        let trimmed = text.trim();
        let is_network =
            trimmed.split_once('/').is_some_and(|(address, _)| address.parse::<IpAddr>().is_ok());
        if is_network && trimmed.parse::<IpNet>().is_err() {
            return Err(wrong("it is no network, such as 192.0.2.0/24 or 2001:db8::/32"));
        }
        let host = indicator::host(trimmed).and_then(|host| host.parse::<IpAddr>().ok());
        let kind = if let Some(address) =
            trimmed.parse::<IpAddr>().ok().or(host.filter(|_| trimmed.parse::<IpNet>().is_err()))
        {
            let mut spellings = vec![address.to_string(), address.to_canonical().to_string()];
            if let IpAddr::V4(v4) = address {
                spellings.push(v4.to_ipv6_mapped().to_string());
            }
            spellings.sort();
            spellings.dedup();
            NeedleKind::Address(spellings)
        } else if let Ok(network) = trimmed.parse::<IpNet>() {
            NeedleKind::Network(canonical(network.trunc()))
        } else if let Some(domain) = trimmed.strip_prefix("*.") {
            let domain = indicator::host(domain)
                .filter(|host| !host.contains('*'))
                .ok_or_else(|| wrong("write *.example.com"))?;
            NeedleKind::Below(format!(".{}", domain.to_lowercase()))
        } else if trimmed.is_empty() {
            return Err(wrong("it is empty"));
        } else if trimmed.contains('*') {
            return Err(wrong("a star stands for what is below a domain, as in *.example.com"));
        } else {
            let mut words = vec![trimmed.to_owned()];
            words.extend(indicator::host(trimmed).map(str::to_lowercase));
            words.sort();
            words.dedup();
            NeedleKind::Word(words)
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// The lists in which it may stand.
    pub fn columns(&self) -> &'static [Standard] {
        match self.kind {
            NeedleKind::Address(_) | NeedleKind::Network(_) => &[Standard::AnyIpAddresses],
            NeedleKind::Below(_) => &[Standard::AnyDomainNames],
            NeedleKind::Word(_) => &[Standard::AnyDomainNames, Standard::AnyTraceIds],
        }
    }

    /// The values that it is, if these can be counted: what a bloom filter can be asked for.
    pub fn exact(&self) -> Option<&[String]> {
        match &self.kind {
            NeedleKind::Address(values) | NeedleKind::Word(values) => Some(values),
            NeedleKind::Network(_) | NeedleKind::Below(_) => None,
        }
    }

    /// The range of keys in a value index that it is, if it is more than can be counted.
    pub fn keys(&self) -> Option<RangeInclusive<Vec<u8>>> {
        match &self.kind {
            NeedleKind::Network(network) => {
                Some(value_index::network_keys(network.network(), network.broadcast()))
            }
            NeedleKind::Below(domain) => Some(value_index::domain_keys(&domain[1..])),
            NeedleKind::Address(_) | NeedleKind::Word(_) => None,
        }
    }

    /// Whether a key of that range is it.
    pub fn is_key(&self, key: &[u8]) -> bool {
        let NeedleKind::Below(domain) = &self.kind else {
            return self
                .keys()
                .is_some_and(|keys| keys.start().as_slice() <= key && key <= keys.end().as_slice());
        };
        let below = value_index::host_key(domain);
        key.starts_with(&below) || key == &below[..below.len() - 1]
    }

    /// Whether a list's value is it.
    pub fn is(&self, value: &str) -> bool {
        match &self.kind {
            NeedleKind::Address(values) | NeedleKind::Word(values) => values.iter().any(|v| v == value),
            NeedleKind::Network(network) => value
                .parse::<IpAddr>()
                .is_ok_and(|address| network.contains(&address) || network.contains(&address.to_canonical())),
            NeedleKind::Below(domain) => value == &domain[1..] || value.ends_with(domain.as_str()),
        }
    }
}

/// A network of IPv4 addresses that is written as one of IPv6.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let Some(v4) = v6.network().to_ipv4_mapped() else { return network };
    v6.prefix_len()
        .checked_sub(96)
        .and_then(|length| Ipv4Net::new(v4, length).ok())
        .map_or(network, IpNet::V4)
}
