-- The tables of the sink. They are singular and may change form; the plural views and the functions
-- (0002-0004) are the interface.
--
-- Least privilege, where roles are split:
--   owner    runs `afterimage migrate`; owns the schema, and the schemas <org>_history.
--   worker   usage on schema afterimage; select, insert, update, delete on all its tables; usage on its
--            sequences; execute on ensure_month(date) and refresh_object_views(smallint, boolean), both made
--            `security definer` by the owner, for they create tables and views.
--   reader   usage on schema afterimage and on <org>_history; select on all their tables and views: the views'
--            functions run as the caller and read the tables below.
-- With one role, as on Heroku, nothing needs to be granted.
--
-- No foreign keys on delta, keyframe and record.home: a parent row's lock for each row written would cost more
-- than the row, and multixacts. `verify` checks references.

comment on schema afterimage is
  'Field-level history behind Kafka topics of row changes. Query the plural views and the functions; the singular tables may change form.';

create table afterimage.meta (
  one bool primary key default true check (one),
  sink_id uuid not null,
  schema_version int not null,
  system_identifier bigint);
comment on table afterimage.meta is 'One row: which sink this is (sink_id), at which schema version, in which database cluster it was made.';

insert into afterimage.meta (sink_id, schema_version) values (gen_random_uuid(), 0);
do $$
begin
  update afterimage.meta set system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() c);
exception when insufficient_privilege then
  null; -- Some providers keep it to themselves; sink_id alone then tells sinks apart.
end $$;

create table afterimage.org (
  org_id smallint primary key generated always as identity,
  name text unique not null,
  sf_org_id text);
comment on table afterimage.org is 'Orgs, as declared in the configuration.';

create table afterimage.object (
  object_id smallint primary key generated always as identity,
  org_id smallint not null references afterimage.org,
  name text not null,
  identity text not null default 'sfid',
  grace interval not null default '15 min',
  retain interval,
  unique (org_id, name));
comment on table afterimage.object is 'Tables under history. identity: sfid, key, or a JSON list of columns; grace: how long a delete waits for its equal re-insert, in source time.';

create table afterimage.field (
  object_id smallint,
  field_no smallint,
  name text,
  class "char" not null,
  types jsonb not null,
  first_seen timestamptz,
  last_seen timestamptz,
  primary key (object_id, field_no),
  unique (object_id, name));
comment on table afterimage.field is 'Field dictionary. class: v visible, s system, h status, x excluded; types: [{"type", "since"}] as applied, newest last.';

create table afterimage.declaration (
  object_id smallint,
  at timestamptz not null default now(),
  masked text[] not null,
  types jsonb not null,
  config_hash bytea,
  primary key (object_id, at));
comment on table afterimage.declaration is 'Each change of an object''s masks or declared types.';

create table afterimage.source (
  source_id smallint primary key generated always as identity,
  name text unique not null,
  kind text not null,
  cluster_id text,
  topic text,
  group_id text,
  org_id smallint,
  object_id smallint,
  config jsonb);
comment on table afterimage.source is 'One source is one topic is one object; the cluster and the group that hold it.';

create table afterimage.position (
  position_id int primary key generated always as identity,
  source_id smallint not null,
  partition int not null,
  incarnation int not null default 0,
  live bool not null default true,
  epoch bigint not null default 0,
  first_next bigint not null,
  next bigint not null,
  inval_seq bigint not null default 0,
  topic_id uuid,
  last_offset bigint,
  last_ts timestamptz,
  last_hash bigint,
  source_at timestamptz,
  source_lsn bigint,
  committed_at timestamptz,
  c_delta bigint not null default 0,
  c_baseline bigint not null default 0,
  c_noop bigint not null default 0,
  c_noop_status bigint not null default 0,
  c_noop_system bigint not null default 0,
  c_duplicate bigint not null default 0,
  c_stale bigint not null default 0,
  c_tombstone bigint not null default 0,
  c_ignored bigint not null default 0,
  c_pending bigint not null default 0,
  c_dead bigint not null default 0,
  c_delete_unknown bigint not null default 0,
  c_forgotten bigint not null default 0,
  c_hole bigint not null default 0,
  c_gap bigint not null default 0,
  rows_written bigint not null default 0,
  rows_cancelled bigint not null default 0,
  rows_erased bigint not null default 0,
  rows_retired bigint not null default 0,
  unique (source_id, partition, incarnation)) with (fillfactor = 30);
