-- Which workers live, where sessions cannot tell: behind a pooler, a session is whoever's turn it is.

create table afterimage.worker (
  worker text collate "C" not null,
  process uuid not null,
  seen_at timestamptz not null default now(),
  primary key (worker, process)) with (fillfactor = 50);
comment on table afterimage.worker is
  'Processes of workers behind a pooler in transaction mode, each with the moment it was last seen: every two seconds while it lives. Others are known by their sessions in pg_stat_activity.';
