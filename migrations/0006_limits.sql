-- What clients are shown of a task stands in columns of its own, so that nothing they ask again and again
-- reads the request: with prompts and references that is up to some hundred kilobytes a row.

ALTER TABLE tasks
    ADD COLUMN quality text NOT NULL GENERATED ALWAYS AS (request ->> 'quality') STORED,
    ADD COLUMN resolution text NOT NULL GENERATED ALWAYS AS (request ->> 'resolution') STORED,
    ADD COLUMN ratio text NOT NULL GENERATED ALWAYS AS (request ->> 'ratio') STORED;

-- How much of storage an account's uploads take is summed from the index alone.
CREATE INDEX uploads_account_idx ON uploads (account_id) INCLUDE (bytes) WHERE deleted_at IS NULL;
