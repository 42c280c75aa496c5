-- Reading what the processor stores, committing positions, opening months.
--
-- Bodies are SQL-standard (parsed once, here): names and operators are bound at creation, whatever search_path
-- a caller has, and small functions are inlined into the caller's plan. Volatility is as loose as the body
-- (STABLE where a text is cast), else the planner would not inline.
--
-- d, byte by byte: src/core/format/mod.rs.

-- ---------------------------------------------------------------------------------------------------- one d

create function afterimage.op(d bytea) returns text language sql immutable parallel safe
return (array['baseline', 'create', 'update', 'backfill', 'delete', 'undelete'])[(get_byte($1, 0) & 7) + 1];
comment on function afterimage.op(bytea) is 'What a stored version is: baseline, create, update, backfill, delete or undelete.';

create function afterimage.seq(kf int, d bytea) returns int language sql immutable parallel safe
return $1 * 64 + (get_byte($2, 1) & 63);
comment on function afterimage.seq(int, bytea) is 'Version number within the record, from 0: 64 per chain.';

create function afterimage.is_local(d bytea) returns boolean language sql immutable parallel safe
return get_byte($1, 0) & 16 <> 0;
comment on function afterimage.is_local(bytea) is 'Whether an application wrote the version before Salesforce had seen it.';

create function afterimage.payload(d bytea) returns text language sql stable parallel safe
return convert_from(substr($1, get_byte($1, 2) + 1), 'UTF8');
comment on function afterimage.payload(bytea) is 'The fields of a stored version as they stand: number, 0x1F, value, …; or JSON.';

-- The unknown mark is a value of its own in the text form, so in the JSON of it `"\u0003"` is nothing else: a quote
-- or a backslash within a value stands escaped there, and a value that contains the mark makes the payload JSON.
create function afterimage.parse(payload text) returns jsonb language sql immutable parallel safe
return case
  when strpos($1, E'\x03') > 0
    then replace(jsonb_object(string_to_array($1, E'\x1f', E'\x02'))::text, '"\u0003"', '{"$unknown": true}')::jsonb
  else coalesce(jsonb_object(string_to_array(nullif($1, ''), E'\x1f', E'\x02')), '{}')
end;
comment on function afterimage.parse(text) is 'Payloads in text form, one or several joined by 0x1F, as JSON by field number; the last of equal numbers wins.';

create function afterimage.fields(d bytea) returns jsonb language sql stable parallel safe
return case
  when get_byte($1, 0) & 8 <> 0 then afterimage.payload($1)::jsonb
  else afterimage.parse(afterimage.payload($1))
end;
comment on function afterimage.fields(bytea) is 'The fields of a stored version by field number: text, null, or {"$unknown": true}.';

-- LEB128 numbers behind the seven fixed bytes; 64 bits each, the signed ones in zigzag.
create function afterimage.header(d bytea,
  out position_id int, out "offset" bigint, out lsn bigint, out recorded_ms bigint, out raw_us bigint)
language plpgsql immutable parallel safe as $$
declare
  i int := 7;
  b int;
  shift int;
  v bigint;
  numbers bigint[] := '{}';
begin
  if d is null then
    return;
  end if;
  for k in 1 .. 4 + ((get_byte(d, 0) >> 5) & 1) loop
    v := 0;
    shift := 0;
    loop
      b := get_byte(d, i);
      i := i + 1;
      v := v | ((b & 127)::bigint << shift);
      exit when b < 128;
      shift := shift + 7;
      if shift > 63 then
        raise exception 'afterimage: a stored version holds a number that is too long';
      end if;
    end loop;
    if k > 3 then
      -- >> keeps the sign of a bigint: clear the top bit after it.
      v := ((v >> 1) & 9223372036854775807) # (-(v & 1));
    end if;
    numbers := numbers || v;
  end loop;
  position_id := numbers[1]::int;
  "offset" := numbers[2];
  lsn := numbers[3];
  recorded_ms := numbers[4];
  raw_us := numbers[5];
