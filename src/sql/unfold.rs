//! Joins of a list to its own row, one row per value: `CROSS JOIN UNNEST(list) AS t(value)` in Athena,
//! `, LATERAL FLATTEN(input => list) t` in Snowflake. DataFusion unnests a list in a SELECT, so the table
//! that has the list becomes a subquery that does so, under the table's own name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Join, JoinConstraint, JoinOperator,
    OrderBy, Select, SelectItem, TableAlias, TableFactor, TableWithJoins, Value, Visit, VisitMut, Visitor,
    VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::names::quoted;
use crate::schema::RESCUED_DATA;

/// Columns of Snowflake's FLATTEN that have an equal here.
const FLATTENED: [&str; 3] = ["value", "index", "key"];

/// A list that is joined.
#[derive(Debug, Clone)]
pub struct List {
    /// What is unfolded, side by side.
    exprs: Vec<Expr>,
    alias: Option<TableAlias>,
    is_flatten: bool,
    /// A row without values stays.
    outer: bool,
    /// The column that counts, and from where on.
    counter: Option<(Option<Ident>, u8)>,
    /// What nobody can do here.
    wrong: Option<&'static str>,
}

impl List {
    /// Its columns, as far as they have names.
    pub fn names(&self) -> Vec<Ident> {
        let Some(alias) = &self.alias else { return Vec::new() };
        match alias.columns.as_slice() {
            // `UNNEST(list) AS value`.
            [] if !self.is_flatten => vec![alias.name.clone()],
            columns => columns.iter().map(|column| column.name.clone()).collect(),
        }
    }
}

/// The tables of a FROM, in order.
pub fn factors(select: &Select) -> impl Iterator<Item = &TableFactor> {
    select
        .from
        .iter()
        .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)))
}

/// The name by which a table's columns may be called.
pub fn name_of(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Some(alias.name.clone())
        }
        TableFactor::Table { name, .. } => name.0.last()?.as_ident().cloned(),
        _ => None,
    }
}

/// What a table of a FROM is, if it is a list.
pub fn list_factor(factor: &TableFactor) -> Option<List> {
    match factor {
        TableFactor::UNNEST { alias, array_exprs, with_offset, with_offset_alias, with_ordinality } => {
            let counter = if *with_ordinality {
                Some((None, 1))
            } else {
                with_offset.then(|| (with_offset_alias.clone(), 0))
            };
            let (exprs, alias) = (array_exprs.clone(), alias.clone());
            Some(List { exprs, alias, is_flatten: false, outer: false, counter, wrong: None })
        }
        TableFactor::Function { name, args, alias, .. }
            if name.to_string().eq_ignore_ascii_case("flatten") =>
        {
            Some(flatten(args, alias))
        }
        TableFactor::Table { name, args: Some(args), alias, .. }
            if name.to_string().eq_ignore_ascii_case("flatten") =>
        {
            Some(flatten(&args.args, alias))
        }
        TableFactor::TableFunction { expr: Expr::Function(function), alias }
            if function.name.to_string().eq_ignore_ascii_case("flatten") =>
        {
            let FunctionArguments::List(list) = &function.args else { return None };
            Some(flatten(&list.args, alias))
        }
        _ => None,
    }
}

fn flatten(arguments: &[FunctionArg], alias: &Option<TableAlias>) -> List {
    let mut list = List {
        exprs: Vec::new(),
        alias: alias.clone(),
        is_flatten: true,
        outer: false,
        counter: None,
        wrong: None,
    };
    for argument in arguments {
        let (name, expr) = match argument {
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                (name.value.to_lowercase(), expr)
            }
            FunctionArg::ExprNamed { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                (name.to_string().to_lowercase(), expr)
            }
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => ("input".to_owned(), expr),
            _ => continue,
        };
        let is_true = matches!(expr, Expr::Value(value) if value.value == Value::Boolean(true));
        match name.as_str() {
            "input" => list.exprs = vec![expr.clone()],
            "outer" => list.outer = is_true,
            "mode" => {}
            _ if matches!(expr, Expr::Value(value) if value.value == Value::Boolean(false)) => {}
            _ => {
                list.wrong = Some(
                    "FLATTEN takes input and outer here: give it the list itself as input, without path and recursive",
                )
            }
        }
    }
    if list.exprs.is_empty() {
        list.wrong = Some("write FLATTEN(input => list)");
    }
    list
}

