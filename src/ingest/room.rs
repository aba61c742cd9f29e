//! The byte budget for fetched objects. Half of it is divided among the sources, so that none can take it
//! all; the other half goes to whoever comes first.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::clock;

/// How long an object waits for room that all feeds have in common.
const PATIENCE: Duration = Duration::from_secs(5);
/// What permits count.
const KIB: u64 = 1 << 10;

#[derive(Debug)]
pub struct Room {
    shares: Vec<Arc<Semaphore>>,
    /// What one share is, in KiB.
    share: u32,
    common: Arc<Semaphore>,
    /// In KiB.
    common_size: u32,
}

/// A part of the room, until it is dropped. Copies share it.
#[derive(Debug, Clone)]
pub struct Taken(#[expect(dead_code, reason = "it is held")] Arc<OwnedSemaphorePermit>);

impl Room {
    /// So many bytes for so many feeds. One has all of it.
    pub fn new(bytes: usize, feeds: usize) -> Self {
        let kib = (bytes as u64 / KIB).clamp(2, u64::from(u32::MAX >> 4)) as u32;
        let share = if feeds > 1 { kib / 2 / feeds as u32 } else { 0 };
        let common_size = kib - share * feeds as u32;
        let shares = (0..feeds).map(|_| Arc::new(Semaphore::new(share as usize))).collect();
        Self { shares, share, common: Arc::new(Semaphore::new(common_size as usize)), common_size }
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        u64::from(self.share * self.shares.len() as u32 + self.common_size) * KIB
    }

    /// Waits for room for as many bytes as there is patience for: all of them, or a feed's own share of it,
    /// which no other feed takes. How many bytes were taken.
    pub async fn take_patiently(&self, feed: usize, bytes: u64) -> (Taken, u64) {
        let taking = self.take(feed, bytes);
        let share = u64::from(self.share) * KIB;
        if share == 0 || bytes <= share {
            return (taking.await, bytes);
        }
        match clock::timeout(PATIENCE, taking).await {
            Ok(taken) => (taken, bytes),
            Err(_) => (self.take(feed, share).await, share),
        }
    }

    /// Waits for room; more than there is takes all that is common.
    pub async fn take(&self, feed: usize, bytes: u64) -> Taken {
        let kib = bytes.div_ceil(KIB).clamp(1, u64::from(self.common_size)) as u32;
        let common = self.common.clone().acquire_many_owned(kib);
        let permit = match self.shares.get(feed).filter(|_| kib <= self.share) {
            Some(own) => tokio::select! {
                biased;
                permit = own.clone().acquire_many_owned(kib) => permit,
                permit = common => permit,
            },
            None => common.await,
        };
        Taken(Arc::new(permit.expect("it is never closed")))
    }
}
