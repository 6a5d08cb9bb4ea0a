-- Money is whole micro-CNY (bigint) everywhere.

CREATE TABLE accounts (
    id            uuid        PRIMARY KEY,
    name          text        NOT NULL,
    balance       bigint      NOT NULL DEFAULT 0,
    held          bigint      NOT NULL DEFAULT 0,
    spent         bigint      NOT NULL DEFAULT 0,
    month         date        NOT NULL DEFAULT '-infinity',
    month_spend   bigint      NOT NULL DEFAULT 0,
    monthly_quota bigint,
    created_at    timestamptz NOT NULL DEFAULT now(),
    disabled_at   timestamptz,
    CONSTRAINT accounts_name_key UNIQUE (name),
    CONSTRAINT accounts_name_check CHECK (name <> ''),
    CONSTRAINT accounts_held_check CHECK (0 <= held AND held <= balance),
    CONSTRAINT accounts_monthly_quota_check CHECK (monthly_quota >= 0)
) WITH (fillfactor = 50); -- balances change all the time: leave room for new row versions on the page

COMMENT ON COLUMN accounts.balance IS 'what was topped up less what was captured';
COMMENT ON COLUMN accounts.held IS 'the part of the balance that open tasks have on hold';
COMMENT ON COLUMN accounts.spent IS 'all that was ever captured';
COMMENT ON COLUMN accounts.month IS 'first day of the month that month_spend is of';
COMMENT ON COLUMN accounts.monthly_quota IS 'NULL: no quota';

CREATE TABLE api_keys (
    id                  uuid        PRIMARY KEY,
    account_id          uuid        NOT NULL,
    name                text        NOT NULL,
    hash                bytea       NOT NULL,
    hint                text        NOT NULL,
    requests_per_minute integer,
    concurrent_requests integer,
    inline_images       text,
    next_request_at     timestamptz NOT NULL DEFAULT '-infinity',
    created_at          timestamptz NOT NULL DEFAULT now(),
    expires_at          timestamptz,
    revoked_at          timestamptz,
    CONSTRAINT api_keys_account_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT api_keys_hash_key UNIQUE (hash),
    CONSTRAINT api_keys_requests_per_minute_check CHECK (requests_per_minute > 0),
    CONSTRAINT api_keys_concurrent_requests_check CHECK (concurrent_requests > 0),
    CONSTRAINT api_keys_inline_images_check CHECK (inline_images IN ('always', 'on_request', 'never'))
) WITH (fillfactor = 70);

CREATE INDEX api_keys_account_idx ON api_keys (account_id);

COMMENT ON COLUMN api_keys.hash IS 'SHA-256 of the key; the key itself is nowhere';
COMMENT ON COLUMN api_keys.hint IS 'first and last characters, to tell keys apart';
COMMENT ON COLUMN api_keys.requests_per_minute IS 'NULL: no limit';
COMMENT ON COLUMN api_keys.concurrent_requests IS 'NULL: no limit';
COMMENT ON COLUMN api_keys.inline_images IS 'NULL: as the configuration says';
COMMENT ON COLUMN api_keys.next_request_at IS 'when, at an even pace, the next request would be due (GCRA)';

CREATE TABLE tasks (
    id              uuid        PRIMARY KEY,
    account_id      uuid        NOT NULL,
    api_key_id      uuid        NOT NULL,
    status          text        NOT NULL,
    request         jsonb       NOT NULL,
    n               smallint    NOT NULL,
    unit_price      bigint      NOT NULL,
    idempotency_key text,
    fingerprint     bytea       NOT NULL,
    file_id         uuid        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    deadline_at     timestamptz NOT NULL,
    run_at          timestamptz NOT NULL DEFAULT now(),
    attempts        smallint    NOT NULL DEFAULT 0,
    fence           bigint      NOT NULL DEFAULT 0,
    lease_until     timestamptz,
    upstream_id     text,
    ended_at        timestamptz,
    cost            bigint,
    images          jsonb,
    failure         jsonb,
    CONSTRAINT tasks_account_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT tasks_api_key_fkey FOREIGN KEY (api_key_id) REFERENCES api_keys (id),
    CONSTRAINT tasks_n_check CHECK (n > 0),
    CONSTRAINT tasks_unit_price_check CHECK (unit_price >= 0),
    CONSTRAINT tasks_status_check CHECK (CASE status
        WHEN 'queued' THEN lease_until IS NULL AND ended_at IS NULL
        WHEN 'running' THEN lease_until IS NOT NULL AND ended_at IS NULL
        WHEN 'completed' THEN ended_at IS NOT NULL AND cost IS NOT NULL AND images IS NOT NULL AND failure IS NULL
        WHEN 'failed' THEN ended_at IS NOT NULL AND cost IS NOT DISTINCT FROM 0 AND images IS NULL AND failure IS NOT NULL
        ELSE false
    END)
);

