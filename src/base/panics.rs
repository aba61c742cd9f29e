//! Contains panics: the task that panicked is restarted, or the panic is reported. Nobody waits for a task
//! that is gone.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;

use super::clock;

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it said nothing".to_owned())
}

/// What `work` gives, or what the panic said in which it ended.
pub async fn caught<F: Future>(work: F) -> Result<F::Output, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| said(panic.as_ref()))
}

/// The same of code that blocks.
pub fn caught_here<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| said(panic.as_ref()))
}

/// Works to the end, however often it panics on the way: `panicked` is given what was said, and says when to
/// begin again. For tasks that hold nothing between two turns.
pub async fn to_the_end<F: Future>(
    mut work: impl FnMut() -> F,
    mut panicked: impl FnMut(String) -> Duration,
) -> F::Output {
    loop {
        match caught(work()).await {
            Ok(done) => return done,
            Err(said) => clock::sleep(panicked(said)).await,
        }
    }
}
