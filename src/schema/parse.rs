//! Schema YAML to [`LogType`]. Keys are Panther's where it has one; `match`, `aliases`, `lookup` and the
//! type `map` are ours. Every error names the file, the line and the field.

use std::collections::HashSet;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Column, ColumnType, Indicator, LogType, Match, Standard, TimeFormats};

/// Tables that are no log type's: the lake's own, and what SQL finds under such a name.
const RESERVED_TABLES: [&str; 5] =
    ["classification_failures", "ingested_objects", "all_logs", "lake_files", "information_schema"];
/// How no log type's table begins: Panther's schemas, and what engines pass over as hidden.
const RESERVED_BEGINNINGS: [&str; 3] = ["panther_", "_", "flarelake_"];
const MAX_FIELDS: usize = 1000;
/// Fields that one match rule may name.
const MAX_MATCH_NAMES: usize = 256;

/// What is wrong with a schema file, and where.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{file}:{line}: {message}")]
pub struct SchemaError {
    /// The file's name as it was given.
    pub file: String,
    /// The line, counted from 1; 0 when the file as a whole is meant.
    pub line: u64,
    /// What is wrong, with the field's name, and what to write instead.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: Spanned<String>,
    #[serde(default)]
    description: String,
    #[serde(rename = "referenceURL")]
    reference_url: Option<String>,
    #[serde(rename = "match", default)]
    matches: MatchKeys,
    fields: Vec<FieldKeys>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct MatchKeys {
    #[serde(default)]
    all: Vec<Spanned<String>>,
    #[serde(default)]
    any: Vec<Spanned<String>>,
    #[serde(default)]
    none: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FieldKeys {
    name: Spanned<String>,
    #[serde(rename = "type")]
    kind: Spanned<String>,
    element: Option<Element>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    is_event_time: bool,
    #[serde(default)]
    time_formats: Vec<Spanned<String>>,
    #[serde(default)]
    aliases: Vec<Spanned<String>>,
    #[serde(default)]
    indicators: Vec<Spanned<String>>,
    #[serde(default)]
    lookup: bool,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Element {
    #[serde(rename = "type")]
    kind: Spanned<String>,
}

/// Parses one schema file's text. `file` is only for the error message.
pub(super) fn parse(file: &str, text: &str) -> Result<LogType, SchemaError> {
    let keys: File = serde_saphyr::from_str(text).map_err(|e| SchemaError {
        file: file.to_owned(),
        line: e.location().map_or(0, |l| l.line()),
        message: first_line(&e.without_snippet().to_string()),
    })?;
    Parser { file, seen: HashSet::new() }.log_type(keys)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

struct Parser<'a> {
    file: &'a str,
    /// Every column name and alias so far: each stands once.
    seen: HashSet<String>,
}

impl Parser<'_> {
    fn error<T, V>(&self, at: &Spanned<V>, message: String) -> Result<T, SchemaError> {
        Err(SchemaError { file: self.file.to_owned(), line: at.referenced.line(), message })
    }

    fn log_type_name(&self, schema: &Spanned<String>) -> Result<(), SchemaError> {
        let name = &schema.value;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_') {
            return self.error(
                schema,
                format!("schema: `{name}` is no log type's name; use letters, digits, `.` and `_`, as in Cloudflare.HttpRequest"),
            );
        }
        let table = name.to_lowercase().replace('.', "_");
        if RESERVED_TABLES.contains(&table.as_str())
            || RESERVED_BEGINNINGS.iter().any(|beginning| table.starts_with(beginning))
        {
            return self.error(
                schema,
                format!(
                    "schema: {name} would be the table {table}, a name that flarelake keeps for itself; choose another, such as Acme.Log"
                ),
            );
        }
        Ok(())
    }

    fn log_type(&mut self, keys: File) -> Result<LogType, SchemaError> {
        self.log_type_name(&keys.schema)?;
        let name = &keys.schema.value;
        if keys.fields.len() > MAX_FIELDS {
            return self.error(
                &keys.schema,
                format!("schema {name}: {} fields; at most {MAX_FIELDS}", keys.fields.len()),
            );
        }
        let rules = [&keys.matches.all, &keys.matches.any, &keys.matches.none];
        if rules.iter().map(|names| names.len()).sum::<usize>() > MAX_MATCH_NAMES {
            return self.error(
                &keys.schema,
                format!("schema {name}: match names more than {MAX_MATCH_NAMES} fields"),
            );
        }
        let (mut columns, mut standard, mut event_time) = (Vec::new(), Vec::new(), None);
        for field in keys.fields {
            self.once(&field.name)?;
            if field.name.value.starts_with("p_") {
                standard.push(self.standard(&field)?);
                continue;
            }
            if field.is_event_time {
                if let Some(first) = event_time {
                    let first: &Column = &columns[first];
                    return self.error(
                        &field.name,
                        format!(
                            "field {}: isEventTime is already set on {}; a log type has one event time",
                            field.name.value, first.name
                        ),
                    );
                }
                event_time = Some(columns.len());
            }
            columns.push(self.column(field)?);
        }
        let Some(event_time) = event_time else {
            return self.error(
                &keys.schema,
                format!("schema {name}: no field has isEventTime: true; mark the timestamp that becomes p_event_time"),
            );
        };
        if standard.is_empty() {
            standard = Standard::ALL.iter().map(|s| (*s, String::new())).collect();
        }
        self.all_required(&keys.schema, &standard)?;
        let matches = Match {
            all: unspan(keys.matches.all),
            any: unspan(keys.matches.any),
            none: unspan(keys.matches.none),
        };
        Ok(LogType {
            name: keys.schema.value,
            description: keys.description,
            reference_url: keys.reference_url,
            matches,
            columns,
            event_time,
            standard,
        })
    }

    /// Whether all p_ columns are there that a table has to have.
    fn all_required(
        &self,
        name: &Spanned<String>,
        standard: &[(Standard, String)],
    ) -> Result<(), SchemaError> {
        let is_missing = |of: &&Standard| of.required() && !standard.iter().any(|(have, _)| have == *of);
        let Some(missing) = Standard::ALL.iter().find(is_missing) else { return Ok(()) };
        self.error(
            name,
            format!(
                "schema {}: the column {} is missing; list all required p_ columns, or none to get all of them",
                name.value,
                missing.name()
            ),
        )
    }

    fn once(&mut self, name: &Spanned<String>) -> Result<(), SchemaError> {
        if name.value.is_empty() {
            return self.error(name, "name: a field's name is empty".into());
        }
        if !self.seen.insert(name.value.to_lowercase()) {
            return self.error(
                name,
                format!(
                    "field {}: the name is used twice (column names and aliases differ in more than case)",
                    name.value
                ),
            );
        }
        Ok(())
    }

    fn standard(&self, field: &FieldKeys) -> Result<(Standard, String), SchemaError> {
        let name = &field.name.value;
        let Some(standard) = Standard::ALL.into_iter().find(|s| s.name() == name) else {
            return self.error(
                &field.name,
                format!(
                    "field {name}: names that begin with p_ are flarelake's own; it must be one of {}",
                    Standard::ALL.map(Standard::name).join(", ")
                ),
            );
        };
        let kind = self.kind(field)?;
        if kind != standard.kind() || field.required != standard.required() {
            let required = if standard.required() { "required" } else { "optional" };
            return self.error(
                &field.kind,
                format!("field {name}: must be {required} and of type {}", standard.kind().documented()),
            );
        }
        Ok((standard, field.description.clone()))
    }

    fn column(&mut self, field: FieldKeys) -> Result<Column, SchemaError> {
        let kind = self.kind(&field)?;
        let name = &field.name.value;
        for alias in &field.aliases {
            let alias_case_only = alias.value.to_lowercase() == name.to_lowercase() && alias.value != *name;
            if !alias_case_only {
                self.once(alias)?;
            }
        }
        if field.is_event_time && (kind != ColumnType::Timestamp || !field.required) {
            return self
                .error(&field.kind, format!("field {name}: the event time must be a required timestamp"));
        }
        if field.required && !field.is_event_time {
            return self
                .error(&field.name, format!("field {name}: only the event time can be required; a record never fails over another field"));
        }
        if !field.indicators.is_empty() && kind != ColumnType::String {
            return self.error(
                &field.kind,
                format!("field {name}: indicators are read from columns of type string only"),
            );
        }
        if field.lookup && kind != ColumnType::String {
            return self.error(&field.kind, format!("field {name}: lookup is for columns of type string"));
        }
        let indicators =
            field.indicators.iter().map(|i| self.indicator(name, i)).collect::<Result<_, _>>()?;
        let time_formats = self.time_formats(name, kind, &field.time_formats)?;
        Ok(Column {
            kind,
            required: field.required,
            description: field.description,
            aliases: unspan(field.aliases),
            indicators,
            time_formats,
            lookup: field.lookup,
            name: field.name.value,
        })
    }

    fn kind(&self, field: &FieldKeys) -> Result<ColumnType, SchemaError> {
        let name = &field.name.value;
        let kind = match (field.kind.value.as_str(), &field.element) {
            ("bigint", None) => ColumnType::BigInt,
            ("int", None) => ColumnType::Int,
            ("smallint", None) => ColumnType::SmallInt,
            ("float", None) => ColumnType::Float,
            ("boolean", None) => ColumnType::Boolean,
            ("string", None) => ColumnType::String,
            ("timestamp", None) => ColumnType::Timestamp,
            ("map", None) => ColumnType::StringMap,
            ("array", Some(element)) if element.kind.value == "string" => ColumnType::StringList,
            ("array", Some(element)) => {
                return self.error(
                    &element.kind,
                    format!("field {name}: arrays hold strings; write element: {{ type: string }}"),
                );
            }
            ("array", None) => {
                return self
                    .error(&field.kind, format!("field {name}: an array needs element: {{ type: string }}"));
            }
            (other, Some(_)) => {
                return self.error(
                    &field.kind,
                    format!("field {name}: element belongs to type array, not to {other}"),
                );
            }
            (other, None) => {
                return self.error(
                    &field.kind,
                    format!(
                        "field {name}: unknown type `{other}`; use string, bigint, int, smallint, float, boolean, timestamp, array or map"
                    ),
                );
            }
        };
        Ok(kind)
    }

    fn indicator(&self, field: &str, name: &Spanned<String>) -> Result<Indicator, SchemaError> {
        match name.value.as_str() {
            "ip" => Ok(Indicator::Ip),
            "hostname" => Ok(Indicator::Hostname),
            "url" => Ok(Indicator::Url),
            "trace_id" => Ok(Indicator::TraceId),
            other => self.error(
                name,
                format!("field {field}: unknown indicator `{other}`; use ip, hostname, url or trace_id"),
            ),
        }
    }

    fn time_formats(
        &self,
        field: &str,
        kind: ColumnType,
        names: &[Spanned<String>],
    ) -> Result<TimeFormats, SchemaError> {
        let Some(first) = names.first() else { return Ok(TimeFormats::ALL) };
        if kind != ColumnType::Timestamp {
            return self.error(first, format!("field {field}: timeFormats is for columns of type timestamp"));
        }
        let mut formats = TimeFormats { rfc3339: false, unix_auto: false, datetime: false, rfc1123: false };
        for name in names {
            match name.value.as_str() {
                "rfc3339" => formats.rfc3339 = true,
                "unix_auto" => formats.unix_auto = true,
                "datetime" => formats.datetime = true,
                "rfc1123" => formats.rfc1123 = true,
                other => {
                    return self
                        .error(name, format!("field {field}: unknown time format `{other}`; use rfc3339, unix_auto, datetime or rfc1123"));
                }
            }
        }
        Ok(formats)
    }
}

fn unspan(names: Vec<Spanned<String>>) -> Vec<String> {
    names.into_iter().map(|n| n.value).collect()
}
