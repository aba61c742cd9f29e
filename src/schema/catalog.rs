//! The log types that this run knows: those embedded at build, and those of `--schemas DIR`.

use std::path::Path;
use std::sync::Arc;

use super::parse::{SchemaError, parse};
use super::{LogType, Match};

/// Fields, aliases and what match rules name, of all log types together.
const MAX_FIELDS: usize = 3000;

const EMBEDDED: [(&str, &str); 3] = [
    ("schemas/cloudflare_firewall.yml", include_str!("../../schemas/cloudflare_firewall.yml")),
    ("schemas/cloudflare_httprequest.yml", include_str!("../../schemas/cloudflare_httprequest.yml")),
    ("schemas/cloudflare_spectrum.yml", include_str!("../../schemas/cloudflare_spectrum.yml")),
];

/// Why the log types could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A schema file is wrong.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A schema file or its folder could not be read.
    #[error("can't read schemas from {path}: {source}; --schemas takes a folder of .yml files")]
    Read { path: String, source: std::io::Error },
    /// Two log types of one folder would share a table.
    #[error("{path}: the log type {name} is defined twice in this folder; remove one of the files")]
    Twice {
        /// The second file.
        path: String,
        name: String,
    },
    /// More than can be told apart.
    #[error(
        "{path}: with the built-in ones these log types have more than {MAX_FIELDS} fields, or their match rules need more than {most} bits (one for each name under all, one for any, one for none); split them over several runs",
        most = Match::MOST_BITS
    )]
    TooMany { path: String },
    /// No log type of that name.
    #[error("unknown log type `{name}`; known: {known}")]
    Unknown { name: String, known: String },
}

/// Every known log type, ordered by name.
#[derive(Debug, Clone)]
pub struct Catalog {
    types: Vec<Arc<LogType>>,
}

impl Catalog {
    /// The log types embedded at build.
    ///
    /// # Panics
    /// If an embedded schema is wrong, which a test rules out.
    pub fn embedded() -> Self {
        let types = EMBEDDED
            .iter()
            .map(|(file, text)| parse(file, text).unwrap_or_else(|e| panic!("embedded schema: {e}")));
        let mut catalog = Self { types: types.map(Arc::new).collect() };
        catalog.sort();
        catalog
    }

    /// The embedded log types with those of `dir` laid over them: same name replaces, a new name adds.
    pub fn with_dir(dir: &Path) -> Result<Self, CatalogError> {
        let mut catalog = Self::embedded();
        let mut added: Vec<String> = Vec::new();
        for path in schema_files(dir)? {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(&path)
                .map_err(|source| CatalogError::Read { path: shown.clone(), source })?;
            let log_type = parse(&shown, &text)?;
            let table = log_type.table_name();
            if added.contains(&table) {
                return Err(CatalogError::Twice { path: shown, name: log_type.name });
            }
            added.push(table.clone());
            catalog.types.retain(|t| t.table_name() != table);
            catalog.types.push(Arc::new(log_type));
        }
        catalog.sort();
        let bits: usize = catalog.types.iter().map(|t| t.matches.bits()).sum();
        let fields = |t: &Arc<LogType>| {
            t.columns.iter().map(|c| 1 + c.aliases.len()).sum::<usize>() + t.matches.names().count()
        };
        if bits > Match::MOST_BITS || catalog.types.iter().map(fields).sum::<usize>() > MAX_FIELDS {
            return Err(CatalogError::TooMany { path: dir.display().to_string() });
        }
        Ok(catalog)
    }

    /// Parses one schema text; `file` stands in its errors.
    pub fn parse(file: &str, text: &str) -> Result<LogType, SchemaError> {
        parse(file, text)
    }

    fn sort(&mut self) {
        self.types.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Every log type, ordered by name.
    pub fn types(&self) -> &[Arc<LogType>] {
        &self.types
    }

    /// The index in [`types`](Self::types) of the log type of that name.
    pub fn index_of(&self, name: &str) -> Result<usize, CatalogError> {
        self.types.iter().position(|t| t.name == name).ok_or_else(|| CatalogError::Unknown {
            name: name.to_owned(),
            known: self.types.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

fn schema_files(dir: &Path) -> Result<Vec<std::path::PathBuf>, CatalogError> {
    let failed = |source| CatalogError::Read { path: dir.display().to_string(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "yml" || e == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
