//! What of a record rests on rows that left no version.
//!
//! A late event is placed before the event that moved its record, and keeps its say on every field that nothing behind it
//! shows (see [`super::judge::splice`]). Rows that change nothing leave no trace, so it has to be known here which of them
//! were the first to show a field since the move: those are kept whole, as the move is.

use super::event::FieldNo;
use super::image::Image;
use super::value::{Value, ValueRef};

/// Fields of a record, by number: one that the image knows, and no row has shown since the record moved; or, with its sign
/// changed, one that the image lacks, and a row has shown empty since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unshown(Box<[FieldNo]>);

impl Unshown {
    /// After a row that moved the record. `image` is as it was before that row.
    pub fn after(image: &Image, row: &[(FieldNo, Value)]) -> Self {
        let hidden = image.fields().filter(|(no, value)| is_known(*value) && !shows(row, *no)).map(|(no, _)| no);
        let empty = row.iter().filter(|(no, value)| *value == Value::Null && image.get(*no).is_none());
        Unshown(hidden.chain(empty.map(|(no, _)| -no)).collect())
    }

    /// Whether a row showed this field empty before, which the image lacks.
    pub fn knows_empty(&self, no: FieldNo) -> bool {
        self.0.contains(&-no)
    }

    /// After a row in its turn that showed fields empty which nothing had told of; `None` if it was the first to show nothing.
    pub fn seen(&self, row: &[(FieldNo, Value)], empty: &[FieldNo]) -> Option<Self> {
        if empty.is_empty() && !self.0.iter().any(|no| shows(row, *no)) {
            return None;
        }
        Some(Unshown(self.0.iter().copied().filter(|no| !shows(row, *no)).chain(empty.iter().map(|no| -no)).collect()))
    }

    /// After a splice: all that this row, the last one that was kept, did not show. What was shown empty stays so while the
    /// image lacks it.
    pub fn after_splice(&self, image: &Image, row: &[(FieldNo, Value)]) -> Self {
        let mut after = Unshown::after(image, row).0.into_vec();
        after.retain(|no| *no > 0);
        after.extend(self.0.iter().filter(|no| **no < 0 && image.get(-**no).is_none()));
        Unshown(after.into())
    }

    /// As it is stored: two bytes a field; none is nothing.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        (!self.0.is_empty()).then(|| self.0.iter().flat_map(|no| no.to_be_bytes()).collect())
    }

    /// What [`Unshown::to_bytes`] gave.
    pub fn from_bytes(bytes: Option<&[u8]>) -> Self {
        let (fields, _) = bytes.unwrap_or_default().as_chunks::<2>();
        Unshown(fields.iter().map(|no| FieldNo::from_be_bytes(*no)).collect())
    }
}

/// Whether the row has the field, and not as one that was not touched.
fn shows(row: &[(FieldNo, Value)], no: FieldNo) -> bool {
    row.binary_search_by_key(&no, |(of, _)| *of).is_ok_and(|at| is_known(row[at].1.view()))
}

fn is_known(value: ValueRef<'_>) -> bool {
    value != ValueRef::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(no: FieldNo) -> (FieldNo, Value) {
        (no, Value::Text("x".into()))
    }

    #[test]
    fn what_the_move_did_not_show_is_unshown_until_a_row_shows_it() {
        let image = Image::new([text(1), text(2), (3, Value::Null), (4, Value::Unknown)]);
        let unshown = Unshown::after(&image, &[text(1), (2, Value::Unknown)]);
        assert_eq!(unshown, Unshown([2, 3].into()), "a field not shown at all, and one shown as not touched");
        assert_eq!(unshown.seen(&[text(1), (2, Value::Unknown)], &[]), None);
        assert_eq!(unshown.seen(&[text(1), text(2)], &[]), Some(Unshown([3].into())));
        assert_eq!(unshown.seen(&[text(2), (3, Value::Null)], &[]), Some(Unshown::default()));
    }

    #[test]
    fn a_field_that_the_image_lacks_is_shown_empty_once() {
        let image = Image::new([text(1)]);
        let unshown = Unshown::after(&image, &[text(1), (5, Value::Null)]);
        assert!(unshown.knows_empty(5) && !unshown.knows_empty(6));
        let seen = unshown.seen(&[text(1), (6, Value::Null)], &[6]).unwrap();
        assert!(seen.knows_empty(5) && seen.knows_empty(6));
        let spliced = seen.after_splice(&Image::new([text(1), text(6), text(7)]), &[text(1)]);
        assert_eq!(spliced, Unshown([6, 7, -5].into()), "what came late is unshown; 5 is still lacking");
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        for unshown in [Unshown::default(), Unshown([2, 300, -7].into())] {
            assert_eq!(Unshown::from_bytes(unshown.to_bytes().as_deref()), unshown);
        }
        assert_eq!(Unshown::default().to_bytes(), None);
        assert_eq!(Unshown::from_bytes(Some(&[0, 1, 9])), Unshown([1].into()), "what is cut off is left");
    }
}
