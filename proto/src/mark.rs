//! The mark of one position in the image store, as a plain value.

use prost::Message;

use crate::{MARK_FORMAT, WireError, check_format, v1};

/// Where a position's part of the image store stands, and in which life of the sink it was written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// `afterimage.meta.sink_id`: which database the records were committed to.
    pub sink_id: [u8; 16],
    /// `afterimage.position.position_id`.
    pub position_id: i32,
    /// Epoch of the claim under which it was written.
    pub epoch: i64,
    /// Token of that claim: tells two lives of one sink apart that both reached the epoch.
    pub token: [u8; 16],
    /// Next offset to read: the records contain every message below it.
    pub next: i64,
    /// Number of the last invalidation applied to the records.
    pub inval_seq: i64,
    /// Records with a greater `afterimage.record.rid` may be missing because nobody has put them in yet: a restore has
    /// come so far. `None`: it is done. A missing record is asked of the sink, so this is about speed alone.
    pub missing_after: Option<i32>,
}

impl Mark {
    /// Bytes for the store, with the form number.
    pub fn encode(&self) -> Vec<u8> {
        v1::Mark {
            format: MARK_FORMAT,
            sink_id: self.sink_id.to_vec(),
            position_id: self.position_id,
            epoch: self.epoch,
            token: self.token.to_vec(),
            next: self.next,
            inval_seq: self.inval_seq,
            missing_after: self.missing_after,
        }
        .encode_to_vec()
    }

    /// The mark in these bytes.
    ///
    /// # Errors
    /// [`WireError::Future`] for a later form; otherwise anything that [`Mark::encode`] can't have written.
    pub fn decode(bytes: &[u8]) -> Result<Mark, WireError> {
        const MESSAGE: &str = "mark";
        let mark = v1::Mark::decode(bytes).map_err(|source| WireError::Malformed { message: MESSAGE, source })?;
        check_format(MESSAGE, mark.format, MARK_FORMAT)?;
        let id = |bytes: &[u8], detail| bytes.try_into().map_err(|_| WireError::Damaged { message: MESSAGE, detail });
        Ok(Mark {
            sink_id: id(&mark.sink_id, "a sink id is 16 bytes")?,
            position_id: mark.position_id,
            epoch: mark.epoch,
            token: id(&mark.token, "a claim token is 16 bytes")?,
            next: mark.next,
            inval_seq: mark.inval_seq,
            missing_after: mark.missing_after,
        })
    }
}

/// Short, so that a failed assertion or a log line stays readable: `7@120 epoch 3/00ab… inval 2`.
impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mark { sink_id: [s0, s1, ..], token: [t0, t1, ..], position_id, epoch, next, inval_seq, missing_after } =
            self;
        write!(f, "{position_id}@{next} epoch {epoch}/{t0:02x}{t1:02x}… inval {inval_seq} sink {s0:02x}{s1:02x}…")?;
        missing_after.map_or(Ok(()), |rid| write!(f, " missing after {rid}"))
    }
}
