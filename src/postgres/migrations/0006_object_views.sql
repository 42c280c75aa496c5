-- Typed history: <org>_history.<object>, one row for each version of each record with all its columns, and
-- <org>_history.<object>_as_of(timestamptz), the whole object at a moment.
--
-- Columns: id (the version number, where the table's own id is not part of history), sfid, _seq, _op, _at,
-- _salesforce_at, _recorded_at, _changed_by, then the visible fields by number. A field that is itself called
-- sfid (identity is not sfid) or id takes that name's place; one that is called like an underscored column is
-- left out.
--
-- Fields that appear are appended by CREATE OR REPLACE. A changed type or a field that was excluded takes a new
-- view: the old one is dropped, and the function with it, unless something of the user's depends on either; then
-- the columns stay as they are (a value that does not fit shows NULL, an excluded field NULL throughout), new ones
-- are appended, and a warning says so.

create function afterimage.column_expression(field_no smallint, type text) returns text language sql immutable parallel safe
return case
  when $2 = 'text' then format('afterimage.text_of(v.f, %L)', $1)
  else format('afterimage.%I(afterimage.text_of(v.f, %L))',
    case $2
      when 'double precision' then 'as_double'
      when 'time without time zone' then 'as_time'
      when 'time with time zone' then 'as_timetz'
      when 'timestamp without time zone' then 'as_timestamp'
      when 'timestamp with time zone' then 'as_timestamptz'
      else 'as_' || $2
    end, $1)
end;
comment on function afterimage.column_expression(smallint, text) is 'How a typed view reads a field as a type that type_name() gives.';

create function afterimage.refresh_object_views(object_id smallint, force boolean default false) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  org_name text;
  object_name text;
  by_sfid boolean;
  ns text;
  view_name text;
  fn_name text;
  full_name text;
  changed_by text;
  want_names text[];
  want_types text[];
  want_exprs text[];
  want_notes text[];
  want_fields smallint[];
  have_names text[];
  have_types text[];
  kept_exprs text[] := '{}';
  kept_notes text[] := '{}';
  added int[] := '{}';
  helpers constant text[] := '{_seq,_op,_at,_salesforce_at,_recorded_at,_changed_by}';
  have_view boolean;
  have_fn boolean;
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
    select f.field_no, f.name::name::text as name, afterimage.type_name(f.types -> -1 ->> 'type') as type
    from afterimage.field f
    where f.object_id = $1 and f.class = 'v' and not f.name = any (helpers)),
  wanted as (
    select -8 as ord, null::smallint as field_no, 'id' as name, 'integer' as type, 'v.seq' as expr,
      'Version number within the record, from 0: rises with each version.' as note
    where by_sfid and not exists (select from fields where name = 'id')
    union all
    select -7, null, 'sfid', 'text', 'r.sfid', 'Record id.'
    where not exists (select from fields where name = 'sfid')
    union all
    values
      (-6, null::smallint, '_seq', 'integer', 'v.seq', 'Version number within the record, from 0.'),
      (-5, null, '_op', 'text', 'afterimage.op(v.d)',
        'What the version is: baseline, create, update, backfill, delete (shows the last image), undelete.'),
      (-4, null, '_at', 'timestamp with time zone', 'v.at', 'Valid from: source commit time.'),
      (-3, null, '_salesforce_at', 'timestamp with time zone',
        'case when get_byte(v.d, 0) & 16 = 0 then coalesce(afterimage.stamp(v.at, v.d), afterimage.salesforce_at(r.object_id, v.at, v.d)) end',
        'Salesforce''s own stamp; NULL on local writes and where the row had none.'),
      (-2, null, '_recorded_at', 'timestamp with time zone', 'afterimage.recorded_at(v.at, v.d)',
        'When afterimage wrote the version.'),
      (-1, null, '_changed_by', 'text', coalesce(changed_by, 'null'),
        'Last modifying user as known at this version; NULL on local writes and deletes.')
    union all
    select f.field_no, f.field_no, f.name, f.type, afterimage.column_expression(f.field_no, f.type),
      format('Field %s of %s as %s; NULL also where its value does not fit the type or is unknown.', f.name, full_name, f.type)
    from fields f)
  select array_agg(w.name order by w.ord), array_agg(w.type order by w.ord), array_agg(w.expr order by w.ord),
    array_agg(w.note order by w.ord), array_agg(w.field_no order by w.ord)
  into want_names, want_types, want_exprs, want_notes, want_fields
  from wanted w;

  have_fn := to_regprocedure(format('%I.%I(timestamptz)', ns, fn_name)) is not null;
  have_view := to_regclass(format('%I.%I', ns, view_name)) is not null;
  if have_view then
    select array_agg(a.attname::text order by a.attnum), array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum)
    into have_names, have_types
    from pg_attribute a
    where a.attrelid = to_regclass(format('%I.%I', ns, view_name)) and a.attnum > 0 and not a.attisdropped;
    if have_fn and not force and have_names = want_names and have_types = want_types then
      return;
    end if;
  end if;

  if to_regnamespace(quote_ident(ns)) is null then
    execute format('create schema %I', ns);
    execute format('comment on schema %I is %L', ns,
      'Typed history of org ' || org_name || ', one view and one function for each object. Made by afterimage.');
  end if;

  if have_view and (have_names <> want_names[:cardinality(have_names)] or have_types <> want_types[:cardinality(have_types)]) then
    begin
      execute format('drop function if exists %I.%I(timestamptz)', ns, fn_name);
      execute format('drop view %I.%I', ns, view_name);
    exception when dependent_objects_still_exist then
      raise warning 'afterimage: %.% is in use: its columns stay as they are, new ones are appended', ns, view_name;
      for i in 1 .. cardinality(have_names) loop
        j := array_position(want_names, have_names[i]);
        kept_exprs := kept_exprs || case
          when j is null then 'null'
          when want_types[j] = have_types[i] then want_exprs[j]
          when want_fields[j] is not null and afterimage.type_name(have_types[i]) = have_types[i]
            then afterimage.column_expression(want_fields[j], have_types[i])
          else 'null'
        end;
        kept_notes := kept_notes || coalesce(want_notes[j], 'No longer part of the history.');
      end loop;
      for k in 1 .. cardinality(want_names) loop
        if not want_names[k] = any (have_names) then
          have_names := have_names || want_names[k];
          have_types := have_types || want_types[k];
          kept_exprs := kept_exprs || want_exprs[k];
          kept_notes := kept_notes || want_notes[k];
        end if;
      end loop;
      want_names := have_names;
      want_types := have_types;
      want_exprs := kept_exprs;
      want_notes := kept_notes;
    end;
  end if;

  execute format('create or replace view %I.%I as select %s from afterimage.record r cross join lateral afterimage.versions_of(r.rid) v where r.object_id = %s',
    ns, view_name,
    (select string_agg(format('(%s)::%s as %I', c.expr, c.type, c.name), ', ' order by c.ord)
     from unnest(want_names, want_types, want_exprs) with ordinality c(name, type, expr, ord)),
    $1);
  execute format('comment on view %I.%I is %L', ns, view_name,
    'Every version of every record of ' || full_name || ' with all its columns. Made by afterimage.');
  for i in 1 .. cardinality(want_names) loop
    execute format('comment on column %I.%I.%I is %L', ns, view_name, want_names[i], want_notes[i]);
  end loop;

  -- Rows of the view's type: a TABLE (…) would give sfid the default collation, and the index on it is C.
  execute format('create or replace function %I.%I(timestamptz) returns setof %I.%I language sql stable parallel safe begin atomic '
      'select %s from afterimage.record r cross join lateral (select case when x.n < 0 then greatest(x.kf * 64 - 1, 0) '
      'else x.kf * 64 + x.n end as seq, x.at, x.d, x.f from afterimage.version_as_of(r.rid, $1) x offset 0) v '
      'where r.object_id = %s and get_byte(v.d, 0) & 7 <> 4; end',
    ns, fn_name, ns, view_name,
    (select string_agg(format('(%s)::%s', c.expr, c.type), ', ' order by c.ord)
     from unnest(want_types, want_exprs) with ordinality c(type, expr, ord)),
    $1);
  execute format('comment on function %I.%I(timestamptz) is %L', ns, fn_name,
    'Every record of ' || full_name || ' that was there at a moment of source commit time (inclusive), as it was. Made by afterimage.');
end $$;
comment on function afterimage.refresh_object_views(smallint, boolean) is
  'Makes or brings up to date the typed view <org>_history.<object> and the function <object>_as_of(timestamptz). Does nothing if the columns are as they should be, unless forced.';
