-- A worker that dies between reading a topic that was made anew and noticing it leaves what tells the two logs apart.

alter table afterimage.position
  add column pin_offset bigint,
  add column pin_ts timestamptz,
  add column pin_hash bigint,
  add column pin_source_at timestamptz,
  add column pin_source_lsn bigint;
comment on column afterimage.position.pin_offset is
  'A message that stood in the log when that was last looked at (every ten seconds): what was read after it may be of another log. pin_ts, pin_hash: its fingerprint, as last_offset, last_ts, last_hash are the newest message''s; pin_source_at, pin_source_lsn: source_at and source_lsn then.';
