//! The rows of one log type: which field fills which column, what is rescued, and the p_ columns.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, StringViewArray, StringViewBuilder, TimestampMicrosecondArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use super::column::{self, ColumnBuilder, Scratch, TextList, TextMap};
use super::indicator::Indicators;
use super::json::{Field, ValueKind, unescape};
use super::keys::{Keys, MAX_KEYS, UNKNOWN_KEY};
use super::object::{LATEST_TIME, ObjectContext};
use super::reject::Reason;
use super::time::{self, Time};
use crate::schema::{Indicator, LogType, Standard};

/// A batch is closed at this many rows, so that no builder grows without bound.
const MAX_BATCH_ROWS: usize = 32 * 1024;
/// Elements of lists and maps that a batch has before it is closed: each takes as much as a value.
const MAX_BATCH_ELEMENTS: usize = 1 << 20;

/// 2010-01-01T00:00:00Z: before Cloudflare was open to anyone. Microseconds.
const EARLIEST_EVENT: i64 = 1_262_304_000_000_000;
/// A day, in microseconds: how much later than its object an event may be.
const CLOCK_SKEW: i64 = 86_400_000_000;

/// The last plausible moment for an event of an object that says it was written then. A time that no object
/// can have been written at, such as the 0 of reproducible archives, says nothing.
fn latest_event(last_modified: Option<i64>) -> i64 {
    match last_modified {
        Some(written) if (EARLIEST_EVENT..LATEST_TIME).contains(&written) => {
            written.saturating_add(CLOCK_SKEW)
        }
        _ => LATEST_TIME,
    }
}

/// What became of a record.
#[derive(Debug)]
pub enum Verdict {
    Row,
    Reject(Reason, String),
}

/// Which column a field name fills. Rank 0 is the documented name, then the aliases in their order.
#[derive(Debug, Clone, Copy)]
struct Target {
    column: u16,
    rank: u16,
}

const NO_FIELD: u32 = u32::MAX;

/// Builds the record batches of one log type.
#[derive(Debug)]
pub struct RowBuilder {
    log_type: Arc<LogType>,
    schema: SchemaRef,
    /// By key number; what is not there fills no column.
    targets: Vec<Option<Target>>,
    /// By column: the field that fills it in the record at hand.
    chosen: Vec<u32>,
    /// Fields of the record at hand that go to rescued data.
    rescued: Vec<u32>,
    /// By key number: the last rescued field of that name, with the number of the record it was in.
    last_rescued: Vec<(u64, u32)>,
    record_number: u64,
    indicator_columns: Vec<(u16, Indicator)>,
    columns: Vec<ColumnBuilder>,
    standard: StandardBuilders,
    indicators: Indicators,
    scratch: Scratch,
    text: String,
    rows: usize,
    /// Elements of lists and maps among them.
    elements: usize,
    /// How many rows the last batch had: what the next one is sized for.
    expected_rows: usize,
}

#[derive(Debug)]
struct StandardBuilders {
    event_time: TimestampMicrosecondBuilder,
    row_id: StringViewBuilder,
    ips: TextList,
    hosts: TextList,
    traces: TextList,
    rescued: TextMap,
}

impl StandardBuilders {
    fn new(rows: usize) -> Self {
        Self {
            event_time: TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC"),
            row_id: StringViewBuilder::with_capacity(rows),
            ips: column::text_list(),
            hosts: column::text_list(),
            traces: column::text_list(),
            rescued: column::text_map(),
        }
    }
}

impl RowBuilder {
    pub fn new(log_type: Arc<LogType>, keys: &Keys) -> Self {
        let mut targets = Vec::new();
        for (column, c) in log_type.columns.iter().enumerate() {
            for (rank, name) in std::iter::once(&c.name).chain(&c.aliases).enumerate() {
                let key = usize::from(keys.number(name).expect("every column is a known key"));
                if targets.len() <= key {
                    targets.resize(key + 1, None);
                }
                targets[key] = Some(Target { column: column as u16, rank: rank as u16 });
            }
        }
        let indicator_columns = log_type.columns.iter().enumerate();
        let indicator_columns = indicator_columns
            .flat_map(|(i, c)| c.indicators.iter().map(move |kind| (i as u16, *kind)))
            .collect();
        let mut builder = Self {
            schema: log_type.arrow_schema(),
            targets,
            chosen: vec![NO_FIELD; log_type.columns.len()],
            rescued: Vec::new(),
            last_rescued: vec![(0, 0); MAX_KEYS],
            record_number: 0,
            indicator_columns,
            columns: Vec::new(),
            standard: StandardBuilders::new(0),
            indicators: Indicators::default(),
            scratch: Scratch::default(),
            text: String::new(),
            rows: 0,
            elements: 0,
            expected_rows: 0,
            log_type,
        };
        builder.reset();
        builder
    }

