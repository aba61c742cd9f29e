//! The ack book: which message waits for which items, and until when it is leased. Without clock and I/O.
//!
//! A message is complete when everything that it announces has landed. An object is on its way once, however
//! many messages announce it: later ones are attached to it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use crate::base::clock::Instant;
use crate::decode::object::ObjectId;
use crate::ingest::identity::{Identified, ItemNo};

/// A message: its queue's place in the configuration, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageKey {
    pub queue: usize,
    pub id: String,
}

/// How long a message is hidden from others.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// When it is to be extended: well before half of it has passed.
    pub extend_at: Instant,
    pub ends: Instant,
}

impl Lease {
    /// From the moment in which the message, or its extension, was asked for.
    pub fn new(from: Instant, timeout: Duration) -> Self {
        Self { extend_at: from + timeout * 2 / 5, ends: from + timeout }
    }
}

/// A message that is held.
#[derive(Debug)]
struct Held {
    /// Tells this holding from an earlier one of the same message, whose items may still be on their way.
    holding: u64,
    receipt: String,
    /// Microseconds since the epoch.
    sent: i64,
    weight: usize,
    /// Items that have not landed; and one more until all are entered.
    waiting: usize,
    lease: Lease,
    /// The lease has ended: it is not to be extended any more.
    lost: bool,
}

/// Something to land, and who waits for it.
#[derive(Debug)]
struct Expected<T> {
    name: T,
    object: Option<ObjectId>,
    waiters: Vec<Holding>,
}

/// One holding of a message: after it is given up, the message may be received and held once more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    pub key: MessageKey,
    /// Tells it from other holdings of the message.
    no: u64,
}

/// How much is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub messages: usize,
    /// Bytes that they cost.
    pub bytes: usize,
}

/// See the module. `T` is what an item is called; two that are called the same are one.
#[derive(Debug)]
pub struct Book<T> {
    messages: HashMap<MessageKey, Held>,
    items: HashMap<ItemNo, Expected<T>>,
    by_name: HashMap<T, ItemNo>,
    by_object: HashMap<ObjectId, ItemNo>,
    next: ItemNo,
    /// By queue.
    load: BTreeMap<usize, Load>,
}

