//! The demo's own session on the sink: it asks what a user may ask, through the public views.

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::backlog::TopicPartition;

/// A session.
#[derive(Debug)]
pub struct Sink {
    client: Client,
}

/// The answer to a query in text form, as psql would print it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows; `None` is null.
    pub rows: Vec<Vec<Option<String>>>,
}

/// A partition as the sink knows it.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Which.
    pub partition: TopicPartition,
    /// The next offset to read.
    pub next: i64,
    /// How often it was claimed.
    pub epoch: i64,
    /// Worker of the latest claim.
    pub worker: String,
}

impl Sink {
    /// Opens a session.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn connect(url: &str) -> Result<Self> {
        let (client, connection) =
            tokio_postgres::connect(url, NoTls).await.context("cannot reach the private Postgres")?;
        // It ends with the client; an error shows in the next query.
        tokio::spawn(connection);
        Ok(Sink { client })
    }

    /// The session itself, for queries with typed answers.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The committed position of every partition that a worker has claimed.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn committed(&self) -> Result<Vec<(TopicPartition, i64)>> {
        let query = "select topic, partition::int4, next_offset::int8 from afterimage.positions";
        let rows = self.client.query(query, &[]).await.context("cannot read afterimage.positions")?;
        Ok(rows.iter().map(|row| ((row.get::<_, String>(0).into(), row.get(1)), row.get(2))).collect())
    }

    /// Who holds each partition, and how far it has come.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn holders(&self) -> Result<Vec<Holder>> {
        let query = "select topic, partition::int4, next_offset::int8, epoch::int8, coalesce(worker, '')::text \
                     from afterimage.positions";
        let rows = self.client.query(query, &[]).await.context("cannot read afterimage.positions")?;
        let holder = |row: &tokio_postgres::Row| Holder {
            partition: (row.get::<_, String>(0).into(), row.get(1)),
            next: row.get(2),
            epoch: row.get(3),
            worker: row.get(4),
        };
        Ok(rows.iter().map(holder).collect())
    }

    /// Events that came late and wait for their place in the history.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn late(&self) -> Result<i64> {
        let query = "select count(*) from afterimage.late_events where settled_at is null";
        let row = self.client.query_one(query, &[]).await.context("cannot read afterimage.late_events")?;
        Ok(row.get(0))
    }

    /// Messages so far that became versions, and messages that changed nothing.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn effects(&self) -> Result<(i64, i64)> {
        let query = "select coalesce(sum(events) filter (where outcome in ('delta', 'baseline')), 0)::int8, \
                     coalesce(sum(events) filter (where outcome = 'noop'), 0)::int8 from afterimage.outcomes";
        let row = self.client.query_one(query, &[]).await.context("cannot read afterimage.outcomes")?;
        Ok((row.get(0), row.get(1)))
    }

    /// Runs one query as it stands.
    ///
    /// # Errors
    /// When it fails.
    pub async fn ask(&self, query: &str) -> Result<Answer> {
        let mut answer = Answer::default();
        for message in self.client.simple_query(query).await.with_context(|| format!("this query failed: {query}"))? {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    answer.columns = columns.iter().map(|column| column.name().to_string()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    answer.rows.push((0..row.len()).map(|column| row.get(column).map(str::to_string)).collect());
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}
