-- What a task needs of a route beside its model: capacity is counted by it, so that tasks which wait for one
-- route hold up none that another could take.

ALTER TABLE tasks
    ADD COLUMN needs smallint NOT NULL GENERATED ALWAYS AS (
        CASE jsonb_typeof(request -> 'references') WHEN 'array' THEN jsonb_array_length(request -> 'references') ELSE 0 END
        + CASE WHEN request ? 'mask' THEN 100 ELSE 0 END
    ) STORED;

COMMENT ON COLUMN tasks.needs IS 'the number of its references, and 100 more with a mask';

-- By model, needs and account: the next to be worked on is looked for in each of these lines.
DROP INDEX tasks_queued_idx;
CREATE INDEX tasks_queued_idx ON tasks (model, needs, account_id, run_at, id) INCLUDE (api_key_id, deadline_at, route)
    WHERE status = 'queued';
