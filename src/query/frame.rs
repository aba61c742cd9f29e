//! A result as a person reads it: columns in a frame, or where these are too wide, a record below the other.

use std::io::{self, Write};

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr as _;

use crate::base::printable::{is_mischief, printable};

/// Rows that are looked at before the columns' widths are settled: a result of any size streams after these.
const LOOKED_AT: usize = 1000;
/// Longer values are cut in frames; records show them whole.
const WIDEST: usize = 120;

/// Whether wide rows are shown as records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expanded {
    #[default]
    Off,
    On,
    /// Where the frame would be wider than this many characters.
    WiderThan(usize),
}

pub struct TableWriter<W: Write> {
    to: W,
    names: Vec<String>,
    numeric: Vec<bool>,
    expanded: Expanded,
    /// Rows that are held back until the widths are settled.
    held: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
    as_records: bool,
    /// The answer of `EXPLAIN`: text of many lines.
    is_plan: bool,
    rows: u64,
}

impl<W: Write> TableWriter<W> {
    /// A writer of a result with these columns.
    pub fn new(schema: &SchemaRef, expanded: Expanded, to: W) -> Self {
        let fields = schema.fields();
        Self {
            to,
            names: fields.iter().map(|f| printable(f.name()).into_owned()).collect(),
            numeric: fields.iter().map(|f| f.data_type().is_numeric()).collect(),
            expanded,
            held: Vec::new(),
            widths: None,
            as_records: expanded == Expanded::On,
            is_plan: fields.iter().map(|f| f.name().as_str()).eq(["plan_type", "plan"]),
            rows: 0,
        }
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        if self.is_plan {
            return self.write_plan(batch);
        }
        let columns = batch.columns().iter().map(cells).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let row: Vec<String> = columns.iter().map(|column| column[row].clone()).collect();
            match &self.widths {
                None => self.held.push(row),
                Some(_) => self.write_row(&row)?,
            }
        }
        if self.widths.is_none() && self.held.len() >= LOOKED_AT {
            self.settle()?;
        }
        Ok(())
    }

    /// Line by line, as the planner wrote it.
    fn write_plan(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let options = FormatOptions::default();
        let texts = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            writeln!(self.to, "{}:", printable(&texts[0].value(row).try_to_string()?))?;
            for line in texts[1].value(row).try_to_string()?.lines() {
                writeln!(self.to, "{}", printable(line))?;
            }
        }
        Ok(())
    }

    /// Settles the widths by what is held back, and writes that.
    fn settle(&mut self) -> io::Result<()> {
        let mut widths: Vec<usize> = self.names.iter().map(|name| name.width()).collect();
        for row in &self.held {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let whole: usize = widths.iter().map(|w| w + 3).sum::<usize>() + 1;
        if let Expanded::WiderThan(limit) = self.expanded {
            self.as_records = whole > limit;
        }
        widths.iter_mut().for_each(|width| *width = (*width).min(WIDEST));
        self.widths = Some(widths);
        if !self.as_records {
            self.rule()?;
            let names = self.names.clone();
            self.write_cells(&names, true)?;
            self.rule()?;
        }
        for row in std::mem::take(&mut self.held) {
            self.write_row(&row)?;
        }
        Ok(())
    }

    fn write_row(&mut self, row: &[String]) -> io::Result<()> {
        self.rows += 1;
        if !self.as_records {
            return self.write_cells(row, false);
        }
        let longest = self.names.iter().map(|name| name.width()).max().unwrap_or_default();
        writeln!(self.to, "-[ RECORD {} ]{}", self.rows, "-".repeat(longest.max(12)))?;
        for (name, cell) in self.names.iter().zip(row) {
            let gap = " ".repeat(longest - name.width());
            writeln!(self.to, "{name}{gap} | {cell}")?;
        }
        Ok(())
    }

    fn write_cells(&mut self, row: &[String], names: bool) -> io::Result<()> {
        let widths = self.widths.as_deref().unwrap_or_default();
        for ((cell, width), numeric) in row.iter().zip(widths).zip(&self.numeric) {
            let cell = if cell.width() > *width { cut(cell, *width) } else { cell.clone() };
            let gap = " ".repeat(width.saturating_sub(cell.width()));
            if *numeric && !names {
                write!(self.to, "| {gap}{cell} ")?
            } else {
                write!(self.to, "| {cell}{gap} ")?
            }
        }
        writeln!(self.to, "|")
    }

    fn rule(&mut self) -> io::Result<()> {
        let widths = self.widths.as_deref().unwrap_or_default();
        let line: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect();
        writeln!(self.to, "{line}+")
    }

    /// Writes what is held back, and the end.
    pub fn finish(mut self) -> io::Result<()> {
        if self.is_plan {
            return self.to.flush();
        }
        if self.widths.is_none() {
            self.settle()?;
        }
        if !self.as_records {
            self.rule()?;
        }
        self.to.flush()
    }
}

/// A column's values as text, each in one line.
fn cells(column: &ArrayRef) -> Result<Vec<String>, ArrowError> {
    let options = FormatOptions::default().with_null("NULL");
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let cell = |row: usize| {
        let text = formatter.value(row).try_to_string()?;
        Ok(if is_text { printable(&text).into_owned() } else { text.replace(is_mischief, " ") })
    };
    (0..column.len()).map(cell).collect()
}

fn cut(text: &str, width: usize) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if kept.width() + 1 > width {
            kept.pop();
            break;
        }
    }
    kept + "…"
}
