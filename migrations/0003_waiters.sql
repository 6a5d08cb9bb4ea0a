-- Who waits for a task, so that a retry joins only what its own caller has lost; and a quick way to those whose
-- time is over.

ALTER TABLE tasks
    ADD COLUMN waiter integer,
    ADD COLUMN joined smallint NOT NULL DEFAULT 0;

COMMENT ON COLUMN tasks.waiter IS 'the process where its caller waits, or was answered; 0: the caller has gone; NULL: none waited';
COMMENT ON COLUMN tasks.joined IS 'the number of the latest retry that made this task or was given it; 0: none';

CREATE INDEX tasks_deadline_idx ON tasks (deadline_at) WHERE status IN ('queued', 'running');
