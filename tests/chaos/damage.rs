//! The checker checked: what it has found right is damaged in ways that a fault could, and it has to see each.

use tokio_postgres::Client;

use super::check::check;
use super::feed::Ends;
use super::source::Event;
use super::topic::Topics;

/// The newest version of a record that ends in an update.
const NEWEST: &str = "
    CREATE TEMP TABLE newest ON COMMIT DROP AS
    SELECT * FROM (SELECT DISTINCT ON (rid) rid, kf, at, d FROM afterimage.delta
                   ORDER BY rid, kf DESC, get_byte(d, 1) & 63 DESC) n
    WHERE get_byte(d, 0) & 7 = 2 AND get_byte(d, 1) & 63 < 63 LIMIT 1";

/// What is done to the sink, and what it is like.
const DAMAGES: [(&str, &str); 5] = [
    (
        "a version is gone, and nobody has counted it",
        "DELETE FROM afterimage.delta d USING newest n WHERE (d.rid, d.kf, d.d) = (n.rid, n.kf, n.d);
         UPDATE afterimage.position SET rows_written = rows_written - 1
         WHERE position_id = (SELECT min(position_id) FROM afterimage.position)",
    ),
    (
        "a version is there twice, and both are counted",
        "INSERT INTO afterimage.delta SELECT at, rid, kf, set_byte(d, 1, get_byte(d, 1) + 1) FROM newest;
         UPDATE afterimage.position SET rows_written = rows_written + 1
         WHERE position_id = (SELECT min(position_id) FROM afterimage.position)",
    ),
    (
        "a version is valid from another moment",
        "UPDATE afterimage.delta d SET at = d.at + interval '1 ms' FROM newest n
         WHERE (d.rid, d.kf, d.d) = (n.rid, n.kf, n.d)",
    ),
    (
        "an event is counted twice",
        "UPDATE afterimage.position SET c_noop = c_noop + 1
         WHERE position_id = (SELECT min(position_id) FROM afterimage.position)",
    ),
    (
        "a row is counted that is not there",
        "UPDATE afterimage.position SET rows_written = rows_written + 1
         WHERE position_id = (SELECT min(position_id) FROM afterimage.position)",
    ),
];

/// Damages the sink, asks the checker, and undoes it; which damages it did not see.
///
/// # Errors
/// When the sink refuses.
pub async fn unseen(
    sink: &Client,
    topics: &Topics,
    events: &[Event],
    ends: &Ends,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let mut unseen = Vec::new();
    for (what, damage) in DAMAGES {
        sink.batch_execute(&format!("BEGIN; {NEWEST}; {damage}")).await?;
        let verdict = check(sink, topics, events, ends).await;
        sink.batch_execute("ROLLBACK").await?;
        if verdict?.findings.is_empty() {
            unseen.push(format!("the checker does not see that {what}"));
        }
    }
    Ok(unseen)
}
