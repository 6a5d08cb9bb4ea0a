-- Open tasks stand in a small table of their own. Ended tasks and entries are partitioned by month, so that the cost of
-- a request does not grow with them. No row is rewritten: what has ended stays where it is, as the first partition.

-- The least UUIDv7 of a moment: ids of later moments are greater.
CREATE FUNCTION uuid_of(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    (lpad(to_hex(floor(date_part('epoch', moment AT TIME ZONE 'UTC') * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

-- A hold is an open task: only changes of a balance are entries.
DROP INDEX entries_hold_key;
ALTER TABLE entries
    DROP CONSTRAINT entries_kind_check,
    DROP CONSTRAINT entries_account_fkey,
    DROP COLUMN held_change,
    ALTER COLUMN id DROP IDENTITY;

CREATE TABLE open_tasks (
    id              uuid        PRIMARY KEY,
    account_id      uuid        NOT NULL,
    api_key_id      uuid        NOT NULL,
    status          text        NOT NULL,
    model           text        NOT NULL,
    quality         text        NOT NULL,
    resolution      text        NOT NULL,
    ratio           text        NOT NULL,
    requirements    smallint    NOT NULL,
    n               smallint    NOT NULL,
    unit_price      bigint      NOT NULL,
    file_id         uuid        NOT NULL,
    idempotency_key text,
    fingerprint     bytea       NOT NULL,
    waiter          integer,
    joined          smallint    NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    deadline_at     timestamptz NOT NULL,
    turn            bigint      NOT NULL DEFAULT 0,
    run_at          timestamptz NOT NULL DEFAULT now(),
    lease_until     timestamptz,
    attempts        smallint    NOT NULL DEFAULT 0,
    fence           bigint      NOT NULL DEFAULT 0,
    route           text,
    jobs            text[]      NOT NULL DEFAULT '{}',
    tried           jsonb       NOT NULL DEFAULT '[]',
    request         jsonb       NOT NULL,
    CONSTRAINT open_tasks_n_check CHECK (n > 0),
    CONSTRAINT open_tasks_unit_price_check CHECK (unit_price >= 0),
    CONSTRAINT open_tasks_status_check CHECK (CASE status
        WHEN 'queued' THEN lease_until IS NULL
        WHEN 'running' THEN lease_until IS NOT NULL
        ELSE false
    END)
) WITH (fillfactor = 70); -- leases are renewed in place

INSERT INTO open_tasks
SELECT id, account_id, api_key_id, status, model, quality, resolution, ratio, requirements, n, unit_price, file_id,
    idempotency_key, fingerprint, waiter, joined, created_at, deadline_at,
    row_number() OVER (PARTITION BY account_id ORDER BY run_at, id), run_at, lease_until, attempts, fence, route,
    jobs, tried, request
FROM tasks WHERE status IN ('queued', 'running');
DELETE FROM tasks WHERE status IN ('queued', 'running');

CREATE INDEX open_tasks_account_idx ON open_tasks (account_id, id);
-- A key's open tasks are counted by it, too.
CREATE INDEX open_tasks_fingerprint_idx ON open_tasks (api_key_id, fingerprint);
CREATE INDEX open_tasks_idempotency_idx ON open_tasks (api_key_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX open_tasks_queued_idx ON open_tasks (model, requirements, turn, id)
    INCLUDE (account_id, run_at, deadline_at, route) WHERE status = 'queued';
-- No column of it changes when a lease is renewed.
CREATE INDEX open_tasks_running_idx ON open_tasks (model) INCLUDE (account_id, route) WHERE status = 'running';
CREATE INDEX open_tasks_deadline_idx ON open_tasks (deadline_at);

COMMENT ON TABLE open_tasks IS 'queued and running tasks; the price of each is the hold on its account';
COMMENT ON COLUMN open_tasks.requirements IS 'the number of its references, plus 100 with a mask';
COMMENT ON COLUMN open_tasks.unit_price IS 'the price of one image when the request was accepted';
COMMENT ON COLUMN open_tasks.file_id IS 'names the images in their links: a credential, unlike the id';
COMMENT ON COLUMN open_tasks.fingerprint IS 'of the whole request: a repeat has the same';
COMMENT ON COLUMN open_tasks.waiter IS 'the process where its caller waits; 0: the caller has disconnected; NULL: none waited';
COMMENT ON COLUMN open_tasks.joined IS 'the number of the latest retry that made this task or joined it; 0: none';
COMMENT ON COLUMN open_tasks.attempts IS 'how often a worker has begun it';
COMMENT ON COLUMN open_tasks.fence IS 'rises with every claim: a worker with an older one has lost the task';
COMMENT ON COLUMN open_tasks.route IS 'the route of a running task; a queued task keeps it if its jobs are to be resumed there';
COMMENT ON COLUMN open_tasks.jobs IS 'the upstream''s handles of its jobs, one for each call of the task';
COMMENT ON COLUMN open_tasks.tried IS 'the ended attempts, as tasks::Attempt serializes them';
COMMENT ON COLUMN open_tasks.request IS 'the request, as tasks::Request serializes it';

-- Accounts take turns. A queued task gets the turn after the last one of its account, but none that is over: the next task
-- is the one with the least turn, however many wait.
CREATE SEQUENCE queue_turn MINVALUE 0 START 0;
ALTER TABLE accounts ADD COLUMN last_turn bigint NOT NULL DEFAULT 0;
UPDATE accounts SET last_turn = (SELECT COALESCE(max(turn), 0) FROM open_tasks WHERE account_id = accounts.id);
DROP TABLE account_schedule;
COMMENT ON SEQUENCE queue_turn IS 'the latest turn of which a task was claimed';
COMMENT ON COLUMN accounts.last_turn IS 'the turn of its latest queued task';
COMMENT ON COLUMN open_tasks.turn IS 'its place among the queued tasks of its model and requirements';
COMMENT ON COLUMN open_tasks.run_at IS 'a queued task is not claimed before';

-- Ended tasks whose attempts may have left images in storage that no task refers to. Most tasks never come here.
CREATE TABLE unswept_tasks (
    task_id   uuid        PRIMARY KEY,
    sweep_at  timestamptz NOT NULL
);
CREATE INDEX unswept_tasks_sweep_idx ON unswept_tasks (sweep_at);
COMMENT ON COLUMN unswept_tasks.sweep_at IS 'the task''s deadline: after that no worker stores images for it';

INSERT INTO unswept_tasks
SELECT id, deadline_at FROM tasks
WHERE ended_at IS NOT NULL AND swept_at IS NULL AND (fence > 1 OR failure ->> 'kind' IN ('internal', 'deadline'));

-- The rows of ended tasks, without what only open tasks have.
DROP INDEX tasks_queued_idx, tasks_running_idx, tasks_deadline_idx, tasks_unswept_idx;
ALTER TABLE tasks
    DROP CONSTRAINT tasks_account_fkey,
    DROP CONSTRAINT tasks_api_key_fkey,
    DROP CONSTRAINT tasks_status_check,
    DROP CONSTRAINT tasks_n_check,
    DROP CONSTRAINT tasks_unit_price_check,
    ALTER COLUMN model DROP EXPRESSION,
    ALTER COLUMN quality DROP EXPRESSION,
    ALTER COLUMN resolution DROP EXPRESSION,
    ALTER COLUMN ratio DROP EXPRESSION,
    DROP COLUMN requirements,
    DROP COLUMN deadline_at,
    DROP COLUMN run_at,
    DROP COLUMN lease_until,
    DROP COLUMN route,
    DROP COLUMN jobs,
    DROP COLUMN swept_at,
    ALTER COLUMN cost SET NOT NULL,
    ALTER COLUMN ended_at SET NOT NULL;
ALTER TABLE tasks RENAME TO task_history_before;
ALTER TABLE task_history_before RENAME CONSTRAINT tasks_pkey TO task_history_before_pkey;
ALTER INDEX tasks_account_idx RENAME TO task_history_before_account_idx;
ALTER INDEX tasks_file_id_key RENAME TO task_history_before_file_id_key;
ALTER INDEX tasks_fingerprint_idx RENAME TO task_history_before_fingerprint_idx;
ALTER INDEX tasks_idempotency_idx RENAME TO task_history_before_idempotency_idx;

CREATE TABLE task_history (
    id              uuid        NOT NULL,
    account_id      uuid        NOT NULL,
    api_key_id      uuid        NOT NULL,
    status          text        NOT NULL,
    model           text        NOT NULL,
    quality         text        NOT NULL,
    resolution      text        NOT NULL,
    ratio           text        NOT NULL,
    n               smallint    NOT NULL,
    unit_price      bigint      NOT NULL,
    file_id         uuid        NOT NULL,
    idempotency_key text,
    fingerprint     bytea       NOT NULL,
    waiter          integer,
    joined          smallint    NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz NOT NULL,
    attempts        smallint    NOT NULL DEFAULT 0,
    fence           bigint      NOT NULL DEFAULT 0,
    cost            bigint      NOT NULL,
    images          jsonb,
    failure         jsonb,
    usage           jsonb,
    tried           jsonb       NOT NULL DEFAULT '[]',
    request         jsonb       NOT NULL
) PARTITION BY RANGE (id);
ALTER TABLE task_history ADD CONSTRAINT task_history_pkey PRIMARY KEY (id);
CREATE INDEX task_history_account_idx ON task_history (account_id, id);

COMMENT ON TABLE task_history IS 'ended tasks, by the month of their ids';
COMMENT ON COLUMN task_history.cost IS 'what was captured: the number of delivered images times unit_price';
COMMENT ON COLUMN task_history.waiter IS 'the process where its caller was answered; 0: the caller had disconnected; NULL: none waited';
COMMENT ON COLUMN task_history.usage IS 'the usage that the upstream reported, one value per call';

ALTER TABLE entries RENAME TO entries_before;
ALTER TABLE entries_before RENAME CONSTRAINT entries_pkey TO entries_before_pkey;
ALTER INDEX entries_account_idx RENAME TO entries_before_account_idx;
ALTER INDEX entries_settlement_key RENAME TO entries_before_settlement_key;
CREATE SEQUENCE entry_ids;
SELECT setval('entry_ids', (SELECT COALESCE(max(id), 0) + 1 FROM entries_before), false);

CREATE TABLE entries (
    id             bigint      NOT NULL DEFAULT nextval('entry_ids'),
    account_id     uuid        NOT NULL,
    task_id        uuid,
    kind           text        NOT NULL,
    balance_change bigint      NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (created_at);
CREATE INDEX entries_account_idx ON entries (account_id, id);

COMMENT ON TABLE entries IS 'the ledger: never changed, only added to; a balance is the sum of its account''s entries';
COMMENT ON COLUMN entries.kind IS 'top_up or capture; hold and release are of the first versions and changed no balance';

-- Attaches a partition of both tables, for what begins and changes from one moment until another. The indexes of links
-- and repeats begin with the time, so that new rows touch the same few pages whatever the age of the table.
CREATE FUNCTION add_partition(name text, tasks text, entries text) RETURNS void LANGUAGE plpgsql AS $add$
BEGIN
    EXECUTE format($sql$
        CREATE TABLE task_history_%1$s (
            LIKE task_history INCLUDING DEFAULTS,
            CONSTRAINT task_history_%1$s_status_check CHECK (CASE status
                WHEN 'completed' THEN images IS NOT NULL AND failure IS NULL
                    AND cost = unit_price * jsonb_array_length(images)
                WHEN 'failed' THEN images IS NULL AND failure IS NOT NULL AND cost = 0
                ELSE false
            END)
        );
        CREATE INDEX task_history_%1$s_file_idx ON task_history_%1$s (date_bin('1 day', created_at, 'epoch'), file_id);
        CREATE INDEX task_history_%1$s_fingerprint_idx ON task_history_%1$s
            (date_bin('10 minutes', ended_at, 'epoch'), fingerprint) WHERE status = 'completed';
        CREATE INDEX task_history_%1$s_idempotency_idx ON task_history_%1$s
            (date_bin('1 day', created_at, 'epoch'), api_key_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
        ALTER TABLE task_history ATTACH PARTITION task_history_%1$s %2$s;

        CREATE TABLE entries_%1$s (
            LIKE entries INCLUDING DEFAULTS,
            CONSTRAINT entries_%1$s_kind_check CHECK (CASE kind
                WHEN 'top_up' THEN task_id IS NULL
                WHEN 'capture' THEN task_id IS NOT NULL AND balance_change < 0
                ELSE false
            END)
        );
        CREATE UNIQUE INDEX entries_%1$s_task_key ON entries_%1$s (task_id) WHERE task_id IS NOT NULL;
        ALTER TABLE entries ATTACH PARTITION entries_%1$s %3$s;
    $sql$, name, tasks, entries);
END $add$;

-- The partition from a moment to the end of its month, unless there is one.
CREATE FUNCTION add_month(since timestamptz) RETURNS void LANGUAGE plpgsql AS $add$
DECLARE
    name text := to_char(since AT TIME ZONE 'UTC', 'YYYY_MM');
    until timestamptz := (date_trunc('month', since AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC';
BEGIN
    IF to_regclass('task_history_' || name) IS NULL THEN
        PERFORM add_partition(name,
            format('FOR VALUES FROM (%L) TO (%L)', uuid_of(since), uuid_of(until)),
            format('FOR VALUES FROM (%L) TO (%L)', since, until));
    END IF;
EXCEPTION WHEN invalid_object_definition THEN
    -- The first partition covers this month to its end.
END $add$;

-- The partitions of this month and of some months after it.
CREATE FUNCTION add_months(more integer) RETURNS void LANGUAGE sql AS $add$
    SELECT add_month((date_trunc('month', now() AT TIME ZONE 'UTC') + month * interval '1 month') AT TIME ZONE 'UTC')
    FROM generate_series(0, more) AS month
$add$;

-- What there was before is one partition, up to a midnight that no row has reached. Then the months begin.
DO $before$
DECLARE
    midnight timestamptz := (date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC';
    last_id uuid := (SELECT id FROM task_history_before ORDER BY id DESC LIMIT 1);
BEGIN
    PERFORM add_partition('other', 'DEFAULT', 'DEFAULT');
    IF last_id IS NULL AND NOT EXISTS (SELECT FROM entries_before) THEN
        DROP TABLE task_history_before, entries_before;
    ELSE
        WHILE uuid_of(midnight) <= last_id LOOP
            midnight := midnight + interval '1 day';
        END LOOP;
        EXECUTE format('ALTER TABLE task_history ATTACH PARTITION task_history_before FOR VALUES FROM (MINVALUE) TO (%L)',
            uuid_of(midnight));
        EXECUTE format('ALTER TABLE entries ATTACH PARTITION entries_before FOR VALUES FROM (MINVALUE) TO (%L)', midnight);
        PERFORM add_month(midnight);
    END IF;
    PERFORM add_months(2);
END $before$;

-- All tasks, open and ended, for whoever reads them.
CREATE VIEW tasks AS
SELECT id, account_id, api_key_id, status, model, quality, resolution, ratio, n, unit_price, file_id, idempotency_key,
    fingerprint, waiter, joined, created_at, NULL::timestamptz AS ended_at, attempts, fence, NULL::bigint AS cost,
    NULL::jsonb AS images, NULL::jsonb AS failure, NULL::jsonb AS usage, tried, request
FROM open_tasks
UNION ALL
SELECT id, account_id, api_key_id, status, model, quality, resolution, ratio, n, unit_price, file_id, idempotency_key,
    fingerprint, waiter, joined, created_at, ended_at, attempts, fence, cost,
    images, failure, usage, tried, request
FROM task_history;
