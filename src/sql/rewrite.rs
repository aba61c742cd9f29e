//! Rewrites what DataFusion does not know of other engines' SQL, in the parsed statement: lists joined to
//! their own row (see `unfold`), `LIKE ANY`, and the columns `year`, `month`, `day` and `hour` by which
//! Panther's tables on Athena are partitioned.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArguments, Ident, ObjectName, OrderBy, Query, Select, SelectItem, SetExpr,
    Statement, TableFactor, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::limits::{MAX_TEXT, joined};
use super::names::quoted;
use super::unfold::{factors, list_factor, name_of, unfold};
use crate::schema::Standard;

/// The parts of a row's time that are columns in Panther's tables.
const PARTS: [&str; 4] = ["year", "month", "day", "hour"];
/// The day's column, which tells files apart.
const DAY_COLUMN: &str = "p_event_date";

type Tables = BTreeMap<String, Vec<String>>;

/// Rewrites a statement over `tables`. Else what to write instead.
pub fn rewrite(statement: &mut Statement, tables: &Tables) -> Result<(), String> {
    match statement.visit(&mut Rewriting { tables, withs: Vec::new() }) {
        ControlFlow::Break(why) => Err(why),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// An expression out of its text.
pub fn expression(text: &str) -> Result<Expr, String> {
    Parser::new(&GenericDialect {})
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_expr())
        .map_err(|e| e.to_string())
}

struct Rewriting<'a> {
    tables: &'a Tables,
    /// What each WITH around names, and which of the parts are columns of it.
    withs: Vec<HashMap<String, HashSet<&'static str>>>,
}

impl VisitorMut for Rewriting<'_> {
    type Break = String;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<String> {
        self.withs.push(HashMap::new());
        for table in query.with.iter().flat_map(|with| &with.cte_tables) {
            let names = &table.alias.columns;
            let is_named =
                |part: &&str| names.iter().any(|column| column.name.value.eq_ignore_ascii_case(part));
            let is_there = |part: &&&'static str| {
                if names.is_empty() { self.gives(&table.query, part) } else { is_named(part) }
            };
            let parts = PARTS.iter().filter(is_there).copied().collect();
            self.withs
                .last_mut()
                .expect("it was just pushed")
                .insert(table.alias.name.value.to_lowercase(), parts);
        }
        let mut order = query.order_by.as_mut();
        match self.body(&mut query.body, &mut order) {
            Ok(()) => ControlFlow::Continue(()),
            Err(why) => ControlFlow::Break(why),
        }
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<String> {
        self.withs.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<String> {
        match like_each(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(why) => ControlFlow::Break(why),
        }
    }
}

