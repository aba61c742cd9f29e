//! One maintainer at a time, coordinated through the lake's store alone.
//!
//! A maintainer takes the lease by putting the next in a sequence of numbered entries, if absent: of two, one
//! wins. An entry names its holder and its expiry; the holder puts a new one before that, and others wait. A
//! dead holder delays them by half a minute at most, by the entry's expiry or, where clocks differ, by
//! observing that it stays the newest.
//!
//! The lease saves work; safety does not depend on it. A holder that slept past its expiry notices at its
//! next entry, and until then does no harm: merges commit only if their inputs are still there, vacuum
//! deletes only behind its fence, and readers look beyond a hint at an older checkpoint.

use std::time::Duration;

use object_store::path::Path;
use object_store::{Error, ObjectStore as _, ObjectStoreExt as _, PutMode};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::MaintainError;
use crate::base::Watch;
use crate::base::clock;
use crate::base::store::Store;

/// How long an entry holds, where nothing else is said.
pub const DEFAULT_TERM: Duration = Duration::from_secs(30);
/// Parts of a term after which the holder puts a new one.
const RENEWALS_PER_TERM: u32 = 3;
/// Parts of a term after which one who waits looks again.
const LOOKS_PER_TERM: u32 = 30;
/// The folder of the entries; readers of tables don't look into it.
const FOLDER: &str = "_lease";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LeaseEntry {
    holder: String,
    /// In milliseconds since the epoch; 0: it was given back.
    until_ms: i64,
}

impl LeaseEntry {
    fn of(holder: &str, now_micros: i64, term: Duration) -> Self {
        Self { holder: holder.to_owned(), until_ms: now_micros / 1000 + term.as_millis() as i64 }
    }
}

/// The row of entries in a lake.
#[derive(Clone)]
struct Entries(Store);

impl Entries {
    fn path(&self, number: u64) -> Path {
        self.0.root.clone().join(FOLDER).join(format!("{number:020}.json"))
    }

    fn failed(&self, doing: &'static str, source: Error) -> MaintainError {
        MaintainError::Store { doing, location: format!("{}{FOLDER}/", self.0.url), source }
    }

    /// The newest entry; none if there is none.
    async fn newest(&self) -> Result<Option<Newest>, MaintainError> {
        let listed = self.0.objects.list_with_delimiter(Some(&self.0.root.clone().join(FOLDER))).await;
        let listed = listed.map_err(|e| self.failed("listing the leases of maintainers", e))?;
        let number = |path: &Path| path.filename()?.strip_suffix(".json")?.parse::<u64>().ok();
        let numbered = listed
            .objects
            .iter()
            .filter_map(|meta| Some((number(&meta.location)?, meta.last_modified.timestamp_micros())));
        let Some((number, written)) = numbered.max() else { return Ok(None) };
        let newest = |entry| Ok(Some(Newest { number, written, entry }));
        match self.0.objects.get(&self.path(number)).await {
            Ok(found) => {
                let bytes =
                    found.bytes().await.map_err(|e| self.failed("reading the lease of a maintainer", e))?;
                // What can't be read holds nothing.
                newest(
                    serde_json::from_slice(&bytes)
                        .unwrap_or(LeaseEntry { holder: String::new(), until_ms: 0 }),
                )
            }
            // Its holder has put a newer one meanwhile: it is held.
            Err(Error::NotFound { .. }) => newest(LeaseEntry { holder: String::new(), until_ms: i64::MAX }),
            Err(e) => Err(self.failed("reading the lease of a maintainer", e)),
        }
    }

    /// Puts an entry, if its number is free. If it is ours and the newest: when the store says that it was
    /// put, in microseconds since the epoch.
    async fn put(&self, number: u64, entry: &LeaseEntry) -> Result<Option<i64>, MaintainError> {
        let bytes = serde_json::to_vec(entry).expect("plain data");
        match self.0.objects.put_opts(&self.path(number), bytes.into(), PutMode::Create.into()).await {
            // If it exists, perhaps by an earlier try of this very put; if it did not, perhaps because it was
            // removed long ago, and others hold by higher ones.
            Ok(_) | Err(Error::AlreadyExists { .. }) => {}
            Err(e) => return Err(self.failed("putting the lease of a maintainer", e)),
        }
        let is_ours = |newest: &Newest| newest.number == number && newest.entry.holder == entry.holder;
        Ok(self.newest().await?.filter(is_ours).map(|newest| newest.written))
    }

    /// Removes every entry below a number: those before it, and of holders that slept.
    async fn remove_below(&self, number: u64) {
        let listed = self.0.objects.list_with_delimiter(Some(&self.0.root.clone().join(FOLDER))).await;
        let last = self.path(number);
        for meta in listed.map(|listed| listed.objects).unwrap_or_default() {
            // They are only clutter; the next holder tries again.
            if meta.location < last
                && let Err(e) = self.0.objects.delete(&meta.location).await
            {
                tracing::debug!(entry = %meta.location, error = %e, "an old lease entry stays");
            }
        }
    }
}

