//! Translates functions of the engines that Panther's queries are written for (Snowflake, Athena), and
//! Panther's own time macros, to DataFusion's, by replacing text before the statement is parsed.

use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Whitespace, Word};

use super::limits::{MAX_GROWTH, MAX_TEXT, TooLarge};

/// Macros in macros, at most.
const MAX_DEPTH: usize = 32;

/// What a call becomes, by its arguments; none if it is none of this macro's.
type Macro = fn(&[String]) -> Option<String>;

/// Every macro, by its name in lower case, with what stands for it: README's table.
pub const MACROS: [(&str, Macro); 33] = [
    ("p_occurs_since", |a| {
        Some(format!("({} >= now() - INTERVAL {})", time_column(a.get(1), a.get(2)), offset(a.first()?)))
    }),
    ("p_occurs_between", |a| {
        let column = time_column(a.get(2), a.get(3));
        Some(format!("({column} BETWEEN {} AND {})", moment(a.first()?), moment(a.get(1)?)))
    }),
    ("p_occurs_around", |a| {
        let (at, by, column) = (moment(a.first()?), offset(a.get(1)?), time_column(a.get(2), a.get(3)));
        Some(format!("({column} BETWEEN {at} - INTERVAL {by} AND {at} + INTERVAL {by})"))
    }),
    ("p_occurs_after", |a| Some(format!("({} >= {})", time_column(a.get(1), a.get(2)), moment(a.first()?)))),
    ("p_occurs_before", |a| Some(format!("({} < {})", time_column(a.get(1), a.get(2)), moment(a.first()?)))),
    ("iff", |a| three(a, |condition, yes, no| format!("CASE WHEN {condition} THEN {yes} ELSE {no} END"))),
    ("count_if", |a| one(a, |condition| format!("count(*) FILTER (WHERE {condition})"))),
    ("date", |a| one(a, |time| format!("CAST({} AS DATE)", moment(time)))),
    ("date_trunc", |a| bare_part("date_trunc", a)),
    ("date_part", |a| bare_part("date_part", a)),
    ("dateadd", date_add),
    ("date_add", date_add),
    ("timestampadd", date_add),
    ("datediff", |a| date_diff(a, true)),
    ("timestampdiff", |a| date_diff(a, true)),
    ("date_diff", |a| date_diff(a, false)),
    ("array_contains", |a| {
        // Snowflake names the value first, DataFusion the array.
        let [value, array] = a else { return None };
        value.starts_with('\'').then(|| format!("array_has({array}, {value})"))
    }),
    ("contains", |a| {
        // Athena's, for arrays; DataFusion's own is for text.
        let [array, value] = a else { return None };
        is_list(array).then(|| format!("array_has({array}, {value})"))
    }),
    ("element_at", |a| {
        let [array, at] = a else { return None };
        at.bytes().all(|b| b.is_ascii_digit()).then(|| format!("array_element({array}, {at})"))
    }),
    ("max_by", |a| {
        let [value, by] = a else { return None };
        Some(format!("first_value({value} ORDER BY {by} DESC NULLS LAST)"))
    }),
    ("min_by", |a| {
        let [value, by] = a else { return None };
        Some(format!("first_value({value} ORDER BY {by} NULLS LAST)"))
    }),
    ("listagg", |a| {
        let [value, between] = a else { return one(a, |value| format!("string_agg({value}, '')")) };
        Some(format!("string_agg({value}, {between})"))
    }),
    ("array_size", |a| one(a, |array| format!("cardinality({array})"))),
    ("any_value", |a| one(a, |value| format!("first_value({value}) FILTER (WHERE {value} IS NOT NULL)"))),
    ("arbitrary", |a| one(a, |value| format!("first_value({value}) FILTER (WHERE {value} IS NOT NULL)"))),
    ("approx_count_distinct", |a| one(a, |value| format!("approx_distinct({value})"))),
    ("from_iso8601_timestamp", |a| one(a, |text| format!("to_timestamp({text})"))),
    ("to_timestamp_ntz", |a| one(a, |text| format!("to_timestamp({text})"))),
    ("regexp_extract", |a| {
        // The whole match is group 0.
        let (text, pattern, group) = match a {
            [text, pattern] => (text, pattern, 1),
            [text, pattern, group] => (text, pattern, group.parse::<u32>().ok()? + 1),
            _ => return None,
        };
        Some(format!("(regexp_match({text}, '(' || {pattern} || ')'))[{group}]"))
    }),
    ("zeroifnull", |a| one(a, |value| format!("coalesce({value}, 0)"))),
    ("sysdate", |a| a.is_empty().then(|| "now()".to_owned())),
    ("getdate", |a| a.is_empty().then(|| "now()".to_owned())),
    ("current_timestamp", |a| a.is_empty().then(|| "now()".to_owned())),
];

fn one(arguments: &[String], told: impl Fn(&str) -> String) -> Option<String> {
    let [only] = arguments else { return None };
    Some(told(only))
}