create unique index position_live on afterimage.position (source_id, partition) where live;
comment on table afterimage.position is
  'Where each partition stands: next offset to read, the epoch that may write, and what became of every event. next - first_next = the sum of all c_ counters. source_at, source_lsn: the greatest pair of all events below next, snapshot reads left out.';

create table afterimage.claim (
  position_id int,
  epoch bigint,
  token uuid not null,
  from_next bigint not null,
  at timestamptz not null default now(),
  worker text,
  config_hash bytea,
  primary key (position_id, epoch));
comment on table afterimage.claim is 'Who held a position under which epoch, from which offset on.';

create table afterimage.record (
  rid int primary key generated always as identity,
  object_id smallint not null,
  sfid text collate "C" not null,
  home int,
  row_key bytea,
  floor_lsn bigint not null default 0,
  floor_ts timestamptz,
  unique (object_id, sfid)) with (fillfactor = 90);
create index record_row_key on afterimage.record (object_id, row_key) where row_key is not null;
comment on table afterimage.record is
  'Record registry: rid stands for (object, sfid) everywhere; home = the one position that may write it; row_key = its Kafka key now; floor = the first event under that key.';

-- Keyframe 0 is version 0 of its record; keyframe k shows the record after version 64k - 1, with the header of
-- that version (n = 0). Insertion follows time closely enough for BRIN.
create table afterimage.keyframe (
  rid int,
  kf int,
  at timestamptz not null,
  d bytea not null,
  primary key (rid, kf));
create index keyframe_at on afterimage.keyframe using brin (at) with (pages_per_range = 32);
comment on table afterimage.keyframe is 'Full images: the first version of each record, and one before every further 64 versions. d: see header(), fields().';
do $$
begin
  alter table afterimage.keyframe alter column d set compression lz4;
exception when feature_not_supported or invalid_parameter_value then
  null; -- A server built without lz4 keeps its default.
end $$;

create table afterimage.delta (
  at timestamptz not null,
  rid int not null,
  kf int not null,
  d bytea not null) partition by range (at);
create index delta_rid_kf on afterimage.delta (rid, kf);
create index delta_at on afterimage.delta using brin (at) with (pages_per_range = 32);
comment on table afterimage.delta is 'One row per version but the first of each record: valid from, record, chain, and what changed. One partition per month (ensure_month).';

create table afterimage.invalidation (
  position_id int,
  seq bigint,
  rid int not null,
  object_id smallint not null,
  key_hash bigint not null,
  reason "char" not null,
  at timestamptz not null default now(),
  primary key (position_id, seq));
comment on table afterimage.invalidation is 'What a position''s worker must drop from its caches. reason: m move, f forget, s splice, r repair.';

create table afterimage.pending (
  source_id smallint,
  row_key bytea,
  n smallint not null default 0,
  at timestamptz,
  d bytea not null,
  primary key (source_id, row_key, n));
comment on table afterimage.pending is 'Rows that Salesforce has not given an id yet, whole.';

create table afterimage.gap (
  position_id int,
  from_offset bigint,
  to_offset bigint,
  at timestamptz not null default now(),
  reason text not null,
  primary key (position_id, from_offset));
comment on table afterimage.gap is 'Offset ranges [from_offset, to_offset) that the broker no longer had.';

create table afterimage.dead_letter (
  position_id int,
  "offset" bigint,
  at timestamptz not null default now(),
  reason text not null,
  detail text,
  object_id smallint,
  sfid text,
  key bytea,
  value bytea,
  sha256 bytea,
  resolved_at timestamptz,
  primary key (position_id, "offset"));
comment on table afterimage.dead_letter is 'Messages that could not be decoded, with their bytes (beyond 1 MB cut, with the SHA-256 of the whole).';

create table afterimage.old_key (
  object_id smallint,
  row_key bytea,
  rid int not null,
  lsn bigint,
  ts timestamptz,
  primary key (object_id, row_key));
create index old_key_rid on afterimage.old_key (rid);
comment on table afterimage.old_key is 'The last record seen under a row key that it does not hold now.';

create table afterimage.late_event (
  position_id int,
  "offset" bigint,
  rid int not null,
  op "char" not null,
  row_key bytea,
  lsn bigint,
  at timestamptz,
  reason text not null,
  d bytea,
  recorded_at timestamptz not null default now(),
  settled_at timestamptz,
  outcome text,
  primary key (position_id, "offset", rid));
comment on table afterimage.late_event is 'Events that came after newer ones of their record. op: c u d r; at = source time; d: the row, none for a delete.';
