-- Folding versions into images, and the time machine's functions.
--
-- A chain is a keyframe and the up to 64 deltas behind it. Folding = joining their payloads in order and
-- parsing once: jsonb_object() keeps the last of equal keys. Only a chain with a JSON payload or an unknown
-- value in it goes row by row.

create function afterimage.fold_by_row(rid int, kf int, upto int) returns jsonb language sql stable parallel safe
return (
  select coalesce(jsonb_object_agg(e.key, e.value order by x.n), '{}')
  from (
    select -1 as n, k.d from afterimage.keyframe k where k.rid = $1 and k.kf = $2
    union all
    select get_byte(v.d, 1) & 63, v.d from afterimage.delta v
    where v.rid = $1 and v.kf = $2 and get_byte(v.d, 1) & 63 <= $3) x
  cross join lateral jsonb_each(afterimage.fields(x.d)) e);
comment on function afterimage.fold_by_row(int, int, int) is 'fold(), row by row: for chains with JSON payloads or unknown values.';

create function afterimage.fold(rid int, kf int, upto int default 63) returns jsonb language sql stable parallel safe
return (
  select case
    when bool_or(x.json) or strpos(string_agg(nullif(x.p, ''), E'\x1f' order by x.n), E'\x03') > 0
      then afterimage.fold_by_row($1, $2, $3)
    else coalesce(jsonb_object(string_to_array(string_agg(nullif(x.p, ''), E'\x1f' order by x.n), E'\x1f', E'\x02')), '{}')
  end
  from (
    select -1 as n, get_byte(k.d, 0) & 8 <> 0 as json, afterimage.payload(k.d) as p
    from afterimage.keyframe k where k.rid = $1 and k.kf = $2
    union all
    select get_byte(v.d, 1) & 63, get_byte(v.d, 0) & 8 <> 0, afterimage.payload(v.d)
    from afterimage.delta v where v.rid = $1 and v.kf = $2 and get_byte(v.d, 1) & 63 <= $3) x);
comment on function afterimage.fold(int, int, int) is
  'All fields of a record, by number, after version n = upto of a chain (-1: as its keyframe has them).';

create function afterimage.show(object_id smallint, f jsonb) returns jsonb language sql stable parallel safe
return (
  select coalesce(jsonb_object_agg(c.name, afterimage.typed(e.value, c.types -> -1 ->> 'type')), '{}')
  from jsonb_each($2) e
  join afterimage.field c on c.object_id = $1 and c.field_no = e.key::smallint
  where c.class = 'v');
comment on function afterimage.show(smallint, jsonb) is 'A fold as the public views show it: every visible field observed so far, by name; null where it is null.';

create function afterimage.change_set(object_id smallint, rid int, kf int, d bytea) returns jsonb
language sql stable parallel safe
return (
  select coalesce(jsonb_object_agg(c.name, jsonb_build_array(
      afterimage.typed(b.f -> e.key, c.types -> -1 ->> 'type'), afterimage.typed(e.value, c.types -> -1 ->> 'type'))), '{}')
  from (
    select case when get_byte($4, 0) & 7 > 1 then afterimage.fold($2, $3, (get_byte($4, 1) & 63) - 1) end as f
    offset 0) b
  cross join lateral jsonb_each(afterimage.fields($4)) e
  join afterimage.field c on c.object_id = $1 and c.field_no = e.key::smallint
  where c.class = 'v'
    and case get_byte($4, 0) & 7 when 0 then e.value <> 'null'::jsonb when 1 then e.value <> 'null'::jsonb when 4 then false else true end);
comment on function afterimage.change_set(smallint, int, int, bytea) is 'What a version changed: {"field": [old, new]}.';

create function afterimage.changed_by(object_id smallint, rid int, kf int, d bytea) returns text
language sql stable parallel safe
return case
  -- A delete message names no one, and a local write repeats the user before it.
  when get_byte($4, 0) & 16 <> 0 or get_byte($4, 0) & 7 = 4 then null
  else (
    select afterimage.text_of(afterimage.fold($2, $3, get_byte($4, 1) & 63), f.field_no::text)
    from afterimage.field f
    where f.object_id = $1 and f.name = 'lastmodifiedbyid' and f.class in ('s', 'v'))
end;
comment on function afterimage.changed_by(smallint, int, int, bytea) is
  'Salesforce''s last modifying user (lastmodifiedbyid) as known at a version; NULL on local writes, deletes, and where the table does not have it.';

