//! A dedicated thread for one worker's blocking steps.

use std::sync::mpsc;
use std::thread;

use tokio::runtime::Handle;

type Step = Box<dyn FnOnce() + Send>;

/// Runs steps one after the other, always on the same thread: what they allocate and free stays in one heap.
/// On the runtime's pool of threads memory grew with each thread that a worker came by.
pub(super) struct OwnThread(mpsc::Sender<Step>);

impl OwnThread {
    /// A thread that ends when this is dropped. The steps may use the runtime.
    ///
    /// # Panics
    /// If the system gives no thread.
    pub fn new(runtime: Handle) -> Self {
        let (steps, to_run) = mpsc::channel::<Step>();
        let work = move || {
            let _within = runtime.enter();
            to_run.into_iter().for_each(|step| step());
        };
        thread::Builder::new().name("worker".into()).spawn(work).expect("the system gives a thread");
        Self(steps)
    }

    /// Runs a step. It must not panic.
    pub async fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let step: Step = Box::new(move || drop(done.send(step())));
        self.0.send(step).expect("the thread is there as long as this is");
        // To the runtime this is blocking work: a clock that is paused does not run ahead of it.
        let waiting = tokio::task::spawn_blocking(move || result.recv());
        waiting.await.expect("it only waits").expect("a step does not panic")
    }
}
