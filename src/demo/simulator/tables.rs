//! The Connect tables that the simulator plays, as data: column names, types and what each is for.
//!
//! Column order is arbitrary on purpose, with system columns in the middle, as in real Connect tables.

use super::values::ColumnType::{self, Bool, Date, Float8, Int4, Text, Timestamp};

/// What a column is for; only [`Role::Business`] columns are history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An ordinary mapped field: a change of it is a change of the record.
    Business,
    /// A long text, stored out of line when it is long: an update that leaves it alone shows only the placeholder.
    LongText,
    /// `systemmodstamp`
    Stamp,
    /// `lastmodifieddate`
    Modified,
    /// `lastmodifiedbyid`
    ModifiedBy,
    /// `createddate` (a business column that Salesforce alone sets)
    Created,
    /// `isdeleted` (likewise)
    IsDeleted,
    /// The row's integer primary key, and so the Kafka key.
    Id,
    /// The Salesforce id.
    Sfid,
    /// `_hc_lastop`
    LastOp,
    /// `_hc_err`
    Err,
}

impl Role {
    /// Whether the column is part of a record's history.
    pub fn is_business(self) -> bool {
        matches!(self, Role::Business | Role::LongText | Role::Created | Role::IsDeleted)
    }
}

/// When a column is part of the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// From beginning to end.
    Always,
    /// Added to the mapping during the run (trace L).
    AddedLater,
    /// Taken out of the mapping during the run (trace M).
    RemovedLater,
}

/// How new values of a column are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Flavour {
    /// Company name.
    Company,
    /// Person's first name.
    FirstName,
    /// Person's last name.
    LastName,
    /// Phone number in one of the spellings people use.
    Phone,
    /// E-mail address.
    Email,
    /// Web address.
    Website,
    /// Street and number.
    Street,
    /// City.
    City,
    /// Country.
    Country,
    /// One of a few picklist values.
    Picklist(&'static [&'static str]),
    /// Short code of letters and digits.
    Code,
    /// Free text: mostly short, sometimes long enough to be stored out of line.
    Prose,
    /// Reference to another object's record, by this key prefix.
    Reference(&'static str),
    /// Amount of money or another double within the bound.
    Amount(f64),
    /// Small whole number within the bound.
    Count(i64),
    /// Yes or no.
    Flag,
    /// Day within a few years.
    Day,
    /// Moment within a few years.
    Moment,
    /// External id: 20 hex digits, dashes, 24 hex digits, as in the article.
    ExternalId,
    /// Set by the table's own machinery, never by a value maker.
    Machinery,
}

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct ColumnSpec {
    /// Name as in the table and in the envelope.
    pub name: &'static str,
    /// PostgreSQL type.
    pub kind: ColumnType,
    /// What it is for.
    pub role: Role,
    /// When it is mapped.
    pub mapped: Mapped,
    /// How its values look.
    pub flavour: Flavour,
}

/// One object's table.
#[derive(Debug)]
pub struct TableSpec {
    /// Object (and table) name.
    pub object: &'static str,
    /// First three characters of its Salesforce ids.
    pub key_prefix: &'static str,
    /// Columns in table order.
    pub columns: &'static [ColumnSpec],
    /// Of an org's records, this many of a hundred are in this table.
    pub share: u32,
}

impl TableSpec {
    /// Index of the only column with this role.
    ///
    /// # Panics
    /// If the table lacks it: the tables are constants, and a test walks them.
    pub fn index_of(&self, role: Role) -> usize {
        self.columns.iter().position(|column| column.role == role).expect("every simulated table has every role")
    }

    /// Indexes of the columns that are mapped in this way.
    pub fn columns_mapped(&self, mapped: Mapped) -> Vec<usize> {
        (0..self.columns.len()).filter(|&index| self.columns[index].mapped == mapped).collect()
    }

