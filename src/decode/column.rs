//! One Arrow builder a column, and how each documented type reads each JSON value.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanBuilder, Float32Builder, Int16Builder, Int32Builder, Int64Builder, ListBuilder,
    MapBuilder, MapFieldNames, StringViewBuilder, TimestampMicrosecondBuilder,
};

use super::number;
use super::time::{self, Time};
use crate::decode::json::{Child, Value, ValueKind, children, unescape};
use crate::schema::{ColumnType, TimeFormats, list_element};

/// Elements that one value of a list or map may have: with more it does not fit its column, and is rescued.
const MAX_ELEMENTS: usize = 1 << 18;
/// Space that is kept for the next value, in bytes and in elements.
const KEPT_TEXT: usize = 1 << 20;
const KEPT_CHILDREN: usize = 1 << 14;

/// Space that values are unescaped and listed in, used again for every value.
#[derive(Debug, Default)]
pub struct Scratch {
    text: String,
    children: Vec<Child>,
    /// Elements of lists and maps that were appended since this was last taken.
    elements: usize,
}

impl Scratch {
    /// Elements of lists and maps that were appended since this was last asked.
    pub fn take_elements(&mut self) -> usize {
        std::mem::take(&mut self.elements)
    }

    /// Lists the children of a list or map; false if there are too many.
    fn list(&mut self, record: &str, value: Value) -> bool {
        let text = &record.as_bytes()[value.start as usize..value.end as usize];
        // So many elements have as many commas between them, and some in their texts.
        if text.len() > MAX_ELEMENTS && memchr::memchr_iter(b',', text).count() >= MAX_ELEMENTS {
            return false;
        }
        children(record, value, &mut self.children);
        self.elements += self.children.len();
        true
    }

    /// Gives back the space that one odd value took: every later one would have it, too.
    fn shrink(&mut self) {
        if self.text.capacity() > KEPT_TEXT {
            self.text = String::new();
        }
        if self.children.capacity() > KEPT_CHILDREN {
            self.children = Vec::new();
        }
    }
}

pub type TextList = ListBuilder<StringViewBuilder>;
pub type TextMap = MapBuilder<StringViewBuilder, StringViewBuilder>;

/// An empty list column with Delta's child name.
pub fn text_list() -> TextList {
    ListBuilder::new(StringViewBuilder::new()).with_field(Arc::new(list_element()))
}

/// An empty map column with Delta's entry names.
pub fn text_map() -> TextMap {
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    MapBuilder::new(Some(names), StringViewBuilder::new(), StringViewBuilder::new())
}

/// A column under construction.
// There are a few hundred of these in all, and each value goes through one: a box would cost more than it
// saves.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum ColumnBuilder {
    BigInt(Int64Builder),
    Int(Int32Builder),
    SmallInt(Int16Builder),
    Float(Float32Builder),
    Boolean(BooleanBuilder),
    Text(StringViewBuilder),
    Time(TimestampMicrosecondBuilder, TimeFormats),
    List(TextList),
    Map(TextMap),
}

