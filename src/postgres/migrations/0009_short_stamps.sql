-- The stamp of a stored version in two bytes where it fits (bit 7 of byte 0), in four where it does not, as before.
--
-- What is stored stays as it is. d, byte by byte: src/core/format/mod.rs.

create or replace function afterimage.stamp(at timestamptz, d bytea) returns timestamptz language sql stable parallel safe
return case
  when get_byte($2, 0) < 128 then case
    when substr($2, 4, 4) = '\x80000000'::bytea then null
    else date_trunc('second', $1)
      + ((get_byte($2, 3) << 24) | (get_byte($2, 4) << 16) | (get_byte($2, 5) << 8) | get_byte($2, 6))
      * case when get_byte($2, 1) & 128 <> 0 then interval '1 millisecond' else interval '1 second' end
  end
  when substr($2, 4, 2) = '\x8000'::bytea then null
  else date_trunc('second', $1)
    -- Two bytes with a sign: the sign's bit turned over counts from -32768.
    + ((((get_byte($2, 3) << 8) | get_byte($2, 4)) # 32768) - 32768)
    * case when get_byte($2, 1) & 128 <> 0 then interval '1 millisecond' else interval '1 second' end
end;
comment on function afterimage.stamp(timestamptz, bytea) is 'Salesforce''s stamp of a version where it stands in the header; salesforce_at() also looks into the payload.';

create or replace function afterimage.header(d bytea,
  out position_id int, out "offset" bigint, out lsn bigint, out recorded_ms bigint, out raw_us bigint)
language plpgsql immutable parallel safe as $$
declare
  i int;
  b int;
  shift int;
  v bigint;
  numbers bigint[] := '{}';
begin
  if d is null then
    return;
  end if;
  -- Behind the stamp: LEB128 numbers of 64 bits each, the signed ones in zigzag.
  i := case when get_byte(d, 0) < 128 then 7 else 5 end;
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
