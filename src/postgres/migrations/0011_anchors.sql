-- Late events find their place in the history (see core/judge/splice.rs).

create table afterimage.anchor (
  position_id int,
  "offset" bigint,
  rid int not null,
  op "char" not null,
  row_key bytea,
  lsn bigint,
  at timestamptz,
  d bytea,
  recorded_at timestamptz not null default now(),
  primary key (position_id, "offset", rid));
create index anchor_rid on afterimage.anchor (rid);
create index anchor_recorded on afterimage.anchor (recorded_at);
comment on table afterimage.anchor is
  'Events that moved their record to another key or position, or deleted it, whole: kept until every partition of the topic has passed their source time, for late events are placed by them. Columns as in late_event.';
do $$
begin
  alter table afterimage.anchor alter column d set compression lz4;
exception when feature_not_supported or invalid_parameter_value then
  null; -- A server built without lz4 keeps its default.
end $$;

create index late_event_rid on afterimage.late_event (rid);
create index late_event_waiting on afterimage.late_event (rid) where settled_at is null;
comment on table afterimage.late_event is
  'Events that came after newer ones of their record. op: c u d r; at = source time; d: the row, none for a delete; settled_at, outcome: when it was put in its place, and whether history has a version of it.';

-- What an older release kept has no anchors: it stays beside the history, as it was read.
update afterimage.late_event set settled_at = now(), outcome = 'kept' where settled_at is null;

comment on view afterimage.late_events is 'Events that were read after newer ones of their record, and what became of them: they are put in their place within seconds.';
comment on column afterimage.late_events.settled_at is 'When it was put in its place; NULL = it waits.';
comment on column afterimage.late_events.outcome is 'version: history has one of it. no-op: in its place it changes nothing. kept: it can''t be placed, since what moved its record was read by an older release; it stands here only.';