-- All versions of a record, each with its fold, in one pass over its chains. Inlined into the caller's plan:
-- nothing is folded for columns that are not selected.
create function afterimage.versions_of(rid int) returns table(seq int, at timestamptz, d bytea, f jsonb)
language sql stable parallel safe
begin atomic
  select afterimage.seq(w.kf, w.d), w.at, w.d,
    case
      when w.json or strpos(w.p, E'\x03') > 0 then afterimage.fold_by_row($1, w.kf, w.n)
      else coalesce(jsonb_object(string_to_array(w.p, E'\x1f', E'\x02')), '{}')
    end
  from (
    select x.kf, x.n, x.at, x.d,
      string_agg(nullif(afterimage.payload(x.d), ''), E'\x1f') over chain as p,
      bool_or(get_byte(x.d, 0) & 8 <> 0) over chain as json
    from (
      select k.kf, -1 as n, k.at, k.d from afterimage.keyframe k where k.rid = $1
      union all
      select v.kf, get_byte(v.d, 1) & 63, v.at, v.d from afterimage.delta v where v.rid = $1) x
    window chain as (partition by x.kf order by x.n)) w
  where w.n >= 0 or w.kf = 0
  offset 0;
end;
comment on function afterimage.versions_of(int) is 'Every version of a record with all its fields by number, in one pass.';

-- The newest version at a moment by source commit time. `at` never falls along a record's versions, so the
-- newest keyframe not after the moment opens the right chain.
create function afterimage.version_as_of(rid int, at timestamptz)
returns table(kf int, n int, at timestamptz, d bytea, f jsonb) language sql stable parallel safe
begin atomic
  select k.kf, x.n, x.at, x.d,
    case
      when x.json or strpos(x.p, E'\x03') > 0 then afterimage.fold_by_row($1, k.kf, x.n)
      else coalesce(jsonb_object(string_to_array(x.p, E'\x1f', E'\x02')), '{}')
    end
  from (
    select q.kf, q.at, q.d from afterimage.keyframe q
    where q.rid = $1 and q.at <= $2 order by q.kf desc limit 1) k
  cross join lateral (
    select max(y.n) as n,
      (array_agg(y.at order by y.n desc))[1] as at,
      (array_agg(y.d order by y.n desc))[1] as d,
      bool_or(get_byte(y.d, 0) & 8 <> 0) as json,
      string_agg(nullif(afterimage.payload(y.d), ''), E'\x1f' order by y.n) as p
    from (
      select -1 as n, k.at, k.d
      union all
      select get_byte(v.d, 1) & 63, v.at, v.d from afterimage.delta v
      where v.rid = $1 and v.kf = k.kf and v.at >= k.at and v.at <= $2) y) x
  offset 0;
end;
comment on function afterimage.version_as_of(int, timestamptz) is 'The newest version of a record at a moment of source commit time, with all its fields by number.';

-- Which version of a record a clock shows at a moment: chain, n (-1: the keyframe itself) and op.
create function afterimage.version_at(rid int, at timestamptz, clock text)
returns table(kf int, n int, op int) language plpgsql stable parallel safe rows 1 as $$
#variable_conflict use_column
declare
  opened record;
