-- The public views. They stay flat: filters reach the indexes of record, keyframe and delta, and what is
-- expensive (folds, provenance) is a scalar in the select list, which costs nothing where it is not selected.

create view afterimage.changes as
select o.name as org, b.name as object, r.sfid,
  afterimage.seq(v.kf, v.d) as seq,
  afterimage.op(v.d) as op,
  v.at,
  case when get_byte(v.d, 0) & 16 = 0 then coalesce(afterimage.stamp(v.at, v.d), afterimage.salesforce_at(r.object_id, v.at, v.d)) end as salesforce_at,
  afterimage.recorded_at(v.at, v.d) as recorded_at,
  afterimage.changed_by(r.object_id, v.rid, v.kf, v.d) as changed_by,
  afterimage.change_set(r.object_id, v.rid, v.kf, v.d) as changes,
  afterimage.is_local(v.d) as local,
  (select s.topic from afterimage.position p join afterimage.source s on s.source_id = p.source_id
   where p.position_id = (afterimage.header(v.d)).position_id) as topic,
  (select p.partition from afterimage.position p where p.position_id = (afterimage.header(v.d)).position_id) as partition,
  (afterimage.header(v.d))."offset" as "offset"
from afterimage.org o
join afterimage.object b on b.org_id = o.org_id
join afterimage.record r on r.object_id = b.object_id
join (
  select c.rid, c.kf, c.at, c.d, false as keyframe from afterimage.delta c
  union all
  select k.rid, k.kf, k.at, k.d, true from afterimage.keyframe k) v on v.rid = r.rid
-- Not within the union: a branch with a condition of its own is not flattened, and then keyframe is scanned whole.
where not v.keyframe or v.kf = 0;
comment on view afterimage.changes is 'One row for each stored version of each record: what changed, when by three clocks, by whom, and which Kafka message brought it.';
comment on column afterimage.changes.org is 'Org, as declared in the configuration.';
comment on column afterimage.changes.object is 'Table name.';
comment on column afterimage.changes.sfid is 'Record id: Salesforce''s 18 characters, or the row key where the object is identified by it.';
comment on column afterimage.changes.seq is 'Version number within the record, from 0.';
comment on column afterimage.changes.op is 'baseline (first sight of a record that existed before), create, update, backfill (a value became known without an edit), delete, undelete.';
comment on column afterimage.changes.at is 'Valid from: source commit time, never before the version before.';
comment on column afterimage.changes.salesforce_at is 'Salesforce''s own stamp (systemmodstamp); NULL on local writes and where the row had none.';
comment on column afterimage.changes.recorded_at is 'When afterimage wrote the version; never before the version before. Milliseconds.';
comment on column afterimage.changes.changed_by is 'Last modifying user (lastmodifiedbyid) as known at this version; NULL on local writes, on deletes, and where the table does not have it.';
comment on column afterimage.changes.changes is '{"field": [old, new]}. Numbers and booleans as JSON, all else as PostgreSQL''s text; absent old = null; never shown = {"$unknown": true}. A delete has none.';
comment on column afterimage.changes.local is 'An application wrote it into the table; Salesforce had not seen it yet.';
comment on column afterimage.changes.topic is 'Kafka topic of the message.';
comment on column afterimage.changes.partition is 'Kafka partition of the message.';
comment on column afterimage.changes."offset" is 'Kafka offset of the message.';

create view afterimage.field_changes as
select c.org, c.object, c.sfid, c.seq, c.op, c.at, c.salesforce_at, c.recorded_at, c.changed_by, c.local,
  c.topic, c.partition, c."offset",
  e.key as field,
  nullif(e.value -> 0, 'null') as "old",
  nullif(e.value -> 1, 'null') as "new"
from afterimage.changes c
cross join lateral jsonb_each(c.changes) e;
comment on view afterimage.field_changes is 'One row for each field that a version changed.';
comment on column afterimage.field_changes.org is 'Org, as declared in the configuration.';
comment on column afterimage.field_changes.object is 'Table name.';
comment on column afterimage.field_changes.sfid is 'Record id, as in changes.';
comment on column afterimage.field_changes.seq is 'Version number within the record, from 0.';
comment on column afterimage.field_changes.op is 'What the version is, as in changes.';
comment on column afterimage.field_changes.at is 'Valid from: source commit time, never before the version before.';
comment on column afterimage.field_changes.salesforce_at is 'Salesforce''s own stamp; NULL on local writes and where the row had none.';
comment on column afterimage.field_changes.recorded_at is 'When afterimage wrote the version.';
comment on column afterimage.field_changes.changed_by is 'Last modifying user as known at this version, as in changes.';
comment on column afterimage.field_changes.local is 'An application wrote it into the table; Salesforce had not seen it yet.';
comment on column afterimage.field_changes.topic is 'Kafka topic of the message.';
comment on column afterimage.field_changes.partition is 'Kafka partition of the message.';
comment on column afterimage.field_changes."offset" is 'Kafka offset of the message.';
comment on column afterimage.field_changes.field is 'Field name.';
comment on column afterimage.field_changes."old" is 'Value before; NULL if it was null or absent; {"$unknown": true} if the stream never showed it.';
comment on column afterimage.field_changes."new" is 'Value after, likewise.';

