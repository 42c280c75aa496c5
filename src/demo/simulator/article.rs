//! The account that the mission's article shows: 21 rows of a listener that copied every event, 5 of them changes.

/// The account's external id.
pub const EXTERNAL_ID: &str = "7f4acaad-6c77-4342-a533-83bb580aaf681586878813";
/// Its Salesforce id.
pub const SFID: &str = "001f400001MDeYzAAL";
/// Its name, the same in all 21 rows.
pub const NAME: &str = "Borer, Braun and Gutmann";
/// The object it belongs to.
pub const OBJECT: &str = "account";
/// The article's query at the time machine, verbatim.
pub const QUERY: &str = "select name, sfid, score__c, id from account where External_id__c = '7f4acaad-6c77-4342-a533-83bb580aaf681586878813' ORDER BY id;";

/// (phone, score__c) of the 21 rows, in order.
pub const VERSIONS: [(&str, f64); 21] = [
    ("5555551212", 1.0),
    ("967-160-7974 x6487", 15.0),
    ("967-160-7974 x6487", 15.0),
    ("967-160-7974 x6487", 15.0),
    ("967-160-7974 x6487", 15.0),
    ("967-160-7974 x6487", 15.0),
    ("967-160-7974 x6487", 15.0),
    ("5555551212", 15.0),
    ("1-151-183-4668 x379", 5.0),
    ("1-151-183-4668 x379", 5.0),
    ("1-151-183-4668 x379", 5.0),
    ("5555551212", 5.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
    ("504.976.9652 x047", 2.0),
];

/// Numbers (from 1) of the events that change something: the first sight and five edits.
pub fn changing_events() -> Vec<usize> {
    (1..=VERSIONS.len()).filter(|&number| number == 1 || VERSIONS[number - 2] != VERSIONS[number - 1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_changes_five_times_after_its_first_sight() {
        assert_eq!(changing_events(), [1, 2, 8, 9, 12, 13]);
        assert!(QUERY.contains(EXTERNAL_ID));
        assert_eq!(super::super::sfid::check_characters(&SFID[..15]), SFID[15..]);
    }
}
