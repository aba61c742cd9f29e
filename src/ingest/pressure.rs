//! When batches must flush: something waits for them to land, or no more input comes.

use tokio::sync::watch;

/// What keeps batches from growing further.
#[derive(Debug)]
pub struct Pressure(watch::Sender<PressureState>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PressureState {
    /// Goes up when whatever is held should land now.
    pub hurries: u64,
    /// Those who wait until something of a feed has landed, by the feed's number.
    pub waiting: Vec<usize>,
    /// Stages that may still bring something.
    pub busy: usize,
}

/// Someone waits until something of a feed has landed, until this is dropped.
pub struct Waiting<'a> {
    pressure: &'a Pressure,
    feed: usize,
}

/// A stage brings nothing as long as this lasts.
pub struct Idle<'a>(&'a Pressure);

impl Waiting<'_> {
    /// To the end of the run.
    pub fn for_good(self) {
        std::mem::forget(self);
    }
}

impl Idle<'_> {
    /// Nor will it, ever.
    pub fn for_good(self) {
        std::mem::forget(self);
    }
}

impl Pressure {
    /// For so many feeds, each with a stage that brings something.
    pub fn new(feeds: usize) -> Self {
        Self(watch::Sender::new(PressureState { hurries: 0, waiting: vec![0; feeds], busy: feeds }))
    }

    /// How it is, and whenever that changes.
    pub(super) fn watch(&self) -> watch::Receiver<PressureState> {
        self.0.subscribe()
    }

    /// Whatever is held should land now.
    pub fn hurry(&self) {
        self.0.send_modify(|state| state.hurries += 1);
    }

    /// Nothing more comes of a feed before something of it has landed.
    pub fn wait(&self, feed: usize) -> Waiting<'_> {
        self.0.send_modify(|state| state.waiting[feed] += 1);
        Waiting { pressure: self, feed }
    }

    /// A stage has nothing more to bring. When that is so of all, whatever is held should land.
    pub fn idle(&self) -> Idle<'_> {
        self.0.send_modify(|state| state.busy -= 1);
        Idle(self)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pressure.0.send_modify(|state| state.waiting[self.feed] -= 1);
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.busy += 1);
    }
}
