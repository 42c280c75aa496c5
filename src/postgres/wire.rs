//! Microseconds as `timestamptz`, without a calendar library in between; and what a position has passed, as its columns have it.

use bytes::{BufMut, BytesMut};
use postgres_types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::core::event::Micros;
use crate::core::position::Passed;

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's own epoch.
const EPOCH: i64 = 946_684_800_000_000;

/// A moment, as `timestamptz` travels in binary form. `i64::MIN`/`MAX` are the infinities on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub Micros);

impl Moment {
    /// The binary form's number: microseconds from 2000-01-01.
    pub fn wire(self) -> i64 {
        match self.0 {
            i64::MIN | i64::MAX => self.0,
            at => at.saturating_sub(EPOCH),
        }
    }
}

impl ToSql for Moment {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i64(self.wire());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let wire = i64::from_be_bytes(raw.try_into()?);
        Ok(Moment(match wire {
            i64::MIN | i64::MAX => wire,
            at => at.saturating_add(EPOCH),
        }))
    }

    accepts!(TIMESTAMPTZ);
}

/// What was passed, as `source_at` and `source_lsn`; none where nothing was.
pub fn passed_out(passed: Passed) -> Option<(Moment, i64)> {
    (passed.ts != 0).then_some((Moment(passed.ts), passed.lsn as i64))
}

/// The same, read back.
pub fn passed_in(source_at: Option<Moment>, source_lsn: Option<i64>) -> Passed {
    Passed { ts: source_at.map_or(0, |at| at.0), lsn: source_lsn.unwrap_or(0) as u64 }
}
