-- Columns and tables under the names that the code has for what they hold.

ALTER TABLE turns RENAME TO account_schedule;
ALTER TABLE account_schedule RENAME COLUMN served_at TO last_dispatched_at;
ALTER TABLE account_schedule RENAME CONSTRAINT turns_pkey TO account_schedule_pkey;
COMMENT ON TABLE account_schedule IS 'when a task of each account was last dispatched: the account that waits longest comes next';

ALTER TABLE tasks RENAME COLUMN needs TO requirements;

UPDATE tasks SET tried = replace(tried::text, '"class": "silent"', '"class": "outcome_unknown"')::jsonb
WHERE tried::text LIKE '%"class": "silent"%';

COMMENT ON COLUMN tasks.request IS 'the request, as tasks::Request serializes it';
COMMENT ON COLUMN tasks.route IS 'the route of a running task; a queued task keeps it if its jobs are to be resumed there';
COMMENT ON COLUMN tasks.jobs IS 'the upstream''s handles of its jobs, one for each call of the task';
COMMENT ON COLUMN tasks.tried IS 'the ended attempts, as tasks::Attempt serializes them';
COMMENT ON COLUMN tasks.requirements IS 'the number of its references, plus 100 with a mask';
