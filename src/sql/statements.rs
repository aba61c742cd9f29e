//! Splits typed text into statements, and suggests completions.

use std::ops::Range;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Expr, Ident, Select, SelectItem, SetExpr};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::dialect::MACROS;
use super::names::Vocabulary;

/// Words that begin or join a statement's clauses: offered, and after which a table stands.
const KEYWORDS: [&str; 34] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "JOIN",
    "LEFT JOIN",
    "ON",
    "USING",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS NULL",
    "IS NOT NULL",
    "BETWEEN",
    "LIKE",
    "ILIKE",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "DISTINCT",
    "UNION ALL",
    "WITH",
    "DESC",
    "INTERVAL",
    "EXPLAIN",
    "FILTER (WHERE",
];
const BEFORE_TABLES: [&str; 3] = ["from", "join", "\\d"];

/// The statements of a text, without their semicolons. Comments alone are none.
pub fn split(text: &str) -> Vec<String> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).with_unescape(false).tokenize() else {
        return vec![text.to_owned()];
    };
    let says_something = |part: &&[Token]| part.iter().any(|t| !matches!(t, Token::Whitespace(_)));
    let parts = tokens.split(|t| *t == Token::SemiColon).filter(says_something);
    parts.map(|part| part.iter().map(ToString::to_string).collect::<String>().trim().to_owned()).collect()
}

/// Whether the text ends where a statement ends: with a semicolon that is in no quotes and no comment.
pub fn is_complete(text: &str) -> bool {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().unwrap_or_default();
    tokens.iter().rfind(|t| !matches!(t, Token::Whitespace(_))).is_none_or(|t| *t == Token::SemiColon)
        && !tokens.is_empty()
}

/// Names the columns of the result that are expressions by what was written: `max(BotScore)`, and not by what
/// the planner makes of it. `original` is the statement before its macros were replaced.
pub fn label(statement: &mut Statement, mut original: Option<Statement>) {
    let written = original
        .as_mut()
        .and_then(first_select)
        .map(|select| select.projection.as_slice())
        .unwrap_or_default();
    let Some(select) = first_select(statement) else { return };
    if select.distinct.is_some() {
        // What it is sorted by has to be found among its columns, by the planner's names.
        return;
    }
    let same = written.len() == select.projection.len();
    for (n, item) in select.projection.iter_mut().enumerate() {
        if let SelectItem::UnnamedExpr(expr) = item
            && !matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
        {
            let name = if same { written[n].to_string() } else { expr.to_string() };
            *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', name) };
        }
    }
}

/// What names a query's columns: of several that are united, the first.
fn first_select(statement: &mut Statement) -> Option<&mut Select> {
    let Statement::Statement(statement) = statement else { return None };
    let ast::Statement::Query(query) = statement.as_mut() else { return None };
    let mut body = query.body.as_mut();
    while let SetExpr::SetOperation { left, .. } = body {
        body = left.as_mut();
    }
    if let SetExpr::Select(select) = body { Some(select) } else { None }
}

/// What may stand in place of the word that ends at `at`, and where that word is.
pub fn completions(vocabulary: &Vocabulary, text: &str, at: usize) -> (Range<usize>, Vec<String>) {
    let before = text.get(..at).unwrap_or(text);
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let start = before.trim_end_matches(is_part).len();
    let begun = before[start..].to_lowercase();
    let fits = |name: &str| name.to_lowercase().starts_with(&begun);
    let previous = before[..start].split_whitespace().next_back().unwrap_or_default().to_lowercase();
    let tables = vocabulary.tables();
    let mut found: Vec<String> = Vec::new();
    if BEFORE_TABLES.contains(&previous.as_str()) {
        found.extend(tables.keys().filter(|name| fits(name)).cloned());
    } else if !begun.is_empty() || before.ends_with('.') {
        let lower = text.to_lowercase();
        let mentioned: Vec<_> = tables.iter().filter(|(name, _)| lower.contains(name.as_str())).collect();
        let of = if mentioned.is_empty() { tables.iter().collect() } else { mentioned };
        found.extend(of.into_iter().flat_map(|(_, columns)| columns).filter(|name| fits(name)).cloned());
        if !before[..start].ends_with('.') {
            found.extend(tables.keys().filter(|name| fits(name)).cloned());
            let macros = MACROS.iter().map(|(name, _)| *name);
            let functions =
                vocabulary.functions().iter().map(String::as_str).chain(macros).filter(|name| fits(name));
            found.extend(functions.map(|name| format!("{name}(")));
            found.extend(KEYWORDS.iter().filter(|word| fits(word)).map(|word| (*word).to_owned()));
        }
    }
    found.sort_by_key(|name| name.to_lowercase());
    found.dedup();
    (start..at, found)
}
