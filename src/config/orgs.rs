//! `[[org]]` and `[[object]]`: which topics belong to which org, and how an object is read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::core::value::Kind;

/// Longest identifier that PostgreSQL keeps, in bytes; a longer one would be cut silently.
pub const IDENTIFIER_MAX: usize = 63;
/// Longest org name: `<org>_history` is a schema.
pub const ORG_MAX: usize = IDENTIFIER_MAX - "_history".len();
/// How long after a delete an equal re-insert still cancels it, unless configured.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(15 * 60);
/// Upper bound of grace: a delete must still be in an unsealed month's rows when it is cancelled.
pub const GRACE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A topic pattern: dot segments, each with at most one `*`, which stands for one character or more of
/// that segment and never for a dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern {
    text: String,
}

impl TopicPattern {
    /// Reads a pattern; the reason says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
        if text.is_empty() {
            return Err("an empty topic pattern".to_owned());
        }
        if let Some(c) = text.chars().find(|c| !ok(*c)) {
            return Err(format!("topic pattern `{text}` holds {c:?}, which no topic name can"));
        }
        for segment in text.split('.') {
            if segment.is_empty() {
                return Err(format!("topic pattern `{text}` has an empty segment"));
            }
            if segment.matches('*').count() > 1 {
                return Err(format!("topic pattern `{text}` has more than one `*` in the segment `{segment}`"));
            }
        }
        Ok(Self { text: text.to_owned() })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether there can be a topic that fits both, with a prefix before all topics' names that either may hold, too.
    pub(super) fn meets(&self, other: &Self, prefix: &str) -> bool {
        meet(&self.text, &other.text)
            || (!prefix.is_empty()
                && (meet(&format!("{prefix}{}", self.text), &other.text)
                    || meet(&self.text, &format!("{prefix}{}", other.text))))
    }

    /// Whether a topic name fits, segment by segment.
    pub fn fits(&self, topic: &str) -> bool {
        let mut patterns = self.text.split('.');
        let mut segments = topic.split('.');
        loop {
            match (patterns.next(), segments.next()) {
                (None, None) => return true,
                (Some(pattern), Some(segment)) => {
                    if !segment_fits(pattern, segment) {
                        return false;
                    }
                }
                _ => return false,
            }
        }
    }
}

fn segment_fits(pattern: &str, segment: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == segment,
        Some((head, tail)) => {
            segment.len() > head.len() + tail.len() && segment.starts_with(head) && segment.ends_with(tail)
        }
    }
}

/// Whether a name can fit two patterns.
fn meet(one: &str, other: &str) -> bool {
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split('.').collect(), other.split('.').collect());
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| match (one.split_once('*'), other.split_once('*')) {
            (_, None) => segment_fits(one, other),
            (None, _) => segment_fits(other, one),
            // What begins with the longer head and ends with the longer tail fits both, with anything in between.
            (Some((head, tail)), Some((head2, tail2))) => {
                (head.starts_with(head2) || head2.starts_with(head)) && (tail.ends_with(tail2) || tail2.ends_with(tail))
            }
        })
}

/// An `[[org]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgConfig {
    /// The org's name; `<name>_history` holds its typed views.
    pub name: String,
    /// Patterns of its topics, without [`super::KafkaSettings::prefix`].
    pub topics: Vec<TopicPattern>,
}

/// What identifies a record of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The 18-character Salesforce id in the column `sfid`.
    Sfid,
    /// The Kafka key, which is the table's primary key.
    Key,
    /// These columns, ordered bytewise by name whatever order they were declared in.
    Columns(Vec<String>),
}

impl Identity {
    /// The form in `afterimage.object.identity`: `sfid`, `key`, or the sorted columns as a JSON array.
    pub fn stored(&self) -> String {
        match self {
            Self::Sfid => "sfid".to_owned(),
            Self::Key => "key".to_owned(),
            Self::Columns(columns) => serde_json::json!(columns).to_string(),
        }
    }
}

/// An `[[object]]`, or the defaults of an object that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectConfig {
    /// The org it belongs to.
    pub org: String,
    /// The object's name: the table, and the last segment of its topic.
    pub name: String,
    /// `None` = sfid where the table has that column, else the key.
    pub identity: Option<Identity>,
    /// Types of columns that arrive without a schema block.
    pub types: BTreeMap<String, Kind>,
    /// Columns left out of history besides the built-in ones.
    pub mask_add: BTreeSet<String>,
    /// System columns that are to count as visible.
    pub mask_remove: BTreeSet<String>,
    /// Columns that `record_lookup` finds records by.
    pub lookup: Vec<String>,
    /// How long after a delete an equal re-insert cancels it (source time). Below the sealing delay.
    pub grace: Duration,
}

