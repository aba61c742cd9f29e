//! Cloudflare's datasets with their fields, as data (`schemas/datasets.tsv`), to guess the dataset of a
//! record that no log type matches.

use std::collections::HashMap;
use std::sync::LazyLock;

/// One of Cloudflare's datasets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dataset {
    /// As Logpush's API calls it: `gateway_http`.
    pub name: &'static str,
    /// As people call it: `Gateway HTTP`.
    pub title: &'static str,
    /// The field that holds the event's time.
    pub time: &'static str,
}

/// Sets of datasets are bits.
struct Datasets {
    all: Vec<Dataset>,
    by_time: HashMap<&'static str, u64>,
    by_field: HashMap<&'static str, u64>,
}

static DATASETS: LazyLock<Datasets> = LazyLock::new(|| {
    let mut datasets = Datasets { all: Vec::new(), by_time: HashMap::new(), by_field: HashMap::new() };
    for line in include_str!("../../schemas/datasets.tsv").lines().filter(|line| !line.starts_with('#')) {
        let mut cells = line.split('\t');
        let mut cell = || cells.next().unwrap_or_default();
        let dataset = Dataset { name: cell(), title: cell(), time: cell() };
        let bit = 1 << datasets.all.len();
        for field in cell().split(' ') {
            *datasets.by_field.entry(field).or_default() |= bit;
        }
        *datasets.by_time.entry(dataset.time).or_default() |= bit;
        datasets.all.push(dataset);
    }
    assert!(datasets.all.len() <= 64, "a set of datasets has 64 bits");
    datasets
});

/// The datasets that a record of these fields may be of: it has their time, and more of their fields than of
/// any other's.
pub fn likely<'a>(fields: impl Iterator<Item = &'a str> + Clone) -> Vec<Dataset> {
    let datasets = &*DATASETS;
    let of_time =
        fields.clone().filter_map(|field| datasets.by_time.get(field)).fold(0, |set, bits| set | bits);
    let mut counts = [0_u32; 64];
    for field in fields {
        let mut of_field = datasets.by_field.get(field).copied().unwrap_or(0) & of_time;
        while of_field != 0 {
            counts[of_field.trailing_zeros() as usize] += 1;
            of_field &= of_field - 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    let is_likely = |n: &usize| of_time & 1 << n != 0 && counts[*n] == most;
    (0..datasets.all.len()).filter(is_likely).map(|n| datasets.all[n]).collect()
}
