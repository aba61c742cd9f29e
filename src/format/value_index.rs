//! A file's index of addresses and hosts: their sorted values, each with the row groups that contain it. In a
//! few kilobytes it tells what a bloom filter can't: whether a file has anything in a network or below a
//! domain.
//!
//! It is stored in the Parquet file itself, between the pages and the footer, where other readers skip it;
//! the footer's key-value metadata give its position. So it is written, moved and removed with its file.
//! ```text
//! blocks:     entries in order: shared-prefix length (times two, plus one if the row groups are those of the
//!             entry before), suffix length, suffix, and unless they are the same, bits of the row groups
//! directory:  for each block: length of its first key, that key, length of the block
//! ```
//!
//! All lengths and bits are LEB128. A key is an address as 16 bytes (IPv4 as mapped into IPv6), or a host's
//! bytes from the last to the first: so that a network, and all below a domain, are one range.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use arrow::array::{Array as _, AsArray as _};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::schema::Standard;
use crate::table::TableSpec;

/// Where the footer tells of it.
pub const METADATA_KEY: &str = "flarelake.lookup";
/// A reader of one value reads one of these.
const BLOCK_BYTES: usize = 4 << 10;
/// Row groups that the bits have room for; what stands in later ones is counted to the last.
const MOST_GROUPS: usize = 64;
/// The lists that are indexed. Trace ids are as good as random: an index would be as large as the list
/// itself.
const INDEXED: [Standard; 2] = [Standard::AnyIpAddresses, Standard::AnyDomainNames];

/// Where one list's index stands in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexPlace {
    pub column: String,
    /// The first byte of the blocks.
    pub blocks: u64,
    /// The first byte of the directory, where the blocks end.
    pub directory: u64,
    /// Where the directory ends.
    pub end: u64,
}

pub fn address_key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .octets()
}

pub fn host_key(host: &str) -> Vec<u8> {
    host.bytes().rev().collect()
}

/// What one list's values may take while they are collected: anyone who sends requests chooses them. Room for
/// some 450,000 addresses; a list that needs more has no index, and is read itself.
pub const MOST_BYTES: usize = 16 << 20;
/// What a block of the heap takes beside its bytes.
const ALLOCATION: usize = 16;

/// The values of one list so far, with the row groups of each.
#[derive(Debug)]
enum Values {
    Addresses(HashMap<[u8; 16], u64>),
    Hosts(HashMap<Box<str>, u64>),
    /// There is something in it that can't be indexed, or too much.
    GivenUp,
}

impl Values {
    fn of(list: Standard) -> Self {
        match list {
            Standard::AnyIpAddresses => Self::Addresses(HashMap::new()),
            _ => Self::Hosts(HashMap::new()),
        }
    }

    /// Takes note of a value; how many bytes of the heap its own text takes. None: it can't be indexed.
    fn add(&mut self, value: &str, bit: u64) -> Option<usize> {
        match self {
            Self::Addresses(seen) => {
                *seen.entry(address_key(value.parse().ok()?)).or_default() |= bit;
                Some(0)
            }
            Self::Hosts(seen) => {
                if let Some(bits) = seen.get_mut(value) {
                    *bits |= bit;
                    return Some(0);
                }
                seen.insert(value.into(), bit);
                Some(value.len() + ALLOCATION)
            }
            Self::GivenUp => Some(0),
        }
    }

    /// What its table takes: an eighth of it is left free, and each place has a byte beside it.
    fn table_bytes(&self) -> usize {
        let (capacity, place) = match self {
            Self::Addresses(seen) => (seen.capacity(), size_of::<([u8; 16], u64)>()),
            Self::Hosts(seen) => (seen.capacity(), size_of::<(Box<str>, u64)>()),
            Self::GivenUp => (0, 0),
        };
        capacity / 7 * 8 * (place + 1)
    }

