//! The last known visible fields of a record, packed: one buffer of texts and where each field's text ends in it.
//!
//! Every event takes its record's image from the image store, compares it with what it shows, and most put it back with a
//! field or two changed. Packed, that is two pieces of memory and not one per field.

use super::event::FieldNo;
use super::value::{Value, ValueRef};

/// The last known visible field values, ascending by field number. It is exactly the fold of the
/// record's stored deltas, bit for bit (protocol D15): a no-op leaves it as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    cells: Vec<Cell>,
    texts: String,
}

/// One field. Its text stands between the end of the field before it and its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    no: FieldNo,
    form: Form,
    end: u32,
}

/// What is known of a field, without its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// SQL null.
    Null,
    /// Never shown by the stream.
    Unknown,
    /// A text.
    Text,
}

impl Image {
    /// An image of these fields, in any order; the last of two equal numbers wins.
    pub fn new(fields: impl IntoIterator<Item = (FieldNo, Value)>) -> Self {
        let mut image = Image::default();
        for (no, value) in fields {
            image.set(no, value.view());
        }
        image
    }

    /// An image of packed fields: their texts one after the other, and for each its number, its form and where its text
    /// ends.
    ///
    /// # Errors
    /// `None` if numbers or ends don't ascend, or an end is not between two characters.
    pub fn packed(texts: String, fields: impl IntoIterator<Item = (FieldNo, Form, usize)>) -> Option<Self> {
        let mut image = Image { cells: Vec::with_capacity(32), texts };
        let (mut last, mut start) = (FieldNo::MIN, 0);
        for (no, form, end) in fields {
            let empty = form != Form::Text && end != start;
            if no <= last || end < start || empty || !image.texts.is_char_boundary(end) {
                return None;
            }
            (last, start) = (no, end);
            image.cells.push(Cell { no, form, end: u32::try_from(end).ok()? });
        }
        (start == image.texts.len()).then_some(image)
    }

    /// The field's value; `None` = never observed.
    pub fn get(&self, no: FieldNo) -> Option<ValueRef<'_>> {
        self.place(no).ok().map(|at| self.value(at))
    }

    /// Makes room for so many more fields and bytes of text.
    pub fn reserve(&mut self, fields: usize, bytes: usize) {
        self.cells.reserve(fields);
        self.texts.reserve(bytes);
    }

    /// Sets a field.
    pub fn set(&mut self, no: FieldNo, value: ValueRef<'_>) {
        let (form, text) = match value {
            ValueRef::Null => (Form::Null, ""),
            ValueRef::Unknown => (Form::Unknown, ""),
            ValueRef::Text(text) => (Form::Text, text),
        };
        if self.cells.last().is_none_or(|last| last.no < no) {
            // As a keyframe is read.
            self.texts.push_str(text);
            self.cells.push(Cell { no, form, end: self.texts.len() as u32 });
            return;
        }
        let at = match self.place(no) {
            Ok(at) => at,
            Err(at) => {
                let end = self.start(at) as u32;
                self.cells.insert(at, Cell { no, form, end });
                at
            }
        };
        let (start, end) = (self.start(at), self.cells[at].end as usize);
        if end == self.texts.len() {
            self.texts.truncate(start);
            self.texts.push_str(text);
        } else {
            self.texts.replace_range(start..end, text);
        }
        self.cells[at].form = form;
        let grown = text.len() as i64 - (end - start) as i64;
        for cell in &mut self.cells[at..] {
            // Far below 4 GiB: PostgreSQL rows end at 1 GiB.
            cell.end = (i64::from(cell.end) + grown) as u32;
        }
    }

    /// All fields, ascending.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = (FieldNo, ValueRef<'_>)> {
        self.cells.iter().enumerate().map(|(at, cell)| (cell.no, self.value(at)))
    }

    /// Bytes of all texts.
    pub fn text_len(&self) -> usize {
        self.texts.len()
    }

    fn place(&self, no: FieldNo) -> Result<usize, usize> {
        self.cells.binary_search_by_key(&no, |cell| cell.no)
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.cells[before].end as usize)
    }

    fn value(&self, at: usize) -> ValueRef<'_> {
        match self.cells[at].form {
            Form::Null => ValueRef::Null,
            Form::Unknown => ValueRef::Unknown,
            Form::Text => ValueRef::Text(&self.texts[self.start(at)..self.cells[at].end as usize]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        prop_oneof![Just(Value::Null), Just(Value::Unknown), ".{0,6}".prop_map(|text| Value::Text(text.into()))]
    }

    proptest! {
        /// It holds what a map holds, whatever was set in which order; and comes back from its packed form.
        #[test]
        fn an_image_is_a_map(sets in prop::collection::vec((1..9 as FieldNo, values()), 0..40)) {
            let map: BTreeMap<FieldNo, Value> = sets.iter().cloned().collect();
            let image = Image::new(sets);
            let held: Vec<(FieldNo, Value)> = image.fields().map(|(no, value)| (no, value.into())).collect();
            prop_assert_eq!(&held, &map.clone().into_iter().collect::<Vec<_>>());
            for no in 0..10 {
                prop_assert_eq!(image.get(no), map.get(&no).map(Value::view));
            }
            prop_assert_eq!(&image, &Image::new(map.clone()), "equal by content");
            let (mut texts, mut cells) = (String::new(), Vec::new());
            for (no, value) in &map {
                texts.push_str(value.text().unwrap_or_default());
                let form = match value {
                    Value::Null => Form::Null,
                    Value::Unknown => Form::Unknown,
                    Value::Text(_) => Form::Text,
                };
                cells.push((*no, form, texts.len()));
            }
            prop_assert_eq!(Image::packed(texts, cells), Some(image));
        }
    }

    #[test]
    fn what_is_not_packed_is_refused() {
        let text = |fields: &[(FieldNo, Form, usize)]| Image::packed("aé".into(), fields.iter().copied());
        assert!(text(&[(1, Form::Text, 1), (2, Form::Text, 3)]).is_some());
        for (why, fields) in [
            ("numbers fall", [(2, Form::Text, 1), (1, Form::Text, 3)]),
            ("ends fall", [(1, Form::Text, 3), (2, Form::Text, 1)]),
            ("within a character", [(1, Form::Text, 2), (2, Form::Text, 3)]),
            ("beyond the texts", [(1, Form::Text, 1), (2, Form::Text, 4)]),
            ("texts are left", [(1, Form::Text, 0), (2, Form::Text, 1)]),
            ("a null has a text", [(1, Form::Null, 1), (2, Form::Text, 3)]),
        ] {
            assert_eq!(text(&fields), None, "{why}");
        }
    }
}
