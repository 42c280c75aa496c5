-- Lookup fields: by which values records are found through the typed views, and those views once more.
--
-- record_lookup holds every value that a record ever had in a lookup field, not only the newest. So for each version
-- with a value there is exactly one row that equals it, and a typed view may show the row's value for the field's:
--
--     … left join record_lookup l on l.object_id = … and l.field_no = … and l.rid = r.rid and l.value = <the field>
--
-- A filter on the column makes that an inner join that starts at the index; one that is not mentioned is not joined at
-- all (the primary key proves that it changes nothing). Results are the same with and without it.
-- That stands on the rows being complete, so a view reads a lookup only in state `ready`; see work_lookups().

create table afterimage.lookup (
  object_id smallint,
  name text,
  state text not null check (state in ('building', 'ready', 'refused', 'dropping')),
  done_rid int not null default 0,
  upto_rid int not null,
  fenced int[] not null,
  declared_at timestamptz not null default now(),
  ready_at timestamptz,
  note text,
  primary key (object_id, name));
comment on table afterimage.lookup is
  'Declared lookup fields. building: rows of record_lookup are made from stored versions, done up to record done_rid of upto_rid; refused: see note; dropping: no longer declared, its rows go. fenced: positions whose owners were made to claim again, and so to learn of it.';

create table afterimage.record_lookup (
  object_id smallint,
  field_no smallint,
  value text collate "C",
  rid int,
  primary key (object_id, field_no, value, rid));
comment on table afterimage.record_lookup is 'Every value that a record ever had in a lookup field.';

create table afterimage.object_view (
  object_id smallint primary key,
  definition text not null,
  refreshed_at timestamptz not null default now(),
  left_out int not null,
  lookups smallint[] not null,
  note text);
comment on table afterimage.object_view is
  'How each typed view was made last: MD5 of what it should be, number of fields that had no room, lookup fields that it reads, and why it is not what it should be (note).';

-- The claim leaves a row like any other: without one, local records of these positions would be of an unknown line.
create function afterimage.fence(positions int[]) returns void language sql
begin atomic
  with moved as (
    update afterimage.position set epoch = position.epoch + 1 where position.position_id = any ($1)
    returning position.position_id, position.epoch, position.next)
  insert into afterimage.claim (position_id, epoch, token, from_next, worker)
  select m.position_id, m.epoch, gen_random_uuid(), m.next, 'lookup fields changed' from moved m;
end;
comment on function afterimage.fence(int[]) is
  'Makes the owners of positions claim them again: their commits are refused from here on. The rows must be locked, in order.';

-- One bounded step of what an object's lookups need; any number of sessions may ask. `more`: ask again; `changed`: the
-- typed view can be made anew, then ask again; `idle`: nothing to do.
create function afterimage.work_lookups(object_id smallint, records int default 2000) returns text language plpgsql as $$
#variable_conflict use_column
declare
  one afterimage.lookup;
  no smallint;
  upto int;
  late int[];
  gone bigint;
