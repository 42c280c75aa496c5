//! The Java side: real Kafka and real Debezium, as the demo runs them, with class paths kept in the target directory.

use std::path::Path;

use afterimage::demo::java::Java;

/// Java and Maven for all tests.
pub fn java() -> Java {
    Java::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("java"))
}
