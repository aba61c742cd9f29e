//! Case-insensitive names. DataFusion takes names as they are written; people write `clientip`, `ClientIP`
//! and `CLIENTIP` for the column that is documented as `ClientIP`.
//!
//! SQL ignores the case of keywords, so changing the case of an unquoted word never changes how a statement
//! is parsed. Each name is respelled before parsing: columns as documented, tables and functions as defined,
//! and any other name (an alias, a CTE) as at its first mention. Quoted names stay.

use std::collections::{BTreeMap, HashMap, HashSet};

use datafusion::sql::sqlparser::ast::Ident;
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};

/// Where SQL's own tables of tables and columns are: everything in it is in lower case.
const INFORMATION_SCHEMA: &str = "information_schema";

/// The names that a statement may mention.
#[derive(Debug, Default)]
pub struct Vocabulary {
    /// Columns by table.
    tables: BTreeMap<String, Vec<String>>,
    /// Schemas and databases.
    schemas: HashSet<String>,
    functions: HashSet<String>,
}

impl Vocabulary {
    /// Adds a table, all in lower case, and its columns as they are spelled.
    pub fn add_table(&mut self, table: &str, columns: impl IntoIterator<Item = String>) {
        self.tables.insert(table.to_owned(), columns.into_iter().collect());
    }

    /// Adds a schema's or a database's name.
    pub fn add_schema(&mut self, schema: &str) {
        self.schemas.insert(schema.to_owned());
    }

    /// Adds functions, all in lower case.
    pub fn add_functions(&mut self, functions: impl IntoIterator<Item = String>) {
        self.functions.extend(functions);
    }

    /// Every table with its columns.
    pub fn tables(&self) -> &BTreeMap<String, Vec<String>> {
        &self.tables
    }

    pub fn functions(&self) -> &HashSet<String> {
        &self.functions
    }

    /// The statement with every name as it is spelled. One that can't be cut into words comes back as it is:
    /// the parser says what is wrong with it.
    pub fn spell(&self, sql: &str, dialect: &dyn Dialect) -> String {
        let Ok(mut tokens) = Tokenizer::new(dialect, sql).with_unescape(false).tokenize() else {
            return sql.to_owned();
        };
        let calls = calls(&tokens);
        let spelled = self.spellings(&tokens, &calls);
        for (at, token) in tokens.iter_mut().enumerate() {
            let Token::Word(word) = token else { continue };
            if word.quote_style.is_some() {
                continue;
            }
            let lower = word.value.to_lowercase();
            if calls.contains(&at) && self.functions.contains(&lower) {
                word.value = lower;
            } else if let Some(spelling) = spelled.get(&lower) {
                word.value.clone_from(spelling);
            }
        }
        tokens.iter().map(ToString::to_string).collect()
    }

    /// The spelling of every name in the statement, by its lower case.
    fn spellings(&self, tokens: &[Token], calls: &HashSet<usize>) -> HashMap<String, String> {
        let words = || {
            tokens
                .iter()
                .enumerate()
                .filter_map(|(at, token)| if let Token::Word(w) = token { Some((at, w)) } else { None })
        };
        let mut spelled: HashMap<String, String> = HashMap::new();
        let mut of_the_standard = false;
        // Of two columns that differ in case alone, the one that is written as it is spelled, or the first.
        let written: HashSet<&str> = words().map(|(_, w)| w.value.as_str()).collect();
        for (_, word) in words() {
            let lower = word.value.to_lowercase();
            of_the_standard |= lower == INFORMATION_SCHEMA;
            if self.schemas.contains(&lower) || self.tables.contains_key(&lower) {
                for column in self.tables.get(&lower).into_iter().flatten() {
                    let place = spelled.entry(column.to_lowercase()).or_insert_with(|| column.clone());
                    if written.contains(column.as_str()) {
                        place.clone_from(column);
                    }
                }
                spelled.insert(lower.clone(), lower);
            }
        }
        // The others: as they are quoted somewhere, or else as they are first written.
        let is_name = |at: usize, word: &Word| {
            !(calls.contains(&at) && self.functions.contains(&word.value.to_lowercase()))
        };
        let (quoted, plain): (Vec<_>, Vec<_>) =
            words().filter(|(at, w)| is_name(*at, w)).partition(|(_, w)| w.quote_style.is_some());
        for (_, word) in quoted.into_iter().chain(plain) {
            let lower = word.value.to_lowercase();
            let spelling = if of_the_standard && word.quote_style.is_none() {
                lower.clone()
            } else {
                word.value.clone()
            };
            spelled.entry(lower).or_insert(spelling);
        }
        spelled
    }
}

/// The words that an opening bracket follows: functions, for the most part.
fn calls(tokens: &[Token]) -> HashSet<usize> {
    let mut word = None;
    let mut calls = HashSet::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Word(_) => word = Some(at),
            Token::Whitespace(_) => {}
            Token::LParen => calls.extend(word.take()),
            _ => word = None,
        }
    }
    calls
}

pub fn quoted(ident: &Ident) -> String {
    format!("\"{}\"", ident.value.replace('"', "\"\""))
}
