//! The names of fields as numbers.

use std::collections::HashMap;

/// A field name's number: known names first, then those met in the data.
pub type KeyId = u16;

/// The number of every name that is not interned: not text, over-long, or beyond the 4096 that are kept.
pub const UNKNOWN_KEY: KeyId = KeyId::MAX;

/// How many names are interned at most; hostile input can't make the table grow beyond it.
pub const MAX_KEYS: usize = 4096;
const MAX_KEY_BYTES: usize = 256;

/// The names of fields, numbered, with the order in which they were last seen.
#[derive(Debug)]
pub struct Keys {
    pub(super) names: Vec<Box<[u8]>>,
    /// Hashed by a secret: whoever writes objects chooses names.
    numbers: HashMap<Box<[u8]>, KeyId>,
    /// `next[k]`: the field that last followed field `k`; index 0 stands for the record's beginning.
    pub(super) next: Vec<KeyId>,
}

impl Keys {
    /// A table that knows `names`; the n-th gets number n.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut keys = Self { names: Vec::new(), numbers: HashMap::new(), next: vec![UNKNOWN_KEY] };
        for name in names {
            keys.intern(name.as_bytes());
        }
        keys
    }

    /// The number of a name, which it gets if it has none.
    pub(super) fn intern(&mut self, name: &[u8]) -> KeyId {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        if self.names.len() >= MAX_KEYS || name.len() > MAX_KEY_BYTES {
            return UNKNOWN_KEY;
        }
        let number = self.names.len() as KeyId;
        self.names.push(name.into());
        self.numbers.insert(name.into(), number);
        self.next.push(UNKNOWN_KEY);
        number
    }

    /// The number of a known name.
    pub fn number(&self, name: &str) -> Option<KeyId> {
        self.numbers.get(name.as_bytes()).copied()
    }
}
