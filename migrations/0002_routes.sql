-- Which of a model's routes a task takes, what it has tried, and what its upstream knows it by.

ALTER TABLE tasks
    ADD COLUMN model text NOT NULL GENERATED ALWAYS AS (request ->> 'model') STORED,
    ADD COLUMN route text,
    ADD COLUMN jobs text[] NOT NULL DEFAULT '{}',
    ADD COLUMN tried jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN usage jsonb,
    DROP COLUMN upstream_id;

COMMENT ON COLUMN tasks.route IS 'the way it is drawn while it runs; kept in the queue where jobs are to be gone on with';
COMMENT ON COLUMN tasks.jobs IS 'the upstream''s names for its jobs, one for each call that the task takes';
COMMENT ON COLUMN tasks.tried IS 'the attempts that are over, as tasks::Attempt writes them';
COMMENT ON COLUMN tasks.usage IS 'what the upstream says that the work has taken, as it says it; one entry a call';
COMMENT ON COLUMN tasks.attempts IS 'how often a worker has begun it';

-- By model and account: the next to be worked on is looked for in each of these lines.
DROP INDEX tasks_queued_idx;
CREATE INDEX tasks_queued_idx ON tasks (model, account_id, run_at, id) INCLUDE (api_key_id) WHERE status = 'queued';
-- Still no column of it changes when a lease is renewed.
DROP INDEX tasks_running_idx;
CREATE INDEX tasks_running_idx ON tasks (api_key_id) INCLUDE (account_id, model, route) WHERE status = 'running';

-- Written by who claims only, one at a time.
CREATE TABLE turns (
    account_id uuid PRIMARY KEY,
    served_at  timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE turns IS 'when a task of an account was last taken off the queue: who was served longest ago comes next';