    /// The keys in order. Texts are turned round where they are: nothing is held twice.
    fn sorted(self) -> Vec<(Key, u64)> {
        let mut keys: Vec<(Key, u64)> = match self {
            Self::Addresses(seen) => seen.into_iter().map(|(key, bits)| (Key::Address(key), bits)).collect(),
            Self::Hosts(seen) => {
                let turned = |host: Box<str>| {
                    let mut bytes = Box::<[u8]>::from(host);
                    bytes.reverse();
                    bytes
                };
                seen.into_iter().map(|(host, bits)| (Key::Host(turned(host)), bits)).collect()
            }
            Self::GivenUp => Vec::new(),
        };
        keys.sort_unstable_by(|a, b| a.0.bytes().cmp(b.0.bytes()));
        keys
    }
}

#[derive(Debug)]
enum Key {
    Address([u8; 16]),
    Host(Box<[u8]>),
}

impl Key {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Address(bytes) => bytes,
            Self::Host(bytes) => bytes,
        }
    }
}

/// One list's values, and what they take.
#[derive(Debug)]
struct Collected {
    list: Standard,
    values: Values,
    /// Of the texts themselves.
    text_bytes: usize,
}

impl Collected {
    fn held_bytes(&self) -> usize {
        self.text_bytes + self.values.table_bytes()
    }

    fn give_up(&mut self) {
        (self.values, self.text_bytes) = (Values::GivenUp, 0);
    }

    fn add(&mut self, value: &str, bit: u64) {
        match self.values.add(value, bit) {
            Some(bytes) => {
                self.text_bytes += bytes;
                if self.held_bytes() > MOST_BYTES {
                    self.give_up();
                }
            }
            None => self.give_up(),
        }
    }
}

/// Collects the values of a file that is being written, up to [`MOST_BYTES`] a list.
#[derive(Debug)]
pub struct ValueIndexBuilder {
    lists: Vec<Collected>,
}

impl ValueIndexBuilder {
    /// A builder for a file of this table.
    pub fn new(spec: &TableSpec) -> Self {
        let has = |list: &Standard| spec.bloom_columns.iter().any(|column| column == list.name());
        let collected = |list| Collected { list, values: Values::of(list), text_bytes: 0 };
        Self { lists: INDEXED.into_iter().filter(has).map(collected).collect() }
    }

    /// Bytes of memory that the values take so far.
    pub fn held_bytes(&self) -> usize {
        self.lists.iter().map(Collected::held_bytes).sum()
    }

    /// Takes note of rows that are written into a row group.
    pub fn add(&mut self, rows: &RecordBatch, group: usize) {
        let bit = 1_u64 << group.min(MOST_GROUPS - 1);
        for collected in &mut self.lists {
            let name = collected.list.name();
            let Some(column) = rows.column_by_name(name).and_then(|c| c.as_list_opt::<i32>()) else {
                continue;
            };
            let offsets = column.value_offsets();
            let held =
                column.values().slice(offsets[0] as usize, (offsets[column.len()] - offsets[0]) as usize);
            // Nothing is below no host.
            for value in held.as_string_view().iter().flatten().filter(|value| !value.is_empty()) {
                collected.add(value, bit);
            }
        }
    }

    /// The indexes' bytes, which are to stand at `at` in the file, and where each is there. A list whose
    /// index would take more than `most` bytes has none: that is how many its reader would save.
    pub fn finish(self, at: u64, most: usize) -> (Vec<u8>, Vec<IndexPlace>) {
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for Collected { list, values, .. } in self.lists {
            let begun = bytes.len();
            let sorted = values.sorted();
            let Some(directory) = encode(&sorted, &mut bytes, most).filter(|_| !sorted.is_empty()) else {
                bytes.truncate(begun);
                continue;
            };
            let (blocks, middle) = (at + begun as u64, at + bytes.len() as u64);
            bytes.extend(&directory);
            places.push(IndexPlace {
                column: list.name().to_owned(),
                blocks,
                directory: middle,
                end: at + bytes.len() as u64,
            });
        }
        (bytes, places)
    }
}

