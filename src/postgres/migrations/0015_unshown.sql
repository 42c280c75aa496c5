-- What of a record rests on rows that left no version (see core/unshown.rs): a late event must not have the last word on it.

alter table afterimage.record add column unshown bytea;
comment on column afterimage.record.unshown is
  'Field numbers, two bytes each: what the record''s last move did not show, and no row has shown since; with the sign changed, what its image lacks, and a row has shown empty since. NULL = nothing.';
alter table afterimage.anchor add column moved boolean not null default true;
comment on column afterimage.anchor.moved is 'It moved the record, deleted it, or was the first of it; otherwise it was kept for what it shows.';
comment on table afterimage.anchor is
  'Events that moved their record to another key or position, deleted it, or were the first to show a field since such a move without changing it, whole: kept until every partition of the topic has passed their source time, for late events are placed by them. Columns as in late_event.';