fn three(arguments: &[String], told: impl Fn(&str, &str, &str) -> String) -> Option<String> {
    let [a, b, c] = arguments else { return None };
    Some(told(a, b, c))
}

/// Snowflake's parts of a time need no quotes.
fn bare_part(function: &str, arguments: &[String]) -> Option<String> {
    let [unit, time] = arguments else { return None };
    let unit = part(unit).filter(|_| !unit.starts_with('\''))?;
    Some(format!("{function}('{unit}', {})", moment(time)))
}

/// `p_event_time`, of a table's alias if there is one, or another column.
fn time_column(alias: Option<&String>, column: Option<&String>) -> String {
    let column = column.map_or("p_event_time", |c| c.trim_matches('\''));
    match alias.map(|a| a.trim_matches('\'')).filter(|a| !a.is_empty()) {
        Some(alias) => format!("{alias}.{column}"),
        None => column.to_owned(),
    }
}

/// `'1 day'`, also from `'1d'` and such; seconds where there is no unit.
fn offset(text: &str) -> String {
    let inner = text.trim_matches('\'').trim();
    let digits = inner.len() - inner.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = inner.split_at(digits);
    let unit = match unit.trim() {
        "" | "s" => "seconds",
        "m" => "minutes",
        "h" => "hours",
        "d" => "days",
        "w" => "weeks",
        other => other,
    };
    format!("'{number} {unit}'")
}

/// A time as it is, or a text that is one.
fn moment(text: &str) -> String {
    if text.starts_with('\'') { format!("CAST({text} AS TIMESTAMP WITH TIME ZONE)") } else { text.to_owned() }
}

