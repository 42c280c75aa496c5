-- A restart between two rows of one record of the log (a COPY's, both halves of a key change) forgets neither: which of
-- them came is kept with the greatest (source_at, source_lsn).

alter table afterimage.position add column passed_rows bytea;
comment on column afterimage.position.passed_rows is
  'Which rows came at (source_at, source_lsn): that place (µs since 1970, LSN; 8 bytes each), then a hash of eight bytes for each row.';

-- As before, with one argument more.
create function afterimage.advance(
  position_id int[], epoch bigint[], from_next bigint[], to_next bigint[], inval_seq bigint[],
  last_offset bigint[], last_ts timestamptz[], last_hash bigint[], source_at timestamptz[], source_lsn bigint[],
  passed_rows bytea[], counters bigint[])
returns void language plpgsql as $$
#variable_conflict use_column
declare
  n int := coalesce(cardinality($1), 0);
  wrong text;
  moved bigint;
begin
  if n = 0 then
    return;
  end if;
  -- IS DISTINCT: a null array is not of that length either.
  if cardinality($2) is distinct from n or cardinality($3) is distinct from n or cardinality($4) is distinct from n
    or cardinality($5) is distinct from n or cardinality($6) is distinct from n or cardinality($7) is distinct from n
    or cardinality($8) is distinct from n or cardinality($9) is distinct from n or cardinality($10) is distinct from n
    or cardinality($11) is distinct from n or cardinality($12) is distinct from n * 19
    or (select count(distinct a.id) from unnest($1) a(id)) <> n
    or exists (select from unnest($3, $4) a(from_next, to_next) where (a.to_next >= a.from_next) is not true)
    or array_position($12, null) is not null then
    raise exception 'afterimage.advance: arrays of different length, a position twice, a step back, or a null'
      using errcode = 'invalid_parameter_value';
  end if;

  -- In one order for everyone: row by row in the order of the arrays would deadlock.
  perform from afterimage.position p where p.position_id = any ($1) order by p.position_id for no key update;

  select string_agg(a.position_id || ':' || case
      when p.position_id is null then 'missing'
      when p.epoch is distinct from a.epoch then 'fenced ' || p.epoch
      when p.next is distinct from a.from_next then 'moved-on ' || p.next
      else 'invalidated ' || p.inval_seq
    end, ',' order by a.position_id)
  into wrong
  from unnest($1, $2, $3, $5) a(position_id, epoch, from_next, inval_seq)
  left join afterimage.position p on p.position_id = a.position_id
  where p.epoch is distinct from a.epoch or p.next is distinct from a.from_next or p.inval_seq is distinct from a.inval_seq;
  if wrong is not null then
    raise exception 'a position is not where this batch was built on' using errcode = 'AI001', detail = wrong;
  end if;

  update afterimage.position p set
    next = a.to_next,
    last_offset = coalesce(a.last_offset, p.last_offset),
    last_ts = case when a.last_offset is null then p.last_ts else a.last_ts end,
    last_hash = case when a.last_offset is null then p.last_hash else a.last_hash end,
    source_at = case when a.later then a.source_at else p.source_at end,
    source_lsn = case when a.later then a.source_lsn else p.source_lsn end,
    -- They say which place they are of, so that what an older release leaves here is known not to be of this one.
    passed_rows = coalesce(a.passed_rows, p.passed_rows),
    committed_at = clock_timestamp(),
    c_delta = p.c_delta + $12[a.c + 1],
    c_baseline = p.c_baseline + $12[a.c + 2],
    c_noop = p.c_noop + $12[a.c + 3],
    c_noop_status = p.c_noop_status + $12[a.c + 4],
    c_noop_system = p.c_noop_system + $12[a.c + 5],
    c_duplicate = p.c_duplicate + $12[a.c + 6],
    c_stale = p.c_stale + $12[a.c + 7],
    c_tombstone = p.c_tombstone + $12[a.c + 8],
    c_ignored = p.c_ignored + $12[a.c + 9],
    c_pending = p.c_pending + $12[a.c + 10],
    c_dead = p.c_dead + $12[a.c + 11],
    c_delete_unknown = p.c_delete_unknown + $12[a.c + 12],
    c_forgotten = p.c_forgotten + $12[a.c + 13],
    c_hole = p.c_hole + $12[a.c + 14],
    c_gap = p.c_gap + $12[a.c + 15],
    rows_written = p.rows_written + $12[a.c + 16],
    rows_cancelled = p.rows_cancelled + $12[a.c + 17],
    rows_erased = p.rows_erased + $12[a.c + 18],
    rows_retired = p.rows_retired + $12[a.c + 19]
  from (
    select u.*, (u.ord::int - 1) * 19 as c,
      -- The greatest pair seen so far; a batch without such an event brings none.
      u.source_at is not null
        and (q.source_at is null or (u.source_at, coalesce(u.source_lsn, 0)) > (q.source_at, coalesce(q.source_lsn, 0))) as later
    from unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) with ordinality
      u(position_id, epoch, from_next, to_next, inval_seq, last_offset, last_ts, last_hash, source_at, source_lsn,
        passed_rows, ord)
    join afterimage.position q on q.position_id = u.position_id) a
  where p.position_id = a.position_id
    and p.epoch = a.epoch and p.next = a.from_next and p.inval_seq = a.inval_seq;
  get diagnostics moved = row_count;
  if moved <> n then
    raise exception 'advanced % positions of %', moved, n using errcode = 'AI001', detail = '';
  end if;
end $$;
comment on function afterimage.advance(int[], bigint[], bigint[], bigint[], bigint[], bigint[], timestamptz[], bigint[], timestamptz[], bigint[], bytea[], bigint[]) is
  'Moves positions from_next to to_next, all or none: raises AI001 unless epoch, next and inval_seq of every one are as given. counters: 19 increments for each position, in the order of the columns c_delta to rows_retired.';

-- What workers of an older release call: the same, of which it is not known which rows came.
create or replace function afterimage.advance(
  position_id int[], epoch bigint[], from_next bigint[], to_next bigint[], inval_seq bigint[],
  last_offset bigint[], last_ts timestamptz[], last_hash bigint[], source_at timestamptz[], source_lsn bigint[],
  counters bigint[])
returns void language plpgsql as $$
begin
  perform afterimage.advance($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
    array_fill(null::bytea, array[coalesce(cardinality($1), 0)]), $11);
end $$;