/// Unfolds the lists of a SELECT into the tables that they are columns of.
pub fn unfold(
    select: &mut Select,
    order: &mut Option<&mut OrderBy>,
    tables: &BTreeMap<String, Vec<String>>,
    is_with: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    let lists = taken(select)?;
    if lists.is_empty() {
        return Ok(());
    }
    let mut renamed: HashMap<(String, String), [Ident; 2]> = HashMap::new();
    let single = lists.iter().filter(|list| list.is_flatten).count() == 1;
    for list in lists {
        if let Some(wrong) = list.wrong {
            return Err(wrong.to_owned());
        }
        let mut exprs = list.exprs.clone();
        // One list may stand in another one's value.
        let _ = VisitMut::visit(&mut exprs, &mut Renaming { renamed: &renamed });
        let at = owner(select, &exprs, tables, is_with)?;
        let columns = columns(&list, &exprs, &called(select, order, &list), single)?;
        let factor = factor_at(select, at).ok_or("there is no such table")?;
        let table =
            name_of(factor).ok_or("give the subquery a name, whose list is unfolded: (SELECT …) AS t")?;
        if let Some(alias) = &list.alias {
            for (called, column, _) in &columns {
                renamed.insert(
                    (alias.name.value.to_lowercase(), called.to_lowercase()),
                    [table.clone(), column.clone()],
                );
            }
        }
        let items: Vec<String> =
            columns.iter().map(|(_, column, expr)| format!("unnest({expr}) AS {}", quoted(column))).collect();
        let text = format!("SELECT *, {} FROM {factor}", items.join(", "));
        let parsed =
            Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query());
        let subquery = parsed.map_err(|e| e.to_string())?;
        let alias = TableAlias { explicit: true, name: table, columns: Vec::new(), at: None };
        *factor = TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None };
    }
    for item in &mut select.projection {
        named(item, &renamed);
    }
    let mut renaming = Renaming { renamed: &renamed };
    let _ = VisitMut::visit(select, &mut renaming);
    if let Some(order) = order {
        let _ = VisitMut::visit(*order, &mut renaming);
    }
    Ok(())
}

/// Takes the lists that are joined to a table out of a FROM. Those that name no column stand alone:
/// DataFusion knows these.
fn taken(select: &mut Select) -> Result<Vec<List>, String> {
    let is_joined = |list: &List| list.is_flatten || !idents(&list.exprs).is_empty();
    let mut lists = Vec::new();
    let mut from: Vec<TableWithJoins> = Vec::new();
    for mut table in std::mem::take(&mut select.from) {
        let mut joins = Vec::new();
        for join in std::mem::take(&mut table.joins) {
            match list_factor(&join.relation).filter(is_joined) {
                Some(list) => lists.push(joined_list(list, &join)?),
                None => joins.push(join),
            }
        }
        match (list_factor(&table.relation).filter(is_joined), from.last_mut()) {
            (Some(list), Some(before)) => {
                lists.push(list);
                before.joins.extend(joins);
            }
            _ => from.push(TableWithJoins { relation: table.relation, joins }),
        }
    }
    select.from = from;
    // What a list is unfolded in is the first of them, or one that only inner joins are beside.
    let keeps_first = |join: &Join| {
        use JoinOperator::{CrossJoin, Inner, Join, Left, LeftOuter};
        matches!(join.join_operator, Join(_) | Inner(_) | CrossJoin(_) | Left(_) | LeftOuter(_))
    };
    if !lists.is_empty() && !select.from.iter().flat_map(|from| &from.joins).all(keeps_first) {
        return Err(
            "a list can't be unfolded beside a RIGHT, FULL, SEMI or ANTI join: join in a subquery, or unnest(list) in a subquery's SELECT"
                .to_owned(),
        );
    }
    Ok(lists)
}

