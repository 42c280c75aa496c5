-- What a person has to decide stands where every worker and every person sees it: halts of partitions, since when a topic is
-- held by which group, and what became of a dead letter.

alter table afterimage.position
  add column halted_at timestamptz,
  add column halt text,
  add column halt_stays bool not null default false;
comment on column afterimage.position.halted_at is 'Since when it is not read, because a person has to look; NULL = it is.';
comment on column afterimage.position.halt is 'Why, and what to do about it.';
comment on column afterimage.position.halt_stays is 'It is not looked at again until a person lifts the halt; otherwise each claim looks anew.';

alter table afterimage.source add column since timestamptz;
update afterimage.source s set since = coalesce(
  (select min(c.at) from afterimage.claim c join afterimage.position p on p.position_id = c.position_id
   where p.source_id = s.source_id), now());
alter table afterimage.source alter column since set default now(), alter column since set not null;
comment on column afterimage.source.since is 'Since when this group on this cluster holds it.';

alter table afterimage.dead_letter add column outcome text;
comment on column afterimage.dead_letter.outcome is 'What became of it: dropped, or the outcome of its retry.';
create index dead_letter_open on afterimage.dead_letter (position_id, "offset") where resolved_at is null;

create or replace view afterimage.positions as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation,
  p.first_next as first_offset, p.next as next_offset, p.epoch, p.source_at, p.committed_at,
  (select c.worker from afterimage.claim c where c.position_id = p.position_id order by c.epoch desc limit 1) as worker,
  p.live, p.halted_at, p.halt
from afterimage.position p
join afterimage.source s on s.source_id = p.source_id
left join afterimage.org o on o.org_id = s.org_id
left join afterimage.object b on b.object_id = s.object_id;
comment on column afterimage.positions.live is 'False of a former life of the topic: nothing is read there any more.';
comment on column afterimage.positions.halted_at is 'Since when it is not read, because a person has to look; NULL = it is.';
comment on column afterimage.positions.halt is 'Why, and what to do about it.';

create or replace view afterimage.dead_letters as
select o.name as org, b.name as object, s.topic, p.partition, p.incarnation, l."offset", l.at, l.reason,
  l.detail, l.sfid, l.key, l.value, l.sha256, l.resolved_at, l.outcome
from afterimage.dead_letter l
join afterimage.position p on p.position_id = l.position_id
join afterimage.source s on s.source_id = p.source_id
left join afterimage.org o on o.org_id = s.org_id
left join afterimage.object b on b.object_id = coalesce(l.object_id, s.object_id);
comment on column afterimage.dead_letters.resolved_at is 'When it was dropped, or retried with success.';
comment on column afterimage.dead_letters.outcome is 'dropped, or the outcome of its retry; NULL while it is open.';
