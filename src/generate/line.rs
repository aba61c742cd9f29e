//! One JSON line under construction, in plain or odd forms.

use std::io::Write as _;

use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::Timestamps;

/// Writes fields in order. In an odd record some values take another form that means the same, or nothing.
pub struct Line<'a> {
    pub random: &'a mut SmallRng,
    timestamps: Timestamps,
    odd: bool,
    out: Vec<u8>,
}

impl<'a> Line<'a> {
    pub fn new(random: &'a mut SmallRng, timestamps: Timestamps, odd: bool) -> Self {
        let timestamps = match timestamps {
            Timestamps::Mixed => {
                let all = [
                    Timestamps::UnixNano,
                    Timestamps::Unix,
                    Timestamps::Rfc3339,
                    Timestamps::Rfc3339Ms,
                    Timestamps::Rfc3339Ns,
                ];
                all[random.random_range(0..all.len())]
            }
            one => one,
        };
        Self { random, timestamps, odd, out: vec![b'{'] }
    }

    /// Whether the record takes odd forms.
    pub fn is_odd(&self) -> bool {
        self.odd
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    fn name(&mut self, name: &str) {
        if self.out.len() > 1 {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        if value.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
            self.out.push(b'"');
            self.out.extend_from_slice(value.as_bytes());
            self.out.push(b'"');
        } else {
            serde_json::to_writer(&mut self.out, value).expect("writing to memory");
        }
    }

    /// A number; in an odd record now and then as text, or as an empty string.
    pub fn number(&mut self, name: &str, value: i64) {
        self.name(name);
        let form = if self.odd { self.random.random_range(0..8) } else { 7 };
        match form {
            0 => write!(self.out, "\"{value}\""),
            1 => write!(self.out, "\"\""),
            2 => write!(self.out, "{value}.0"),
            _ => write!(self.out, "{value}"),
        }
        .expect("writing to memory");
    }

    /// JSON as it is given.
    pub fn raw(&mut self, name: &str, json: impl std::fmt::Display) {
        self.name(name);
        write!(self.out, "{json}").expect("writing to memory");
    }

    pub fn boolean(&mut self, name: &str, value: bool) {
        self.raw(name, value);
    }

    pub fn list(&mut self, name: &str, values: &[&str]) {
        self.raw(name, serde_json::json!(values));
    }

    /// A time, in nanoseconds since the epoch.
    pub fn time(&mut self, name: &str, nanos: i64) {
        let time = chrono::DateTime::from_timestamp_nanos(nanos);
        let text = |places| time.to_rfc3339_opts(places, true);
        match self.timestamps {
            Timestamps::Unix if self.odd => self.raw(name, format_args!("\"{}\"", nanos / 1_000_000_000)),
            Timestamps::Unix => self.raw(name, nanos / 1_000_000_000),
            Timestamps::Rfc3339 if self.odd => self.text(name, &time.format("%Y-%m-%d %H:%M:%S").to_string()),
            Timestamps::Rfc3339 => self.text(name, &text(chrono::SecondsFormat::Secs)),
            Timestamps::Rfc3339Ms => self.text(name, &text(chrono::SecondsFormat::Millis)),
            Timestamps::Rfc3339Ns => self.text(name, &text(chrono::SecondsFormat::Nanos)),
            Timestamps::UnixNano | Timestamps::Mixed => self.raw(name, nanos),
        }
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }
}
