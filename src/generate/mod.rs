//! Realistic synthetic logs: seeded, so that the same arguments always give the same bytes. Values fit
//! together (a blocked request has no origin, a bot a bot's score), and a share of the records takes the odd
//! forms that real logs take.

mod line;
mod world;
mod http;
mod firewall;
mod spectrum;

use std::fmt;
use std::str::FromStr;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use line::Line;
use world::World;

/// The written form of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamps {
    /// Nanoseconds since the epoch: what Cloudflare's API sets by default.
    UnixNano,
    /// Seconds since the epoch.
    Unix,
    /// RFC 3339 to the second: what Cloudflare's dashboard sets by default.
    Rfc3339,
    /// RFC 3339 to the millisecond.
    Rfc3339Ms,
    /// RFC 3339 to the nanosecond.
    Rfc3339Ns,
    /// Each record in a form of its own.
    Mixed,
}

/// The dataset of a log type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dataset {
    Firewall,
    HttpRequest,
    Spectrum,
}

impl Dataset {
    pub const ALL: [Self; 3] = [Self::Firewall, Self::HttpRequest, Self::Spectrum];

    pub fn log_type(self) -> &'static str {
        match self {
            Self::Firewall => "Cloudflare.Firewall",
            Self::HttpRequest => "Cloudflare.HttpRequest",
            Self::Spectrum => "Cloudflare.Spectrum",
        }
    }

    /// Cloudflare's name of the dataset, which its folders usually have.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Firewall => "firewall_events",
            Self::HttpRequest => "http_requests",
            Self::Spectrum => "spectrum_events",
        }
    }
}

/// No such log type or form of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{given}`; one of: {known}")]
pub struct UnknownName {
    what: &'static str,
    given: String,
    known: &'static str,
}

impl FromStr for Dataset {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = "Cloudflare.Firewall, Cloudflare.HttpRequest, Cloudflare.Spectrum";
        let found = Self::ALL.into_iter().find(|d| d.log_type() == name);
        found.ok_or_else(|| UnknownName { what: "log type", given: name.to_owned(), known })
    }
}

impl FromStr for Timestamps {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = "unixnano, unix, rfc3339, rfc3339ms, rfc3339ns, mixed";
        Ok(match name {
            "unixnano" => Self::UnixNano,
            "unix" => Self::Unix,
            "rfc3339" => Self::Rfc3339,
            "rfc3339ms" => Self::Rfc3339Ms,
            "rfc3339ns" => Self::Rfc3339Ns,
            "mixed" => Self::Mixed,
            _ => return Err(UnknownName { what: "form of time", given: name.to_owned(), known }),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Spec {
    pub dataset: Dataset,
    pub rows: u64,
    pub files: u64,
    pub seed: u64,
    pub timestamps: Timestamps,
    /// The first event's time, in seconds since the epoch.
    pub start: i64,
    /// Seconds from the first to the last event.
    pub span: i64,
    /// The share of records in odd forms, 0 to 1; a twentieth of them are broken lines.
    pub odd: f64,
}

/// One file's name and lines.
#[derive(Debug)]
pub struct LogFile {
    /// As Cloudflare names it: `http_requests/20260115/<from>_<to>_<8 hex>.log`.
    pub name: String,
    /// NDJSON.
    pub bytes: Vec<u8>,
    /// Lines that are no JSON.
    pub broken: u64,
}

impl Spec {
    /// The n-th file, from 0. Each is made by itself, so files can be made one at a time.
    pub fn file(&self, n: u64) -> LogFile {
        let mut random = SmallRng::seed_from_u64(
            self.seed ^ (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((self.dataset as u64) << 56),
        );
        let world = World::new(self.seed);
        let files = self.files.max(1);
        let rows = self.rows / files + u64::from(n < self.rows % files);
        let (from, to) = (
            self.start + self.span * n as i64 / files as i64,
            self.start + self.span * (n as i64 + 1) / files as i64,
        );
        let (mut bytes, mut broken) = (Vec::new(), 0);
        for row in 0..rows {
            // In order of arrival, which is nearly that of time.
            let even = (to - from) as f64 * row as f64 / rows as f64;
            let late = random.random_range(0.0..2.0f64);
            let nanos = from * 1_000_000_000 + ((even - late).max(0.0) * 1e9) as i64;
            let odd = random.random_bool(self.odd);
            let mut line = Line::new(&mut random, self.timestamps, odd);
            match self.dataset {
                Dataset::Firewall => firewall::write(&mut line, &world, nanos),
                Dataset::HttpRequest => http::write(&mut line, &world, nanos),
                Dataset::Spectrum => spectrum::write(&mut line, &world, nanos),
            }
            let mut text = line.finish();
            if odd && random.random_bool(0.05) {
                text.truncate(text.len() * random.random_range(20..90) / 100);
                broken += 1;
            }
            bytes.extend_from_slice(&text);
            bytes.push(b'\n');
        }
        let hash: u32 = random.random();
        let name = format!(
            "{}/{}/{}_{}_{hash:08x}.log",
            self.dataset.folder(),
            Stamp(from, "%Y%m%d"),
            Stamp(from, "%Y%m%dT%H%M%SZ"),
            Stamp(to, "%Y%m%dT%H%M%SZ")
        );
        LogFile { name, bytes, broken }
    }
}

/// Seconds since the epoch in a strftime form.
struct Stamp(i64, &'static str);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", chrono::DateTime::from_timestamp(self.0, 0).unwrap_or_default().format(self.1))
    }
}
