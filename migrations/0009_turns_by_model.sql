-- Turns are counted for each model: the queue of one that moves fast must not put newcomers to another behind all tasks
-- that one account already has there.

CREATE TABLE queue_turns (
    model  text    PRIMARY KEY,
    turn   bigint  NOT NULL
) WITH (fillfactor = 50); -- each claim changes a row in place
COMMENT ON TABLE queue_turns IS 'how far the queue of each model is';
COMMENT ON COLUMN queue_turns.turn IS 'the latest turn of which a task of the model was claimed';
COMMENT ON COLUMN open_tasks.turn IS 'its place among the queued tasks of its model';

INSERT INTO queue_turns SELECT model, min(turn) - 1 FROM open_tasks WHERE status = 'queued' GROUP BY model;
ALTER TABLE accounts DROP COLUMN last_turn;
DROP SEQUENCE queue_turn;

-- The last turn of an account.
CREATE INDEX open_tasks_turn_idx ON open_tasks (account_id, model, turn) WHERE status = 'queued';
