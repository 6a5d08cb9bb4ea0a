-- A month that is over is closed once the audit has checked it: what its entries add up to is carried forward, so that the
-- next audit need not read them, and `easel archive` can drop them.

CREATE TABLE closed_partitions (
    name      text         PRIMARY KEY,
    until     timestamptz  NOT NULL,
    archived  boolean      NOT NULL DEFAULT false
);
COMMENT ON TABLE closed_partitions IS 'partitions of entries and task_history, from the oldest on, that the audit has checked';
COMMENT ON COLUMN closed_partitions.name IS 'what follows the names of the tables: 2026_01';
COMMENT ON COLUMN closed_partitions.archived IS 'its rows were exported and dropped';

CREATE TABLE closed_sums (
    name        text    NOT NULL REFERENCES closed_partitions,
    account_id  uuid    NOT NULL,
    balance     bigint  NOT NULL,
    spent       bigint  NOT NULL,
    PRIMARY KEY (name, account_id)
);
COMMENT ON TABLE closed_sums IS 'what the entries of each account in a closed partition add up to';
COMMENT ON COLUMN closed_sums.spent IS 'the sum of its captures';

-- The moment from which the audit reads entries: from the last closed partition on, or everything that is not archived.
CREATE FUNCTION audited_from(everything boolean) RETURNS timestamptz LANGUAGE sql STABLE RETURN
    COALESCE((SELECT max(until) FROM closed_partitions WHERE archived OR NOT everything), 'epoch'::timestamptz);

-- The names of the partitions that end at a moment or before, oldest first: none that is not over by this server's clock,
-- whatever clock the moment is from.
CREATE FUNCTION partitions_until(moment timestamptz) RETURNS TABLE (name text, until timestamptz) LANGUAGE sql STABLE AS $names$
    SELECT substr(c.relname, length('entries_') + 1), bound.until
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid CROSS JOIN LATERAL (
        SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz AS until) AS bound
    WHERE i.inhparent = 'entries'::regclass AND bound.until <= LEAST(moment, now() - interval '1 day')
    ORDER BY bound.until
$names$;
