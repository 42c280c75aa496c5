//! Microseconds as `timestamptz`, without a calendar library in between.

use bytes::{BufMut, BytesMut};
use postgres_types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::core::event::Micros;

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
