//! Standard input is cut into objects, and each is handed in when there is room for its bytes.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;

use crate::decode::decoder::RecordLimits;
use crate::decode::inflate::{InflateError, cause};
use crate::ingest::item::{Held, ItemKind};
use crate::ingest::pipeline::Entrance;
use crate::ingest::room::Room;
use crate::land::worker::Meter;
use crate::source::stdin::Pieces;

/// Cuts a stream, and hands in the pieces.
pub struct Cutter {
    /// Whose the records are.
    pub entrance: Entrance,
    /// Room for the pieces: while one is decoded the next is cut, and no more.
    pub room: Arc<Room>,
    /// Numbers that were given so far.
    pub numbers: Arc<AtomicU64>,
    pub records: RecordLimits,
    /// How much larger than what was read it may become inflated.
    pub max_ratio: u64,
    /// What a progress display reads.
    pub meter: Arc<Meter>,
}

impl Cutter {
    /// Until the stream's end, or until the run is stopped. Blocking: for a thread of its own, which may wait
    /// for input that never comes.
    pub fn run(self, input: impl Read + Send, runtime: &Handle) -> Result<(), InflateError> {
        let mut pieces = Pieces::new(input, self.records, self.max_ratio).map_err(cause)?;
        while let Some(piece) = pieces.next_piece()? {
            Meter::add(&self.meter.objects_total, 1);
            let room = runtime.block_on(self.room.take(self.entrance.feed().no, piece.bytes.len() as u64));
            let held =
                Held { object: piece.object, bytes: Some(piece.bytes), place: piece.place, room: Some(room) };
            let no = self.numbers.fetch_add(1, Ordering::Relaxed);
            if runtime.block_on(self.entrance.take_in(no, ItemKind::Held(held))).is_err() {
                break;
            }
        }
        Ok(())
    }
}
