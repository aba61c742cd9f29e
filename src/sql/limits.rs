//! Limits on a statement's size. Planners are recursive, and visit every part many times: a statement from a
//! program or a stranger must be answered or refused, and never crash the process or block it for minutes.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    Ident, ObjectName, Query, SetExpr, Statement, TableFactor, Value, ValueWithSpan, VisitMut as _,
    VisitorMut,
};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, Tokenizer};

/// Bytes of a statement's text.
pub const MAX_TEXT: usize = 4 << 20;
/// Bytes by which macros may make it longer: those that write an argument twice double it at each level.
pub const MAX_GROWTH: usize = 1 << 20;
/// Levels: of what is joined by operators one after the other, and of UNIONs.
pub const MAX_LEVELS: usize = 1_600;
/// Tables and subqueries.
pub const MAX_RELATIONS: usize = 256;
/// The same, with what a WITH names counted wherever it is named: where each names the one before twice, that
/// doubles each time.
pub const MAX_READ: usize = 1_000;
/// CASE, CAST and such, one in the other: where an error is in the innermost, the parser tries each of them
/// twice.
pub const MAX_NESTED: usize = 20;

/// Chains longer than this are planned as balanced trees. Shorter ones stay as they are written.
const LONG: usize = 64;
/// Conditions joined by AND that the planner may look at one by one. It moves each of them about, and joins
/// them again into a tree as deep as they are many: of more it sees but one.
const MAX_CONDITIONS: usize = 512;

/// What is too much of a statement. Each says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    #[error("the statement is longer than {} MiB: split it into several", MAX_TEXT >> 20)]
    Text,
    /// What its macros make of it.
    #[error(
        "the statement is too long once its functions are expanded: those of Snowflake, Athena and Panther (datediff, any_value, p_occurs_around, …) repeat their arguments; compute the arguments in a subquery"
    )]
    Macros,
    /// Terms, one in the other.
    #[error(
        "the statement has more than {MAX_LEVELS} operators or UNIONs in a row: write fewer, put parentheses around groups of them, or compare with a list (IN (…), LIKE ANY (…)); chains of AND, OR, + and * may be longer"
    )]
    Levels,
    #[error("the statement names more than {MAX_RELATIONS} tables and subqueries: split it into several")]
    Relations,
    /// Tables, by way of WITH.
    #[error(
        "the statement reads more than {MAX_READ} tables and subqueries, counting those in a WITH at each reference: refer to it less often, or split the statement"
    )]
    Read,
    /// Words with an end of their own.
    #[error(
        "the statement nests CASE, CAST, iff and the like more than {MAX_NESTED} deep: compute the inner ones in a subquery"
    )]
    Nested,
}

/// Words that the parser takes for the beginning of an expression first, and for names if that does not work
/// out.
const NESTING: [&str; 17] = [
    "array",
    "cast",
    "ceil",
    "convert",
    "exists",
    "extract",
    "floor",
    "map",
    "match",
    "overlay",
    "position",
    "safe_cast",
    "struct",
    "substr",
    "substring",
    "trim",
    "try_cast",
];

/// Refuses what takes the parser long, before it sees it.
pub fn check_nesting(sql: &str, dialect: &dyn Dialect) -> Result<(), TooLarge> {
    // What can't be cut into words, it refuses at once.
    let Ok(tokens) = Tokenizer::new(dialect, sql).with_unescape(false).tokenize() else { return Ok(()) };
    let (mut cases, mut nested, mut brackets) = (0_usize, 0, Vec::new());
    let mut begins = false;
    for token in &tokens {
        match token {
            Token::Whitespace(_) => continue,
            Token::Word(word) if word.quote_style.is_none() => {
                let lower = word.value.to_lowercase();
                match lower.as_str() {
                    "case" => cases += 1,
                    "end" => cases = cases.saturating_sub(1),
                    _ => {}
                }
                begins = NESTING.contains(&lower.as_str());
            }
            Token::LParen => {
                brackets.push(begins);
                nested += usize::from(begins);
                begins = false;
            }
            Token::RParen => {
                nested -= usize::from(brackets.pop().unwrap_or_default());
                begins = false;
            }
            _ => begins = false,
        }
        if cases + nested > MAX_NESTED {
            return Err(TooLarge::Nested);
        }
    }
    Ok(())
}

/// Makes long chains flat, and refuses what is too deep or names too much.
pub fn settle(statement: &mut Statement) -> Result<(), TooLarge> {
    let mut settling = Settling::default();
    match statement.visit(&mut settling) {
        ControlFlow::Break(too_large) => Err(too_large),
        ControlFlow::Continue(()) => Ok(()),
    }
}

#[derive(Default)]
struct Settling {
    levels: usize,
    relations: usize,
    /// The queries around.
    around: Vec<Around>,
    /// How many tables what a WITH names reads.
    withs: HashMap<String, usize>,
}

/// A query that is being looked at.
#[derive(Default)]
struct Around {
    reads: usize,
    /// The names of its WITH whose queries come next.
    names: VecDeque<String>,
    /// Its own name in a WITH.
    own: Option<String>,
}