fn joined_list(mut list: List, join: &Join) -> Result<List, String> {
    let is_true = |constraint: &JoinConstraint| match constraint {
        JoinConstraint::None => true,
        JoinConstraint::On(Expr::Value(value)) => value.value == Value::Boolean(true),
        _ => false,
    };
    use JoinOperator::{CrossJoin, Inner, Join, Left, LeftOuter};
    match &join.join_operator {
        CrossJoin(on) | Inner(on) | Join(on) if is_true(on) => {}
        Left(on) | LeftOuter(on) if is_true(on) => list.outer = true,
        _ => return Err("a list is joined by CROSS JOIN, or LEFT JOIN … ON TRUE: what it is compared with belongs into WHERE".to_owned()),
    }
    Ok(list)
}

/// The columns that are mentioned.
fn idents(exprs: &[Expr]) -> Vec<Vec<Ident>> {
    struct Idents(Vec<Vec<Ident>>);
    impl Visitor for Idents {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Identifier(name) => self.0.push(vec![name.clone()]),
                Expr::CompoundIdentifier(names) => self.0.push(names.clone()),
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut found = Idents(Vec::new());
    let _ = Visit::visit(&exprs.to_vec(), &mut found);
    found.0
}

/// A table's place in the FROM: which of it, and which of its joins.
type At = (usize, Option<usize>);

fn factor_at(select: &mut Select, (from, join): At) -> Option<&mut TableFactor> {
    let from = select.from.get_mut(from)?;
    match join {
        None => Some(&mut from.relation),
        Some(join) => from.joins.get_mut(join).map(|join| &mut join.relation),
    }
}

/// The table that has the list.
fn owner(
    select: &Select,
    exprs: &[Expr],
    tables: &BTreeMap<String, Vec<String>>,
    is_with: &dyn Fn(&str) -> bool,
) -> Result<At, String> {
    let mut all: Vec<(At, &TableFactor)> = Vec::new();
    for (n, from) in select.from.iter().enumerate() {
        all.push(((n, None), &from.relation));
        all.extend(from.joins.iter().enumerate().map(|(m, join)| ((n, Some(m)), &join.relation)));
    }
    let is_called = |factor: &TableFactor, name: &Ident| {
        name_of(factor).is_some_and(|own| own.value.eq_ignore_ascii_case(&name.value))
    };
    let has = |factor: &TableFactor, column: &Ident| {
        let TableFactor::Table { name, .. } = factor else { return false };
        let Some(name) = name.0.last().and_then(|name| name.as_ident()).map(|name| name.value.to_lowercase())
        else {
            return false;
        };
        !is_with(&name)
            && tables
                .get(&name)
                .is_some_and(|columns| columns.iter().any(|own| own.eq_ignore_ascii_case(&column.value)))
    };
    let mut found: Option<At> = None;
    for names in idents(exprs) {
        let at = match names.as_slice() {
            [column] if all.len() > 1 => {
                let mut having = all.iter().filter(|(_, factor)| has(factor, column));
                let first = having.next();
                first
                    .filter(|_| having.next().is_none())
                    .ok_or_else(|| format!("write whose column `{column}` is: table.{column}"))?
                    .0
            }
            [_] => all.first().ok_or("a list needs the table that it is a column of, before it")?.0,
            [table, ..] => {
                let found = all.iter().find(|(_, factor)| is_called(factor, table));
                found
                    .ok_or_else(|| format!("there is no table `{table}` before the list that is unfolded"))?
                    .0
            }
            [] => continue,
        };
        if found.is_some_and(|before| before != at) {
            return Err(
                "a list that is unfolded is a column of one table: compute it in a subquery".to_owned()
            );
        }
        found = Some(at);
    }
    let at = found
        .or(all.first().map(|(at, _)| *at))
        .ok_or("a list needs the table that it is a column of, before it")?;
    let is_first = at == (0, None);
    let joins = select.from.iter().flat_map(|from| &from.joins);
    let mut outer =
        joins.filter(|join| matches!(join.join_operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_)));
    if !is_first && outer.next().is_some() {
        return Err(
            "a list of a table that is joined by LEFT JOIN can't be unfolded beside it: unnest(list) in a subquery's SELECT".to_owned()
        );
    }
    Ok(at)
}