CREATE UNIQUE INDEX tasks_file_id_key ON tasks (file_id);
CREATE INDEX tasks_account_idx ON tasks (account_id, id);
CREATE INDEX tasks_fingerprint_idx ON tasks (fingerprint);
CREATE INDEX tasks_idempotency_idx ON tasks (api_key_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_queued_idx ON tasks (run_at, id) INCLUDE (api_key_id) WHERE status = 'queued';
-- No column of it changes when a lease is renewed, so a renewal touches no index.
CREATE INDEX tasks_running_idx ON tasks (api_key_id) WHERE status = 'running';

COMMENT ON COLUMN tasks.request IS 'what to draw, as tasks::Request writes it';
COMMENT ON COLUMN tasks.unit_price IS 'of one image, as it was when the request was accepted';
COMMENT ON COLUMN tasks.fingerprint IS 'of the whole request: a repeat has the same';
COMMENT ON COLUMN tasks.file_id IS 'names the images in their links: a credential, unlike the id';
COMMENT ON COLUMN tasks.fence IS 'one more at every claim: a worker with an older one has lost the task';
COMMENT ON COLUMN tasks.upstream_id IS 'the name of the upstream''s own task, where it has one';
COMMENT ON COLUMN tasks.cost IS 'what was captured: delivered images times unit_price';

CREATE TABLE entries (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id     uuid        NOT NULL,
    task_id        uuid,
    kind           text        NOT NULL,
    balance_change bigint      NOT NULL,
    held_change    bigint      NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT entries_account_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT entries_kind_check CHECK (CASE kind
        WHEN 'top_up' THEN task_id IS NULL AND held_change = 0
        WHEN 'hold' THEN task_id IS NOT NULL AND balance_change = 0 AND held_change >= 0
        WHEN 'capture' THEN task_id IS NOT NULL AND balance_change <= 0 AND held_change <= balance_change
        WHEN 'release' THEN task_id IS NOT NULL AND balance_change = 0 AND held_change <= 0
        ELSE false
    END)
);

CREATE UNIQUE INDEX entries_hold_key ON entries (task_id) WHERE kind = 'hold';
CREATE UNIQUE INDEX entries_settlement_key ON entries (task_id) WHERE kind IN ('capture', 'release');
CREATE INDEX entries_account_idx ON entries (account_id, id);

COMMENT ON TABLE entries IS 'the ledger: never changed, only added to; an account''s balance and held are its sums';

CREATE TABLE uploads (
    id         uuid        PRIMARY KEY,
    account_id uuid        NOT NULL,
    name       text,
    object     text        NOT NULL,
    format     text        NOT NULL,
    bytes      bigint      NOT NULL,
    file_name  text        NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    deleted_at timestamptz,
    CONSTRAINT uploads_account_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT uploads_name_key UNIQUE (name),
    CONSTRAINT uploads_format_check CHECK (format IN ('jpeg', 'png', 'webp', 'gif'))
);

CREATE INDEX uploads_expires_idx ON uploads (expires_at) WHERE deleted_at IS NULL;

COMMENT ON COLUMN uploads.name IS 'what stands in its URL; NULL: came inside a request, and has no URL';
COMMENT ON COLUMN uploads.object IS 'the key of its bytes in storage';