impl ObjectConfig {
    /// The settings of an object that nothing is configured for.
    pub fn defaults(org: &str, name: &str) -> Self {
        Self {
            org: org.to_owned(),
            name: name.to_owned(),
            identity: None,
            types: BTreeMap::new(),
            mask_add: BTreeSet::new(),
            mask_remove: BTreeSet::new(),
            lookup: Vec::new(),
            grace: DEFAULT_GRACE,
        }
    }
}

/// Why a name can't be an org's.
///
/// # Errors
/// The reason, quoting the name.
pub fn check_org_name(name: &str) -> Result<(), String> {
    let first = name.chars().next().ok_or("an org needs a name")?;
    if !(first.is_ascii_alphabetic() || first == '_') {
        return Err(format!("org name `{name}` must start with a letter"));
    }
    if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))) {
        return Err(format!("org name `{name}` holds {c:?}: letters, digits, `_` and `-` are possible"));
    }
    if name.len() > ORG_MAX {
        return Err(format!("org name `{name}` is longer than {ORG_MAX} bytes (`<org>_history` is a schema)"));
    }
    Ok(())
}

/// Why a name can't be a table's or a column's.
pub(super) fn check_identifier(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("{what} has an empty name"));
    }
    if name.len() > IDENTIFIER_MAX {
        return Err(format!("{what} `{name}` is longer than the {IDENTIFIER_MAX} bytes PostgreSQL keeps"));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("{what} {name:?} holds a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_segment_by_segment() {
        let table = [
            ("c.emea.*", "c.emea.account", true),
            ("c.emea.*", "c.emea.account.x", false),
            ("c.emea.*", "c.emea", false),
            ("c.emea.*", "c.emea.", false),
            ("c.emea.*", "d.emea.account", false),
            ("calm_*.salesforce.*", "calm_connector_1.salesforce.lead", true),
            ("calm_*.salesforce.*", "calm_.salesforce.lead", false),
            ("a.b.pre*post", "a.b.prepost", false),
            ("a.b.pre*post", "a.b.pre-post", true),
            ("a.b.job__c", "a.b.job__c", true),
            ("a.b.job__c", "a.b.JOB__c", false),
            ("*", "a.b", false),
        ];
        for (pattern, topic, fits) in table {
            assert_eq!(TopicPattern::parse(pattern).expect(pattern).fits(topic), fits, "{pattern} on {topic}");
        }
    }

    #[test]
    fn patterns_meet_where_one_topic_can_fit_both() {
        let table = [
            ("c.s.account", "c.s.account", true),
            ("c.s.account", "c.s.contact", false),
            ("c.s.*", "c.s.account", true),
            ("c.s.a*", "c.s.account", true),
            ("c.s.account*", "c.s.account", false),
            ("c.*.account", "c.s.*", true),
            ("c.s.a*", "c.s.b*", false),
            ("c.s.ab*", "c.s.a*", true),
            ("c.s.*x", "c.s.*yx", true),
            ("c.s.*x", "c.s.*y", false),
            ("c.s.a*b", "c.s.*", true),
            ("c.*", "c.s.*", false),
        ];
        for (one, other, wanted) in table {
            let [a, b] = [one, other].map(|text| TopicPattern::parse(text).expect(text));
            assert_eq!((a.meets(&b, ""), b.meets(&a, "")), (wanted, wanted), "{one} and {other}");
        }
        let [a, b] = ["foo.c.s.*", "c.s.account"].map(|text| TopicPattern::parse(text).expect(text));
        assert!(a.meets(&b, "foo.") && b.meets(&a, "foo.") && !a.meets(&b, ""));
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        for pattern in ["", ".", "a..b", "a.**.c", "a.*b*.c", "a b.c", "a/b", "a.b.", "^a.*"] {
            assert!(TopicPattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn identity_columns_are_stored_as_json() {
        let columns = Identity::Columns(vec!["a".to_owned(), "b\"c".to_owned()]);
        assert_eq!(columns.stored(), r#"["a","b\"c"]"#);
        assert_eq!((Identity::Sfid.stored(), Identity::Key.stored()), ("sfid".to_owned(), "key".to_owned()));
    }
}
