//! Saved queries: a statement with a title, typed parameters and what it answers, all in one file.
//!
//! ```sql
//! -- title: Top talkers
//! -- param: since time = 7d: only what happened after this; a time, or how long ago
//! -- param: limit integer = 20: how many addresses
//! -- The client addresses with the most requests, and how many of these were refused.
//! SELECT … WHERE p_event_time >= $since … LIMIT $limit
//! ```

use std::time::Duration;

use chrono::DateTime;

use crate::base::now_micros;

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    Text,
    Integer,
    Float,
    Boolean,
    /// RFC 3339, or how long ago, such as `7d`.
    Time,
}

impl ParameterKind {
    const ALL: [(&'static str, Self); 5] = [
        ("text", Self::Text),
        ("integer", Self::Integer),
        ("float", Self::Float),
        ("boolean", Self::Boolean),
        ("time", Self::Time),
    ];

    /// As it stands in a header.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Reads a value of this type; none if it is none.
    pub fn read(self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Text => Value::Text(text.to_owned()),
            Self::Integer => Value::Integer(text.parse().ok()?),
            Self::Float => Value::Float(text.parse().ok()?),
            Self::Boolean => Value::Boolean(text.parse().ok()?),
            Self::Time => Value::Time(time(text)?),
        })
    }
}

/// What a parameter stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// Microseconds since the epoch, UTC.
    Time(i64),
    /// What no header tells the type of: the statement does, by what it is compared with.
    Untyped(String),
}

/// A parameter of a saved query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Written `$name` in the statement.
    pub name: String,
    pub kind: ParameterKind,
    /// What it is when nothing else is given; none: it has to be given.
    pub default: Option<String>,
    pub help: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedQuery {
    /// The file's name without `.sql`.
    pub name: String,
    /// In a few words.
    pub title: String,
    pub answers: String,
    /// What can be given to it.
    pub parameters: Vec<Parameter>,
    /// The statement, with the header's comments.
    pub sql: String,
}

/// Why a saved query can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SavedError {
    /// A `-- param:` line that can't be read.
    #[error(
        "{name}: `{line}` is no parameter; write `-- param: NAME text|integer|float|boolean|time [= DEFAULT]: WHAT IT DOES`"
    )]
    Header { name: String, line: String },
    /// A value was given to what the query doesn't have.
    #[error("{name} has no parameter `{parameter}`; it has {there}")]
    Unknown { name: String, parameter: String, there: String },
    /// A parameter without default was not given.
    #[error("{name} needs a value: -p {parameter}=… ({help})")]
    Missing { name: String, parameter: String, help: String },
    /// A value is not of its parameter's type.
    #[error("{name}: {parameter} = `{given}` is no {kind}{hint}")]
    Type {
        name: String,
        parameter: String,
        given: String,
        kind: &'static str,
        /// How it is written.
        hint: &'static str,
    },
}

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        /// The queries that the program comes with: those of the folder `queries`.
        pub fn built_in() -> Vec<SavedQuery> {
            let texts = [$(($name, include_str!(concat!("../../queries/", $name, ".sql")))),*];
            texts.iter().map(|(name, text)| SavedQuery::parse(name, text).expect("a test reads each of them")).collect()
        }
    };
}

built_in!(
    "blocked_by_rule",
    "bot_scores",
    "cache_ratio_by_host",
    "duplicates",
    "errors_by_origin",
    "events_by_log_type",
    "files_and_sizes",
    "freshness",
    "indicator",
    "late_data",
    "rejects_by_reason",
    "slow_paths",
    "spectrum_connections",
    "top_talkers",
    "waf_timeline",
);

impl SavedQuery {
    /// Reads a file's text: its header is the comments that it begins with.
    pub fn parse(name: &str, text: &str) -> Result<Self, SavedError> {
        let mut saved = Self {
            name: name.to_owned(),
            title: name.to_owned(),
            answers: String::new(),
            parameters: Vec::new(),
            sql: text.to_owned(),
        };
        for line in text.lines().map_while(|line| line.trim().strip_prefix("--")).map(str::trim) {
            if let Some(title) = line.strip_prefix("title:") {
                title.trim().clone_into(&mut saved.title);
            } else if let Some(parameter) = line.strip_prefix("param:") {
                let wrong = || SavedError::Header { name: name.to_owned(), line: line.to_owned() };
                saved.parameters.push(parameter_of(parameter).ok_or_else(wrong)?);
            } else {
                let space = if saved.answers.is_empty() { "" } else { " " };
                saved.answers += space;
                saved.answers += line;
            }
        }
        Ok(saved)
    }

    /// A value for every parameter: of those given, `name=value`, or the default. A query that declares none
    /// takes whatever is given.
    pub fn arguments(&self, given: &[(String, String)]) -> Result<Vec<(String, Value)>, SavedError> {
        if self.parameters.is_empty() {
            if let Some((unknown, _)) = given.iter().find(|(name, _)| !self.sql.contains(&format!("${name}")))
            {
                let (name, parameter) = (self.name.clone(), unknown.clone());
                return Err(SavedError::Unknown { name, parameter, there: "none of that name".to_owned() });
            }
            return Ok(given
                .iter()
                .map(|(name, text)| (name.clone(), Value::Untyped(text.clone())))
                .collect());
        }
        if let Some((unknown, _)) =
            given.iter().find(|(name, _)| self.parameters.iter().all(|p| p.name != *name))
        {
            let there: Vec<&str> = self.parameters.iter().map(|p| p.name.as_str()).collect();
            let (name, parameter, there) = (self.name.clone(), unknown.clone(), there.join(", "));
            return Err(SavedError::Unknown { name, parameter, there });
        }
        let value = |p: &Parameter| {
            let own = given.iter().rev().find(|(name, _)| *name == p.name).map(|(_, text)| text);
            let text = own.or(p.default.as_ref()).ok_or_else(|| SavedError::Missing {
                name: self.name.clone(),
                parameter: p.name.clone(),
                help: p.help.clone(),
            })?;
            let value = p.kind.read(text).ok_or_else(|| SavedError::Type {
                name: self.name.clone(),
                parameter: p.name.clone(),
                given: text.clone(),
                kind: p.kind.name(),
                hint: if p.kind == ParameterKind::Time {
                    ", such as 2026-11-24T00:00:00Z, or 7d for seven days ago"
                } else {
                    ""
                },
            })?;
            Ok((p.name.clone(), value))
        };
        self.parameters.iter().map(value).collect()
    }
}

/// `NAME KIND [= DEFAULT]: HELP`. A default that holds a colon and a space can't be told from help.
fn parameter_of(text: &str) -> Option<Parameter> {
    let (what, help) = text.split_once(": ")?;
    let (declared, default) = what
        .split_once('=')
        .map_or((what, None), |(declared, default)| (declared, Some(default.trim().to_owned())));
    let (name, kind) = declared.trim().split_once(' ')?;
    let (_, kind) = ParameterKind::ALL.into_iter().find(|(word, _)| *word == kind.trim())?;
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        || default.as_ref().is_some_and(|d| kind.read(d).is_none())
    {
        return None;
    }
    Some(Parameter { name: name.to_owned(), kind, default, help: help.trim().to_owned() })
}

/// A time in microseconds since the epoch: RFC 3339, a date, or how long ago.
fn time(text: &str) -> Option<i64> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return now_micros()
            .checked_sub(i64::try_from(ago.min(Duration::from_secs(3_000_000_000)).as_micros()).ok()?);
    }
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.replacen(' ', "T", 1) };
    DateTime::parse_from_rfc3339(&whole).ok().map(|t| t.timestamp_micros())
}
