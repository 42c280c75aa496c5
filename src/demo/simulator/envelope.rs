//! Debezium's envelopes as the connector writes them, with and without the schema block.

use std::fmt::Write as _;

use super::model::{Row, Table};
use super::release::Debezium;
use super::tables::Role;
use super::values::{Micros, SECOND, Value, json_string};

/// Debezium's stand-in for a text that lies out of line and was not touched.
pub const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// The source database's name.
pub const SOURCE_DATABASE: &str = "d8kdemo";

/// Where a change stands in the source's log.
#[derive(Debug, Clone, Copy)]
pub struct SourcePoint {
    /// Commit time.
    pub commit: Micros,
    /// LSN of the row's change.
    pub lsn: u64,
    /// LSN of the last commit before it.
    pub last_commit: u64,
    /// Transaction.
    pub tx: u64,
}

/// A value complete but for the time of processing, which a re-delivery changes (nothing else does).
#[derive(Debug, Clone)]
pub struct Draft {
    head: String,
    wrapped: bool,
}

impl Draft {
    /// The message's value, processed by the connector at this time.
    pub fn finish(&self, processed: Micros) -> Vec<u8> {
        let mut value = String::with_capacity(self.head.len() + 100);
        value.push_str(&self.head);
        let (millis, nanos) = (processed / 1_000, processed * 1_000);
        _ = write!(value, r#""ts_ms":{millis},"ts_us":{processed},"ts_ns":{nanos}}}"#);
        if self.wrapped {
            value.push('}');
        }
        value.into_bytes()
    }
}

/// The headers of every message of this connector. The last one names the connector's run: another at each start.
pub fn headers(table: &Table, run: u64) -> Vec<(&'static str, String)> {
    match table.release {
        Debezium::V2_7 => Vec::new(),
        Debezium::V3_7 => vec![
            ("__debezium.context.connectorLogicalName", table.connector.clone()),
            ("__debezium.context.taskId", "0".to_string()),
            ("__debezium.context.connectorName", "postgresql".to_string()),
            ("__debezium.context.runId", run_id(run)),
        ],
    }
}

/// The connector's name for its start number `start`.
pub fn run_id(start: u64) -> String {
    format!("01a1fd80-c315-7022-b4eb-{start:012x}")
}

/// The key of a row.
pub fn key(table: &Table, id: i32) -> Vec<u8> {
    if !table.with_schema {
        return format!(r#"{{"id":{id}}}"#).into_bytes();
    }
    format!(
        r#"{{"schema":{{"type":"struct","fields":[{{"type":"int32","optional":false,"default":0,"field":"id"}}],"optional":false,"name":"{}.Key"}},"payload":{{"id":{id}}}}}"#,
        table.topic
    )
    .into_bytes()
}

/// A `c` or `u`. `carried` says of an update which columns it wrote: a long text it left alone shows only the placeholder.
pub fn upsert(table: &Table, op: char, row: &Row, carried: Option<&[usize]>, at: SourcePoint) -> Draft {
    let mut after = String::with_capacity(1_200);
    let values = row.full(table.spec);
    write_struct(table, &mut after, |index| {
        let value = &values[index];
        if is_placeholder(value, carried, index) { Value::Text(PLACEHOLDER.to_string()) } else { value.clone() }
    });
    draft(table, op, "null", &after, at)
}

/// Whether an update that wrote the columns `carried` (`None`: all of them) leaves this value out.
pub fn is_placeholder(value: &Value, carried: Option<&[usize]>, index: usize) -> bool {
    value.is_toasted() && carried.is_some_and(|written| !written.contains(&index))
}

/// A `d` under default replica identity: every column is there, and null but for the key.
pub fn delete(table: &Table, id: i32, at: SourcePoint) -> Draft {
    let mut before = String::with_capacity(600);
    write_struct(table, &mut before, |index| match table.spec.columns[index].role {
        Role::Id => Value::Int(i64::from(id)),
        _ => Value::Null,
    });
    draft(table, 'd', &before, "null", at)
}

/// A `t`.
pub fn truncate(table: &Table, at: SourcePoint) -> Draft {
    draft(table, 't', "null", "null", at)
}

fn write_struct(table: &Table, out: &mut String, value: impl Fn(usize) -> Value) {
    out.push('{');
    for (index, column) in shown(table) {
        if out.len() > 1 {
            out.push(',');
        }
        _ = write!(out, r#""{}":"#, column.name);
        value(index).write_json(out);
    }
    out.push('}');
}

fn shown(table: &Table) -> impl Iterator<Item = (usize, &'static super::tables::ColumnSpec)> {
    table.spec.columns.iter().enumerate().filter(|(index, _)| table.shown[*index])
}

fn draft(table: &Table, op: char, before: &str, after: &str, at: SourcePoint) -> Draft {
    let mut head = String::with_capacity(1_000 + before.len() + after.len() + table.schema_block.len());
    if table.with_schema {
        head.push_str(r#"{"schema":"#);
        head.push_str(&table.schema_block);
        head.push_str(r#","payload":"#);
    }
    let sequence = json_string(&format!(r#"["{}","{}"]"#, at.last_commit, at.lsn));
    _ = write!(
        head,
        concat!(
            r#"{{"before":{},"after":{},"source":{{"version":"{}","connector":"postgresql","name":"{}","#,
            r#""ts_ms":{},"snapshot":"false","db":"{}","sequence":{},"ts_us":{},"ts_ns":{},"schema":"{}","#,
            r#""table":"{}","txId":{},"lsn":{},"xmin":null{}}},"transaction":null,"op":"{}","#
        ),
        before,
        after,
        table.release.version(),
        table.connector,
        at.commit / 1_000,
        SOURCE_DATABASE,
        sequence,
        at.commit,
        at.commit * 1_000,
        table.org,
        table.spec.object,
        at.tx,
        at.lsn,
        if table.release == Debezium::V3_7 { r#","origin":null,"origin_lsn":null"# } else { "" },
        op
    );
    Draft { head, wrapped: table.with_schema }
}

/// The schema block of a table's messages, for the columns that are mapped now.
pub fn schema_block(table: &Table) -> String {
    let mut out = String::with_capacity(8_000);
    let mut row = String::with_capacity(3_000);
    for (_, column) in shown(table) {
        if !row.is_empty() {
            row.push(',');
        }
        let optional = if column.role == Role::Id { r#""optional":false,"default":0"# } else { r#""optional":true"# };
        _ = write!(row, "{{{},{optional},", column.kind.connect_schema());
        if let Some(name) = column.kind.connect_name() {
            _ = write!(row, r#""name":"{name}","version":1,"#);
        }
        _ = write!(row, r#""field":"{}"}}"#, column.name);
    }
    out.push_str(r#"{"type":"struct","fields":["#);
    for side in ["before", "after"] {
        _ = write!(
            out,
            r#"{{"type":"struct","fields":[{row}],"optional":true,"name":"{}.Value","field":"{side}"}},"#,
            table.topic
        );
    }
    out.push_str(SOURCE_BEGINS);
    out.push_str(match table.release {
        Debezium::V2_7 => "true,last,false,incremental",
        Debezium::V3_7 => "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental",
    });
    out.push_str(SOURCE_GOES_ON);
    if table.release == Debezium::V3_7 {
        out.push_str(ORIGIN);
    }
    out.push_str(r#"],"optional":false,"name":"io.debezium.connector.postgresql.Source","#);
    if table.release == Debezium::V3_7 {
        out.push_str(r#""version":1,"#);
    }
    out.push_str(REST);
    _ = write!(out, r#"],"optional":false,"name":"{}.Envelope","version":2}}"#, table.topic);
    out
}

// The schemas of `source`, `transaction`, `op` and the processing times are the same in every topic.

/// Up to the values that `snapshot` can have.
const SOURCE_BEGINS: &str = concat!(
    r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"version"},"#,
    r#"{"type":"string","optional":false,"field":"connector"},{"type":"string","optional":false,"field":"name"},"#,
    r#"{"type":"int64","optional":false,"field":"ts_ms"},{"type":"string","optional":true,"#,
    r#""name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":""#,
);
const SOURCE_GOES_ON: &str = concat!(
    r#""},"default":"false","field":"snapshot"},{"type":"string","optional":false,"field":"db"},"#,
    r#"{"type":"string","optional":true,"field":"sequence"},{"type":"int64","optional":true,"field":"ts_us"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_ns"},{"type":"string","optional":false,"field":"schema"},"#,
    r#"{"type":"string","optional":false,"field":"table"},{"type":"int64","optional":true,"field":"txId"},"#,
    r#"{"type":"int64","optional":true,"field":"lsn"},{"type":"int64","optional":true,"field":"xmin"}"#,
);
const ORIGIN: &str =
    r#",{"type":"string","optional":true,"field":"origin"},{"type":"int64","optional":true,"field":"origin_lsn"}"#;
const REST: &str = concat!(
    r#""field":"source"},{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"},"#,
    r#"{"type":"int64","optional":false,"field":"total_order"},"#,
    r#"{"type":"int64","optional":false,"field":"data_collection_order"}],"optional":true,"#,
    r#""name":"event.block","version":1,"field":"transaction"},{"type":"string","optional":false,"field":"op"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_ms"},{"type":"int64","optional":true,"field":"ts_us"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_ns"}"#,
);

/// How long after its commit the connector has an event ready.
pub const PROCESSING: Micros = SECOND / 3;

#[cfg(test)]
mod tests {
    use super::super::tables::TABLES;
    use super::*;

    fn table(with_schema: bool) -> Table {
        Table::new("emea", "calm_connector_27001", &TABLES[1], with_schema, Debezium::V2_7)
    }

    fn row(table: &Table) -> Row {
        let mut cells = vec![Value::Null; table.spec.columns.len()];
        cells[table.spec.named("lastname").unwrap()] = Value::Text("O'Hara \"x\"\n".into());
        cells[table.spec.named("score__c").unwrap()] = Value::Float(15.0);
        cells[table.spec.named("bio__c").unwrap()] = Value::Text("long ".repeat(500));
        cells[table.spec.named("birthdate").unwrap()] = Value::Date(20_132);
        Row { uid: 1, id: 9, sfid: Some("003Ab00002tdk01IAA".into()), cells, last_op: "SYNCED", err: None, busy: false }
    }

    const AT: SourcePoint = SourcePoint { commit: 1_795_254_437_151_509, lsn: 200, last_commit: 100, tx: 788 };

    #[test]
    fn an_update_has_the_shape_of_debeziums() {
        let table = table(false);
        let value = upsert(&table, 'u', &row(&table), Some(&[]), AT).finish(1_795_254_437_633_177);
        let json: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let top: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = ["before", "after", "source", "transaction", "op", "ts_ms", "ts_us", "ts_ns"];
        expected.sort_unstable();
        let mut top_sorted = top.clone();
        top_sorted.sort_unstable();
        assert_eq!(top_sorted, expected);
        assert_eq!(json["before"], serde_json::Value::Null);
        assert_eq!(json["after"]["bio__c"], PLACEHOLDER);
        assert_eq!(json["after"]["lastname"], "O'Hara \"x\"\n");
        assert_eq!(json["after"]["birthdate"], 20_132);
        assert_eq!(json["after"]["id"], 9);
        assert!(json["after"].get("segment__c").is_none(), "not mapped yet");
        assert_eq!(json["source"]["ts_us"], AT.commit);
        assert_eq!(json["source"]["sequence"], r#"["100","200"]"#);
        assert_eq!(json["ts_ms"], 1_795_254_437_633_i64);
        assert!(String::from_utf8(value).unwrap().contains(r#""score__c":15.0"#));
    }

    #[test]
    fn the_schema_block_names_every_field_of_the_payload() {
        let table = table(true);
        let value = upsert(&table, 'c', &row(&table), None, AT).finish(AT.commit);
        let json: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let fields = json["schema"]["fields"].as_array().unwrap();
        let names: Vec<&str> = fields.iter().map(|field| field["field"].as_str().unwrap()).collect();
        assert_eq!(names, ["before", "after", "source", "transaction", "op", "ts_ms", "ts_us", "ts_ns"]);
        let after: std::collections::BTreeSet<&str> =
            fields[1]["fields"].as_array().unwrap().iter().map(|field| field["field"].as_str().unwrap()).collect();
        let payload = json["payload"]["after"].as_object().unwrap();
        assert_eq!(after, payload.keys().map(String::as_str).collect());
        assert!(payload["bio__c"].as_str().unwrap().len() > 2_000, "an insert carries the long text");
        let source: std::collections::BTreeSet<&str> =
            fields[2]["fields"].as_array().unwrap().iter().map(|field| field["field"].as_str().unwrap()).collect();
        assert_eq!(source, json["payload"]["source"].as_object().unwrap().keys().map(String::as_str).collect());
        let key: serde_json::Value = serde_json::from_slice(&key(&table, 9)).unwrap();
        assert_eq!(key["payload"]["id"], 9);
    }

    #[test]
    fn a_delete_carries_only_its_key() {
        let table = table(false);
        let json: serde_json::Value = serde_json::from_slice(&delete(&table, 9, AT).finish(AT.commit)).unwrap();
        assert_eq!(json["after"], serde_json::Value::Null);
        let known: Vec<&String> = json["before"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, _)| key)
            .collect();
        assert_eq!(known, ["id"]);
    }
}