    pub fn name(&self) -> &str {
        &self.log_type.name
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Whether the batch is to be closed.
    pub fn is_full(&self) -> bool {
        self.rows >= MAX_BATCH_ROWS || self.elements >= MAX_BATCH_ELEMENTS
    }

    /// Drops the rows that no batch was made of.
    pub fn clear(&mut self) {
        if self.rows > 0 {
            self.reset();
        }
    }

    fn reset(&mut self) {
        (self.rows, self.elements) = (0, 0);
        self.columns = self
            .log_type
            .columns
            .iter()
            .map(|c| ColumnBuilder::new(c.kind, c.time_formats, self.expected_rows))
            .collect();
        self.standard = StandardBuilders::new(self.expected_rows);
    }

    /// Appends the record as a row, or says why it is none; then nothing was appended.
    pub fn append(
        &mut self,
        context: &ObjectContext,
        record: &str,
        fields: &[Field],
        offset: u64,
    ) -> Verdict {
        self.choose(fields);
        let event_time = match self.event_time(context, record, fields) {
            Ok(micros) => micros,
            Err((reason, message)) => return Verdict::Reject(reason, message),
        };
        for (column, builder) in self.columns.iter_mut().enumerate() {
            let field = self.chosen[column];
            if field == NO_FIELD {
                builder.append_null();
            } else if !builder.append(record, fields[field as usize].value, &mut self.scratch) {
                self.rescued.push(field);
            }
        }
        self.standard.event_time.append_value(event_time);
        self.text.clear();
        write!(self.text, "{}{offset:012x}", context.id).expect("writing to a string");
        self.standard.row_id.append_value(&self.text);
        self.append_indicators(record, fields);
        self.append_rescued(record, fields);
        self.elements += self.scratch.take_elements();
        self.rows += 1;
        Verdict::Row
    }

    /// Decides which field fills which column: the documented name before its aliases, and of equal names the
    /// last. What loses to another name is rescued.
    fn choose(&mut self, fields: &[Field]) {
        self.chosen.fill(NO_FIELD);
        self.rescued.clear();
        for (index, field) in fields.iter().enumerate() {
            let index = index as u32;
            let Some(Some(target)) = self.targets.get(usize::from(field.key)) else {
                self.rescued.push(index);
                continue;
            };
            let chosen = &mut self.chosen[usize::from(target.column)];
            if *chosen == NO_FIELD {
                *chosen = index;
                continue;
            }
            let before = &fields[*chosen as usize];
            let rank = self.targets[usize::from(before.key)].map_or(u16::MAX, |t| t.rank);
            if target.rank > rank {
                self.rescued.push(index);
                continue;
            }
            if target.rank < rank {
                self.rescued.push(*chosen);
            }
            *chosen = index;
        }
    }

    /// The time that becomes `p_event_time`, checked against the object's own time and never the wall clock:
    /// the same object must always decode the same.
    fn event_time(
        &mut self,
        context: &ObjectContext,
        record: &str,
        fields: &[Field],
    ) -> Result<i64, (Reason, String)> {
        let column = self.log_type.event_column();
        let name = &column.name;
        let missing = |what: &str| {
            Err((Reason::MissingEventTime, format!("{name} {what}; {} requires it", self.log_type.name)))
        };
        let field = self.chosen[self.log_type.event_time];
        if field == NO_FIELD {
            return missing("is not there");
        }
        let value = fields[field as usize].value;
        let raw = &record[value.start as usize..value.end as usize];
        let time = match value.kind {
            ValueKind::Null => return missing("is null"),
            ValueKind::Text | ValueKind::Number => time::parse(raw, column.time_formats),
            ValueKind::Escaped => {
                self.text.clear();
                if unescape(raw, &mut self.text) {
                    time::parse(&self.text, column.time_formats)
                } else {
                    Time::Unreadable
                }
            }
            _ => Time::Unreadable,
        };
        let shown = || raw.chars().take(64).collect::<String>();
        match time {
            Time::Empty => missing("is empty"),
            Time::Unreadable => {
                Err((Reason::InvalidEventTime, format!("{name} is no time that can be read: {}", shown())))
            }
            Time::At(micros) if micros < EARLIEST_EVENT => {
                Err((Reason::ImplausibleEventTime, format!("{name} is before 2010: {}", shown())))
            }
            Time::At(micros) if micros > latest_event(context.last_modified) => {
                let bound = if micros > LATEST_TIME {
                    "after 2099"
                } else {
                    "more than a day after its object was written"
                };
                Err((Reason::ImplausibleEventTime, format!("{name} is {bound}: {}", shown())))
            }
            Time::At(micros) => Ok(micros),
        }
    }

    fn append_indicators(&mut self, record: &str, fields: &[Field]) {
        self.indicators.clear();
        for (column, kind) in &self.indicator_columns {
            let field = self.chosen[usize::from(*column)];
            if field == NO_FIELD {
                continue;
            }
            let value = fields[field as usize].value;
            let raw = &record[value.start as usize..value.end as usize];
            match value.kind {
                ValueKind::Text | ValueKind::Number => self.indicators.collect(*kind, raw),
                ValueKind::Escaped => {
                    self.text.clear();
                    if unescape(raw, &mut self.text) {
                        self.indicators.collect(*kind, &self.text);
                    }
                }
                _ => {}
            }
        }
        self.indicators.append_ips(&mut self.standard.ips);
        self.indicators.append_hosts(&mut self.standard.hosts);
        self.indicators.append_traces(&mut self.standard.traces);
    }

    /// Rescued fields under their names as they came, in the record's order; of equal names the last.
    fn append_rescued(&mut self, record: &str, fields: &[Field]) {
        if self.rescued.is_empty() {
            column::append_map_null(&mut self.standard.rescued);
            return;
        }
        self.rescued.sort_unstable();
        self.record_number += 1;
        // Hashed by a secret: whoever writes objects chooses names.
        let mut last_unknown: HashMap<String, u32> = HashMap::new();
        for &index in &self.rescued {
            let field = &fields[index as usize];
            if field.key == UNKNOWN_KEY {
                let name = column::map_text(record, field.name, &mut self.text);
                last_unknown.insert(name.to_owned(), index);
            } else {
                self.last_rescued[usize::from(field.key)] = (self.record_number, index);
            }
        }
        let map = &mut self.standard.rescued;
        for &index in &self.rescued {
            let field = &fields[index as usize];
            let name = column::map_text(record, field.name, &mut self.text);
            let last = if field.key == UNKNOWN_KEY {
                last_unknown[name]
            } else {
                self.last_rescued[usize::from(field.key)].1
            };
            if last == index {
                map.keys().append_value(name);
                column::append_map_value(map, record, field.value, &mut self.text);
            }
        }
        map.append(true).expect("keys and values are of one length");
    }

    /// The rows so far as a record batch.
    pub fn finish(&mut self, context: &ObjectContext) -> RecordBatch {
        let rows = self.rows;
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        for (standard, _) in &self.log_type.standard {
            arrays.push(match standard {
                Standard::EventTime => Arc::new(self.standard.event_time.finish()),
                Standard::ParseTime => Arc::new(
                    TimestampMicrosecondArray::from_value(context.parse_time, rows).with_timezone("UTC"),
                ),
                Standard::LogType => constant(Some(&self.log_type.name), rows),
                Standard::RowId => Arc::new(self.standard.row_id.finish()),
                Standard::SourceId => constant(context.source_id.as_deref(), rows),
                Standard::SourceLabel => constant(context.source_label.as_deref(), rows),
                Standard::AnyIpAddresses => Arc::new(self.standard.ips.finish()),
                Standard::AnyDomainNames => Arc::new(self.standard.hosts.finish()),
                Standard::AnyTraceIds => Arc::new(self.standard.traces.finish()),
            });
        }
        arrays.push(column::finish_map(&mut self.standard.rescued));
        let batch =
            RecordBatch::try_new(self.schema.clone(), arrays).expect("the builders follow the schema");
        self.expected_rows = rows.min(MAX_BATCH_ROWS);
        self.reset();
        batch
    }
}

/// One text in every row, stored once.
pub(crate) fn constant(text: Option<&str>, rows: usize) -> ArrayRef {
    let Some(text) = text else {
        return Arc::new(StringViewArray::new_null(rows));
    };
    let one = StringViewArray::from_iter_values([text]);
    let views = vec![one.views()[0]; rows];
    Arc::new(
        StringViewArray::try_new(views.into(), one.data_buffers().to_vec(), None)
            .expect("every view is the one that was there"),
    )
}
