-- One statement: moves the tasks to the history, enters what they cost, releases the holds, and tells the other
-- processes. settle.rs names the parameters.
WITH patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', $1, true)
), ending AS MATERIALIZED (
    SELECT * FROM UNNEST($4::uuid[], $5::bigint[], $6::jsonb[], $7::jsonb[], $8::jsonb[], $9::jsonb[])
        AS e (id, fence, images, failure, attempt, usage)
), mine AS MATERIALIZED (
    SELECT t.id FROM patience, open_tasks t JOIN ending e ON t.id = e.id AND t.fence = e.fence
    WHERE t.id = ANY($4) ORDER BY t.id FOR UPDATE OF t
), ended AS (
    DELETE FROM open_tasks t USING mine JOIN ending e USING (id) WHERE t.id = mine.id AND t.id = ANY($4)
    RETURNING t.*, e.images, e.failure, e.attempt, e.usage,
        t.unit_price * COALESCE(jsonb_array_length(e.images), 0) AS cost
), kept AS (
    INSERT INTO task_history (id, account_id, api_key_id, status, model, quality, resolution, ratio,
        n, unit_price, file_id, idempotency_key, fingerprint, waiter, joined, created_at, ended_at,
        attempts, fence, cost, images, failure, usage, tried, request)
    SELECT id, account_id, api_key_id, CASE WHEN images IS NULL THEN 'failed' ELSE 'completed' END,
        model, quality, resolution, ratio,
        n, unit_price, file_id, idempotency_key, fingerprint, waiter, joined, created_at, now(),
        attempts, fence, cost, images, failure, usage,
        CASE WHEN attempt IS NULL THEN tried ELSE tried || attempt END, request
    FROM ended
), unswept AS (
    INSERT INTO unswept_tasks (task_id, sweep_at) SELECT id, deadline_at FROM ended
    WHERE fence > 1 OR failure ->> 'kind' IN ('internal', 'deadline')
), captured AS (
    INSERT INTO entries (account_id, task_id, kind, balance_change)
    SELECT account_id, id, 'capture', -cost FROM ended WHERE cost > 0
), due AS MATERIALIZED (
    SELECT account_id AS id, sum(unit_price * n)::bigint AS held, sum(cost)::bigint AS captured
    FROM ended GROUP BY account_id
), locked AS MATERIALIZED (
    SELECT due.* FROM accounts a JOIN due USING (id) ORDER BY a.id FOR NO KEY UPDATE OF a
), paid AS (
    UPDATE accounts AS a
    SET balance = a.balance - locked.captured, held = a.held - locked.held,
        spent = a.spent + locked.captured,
        month = GREATEST(a.month, date_trunc('month', now() AT TIME ZONE $2)::date),
        month_spend = locked.captured
            + CASE WHEN a.month >= date_trunc('month', now() AT TIME ZONE $2)::date
                  THEN a.month_spend ELSE 0 END
    FROM locked WHERE a.id = locked.id
), elsewhere AS (
    -- As many ids as fit into the 8000 bytes of a notification.
    SELECT replace(id::text, '-', '') AS id, (row_number() OVER () - 1) / 200 AS message FROM ended
    WHERE waiter NOT IN (0, $3)
), notified AS MATERIALIZED (
    SELECT pg_notify('easel_ended', string_agg(id, ','))::text AS sent FROM elsewhere GROUP BY message
)
SELECT id AS "task_id!: TaskId", account_id AS "account_id!: AccountId", cost AS "captured!: Cny",
    now() AS "at!"
FROM ended WHERE (SELECT count(sent) FROM notified) >= 0
