//! When batches must flush: something waits for them to land, or no more input comes.

use tokio::sync::watch;

/// What keeps batches from growing further.
#[derive(Debug)]
pub struct Pressure(watch::Sender<PressureState>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PressureState {
    /// Goes up when whatever is held should land now.
    pub hurries: u64,
    /// Those who wait until something has landed.
    pub waiting: usize,
    /// Stages that may still bring something.
    pub busy: usize,
}

/// Someone waits until something has landed, until this is dropped.
pub struct Waiting<'a>(&'a Pressure);

/// A stage brings nothing as long as this lasts.
pub struct Idle<'a>(&'a Pressure);

impl Idle<'_> {
    /// Nor will it, ever.
    pub fn for_good(self) {
        std::mem::forget(self);
    }
}

impl Pressure {
    /// With so many stages that bring something.
    pub fn new(stages: usize) -> Self {
        Self(watch::Sender::new(PressureState { busy: stages, ..PressureState::default() }))
    }

    /// How it is, and whenever that changes.
    pub(super) fn watch(&self) -> watch::Receiver<PressureState> {
        self.0.subscribe()
    }

    /// Whatever is held should land now.
    pub fn hurry(&self) {
        self.0.send_modify(|state| state.hurries += 1);
    }

    /// Nothing more comes before something has landed.
    pub fn wait(&self) -> Waiting<'_> {
        self.0.send_modify(|state| state.waiting += 1);
        Waiting(self)
    }

    /// A stage has nothing more to bring. When that is so of all, whatever is held should land.
    pub fn idle(&self) -> Idle<'_> {
        self.0.send_modify(|state| state.busy -= 1);
        Idle(self)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.waiting -= 1);
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.busy += 1);
    }
}
