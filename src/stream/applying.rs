//! Committed batches go into the image store beside the topic's thread, which judges on meanwhile.
//!
//! One at a time, and never two out of order. Until a batch is in the store its records stand in the overlay, so nobody
//! asks the store for them; whoever else touches the store, forgets the overlay or lets partitions go waits for it first.

use std::sync::Arc;

use afterimage_state::Mark;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::images::Images;
use crate::core::batch::SealedBatch;

/// A batch on its way into the image store.
pub struct Applying {
    number: u64,
    answer: oneshot::Receiver<Result<bool, String>>,
}

impl Applying {
    /// Begins. The batch is let go of there too: freeing its rows takes as long as writing them.
    pub fn start(runtime: &Handle, images: &Images, batch: Arc<SealedBatch>, marks: Vec<Mark>) -> Applying {
        let (tell, answer) = oneshot::channel();
        let (number, images) = (batch.number, images.clone());
        runtime.spawn_blocking(move || {
            failpoint!("store.batched");
            let applied = images.apply(batch.object_id, &batch.records, &[], marks);
            failpoint!("store.written");
            let _ = tell.send(applied.map_err(|error| error.to_string()));
            // The store is closed by who holds it last, which must not be this.
            drop(images);
            drop(batch);
        });
        Applying { number, answer }
    }

    /// Which batch.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is there by now; `Ok(false)`: it never will be, see [`Images::apply`].
    pub fn poll(&mut self) -> Option<Result<bool, String>> {
        match self.answer.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(GONE.into())),
        }
    }

    /// Waits until it is there. It takes as long as a write to the local disk.
    pub fn wait(self, runtime: &Handle) -> Result<bool, String> {
        runtime.block_on(self.answer).unwrap_or_else(|_| Err(GONE.into()))
    }
}

const GONE: &str = "writing it was given up";
