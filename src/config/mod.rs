//! Settings: a TOML file, overridden by the environment, and that by the command line. The only reader of the
//! environment. Every key but `lake` has a default; unknown keys are errors.

mod every;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format as _, Toml};
use serde::Deserialize;

pub use every::Every;

use crate::base::aws::Access;
use crate::base::nearest;
use crate::base::store::Reach;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is unknown or its value is of the wrong kind.
    #[error("configuration: {0}")]
    Invalid(String),
    /// The file can't be read.
    #[error("configuration: {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// No lake was named.
    #[error(
        "no lake: give --lake FOLDER or --lake s3://bucket/prefix, set FLARELAKE_LAKE, or write lake = \"…\" in the configuration"
    )]
    NoLake,
}

/// What the variables that are settings begin with.
const PREFIX: &str = "FLARELAKE_";

/// Checkpoints of a table's log tell for this long which files were taken out of it.
const MOST_VACUUM_AFTER: Duration = Duration::from_secs(10 * 86_400);

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
    /// How the program's own log is written.
    pub log: LogFormat,
    /// When a batch is landed.
    pub flush: Flush,
    pub limits: Limits,
    /// How queues are worked off.
    pub ingest: Ingest,
    /// How the lake's store is reached and written.
    pub store: LakeStore,
    /// Metrics and health.
    pub http: Http,
    /// Upkeep of the tables.
    pub maintenance: Maintenance,
    /// How long a table's rows are kept, by its name; without an entry for ever.
    #[serde(deserialize_with = "durations")]
    pub retention: BTreeMap<String, Duration>,
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
            log: LogFormat::default(),
            flush: Flush::default(),
            limits: Limits::default(),
            ingest: Ingest::default(),
            store: LakeStore::default(),
            http: Http::default(),
            maintenance: Maintenance::default(),
            retention: BTreeMap::new(),
            source: Vec::new(),
        }
    }
}

/// When a batch is landed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flush {
    /// When its oldest object has waited this long (`flarelake ingest` only).
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// At this many bytes of rows in memory; less where `memory` leaves less.
    pub max_bytes: ByteSize,
    /// At this many rows.
    pub max_rows: u64,
}

impl Default for Flush {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(60), max_bytes: ByteSize::mib(128), max_rows: 4_000_000 }
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

/// How the program's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for a person.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// How queues are worked off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ingest {
    /// Threads that decode and write; 0: one a core, as far as memory allows.
    pub workers: usize,
    /// Long polls at once, for each queue.
    pub receivers: usize,
    /// Objects of one source that are fetched at once.
    pub fetches: usize,
    /// Messages held at most, landed or on their way.
    pub max_messages: usize,
    /// How long a stop may take; what has not landed by then goes back to its queue.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

impl Default for Ingest {
    fn default() -> Self {
        Self { workers: 0, receivers: 2, fetches: 16, max_messages: 10_000, drain: Duration::from_secs(25) }
    }
}

/// How the lake's store is reached and written, for lakes on S3.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LakeStore {
    /// `aws:kms`, `aws:kms:dsse` or `AES256`; none leaves it to the bucket.
    pub server_side_encryption: Option<String>,
    /// The key of KMS; none is the account's own.
    pub kms_key_id: Option<String>,
    /// Another account or store than the environment's.
    pub aws: Access,
}

/// Metrics and health over HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// The address; port 0 takes a free one, which the log tells.
    pub listen: SocketAddr,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

/// Upkeep of the tables.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Maintenance {
    /// Inside `flarelake ingest`.
    pub embedded: bool,
    /// When small files are merged.
    pub compact_every: Every,
    /// What files are merged to.
    pub target_file_size: ByteSize,
    /// When retention, vacuum and log clean-up run.
    pub vacuum_every: Every,
    /// How long files that were taken out of a table, and its old versions, are kept for their readers.
    #[serde(with = "humantime_serde")]
    pub vacuum_after: Duration,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self {
            embedded: true,
            compact_every: Every::Interval(Duration::from_secs(600)),
            target_file_size: ByteSize::mib(256),
            vacuum_every: Every::Interval(Duration::from_secs(6 * 3600)),
            vacuum_after: Duration::from_secs(7 * 86_400),
        }
    }
}