end $$;
comment on function afterimage.header(bytea) is
  'Provenance of a stored version: position, Kafka offset, LSN (0 = none), recorded time minus valid-from in ms, and, where valid-from was moved, the raw source time minus it in µs.';

create function afterimage.recorded_at(at timestamptz, d bytea) returns timestamptz language sql stable parallel safe
return date_trunc('milliseconds', $1) + (afterimage.header($2)).recorded_ms * interval '1 millisecond';
comment on function afterimage.recorded_at(timestamptz, bytea) is 'When afterimage recorded the version, given its valid-from.';

-- -2147483648 = none, or in the payload.
create function afterimage.stamp(at timestamptz, d bytea) returns timestamptz language sql stable parallel safe
return case
  when substr($2, 4, 4) = '\x80000000'::bytea then null
  else date_trunc('second', $1)
    + ((get_byte($2, 3) << 24) | (get_byte($2, 4) << 16) | (get_byte($2, 5) << 8) | get_byte($2, 6))
    * case when get_byte($2, 1) & 128 <> 0 then interval '1 millisecond' else interval '1 second' end
end;
comment on function afterimage.stamp(timestamptz, bytea) is 'Salesforce''s stamp of a version where it stands in the fixed bytes; salesforce_at() also looks into the payload.';

-- --------------------------------------------------------------------------------- text → typed, never an error

-- Days exist (leap years; before the year 1 too), the year is one that the type can hold.
create function afterimage.is_day(v text, last_year int) returns boolean language sql immutable parallel safe
return case
  when $1 ~ '^\d{4,7}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2\d))( BC)?$' then (
    select y.shown >= 1
      and case when y.bc then y.shown <= 4713 or (y.shown = 4714 and substr($1, 6, 5) >= '11-24') else y.shown <= $2 end
      and (y.month_day <> '02-29' or (y.astro % 4 = 0 and (y.astro % 100 <> 0 or y.astro % 400 = 0)))
    from (
      select split_part($1, '-', 1)::int as shown,
        $1 like '% BC' as bc,
        substr($1, strpos($1, '-') + 1, 5) as month_day,
        case when $1 like '% BC' then 1 - split_part($1, '-', 1)::int else split_part($1, '-', 1)::int end as astro) y)
  else false
end;
comment on function afterimage.is_day(text, int) is 'Whether a text is a calendar day as PostgreSQL prints it, not after the given year.';

create function afterimage.is_number(v text) returns boolean language sql immutable parallel safe
return length($1) <= 15000 and $1 ~ '^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?$';
comment on function afterimage.is_number(text) is 'Whether a text is a number in JSON''s form that PostgreSQL''s numeric can hold.';

create function afterimage.as_boolean(v text) returns boolean language sql immutable parallel safe
return case when $1 in ('t', 'true') then true when $1 in ('f', 'false') then false end;
comment on function afterimage.as_boolean(text) is 'The text as boolean; NULL if it is none.';

create function afterimage.as_smallint(v text) returns smallint language sql immutable parallel safe
return case when $1 ~ '^-?\d{1,9}$' then case when $1::int between -32768 and 32767 then $1::smallint end end;
comment on function afterimage.as_smallint(text) is 'The text as smallint; NULL if it is none.';

create function afterimage.as_integer(v text) returns int language sql immutable parallel safe
return case when $1 ~ '^-?\d{1,18}$' then case when $1::bigint between -2147483648 and 2147483647 then $1::int end end;
comment on function afterimage.as_integer(text) is 'The text as integer; NULL if it is none.';

create function afterimage.as_bigint(v text) returns bigint language sql immutable parallel safe
return case
  when $1 ~ '^-?\d{1,18}$' then $1::bigint
  when $1 ~ '^-?\d{19}$' then case when $1::numeric between -9223372036854775808 and 9223372036854775807 then $1::bigint end
end;
comment on function afterimage.as_bigint(text) is 'The text as bigint; NULL if it is none.';

-- The bounds are those that still round to a finite value, or to one that is not zero.
create function afterimage.as_real(v text) returns real language sql immutable parallel safe
return case
  when $1 in ('NaN', 'Infinity', '-Infinity') then $1::real
  when afterimage.is_number($1) then
    case when $1::numeric = 0 or abs($1::numeric) between 7.1e-46 and 3.4028235e38 then $1::real end