/// When a message's lease is to be extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// At this moment.
    At(Instant),
    /// Now, by this receipt.
    Now(String),
    /// Never more: the message is not held, or its lease was lost.
    Never,
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self {
            messages: HashMap::new(),
            items: HashMap::new(),
            by_name: HashMap::new(),
            by_object: HashMap::new(),
            next: 0,
            load: BTreeMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Book<T> {
    /// Enters a message. None: it is held already, so its lease had ended; the new receipt is the good one
    /// from here on. `weight`: bytes that holding it costs.
    pub fn hold(
        &mut self,
        key: MessageKey,
        receipt: String,
        sent: i64,
        weight: usize,
        lease: Lease,
    ) -> Option<Holding> {
        if let Some(held) = self.messages.get_mut(&key) {
            (held.receipt, held.lease, held.lost) = (receipt, lease, false);
            return None;
        }
        let load = self.load.entry(key.queue).or_default();
        (load.messages, load.bytes) = (load.messages + 1, load.bytes + weight);
        self.next += 1;
        let holding = Holding { key: key.clone(), no: self.next };
        self.messages
            .insert(key, Held { holding: self.next, receipt, sent, weight, waiting: 1, lease, lost: false });
        Some(holding)
    }

    /// The message, if it is this holding of it that is held.
    fn held_as(&mut self, holding: &Holding) -> Option<&mut Held> {
        self.messages.get_mut(&holding.key).filter(|held| held.holding == holding.no)
    }

    /// Adds to what holding a message costs, in bytes.
    pub fn weigh(&mut self, holding: &Holding, bytes: usize) {
        if let Some(held) = self.held_as(holding) {
            held.weight += bytes;
            self.load.entry(holding.key.queue).or_default().bytes += bytes;
        }
    }

    /// Lets a message wait for what is called `name`: its number if it is to be set on its way, none if it is
    /// on it, or nobody waits any more.
    pub fn wait_for(&mut self, holding: &Holding, name: T) -> Option<ItemNo> {
        self.held_as(holding)?.waiting += 1;
        if let Some(item) = self.by_name.get(&name).and_then(|no| self.items.get_mut(no)) {
            item.waiters.push(holding.clone());
            return None;
        }
        self.next += 1;
        self.by_name.insert(name.clone(), self.next);
        self.items.insert(self.next, Expected { name, object: None, waiters: vec![holding.clone()] });
        Some(self.next)
    }

    /// All items of a message are entered. True: it is complete.
    pub fn seal(&mut self, holding: &Holding) -> bool {
        self.held_as(holding).is_some_and(Held::tick)
    }

    /// An item has turned out to be this object. If another one is, and is on its way, this one's messages
    /// wait for that.
    pub fn identify(&mut self, no: ItemNo, object: ObjectId) -> Identified {
        match self
            .by_object
            .get(&object)
            .copied()
            .filter(|first| *first != no && self.items.contains_key(first))
        {
            Some(first) => {
                let waiters = self.remove(no).map(|item| item.waiters).unwrap_or_default();
                self.items.get_mut(&first).expect("it was just found").waiters.extend(waiters);
                Identified::OnItsWay
            }
            None => {
                let Some(item) = self.items.get_mut(&no) else { return Identified::OnItsWay };
                if let Some(before) = item.object.replace(object).filter(|before| *before != object) {
                    self.by_object.remove(&before);
                }
                self.by_object.insert(object, no);
                Identified::First
            }
        }
    }

    /// An item has landed: the messages that are complete with it.
    pub fn landed(&mut self, no: ItemNo) -> Vec<MessageKey> {
        let waiters = self.remove(no).map(|item| item.waiters).unwrap_or_default();
        let waiting = |holding: Holding| self.held_as(&holding)?.tick().then_some(holding.key);
        waiters.into_iter().filter_map(waiting).collect()
    }

    /// An item can't land for now: the messages that wait for it, with their receipts, are no longer held.
    pub fn give_up(&mut self, no: ItemNo) -> Vec<(MessageKey, String)> {
        let mut waiters = self.remove(no).map(|item| item.waiters).unwrap_or_default();
        waiters.sort();
        waiters.dedup();
        waiters.retain(|holding| self.held_as(holding).is_some());
        waiters
            .into_iter()
            .filter_map(|Holding { key, .. }| Some((key.clone(), self.forget(&key)?)))
            .collect()
    }

    fn remove(&mut self, no: ItemNo) -> Option<Expected<T>> {
        let item = self.items.remove(&no)?;
        if self.by_name.get(&item.name) == Some(&no) {
            self.by_name.remove(&item.name);
        }
        if let Some(object) = item.object.filter(|object| self.by_object.get(object) == Some(&no)) {
            self.by_object.remove(&object);
        }
        Some(item)
    }

    /// A message is no longer held: its receipt.
    pub fn forget(&mut self, key: &MessageKey) -> Option<String> {
        let held = self.messages.remove(key)?;
        if let Some(load) = self.load.get_mut(&key.queue) {
            (load.messages, load.bytes) = (load.messages - 1, load.bytes - held.weight);
        }
        Some(held.receipt)
    }

    /// The good receipt of a held message.
    pub fn receipt(&self, key: &MessageKey) -> Option<String> {
        self.messages.get(key).map(|held| held.receipt.clone())
    }

    /// Every message that is held.
    pub fn held(&self) -> Vec<MessageKey> {
        self.messages.keys().cloned().collect()
    }

    /// When a message's lease is to be extended. One that has ended is worth a try: the message may not have
    /// been given to anyone else yet, and only the queue knows.
    pub fn due(&self, key: &MessageKey, now: Instant) -> Due {
        match self.messages.get(key) {
            Some(held) if held.lost => Due::Never,
            Some(held) if held.lease.extend_at > now => Due::At(held.lease.extend_at),
            Some(held) => Due::Now(held.receipt.clone()),
            None => Due::Never,
        }
    }

    pub fn extended(&mut self, key: &MessageKey, receipt: &str, lease: Lease) {
        if let Some(held) = self.messages.get_mut(key).filter(|held| held.receipt == receipt) {
            held.lease = lease;
        }
    }

    /// A receipt was refused: its lease has ended. True, if that was not known.
    pub fn lost(&mut self, key: &MessageKey, receipt: &str) -> bool {
        let held = self.messages.get_mut(key).filter(|held| held.receipt == receipt && !held.lost);
        held.map(|held| held.lost = true).is_some()
    }

    /// A queue's messages that are complete, and not deleted yet.
    pub fn complete(&self, queue: usize) -> Vec<MessageKey> {
        self.messages
            .iter()
            .filter(|(key, held)| key.queue == queue && held.waiting == 0)
            .map(|(key, _)| key.clone())
            .collect()
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether a message is complete, and not deleted yet.
    pub fn any_complete(&self) -> bool {
        self.messages.values().any(|held| held.waiting == 0)
    }

    /// Whether no message is held.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How much is held of each queue that something was ever held of.
    pub fn load(&self) -> &BTreeMap<usize, Load> {
        &self.load
    }

    /// When the oldest message was sent that has not landed, in microseconds since the epoch.
    pub fn oldest(&self) -> Option<i64> {
        self.messages.values().filter(|held| held.waiting > 0).map(|held| held.sent).min()
    }
}

impl Held {
    /// One thing less to wait for. True: it was the last.
    fn tick(&mut self) -> bool {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting == 0
    }
}