impl ColumnBuilder {
    pub fn new(kind: ColumnType, formats: TimeFormats, rows: usize) -> Self {
        match kind {
            ColumnType::BigInt => Self::BigInt(Int64Builder::with_capacity(rows)),
            ColumnType::Int => Self::Int(Int32Builder::with_capacity(rows)),
            ColumnType::SmallInt => Self::SmallInt(Int16Builder::with_capacity(rows)),
            ColumnType::Float => Self::Float(Float32Builder::with_capacity(rows)),
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            ColumnType::String => Self::Text(StringViewBuilder::with_capacity(rows)),
            ColumnType::Timestamp => {
                Self::Time(TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC"), formats)
            }
            ColumnType::StringList => Self::List(text_list()),
            ColumnType::StringMap => Self::Map(text_map()),
        }
    }

    pub fn append_null(&mut self) {
        match self {
            Self::BigInt(b) => b.append_null(),
            Self::Int(b) => b.append_null(),
            Self::SmallInt(b) => b.append_null(),
            Self::Float(b) => b.append_null(),
            Self::Boolean(b) => b.append_null(),
            Self::Text(b) => b.append_null(),
            Self::Time(b, _) => b.append_null(),
            Self::List(b) => b.append_null(),
            Self::Map(b) => append_map_null(b),
        }
    }

    /// Appends a value of `record`. False, with null appended, if the type can't hold it.
    pub fn append(&mut self, record: &str, value: Value, scratch: &mut Scratch) -> bool {
        let held = match self {
            Self::Text(b) => append_text(b, record, value, scratch),
            Self::BigInt(b) => scalar(record, value, scratch, number::integer).map(|v| b.append_option(v)),
            Self::Int(b) => scalar(record, value, scratch, |t| number::integer(t)?.try_into().ok())
                .map(|v| b.append_option(v)),
            Self::SmallInt(b) => scalar(record, value, scratch, |t| number::integer(t)?.try_into().ok())
                .map(|v| b.append_option(v)),
            Self::Float(b) => scalar(record, value, scratch, number::float).map(|v| b.append_option(v)),
            Self::Boolean(b) => append_boolean(b, record, value, scratch),
            Self::Time(b, formats) => {
                let formats = *formats;
                let read = |text: &str| match time::parse(text, formats) {
                    Time::At(micros) => Some(micros),
                    Time::Empty | Time::Unreadable => None,
                };
                scalar(record, value, scratch, read).map(|v| b.append_option(v))
            }
            Self::List(b) => append_list(b, record, value, scratch),
            Self::Map(b) => append_map(b, record, value, scratch),
        };
        if held.is_none() {
            self.append_null();
        }
        scratch.shrink();
        held.is_some()
    }

    pub fn finish(&mut self) -> ArrayRef {
        match self {
            Self::BigInt(b) => Arc::new(b.finish()),
            Self::Int(b) => Arc::new(b.finish()),
            Self::SmallInt(b) => Arc::new(b.finish()),
            Self::Float(b) => Arc::new(b.finish()),
            Self::Boolean(b) => Arc::new(b.finish()),
            Self::Text(b) => Arc::new(b.finish()),
            Self::Time(b, _) => Arc::new(b.finish()),
            Self::List(b) => Arc::new(b.finish()),
            Self::Map(b) => finish_map(b),
        }
    }
}

/// A finished map column. The builder makes the value field nullable and the key not, as Delta wants.
pub fn finish_map(builder: &mut TextMap) -> ArrayRef {
    let map = builder.finish();
    debug_assert_eq!(map.data_type(), &ColumnType::StringMap.arrow());
    Arc::new(map)
}

pub fn append_map_null(builder: &mut TextMap) {
    builder.append(false).expect("keys and values are of one length");
}

/// The decoded text of a string value, the JSON text of any other; none for text that no string can hold.
fn text_of<'a>(record: &'a str, value: Value, scratch: &'a mut String) -> Option<&'a str> {
    let raw = &record[value.start as usize..value.end as usize];
    if value.kind != ValueKind::Escaped {
        return Some(raw);
    }
    scratch.clear();
    unescape(raw, scratch).then_some(scratch.as_str())
}

/// Text as it stands in a map: decoded if it is a string, else JSON text; with its quotes if it can't be
/// decoded.
pub fn map_text<'a>(record: &'a str, value: Value, scratch: &'a mut String) -> &'a str {
    let quoted = &record[value.start.saturating_sub(1) as usize..record.len().min(value.end as usize + 1)];
    text_of(record, value, scratch).unwrap_or(quoted)
}

/// A scalar by its text. `Some(None)`: null, or an empty string. None: does not fit.
fn scalar<T>(
    record: &str,
    value: Value,
    scratch: &mut Scratch,
    read: impl Fn(&str) -> Option<T>,
) -> Option<Option<T>> {
    match value.kind {
        ValueKind::Null => Some(None),
        ValueKind::Number => read(&record[value.start as usize..value.end as usize]).map(Some),
        ValueKind::Text | ValueKind::Escaped => match text_of(record, value, &mut scratch.text)? {
            "" => Some(None),
            text => read(text).map(Some),
        },
        ValueKind::True | ValueKind::False | ValueKind::Object | ValueKind::Array => None,
    }
}

fn append_text(b: &mut StringViewBuilder, record: &str, value: Value, scratch: &mut Scratch) -> Option<()> {
    match value.kind {
        ValueKind::Null => b.append_null(),
        _ => b.append_value(text_of(record, value, &mut scratch.text)?),
    }
    Some(())
}

fn append_boolean(b: &mut BooleanBuilder, record: &str, value: Value, scratch: &mut Scratch) -> Option<()> {
    match value.kind {
        ValueKind::True => b.append_value(true),
        ValueKind::False => b.append_value(false),
        _ => b.append_option(scalar(record, value, scratch, number::boolean)?),
    }
    Some(())
}

/// An array element by element; a scalar is a list of one. An object is no list.
fn append_list(b: &mut TextList, record: &str, value: Value, scratch: &mut Scratch) -> Option<()> {
    match value.kind {
        ValueKind::Null => b.append_null(),
        ValueKind::Object => return None,
        ValueKind::Array => {
            if !scratch.list(record, value) {
                return None;
            }
            let readable = |child: &Child, text: &mut String| text_of(record, child.value, text).is_some();
            if !scratch.children.iter().all(|c| readable(c, &mut scratch.text)) {
                return None;
            }
            for child in &scratch.children {
                match child.value.kind {
                    ValueKind::Null => b.values().append_null(),
                    _ => b.values().append_option(text_of(record, child.value, &mut scratch.text)),
                }
            }
            b.append(true);
        }
        _ => {
            let text = text_of(record, value, &mut scratch.text)?;
            b.values().append_value(text);
            b.append(true);
        }
    }
    Some(())
}

/// An object member by member, any value as text; of equal names the last wins. Nothing else is a map.
fn append_map(b: &mut TextMap, record: &str, value: Value, scratch: &mut Scratch) -> Option<()> {
    match value.kind {
        ValueKind::Null => append_map_null(b),
        ValueKind::Object => {
            if !scratch.list(record, value) {
                return None;
            }
            let members = std::mem::take(&mut scratch.children);
            // Hashed by a secret: whoever writes objects chooses names.
            let mut last = HashMap::new();
            for (index, member) in members.iter().enumerate() {
                let name = member.name.map_or("", |name| map_text(record, name, &mut scratch.text));
                last.insert(name.to_owned(), index);
            }
            for (index, member) in members.iter().enumerate() {
                let Some(name) = member.name else { continue };
                let name = map_text(record, name, &mut scratch.text);
                if last.get(name) != Some(&index) {
                    continue;
                }
                b.keys().append_value(name);
                append_map_value(b, record, member.value, &mut scratch.text);
            }
            b.append(true).expect("keys and values are of one length");
            scratch.children = members;
        }
        _ => return None,
    }
    Some(())
}

/// Appends the value half of a map entry: null stays null.
pub fn append_map_value(b: &mut TextMap, record: &str, value: Value, scratch: &mut String) {
    match value.kind {
        ValueKind::Null => b.values().append_null(),
        _ => b.values().append_value(map_text(record, value, scratch)),
    }
}