end;
comment on function afterimage.as_real(text) is 'The text as real; NULL if it is none.';

create function afterimage.as_double(v text) returns double precision language sql immutable parallel safe
return case
  when $1 ~ '^-?\d{1,30}(\.\d{1,30})?$' then $1::float8
  when $1 in ('NaN', 'Infinity', '-Infinity') then $1::float8
  when afterimage.is_number($1) then
    case when $1::numeric = 0 or abs($1::numeric) between 2.5e-324 and 1.7976931348623157e308 then $1::float8 end
end;
comment on function afterimage.as_double(text) is 'The text as double precision; NULL if it is none.';

create function afterimage.as_numeric(v text) returns numeric language sql immutable parallel safe
return case when $1 in ('NaN', 'Infinity', '-Infinity') or afterimage.is_number($1) then $1::numeric end;
comment on function afterimage.as_numeric(text) is 'The text as numeric; NULL if it is none.';

create function afterimage.as_date(v text) returns date language sql stable parallel safe
return case when $1 in ('infinity', '-infinity') or afterimage.is_day($1, 5874897) then $1::date end;
comment on function afterimage.as_date(text) is 'The text as date; NULL if it is none.';

create function afterimage.as_time(v text) returns time language sql stable parallel safe
return case when $1 ~ '^(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?|24:00:00)$' then $1::time end;
comment on function afterimage.as_time(text) is 'The text as time without time zone; NULL if it is none.';

create function afterimage.as_timetz(v text) returns timetz language sql stable parallel safe
return case
  when $1 ~ '^(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?|24:00:00)[+-](0\d|1[0-5])(:[0-5]\d(:[0-5]\d)?)?$' then $1::timetz
end;
comment on function afterimage.as_timetz(text) is 'The text as time with time zone; NULL if it is none.';

create function afterimage.as_timestamp(v text) returns timestamp language sql stable parallel safe
return case
  when $1 in ('infinity', '-infinity') then $1::timestamp
  when $1 ~ '^\d{4,6}-\d\d-\d\d ([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?( BC)?$' then
    case when afterimage.is_day(regexp_replace($1, ' [^ B]+', ''), 294276) then $1::timestamp end
end;
comment on function afterimage.as_timestamp(text) is 'The text as timestamp without time zone; NULL if it is none.';

-- A day is kept away from both ends of the type, which a time zone could push over.
create function afterimage.as_timestamptz(v text) returns timestamptz language sql stable parallel safe
return case
  when $1 in ('infinity', '-infinity') then $1::timestamptz
  when $1 ~ '^\d{4,6}-\d\d-\d\d ([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?[+-](0\d|1[0-5])(:[0-5]\d(:[0-5]\d)?)?( BC)?$' then
    case
      when $1 ~ '^294276-12-31 ' or $1 ~ '^4714-11-24 .* BC$' then null
      when afterimage.is_day(regexp_replace($1, ' [^ B]+', ''), 294276) then $1::timestamptz
    end
end;
comment on function afterimage.as_timestamptz(text) is 'The text as timestamp with time zone; NULL if it is none.';

create function afterimage.as_interval(v text) returns interval language sql stable parallel safe
return case
  when $1 <> ''
    and $1 || ' ' ~ '^(-?\d{1,8} years? )?([+-]?\d{1,2} mons? )?([+-]?\d{1,9} days? )?([+-]?\d{2,9}:[0-5]\d:[0-5]\d(\.\d{1,6})? )?$'
    then $1::interval
end;
comment on function afterimage.as_interval(text) is 'The text as interval; NULL if it is none.';

create function afterimage.as_bytea(v text) returns bytea language sql immutable parallel safe
return case when length($1) % 2 = 0 and $1 ~ '^\\x[0-9a-f]*$' then decode(substr($1, 3), 'hex') end;
comment on function afterimage.as_bytea(text) is 'The text as bytea; NULL if it is none.';

