-- A source database that looks like two orgs under Heroku Connect, a seeded workload on it, and an audit table that
-- triggers fill in the same transactions: what the history must show, written down without Kafka.

CREATE TABLE public.audit (
  n bigserial PRIMARY KEY, xid bigint, at timestamptz, org text, object text, op text, id int, sfid text,
  stamp timestamp, row jsonb);

CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  r jsonb := CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) WHEN 'TRUNCATE' THEN NULL ELSE to_jsonb(NEW) END;
BEGIN
  INSERT INTO public.audit (xid, at, org, object, op, id, sfid, stamp, row)
  VALUES (txid_current() & 4294967295, clock_timestamp(), TG_TABLE_SCHEMA, TG_TABLE_NAME, left(TG_OP, 1),
    (r ->> 'id')::int, r ->> 'sfid', (r ->> 'systemmodstamp')::timestamp,
    r - '{id,sfid,_hc_lastop,_hc_err,systemmodstamp,lastmodifieddate,lastmodifiedbyid}'::text[]);
  RETURN NULL;
END $$;

DO $do$
DECLARE
  o text;
  t text;
BEGIN
  FOREACH o IN ARRAY '{emea,apac}'::text[] LOOP
    EXECUTE format($f$
      CREATE SCHEMA %1$I;
      CREATE TABLE %1$I.account (
        name varchar(255), annualrevenue double precision, visits__c integer, systemmodstamp timestamp,
        isdeleted boolean, active__c boolean, renewal__c date, last_call__c timestamp, description text,
        createddate timestamp, lastmodifieddate timestamp, lastmodifiedbyid varchar(18),
        sfid varchar(18) UNIQUE, id serial PRIMARY KEY, _hc_lastop varchar(32), _hc_err text);
      CREATE TABLE %1$I.contact (
        lastname varchar(80), createddate timestamp, isdeleted boolean, systemmodstamp timestamp, donotcall boolean,
        score__c double precision, calls__c integer, birthdate date, seen__c timestamp, bio__c text,
        _hc_lastop varchar(32), _hc_err text, sfid varchar(18) UNIQUE, id serial PRIMARY KEY);
      -- Never compressed: a long text that a statement does not touch is not in its message.
      ALTER TABLE %1$I.account ALTER description SET STORAGE EXTERNAL;
      ALTER TABLE %1$I.contact ALTER bio__c SET STORAGE EXTERNAL $f$, o);
    FOREACH t IN ARRAY '{account,contact}'::text[] LOOP
      EXECUTE format('CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON %I.%I FOR EACH ROW EXECUTE FUNCTION public.note()', o, t);
      EXECUTE format('CREATE TRIGGER note_all AFTER TRUNCATE ON %I.%I FOR EACH STATEMENT EXECUTE FUNCTION public.note()', o, t);
    END LOOP;
  END LOOP;
END $do$;

-- No capitals: the three check characters are AAA.
CREATE FUNCTION public.sfid(n int) RETURNS text LANGUAGE sql RETURN '001' || lpad(n::text, 12, '0') || 'AAA';
CREATE FUNCTION public.long_text() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(md5(random()::text), ' ') FROM generate_series(1, 90) $$;
-- Salesforce's stamps are whole seconds; these only rise, and lie well before any transaction here.
CREATE SEQUENCE public.ticks;
CREATE FUNCTION public.stamp() RETURNS timestamp LANGUAGE sql AS $$
  SELECT date_trunc('second', now()::timestamp) - interval '1 day' + nextval('public.ticks') * interval '1 second' $$;

-- The same work on tables whose columns have other names: their roles, by name.
CREATE FUNCTION public.spell(o text, t text, statement text) RETURNS text LANGUAGE sql AS $$
  SELECT replace(replace(replace(replace(replace(replace(replace(replace(statement,
    '@last', format('currval(''%I.%I'')', o, t || '_id_seq')),
    '@table', format('%I.%I', o, t)),
    '@word', CASE t WHEN 'account' THEN 'name' ELSE 'lastname' END),
    '@float', CASE t WHEN 'account' THEN 'annualrevenue' ELSE 'score__c' END),
    '@int', CASE t WHEN 'account' THEN 'visits__c' ELSE 'calls__c' END),
    '@day', CASE t WHEN 'account' THEN 'renewal__c' ELSE 'birthdate' END),
    '@time', CASE t WHEN 'account' THEN 'last_call__c' ELSE 'seen__c' END),
    '@long', CASE t WHEN 'account' THEN 'description' ELSE 'bio__c' END) $$;