impl VisitorMut for Settling {
    type Break = TooLarge;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<TooLarge> {
        let (mut body, mut unions) = (query.body.as_ref(), 0);
        while let SetExpr::SetOperation { left, .. } = body {
            (body, unions) = (left.as_ref(), unions + 1);
            if unions > MAX_RELATIONS {
                return ControlFlow::Break(TooLarge::Relations);
            }
        }
        let own = self.around.last_mut().and_then(|around| around.names.pop_front());
        let names = query
            .with
            .iter()
            .flat_map(|with| &with.cte_tables)
            .map(|table| table.alias.name.value.to_lowercase());
        self.around.push(Around { reads: 1, names: names.collect(), own });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<TooLarge> {
        let Some(Around { reads, own, .. }) = self.around.pop() else { return ControlFlow::Continue(()) };
        match (own, self.around.last_mut()) {
            (Some(name), _) => _ = self.withs.insert(name, reads),
            (None, Some(around)) => around.reads += reads,
            (None, None) => {}
        }
        if reads > MAX_READ { ControlFlow::Break(TooLarge::Read) } else { ControlFlow::Continue(()) }
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<TooLarge> {
        self.relations += 1;
        if let (TableFactor::Table { name, .. }, Some(around)) = (factor, self.around.last_mut()) {
            let name = name.0.last().and_then(|name| name.as_ident()).map(|name| name.value.to_lowercase());
            around.reads += name.and_then(|name| self.withs.get(&name)).copied().unwrap_or(1);
        }
        if self.relations > MAX_RELATIONS {
            ControlFlow::Break(TooLarge::Relations)
        } else {
            ControlFlow::Continue(())
        }
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<TooLarge> {
        balance(expr);
        self.levels += 1;
        if self.levels > MAX_LEVELS {
            ControlFlow::Break(TooLarge::Levels)
        } else {
            ControlFlow::Continue(())
        }
    }

    fn post_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<TooLarge> {
        self.levels -= 1;
        ControlFlow::Continue(())
    }
}

/// Whether `(a op b) op c` is `a op (b op c)`. Sums and products of floats may differ in their last digit, as
/// they do by the order of rows.
fn is_associative(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::And | BinaryOperator::Or | BinaryOperator::Plus | BinaryOperator::Multiply)
}

/// `a OR b OR c OR …` is parsed as a tree that is as deep as it is long: a list of a thousand patterns is a
/// thousand levels. Balanced it has ten, and says the same.
fn balance(expr: &mut Expr) {
    let Expr::BinaryOp { op, .. } = expr else { return };
    if !is_associative(op) {
        return;
    }
    let op = op.clone();
    if chain_length(expr, &op) <= LONG {
        return;
    }
    let mut terms = Vec::new();
    let mut rest = std::mem::replace(expr, nothing());
    loop {
        match rest {
            Expr::BinaryOp { left, op: own, right } if own == op => {
                terms.push(*right);
                rest = *left;
            }
            first => {
                terms.push(first);
                break;
            }
        }
    }
    terms.reverse();
    if op == BinaryOperator::And && terms.len() > MAX_CONDITIONS {
        let (apart, rest): (Vec<Expr>, Vec<Expr>) = terms.into_iter().partition(tells_much);
        terms = apart;
        terms.push(as_one(joined(rest, &op)));
    }
    *expr = joined(terms, &op);
}

/// What spares most work: conditions on time, by which files are left out, and what tables are joined by.
fn tells_much(condition: &Expr) -> bool {
    let is_column = |side: &Expr| matches!(side, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
    match condition {
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if is_column(left) && is_column(right) => true,
        _ => condition.to_string().contains("p_event_"),
    }
}

/// The same truth, `nullif(conditions, NULL)`: which the planner does not take apart.
fn as_one(conditions: Expr) -> Expr {
    let argument = |expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    let args = vec![argument(conditions), argument(nothing())];
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new("nullif")]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn chain_length(mut expr: &Expr, op: &BinaryOperator) -> usize {
    let mut length = 1;
    while let Expr::BinaryOp { left, op: own, .. } = expr
        && own == op
    {
        (expr, length) = (left, length + 1);
    }
    length
}

/// The terms with the operator between them, as a balanced tree.
pub fn joined(mut terms: Vec<Expr>, op: &BinaryOperator) -> Expr {
    while terms.len() > 1 {
        let mut pairs = Vec::with_capacity(terms.len().div_ceil(2));
        let mut rest = terms.into_iter();
        while let Some(left) = rest.next() {
            pairs.push(match rest.next() {
                Some(right) => {
                    Expr::BinaryOp { left: Box::new(left), op: op.clone(), right: Box::new(right) }
                }
                None => left,
            });
        }
        terms = pairs;
    }
    terms.pop().unwrap_or_else(nothing)
}

fn nothing() -> Expr {
    Expr::Value(ValueWithSpan { value: Value::Null, span: Span::empty() })
}
