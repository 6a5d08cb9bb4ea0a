-- Months that are over can be exported and dropped: `easel archive`. What their entries add up to stays.

CREATE TABLE archived_sums (
    account_id  uuid    PRIMARY KEY,
    balance     bigint  NOT NULL,
    spent       bigint  NOT NULL
);
COMMENT ON TABLE archived_sums IS 'what the archived entries of each account add up to';
COMMENT ON COLUMN archived_sums.spent IS 'the sum of its archived captures';

CREATE TABLE archived_until (
    one    boolean      PRIMARY KEY DEFAULT true,
    until  timestamptz  NOT NULL,
    CONSTRAINT archived_until_one_check CHECK (one)
);
COMMENT ON TABLE archived_until IS 'one row: tasks accepted and entries made before this moment are archived; none: nothing is';

-- The least id of a task that is not archived.
CREATE FUNCTION kept_from() RETURNS uuid LANGUAGE sql STABLE RETURN
    COALESCE((SELECT uuid_of(until) FROM archived_until), '00000000-0000-0000-0000-000000000000'::uuid);

-- The names of the partitions that end at a moment or before, oldest first.
CREATE FUNCTION partitions_until(moment timestamptz) RETURNS TABLE (name text, until timestamptz) LANGUAGE sql STABLE AS $names$
    SELECT substr(c.relname, length('entries_') + 1), bound.until
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid CROSS JOIN LATERAL (
        SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz AS until) AS bound
    WHERE i.inhparent = 'entries'::regclass AND bound.until <= moment
    ORDER BY bound.until
$names$;