fn durations<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Duration>, D::Error> {
    let texts = BTreeMap::<String, humantime_serde::Serde<Duration>>::deserialize(from)?;
    Ok(texts.into_iter().map(|(table, after)| (table, after.into_inner())).collect())
}

/// An origin of logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub id: String,
    pub label: Option<String>,
    /// The URL of the SQS queue that announces its objects, or carries its records.
    pub queue: Option<String>,
    /// The buckets whose objects are this source's: nothing else is ever fetched for it.
    #[serde(default)]
    pub buckets: Vec<String>,
    /// The account or store of its queue and buckets, if it is not the environment's.
    #[serde(default)]
    pub aws: Access,
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
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            figment = figment.merge(Toml::string(&text));
        }
        let environment =
            Env::prefixed(PREFIX).filter(|key| !is_of_kubernetes(&key.as_str().to_uppercase())).split("__");
        let read = figment.merge(environment).extract();
        let config: Self = read.map_err(|errors| {
            ConfigError::Invalid(errors.into_iter().map(explain).collect::<Vec<_>>().join("; "))
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
        if self.flush.max_bytes.as_u64() == 0 || self.flush.max_rows == 0 || self.flush.max_age.is_zero() {
            return wrong("flush.max_bytes, flush.max_rows and flush.max_age must be more than 0".into());
        }
        if self.maintenance.target_file_size < ByteSize::mib(1) {
            return wrong(format!(
                "maintenance.target_file_size = {}: at least 1 MiB",
                self.maintenance.target_file_size
            ));
        }
        if self.maintenance.vacuum_after > MOST_VACUUM_AFTER {
            return wrong(
                "maintenance.vacuum_after: at most 10 days, for as long as a table's log tells which files were taken out".into(),
            );
        }
        if let Some((table, _)) = self.retention.iter().find(|(_, keep)| keep.is_zero()) {
            return wrong(format!(
                "retention.{table}: must be more than 0; without an entry a table's rows are kept for ever"
            ));
        }
        let ingest = &self.ingest;
        if ingest.receivers == 0 || ingest.fetches == 0 || ingest.max_messages < 10 {
            return wrong(
                "ingest.receivers and ingest.fetches must be at least 1, ingest.max_messages at least 10"
                    .into(),
            );
        }
        if let Some(encryption) = &self.store.server_side_encryption
            && !["aws:kms", "aws:kms:dsse", "AES256"].contains(&encryption.as_str())
        {
            return wrong(format!(
                "store.server_side_encryption = \"{encryption}\": \"aws:kms\", \"aws:kms:dsse\" or \"AES256\""
            ));
        }
        if self.store.kms_key_id.is_some()
            && !self.store.server_side_encryption.as_ref().is_some_and(|e| e.starts_with("aws:kms"))
        {
            return wrong("store.kms_key_id needs store.server_side_encryption = \"aws:kms\"".into());
        }
        self.check_sources()
    }

    fn check_sources(&self) -> Result<(), ConfigError> {
        let wrong = |message: String| Err(ConfigError::Invalid(message));
        for (at, source) in self.source.iter().enumerate() {
            let id = &source.id;
            if id.is_empty() {
                return wrong("source.id is empty: it becomes p_source_id".into());
            }
            if self.source[..at].iter().any(|other| other.id == *id) {
                return wrong(format!("two sources have the id \"{id}\""));
            }
            if let Some(queue) = &source.queue
                && !url::Url::parse(queue)
                    .is_ok_and(|u| u.scheme().starts_with("http") && u.has_host() && u.path().len() > 1)
            {
                return wrong(format!(
                    "source \"{id}\": queue = \"{queue}\" is no queue URL, such as https://sqs.eu-west-1.amazonaws.com/123456789012/logs"
                ));
            }
            if source.queue.is_some() && self.source[..at].iter().any(|other| other.queue == source.queue) {
                return wrong(format!(
                    "two sources read the same queue, one of them \"{id}\": let one source list both buckets"
                ));
            }
            if let Some(bucket) = source.buckets.iter().find(|b| b.contains(['/', ':'])) {
                return wrong(format!("source \"{id}\": buckets are bare names, not \"{bucket}\""));
            }
            if source.aws.external_id.is_some() && source.aws.role_arn.is_none() {
                return wrong(format!("source \"{id}\": aws.external_id needs aws.role_arn"));
            }
            if let Some(endpoint) = &source.aws.endpoint
                && !url::Url::parse(endpoint).is_ok_and(|u| u.scheme().starts_with("http") && u.has_host())
            {
                return wrong(format!(
                    "source \"{id}\": aws.endpoint = \"{endpoint}\" is no http:// or https:// URL"
                ));
            }
        }
        Ok(())
    }

    /// How a lake on S3 is reached.
    pub fn reach(&self) -> Reach {
        Reach {
            access: self.store.aws.clone(),
            encryption: self.store.server_side_encryption.clone(),
            kms_key_id: self.store.kms_key_id.clone(),
            environment: aws_environment(),
        }
    }

    /// The lake's URL, or an error that says how to give one.
    pub fn lake(&self) -> Result<&str, ConfigError> {
        self.lake.as_deref().ok_or(ConfigError::NoLake)
    }
}