begin
  select * into one from afterimage.lookup l
  where l.object_id = $1 and (l.state = 'building' or (l.state = 'dropping' and not exists (
    -- Rows that a view reads stay.
    select from afterimage.object_view w join afterimage.field f on f.object_id = $1 and f.name = l.name
    where w.object_id = $1 and f.field_no = any (w.lookups))))
  order by l.name limit 1
  for update skip locked;
  if not found then
    return 'idle';
  end if;
  no := (select f.field_no from afterimage.field f where f.object_id = $1 and f.name = one.name);

  if one.state = 'dropping' then
    delete from afterimage.record_lookup where ctid = any (array(
      select r.ctid from afterimage.record_lookup r where r.object_id = $1 and r.field_no = no limit $2 * 10));
    get diagnostics gone = row_count;
    if gone < $2 * 10 then
      delete from afterimage.lookup l where l.object_id = $1 and l.name = one.name;
    end if;
    return 'more';
  end if;

  if one.done_rid >= one.upto_rid or no is null then
    -- A partition claimed for the first time while the field was being declared may have been overlooked.
    select coalesce(array_agg(p.position_id), '{}') into late
    from (
      select p.position_id from afterimage.position p join afterimage.source s on s.source_id = p.source_id
      where s.object_id = $1 and p.live and p.position_id <> all (one.fenced)
      order by p.position_id for no key update of p) p;
    if cardinality(late) > 0 then
      perform afterimage.fence(late);
      update afterimage.lookup l
      set fenced = one.fenced || late, done_rid = 0, upto_rid = (select coalesce(max(r.rid), 0) from afterimage.record r)
      where l.object_id = $1 and l.name = one.name;
      return 'more';
    end if;
    update afterimage.lookup l set state = 'ready', ready_at = now() where l.object_id = $1 and l.name = one.name;
    return 'changed';
  end if;

  select coalesce(max(x.rid), one.upto_rid) into upto from (
    select r.rid from afterimage.record r where r.rid > one.done_rid and r.rid <= one.upto_rid order by r.rid limit $2) x;
  with seen as (
    select distinct r.rid, afterimage.text_of(afterimage.fields(v.d), no::text) as value
    from afterimage.record r
    cross join lateral (
      select k.d from afterimage.keyframe k where k.rid = r.rid
      union all
      select c.d from afterimage.delta c where c.rid = r.rid) v
    where r.rid > one.done_rid and r.rid <= upto and r.object_id = $1),
  kept as (
    insert into afterimage.record_lookup (object_id, field_no, value, rid)
    select $1, no, f.value, f.rid from seen f
    where octet_length(f.value) <= 2000
    order by f.value collate "C", f.rid
    on conflict do nothing)
  select count(*) into gone from seen f where octet_length(f.value) > 2000;
  if gone > 0 then
    perform afterimage.refuse_lookup($1, no);
    return 'changed';
  end if;
  update afterimage.lookup l set done_rid = upto where l.object_id = $1 and l.name = one.name;
  return 'more';
end $$;
comment on function afterimage.work_lookups(smallint, int) is
  'One step of building or dropping the lookups of an object: idle, more (call again), or changed (refresh_object_views(), then call again). Workers do it by themselves.';

-- An index row holds no more; Salesforce's own limit for external ids is 255 characters.
create function afterimage.refuse_lookup(object_id smallint, field_no smallint) returns void language sql
begin atomic
  update afterimage.lookup l
  set state = 'refused', note = 'a value is longer than 2000 bytes: take the field out of `lookup`'
  from afterimage.field f
  where l.object_id = $1 and f.object_id = $1 and f.field_no = $2 and f.name = l.name and l.state in ('building', 'ready');
end;
comment on function afterimage.refuse_lookup(smallint, smallint) is 'Gives a lookup field up, because one of its values is too long for an index.';

-- What CREATE OR REPLACE would reset; see the end of this file.
select set_config('afterimage.definer', p.prosecdef::text, true)
from pg_proc p where p.oid = 'afterimage.refresh_object_views(smallint, boolean)'::regprocedure;

-- As 0006 says, and: at most 1,600 columns, the most of any relation; lookup fields in state ready are read through
-- record_lookup, and then sort in C order, as sfid does. What was granted is granted on a new view, too. Why a view is
-- not what it should be stands in its comment and in typed_views.
create or replace function afterimage.refresh_object_views(object_id smallint, force boolean default false) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  org_name text;
  object_name text;
  by_sfid boolean;
  ns text;
  view_name text;
  fn_name text;
  full_name text;
  view_id regclass;
  fn_id regprocedure;
  changed_by text;
  joins text;
  lookups smallint[];
  want_names text[];
  want_types text[];
  want_colls text[];
  want_exprs text[];
  want_notes text[];
  want_fields smallint[];
  have_names text[];
  have_types text[];
  have_colls text[];
  kept_exprs text[] := '{}';
  kept_notes text[] := '{}';
  grants text[] := '{}';
  wanted_md5 text;
  problem text;
  users text;
  stale text[] := '{}';
  left_out int;
  statement text;
  helpers constant text[] := '{_seq,_op,_at,_salesforce_at,_recorded_at,_changed_by}';
  most constant int := 1600;
  j int;
