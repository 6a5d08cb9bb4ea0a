-- Columns and tables under the names that the code has for what they hold.

ALTER TABLE turns RENAME TO account_schedule;
ALTER TABLE account_schedule RENAME COLUMN served_at TO last_dispatched_at;
ALTER TABLE account_schedule RENAME CONSTRAINT turns_pkey TO account_schedule_pkey;
COMMENT ON TABLE account_schedule IS 'when a task of each account was last dispatched: the account that waits longest comes next';

ALTER TABLE tasks RENAME COLUMN needs TO requirements;

UPDATE tasks SET tried = replace(tried::text, '"class": "silent"', '"class": "outcome_unknown"')::jsonb
WHERE tried::text LIKE '%"class": "silent"%';
