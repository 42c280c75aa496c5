//! The image store of one process: opaque bytes, and one mark per position, written atomically.
//!
//! What is seen after [`Store::open`] is the result of whole committed batches and the marks that belong to
//! them, never a mix. It may be an *older* pair than the last one committed (only after the machine itself
//! went down), which the mark then says. What a mark is worth is for the reader to decide; this crate knows
//! neither Kafka nor Postgres nor what the bytes mean, and nothing in it is async.
//!
//! ```
//! use afterimage_state::{Mark, PositionId, RecordKey, StateOptions, Store, WriteBatch};
//!
//! let dir = tempfile::tempdir()?;
//! let store = Store::open(dir.path(), &StateOptions::default())?;
//! let key = RecordKey::image(PositionId(7), 1, b"0011x000003DHPxAAO");
//! let mut batch = WriteBatch::new();
//! batch.put(&key, b"an image");
//! batch.mark(Mark { sink_id: [1; 16], position_id: 7, epoch: 1, token: [2; 16], next: 300, inval_seq: 0, missing_after: None });
//! store.commit(batch)?;
//! assert_eq!(store.multi_get(&[key])?, [Some(b"an image".to_vec())]);
//! assert_eq!(store.mark(PositionId(7))?.map(|mark| mark.next), Some(300));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod directory;
mod error;
mod layout;
mod options;
mod room;
mod store;

pub use afterimage_proto::Mark;
pub use batch::WriteBatch;
pub use directory::wipe;
pub use error::StateError;
pub use layout::{FORMAT, PositionId, RecordKey};
pub use options::StateOptions;
pub use room::{check_room, free};
pub use store::{Contents, Stats, Store};
