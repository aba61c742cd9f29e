//! What a listing finds is handed in, one object after the other, as the pipeline has room for it: so the
//! listing may be of any length.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, StreamExt as _};

use crate::ingest::item::ItemKind;
use crate::ingest::pipeline::Entrance;
use crate::ingest::settle::summary::Counting;
use crate::land::worker::Meter;
use crate::source::origin::{Origin, SourceError};

/// Hands in what a listing finds.
pub struct ListingIntake<'a> {
    /// By the sources' numbers.
    pub entrances: &'a [Entrance],
    /// The number of the source whose an object is.
    pub of: &'a (dyn Fn(&Origin) -> usize + Sync),
    /// Where what is not handed in is counted.
    pub counting: &'a Counting,
    /// Numbers that were given so far.
    pub numbers: &'a AtomicU64,
    /// What a progress display reads.
    pub meter: &'a Arc<Meter>,
}

impl ListingIntake<'_> {
    /// Until its end, or until the run is stopped: then what is left is not begun. An error of the listing
    /// itself ends it.
    pub async fn take_in(
        &self,
        listed: impl Stream<Item = Result<Origin, SourceError>>,
    ) -> Result<(), SourceError> {
        futures::pin_mut!(listed);
        let mut is_stopped = false;
        while let Some(found) = listed.next().await {
            let origin = match found {
                Ok(origin) => origin,
                Err(error) if error.costs_itself_only() => {
                    tracing::error!("{error}");
                    self.counting.count(|summary| summary.failed.push(error.to_string()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is_stopped {
                self.counting.count(|summary| summary.not_begun += 1);
                continue;
            }
            let size = origin.size();
            Meter::add(&self.meter.objects_total, 1);
            Meter::add(&self.meter.bytes_total, size);
            if origin.is_no_log() {
                self.counting.done(size, |summary| summary.skipped += 1);
                continue;
            }
            let no = self.numbers.fetch_add(1, Ordering::Relaxed);
            let entrance = &self.entrances[(self.of)(&origin)];
            if entrance.take_in(no, ItemKind::Listed(origin)).await.is_err() {
                is_stopped = true;
                self.counting.count(|summary| summary.not_begun += 1);
            }
        }
        Ok(())
    }
}
