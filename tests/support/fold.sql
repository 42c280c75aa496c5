-- The history that the audit table tells, folded in SQL alone. Wants the tables audit and message (what a plain reader
-- of the topics finds), and makes:
--   source_change   one row for each audit row that changed something: with the message that carries it
--   wanted          the versions that a reader in commit order must come to
--   state           every record after each of its audit rows

CREATE TEMP VIEW told AS
SELECT a.n, a.at, a.org, a.object, a.op, a.stamp, m.topic, m.partition, m."offset", m.ts, m.lsn,
  -- A row waiting for its id belongs to the record that its next event names.
  coalesce(a.sfid, CASE WHEN a.op <> 'D' THEN (
    SELECT b.sfid FROM audit b WHERE (b.org, b.object, b.id) = (a.org, a.object, a.id) AND b.n > a.n AND (b.sfid IS NOT NULL OR b.op = 'D')
    ORDER BY b.n LIMIT 1) END) AS sfid,
  a.sfid IS NULL AS pending,
  -- jsonb spells times in ISO 8601's way, history in PostgreSQL's.
  (SELECT jsonb_object_agg(f.key, CASE WHEN f.value #>> '{}' ~ '^\d{4}-\d\d-\d\dT\d\d:' THEN to_jsonb(replace(f.value #>> '{}', 'T', ' ')) ELSE f.value END)
   FROM jsonb_each(a.row) f) AS row
FROM audit a
LEFT JOIN message m ON (m.org, m.object, m.xid, m.id) = (a.org, a.object, a.xid, a.id)
  AND m.op = CASE a.op WHEN 'I' THEN 'c' WHEN 'U' THEN 'u' ELSE 'd' END
WHERE a.op <> 'T';

CREATE TEMP TABLE state AS SELECT * FROM told WHERE sfid IS NOT NULL;

CREATE TEMP TABLE source_change AS
WITH beside AS (
  SELECT *, lag(row) OVER w AS row_before, lag(op) OVER w AS op_before, lag(stamp) OVER w AS stamp_before,
    lag(at) OVER w AS at_before, lead(op) OVER w AS op_after, lead(row) OVER w AS row_after, lead(stamp) OVER w AS stamp_after
  FROM state
  WINDOW w AS (PARTITION BY org, object, sfid ORDER BY n)),
judged AS (
  SELECT *, CASE
      WHEN row_before IS NULL THEN CASE
        WHEN row ->> 'createddate' IS NULL OR (row ->> 'createddate')::timestamp >= at::timestamp - interval '1 day' THEN 'create'
        ELSE 'baseline' END
      -- A delete and an equal insert is a reload, unless Salesforce's stamp says that the row came back later.
      WHEN op = 'D' THEN CASE
        WHEN op_after = 'I' AND row_after = row AND (stamp_after = stamp OR stamp_after < date_trunc('second', at::timestamp)) THEN NULL
        ELSE 'delete' END
      WHEN op = 'I' AND op_before = 'D' THEN CASE
        WHEN row = row_before AND (stamp = stamp_before OR stamp < date_trunc('second', at_before::timestamp)) THEN NULL
        ELSE 'undelete' END
      WHEN row IS DISTINCT FROM row_before THEN 'update'
    END AS kind
  FROM beside)
SELECT j.*, (row_number() OVER (PARTITION BY org, object, sfid ORDER BY n) - 1)::int AS seq,
  max(j.ts) OVER (PARTITION BY org, object, sfid ORDER BY n) AS valid_from,
  CASE kind
    WHEN 'delete' THEN '{}'
    ELSE coalesce((
      SELECT jsonb_object_agg(f.key, jsonb_build_array(coalesce(row_before -> f.key, 'null'), f.value))
      FROM jsonb_each(row) f
      WHERE f.value IS DISTINCT FROM coalesce(row_before -> f.key, 'null')), '{}')
  END AS changes
FROM judged j
WHERE kind IS NOT NULL;

-- What happened to a row while it waited is written when its id comes, by the message that brings it.
CREATE TEMP TABLE wanted AS
SELECT c.org, c.object, c.sfid, c.seq, c.kind, c.changes, c.valid_from, b.topic, b.partition, b."offset"
FROM source_change c
CROSS JOIN LATERAL (
  SELECT s.topic, s.partition, s."offset" FROM state s
  WHERE (s.org, s.object, s.sfid) = (c.org, c.object, c.sfid) AND s.n >= c.n AND NOT s.pending ORDER BY s.n LIMIT 1) b;
