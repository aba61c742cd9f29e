//! Counts the outcomes of all items.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::decode::object::ObjectId;
use crate::decode::reject::Reason;
use crate::ingest::identity::{Identified, ItemNo};
use crate::ingest::item::{Item, Outcome, Settle};
use crate::land::ledger_rows::ObjectOutcome;
use crate::land::worker::Meter;
use crate::source::local::PassedOver;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Objects that landed now.
    pub landed: u64,
    /// Objects that had landed before, or were named twice.
    pub already_there: u64,
    /// Objects that hold no records by their name or size.
    pub skipped: u64,
    /// Objects that did not land, with the reason.
    pub failed: Vec<String>,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
    /// Rejects by reason code.
    pub rejects: BTreeMap<&'static str, u64>,
    /// Test uploads among the records.
    pub skipped_records: u64,
    /// Least and greatest event time, in microseconds.
    pub event_times: Option<(i64, i64)>,
    /// Objects that were not begun because the run was stopped.
    pub not_begun: u64,
    /// What was met in folders and is not read.
    pub passed_over: PassedOver,
}

impl Summary {
    /// Rows in all log types' tables.
    pub fn total_rows(&self) -> u64 {
        self.rows.values().sum()
    }

    pub fn total_rejects(&self) -> u64 {
        self.rejects.values().sum()
    }

    fn count(&mut self, outcome: &ObjectOutcome) {
        self.landed += 1;
        self.skipped_records += outcome.skipped;
        for (table, rows) in &outcome.rows {
            *self.rows.entry(table.clone()).or_default() += rows;
        }
        for (reason, count) in &outcome.rejects {
            *self.rejects.entry(Reason::code(*reason)).or_default() += count;
        }
        self.event_times = [self.event_times, outcome.event_times]
            .into_iter()
            .flatten()
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    }
}

/// Counts what becomes of items.
#[derive(Debug, Default)]
pub struct Counting {
    summary: Mutex<Summary>,
    /// Objects that are on their way. Without a lake to ask, also those that were: each is decoded once,
    /// however often it is named.
    begun: Mutex<Begun>,
    /// Whether no lake knows what has landed.
    forgets_nothing: bool,
    meter: Arc<Meter>,
}

#[derive(Debug, Default)]
struct Begun {
    objects: HashSet<ObjectId>,
    by_item: HashMap<ItemNo, ObjectId>,
}

impl Counting {
    /// Nothing yet. `forgets_nothing`: there is no lake that knows what has landed.
    pub fn new(meter: Arc<Meter>, forgets_nothing: bool) -> Self {
        Self { meter, forgets_nothing, ..Self::default() }
    }

    /// What was counted so far.
    pub fn summary(&self) -> Summary {
        self.summary.lock().clone()
    }

    /// Counts something that no item stands for.
    pub fn count(&self, count: impl FnOnce(&mut Summary)) {
        count(&mut self.summary.lock());
    }

    /// Counts an object that is done with, without having been decoded.
    pub fn done(&self, size: u64, count: impl FnOnce(&mut Summary)) {
        Meter::add(&self.meter.objects_done, 1);
        Meter::add(&self.meter.bytes_done, size);
        self.count(count);
    }
}

impl Settle for Counting {
    fn identify(&self, item: ItemNo, object: ObjectId) -> Identified {
        let mut begun = self.begun.lock();
        if begun.by_item.get(&item) == Some(&object) {
            return Identified::First;
        }
        if let Some(before) = begun.by_item.remove(&item) {
            begun.objects.remove(&before);
        }
        if begun.objects.insert(object) {
            begun.by_item.insert(item, object);
            return Identified::First;
        }
        drop(begun);
        self.done(0, |summary| summary.already_there += 1);
        Identified::OnItsWay
    }

    fn settle(&self, item: &Item, outcome: Outcome<'_>) {
        {
            let mut begun = self.begun.lock();
            let object = begun.by_item.remove(&item.no);
            if let Some(object) = object.filter(|_| !self.forgets_nothing) {
                begun.objects.remove(&object);
            }
        }
        match outcome {
            // The worker has counted its bytes when it was decoded.
            Outcome::Landed(outcome) => self.count(|summary| summary.count(outcome)),
            Outcome::AlreadyThere => self.done(item.kind.size(), |summary| summary.already_there += 1),
            Outcome::Empty => self.done(item.kind.size(), |summary| summary.skipped += 1),
            Outcome::GivenUp(why) => {
                tracing::error!("{why}");
                self.done(item.kind.size(), |summary| summary.failed.push(why.to_owned()));
            }
            // Rejects come from no listing.
            Outcome::NotBegun | Outcome::Rejected(_) => self.count(|summary| summary.not_begun += 1),
        }
    }
}