/// Which of a list's columns are called by its name.
fn called(select: &Select, order: &Option<&mut OrderBy>, list: &List) -> HashSet<String> {
    struct Called<'a>(&'a str, HashSet<String>);
    impl Visitor for Called<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(names) = expr
                && names[0].value.eq_ignore_ascii_case(self.0)
                && let Some(column) = names.get(1)
            {
                self.1.insert(column.value.to_lowercase());
            }
            ControlFlow::Continue(())
        }
    }
    let Some(alias) = &list.alias else { return HashSet::new() };
    let mut found = Called(&alias.name.value, HashSet::new());
    let _ = Visit::visit(select, &mut found);
    if let Some(order) = order {
        let _ = Visit::visit(&**order, &mut found);
    }
    found.1
}

/// What a list becomes: the name that its column is called by, the column, and what it is unnested from.
fn columns(
    list: &List,
    exprs: &[Expr],
    called: &HashSet<String>,
    single: bool,
) -> Result<Vec<(String, Ident, String)>, String> {
    let kept = |text: String| match list.outer {
        true => format!("CASE WHEN cardinality({text}) > 0 THEN {text} ELSE make_array(NULL) END"),
        false => text,
    };
    let counted = |from: u8| format!("range({from}, CAST(cardinality({}) AS BIGINT) + {from})", exprs[0]);
    if list.is_flatten {
        let is_map = called.contains("key") || exprs[0].to_string().trim_matches('"').ends_with(RESCUED_DATA);
        if let Some(other) = called.iter().find(|name| !FLATTENED.contains(&name.as_str())) {
            return Err(format!("FLATTEN has {} here, and no {other}", FLATTENED.join(", ")));
        }
        let own = |name: &str| {
            let alias = list
                .alias
                .as_ref()
                .filter(|_| !single)
                .map(|alias| format!("{}_", alias.name.value))
                .unwrap_or_default();
            (name.to_owned(), Ident::new(format!("{alias}{name}")))
        };
        let with = |name: &str, text: String| {
            let (called, column) = own(name);
            (called, column, kept(text))
        };
        let value = if is_map { format!("map_values({})", exprs[0]) } else { exprs[0].to_string() };
        let mut columns = vec![with("value", value)];
        if called.contains("key") {
            columns.push(with("key", format!("map_keys({})", exprs[0])));
        }
        if called.contains("index") {
            columns.push(with("index", counted(0)));
        }
        return Ok(columns);
    }
    let mut texts: Vec<String> = exprs.iter().map(ToString::to_string).collect();
    let mut names = list.names();
    match &list.counter {
        Some((Some(name), from)) => {
            texts.push(counted(*from));
            names.push(name.clone());
        }
        Some((None, from)) => texts.push(counted(*from)),
        None => {}
    }
    if let ([map], 2) = (texts.as_slice(), names.len()) {
        // A map's keys and values.
        texts = vec![format!("map_keys({map})"), format!("map_values({map})")];
    }
    if names.len() != texts.len() {
        return Err("name each column that UNNEST makes: UNNEST(list) AS t(value)".to_owned());
    }
    Ok(names.into_iter().zip(texts).map(|(name, text)| (name.value.clone(), name, kept(text))).collect())
}

/// Calls a list's columns by their new table.
struct Renaming<'a> {
    renamed: &'a HashMap<(String, String), [Ident; 2]>,
}

impl Renaming<'_> {
    fn of(&self, expr: &Expr) -> Option<&[Ident; 2]> {
        let Expr::CompoundIdentifier(names) = expr else { return None };
        let [table, column] = names.as_slice() else { return None };
        self.renamed.get(&(table.value.to_lowercase(), column.value.to_lowercase()))
    }
}

impl VisitorMut for Renaming<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Some(names) = self.of(expr) {
            *expr = Expr::CompoundIdentifier(names.to_vec());
        }
        ControlFlow::Continue(())
    }
}

/// A result's column keeps the name that was asked for.
fn named(item: &mut SelectItem, renamed: &HashMap<(String, String), [Ident; 2]>) {
    let SelectItem::UnnamedExpr(expr) = item else { return };
    let renaming = Renaming { renamed };
    let Some([_, column]) = renaming.of(expr) else { return };
    let Expr::CompoundIdentifier(names) = expr else { return };
    if names[1].value != column.value {
        let alias = Ident::with_quote('"', names[1].value.clone());
        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
    }
}