create function afterimage.as_uuid(v text) returns uuid language sql immutable parallel safe
return case when $1 ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then $1::uuid end;
comment on function afterimage.as_uuid(text) is 'The text as uuid; NULL if it is none.';

-- The name of a type as format_type() would give it; anything that afterimage does not tell apart is text.
create function afterimage.type_name(type text) returns text language sql immutable parallel safe
return case regexp_replace(lower($1), ' *\(.*\)', '')
  when 'boolean' then 'boolean' when 'bool' then 'boolean'
  when 'smallint' then 'smallint' when 'int2' then 'smallint'
  when 'integer' then 'integer' when 'int4' then 'integer' when 'int' then 'integer'
  when 'bigint' then 'bigint' when 'int8' then 'bigint'
  when 'real' then 'real' when 'float4' then 'real'
  when 'double precision' then 'double precision' when 'float8' then 'double precision'
  when 'numeric' then 'numeric' when 'decimal' then 'numeric'
  when 'date' then 'date'
  when 'time' then 'time without time zone' when 'time without time zone' then 'time without time zone'
  when 'timetz' then 'time with time zone' when 'time with time zone' then 'time with time zone'
  when 'timestamp' then 'timestamp without time zone'
  when 'timestamp without time zone' then 'timestamp without time zone'
  when 'timestamptz' then 'timestamp with time zone' when 'timestamp with time zone' then 'timestamp with time zone'
  when 'interval' then 'interval' when 'bytea' then 'bytea' when 'uuid' then 'uuid'
  else 'text'
end;
comment on function afterimage.type_name(text) is 'The type that a dictionary entry stands for in typed views; text for all that has none of its own.';

-- Value forms of the public JSON: booleans and numbers as such, all else as PostgreSQL's text. What does not
-- fit its type (an older declaration, a value like NaN) stays text.
create function afterimage.typed(v jsonb, type text) returns jsonb language sql stable parallel safe
return case
  when jsonb_typeof($1) <> 'string' then $1
  else case afterimage.type_name($2)
    when 'text' then $1
    when 'boolean' then coalesce(to_jsonb(afterimage.as_boolean($1 #>> '{}')), $1)
    when 'smallint' then case when afterimage.is_number($1 #>> '{}') then to_jsonb(($1 #>> '{}')::numeric) else $1 end
    when 'integer' then case when afterimage.is_number($1 #>> '{}') then to_jsonb(($1 #>> '{}')::numeric) else $1 end
    when 'bigint' then case when afterimage.is_number($1 #>> '{}') then to_jsonb(($1 #>> '{}')::numeric) else $1 end
    when 'real' then case when afterimage.is_number($1 #>> '{}') then to_jsonb(($1 #>> '{}')::numeric) else $1 end
    when 'double precision' then case when afterimage.is_number($1 #>> '{}') then to_jsonb(($1 #>> '{}')::numeric) else $1 end
    when 'numeric' then case when afterimage.is_number($1 #>> '{}') then to_jsonb(($1 #>> '{}')::numeric) else $1 end
    else $1
  end
end;
comment on function afterimage.typed(jsonb, text) is 'A stored value in the form of the public views, by the name of its type.';

create function afterimage.text_of(f jsonb, field_no text) returns text language sql immutable parallel safe
return case when jsonb_typeof($1 -> $2) = 'string' then $1 ->> $2 end;
comment on function afterimage.text_of(jsonb, text) is 'The text of a field in a fold; NULL for null, unknown and absent.';

create function afterimage.salesforce_at(object_id smallint, at timestamptz, d bytea) returns timestamptz
language sql stable parallel safe
return case
  when afterimage.stamp($2, $3) is not null then afterimage.stamp($2, $3)
  else (
    select afterimage.as_timestamp(afterimage.text_of(afterimage.fields($3), f.field_no::text)) at time zone 'UTC'
    from afterimage.field f
    where f.object_id = $1 and f.name = 'systemmodstamp')
end;
comment on function afterimage.salesforce_at(smallint, timestamptz, bytea) is 'Salesforce''s stamp (systemmodstamp) of a version; NULL on local writes and where the row had none.';