CREATE PROCEDURE public.insert_one(o text, t text, id text, created timestamp, stamp timestamp, lastop text)
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE public.spell(o, t, 'INSERT INTO @table (sfid, createddate, systemmodstamp, isdeleted, @word, @float, @int, @day, @long, _hc_lastop)
    VALUES ($1, $2, $3, false, $4, $5, $6, $7, $8, $9)')
  USING id, created, stamp, 'Ünï "quoted" \ ' || random(), random() * 1e6, floor(random() * 1e6)::int,
    date '1950-01-01' + floor(random() * 40000)::int,
    CASE WHEN random() < 0.5 THEN public.long_text() ELSE 'short' END, lastop;
END $$;

-- One session's share: records lo to hi, each step a transaction.
CREATE PROCEDURE public.work(o text, t text, seed float8, lo int, hi int, steps int) LANGUAGE plpgsql AS $$
DECLARE
  who text;
  what float8;
  there boolean;
BEGIN
  PERFORM setseed(seed);
  FOR one IN lo .. hi LOOP
    CONTINUE WHEN EXISTS (SELECT FROM public.audit a WHERE (a.org, a.object, a.sfid) = (o, t, public.sfid(one)));
    IF one % 5 = 0 THEN
      -- An application's insert: Salesforce's id comes later, when the long text is no longer in the message.
      CALL public.insert_one(o, t, NULL, NULL, NULL, 'PENDING');
      COMMIT;
      IF one % 2 = 0 THEN
        EXECUTE public.spell(o, t, 'UPDATE @table SET @int = 5 WHERE sfid IS NULL AND @word IS NOT NULL AND id = @last');
        COMMIT;
      END IF;
      EXECUTE public.spell(o, t, 'UPDATE @table SET sfid = $1, systemmodstamp = $2, _hc_lastop = ''SYNCED'' WHERE id = @last')
      USING public.sfid(one), public.stamp();
    ELSE
      CALL public.insert_one(o, t, public.sfid(one), CASE one % 3 WHEN 0 THEN timestamp '2019-03-01' ELSE now()::timestamp END, public.stamp(), 'SYNCED');
    END IF;
    COMMIT;
  END LOOP;
  -- One that is given up before it gets an id.
  CALL public.insert_one(o, t, NULL, NULL, NULL, 'PENDING');
  COMMIT;
  EXECUTE public.spell(o, t, 'DELETE FROM @table WHERE id = @last');
  COMMIT;

  FOR step IN 1 .. steps LOOP
    who := public.sfid(lo + floor(random() * (hi - lo + 1))::int);
    what := random();
    EXECUTE public.spell(o, t, 'SELECT EXISTS (SELECT FROM @table WHERE sfid = $1)') INTO there USING who;
    IF NOT there THEN
      -- Undeleted in Salesforce: the stamp is later than the delete.
      CALL public.insert_one(o, t, who, timestamp '2019-03-01', date_trunc('second', now()::timestamp) + interval '1 minute', 'SYNCED');
    ELSIF what < 0.3 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET @word = $2, @float = $3, @time = now(), systemmodstamp = $4 WHERE sfid = $1')
      USING who, 'word ' || step, step + 0.5, public.stamp();
    ELSIF what < 0.4 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET @long = $2, systemmodstamp = $3 WHERE sfid = $1')
      USING who, public.long_text(), public.stamp();
    ELSIF what < 0.55 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET @word = @word, @long = @long WHERE sfid = $1') USING who;
    ELSIF what < 0.7 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET systemmodstamp = $2 WHERE sfid = $1') USING who, public.stamp();
    ELSIF what < 0.78 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET @day = NULL, @int = $2, isdeleted = NOT isdeleted, systemmodstamp = $3 WHERE sfid = $1')
      USING who, step, public.stamp();
    ELSIF what < 0.86 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET @word = $2, _hc_lastop = ''PENDING'' WHERE sfid = $1') USING who, 'local ' || step;
      COMMIT;
      EXECUTE public.spell(o, t, 'UPDATE @table SET _hc_lastop = ''SYNCED'' WHERE sfid = $1') USING who;
    ELSIF what < 0.92 THEN
      EXECUTE public.spell(o, t, 'DELETE FROM @table WHERE sfid = $1') USING who;
    ELSIF what < 0.97 THEN
      EXECUTE public.spell(o, t, 'UPDATE @table SET @int = $3, systemmodstamp = $4 WHERE sfid BETWEEN $1 AND $2')
      USING public.sfid(lo), public.sfid(hi), step, public.stamp();
    ELSE
      EXECUTE public.spell(o, t, 'UPDATE @table SET @word = $2 WHERE sfid = $1') USING who, 'never was';
      ROLLBACK;
    END IF;
    COMMIT;
  END LOOP;
END $$;

-- Heroku Connect reloads a table: all rows go and come back, in another order and under other ids, some of them
-- changed meanwhile, and some stay away. After a TRUNCATE nothing tells that they are gone, and others get their ids.
CREATE PROCEDURE public.reload(o text, t text, by_truncate boolean) LANGUAGE plpgsql AS $$
DECLARE
  names text;
BEGIN
  EXECUTE public.spell(o, t, 'CREATE TEMP TABLE kept AS SELECT * FROM @table');
  EXECUTE public.spell(o, t, CASE WHEN by_truncate THEN 'TRUNCATE @table RESTART IDENTITY' ELSE 'DELETE FROM @table' END);
  EXECUTE public.spell(o, t, 'UPDATE kept SET @word = ''while reloading'', systemmodstamp = public.stamp() WHERE sfid IN (SELECT sfid FROM kept ORDER BY md5(sfid) LIMIT 3)');
  IF by_truncate THEN
    DELETE FROM kept WHERE sfid IN (SELECT sfid FROM kept ORDER BY md5('gone' || sfid) LIMIT 6);
  ELSE
    DELETE FROM kept WHERE sfid = (SELECT max(sfid) FROM kept);
  END IF;
  SELECT string_agg(quote_ident(attname), ', ') INTO names FROM pg_attribute
  WHERE attrelid = 'kept'::regclass AND attnum > 0 AND attname <> 'id';
  EXECUTE public.spell(o, t, format('INSERT INTO @table (%s) SELECT %1$s FROM kept ORDER BY md5(sfid || %L)', names, by_truncate));
  DROP TABLE kept;
END $$;
