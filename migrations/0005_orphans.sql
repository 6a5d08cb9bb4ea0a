-- Images that attempts have stored and no task refers to are deleted once nobody can write them any more.

ALTER TABLE tasks ADD COLUMN swept_at timestamptz;

COMMENT ON COLUMN tasks.swept_at IS 'when what lost or failed attempts had left in storage was deleted; NULL: not looked for';

-- Few tasks are begun more than once or end by a fault of ours: the others are never looked at.
CREATE INDEX tasks_unswept_idx ON tasks (deadline_at)
    WHERE ended_at IS NOT NULL AND swept_at IS NULL
        AND (fence > 1 OR failure ->> 'kind' IN ('internal', 'deadline'));