/// Appends the blocks to `blocks`, and gives the directory; none if both together take more than `most`
/// bytes.
fn encode(sorted: &[(Key, u64)], blocks: &mut Vec<u8>, most: usize) -> Option<Vec<u8>> {
    let start = blocks.len();
    let mut directory = Vec::new();
    let (mut begun, mut last, mut last_bits): (usize, &[u8], u64) = (start, &[], 0);
    for (key, bits) in sorted {
        let key = key.bytes();
        let is_full = blocks.len() - begun >= BLOCK_BYTES;
        if is_full {
            put(&mut directory, (blocks.len() - begun) as u64);
            begun = blocks.len();
        }
        if is_full || last.is_empty() {
            put(&mut directory, key.len() as u64);
            directory.extend(key);
            (last, last_bits) = (&[], 0);
        }
        let shared = last.iter().zip(key).take_while(|(a, b)| a == b).count();
        let same = *bits == last_bits;
        put(blocks, (shared as u64) << 1 | u64::from(same));
        put(blocks, (key.len() - shared) as u64);
        blocks.extend(&key[shared..]);
        if !same {
            put(blocks, *bits);
        }
        if blocks.len() - start + directory.len() > most {
            return None;
        }
        (last, last_bits) = (key, *bits);
    }
    put(&mut directory, (blocks.len() - begun) as u64);
    (blocks.len() - start + directory.len() <= most).then_some(directory)
}

/// Where the blocks are, from the first block on, that may hold keys of a range; none if no block may. An
/// error: these bytes are no directory.
pub fn blocks_of(directory: &[u8], keys: &RangeInclusive<Vec<u8>>) -> Result<Option<Range<u64>>, Malformed> {
    let mut at = directory;
    let mut blocks: Vec<(&[u8], u64)> = Vec::new();
    while !at.is_empty() {
        let length = take_number(&mut at)?;
        let first = take_bytes(&mut at, length)?;
        blocks.push((first, take_number(&mut at)?));
    }
    // The block before the first that begins beyond the range's start may reach into the range.
    let from = blocks.partition_point(|(first, _)| *first <= keys.start().as_slice()).saturating_sub(1);
    let to = blocks.partition_point(|(first, _)| *first <= keys.end().as_slice());
    if from >= to {
        return Ok(None);
    }
    let length = |blocks: &[(&[u8], u64)]| blocks.iter().map(|(_, length)| length).sum::<u64>();
    let start = length(&blocks[..from]);
    Ok(Some(start..start + length(&blocks[from..to])))
}

/// The row groups, as bits, in which the wanted keys stand, by blocks that were read. An error: these bytes
/// are no blocks.
pub fn groups_of(blocks: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Result<u64, Malformed> {
    let (mut at, mut key, mut bits, mut groups) = (blocks, Vec::new(), 0, 0);
    while !at.is_empty() {
        let shared = take_number(&mut at)?;
        let length = take_number(&mut at)?;
        key.truncate(usize::try_from(shared >> 1).map_err(|_| Malformed)?);
        key.extend(take_bytes(&mut at, length)?);
        if shared & 1 == 0 {
            bits = take_number(&mut at)?;
        }
        if wanted(&key) {
            groups |= bits;
        }
    }
    Ok(groups)
}

/// Whether a row group is among the bits.
pub fn is_among(groups: u64, group: usize) -> bool {
    groups & (1 << group.min(MOST_GROUPS - 1)) != 0
}

/// Bytes that are no index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the file's value index is malformed")]
pub struct Malformed;

fn put(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(from: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or(Malformed)?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

fn take_bytes<'a>(from: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let (taken, rest) =
        from.split_at_checked(usize::try_from(length).map_err(|_| Malformed)?).ok_or(Malformed)?;
    *from = rest;
    Ok(taken)
}

/// The keys of a network, given its first and last address.
pub fn network_keys(first: IpAddr, last: IpAddr) -> RangeInclusive<Vec<u8>> {
    address_key(first).to_vec()..=address_key(last).to_vec()
}

/// The keys of a domain and of all below it. Hosts such as `my-example.com` are among them.
pub fn domain_keys(domain: &str) -> RangeInclusive<Vec<u8>> {
    let key = host_key(domain);
    // What follows the period in the order of bytes, and stands in no host.
    let beyond = [key.as_slice(), b"/"].concat();
    key..=beyond
}
