//! Handles failures of an item: it is retried, or settled.

use std::time::Duration;

use tokio::sync::mpsc;

use super::attempts::{Failed, MAX_CHANGED, MAX_NOT_FOUND, Next, is_refusal};
use super::ending::IngestError;
use super::feed::Feeds;
use super::item::{Item, ItemKind, Outcome};
use super::metrics::Metrics;
use crate::base::failure::{Failure, FailureKind};
use crate::base::{clock, jittered};
use crate::table::Lake;

/// Sets an item on its way again. If nothing is fetched any more, it ends here.
pub(super) fn try_again(item: Item, after: Duration) {
    let again = item.again.clone();
    if let Err(mpsc::error::SendError((item, _))) = again.send((item, jittered(after))) {
        item.settle(Outcome::NotBegun);
    }
}

/// An object had landed before. It is settled when the tables that it touches are at the ledger's version:
/// whoever landed it may have died in between.
pub(super) async fn already_there(mut item: Item, lake: Option<&Lake>, feeds: &Feeds, metrics: &Metrics) {
    let projected = match lake {
        Some(lake) => lake.project_all().await,
        None => Ok(()),
    };
    match projected {
        Ok(()) => {
            metrics.duplicates.inc();
            item.settle(Outcome::AlreadyThere);
        }
        Err(error) => {
            let read = item.feed.last_read();
            match item.attempts.next(Failed::Lake, clock::now(), read, feeds.outlast_outages()) {
                Next::Again(after) => {
                    tracing::warn!("{error}; trying again");
                    try_again(item, after);
                }
                Next::Missing | Next::GiveUp => item.settle(Outcome::GivenUp(&error.to_string())),
            }
        }
    }
}

/// An object can't be read: it is set on its way again, or given up, and perhaps its source with it.
/// Otherwise it is not there, and the item comes back, with the reason.
pub(super) fn read_failed(
    mut item: Item,
    location: &str,
    failure: &Failure,
    feeds: &Feeds,
) -> Option<(Item, String)> {
    let feed = item.feed.clone();
    let failed = Failed::reading(failure);
    let is_refused = matches!(failed, Failed::Read(kind) if is_refusal(kind));
    let advice = advice(failure.kind);
    let why = match failed {
        Failed::Changed => format!(
            "{location}: it changed while it was read, {MAX_CHANGED} times: nothing of it landed; run it again when its writer is done with it"
        ),
        _ => format!("{location}: can't be read: {failure}; {advice}"),
    };
    let next = item.attempts.next(failed, clock::now(), feed.last_read(), feeds.outlast_outages());
    if let Failed::Read(_) = failed {
        tracing::warn!(source = feed.id(), failures = item.attempts.failures(), "{why}");
        feeds.read_failed(&feed, item.kind.bucket(), is_refused, &why);
    }
    let gives_up = match next {
        Next::Missing => {
            let how = if matches!(item.kind, ItemKind::Announced(_)) { "announced" } else { "listed" };
            return Some((item, format!("{how}, but not there at {MAX_NOT_FOUND} tries: {failure}")));
        }
        Next::GiveUp => true,
        // What all others are refused for is not asked for again and again.
        Next::Again(_) => is_refused && feed.is_refused() && !feeds.outlast_outages(),
    };
    match next {
        Next::Again(after) if !gives_up => {
            if failed == Failed::Changed {
                tracing::info!("{location}: it changed while it was read: it is read again");
            }
            try_again(item, after);
        }
        _ => {
            item.settle(Outcome::GivenUp(&why));
            if is_refused {
                let (location, message) = (location.to_owned(), failure.to_string());
                let source_id = feed.id().to_owned();
                let error = IngestError::Source { source_id, location, message, advice };
                feeds.object_refused(&feed, item.kind.bucket(), error);
            }
        }
    }
    None
}

fn advice(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Denied => {
            "allow s3:GetObject (and kms:Decrypt, for keys of KMS) on it to the role that reads this source"
        }
        FailureKind::NotFound => "check the bucket's name, its region and its endpoint",
        FailureKind::Unreadable => {
            "restore it if it is archived; what is encrypted with a key that the reader has to bring can't be read"
        }
        FailureKind::Wrong => "check the source's region and endpoint",
        _ => "the store, or the way to it, is at fault",
    }
}

/// A panic over one item: it alone is given up.
pub(super) fn item_panicked(item: &Item, said: &str, metrics: &Metrics) {
    metrics.panics.inc();
    let location = item.kind.location();
    item.settle(Outcome::GivenUp(&format!(
        "{location}: this program panicked over it: {said}; please report this"
    )));
}