impl Rewriting<'_> {
    /// Every SELECT of a query's body. Only what is no union is sorted by what its tables hold.
    fn body(&self, body: &mut SetExpr, order: &mut Option<&mut OrderBy>) -> Result<(), String> {
        match body {
            SetExpr::Select(select) => {
                self.name_parts(select, order)?;
                let is_with = |name: &str| self.withs.iter().any(|names| names.contains_key(name));
                unfold(select, order, self.tables, &is_with)
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left, &mut None)?;
                self.body(right, &mut None)
            }
            _ => Ok(()),
        }
    }

    /// The columns of a table of the lake, if that is what it is.
    fn columns(&self, factor: &TableFactor) -> Option<&Vec<String>> {
        let TableFactor::Table { name, args: None, .. } = factor else { return None };
        let lower = last(name)?.value.to_lowercase();
        let is_with = name.0.len() == 1 && self.withs.iter().any(|names| names.contains_key(&lower));
        if is_with { None } else { self.tables.get(&lower) }
    }

    /// Whether one of these has a column of that name.
    fn is_column(&self, factor: &TableFactor, part: &str) -> bool {
        let is_part = |name: &str| name.eq_ignore_ascii_case(part);
        if let Some(columns) = self.columns(factor) {
            return columns.iter().any(|column| is_part(column));
        }
        if let Some(list) = list_factor(factor) {
            return list.names().iter().any(|name| is_part(&name.value));
        }
        match factor {
            TableFactor::Table { name, .. } => {
                let lower = last(name).map(|name| name.value.to_lowercase()).unwrap_or_default();
                self.withs
                    .iter()
                    .rev()
                    .find_map(|names| names.get(&lower))
                    .is_some_and(|parts| parts.iter().any(|p| is_part(p)))
            }
            TableFactor::Derived { subquery, .. } => self.gives(subquery, part),
            TableFactor::NestedJoin { table_with_joins, .. } => {
                let joined = table_with_joins.joins.iter().map(|join| &join.relation);
                std::iter::once(&table_with_joins.relation)
                    .chain(joined)
                    .any(|factor| self.is_column(factor, part))
            }
            _ => false,
        }
    }

    /// Whether a query's result has a column of that name.
    fn gives(&self, query: &Query, part: &str) -> bool {
        let mut body = query.body.as_ref();
        while let SetExpr::SetOperation { left, .. } = body {
            body = left;
        }
        match body {
            SetExpr::Select(select) => {
                let all = select
                    .projection
                    .iter()
                    .any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
                is_given(select, part) || all && factors(select).any(|factor| self.is_column(factor, part))
            }
            SetExpr::Query(query) => self.gives(query, part),
            _ => false,
        }
    }

    /// `year` and such, where no table has such a column, are parts of `p_event_time`.
    fn name_parts(&self, select: &mut Select, order: &mut Option<&mut OrderBy>) -> Result<(), String> {
        let of: Vec<&TableFactor> = factors(select).collect();
        let has_time = |factor: &&&TableFactor| {
            self.columns(factor).is_some_and(|c| c.iter().any(|c| c == Standard::EventTime.name()))
        };
        let timed: Vec<&TableFactor> = of.iter().filter(has_time).copied().collect();
        if timed.is_empty() {
            return Ok(());
        }
        let mut found = HashMap::new();
        for part in PARTS {
            let own: Vec<&&TableFactor> =
                timed.iter().filter(|factor| !self.is_column(factor, part)).collect();
            for factor in &own {
                let name = name_of(factor).ok_or("a table has no name")?;
                let columns = self.columns(factor).ok_or("a table has no columns")?;
                let column = if part != "hour" && columns.iter().any(|c| c == DAY_COLUMN) {
                    DAY_COLUMN
                } else {
                    Standard::EventTime.name()
                };
                let place =
                    if of.len() == 1 { column.to_owned() } else { format!("{}.{column}", quoted(&name)) };
                let expr = expression(&format!("date_part('{part}', {place})"))?;
                found.insert((Some(name.value.to_lowercase()), part), expr.clone());
                // Of several tables it could be any.
                if own.len() == 1 && !of.iter().any(|factor| self.is_column(factor, part)) {
                    found.insert((None, part), expr);
                }
            }
        }
        let mut parts = Parts { found, below: 0 };
        let given: HashSet<&str> = PARTS.into_iter().filter(|part| is_given(select, part)).collect();
        for item in &mut select.projection {
            parts.name(item);
        }
        let _ = select.projection.visit(&mut parts);
        let _ = select.selection.visit(&mut parts);
        for join in select.from.iter_mut().flat_map(|from| &mut from.joins) {
            let _ = join.join_operator.visit(&mut parts);
        }
        // What the result names so is meant there.
        parts.found.retain(|(table, part), _| table.is_some() || !given.contains(part));
        let _ = select.group_by.visit(&mut parts);
        let _ = select.having.visit(&mut parts);
        let _ = select.qualify.visit(&mut parts);
        let _ = select.named_window.visit(&mut parts);
        if let Some(order) = order {
            let _ = order.visit(&mut parts);
        }
        Ok(())
    }
}