    /// Index of the column with this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// Columns whose JSON alone doesn't tell their type, with the type's name: what a topic without schema block must declare.
pub fn declared_types(object: &str) -> Vec<(&'static str, &'static str)> {
    TABLES
        .iter()
        .filter(|table| table.object == object)
        .flat_map(|table| table.columns)
        .filter(|column| column.role.is_business() && !matches!(column.kind, Text | Bool))
        .map(|column| (column.name, column.kind.declared()))
        .collect()
}

const fn business(name: &'static str, kind: ColumnType, flavour: Flavour) -> ColumnSpec {
    ColumnSpec { name, kind, role: Role::Business, mapped: Mapped::Always, flavour }
}

const fn text(name: &'static str, flavour: Flavour) -> ColumnSpec {
    business(name, Text, flavour)
}

const fn long_text(name: &'static str) -> ColumnSpec {
    ColumnSpec { name, kind: Text, role: Role::LongText, mapped: Mapped::Always, flavour: Flavour::Prose }
}

const fn machinery(name: &'static str, kind: ColumnType, role: Role) -> ColumnSpec {
    ColumnSpec { name, kind, role, mapped: Mapped::Always, flavour: Flavour::Machinery }
}

const fn mapped(column: ColumnSpec, mapped: Mapped) -> ColumnSpec {
    ColumnSpec { mapped, ..column }
}

/// The simulated objects, the same in every org.
pub static TABLES: [TableSpec; 3] = [
    TableSpec { object: "account", key_prefix: "001", columns: &ACCOUNT, share: 50 },
    TableSpec { object: "contact", key_prefix: "003", columns: &CONTACT, share: 30 },
    TableSpec { object: "opportunity", key_prefix: "006", columns: &OPPORTUNITY, share: 20 },
];

static ACCOUNT: [ColumnSpec; 34] = [
    text("name", Flavour::Company),
    text("accountnumber", Flavour::Code),
    text("type", Flavour::Picklist(&["Prospect", "Customer", "Partner", "Reseller"])),
    text("industry", Flavour::Picklist(&["Energy", "Retail", "Banking", "Biotechnology", "Shipping", "Education"])),
    business("annualrevenue", Float8, Flavour::Amount(90_000_000.0)),
    business("numberofemployees", Int4, Flavour::Count(40_000)),
    text("phone", Flavour::Phone),
    text("website", Flavour::Website),
    machinery("systemmodstamp", Timestamp, Role::Stamp),
    machinery("isdeleted", Bool, Role::IsDeleted),
    text("billingstreet", Flavour::Street),
    text("billingcity", Flavour::City),
    text("billingpostalcode", Flavour::Code),
    text("billingcountry", Flavour::Country),
    business("billinglatitude", Float8, Flavour::Amount(90.0)),
    business("billinglongitude", Float8, Flavour::Amount(180.0)),
    text("ownerid", Flavour::Reference("005")),
    text("parentid", Flavour::Reference("001")),
    machinery("createddate", Timestamp, Role::Created),
    machinery("lastmodifieddate", Timestamp, Role::Modified),
    machinery("lastmodifiedbyid", Text, Role::ModifiedBy),
    long_text("description"),
    long_text("notes__c"),
    business("score__c", Float8, Flavour::Amount(20.0)),
    text("external_id__c", Flavour::ExternalId),
    business("active__c", Bool, Flavour::Flag),
    business("renewal__c", Date, Flavour::Day),
    business("last_call__c", Timestamp, Flavour::Moment),
    business("visits__c", Int4, Flavour::Count(60)),
    mapped(text("legacy_code__c", Flavour::Code), Mapped::RemovedLater),
    machinery("sfid", Text, Role::Sfid),
    machinery("id", Int4, Role::Id),
    machinery("_hc_lastop", Text, Role::LastOp),
    machinery("_hc_err", Text, Role::Err),
];

static CONTACT: [ColumnSpec; 18] = [
    text("firstname", Flavour::FirstName),
    text("lastname", Flavour::LastName),
    text("email", Flavour::Email),
    text("phone", Flavour::Phone),
    text("accountid", Flavour::Reference("001")),
    business("birthdate", Date, Flavour::Day),
    machinery("createddate", Timestamp, Role::Created),
    machinery("isdeleted", Bool, Role::IsDeleted),
    machinery("systemmodstamp", Timestamp, Role::Stamp),
    mapped(business("donotcall", Bool, Flavour::Flag), Mapped::RemovedLater),
    business("score__c", Float8, Flavour::Amount(100.0)),
    long_text("bio__c"),
    machinery("lastmodifieddate", Timestamp, Role::Modified),
    machinery("_hc_lastop", Text, Role::LastOp),
    machinery("_hc_err", Text, Role::Err),
    machinery("sfid", Text, Role::Sfid),
    machinery("id", Int4, Role::Id),
    mapped(text("segment__c", Flavour::Picklist(&["gold", "silver", "bronze"])), Mapped::AddedLater),
];

static OPPORTUNITY: [ColumnSpec; 21] = [
    machinery("createddate", Timestamp, Role::Created),
    machinery("isdeleted", Bool, Role::IsDeleted),
    text("name", Flavour::Company),
    text(
        "stagename",
        Flavour::Picklist(&["Prospecting", "Qualification", "Proposal", "Negotiation", "Closed Won", "Closed Lost"]),
    ),
    machinery("systemmodstamp", Timestamp, Role::Stamp),
    business("amount", Float8, Flavour::Amount(900_000.0)),
    business("closedate", Date, Flavour::Day),
    business("probability", Float8, Flavour::Amount(100.0)),
    text("leadsource", Flavour::Picklist(&["Web", "Phone", "Partner", "Fair"])),
    text("nextstep", Flavour::Street),
    text("accountid", Flavour::Reference("001")),
    text("ownerid", Flavour::Reference("005")),
    business("started__c", Timestamp, Flavour::Moment),
    business("visits__c", Int4, Flavour::Count(30)),
    long_text("description"),
    machinery("lastmodifieddate", Timestamp, Role::Modified),
    machinery("sfid", Text, Role::Sfid),
    machinery("id", Int4, Role::Id),
    machinery("_hc_lastop", Text, Role::LastOp),
    machinery("_hc_err", Text, Role::Err),
    mapped(text("region__c", Flavour::Picklist(&["north", "south", "east", "west"])), Mapped::AddedLater),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_the_columns_that_connect_needs() {
        for table in &TABLES {
            for role in [Role::Stamp, Role::Modified, Role::Created, Role::IsDeleted, Role::Id, Role::Sfid] {
                assert_eq!(table.columns.iter().filter(|column| column.role == role).count(), 1, "{}", table.object);
            }
            table.index_of(Role::LastOp);
            table.index_of(Role::Err);
        }
        assert_eq!(TABLES.iter().map(|table| table.share).sum::<u32>(), 100);
    }

    #[test]
    fn only_columns_whose_json_is_ambiguous_are_declared() {
        let types = declared_types("contact");
        assert_eq!(types, [("birthdate", "date"), ("createddate", "timestamp"), ("score__c", "float8")]);
        assert!(declared_types("no such object").is_empty());
    }
}
