//! The Debezium releases whose output the simulator speaks, and which the demo can run in earnest.

/// A release of Debezium's PostgreSQL connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize)]
pub enum Debezium {
    /// 2.7.4.Final, the line that Heroku runs.
    #[default]
    #[value(name = "2.7")]
    #[serde(rename = "2.7")]
    V2_7,
    /// 3.7.0.Final, a current one.
    #[value(name = "3.7")]
    #[serde(rename = "3.7")]
    V3_7,
}

impl Debezium {
    /// The exact version: Maven's, and the one in `source.version`.
    pub fn version(self) -> &'static str {
        match self {
            Debezium::V2_7 => "2.7.4.Final",
            Debezium::V3_7 => "3.7.0.Final",
        }
    }

    /// Number in the first connector's name; the next org's connector has the next one.
    pub(super) fn first_connector(self) -> usize {
        match self {
            Debezium::V2_7 => 27_001,
            Debezium::V3_7 => 37_001,
        }
    }
}