-- keyframe 0 is joined for first_at, and hides registry rows whose first batch was rolled back.
create view afterimage.records as
select o.name as org, b.name as object, r.sfid,
  case when get_byte(coalesce(h.d, k.d), 0) & 7 = 4 then 'deleted' else 'live' end as status,
  case when h.d is not null then afterimage.seq(k.kf, h.d) else greatest(k.kf * 64 - 1, 0) end as seq,
  z.at as first_at,
  coalesce(h.at, k.at) as last_at,
  afterimage.show(r.object_id, afterimage.fold(r.rid, k.kf)) as image
from afterimage.org o
join afterimage.object b on b.org_id = o.org_id
join afterimage.record r on r.object_id = b.object_id
join afterimage.keyframe z on z.rid = r.rid and z.kf = 0
cross join lateral (
  select q.kf, q.at, q.d from afterimage.keyframe q where q.rid = r.rid order by q.kf desc limit 1) k
left join lateral (
  select v.at, v.d from afterimage.delta v where v.rid = r.rid and v.kf = k.kf
  order by get_byte(v.d, 1) & 63 desc limit 1) h on true;
comment on view afterimage.records is 'The last image of each record, deleted ones too.';
comment on column afterimage.records.org is 'Org, as declared in the configuration.';
comment on column afterimage.records.object is 'Table name.';
comment on column afterimage.records.sfid is 'Record id: Salesforce''s 18 characters, or the row key where the object is identified by it.';
comment on column afterimage.records.status is 'live or deleted.';
comment on column afterimage.records.seq is 'Number of the last version, from 0.';
comment on column afterimage.records.first_at is 'Valid-from of the first version.';
comment on column afterimage.records.last_at is 'Valid-from of the last version.';
comment on column afterimage.records.image is 'Every visible field observed so far, by name, null where it is null; of a deleted record as it was last. Value forms as in changes.';

create view afterimage.positions as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation,
  p.first_next as first_offset, p.next as next_offset, p.epoch, p.source_at, p.committed_at,
  (select c.worker from afterimage.claim c where c.position_id = p.position_id order by c.epoch desc limit 1) as worker
from afterimage.position p
join afterimage.source s on s.source_id = p.source_id
left join afterimage.org o on o.org_id = s.org_id
left join afterimage.object b on b.object_id = s.object_id;
comment on view afterimage.positions is 'Where every partition stands.';
comment on column afterimage.positions.org is 'Org, as declared in the configuration.';
comment on column afterimage.positions.object is 'Table name.';
comment on column afterimage.positions.topic is 'Kafka topic.';
comment on column afterimage.positions.partition is 'Kafka partition.';
comment on column afterimage.positions.incarnation is 'Rises when the topic was made anew and adopted.';
comment on column afterimage.positions.first_offset is 'Where reading began.';
comment on column afterimage.positions.next_offset is 'The next offset to read: everything before it is in the history or accounted for in outcomes.';
comment on column afterimage.positions.epoch is 'How often the partition was claimed; only the last claimant can write.';
comment on column afterimage.positions.source_at is 'Latest source commit time of all events read, snapshot reads left out.';
comment on column afterimage.positions.committed_at is 'When the position last moved.';
comment on column afterimage.positions.worker is 'Worker of the latest claim.';

create view afterimage.gaps as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation, g.from_offset, g.to_offset, g.at, g.reason
from afterimage.gap g
join afterimage.position p on p.position_id = g.position_id
join afterimage.source s on s.source_id = p.source_id
left join afterimage.org o on o.org_id = s.org_id
left join afterimage.object b on b.object_id = s.object_id;
comment on view afterimage.gaps is 'Offsets that the broker no longer had when they were to be read: history may miss changes there.';
comment on column afterimage.gaps.org is 'Org, as declared in the configuration.';
comment on column afterimage.gaps.object is 'Table name.';
comment on column afterimage.gaps.topic is 'Kafka topic.';
comment on column afterimage.gaps.partition is 'Kafka partition.';
comment on column afterimage.gaps.incarnation is 'Which life of the topic, as in positions.';
comment on column afterimage.gaps.from_offset is 'First offset that is missing.';
comment on column afterimage.gaps.to_offset is 'First offset that is there again.';
comment on column afterimage.gaps.at is 'When the gap was found.';
comment on column afterimage.gaps.reason is 'Why.';

create view afterimage.dead_letters as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation, l."offset", l.at, l.reason,
  l.detail, l.sfid, l.key, l.value, l.sha256, l.resolved_at