/// Whether a result's column is named so by its own item.
fn is_given(select: &Select, part: &str) -> bool {
    select.projection.iter().any(|item| match item {
        SelectItem::ExprWithAlias { alias, .. } => alias.value.eq_ignore_ascii_case(part),
        SelectItem::UnnamedExpr(Expr::Identifier(name)) => name.value.eq_ignore_ascii_case(part),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(names)) => {
            names.last().is_some_and(|n| n.value.eq_ignore_ascii_case(part))
        }
        _ => false,
    })
}

fn last(name: &ObjectName) -> Option<&Ident> {
    name.0.last()?.as_ident()
}

/// Puts what stands for a part in its place; not in subqueries, which have tables of their own.
struct Parts {
    /// By the table that is named, if one is.
    found: HashMap<(Option<String>, &'static str), Expr>,
    below: usize,
}

impl Parts {
    fn stands_for(&self, expr: &Expr) -> Option<&Expr> {
        let (table, name) = match expr {
            Expr::Identifier(name) => (None, name),
            Expr::CompoundIdentifier(names) if names.len() == 2 => {
                (Some(names[0].value.to_lowercase()), &names[1])
            }
            _ => return None,
        };
        let part = PARTS.into_iter().find(|part| name.value.eq_ignore_ascii_case(part))?;
        self.found.get(&(table, part))
    }

    /// A result's column keeps the name that was asked for.
    fn name(&self, item: &mut SelectItem) {
        let SelectItem::UnnamedExpr(expr) = item else { return };
        let Some(own) = self.stands_for(expr) else { return };
        let name = match expr {
            Expr::Identifier(name) => name.clone(),
            Expr::CompoundIdentifier(names) => names[1].clone(),
            _ => return,
        };
        *item = SelectItem::ExprWithAlias { expr: own.clone(), alias: Ident::with_quote('"', name.value) };
    }
}

impl VisitorMut for Parts {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.below += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.below -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.below == 0
            && let Some(own) = self.stands_for(expr)
        {
            *expr = own.clone();
        }
        ControlFlow::Continue(())
    }
}

/// `x LIKE ANY ('a%', 'b%')` is `(x LIKE 'a%' OR x LIKE 'b%')`; `LIKE ALL` the same with AND.
fn like_each(expr: &mut Expr) -> Result<(), String> {
    let (Expr::Like { any, negated, expr: subject, pattern, .. }
    | Expr::ILike { any, negated, expr: subject, pattern, .. }) = expr
    else {
        return Ok(());
    };
    let (patterns, all) = match pattern.as_mut() {
        Expr::Tuple(patterns) if *any => (std::mem::take(patterns), false),
        Expr::Nested(one) if *any && !matches!(one.as_ref(), Expr::Subquery(_)) => {
            (vec![one.as_ref().clone()], false)
        }
        Expr::Function(function) if !*any && function.name.to_string().eq_ignore_ascii_case("all") => {
            let FunctionArguments::List(list) = &function.args else { return Ok(()) };
            (
                list.args.iter().map(|pattern| expression(&pattern.to_string())).collect::<Result<_, _>>()?,
                true,
            )
        }
        _ if *any => return Err("LIKE ANY takes a list of patterns: x LIKE ANY ('a%', 'b%')".to_owned()),
        _ => return Ok(()),
    };
    if *negated && !all {
        return Err(
            "NOT LIKE ANY means different things to different engines: write NOT (x LIKE ANY (…)), or x NOT LIKE ALL (…)".to_owned()
        );
    }
    if subject.to_string().len().saturating_mul(patterns.len()) > MAX_TEXT {
        return Err(
            "what is compared by LIKE ANY is too long for so many patterns: compute it in a subquery"
                .to_owned(),
        );
    }
    *any = false;
    **pattern = Expr::Tuple(Vec::new());
    let terms = patterns.into_iter().map(|own| {
        let mut term = expr.clone();
        if let Expr::Like { pattern, .. } | Expr::ILike { pattern, .. } = &mut term {
            **pattern = own;
        }
        term
    });
    let terms = joined(terms.collect(), if all { &BinaryOperator::And } else { &BinaryOperator::Or });
    *expr = Expr::Nested(Box::new(terms));
    Ok(())
}