begin
  perform pg_advisory_xact_lock(hashtextextended('afterimage.refresh_object_views', 0));

  select o.name, b.name, b.identity = 'sfid' into org_name, object_name, by_sfid
  from afterimage.object b join afterimage.org o on o.org_id = b.org_id
  where b.object_id = $1;
  if not found then
    raise exception 'no object %', $1 using errcode = 'invalid_parameter_value';
  end if;
  ns := (org_name || '_history')::name;
  view_name := object_name::name;
  fn_name := (object_name || '_as_of')::name;
  full_name := org_name || '.' || object_name;

  select format('case when get_byte(v.d, 0) & 16 = 0 and get_byte(v.d, 0) & 7 <> 4 then afterimage.text_of(v.f, %L) end', f.field_no)
  into changed_by
  from afterimage.field f
  where f.object_id = $1 and f.name = 'lastmodifiedbyid' and f.class in ('s', 'v');

  with fields as (
    select f.field_no, f.name::name::text as name, afterimage.type_name(f.types -> -1 ->> 'type') as type,
      exists (select from afterimage.lookup l where l.object_id = $1 and l.name = f.name and l.state = 'ready')
        and afterimage.type_name(f.types -> -1 ->> 'type') = 'text' as lookup,
      case when f.misfit_at is not null and f.misfit_type = f.types -> -1 ->> 'type'
        then format(' Values that do not fit came since %s, the first at position %s, offset %s.',
          to_char(f.misfit_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI"Z"'), f.misfit_position, f.misfit_offset) end as misfit
    from afterimage.field f
    where f.object_id = $1 and f.class = 'v' and not f.name = any (helpers)),
  wanted as (
    select -8 as ord, null::smallint as field_no, 'id' as name, 'integer' as type, '' as coll, 'v.seq' as expr,
      'Version number within the record, from 0: rises with each version.' as note
    where by_sfid and not exists (select from fields where name = 'id')
    union all
    select -7, null, 'sfid', 'text', 'C', 'r.sfid', 'Record id.'
    where not exists (select from fields where name = 'sfid')
    union all
    values
      (-6, null::smallint, '_seq', 'integer', '', 'v.seq', 'Version number within the record, from 0.'),
      (-5, null, '_op', 'text', '', 'afterimage.op(v.d)',
        'What the version is: baseline, create, update, backfill, delete (shows the last image), undelete.'),
      (-4, null, '_at', 'timestamp with time zone', '', 'v.at', 'Valid from: source commit time.'),
      (-3, null, '_salesforce_at', 'timestamp with time zone', '',
        'case when get_byte(v.d, 0) & 16 = 0 then coalesce(afterimage.stamp(v.at, v.d), afterimage.salesforce_at(r.object_id, v.at, v.d)) end',
        'Salesforce''s own stamp; NULL on local writes and where the row had none.'),
      (-2, null, '_recorded_at', 'timestamp with time zone', '', 'afterimage.recorded_at(v.at, v.d)',
        'When afterimage wrote the version.'),
      (-1, null, '_changed_by', 'text', '', coalesce(changed_by, 'null'),
        'Last modifying user as known at this version; NULL on local writes and deletes.')
    union all
    select f.field_no, f.field_no, f.name, f.type, case when f.lookup then 'C' else '' end,
      case when f.lookup then format('l%s.value', f.field_no) else afterimage.column_expression(f.field_no, f.type) end,
      format('Field %s of %s as %s; NULL also where its value does not fit the type or is unknown.%s%s', f.name, full_name,
        f.type, case when f.lookup then ' A lookup field: a filter on it finds its records by index.' end, f.misfit)
    from fields f),
  numbered as (select w.*, row_number() over (order by w.ord) as n from wanted w)
  select array_agg(w.name order by w.ord) filter (where w.n <= most), array_agg(w.type order by w.ord) filter (where w.n <= most),
    array_agg(w.coll order by w.ord) filter (where w.n <= most), array_agg(w.expr order by w.ord) filter (where w.n <= most),
    array_agg(w.note order by w.ord) filter (where w.n <= most), array_agg(w.field_no order by w.ord) filter (where w.n <= most),
    count(*) filter (where w.n > most)
  into want_names, want_types, want_colls, want_exprs, want_notes, want_fields, left_out
  from numbered w;
  wanted_md5 := md5(to_json(array[want_names, want_types, want_colls, want_exprs, want_notes])::text || left_out || by_sfid);

  view_id := to_regclass(format('%I.%I', ns, view_name));
  fn_id := to_regprocedure(format('%I.%I(timestamptz)', ns, fn_name));
  if view_id is not null then
    select array_agg(a.attname::text order by a.attnum), array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum),
      array_agg(case when c.collname = 'C' then 'C' else '' end order by a.attnum)
    into have_names, have_types, have_colls
    from pg_attribute a
    left join pg_collation c on c.oid = a.attcollation
    where a.attrelid = view_id and a.attnum > 0 and not a.attisdropped;
    if fn_id is not null and not force and have_names = want_names and have_types = want_types
      and have_colls = want_colls and exists (select from afterimage.object_view w where w.object_id = $1 and w.definition = wanted_md5) then
      return;
    end if;
  end if;

  if to_regnamespace(quote_ident(ns)) is null then
    execute format('create schema %I', ns);
    execute format('comment on schema %I is %L', ns,
      'Typed history of org ' || org_name || ', one view and one function for each object. Made by afterimage.');
  end if;

  if view_id is not null and (have_names <> want_names[:cardinality(have_names)]
    or have_types <> want_types[:cardinality(have_names)] or have_colls <> want_colls[:cardinality(have_names)]) then
    select array_agg(format('grant %s on %s to %s%s', x.privilege_type, x.on_what, x.role, x.option)) into grants
    from (
      select a.privilege_type, format('%I.%I', ns, view_name) as on_what,
        case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as role,
        case when a.is_grantable then ' with grant option' else '' end as option
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where c.oid = view_id and a.grantee <> c.relowner
      union all
      select a.privilege_type, format('function %I.%I(timestamptz)', ns, fn_name),
        case when a.grantee = 0 then 'public' else a.grantee::regrole::text end,
        case when a.is_grantable then ' with grant option' else '' end
      from pg_proc p cross join lateral aclexplode(p.proacl) a
      where p.oid = fn_id and a.grantee <> p.proowner) x;
    if (select p.proacl is not null from pg_proc p where p.oid = fn_id) then
      grants := format('revoke all on function %I.%I(timestamptz) from public', ns, fn_name) || grants;
    end if;
    begin
      execute format('drop function if exists %I.%I(timestamptz)', ns, fn_name);
      execute format('drop view %I.%I', ns, view_name);
    exception when dependent_objects_still_exist then
      get stacked diagnostics users = pg_exception_detail;
      grants := '{}';
      for i in 1 .. cardinality(have_names) loop
        j := array_position(want_names, have_names[i]);
        if j is null or want_types[j] <> have_types[i] or want_colls[j] <> have_colls[i] then
          stale := stale || have_names[i];
        end if;
        kept_exprs := kept_exprs || case
          when j is null then 'null'
          when want_types[j] = have_types[i] and want_colls[j] = have_colls[i] then want_exprs[j]
          when want_fields[j] is not null and afterimage.type_name(have_types[i]) = have_types[i]
            then format(case when have_colls[i] = 'C' then '%s collate "C"' else '%s' end,
              afterimage.column_expression(want_fields[j], have_types[i]))
          else 'null'
        end;
        kept_notes := kept_notes || coalesce(want_notes[j], 'No longer part of the history.');
      end loop;
      for k in 1 .. cardinality(want_names) loop
        if not want_names[k] = any (have_names) then
          if cardinality(have_names) < most then
            have_names := have_names || want_names[k];
            have_types := have_types || want_types[k];
            have_colls := have_colls || want_colls[k];
            kept_exprs := kept_exprs || want_exprs[k];
            kept_notes := kept_notes || want_notes[k];
          else
            left_out := left_out + 1;
          end if;
        end if;
      end loop;
      want_names := have_names;
      want_types := have_types;
      want_exprs := kept_exprs;
      want_notes := kept_notes;
      if cardinality(stale) > 0 then
        problem := format('column %s as it was before, for something was built on the view (%s): drop that, call afterimage.refresh_object_views(%s::smallint), make it again',
          array_to_string(stale, ', '), replace(users, E'\n', '; '), $1);
      else
        problem := format('new order of columns waits, for something was built on the view (%s): drop that, call afterimage.refresh_object_views(%s::smallint), make it again',
          replace(users, E'\n', '; '), $1);
      end if;
    end;
  end if;

  select coalesce(string_agg(format(' left join afterimage.record_lookup l%1$s on l%1$s.object_id = %2$s and l%1$s.field_no = %1$s '
      'and l%1$s.value = afterimage.text_of(v.f, ''%1$s'') and l%1$s.rid = r.rid', f.field_no, $1), '' order by f.field_no), ''),
    coalesce(array_agg(f.field_no), '{}')
  into joins, lookups
  from afterimage.field f
  where f.object_id = $1 and format('l%s.value', f.field_no) = any (want_exprs);

  execute format('create or replace view %I.%I as select %s from afterimage.record r cross join lateral afterimage.versions_of(r.rid) v%s where r.object_id = %s',
    ns, view_name,
    (select string_agg(format('(%s)::%s as %I', c.expr, c.type, c.name), ', ' order by c.ord)
     from unnest(want_names, want_types, want_exprs) with ordinality c(name, type, expr, ord)),
    joins, $1);
  view_id := to_regclass(format('%I.%I', ns, view_name));
  execute format('comment on view %I.%I is %L', ns, view_name,
    'Every version of every record of ' || full_name || ' with all its columns. Made by afterimage.'
    || case when left_out > 0 then format(' %s fields have no room here (a relation has at most %s columns): they are in afterimage.changes and afterimage.records.', left_out, most) else '' end
    || coalesce(' Not as it should be: ' || problem || '.', ''));
  for i in 1 .. cardinality(want_names) loop
    if col_description(view_id, i) is distinct from want_notes[i] then
      execute format('comment on column %I.%I.%I is %L', ns, view_name, want_names[i], want_notes[i]);
    end if;
  end loop;

  -- Rows of the view's type: a TABLE (…) would give sfid the default collation, and the index on it is C.
  execute format('create or replace function %I.%I(timestamptz) returns setof %I.%I language sql stable parallel safe begin atomic '
      'select %s from afterimage.record r cross join lateral (select case when x.n < 0 then greatest(x.kf * 64 - 1, 0) '
      'else x.kf * 64 + x.n end as seq, x.at, x.d, x.f from afterimage.version_as_of(r.rid, $1) x offset 0) v%s '
      'where r.object_id = %s and get_byte(v.d, 0) & 7 <> 4; end',
    ns, fn_name, ns, view_name,
    (select string_agg(format('(%s)::%s', c.expr, c.type), ', ' order by c.ord)
     from unnest(want_types, want_exprs) with ordinality c(type, expr, ord)),
    joins, $1);
  execute format('comment on function %I.%I(timestamptz) is %L', ns, fn_name,
    'Every record of ' || full_name || ' that was there at a moment of source commit time (inclusive), as it was. Made by afterimage.');
  foreach statement in array coalesce(grants, '{}') loop
    execute statement;
  end loop;

  insert into afterimage.object_view as w (object_id, definition, left_out, lookups, note)
  values ($1, wanted_md5, left_out, lookups, problem)
  on conflict (object_id) do update set definition = excluded.definition, refreshed_at = now(),
    left_out = excluded.left_out, lookups = excluded.lookups, note = excluded.note;
end $$;
comment on function afterimage.refresh_object_views(smallint, boolean) is
  'Makes or brings up to date the typed view <org>_history.<object> and the function <object>_as_of(timestamptz). Does nothing if they are as they should be, unless forced. Never drops what was built on them: see typed_views.';
do $$
begin
  if current_setting('afterimage.definer') = 'true' then
    alter function afterimage.refresh_object_views(smallint, boolean) security definer;
  end if;
end $$;

create view afterimage.fields as
select o.name as org, b.name as object, f.name as field,
  case f.class when 'v' then 'visible' when 's' then 'system' when 'h' then 'status' else 'excluded' end as class,
  f.types -> -1 ->> 'type' as type,
  f.first_seen,
  l.state as lookup,
  case when f.misfit_type = f.types -> -1 ->> 'type' then f.misfit_at end as misfit_at,
  case when f.misfit_type = f.types -> -1 ->> 'type' then (
    select s.topic || ', partition ' || p.partition || ', offset ' || f.misfit_offset
    from afterimage.position p join afterimage.source s on s.source_id = p.source_id
    where p.position_id = f.misfit_position) end as misfit_message,
  coalesce(l.note, case when l.state is not null and afterimage.type_name(f.types -> -1 ->> 'type') <> 'text'
    then 'not used by the typed view: only columns shown as text can be looked up' end) as note
from afterimage.field f
join afterimage.object b on b.object_id = f.object_id
join afterimage.org o on o.org_id = b.org_id
left join afterimage.lookup l on l.object_id = f.object_id and l.name = f.name;
comment on view afterimage.fields is 'The columns seen so far, and what is made of them.';
comment on column afterimage.fields.org is 'Org, as declared in the configuration.';
comment on column afterimage.fields.object is 'Table name.';
comment on column afterimage.fields.field is 'Column name.';
comment on column afterimage.fields.class is 'visible (part of the history), system (travels with versions), status (never stored), excluded (masked).';
comment on column afterimage.fields.type is 'Type, as declared or observed last.';
comment on column afterimage.fields.first_seen is 'Source time of the first event that had it.';
comment on column afterimage.fields.lookup is 'building, ready, refused or dropping, if it is or was declared as a lookup field.';
comment on column afterimage.fields.misfit_at is 'Since when values come that do not fit the declared type; the typed view shows NULL for them.';
comment on column afterimage.fields.misfit_message is 'Kafka message of the first such value.';
comment on column afterimage.fields.note is 'What is wrong with it as a lookup field, and what to do.';

create view afterimage.typed_views as
select o.name as org, b.name as object, o.name || '_history' as schema, b.name as view, w.refreshed_at, w.left_out, w.note
from afterimage.object_view w
join afterimage.object b on b.object_id = w.object_id
join afterimage.org o on o.org_id = b.org_id;
comment on view afterimage.typed_views is 'The typed views, and what keeps them from being as they should be.';
comment on column afterimage.typed_views.org is 'Org, as declared in the configuration.';
comment on column afterimage.typed_views.object is 'Table name.';
comment on column afterimage.typed_views.schema is 'Schema of the view.';
comment on column afterimage.typed_views.view is 'Name of the view.';
comment on column afterimage.typed_views.refreshed_at is 'When it was made, or brought up to date, last.';
comment on column afterimage.typed_views.left_out is 'Fields that have no room in it, for a relation has at most 1,600 columns; changes and records have them.';
comment on column afterimage.typed_views.note is 'Why it is not as it should be, and what to do; NULL if it is.';