from afterimage.dead_letter l
join afterimage.position p on p.position_id = l.position_id
join afterimage.source s on s.source_id = p.source_id
left join afterimage.org o on o.org_id = s.org_id
left join afterimage.object b on b.object_id = coalesce(l.object_id, s.object_id);
comment on view afterimage.dead_letters is 'Messages that could not be decoded.';
comment on column afterimage.dead_letters.org is 'Org, as declared in the configuration.';
comment on column afterimage.dead_letters.object is 'Table name.';
comment on column afterimage.dead_letters.topic is 'Kafka topic.';
comment on column afterimage.dead_letters.partition is 'Kafka partition.';
comment on column afterimage.dead_letters.incarnation is 'Which life of the topic, as in positions.';
comment on column afterimage.dead_letters."offset" is 'Kafka offset.';
comment on column afterimage.dead_letters.at is 'When it was put aside.';
comment on column afterimage.dead_letters.reason is 'Why, in a fixed word or two.';
comment on column afterimage.dead_letters.detail is 'Where in the message; never a field''s value.';
comment on column afterimage.dead_letters.sfid is 'Record id, if it could be read.';
comment on column afterimage.dead_letters.key is 'The message''s key.';
comment on column afterimage.dead_letters.value is 'The message''s value, cut after 1 MB.';
comment on column afterimage.dead_letters.sha256 is 'SHA-256 of the whole value, where it was cut.';
comment on column afterimage.dead_letters.resolved_at is 'When it was retried with success.';

create view afterimage.late_events as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation, l."offset", l.at, l.reason,
  r.sfid, l.op::text as op, l.recorded_at, l.settled_at, l.outcome
from afterimage.late_event l
join afterimage.position p on p.position_id = l.position_id
join afterimage.source s on s.source_id = p.source_id
left join afterimage.record r on r.rid = l.rid
left join afterimage.object b on b.object_id = coalesce(r.object_id, s.object_id)
left join afterimage.org o on o.org_id = coalesce(b.org_id, s.org_id);
comment on view afterimage.late_events is 'Events that arrived after newer ones of their record: kept with their row, not part of the history.';
comment on column afterimage.late_events.org is 'Org, as declared in the configuration.';
comment on column afterimage.late_events.object is 'Table name.';
comment on column afterimage.late_events.topic is 'Kafka topic.';
comment on column afterimage.late_events.partition is 'Kafka partition.';
comment on column afterimage.late_events.incarnation is 'Which life of the topic, as in positions.';
comment on column afterimage.late_events."offset" is 'Kafka offset.';
comment on column afterimage.late_events.at is 'Source commit time.';
comment on column afterimage.late_events.reason is 'Why it could not be judged in its turn.';
comment on column afterimage.late_events.sfid is 'Record id.';
comment on column afterimage.late_events.op is 'Debezium''s op: c, u, d or r.';
comment on column afterimage.late_events.recorded_at is 'When it was kept.';
comment on column afterimage.late_events.settled_at is 'When it was put in its place.';
comment on column afterimage.late_events.outcome is 'What it then turned out to be.';

create view afterimage.outcomes as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation, c.outcome, c.reason, c.events
from afterimage.position p
join afterimage.source s on s.source_id = p.source_id
left join afterimage.org o on o.org_id = s.org_id
left join afterimage.object b on b.object_id = s.object_id
cross join lateral (values
  ('delta', null, p.c_delta), ('baseline', null, p.c_baseline),
  ('noop', 'identical', p.c_noop), ('noop', 'status', p.c_noop_status), ('noop', 'system', p.c_noop_system),
  ('duplicate', null, p.c_duplicate), ('stale', null, p.c_stale), ('tombstone', null, p.c_tombstone),
  ('ignored', null, p.c_ignored), ('pending', null, p.c_pending), ('dead_letter', null, p.c_dead),
  ('delete_unknown', null, p.c_delete_unknown), ('forgotten', null, p.c_forgotten),
  ('hole', null, p.c_hole), ('gap', null, p.c_gap)) c(outcome, reason, events);
comment on view afterimage.outcomes is 'What became of every offset: for each partition, next_offset - first_offset of positions = the sum of events here.';
comment on column afterimage.outcomes.org is 'Org, as declared in the configuration.';
comment on column afterimage.outcomes.object is 'Table name.';
comment on column afterimage.outcomes.topic is 'Kafka topic.';
comment on column afterimage.outcomes.partition is 'Kafka partition.';
comment on column afterimage.outcomes.incarnation is 'Which life of the topic, as in positions.';
comment on column afterimage.outcomes.outcome is 'delta, baseline, noop, duplicate, stale, tombstone, ignored, pending, dead_letter, delete_unknown, forgotten; hole (an offset without a message), gap (lost before it was read).';
comment on column afterimage.outcomes.reason is 'For a noop: identical, or only status or system columns differed. NULL otherwise.';
comment on column afterimage.outcomes.events is 'How many.';

create view afterimage.declarations as
select o.name as org, b.name as object, d.at, d.masked, d.types
from afterimage.declaration d
join afterimage.object b on b.object_id = d.object_id
join afterimage.org o on o.org_id = b.org_id;
comment on view afterimage.declarations is 'Each change of what is kept out of an object''s history, and of its declared types.';
comment on column afterimage.declarations.org is 'Org, as declared in the configuration.';
comment on column afterimage.declarations.object is 'Table name.';
comment on column afterimage.declarations.at is 'Since when.';
comment on column afterimage.declarations.masked is 'Columns that are not kept.';
comment on column afterimage.declarations.types is 'Declared types, by column.';