/// An error as a person reads it: where, what, and what was probably meant.
fn explain(error: figment::Error) -> String {
    let Kind::UnknownField(name, expected) = &error.kind else { return error.to_string() };
    let is_table = |part: &&String| *part != name && part.parse::<usize>().is_err();
    let table = error.path.iter().filter(is_table).cloned().collect::<Vec<_>>().join(".");
    let place = if table.is_empty() { String::new() } else { format!(" in [{table}]") };
    match nearest(name, expected.iter().copied()) {
        Some(known) => format!("unknown key `{name}`{place}: did you mean `{known}`?"),
        None => format!("unknown key `{name}`{place}; known are {}", expected.join(", ")),
    }
}

/// What the program was started with, itself first.
pub fn arguments() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// The variables that would be settings by their names, and that Kubernetes sets in every container beside a
/// Service named `flarelake`.
pub fn of_kubernetes() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| name.strip_prefix(PREFIX).is_some_and(is_of_kubernetes)).collect()
}

/// Whether Kubernetes sets the variable of this name (without the prefix): `SERVICE_HOST`, `SERVICE_PORT`,
/// one for each port that has a name (`SERVICE_PORT_METRICS`), and those that Docker made up for links:
/// `PORT`, `PORT_9464_TCP`, and of each of these `_PROTO`, `_PORT` and `_ADDR`. Exactly these: any other is a
/// setting, or a mistake that has to be told.
fn is_of_kubernetes(name: &str) -> bool {
    let is_name = |text: &str| {
        !text.is_empty()
            && !text.contains("__")
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let is_port = |text: &str| text.parse::<u16>().is_ok() && text.bytes().all(|b| b.is_ascii_digit());
    match name {
        "SERVICE_HOST" | "SERVICE_PORT" => return true,
        // Someone's own idea of a setting is a number; this is a URL.
        "PORT" => return std::env::var(format!("{PREFIX}{name}")).is_ok_and(|value| value.contains("://")),
        _ => {}
    }
    if let Some(port) = name.strip_prefix("SERVICE_PORT_") {
        return is_name(port);
    }
    let mut parts = name.split('_');
    let is_link = parts.next() == Some("PORT") && parts.next().is_some_and(is_port);
    is_link
        && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
        && matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"))
        && parts.next().is_none()
}

/// Whether the environment names another address for S3 than AWS's.
pub fn s3_has_custom_endpoint() -> bool {
    ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].iter().any(|name| std::env::var_os(name).is_some())
}

/// Whether the environment names another address for SQS than AWS's.
pub fn sqs_has_custom_endpoint() -> bool {
    ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"].iter().any(|name| std::env::var_os(name).is_some())
}

/// The `AWS_*` variables, by which S3 is reached.
fn aws_environment() -> Vec<(String, String)> {
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

/// What long results are read in, if the environment says so.
pub fn pager() -> Option<String> {
    std::env::var("PAGER").ok()
}

/// Where what is remembered between runs goes; none without a home.
pub fn state_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("flarelake"))
}