/// The newest entry of the row.
struct Newest {
    number: u64,
    /// When the store says that it was put, in microseconds since the epoch.
    written: i64,
    entry: LeaseEntry,
}

/// A lease that is held until it is given back, or lost.
pub struct Lease {
    entries: Entries,
    holder: String,
    /// Cancelled when it is lost.
    pub lost: CancellationToken,
    /// When it was taken, by the store's time, in microseconds since the epoch.
    pub taken: i64,
    renewing: Option<JoinHandle<u64>>,
    give_back: CancellationToken,
}

impl Lease {
    /// Takes the lease. While someone else has it: waits until `stop`, or without one gives none.
    pub async fn take(
        store: &Store,
        holder: &str,
        term: Duration,
        stop: Option<&CancellationToken>,
    ) -> Result<Option<Self>, MaintainError> {
        let entries = Entries(store.clone());
        let mut watched: Option<(u64, Watch)> = None;
        let mut told = false;
        loop {
            let newest = entries.newest().await?;
            let (number, free) = match &newest {
                None => (0, true),
                Some(Newest { number, entry, .. }) => {
                    if watched.as_ref().is_none_or(|(last, _)| last != number) {
                        watched = Some((*number, store.clock.watch()));
                    }
                    let stays = watched.as_ref().is_some_and(|(_, since)| since.elapsed() > term);
                    // A time further off than a holder gives itself is of a clock that is wrong.
                    let now_ms = store.clock.now_micros() / 1000;
                    let is_over = entry.until_ms <= now_ms
                        || (now_ms + 10 * term.as_millis() as i64..i64::MAX).contains(&entry.until_ms);
                    (*number, stays || is_over)
                }
            };
            if free {
                let next = newest.as_ref().map_or(0, |_| number + 1);
                if let Some(taken) =
                    entries.put(next, &LeaseEntry::of(holder, store.clock.now_micros(), term)).await?
                {
                    entries.remove_below(next).await;
                    return Ok(Some(Self::held(entries, holder, term, (next, taken))));
                }
                continue;
            }
            if stop.is_none_or(CancellationToken::is_cancelled) {
                return Ok(None);
            }
            if !std::mem::replace(&mut told, true) {
                let holder = newest.map(|newest| newest.entry.holder).unwrap_or_default();
                tracing::info!(%holder, "waiting for another maintainer; at most {term:?} if it has died");
            }
            clock::sleep(term / LOOKS_PER_TERM).await;
        }
    }

    fn held(entries: Entries, holder: &str, term: Duration, (number, taken): (u64, i64)) -> Self {
        let (lost, give_back) = (CancellationToken::new(), CancellationToken::new());
        let renewing = tokio::spawn(renew(
            entries.clone(),
            holder.to_owned(),
            term,
            number,
            (lost.clone(), give_back.clone()),
        ));
        Self { entries, holder: holder.to_owned(), lost, taken, renewing: Some(renewing), give_back }
    }

    /// Gives it back, so that nobody has to wait.
    pub async fn give_back(mut self) {
        self.give_back.cancel();
        let Some(renewing) = self.renewing.take() else { return };
        let Ok(number) = renewing.await else { return };
        if self.lost.is_cancelled() {
            return;
        }
        let entry = LeaseEntry { holder: self.holder.clone(), until_ms: 0 };
        if matches!(self.entries.put(number + 1, &entry).await, Ok(Some(_))) {
            self.entries.remove_below(number + 1).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewing) = self.renewing.take() {
            renewing.abort();
        }
    }
}

/// Puts a new entry now and then, until it is lost or given back. The number of the last.
async fn renew(
    entries: Entries,
    holder: String,
    term: Duration,
    mut number: u64,
    (lost, give_back): (CancellationToken, CancellationToken),
) -> u64 {
    let clock = entries.0.clock.clone();
    let mut renewed = clock.watch();
    loop {
        tokio::select! {
            () = clock::sleep(term / RENEWALS_PER_TERM) => {}
            () = give_back.cancelled() => return number,
        }
        match entries.put(number + 1, &LeaseEntry::of(&holder, clock.now_micros(), term)).await {
            Ok(Some(_)) => {
                number += 1;
                entries.remove_below(number).await;
                renewed = clock.watch();
            }
            Ok(None) => {
                tracing::warn!("another maintainer has taken over; this one stops");
                lost.cancel();
                return number;
            }
            Err(error) if renewed.elapsed() > term => {
                tracing::warn!("{error}; the lease could not be renewed, so this maintainer stops");
                lost.cancel();
                return number;
            }
            Err(error) => tracing::warn!("{error}; trying again"),
        }
    }
}
