-- One statement: locks the keys and accounts, holds the prices, inserts the tasks. An account pays for all of its tasks or
-- for none. accept.rs names the parameters.
WITH patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', $1, true)
), new AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY account_id, model, route IS NULL ORDER BY id) AS number
    FROM UNNEST($5::uuid[], $6::uuid[], $7::uuid[], $8::text[], $9::text[], $10::text[], $11::text[],
        $12::smallint[], $13::smallint[], $14::bigint[], $15::uuid[], $16::text[], $17::bytea[], $18::int[],
        $19::smallint[], $20::text[], $21::jsonb[])
        AS new (id, account_id, api_key_id, model, quality, resolution, ratio,
            requirements, n, unit_price, file_id, idempotency_key, fingerprint, waiter,
            joined, route, request)
), usable AS MATERIALIZED (
    SELECT k.id FROM patience, api_keys k
    WHERE k.id = ANY($7) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
    ORDER BY k.id FOR SHARE OF k
), price AS MATERIALIZED (
    SELECT account_id AS id, sum(unit_price * n)::bigint AS amount
    FROM new GROUP BY account_id
    HAVING bool_and(api_key_id IN (SELECT id FROM usable))
), locked AS MATERIALIZED (
    SELECT price.* FROM accounts a JOIN price USING (id) ORDER BY a.id FOR NO KEY UPDATE OF a
), payer AS (
    UPDATE accounts AS a
    SET held = a.held + locked.amount
    FROM locked
    WHERE a.id = locked.id AND ($22::timestamptz IS NULL OR clock_timestamp() < $22)
        AND a.disabled_at IS NULL AND a.balance - a.held >= locked.amount
        AND (a.monthly_quota IS NULL OR a.monthly_quota - a.held - locked.amount >=
            CASE WHEN a.month >= date_trunc('month', now() AT TIME ZONE $2)::date
                THEN a.month_spend ELSE 0 END)
    RETURNING a.id
), latest AS (
    -- The turns after which those of the new tasks begin.
    SELECT account_id, model, GREATEST(
        (SELECT max(t.turn) FROM open_tasks t
         WHERE t.account_id = line.account_id AND t.model = line.model AND t.status = 'queued'),
        (SELECT q.turn FROM queue_turns q WHERE q.model = line.model), 0) AS turn
    FROM (SELECT DISTINCT account_id, model FROM new WHERE route IS NULL) AS line
), accepted AS (
    INSERT INTO open_tasks (id, account_id, api_key_id, status, model, quality, resolution, ratio,
        requirements, n, unit_price, file_id, idempotency_key, fingerprint, waiter, joined,
        deadline_at, turn, lease_until, attempts, fence, route, request)
    SELECT new.id, account_id, api_key_id, CASE WHEN route IS NULL THEN 'queued' ELSE 'running' END,
        model, quality, resolution, ratio,
        requirements, n, unit_price, file_id, idempotency_key, fingerprint, waiter, joined,
        now() + $3, CASE WHEN route IS NULL THEN latest.turn + number ELSE 0 END,
        CASE WHEN route IS NOT NULL THEN now() + $4 END,
        (route IS NOT NULL)::int, (route IS NOT NULL)::int, route, request
    FROM new JOIN payer ON payer.id = new.account_id
        LEFT JOIN latest USING (account_id, model)
    RETURNING id, created_at, status
), notified AS MATERIALIZED (
    SELECT pg_notify('easel_queued', '')::text AS sent
    WHERE EXISTS (SELECT FROM accepted WHERE status = 'queued')
)
SELECT id AS "id!: TaskId", created_at AS "created_at!", true AS "is_untouched!" FROM accepted
WHERE (SELECT count(sent) FROM notified) >= 0
