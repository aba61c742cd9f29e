//! Settings: one TOML file, over it the environment, over that the command line. The only reader of the
//! environment. Every key has a default but `lake`; unknown keys are errors.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use figment::Figment;
use figment::providers::{Env, Format as _, Toml};
use serde::Deserialize;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is unknown or its value is of the wrong kind.
    #[error("configuration: {0}")]
    Invalid(String),
    /// The file can't be read.
    #[error("configuration: {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No lake was named.
    #[error("no lake: give --lake FOLDER or --lake s3://bucket/prefix, set FLARELAKE_LAKE, or write lake = \"…\" in the configuration")]
    NoLake,
}

/// How a table's files are laid out by `p_event_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partitioning {
    /// By `p_event_date`.
    #[default]
    Day,
    /// By `p_event_date` and `p_event_hour`.
    Hour,
}

impl Partitioning {
    /// The partition columns, outermost first.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Day => &["p_event_date"],
            Self::Hour => &["p_event_date", "p_event_hour"],
        }
    }
}

/// All settings, with their defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A folder or an `s3://` URL.
    pub lake: Option<String>,
    /// How much memory decoding and writing may use, all workers together.
    pub memory: ByteSize,
    /// The layout of tables that are created.
    pub partition: Partitioning,
    /// A folder of schema files laid over the built-in ones.
    pub schemas: Option<PathBuf>,
    /// When a batch is landed.
    pub flush: Flush,
    /// What is refused.
    pub limits: Limits,
    /// Where logs come from.
    pub source: Vec<Source>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lake: None,
            memory: ByteSize::mib(512),
            partition: Partitioning::default(),
            schemas: None,
            flush: Flush::default(),
            limits: Limits::default(),
            source: Vec::new(),
        }
    }
}

/// When a batch is landed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flush {
    /// At this many bytes of rows in memory; less where `memory` leaves less.
    pub max_bytes: ByteSize,
}

impl Default for Flush {
    fn default() -> Self {
        Self { max_bytes: ByteSize::mib(128) }
    }
}

/// What is refused: each becomes a reject that says so.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one record.
    pub max_record: ByteSize,
    /// Levels of nesting in a record.
    pub max_depth: usize,
    /// Bytes that one object inflates to.
    pub max_object: ByteSize,
    /// Inflated bytes for each stored byte, once an object is beyond 16 MiB.
    pub max_ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_record: ByteSize::mib(16), max_depth: 64, max_object: ByteSize::gib(8), max_ratio: 500 }
    }
}

/// An origin of logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `p_source_id`.
    pub id: String,
    /// `p_source_label`.
    pub label: Option<String>,
    /// The buckets whose objects are this source's.
    #[serde(default)]
    pub buckets: Vec<String>,
    /// Log types by key prefix; without a match each record is told by its own fields.
    #[serde(default)]
    pub route: Vec<Route>,
}

/// A log type for all objects below a prefix.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What the keys begin with.
    pub prefix: String,
    /// `Cloudflare.HttpRequest`.
    pub log_type: String,
}

impl Config {
    /// Reads the file, if one is named, and the `FLARELAKE_*` variables over it.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            figment = figment.merge(Toml::string(&text));
        }
        let config: Self = figment.merge(Env::prefixed("FLARELAKE_").split("__")).extract().map_err(|errors| {
            let shown: Vec<String> = errors.into_iter().map(|e| e.to_string()).collect();
            ConfigError::Invalid(shown.join("; "))
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |message: String| Err(ConfigError::Invalid(message));
        let least = ByteSize::mib(64);
        if self.memory < least {
            return wrong(format!("memory = {}: at least {least} is needed", self.memory));
        }
        if self.limits.max_record.as_u64() == 0 || self.limits.max_record > ByteSize::gib(1) {
            return wrong(format!("limits.max_record = {}: from 1 byte to 1 GiB", self.limits.max_record));
        }
        if self.limits.max_depth == 0 {
            return wrong("limits.max_depth = 0: a record is one level deep itself".into());
        }
        if self.limits.max_ratio == 0 || self.limits.max_object.as_u64() == 0 {
            return wrong("limits.max_ratio and limits.max_object must be more than 0".into());
        }
        Ok(())
    }

    /// The lake's URL, or an error that says how to give one.
    pub fn lake(&self) -> Result<&str, ConfigError> {
        self.lake.as_deref().ok_or(ConfigError::NoLake)
    }
}

/// The `AWS_*` variables, by which S3 is reached.
pub fn aws_environment() -> Vec<(String, String)> {
    let mut found: Vec<_> = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect();
    // The specific endpoint is set after the general one, and wins.
    found.sort();
    found
}

/// How many cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where temporary files go.
pub fn temporary_folder() -> PathBuf {
    std::env::temp_dir()
}