begin
  if clock = 'salesforce' then
    -- Stamps may fall from version to version (a read-back that overtakes): the newest version by number whose
    -- stamp is not after the moment. A local write came to be, for Salesforce, with the next stamp that is
    -- known; if none is, only infinity shows it. Deletes and tables without stamps count by commit time.
    return query
    select t.kf, t.n, t.op
    from (
      select s.kf, s.n, s.op, s.seq,
        case
          when s.stamp is not null then s.stamp
          when s.local then coalesce(max(s.stamp) over (partition by s.later), 'infinity')
          else s.at
        end as clock_at
      from (
        select q.*, count(q.stamp) over (order by q.seq desc) as later
        from (
          select v.kf, case when v.own then -1 else get_byte(v.d, 1) & 63 end as n, get_byte(v.d, 0) & 7 as op,
            afterimage.seq(v.kf, v.d) as seq, v.at, get_byte(v.d, 0) & 16 <> 0 as local,
            case when get_byte(v.d, 0) & 16 = 0 then afterimage.salesforce_at(r.object_id, v.at, v.d) end as stamp
          from (
            select k.kf, true as own, k.at, k.d from afterimage.keyframe k where k.rid = $1 and k.kf = 0
            union all
            select c.kf, false, c.at, c.d from afterimage.delta c where c.rid = $1) v
          join afterimage.record r on r.rid = $1) q) s) t
    where t.clock_at <= $2
    order by t.seq desc
    limit 1;
    return;
  elsif clock not in ('commit', 'recorded') or clock is null then
    raise exception 'clock must be commit, salesforce or recorded, not %', coalesce(clock, 'null')
      using errcode = 'invalid_parameter_value';
  end if;

  -- Both these clocks never fall along a record's versions.
  if clock = 'commit' then
    select k.kf, k.at, k.d into opened from afterimage.keyframe k
    where k.rid = $1 and k.at <= $2 order by k.kf desc limit 1;
  else
    select k.kf, k.at, k.d into opened from afterimage.keyframe k
    where k.rid = $1 and afterimage.recorded_at(k.at, k.d) <= $2 order by k.kf desc limit 1;
  end if;
  if not found then
    return;
  end if;
  return query
  select opened.kf, y.n, y.op
  from (
    select -1 as n, get_byte(opened.d, 0) & 7 as op
    union all
    select get_byte(v.d, 1) & 63, get_byte(v.d, 0) & 7 from afterimage.delta v
    where v.rid = $1 and v.kf = opened.kf and v.at >= opened.at
      and case when clock = 'commit' then v.at else afterimage.recorded_at(v.at, v.d) end <= $2) y
  order by y.n desc
  limit 1;
end $$;
comment on function afterimage.version_at(int, timestamptz, text) is
  'The version of a record that a clock (commit, salesforce, recorded) shows at a moment: chain, n (-1: the keyframe), op.';

create function afterimage.image(rid int, at timestamptz default 'infinity') returns jsonb language sql stable parallel safe
return (
  select afterimage.show(r.object_id, v.f)
  from afterimage.record r
  cross join lateral afterimage.version_as_of(r.rid, $2) v
  where r.rid = $1);
comment on function afterimage.image(int, timestamptz) is
  'The image of a record (by registry number) at a moment of source commit time, a deleted record''s too; NULL before its first version.';

create function afterimage.as_of(org text, object text, sfid text, at timestamptz, clock text default 'commit')
returns jsonb language sql stable parallel safe
return (
  select afterimage.show(r.object_id, afterimage.fold(r.rid, v.kf, v.n))
  from afterimage.org o
  join afterimage.object b on b.org_id = o.org_id and b.name = $2
  join afterimage.record r on r.object_id = b.object_id and r.sfid = $3 collate "C"
  cross join lateral afterimage.version_at(r.rid, $4, $5) v
  where o.name = $1 and v.op <> 4);
comment on function afterimage.as_of(text, text, text, timestamptz, text) is
  'What one record looked like at a moment (inclusive): its visible fields as far as observed. NULL if it was deleted or not there yet. Clocks: commit (source commit time), salesforce (systemmodstamp; a local write counts from the next known stamp, a delete from its commit time), recorded (when afterimage wrote it).';

create function afterimage.object_as_of(org text, object text, at timestamptz, clock text default 'commit')
returns table(sfid text, image jsonb) language plpgsql stable parallel safe as $$
#variable_conflict use_column
declare
  of_object smallint := (
    select b.object_id from afterimage.org o join afterimage.object b on b.org_id = o.org_id
    where o.name = $1 and b.name = $2);
begin
  if clock = 'commit' then
    -- The dictionary is joined inside the query: a call of show() for each record would cost more than the fold.
    return query
    select r.sfid::text, (
        select coalesce(jsonb_object_agg(c.name, afterimage.typed(e.value, c.types -> -1 ->> 'type')), '{}')
        from jsonb_each(v.f) e
        join afterimage.field c on c.object_id = of_object and c.field_no = e.key::smallint
        where c.class = 'v')
    from afterimage.record r
    cross join lateral afterimage.version_as_of(r.rid, $3) v
    where r.object_id = of_object and get_byte(v.d, 0) & 7 <> 4;
  else
    return query
    select r.sfid::text, afterimage.show(of_object, afterimage.fold(r.rid, v.kf, v.n))
    from afterimage.record r
    cross join lateral afterimage.version_at(r.rid, $3, $4) v
    where r.object_id = of_object and v.op <> 4;
  end if;
end $$;
comment on function afterimage.object_as_of(text, text, timestamptz, text) is
  'What every record of an object looked like at a moment, those left out that were deleted or not there yet. Clocks as in as_of().';