/// Whether it is one of the lists of indicators, maybe with its table's alias.
fn is_list(text: &str) -> bool {
    let name = text.rsplit('.').next().unwrap_or(text).trim_matches('"').to_lowercase();
    name.starts_with("p_any_") && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `day`, `'day'` and `DAYS` are `day`.
fn part(text: &str) -> Option<String> {
    let part = text.trim_matches('\'').to_lowercase();
    let part = part.strip_suffix('s').unwrap_or(&part);
    ["microsecond", "millisecond", "second", "minute", "hour", "day", "week", "month", "quarter", "year"]
        .contains(&part)
        .then(|| part.to_owned())
}

fn date_add(arguments: &[String]) -> Option<String> {
    let [unit, number, time] = arguments else { return None };
    let (unit, mut time) = (part(unit)?, moment(time));
    // `- 5` is minus five, too.
    let number =
        number.strip_prefix('-').map_or_else(|| number.clone(), |digits| format!("-{}", digits.trim_start()));
    if ["microsecond", "millisecond", "second", "minute", "hour"].contains(&unit.as_str()) {
        // A date has no hours.
        time = format!("CAST({time} AS TIMESTAMP WITH TIME ZONE)");
    }
    let (times, unit) = if unit == "quarter" { (3, "month") } else { (1, unit.as_str()) };
    let (sign, digits) = number.strip_prefix('-').map_or(('+', number.as_str()), |digits| ('-', digits));
    Some(match digits.parse::<u64>() {
        Ok(digits) => format!("({time} {sign} INTERVAL '{} {unit}')", digits.checked_mul(times)?),
        // A number that is computed: an interval has to be read from text.
        Err(_) => format!("({time} + CAST(CAST(({number}) * {times} AS VARCHAR) || ' {unit}' AS INTERVAL))"),
    })
}

/// How much time lies between two times: for Snowflake the boundaries of a unit that are passed, for Athena
/// whole units.
fn date_diff(arguments: &[String], boundaries: bool) -> Option<String> {
    let [unit, from, to] = arguments else { return None };
    let (unit, from, to) = (part(unit)?, moment(from), moment(to));
    let months = |time: &str| format!("(extract(year FROM {time}) * 12 + extract(month FROM {time}) - 1)");
    let seconds = match unit.as_str() {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        "day" => 86_400,
        "week" => 604_800,
        "month" if boundaries => return Some(format!("({} - {})", months(&to), months(&from))),
        "quarter" if boundaries => {
            return Some(format!("(floor({} / 3) - floor({} / 3))", months(&to), months(&from)));
        }
        "year" if boundaries => {
            return Some(format!("(extract(year FROM {to}) - extract(year FROM {from}))"));
        }
        _ => return None,
    };
    let of = |time: &str| {
        if boundaries {
            format!("to_unixtime(date_trunc('{unit}', {time}))")
        } else {
            format!("to_unixtime({time})")
        }
    };
    Some(format!("(({} - {}) / {seconds})", of(&to), of(&from)))
}

/// The statement with every macro replaced. One that can't be cut into words comes back as it is.
pub fn translate(sql: &str, dialect: &dyn Dialect) -> Result<String, TooLarge> {
    if sql.len() > MAX_TEXT {
        return Err(TooLarge::Text);
    }
    match Tokenizer::new(dialect, sql).with_unescape(false).tokenize() {
        Ok(tokens) => replaced(&tokens, 0, sql.len() + MAX_GROWTH),
        Err(_) => Ok(sql.to_owned()),
    }
}

/// The text of these tokens with every macro replaced: at most so many bytes.
fn replaced(tokens: &[Token], depth: usize, most: usize) -> Result<String, TooLarge> {
    let mut text = String::new();
    let mut at = 0;
    // A call that does not end is none, and neither is any behind it.
    let mut may_end = depth < MAX_DEPTH;
    while at < tokens.len() {
        if text.len() > most {
            return Err(TooLarge::Macros);
        }
        if let Token::Word(word) = &tokens[at]
            && may_end
            && !after_a_period(tokens, at)
            && let Some((name, make, begin)) = macro_of(tokens, at, word)
        {
            match call(tokens, begin, name, make, depth, most)? {
                Some((call, end)) => {
                    text += &call;
                    at = end;
                    continue;
                }
                None => may_end = false,
            }
        }
        // `'x'::variant` is a value of any type: it has one already.
        if tokens[at] == Token::DoubleColon
            && let Some(Token::Word(word)) = tokens.get(at + 1)
            && word.value.eq_ignore_ascii_case("variant")
        {
            at += 2;
            continue;
        }
        text += &tokens[at].to_string();
        at += 1;
    }
    if text.len() > most { Err(TooLarge::Macros) } else { Ok(text) }
}

fn after_a_period(tokens: &[Token], at: usize) -> bool {
    at > 0 && tokens[at - 1] == Token::Period
}

/// The macro that is called here, and where its arguments begin.
fn macro_of(tokens: &[Token], at: usize, word: &Word) -> Option<(&'static str, Macro, usize)> {
    let (name, make) = MACROS.iter().find(|(name, _)| word.value.eq_ignore_ascii_case(name))?;
    let gap = tokens[at + 1..].iter().take_while(|token| matches!(token, Token::Whitespace(_))).count();
    let begin = at + 1 + gap;
    (word.quote_style.is_none() && tokens.get(begin) == Some(&Token::LParen)).then_some((name, *make, begin))
}

/// What stands for the call whose bracket opens here, and where it ends; none if it doesn't.
fn call(
    tokens: &[Token],
    begin: usize,
    name: &str,
    make: Macro,
    depth: usize,
    most: usize,
) -> Result<Option<(String, usize)>, TooLarge> {
    let (mut open, mut from, mut arguments) = (0, begin + 1, Vec::new());
    for (place, token) in tokens.iter().enumerate().skip(begin) {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => open += 1,
            Token::RParen | Token::RBracket | Token::RBrace => open -= 1,
            Token::Comma if open == 1 => {
                arguments.push(&tokens[from..place]);
                from = place + 1;
            }
            _ => {}
        }
        if open == 0 {
            arguments.push(&tokens[from..place]);
            let own = |tokens: &[Token]| replaced(&without_comments(tokens), depth + 1, most);
            let arguments = arguments
                .into_iter()
                .map(|a| Ok(own(a)?.trim().to_owned()))
                .collect::<Result<Vec<String>, TooLarge>>()?;
            let arguments = if arguments == [""] { Vec::new() } else { arguments };
            if name == "listagg"
                && let Some((order, end)) = within_group(tokens, place + 1)
                && let Some(value) = arguments.first()
            {
                let between = arguments.get(1).map_or("''", String::as_str);
                return Ok(Some((
                    format!("string_agg({value}, {between} {})", replaced(&order, depth + 1, most)?),
                    end,
                )));
            }
            // Of another kind than the macro's: the function of that name.
            return Ok(Some((
                make(&arguments).unwrap_or_else(|| format!("{name}({})", arguments.join(", "))),
                place + 1,
            )));
        }
    }
    Ok(None)
}

/// The order of `WITHIN GROUP (ORDER BY …)`, if that stands here, and where it ends.
fn within_group(tokens: &[Token], at: usize) -> Option<(Vec<Token>, usize)> {
    let mut rest =
        tokens.iter().enumerate().skip(at).filter(|(_, token)| !matches!(token, Token::Whitespace(_)));
    for word in ["within", "group"] {
        let (_, Token::Word(next)) = rest.next()? else { return None };
        next.value.eq_ignore_ascii_case(word).then_some(())?;
    }
    let (begin, _) = rest.next().filter(|(_, token)| **token == Token::LParen)?;
    let mut open = 0;
    let end = begin
        + tokens[begin..].iter().position(|token| {
            open += i32::from(*token == Token::LParen) - i32::from(*token == Token::RParen);
            open == 0
        })?;
    Some((without_comments(&tokens[begin + 1..end]), end + 1))
}

/// A comment up to the line's end would take with it what follows the argument.
fn without_comments(tokens: &[Token]) -> Vec<Token> {
    let is_comment = |t: &Token| {
        matches!(t, Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)))
    };
    tokens
        .iter()
        .map(|t| if is_comment(t) { Token::Whitespace(Whitespace::Space) } else { t.clone() })
        .collect()
}
