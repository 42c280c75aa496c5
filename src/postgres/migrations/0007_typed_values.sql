-- Types that are declared, or observed, after values were stored: what fits the new type after conversion is shown
-- converted. A value written under a type never has one of these forms, so the form alone tells what it is: a bare
-- number is days in a date, microseconds in a time, timestamp or interval (Debezium's encodings); `T` and `Z` are of
-- ISO texts; what does not begin with \x is base64 in a bytea. The same rules as Kind::canonical in src/core/value.rs.
-- And: values that do not fit the type that was declared for them are noted with their field.

create or replace function afterimage.as_smallint(v text) returns smallint language sql immutable parallel safe
return case
  when $1 ~ '^-?\d{1,9}$' then case when $1::int between -32768 and 32767 then $1::smallint end
  when afterimage.is_number($1) then
    case when $1::numeric between -32768 and 32767 and $1::numeric = trunc($1::numeric) then $1::numeric::smallint end
end;

create or replace function afterimage.as_integer(v text) returns int language sql immutable parallel safe
return case
  when $1 ~ '^-?\d{1,18}$' then case when $1::bigint between -2147483648 and 2147483647 then $1::int end
  when afterimage.is_number($1) then
    case when $1::numeric between -2147483648 and 2147483647 and $1::numeric = trunc($1::numeric) then $1::numeric::int end
end;

create or replace function afterimage.as_bigint(v text) returns bigint language sql immutable parallel safe
return case
  when $1 ~ '^-?\d{1,18}$' then $1::bigint
  when afterimage.is_number($1) then
    case when $1::numeric between -9223372036854775808 and 9223372036854775807 and $1::numeric = trunc($1::numeric)
      then $1::numeric::bigint end
end;

-- An ISO text with T, in UTC; `2026-03-01T10:15:02.5Z`, `…+02:00`, `…` without a zone.
create function afterimage.iso_timestamp(v text) returns timestamp language sql stable parallel safe
return case
  when $1 ~ '^\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-](0\d|1[0-5]):[0-5]\d)?$' then
    case
      when not afterimage.is_day(substr($1, 1, 10), 9999) then null
      when $1 ~ '(Z|[+-]\d\d:\d\d)$' then $1::timestamptz at time zone 'UTC'
      else $1::timestamp
    end
end;
comment on function afterimage.iso_timestamp(text) is 'An ISO 8601 text with T as timestamp in UTC; NULL if it is none.';

create function afterimage.micros_timestamp(v text) returns timestamp language sql immutable parallel safe
return case
  when $1 ~ '^-?\d{1,19}$' then
    case
      when $1 in ('9223372036854775807', '9223372036825200000') then 'infinity'::timestamp
      when $1 in ('-9223372036854775808', '-9223372036832400000') then '-infinity'::timestamp
      -- A day away from the type's first, which a time zone could push over.
      when $1::numeric between -210866716800000000 and 9223372036854775806 then
        timestamp '1970-01-01' + ($1::bigint / 86400000000) * interval '1 day'
          + ($1::bigint % 86400000000) * interval '1 microsecond'
    end
end;
comment on function afterimage.micros_timestamp(text) is 'A whole number as the timestamp that many microseconds after 1970; NULL if there is none.';

create function afterimage.micros_time(v text) returns time language sql immutable parallel safe
return case
  when $1 = '86400000000' then time '24:00:00'
  when $1 ~ '^\d{1,11}$' then
    case when $1::bigint < 86400000000 then time '00:00' + $1::bigint * interval '1 microsecond' end
end;
comment on function afterimage.micros_time(text) is 'A whole number as the time of day that many microseconds after midnight; NULL if there is none.';

create or replace function afterimage.as_date(v text) returns date language sql stable parallel safe
return case
  when $1 in ('infinity', '-infinity') or afterimage.is_day($1, 5874897) then $1::date
  when $1 ~ '^-?\d{1,10}$' then
    case
      -- How Debezium spells the infinite days, in stream and snapshot.
      when $1 in ('-2147472692', '2146033979', '-622191234') then 'infinity'::date
      when $1 in ('-2147472691', '-625821272') then '-infinity'::date
      when $1::bigint between -2440588 and 2145042905 then date '1970-01-01' + $1::bigint::int
    end
  else coalesce(afterimage.iso_timestamp($1)::date, afterimage.iso_timestamp(replace($1, ' ', 'T'))::date)
end;

create or replace function afterimage.as_time(v text) returns time language sql stable parallel safe
return case
  when $1 ~ '^(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?|24:00:00)Z?$' then rtrim($1, 'Z')::time
  else afterimage.micros_time($1)
end;

create or replace function afterimage.as_timetz(v text) returns timetz language sql stable parallel safe
return case
  when $1 ~ '^(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?|24:00:00)([+-](0\d|1[0-5])(:[0-5]\d(:[0-5]\d)?)?|Z)$'
    then replace($1, 'Z', '+00')::timetz
  else (afterimage.micros_time($1)::text || '+00')::timetz
end;

create or replace function afterimage.as_timestamp(v text) returns timestamp language sql stable parallel safe
return case
  when $1 in ('infinity', '-infinity') then $1::timestamp
  when $1 ~ '^\d{4,6}-\d\d-\d\d ([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?( BC)?$' then
    case when afterimage.is_day(regexp_replace($1, ' [^ B]+', ''), 294276) then $1::timestamp end
  else coalesce(afterimage.micros_timestamp($1), afterimage.iso_timestamp($1))
end;

-- A day is kept away from both ends of the type, which a time zone could push over.
create or replace function afterimage.as_timestamptz(v text) returns timestamptz language sql stable parallel safe
return case
  when $1 in ('infinity', '-infinity') then $1::timestamptz
  when $1 ~ '^\d{4,6}-\d\d-\d\d ([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?[+-](0\d|1[0-5])(:[0-5]\d(:[0-5]\d)?)?( BC)?$' then
    case
      when $1 ~ '^294276-12-31 ' or $1 ~ '^4714-11-24 .* BC$' then null
      when afterimage.is_day(regexp_replace($1, ' [^ B]+', ''), 294276) then $1::timestamptz
    end
  else coalesce(afterimage.micros_timestamp($1), afterimage.iso_timestamp($1)) at time zone 'UTC'
end;

create or replace function afterimage.as_interval(v text) returns interval language sql stable parallel safe
return case
  when $1 <> ''
    and $1 || ' ' ~ '^(-?\d{1,8} years? )?([+-]?\d{1,2} mons? )?([+-]?\d{1,9} days? )?([+-]?\d{2,9}:[0-5]\d:[0-5]\d(\.\d{1,6})? )?$'
    then $1::interval
  -- In three steps: a number of microseconds is multiplied as a double. Up to 999,999,999 hours, as in the text form.
  when $1 ~ '^-?\d{1,19}$' then case when abs($1::numeric) < 3600000000000000000 then
    ($1::bigint / 3600000000) * interval '1 hour' + ($1::bigint / 1000000 % 3600) * interval '1 second'
      + ($1::bigint % 1000000) * interval '1 microsecond' end
  when $1 ~ '\d' and $1 ~ '^P(-?\d{1,6}Y)?(-?\d{1,6}M)?(-?\d{1,6}D)?(T(?=.)(-?\d{1,6}H)?(-?\d{1,6}M)?(-?\d{1,8}(\.\d{1,6})?S)?)?$'
    then $1::interval
end;

create or replace function afterimage.as_bytea(v text) returns bytea language sql immutable parallel safe
return case
  when $1 ~ '^\\x' then case when length($1) % 2 = 0 and $1 ~ '^\\x[0-9a-fA-F]*$' then decode(substr($1, 3), 'hex') end
  when length($1) % 4 = 0 and $1 ~ '^[A-Za-z0-9+/]*={0,2}$' then decode($1, 'base64')
end;

create or replace function afterimage.as_uuid(v text) returns uuid language sql immutable parallel safe
return case when $1 ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then $1::uuid end;

alter table afterimage.field
  add column misfit_type text,
  add column misfit_at timestamptz,
  add column misfit_position int,
  add column misfit_offset bigint;
comment on table afterimage.field is
  'Field dictionary. class: v visible, s system, h status, x excluded; types: [{"type", "since"}] as applied, newest last; misfit_: the first value seen that does not fit misfit_type, a type declared for the field.';
