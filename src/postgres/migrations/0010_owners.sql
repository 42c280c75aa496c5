-- Who holds a partition stays known when its owner is made to claim again; a typed view tells which fields it can't hold.

alter table afterimage.claim add column reason text;
comment on table afterimage.claim is
  'Who held a position under which epoch, from which offset on. reason: NULL if the worker claimed it; else why it has to claim again, and worker is the one of the epoch before.';

update afterimage.claim c
set reason = c.worker,
  worker = (
    select b.worker from afterimage.claim b
    where b.position_id = c.position_id and b.epoch < c.epoch and b.worker <> 'lookup fields changed'
    order by b.epoch desc limit 1)
-- No worker can have this name: names have no blanks.
where c.worker = 'lookup fields changed';

-- As 0008 has it, but for the worker: the owner goes on as soon as it has claimed again.
create or replace function afterimage.fence(positions int[]) returns void language sql
begin atomic
  with moved as (
    update afterimage.position set epoch = position.epoch + 1 where position.position_id = any ($1)
    returning position.position_id, position.epoch, position.next)
  insert into afterimage.claim (position_id, epoch, token, from_next, worker, reason)
  select m.position_id, m.epoch, gen_random_uuid(), m.next,
    (select c.worker from afterimage.claim c where c.position_id = m.position_id order by c.epoch desc limit 1),
    'lookup fields changed'
  from moved m;
end;

alter table afterimage.object_view alter column refreshed_at drop not null;

-- What CREATE OR REPLACE would reset; see the end of this file.
select set_config('afterimage.definer', p.prosecdef::text, true)
from pg_proc p where p.oid = 'afterimage.refresh_object_views(smallint, boolean)'::regprocedure;

-- As 0008 has it, and: a field that can have no column of its own does not stand in the way of the others. Its name is
-- empty, or that of a column of ours, or, with the 63 bytes that PostgreSQL keeps of it, another field's. It is left out,
-- and said to be, as are the fields beyond 1,600.
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
  nameless text[];
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

  select coalesce(array_agg(f.name order by f.field_no), '{}') into nameless
  from (
    select n.*, n.name::name::text as cut, row_number() over (partition by n.name::name order by n.field_no) as place
    from afterimage.field n
    where n.object_id = $1 and n.class = 'v') f
  where f.cut = '' or f.cut = any (helpers) or f.place > 1;

  with fields as (
    select f.field_no, f.name::name::text as name, afterimage.type_name(f.types -> -1 ->> 'type') as type,
      exists (select from afterimage.lookup l where l.object_id = $1 and l.name = f.name and l.state = 'ready')
        and afterimage.type_name(f.types -> -1 ->> 'type') = 'text' as lookup,
      case when f.misfit_at is not null and f.misfit_type = f.types -> -1 ->> 'type'
        then format(' Values that do not fit came since %s, the first at position %s, offset %s.',
          to_char(f.misfit_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI"Z"'), f.misfit_position, f.misfit_offset) end as misfit
    from afterimage.field f
    where f.object_id = $1 and f.class = 'v' and not f.name = any (nameless)),
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
    count(*) filter (where w.n > most) + cardinality(nameless)
  into want_names, want_types, want_colls, want_exprs, want_notes, want_fields, left_out
  from numbered w;
  wanted_md5 := md5(to_json(array[want_names, want_types, want_colls, want_exprs, want_notes])::text || left_out || by_sfid
    || array_to_string(nameless, ','));

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

  problem := nullif(concat_ws('; ', problem,
    case when left_out > cardinality(nameless) then format('%s fields have no room here (a relation has at most %s columns): '
      'they are in afterimage.changes and afterimage.records', left_out - cardinality(nameless), most) end,
    case when cardinality(nameless) > 0 then format('%s can have no column here, for the view or another field has that name '
      '(its first 63 bytes count): it is in afterimage.changes and afterimage.records',
      (select string_agg('field ' || quote_ident(left(n.name, 100)), ', ' order by n.place)
       from unnest(nameless) with ordinality n(name, place) where n.place <= 5)
      || case when cardinality(nameless) > 5 then format(' and %s more', cardinality(nameless) - 5) else '' end) end), '');

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

comment on column afterimage.typed_views.refreshed_at is 'When it was made, or brought up to date, last; NULL if it could not be made yet.';
comment on column afterimage.typed_views.left_out is 'Fields that have no column in it: see note; changes and records have them.';

comment on function afterimage.as_of(text, text, text, timestamptz, text) is
  'What one record looked like at a moment (inclusive): its visible fields as far as observed. NULL if it was deleted or not there yet, and also if there is no such org, object or record. Clocks: commit (source commit time), salesforce (systemmodstamp; a local write counts from the next known stamp, a delete from its commit time), recorded (when afterimage wrote it).';
comment on function afterimage.object_as_of(text, text, timestamptz, text) is
  'What every record of an object looked like at a moment, those left out that were deleted or not there yet; no rows also if there is no such org or object. Clocks as in as_of().';
